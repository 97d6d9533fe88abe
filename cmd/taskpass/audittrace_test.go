package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/audit"
)

// A CloudTrail file and a name lead to the task, asked of a broker and of the database alike.
func TestAuditTraceFromTheCommandLine(t *testing.T) {
	t.Parallel()
	i := install(t)
	c, url := i.serve()
	defer c.stop()
	var issued struct {
		ID    string
		Trace map[string]string
	}
	if err := json.Unmarshal([]byte(mustCall(t, http.StatusCreated, "POST", url+"/v1/credentials", i.tokens["orch"], fmt.Sprintf(serveRequest, ""))), &issued); err != nil {
		t.Fatal(err)
	}
	name := "pool/" + issued.Trace["key"]
	if p := issued.Trace["pool"]; p != "" {
		name = p + "/" + issued.Trace["key"]
	} else if k := issued.Trace["access_key_id"]; k != "" {
		name = k
	}
	var stored []string
	for _, how := range [][]string{
		{"--url", url, "--token-file", writeFile(t, t.TempDir(), "token", i.tokens["aud"])},
		{"--database-url-file", filepath.Join(i.dir, "service_url")},
	} {
		r := must(t, append([]string{"audit", "trace", name}, how...)...)
		for _, want := range []string{issued.ID + " version 1, active", "  task      ", "  alive     yes, until ", "credential.issued"} {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("%v: no %q in\n%s", how, want, r.stdout)
			}
		}
		stored = append(stored, r.stdout)
		mustFail(t, 1, []string{"unknown here"}, append([]string{"audit", "trace", "ASIANOBODY"}, how...)...)
		line := func(key string) string {
			return fmt.Sprintf(`{"eventTime":"2026-03-01T12:00:00Z","eventSource":"s3.amazonaws.com","eventName":"Get\u001b[2JObject","userIdentity":{"type":"AssumedRole","accessKeyId":%q}}`, key)
		}
		file := writeFile(t, t.TempDir(), "trail.json", `{"Records":[`+line("ASIANOBODY")+","+line(issued.Trace["access_key_id"])+","+line(name)+`]}`)
		if r = must(t, append([]string{"audit", "trace", "--cloudtrail", file}, how...)...); strings.Contains(r.stdout, "\x1b") ||
			!strings.Contains(r.stdout, "→ unknown here\n") || !strings.Contains(r.stdout, ", "+issued.ID+" version 1 (active), outside its time\n") {
			t.Errorf("%v: %s", how, r.stdout)
		}
		file = writeFile(t, t.TempDir(), "stripe.json", fmt.Sprintf(`{"created":%d,"method":"GET","path":"/v1/x","key_id":%q}`, 4102444800, name)+"\n{\"method\":\"GET\"}\n")
		if r = must(t, append([]string{"audit", "trace", "--stripe", file}, how...)...); !strings.Contains(r.stdout, "1 of 2 are of tasks here") {
			t.Errorf("%v: %s", how, r.stdout)
		}
		cut := writeFile(t, t.TempDir(), "cut.json", `{"Records":[`+line(name))
		mustFail(t, 1, []string{"record 2: it is not the JSON"}, append([]string{"audit", "trace", "--cloudtrail", cut}, how...)...)
	}
	if len(stored) == 2 && stored[0] != stored[1] {
		t.Errorf("the broker and the database tell two stories:\n%s\n%s", stored[0], stored[1])
	}
	if i.count("SELECT count(*) FROM events WHERE type = 'audit.read' AND body LIKE '%\"trace\":\"versions\"%'") == 0 {
		t.Error("the questions to the broker are not on the record")
	}
	mustFail(t, 1, []string{"invalid_request: the request is not valid\n", "\n  /query/upstream_id does not match ^[ -~]+$\n"},
		"audit", "trace", "\xff", "--url", url, "--token-file", writeFile(t, t.TempDir(), "token", i.tokens["aud"]))
	mustFail(t, 1, []string{"give one of"}, "audit", "trace")
	mustFail(t, 1, []string{"the value is not sha256: and 64"}, "audit", "trace", "sha256:zz", "--database-url-file", filepath.Join(i.dir, "service_url"))
	mustFail(t, 1, []string{"say who asks"}, "audit", "trace", "x", "--url", url)
}

// Somebody pastes the key that he found: it was once sent to the broker in a URL, where proxies note it, and called unknown.
func TestAuditTraceSendsNoSecret(t *testing.T) {
	t.Parallel()
	i := install(t)
	c, at := i.serve()
	defer c.stop()
	broker, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan string, 10)
	pass := httputil.NewSingleHostReverseProxy(broker)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent <- r.URL.String()
		pass.ServeHTTP(w, r)
	}))
	defer proxy.Close()
	token := writeFile(t, t.TempDir(), "token", i.tokens["aud"])
	for _, secret := range []string{"rk_live_C4n4ryC4n4ryC4n4ry", "sk_test_C4n4ryC4n4ryC4n4ry", "sk-ant-api03-C4n4ryC4n4ryC4n4ry"} {
		r := mustFail(t, 1, []string{"it is looked for by its SHA-256, and is sent nowhere", "unknown here"}, "audit", "trace", secret, "--url", proxy.URL, "--token-file", token)
		sum := sha256.Sum256([]byte(secret))
		if got, _ := url.QueryUnescape(<-sent); got != "/v1/audit/trace?fingerprint="+audit.Fingerprint(sum[:]) || strings.Contains(r.String(), "C4n4ry") {
			t.Errorf("sent: %s\n%s", got, r)
		}
	}
}

// A record with a stranger's role, key and principal and our source identity was once told as our task's own call.
func TestAWeakerNameIsSaidToBeOne(t *testing.T) {
	t.Parallel()
	i := install(t)
	c, url := i.serve()
	defer c.stop()
	var issued struct{ Trace map[string]string }
	if err := json.Unmarshal([]byte(mustCall(t, http.StatusCreated, "POST", url+"/v1/credentials", i.tokens["orch"], fmt.Sprintf(serveRequest, ""))), &issued); err != nil {
		t.Fatal(err)
	}
	ours := func(what string) string {
		if issued.Trace[what] == "" {
			t.Fatalf("no %s in %v", what, issued.Trace)
		}
		return issued.Trace[what]
	}
	key, principal, arn, source := ours("access_key_id"), ours("assumed_role_id"), ours("assumed_role_arn"), ours("role_session_name") // the version's id
	const theirKey, theirPrincipal, theirARN = "ASIAEVIL", "AROAEVIL:other", "arn:aws:sts::999999999999:assumed-role/evil/other"
	calls := []struct{ made, key, principal, arn, source, want string }{
		{"", key, principal, arn, source, "(active)"},
		{"", theirKey, theirPrincipal, theirARN, source, "(active), by its source identity only: its key is unknown here"},
		{"", theirKey, theirPrincipal, arn, source, "(active), by its ARN only: its key is unknown here"},
		{"", theirKey, principal, arn, source, "(active), by its principal only: its key is unknown here"},
		{"", "", theirPrincipal, theirARN, source, "(active), by its source identity only: its principal is unknown here"},
		{"ASIACHAIN", key, principal, arn, source, "(active), by its key only: its new key is unknown here"},
		{key, "AKIABROKER", "", "", "", "(active)"},
		{"", theirKey, theirPrincipal, theirARN, `\u00ff\u0000`, "unknown here"}, // which the API would refuse: the file is read on
		{"", theirKey, theirPrincipal, theirARN, "other", "unknown here"},
	}
	var file strings.Builder
	at := time.Now().UTC().Format(time.RFC3339)
	for _, c := range calls {
		_, _ = fmt.Fprintf(&file, `{"eventTime":%q,"eventSource":"s3.amazonaws.com","eventName":"GetObject","userIdentity":{"type":"AssumedRole",
			"accessKeyId":%q,"principalId":%q,"arn":%q,"sessionContext":{"sourceIdentity":"%s"}},"responseElements":{"credentials":{"accessKeyId":%q}}}`,
			at, c.key, c.principal, c.arn, c.source, c.made)
	}
	trail := writeFile(t, t.TempDir(), "trail.json", file.String())
	for _, how := range [][]string{
		{"--url", url, "--token-file", writeFile(t, t.TempDir(), "token", i.tokens["aud"])},
		{"--database-url-file", filepath.Join(i.dir, "service_url")},
	} {
		r := must(t, append([]string{"audit", "trace", "--cloudtrail", trail}, how...)...)
		lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
		if len(lines) != len(calls)+1 || lines[len(calls)] != "7 of 9 are of tasks here, 5 of them by a weaker name only" {
			t.Fatal(r)
		}
		for n, c := range calls {
			if !strings.HasSuffix(lines[n], c.want) {
				t.Errorf("line %d is %q, want …%q", n+1, lines[n], c.want)
			}
		}
	}
}

// What is in no event any more may be in a file: neither a name nor a line of a log is said to be unknown as if it were not.
func TestAuditTraceOfWhatIsArchived(t *testing.T) {
	t.Parallel()
	i := install(t)
	c, url := i.serve()
	var issued struct {
		ID    string
		Trace map[string]string
	}
	if err := json.Unmarshal([]byte(mustCall(t, http.StatusCreated, "POST", url+"/v1/credentials", i.tokens["orch"], fmt.Sprintf(serveRequest, ""))), &issued); err != nil {
		t.Fatal(err)
	}
	c.stop()
	i.sql("DO $$ BEGIN EXECUTE 'ALTER TABLE events DETACH PARTITION ' || (SELECT DISTINCT tableoid::regclass FROM events WHERE credential_id <> ''); END $$",
		"INSERT INTO tree_archives (month, from_idx, to_idx, events, size, sha256) VALUES ('2026-01', 0, 1, 1, 1, sha256(''))")
	trace := []string{"audit", "trace", "--database-url-file", filepath.Join(i.dir, "service_url")}
	name := issued.Trace["access_key_id"]
	if r := must(t, append(trace, name)...); !strings.Contains(r.stdout, issued.ID+" version 1, active") {
		t.Errorf("%s", r.stdout)
	}
	mustFail(t, 1, []string{"unknown here in what is not archived: events of months before 2026-02 are in files"}, append(trace, "ASIANOBODY")...)
	file := writeFile(t, t.TempDir(), "stripe.json", fmt.Sprintf(`{"created":4102444800,"method":"GET","path":"/v1/x","key_id":%q}`, name)+"\n"+`{"method":"GET","key_id":"nobody's"}`+"\n")
	r := must(t, append(trace, "--stripe", file)...)
	for _, want := range []string{", " + issued.ID + " version 1 (active)", "→ unknown here in what is not archived\n", "1 of 2 are of tasks here\nevents of months before 2026-02 are in files\n"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in %s", want, r.stdout)
		}
	}
}

// Of a key that many had only the newest are looked at. That none of them had it at the time of a call does not say that
// nobody had.
func TestAuditTraceDoesNotSayNobodyOfWhoWasNotLookedAt(t *testing.T) {
	t.Parallel()
	i := install(t)
	i.sql(`INSERT INTO credentials (id, caller, task_id, agent_id, profile, provider, requested, scopes, metadata, ttl_ms, created_at)
			SELECT 'crd_' || k, 'c', 't', 'a', 'p', 'pool', '{}', '{}', '{}', 60000, now() FROM generate_series(100, 300) k`,
		`INSERT INTO versions (id, credential_id, number, provider, state, issued_at, expires_at, self_expires, upstream, cause, result, effective_at, ended_at)
			SELECT translate(lpad(k::text, 16, '0'), '0123456789', 'abcdefghij'), 'crd_' || k, 1, 'pool', 'revoked', at, at + interval '1 hour', false, 'pool', 'revoked', 'destroyed', at + interval '1 hour', at
			FROM generate_series(100, 300) k, LATERAL (SELECT timestamptz '2026-01-01Z' + k * interval '1 minute' AS at) t`,
		`INSERT INTO events (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body)
			SELECT 'evt_' || k, '2026-01-01Z', 'credential.issued', 'c', 't', 'a', 'p', 'pool', 'crd_' || k,
				ARRAY[translate(lpad(k::text, 16, '0'), '0123456789', 'abcdefghij'), CASE WHEN k < 300 THEN 'many/key' ELSE 'few/key' END], '{}'
			FROM generate_series(100, 300) k`,
		`UPDATE events SET upstream_ids[2] = 'few/key' WHERE credential_id IN ('crd_298', 'crd_300')`)
	for name, want := range map[string]string{"many/key": "not among the newest here that had it by then", "few/key": "nobody here had it then"} {
		file := writeFile(t, t.TempDir(), "stripe.json", fmt.Sprintf(`{"created":1767312000,"method":"GET","path":"/v1/x","key_id":%q}`, name)+"\n")
		r := must(t, "audit", "trace", "--stripe", file, "--database-url-file", filepath.Join(i.dir, "service_url"))
		if !strings.Contains(r.stdout, "→ "+want+"\n") {
			t.Errorf("%s: no %q in %s", name, want, r.stdout)
		}
	}
	busy := fmt.Sprintf(`{"created":%d,"method":"GET","path":"/v1/x","key_id":"many/key"}`, 1767225600+299*60)
	r := must(t, "audit", "trace", "--stripe", writeFile(t, t.TempDir(), "stripe.json", busy+"\n"), "--database-url-file", filepath.Join(i.dir, "service_url"))
	if !strings.Contains(r.stdout, " or one of at least 9 others") {
		t.Errorf("of more than it lists: %s", r.stdout)
	}
}

// What a broker answers may have anything in it: no command prints a character that nobody sees, nor another line.
func TestCommandsShowWhatNobodySees(t *testing.T) {
	t.Parallel()
	const evil, written = "a\u00adb\u3164c\u202ed\U000e0041e\n  alive     no", `a\u00adb\u3164c\u202ed\udb40\udc41e\u000a  alive     no`
	broker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer := any(map[string]any{"keys": []any{map[string]any{"name": evil, "state": "available", "source": "file", "scopes": []string{evil}, "reason": evil}}})
		if strings.HasSuffix(r.URL.Path, "/audit/trace") {
			answer = map[string]any{"held": []any{map[string]any{"credential_id": "crd_1", "version": 1, "task_id": evil, "agent_id": evil, "caller": evil,
				"upstream": evil, "scopes": []string{evil}, "requested_scopes": []string{}, "upstream_ids": []string{}, "reason": evil, "cause": evil,
				"life": map[string]any{"alive": "yes", "how": "active"}, "events": []any{map[string]any{"type": "credential.issued", "caller": map[string]any{"name": evil}}}}}}
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(broker.Close)
	token, trail := writeFile(t, t.TempDir(), "token", "tp_x"), writeFile(t, t.TempDir(), "trail.json", `{"eventTime":"2026-01-31T09:00:00Z",
		"eventSource":"s3.amazonaws.com","eventName":"Get\u00adObject","userIdentity":{"type":"AssumedRole","accessKeyId":"ASIA1"}}`)
	for _, args := range [][]string{{"audit", "trace", "ASIA1"}, {"audit", "trace", "--cloudtrail", trail}, {"pool", "list", "models"}} {
		r := must(t, append(args, "--url", broker.URL, "--token-file", token)...)
		if !strings.Contains(r.stdout, written) || strings.ContainsAny(r.stdout, "\u00ad\u3164\u202e\U000e0041") || strings.Contains(r.stdout, "\n  alive     no") {
			t.Errorf("%q: %+q", args, r.stdout)
		}
	}
}
