package openapi_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"
)

// nasty are values that have broken something somewhere.
var nasty = []any{
	"", " ", "t", "aws", "read", "a/b", "../..", "a/../*", "*", "${aws:username}", "{{.TaskID}}", `"},{"`, "'", "\\", "\x00", "a\x00b", "\n", "\x1b[31m",
	"é", "🦊", "\u2028", "\ufffd", "\u202e", strings.Repeat("x", 128), strings.Repeat("x", 129), strings.Repeat("ü", 128), strings.Repeat("x", 60000),
	"null", "true", "<script>", "%00", "%s%n", "$(id)", "' OR 1=1 --", "\xff\xfe",
	nil, true, false, 0, 1, -1, 60, 3600, 43200, 43201, 31622400, 31622401, 1.5, 1e18, 1e308, json.Number("1e400"), json.Number("-0"), json.Number("9223372036854775808"),
	[]any{}, []any{"read"}, []any{"read", "read"}, []any{"read", 1}, []any{nil}, []any{[]any{[]any{}}}, map[string]any{}, map[string]any{"k": "v"}, map[string]any{"": ""},
	map[string]any{"k": "a\x00b"}, map[string]any{"k\x00": "v"}, map[string]any{"k": nil}, map[string]any{"k": map[string]any{"k": "v"}}, map[string]any{"a/b": "v"},
}

// mutate is a good body with some fields replaced, added or taken away, and at times cut or stirred as text.
func mutate(r *rand.Rand, good map[string]any) string {
	fields := map[string]any{}
	for k, v := range good {
		fields[k] = v
	}
	names := []string{
		"task_id", "agent_id", "profile", "scopes", "ttl_seconds", "metadata", "reason", "delivery", "parent_task_id", "task_token", "credentials", "ticket", "version",
		"status", "outcome", "", "x", "Task_ID",
	}
	for range r.IntN(4) {
		name := names[r.IntN(len(names))]
		if r.IntN(4) == 0 {
			delete(fields, name)
		} else {
			fields[name] = nasty[r.IntN(len(nasty))]
		}
	}
	text, err := json.Marshal(fields)
	if err != nil {
		return fmt.Sprint(fields)
	}
	out := string(text)
	switch r.IntN(8) {
	case 0:
		out = out[:r.IntN(len(out)+1)]
	case 1:
		at := r.IntN(len(out) + 1)
		out = out[:at] + fmt.Sprint(nasty[r.IntN(len(nasty))]) + out[at:]
	case 2:
		out += out
	}
	return out
}

// sound tells what is wrong with any answer to any input: 5xx, or a refusal in another form than the contract's.
func sound(got answer) []string {
	if got.status >= 500 {
		return []string{fmt.Sprintf("answered %d: %s", got.status, got.body)}
	}
	if got.status >= 400 {
		_, wrong := wellFormed(got)
		return wrong
	}
	if got.header.Get("X-Request-Id") == "" {
		return []string{"no X-Request-Id"}
	}
	return nil
}

// Each field of each body, and each parameter of each query, with each nasty value, one at a time.
func TestEveryFieldTakesEverything(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	id := a.issue("t").ID
	try := func(as, method, path, text string) {
		got, err := a.try(t.Context(), as, method, path, text)
		if err != nil {
			t.Errorf("%s %.200s: %v", method, path, err)
			return
		}
		for _, wrong := range sound(got) {
			t.Errorf("%s %.200s %.300q: %s", method, path, text, wrong)
		}
	}
	for path, item := range readSpec(t).Paths.Map() {
		if strings.HasSuffix(path, "/watch") || path == "/v1/events" {
			continue // those wait
		}
		at := strings.NewReplacer("{id}", id, "{task_id}", "t-x").Replace(path)
		for method, operation := range item.Operations() {
			as := "orch"
			if strings.HasPrefix(path, "/v1/audit") {
				as = "aud"
			}
			for _, parameter := range operation.Parameters {
				for _, value := range nasty {
					if p := parameter.Value; p.In == "query" {
						try(as, method, at+"?"+p.Name+"="+escape(fmt.Sprint(value)), "")
					}
				}
			}
			if operation.RequestBody == nil {
				continue
			}
			schema := operation.RequestBody.Value.Content["application/json"].Schema.Value
			good := map[string]any{}
			if path == "/v1/credentials" {
				good = map[string]any{"task_id": "t", "agent_id": "a", "profile": "aws", "scopes": []any{"read"}}
			}
			for field := range schema.Properties {
				for _, value := range nasty {
					with := maps.Clone(good)
					with[field] = value
					if text, err := json.Marshal(with); err == nil {
						try(as, method, at, string(text))
					}
				}
			}
		}
	}
}

func TestNoInputBreaksIt(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	id := a.issue("t").ID
	var calls [][2]string
	for path, item := range readSpec(t).Paths.Map() {
		for method := range item.Operations() {
			if !strings.HasSuffix(path, "/watch") && path != "/v1/events" { // those wait
				calls = append(calls, [2]string{method, path})
			}
		}
	}
	issue := map[string]any{"task_id": "t", "agent_id": "a", "profile": "aws", "scopes": []any{"read"}}
	r := rand.New(rand.NewPCG(7, 11))
	callers := []string{"orch", "orch", "orch", "other", "aud", "ops"}
	for i := range 800 {
		call := calls[r.IntN(len(calls))]
		value := fmt.Sprint(nasty[r.IntN(len(nasty))])
		path := strings.ReplaceAll(call[1], "{id}", id)
		if r.IntN(5) == 0 {
			path = strings.ReplaceAll(call[1], "{id}", escape(value))
		}
		path = strings.ReplaceAll(path, "{task_id}", escape(value))
		if call[0] == http.MethodGet && r.IntN(2) == 0 {
			names := []string{"task_id", "agent_id", "limit", "cursor", "since", "until", "order", "status", "type", "upstream_id", "credential_id", "x", "version", "fingerprint"}
			path += "?" + names[r.IntN(len(names))] + "=" + escape(value) + "&" + names[r.IntN(len(names))] + "=" + escape(fmt.Sprint(nasty[r.IntN(len(nasty))]))
		}
		text := ""
		if call[0] == http.MethodPost {
			good := issue
			if call[1] != "/v1/credentials" && r.IntN(3) > 0 {
				good = map[string]any{}
			}
			text = mutate(r, good)
		}
		var headers []string
		if r.IntN(6) == 0 {
			names := []string{"X-Request-Id", "Content-Type", "Accept", "Idempotency-Key", "Authorization", "If-None-Match", "Content-Encoding"}
			if value := header(value); value != "" {
				headers = []string{names[r.IntN(len(names))], value}
			}
		}
		got, err := a.try(t.Context(), callers[r.IntN(len(callers))], call[0], path, text, headers...)
		if err != nil {
			t.Logf("%d: not sent: %v", i, err)
			continue
		}
		for _, wrong := range sound(got) {
			t.Errorf("%d: %s %.200s %.300q %q: %s", i, call[0], path, text, headers, wrong)
		}
	}
}

// header is the part of a value that a client can put into a header.
func header(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), 4000)]
}

func escape(s string) string {
	var b strings.Builder
	for i := range min(len(s), 2000) {
		fmt.Fprintf(&b, "%%%02X", s[i])
	}
	return b.String()
}

func FuzzIssue(f *testing.F) {
	a := newAPI(f)
	for _, text := range []string{body(nil), "", "{", "[]", body(nil) + "x", body(map[string]string{"ttl_seconds": "1e400", "metadata": `{"k":"v"}`})} {
		f.Add(text)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		f.Add(mutate(r, map[string]any{"task_id": "t", "agent_id": "a", "profile": "aws", "scopes": []any{"read"}}))
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := a.try(t.Context(), "orch", "POST", "/v1/credentials", text)
		if err != nil {
			t.Skip(err)
		}
		for _, wrong := range sound(got) {
			t.Errorf("%q: %s", text, wrong)
		}
	})
}

func FuzzAuditQuery(f *testing.F) {
	a := newAPI(f)
	for _, query := range []string{"task_id=t&limit=5", "cursor=MS4x", "since=2026-01-01T00:00:00Z", "order=oldest&limit=1", "a=%zz", "upstream_id=%00", ";", "task_id=a;b"} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		got, err := a.try(t.Context(), "aud", "GET", "/v1/audit/events?"+query, "")
		if err != nil {
			t.Skip(err)
		}
		if got.status == http.StatusBadRequest && got.header.Get("X-Request-Id") == "" {
			t.Skip("it is no HTTP: net/http refused it before we saw it")
		}
		for _, wrong := range sound(got) {
			t.Errorf("%q: %s", query, wrong)
		}
	})
}
