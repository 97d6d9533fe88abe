package openapi_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/broker"
)

// planted stands in the wrong places of requests: no answer, log line or event may repeat it.
const planted = "s3cr3t-CANARY-9f2d71c4"

// body is a good request for an AWS session with some of its fields replaced: "" takes one away.
func body(change map[string]string) string {
	fields := map[string]string{"task_id": `"t"`, "agent_id": `"a"`, "profile": `"aws"`, "scopes": `["read"]`}
	for name, value := range change {
		fields[name] = value
	}
	var parts []string
	for name, value := range fields {
		if value != "" {
			parts = append(parts, fmt.Sprintf("%q:%s", name, value))
		}
	}
	slices.Sort(parts)
	return "{" + strings.Join(parts, ",") + "}"
}

// A bound without an end was once "not between 1 and 0".
func TestBoundsAreSaid(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for path, want := range map[string]string{
		"/v1/audit/proof/inclusion?index=-1":    `{"pointer":"/query/index","reason":"is below 0"}`,
		"/v1/audit/proof/consistency?from=0":    `{"pointer":"/query/from","reason":"is below 1"}`,
		"/v1/audit/events?limit=0":              `{"pointer":"/query/limit","reason":"is not between 1 and 1000"}`,
		"/v1/audit/tile/8/0":                    `{"pointer":"/path/level","reason":"is not between 0 and 7"}`,
		"/v1/audit/proof/inclusion?tree_size=0": `{"pointer":"/query/tree_size","reason":"is below 1"}`,
	} {
		if got := a.call("aud", "GET", path, ""); got.status != 400 || !strings.Contains(got.body, want) {
			t.Errorf("%s: %d %s, want %s", path, got.status, got.body, want)
		}
	}
}

func TestBadBodies(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	type bad struct{ body, pointers string }
	cases := map[string]bad{
		"empty":            {"", ""},
		"white space":      {"  \n", ""},
		"broken":           {`{"task_id":"` + planted, ""},
		"trailing garbage": {body(nil) + planted, ""},
		"a second value":   {body(nil) + body(nil), ""},
		"a list":           {"[" + body(nil) + "]", ""},
		"a string":         {`"` + planted + `"`, ""},
		"null":             {"null", ""},
		"a number":         {"7", ""},
		"no field":         {"{}", "/agent_id /profile /scopes /task_id"},
		"unknown field":    {body(map[string]string{planted: `"x"`}), ""},
		"another case":     {body(map[string]string{"Task_ID": `"other"`}), ""},
		"deep":             {strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000), ""},
		"not UTF-8":        {body(map[string]string{"task_id": "\"\xff\xfe" + planted + "\""}), "/task_id"},
		"empty scopes":     {body(map[string]string{"scopes": `[]`}), "/scopes"},
		"65 scopes":        {body(map[string]string{"scopes": `[` + strings.Repeat(`"read",`, 64) + `"read"]`}), "/scopes"},
		"scope of a type":  {body(map[string]string{"scopes": `["read",5]`}), "/scopes/1"},
		"scope null":       {body(map[string]string{"scopes": `[null]`}), "/scopes/0"},
		"metadata list":    {body(map[string]string{"metadata": `["` + planted + `"]`}), "/metadata"},
		"metadata nested":  {body(map[string]string{"metadata": `{"` + planted + `":{"x":1}}`}), "/metadata"},
		"metadata number":  {body(map[string]string{"metadata": `{"` + planted + `":5}`}), "/metadata"},
		"metadata long":    {body(map[string]string{"metadata": `{"` + planted + `":"` + strings.Repeat("x", 257) + `"}`}), "/metadata"},
		"metadata bytes":   {body(map[string]string{"metadata": `{"` + planted + `":"` + strings.Repeat("ü", 129) + `"}`}), "/metadata"},
		"metadata NUL":     {body(map[string]string{"metadata": `{"` + planted + `":"a\u0000b"}`}), "/metadata"},
		"metadata key":     {body(map[string]string{"metadata": `{"` + planted + ` /":"x"}`}), "/metadata"},
		"metadata key NUL": {body(map[string]string{"metadata": `{"` + planted + `\u0000":"x"}`}), "/metadata"},
		"metadata 17":      {body(map[string]string{"metadata": "{" + strings.TrimSuffix(entries(17), ",") + "}"}), "/metadata"},
	}
	for _, field := range []string{"task_id", "agent_id", "profile", "scopes"} {
		cases["no "+field] = bad{body(map[string]string{field: ""}), "/" + field}
		at := "/" + field
		wrap := func(s string) string { return s }
		if field == "scopes" {
			at, wrap = at+"/0", func(s string) string { return "[" + s + "]" }
		}
		for what, value := range map[string]string{
			"number": "5", "list": `["` + planted + `"]`, "object": `{"x":"` + planted + `"}`, "null": "null", "true": "true",
			"empty": `""`, "path": `"a/../*` + planted + `"`, "variable": `"${aws:username}` + planted + `"`, "policy": `"\"},{\"` + planted + `"`,
			"NUL": `"` + planted + `\u0000"`, "new line": `"` + planted + `\n"`, "wildcard": `"` + planted + `*"`, "space": `" ` + planted + `"`,
			"letter": `"ä` + planted + `"`, "129": `"` + planted + strings.Repeat("x", 129-len(planted)) + `"`, "template": `"{{.TaskID}}` + planted + `"`,
		} {
			cases[field+" "+what] = bad{body(map[string]string{field: wrap(value)}), at}
		}
	}
	for _, ttl := range []string{"0", "-1", "-9223372036854775808", "31622401", "9223372036854775807", "9223372036854775808", "1e100", "1e400",
		"3600.5", "0.5", `"3600"`, "null", "true", "[]", "{}", "1e3000000000"} {
		cases["ttl "+ttl] = bad{body(map[string]string{"ttl_seconds": ttl}), "/ttl_seconds"}
	}
	before := len(a.sandbox.AWS.Sessions())
	for what, c := range cases {
		got := a.call("orch", "POST", "/v1/credentials", c.body)
		p, wrong := wellFormed(got)
		for _, w := range wrong {
			t.Errorf("%s: %s", what, w)
		}
		if p.Code != "invalid_request" {
			t.Errorf("%s: answered %d %s (%s) %+v", what, got.status, p.Code, p.Detail, p.Errors)
			continue
		}
		var pointers []string
		for _, f := range p.Errors {
			pointers = append(pointers, f.Pointer)
		}
		slices.Sort(pointers)
		pointers = slices.Compact(pointers)
		if c.pointers != "" && strings.Join(pointers, " ") != c.pointers {
			t.Errorf("%s: pointers %q, want %q", what, pointers, c.pointers)
		}
		if len(p.Errors) == 0 {
			t.Errorf("%s: no reason is given", what)
		}
		if strings.Contains(got.body, "CANARY") {
			t.Errorf("%s: the answer repeats what was sent: %s", what, got.body)
		}
	}
	if n := len(a.sandbox.AWS.Sessions()); n != before {
		t.Errorf("%d sessions were made of bad requests", n-before)
	}
	if strings.Contains(a.log.String(), "CANARY") {
		t.Error("the log repeats what was sent")
	}
	page := a.call("aud", "GET", "/v1/audit/events?limit=1000", "")
	if strings.Contains(page.body, "CANARY") {
		t.Error("the audit record repeats what was sent")
	}
}

func entries(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"k%d":"v",`, i)
	}
	return b.String()
}

// What looks odd and is good.
func TestGoodBodies(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for what, text := range map[string]string{
		"white space around": " \n" + body(nil) + "\n ",
		"duplicate scopes":   body(map[string]string{"scopes": `["read","read"]`}),
		"128 characters":     body(map[string]string{"task_id": `"` + strings.Repeat("x", 128) + `"`}),
		"escapes":            body(map[string]string{"task_id": `"\u0074\u0031"`}),
		"empty metadata":     body(map[string]string{"metadata": `{}`}),
		"metadata":           body(map[string]string{"metadata": `{"run":"42","note":"ü \" \\ \u2028 🦊","empty":""}`}),
		"16 entries":         body(map[string]string{"metadata": "{" + strings.TrimSuffix(entries(16), ",") + "}"}),
		"a charset":          body(nil),
	} {
		kind := "application/json"
		if what == "a charset" {
			kind = "application/json; charset=utf-8"
		}
		c := a.issued(a.call("orch", "POST", "/v1/credentials", text, "Content-Type", kind))
		if !slices.Equal(c.Scopes, []string{"read"}) {
			t.Errorf("%s: scopes %v", what, c.Scopes)
		}
		if what == "metadata" && c.Metadata["note"] != "ü \" \\ \u2028 🦊" {
			t.Errorf("metadata: %q", c.Metadata)
		}
	}
}

func TestBadMediaTypes(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for _, kind := range []string{"", "text/plain", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
		"application/jsonx", "; ;", planted, "application/json, text/plain"} {
		got := a.call("orch", "POST", "/v1/credentials", body(nil), "Content-Type", kind)
		a.want(got, broker.CodeUnsupportedMediaType)
		if strings.Contains(got.body, "CANARY") {
			t.Errorf("the answer repeats what was sent: %s", got.body)
		}
	}
	// Encodings that nobody asked for are not guessed at.
	a.want(a.call("orch", "POST", "/v1/credentials", "\x1f\x8b\x08\x00", "Content-Encoding", "gzip"), broker.CodeUnsupportedMediaType)
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for what, text := range map[string]string{
		"5 MB of one string": `{"task_id":"` + strings.Repeat("x", 5<<20) + `"}`,
		"5 MB of nothing":    strings.Repeat(" ", 5<<20) + body(nil),
		"just too much":      body(nil) + strings.Repeat(" ", 64<<10),
	} {
		if p := a.want(a.call("orch", "POST", "/v1/credentials", text), broker.CodePayloadTooLarge); !strings.Contains(p.Detail, "65536") {
			t.Errorf("%s: %s", what, p.Detail)
		}
	}
	id := a.issue("t").ID
	a.want(a.call("orch", "POST", "/v1/credentials/"+id+"/revoke", `{"reason":"`+strings.Repeat("x", 5<<20)+`"}`), broker.CodePayloadTooLarge)
	// Without a length, in chunks; the server stops reading long before the end.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.url+"/v1/credentials", io.LimitReader(endless{}, 1<<30))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+a.tokens["orch"])
	r.Header.Set("Content-Type", "application/json")
	if response, err := a.http.Do(r); err == nil { // the server may hang up while the client still sends
		defer response.Body.Close()
		if response.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("endless: %d", response.StatusCode)
		}
	}
	// Who is not known does not get to send that much.
	a.want(a.call("", "POST", "/v1/credentials", strings.Repeat(" ", 5<<20)), broker.CodeUnauthenticated)
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestBadQueries(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	encode := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	id := "/query/"
	for query, pointer := range map[string]string{
		"limit=0": id + "limit", "limit=501": id + "limit", "limit=-1": id + "limit", "limit=x": id + "limit", "limit=1e2": id + "limit",
		"limit=99999999999999999999": id + "limit", "limit=1.5": id + "limit",
		"cursor=!": id + "cursor", "cursor=" + encode("crd/../x"): id + "cursor", "cursor=" + encode("\x00"): id + "cursor",
		"cursor=" + strings.Repeat("A", 129): id + "cursor",
		"status=dead":                        id + "status", "status=ACTIVE": id + "status", "status=": id + "status",
		"task_id=a/b": id + "task_id", "task_id=%00": id + "task_id", "task_id=": id + "task_id", "task_id=a%0a": id + "task_id",
		"task_id=" + strings.Repeat("x", 129): id + "task_id", "task_id=" + planted + "*": id + "task_id",
		"agent_id=%24%7Baws:username%7D": id + "agent_id", "profile=%ff": id + "profile",
	} {
		got := a.call("orch", "GET", "/v1/credentials?"+query, "")
		p := a.want(got, broker.CodeInvalidRequest)
		if len(p.Errors) == 0 || p.Errors[0].Pointer != pointer {
			t.Errorf("%s: %+v, want %s", query, p.Errors, pointer)
		}
		if strings.Contains(got.body, "CANARY") {
			t.Errorf("%s: the answer repeats it", query)
		}
	}
	for query, pointer := range map[string]string{
		"limit=0": id + "limit", "limit=1001": id + "limit", "cursor=!": id + "cursor", "cursor=" + encode("1"): id + "cursor",
		"cursor=" + encode("x.y"): id + "cursor", "order=sideways": id + "order", "type=A": id + "type", "type=" + strings.Repeat("x", 65): id + "type",
		"credential_id=crd_x": id + "credential_id", "credential_id=" + planted: id + "credential_id", "since=yesterday": id + "since", "until=2026": id + "until",
		"since=2026-02-30T00:00:00Z": id + "since", "until=2026-01-01T25:00:00Z": id + "until", "since=2026-01-01": id + "since",
		"upstream_id=%00": id + "upstream_id", "upstream_id=": id + "upstream_id", "upstream_id=%C3%A4": id + "upstream_id",
		"upstream_id=" + strings.Repeat("x", 513): id + "upstream_id", "caller=a%20b": id + "caller", "provider=*": id + "provider",
	} {
		got := a.call("aud", "GET", "/v1/audit/events?"+query, "")
		p := a.want(got, broker.CodeInvalidRequest)
		if len(p.Errors) == 0 || p.Errors[0].Pointer != pointer {
			t.Errorf("audit %s: %+v, want %s", query, p.Errors, pointer)
		}
		if strings.Contains(got.body, "CANARY") {
			t.Errorf("audit %s: the answer repeats it", query)
		}
	}
}

// "Unknown fields are refused" goes for the query too: a filter with a slip in its name would show too much.
func TestUnknownQueryParameters(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for path, as := range map[string]string{
		"/v1/credentials?taskid=t": "orch", "/v1/audit/events?task=t": "aud", "/v1/profiles?x=y": "orch", "/v1/credentials?task_id=t&Task_ID=u": "orch",
	} {
		got := a.call(as, "GET", path, "")
		if p := a.want(got, broker.CodeInvalidRequest); len(p.Errors) == 0 {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	// One parameter twice says two things.
	a.want(a.call("orch", "GET", "/v1/credentials?task_id=a&task_id=b", ""), broker.CodeInvalidRequest)
}

func TestBadPaths(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	id := a.issue("t").ID
	for _, path := range []string{
		"/v1/credentials/" + id[:29], "/v1/credentials/" + id + "0", "/v1/credentials/" + strings.ToUpper(id), "/v1/credentials/" + id + "%0a",
		"/v1/credentials/" + id + "%00", "/v1/credentials/..%2f" + id, "/v1/credentials/%ff", "/v1/credentials/tok_" + id[4:], "/v1/credentials/" + planted,
		"/v1/credentials/" + strings.Repeat("x", 3000),
	} {
		for _, c := range [][2]string{{"GET", ""}, {"POST", "/revoke"}} {
			got := a.call("orch", c[0], path+c[1], "")
			p := a.want(got, broker.CodeInvalidRequest)
			if len(p.Errors) == 0 || p.Errors[0].Pointer != "/path/id" || strings.Contains(got.body, "CANARY") {
				t.Errorf("%s %.60s: %s", c[0], path, got.body)
			}
		}
	}
	for _, path := range []string{"/v1", "/v1/", "/v2/credentials", "/v1/credentials/", "/v1//credentials", "/v1/credentials/" + id + "/", "/v1/credentials/" + id + "/revoke/x",
		"/V1/credentials", "/" + planted, "/v1/audit", "/v1/audit/events/x", "/.git/config", "/debug/pprof/", "/v1/credentials/" + id + "%2frevoke"} {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} {
			got, want := a.call("orch", method, path, ""), broker.CodeNotFound
			if strings.HasSuffix(path, "%2frevoke") { // one segment: an id with a slash in it
				if want = broker.CodeMethodNotAllowed; method == "GET" {
					want = broker.CodeInvalidRequest
				}
			}
			a.want(got, want)
			if strings.Contains(got.body, "CANARY") {
				t.Errorf("%s: the answer repeats it", path)
			}
		}
	}
	if strings.Contains(a.log.String(), "/"+planted) {
		t.Error("the log repeats a path")
	}
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for _, id := range []string{"a", "req-1:2026@x_y.z", strings.Repeat("x", 128)} {
		if got := a.call("orch", "GET", "/v1/profiles", "", "X-Request-Id", id).header.Get("X-Request-Id"); got != id {
			t.Errorf("%q comes back as %q", id, got)
		}
	}
	seen := map[string]bool{}
	for _, id := range []string{"", "a b", "a/b", planted + "*", strings.Repeat("x", 129), "ä", "<x>"} {
		got := a.call("orch", "GET", "/v1/profiles", "", "X-Request-Id", id).header.Get("X-Request-Id")
		if got == "" || got == id || seen[got] || !broker.ValidID(got) || strings.Contains(got, "CANARY") {
			t.Errorf("%q comes back as %q", id, got)
		}
		seen[got] = true
	}
	a.issued(a.call("orch", "POST", "/v1/credentials", body(nil), "X-Request-Id", "req-42"))
	for _, e := range a.audit("task_id=t").Events {
		if e.RequestID != "req-42" {
			t.Errorf("%s is of request %q", e.Type, e.RequestID)
		}
	}
	if !strings.Contains(a.log.String(), `"request_id":"req-42"`) {
		t.Error("the log does not have it")
	}
}

// A client that sends half a request and goes, or hangs up before the answer, leaves nothing behind.
func TestClientGoes(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url+"/v1/credentials", pr)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+a.tokens["orch"])
	r.Header.Set("Content-Type", "application/json")
	go func() {
		_, _ = pw.Write([]byte(`{"task_id":"t",`))
		cancel()
		_ = pw.Close()
	}()
	if response, err := a.http.Do(r); err == nil {
		response.Body.Close()
	}
	if n := len(a.sandbox.AWS.Sessions()); n != 0 {
		t.Errorf("%d sessions were made of half a request", n)
	}
	a.issue("t2") // and the service goes on
}

// The contract's own document is served as it is in the repository.
func TestDocumentIsServed(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	got := a.call("", "GET", "/openapi.yaml", "")
	if got.status != http.StatusOK || got.header.Get("Content-Type") != "application/yaml" || got.body != readDocument(t) {
		t.Errorf("answered %d, %s, %d bytes", got.status, got.header.Get("Content-Type"), len(got.body))
	}
}
