package openapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/taskpass/taskpass/broker"
)

// encoded is a path segment with every character percent-encoded, as no client is forbidden to send it.
func encoded(s string) string { return escape(s) }

// A client that encodes path parameters, as encodeURIComponent and the generated client do, calls the same as one that
// does not: in every operation with an id in its path.
func TestPercentEncodedPaths(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	c := a.issue("team:task@1")
	key := "team:key@1"
	if got := a.call("ops", "POST", "/v1/pools/models/keys", `{"name":"`+key+`","value":"v-1"}`); got.status != http.StatusCreated {
		t.Fatalf("%d %s", got.status, got.body)
	}
	for _, task := range []string{"team:task@1", "team%3Atask%401", "team%3atask@1", encoded("team:task@1")} {
		if got := a.call("orch", "GET", "/v1/tasks/"+task, ""); got.status != http.StatusOK || !strings.Contains(got.body, c.ID) {
			t.Errorf("GET %s: %d %s", task, got.status, got.body)
		}
		several := `{"agent_id":"a","credentials":[{"profile":"aws","scopes":["read"]}]}`
		if got := a.call("orch", "POST", "/v1/tasks/"+task+"/credentials", several); got.status != http.StatusCreated || !strings.Contains(got.body, `"task_id":"team:task@1"`) {
			t.Errorf("POST %s/credentials: %d", task, got.status)
		}
	}
	for _, id := range []string{c.ID, "crd%5F" + c.ID[4:], encoded(c.ID)} {
		at := "/v1/credentials/" + id
		for _, op := range [][3]string{{"GET", "", ""}, {"POST", "/resolve", ""}, {"GET", "/watch?version=0&wait=0s", ""}, {"POST", "/reports", `{"status":200,"version":1}`}} {
			if got := a.call("orch", op[0], at+op[1], op[2]); got.status != http.StatusOK {
				t.Errorf("%s %s: %d %s", op[0], at+op[1], got.status, got.body)
			}
		}
		if got := a.call("orch", "POST", at+"/refresh", ""); got.status != http.StatusCreated {
			t.Errorf("refresh %s: %d %s", at, got.status, got.body)
		}
	}
	for _, pool := range []string{"models", encoded("models")} {
		at := "/v1/pools/" + pool + "/keys"
		for _, name := range []string{key, "team%3Akey%401", encoded(key)} {
			for path, body := range map[string]string{"/quarantine": "", "/free": "", "/%66ree": "", "/rotate": `{"value":"v-` + strings.Trim(name, "%") + pool[:3] + `"}`} {
				if got := a.call("ops", "POST", at+"/"+name+path, body); got.status != http.StatusOK && got.status != http.StatusAccepted && got.status != http.StatusConflict {
					t.Errorf("%s/%s%s: %d %s", at, name, path, got.status, got.body)
				}
			}
		}
		if got := a.call("ops", "GET", at, ""); got.status != http.StatusOK || !strings.Contains(got.body, key) {
			t.Errorf("%s: %d %s", at, got.status, got.body)
		}
	}
	// Decoded once, and a slash stays within its segment.
	for _, task := range []string{"team%253Atask%25401", "team:task@1%2Fend", "%2e%2e%2Fteam:task@1", "..%2f..", "a%2Fb", "team%3Atask%2F1", "%2e%2e", "."} {
		a.want(a.call("orch", "GET", "/v1/tasks/"+task, ""), broker.CodeInvalidRequest)
	}
	if got := a.call("orch", "POST", "/v1/tasks/"+encoded("team:task@1")+"/end", ""); got.status >= 300 {
		t.Errorf("end: %d %s", got.status, got.body)
	}
}

// An id of only dots would be removed from a URL's path by its client: "/v1/tasks/../end" is another call.
func TestIDsOfOnlyDots(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for _, dots := range []string{".", "..", "...", strings.Repeat(".", 128)} {
		for _, field := range []string{"task_id", "agent_id", "profile", "parent_task_id"} {
			p := a.want(a.call("orch", "POST", "/v1/credentials", body(map[string]string{field: `"` + dots + `"`})), broker.CodeInvalidRequest)
			if len(p.Errors) == 0 || p.Errors[0].Pointer != "/"+field {
				t.Errorf("%s: %+v", field, p.Errors)
			}
		}
		a.want(a.call("ops", "POST", "/v1/pools/models/keys", `{"name":"`+dots+`","value":"v"}`), broker.CodeInvalidRequest)
		for _, path := range []string{"/v1/tasks/" + encoded(dots), "/v1/pools/" + encoded(dots) + "/keys", "/v1/credentials?task_id=" + dots} {
			a.want(a.call("ops", "GET", path, ""), broker.CodeInvalidRequest)
		}
		a.want(a.call("ops", "POST", "/v1/pools/models/keys/"+encoded(dots)+"/free", ""), broker.CodeInvalidRequest)
		if broker.ValidID(dots) {
			t.Errorf("%q is taken for an id", dots)
		}
	}
	for _, id := range []string{"..a", "a..", ".-.", "v1.2"} {
		a.issued(a.call("orch", "POST", "/v1/credentials", body(map[string]string{"task_id": `"` + id + `"`})))
	}
}

// A path that exists with another method says which it has.
func TestMethodNotAllowed(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	id := a.issue("t").ID
	for c, allow := range map[[2]string]string{
		{"DELETE", "/v1/credentials/" + id}: "GET, HEAD", {"PUT", "/v1/credentials"}: "GET, HEAD, POST", {"POST", "/v1/profiles"}: "GET, HEAD",
		{"GET", "/v1/credentials/" + id + "/revoke"}: "POST", {"POST", "/v1/audit/events"}: "GET, HEAD", {"OPTIONS", "/v1/tasks/t/end"}: "POST",
		{"POST", "/metrics"}: "GET, HEAD", {"TRACE", "/v1/profiles"}: "GET, HEAD", {planted, "/v1/profiles"}: "GET, HEAD", {"POST", "/livez"}: "GET, HEAD",
		{"PUT", "/v1/tasks/team%3Atask"}: "GET, HEAD",
	} {
		got := a.call("orch", c[0], c[1], "")
		a.want(got, broker.CodeMethodNotAllowed)
		if got.header.Get("Allow") != allow || strings.Contains(got.body, "CANARY") {
			t.Errorf("%s %s: Allow %q, want %q: %s", c[0], c[1], got.header.Get("Allow"), allow, got.body)
		}
	}
	a.want(a.call("orch", planted, "/v1/nothing", ""), broker.CodeNotFound)
}

// Python's timedelta.total_seconds() and JavaScript's arithmetic write whole numbers as 900.0 and 9e2.
func TestIntegersInOtherForms(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for _, ttl := range []string{"900.0", "9e2", "9.0E+2", "900.000", "9000e-1", "0.9e3"} {
		c := a.issued(a.call("orch", "POST", "/v1/credentials", body(map[string]string{"ttl_seconds": ttl})))
		if got := c.ExpiresAt.Sub(c.IssuedAt).Seconds(); got != 900 {
			t.Errorf("%s: %v s", ttl, got)
		}
	}
	id := a.issue("t2").ID
	for path, text := range map[string]string{
		"/v1/credentials/" + id + "/reports": `{"status":503.0,"version":1.0,"retry_after_seconds":3e1}`,
		"/v1/credentials/" + id + "/refresh": `{"version":1.0}`,
		"/v1/tasks/t3/credentials":           `{"agent_id":"a","credentials":[{"profile":"aws","scopes":["read"],"ttl_seconds":900.0},{"profile":"aws","scopes":["read"],"ttl_seconds":9e2}]}`,
	} {
		if got := a.call("orch", "POST", path, text); got.status >= 300 {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	for _, ttl := range []string{"900.5", "9e-1", "900.00000000000000000001", "1e400", "1e-400000000", "0e9999999999", `"900"`} {
		p := a.want(a.call("orch", "POST", "/v1/credentials", body(map[string]string{"ttl_seconds": ttl})), broker.CodeInvalidRequest)
		if len(p.Errors) == 0 || p.Errors[0].Pointer != "/ttl_seconds" {
			t.Errorf("%s: %+v", ttl, p.Errors)
		}
	}
}

func TestIfNoneMatch(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	id := a.issue("t").ID
	for match, want := range map[string]int{
		"*": 304, `"1"`: 304, `W/"1"`: 304, "1": 304, `"0", "1"`: 304, `"x",W/"1" , "9"`: 304, `"5", "6"`: 200, `"2"`: 200, `"abc"`: 200, `""`: 200,
		`"1`: 400, `*, "1"`: 400, "abc": 400, ",": 400,
	} {
		got := a.call("orch", "POST", "/v1/credentials/"+id+"/resolve", "", "If-None-Match", match)
		if got.status != want || want == 304 && (got.header.Get("ETag") != `"1"` || got.body != "") {
			t.Errorf("%s: %d %q, want %d: %s", match, got.status, got.header.Get("ETag"), want, got.body)
		}
	}
	r, err := http.NewRequestWithContext(t.Context(), "POST", a.url+"/v1/credentials/"+id+"/resolve", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"If-None-Match": {`"7"`, `"1"`}, "Authorization": {"Bearer " + a.tokens["orch"]}}
	response, err := a.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if response.Body.Close(); response.StatusCode != 304 {
		t.Errorf("two headers: %d", response.StatusCode)
	}
}

// What says the same is the same request for an Idempotency-Key.
func TestSameRequestInOtherWords(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for i, pair := range [][2]string{
		{body(nil), body(map[string]string{"metadata": "{}"})}, {body(map[string]string{"metadata": "{}"}), body(nil)},
		{body(map[string]string{"ttl_seconds": "900"}), body(map[string]string{"ttl_seconds": "900.0"})},
		{body(nil), body(map[string]string{"delivery": `"inline"`, "task_token": "false"})},
	} {
		key := fmt.Sprint("k", i)
		first := a.issued(a.call("orch", "POST", "/v1/credentials", pair[0], "Idempotency-Key", key))
		if again := a.issued(a.call("orch", "POST", "/v1/credentials", pair[1], "Idempotency-Key", key)); again.ID != first.ID {
			t.Errorf("%s and %s: %s and %s", pair[0], pair[1], first.ID, again.ID)
		}
	}
	several := `{"agent_id":"a","credentials":[{"profile":"aws","scopes":["read"]%s}]}`
	for _, more := range []string{"", `,"metadata":{}`} {
		if got := a.call("orch", "POST", "/v1/tasks/t9/credentials", fmt.Sprintf(several, more), "Idempotency-Key", "several"); got.status != 201 {
			t.Errorf("%s: %d %s", more, got.status, got.body)
		}
	}
	a.want(a.call("orch", "POST", "/v1/credentials", body(map[string]string{"metadata": `{"a":"b"}`}), "Idempotency-Key", "k0"), broker.CodeIdempotencyMismatch)
}

// Of a name that appears twice, one reader takes the first value and another the last: what was meant is not known.
func TestDuplicateNames(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for text, pointer := range map[string]string{
		`{"task_id":"a",` + body(nil)[1:]:                             "/task_id",
		strings.Replace(body(nil), "{", `{"scopes":["write"],`, 1):    "/scopes",
		body(map[string]string{"metadata": `{"k":"1","k":"2"}`}):      "/metadata",
		body(map[string]string{"metadata": `{"k":"1","\u006b":"2"}`}): "/metadata",
		strings.Replace(body(nil), "{", `{"task\u005fid":"a",`, 1):    "/task_id",
		`{"` + planted + `":1,"` + planted + `":2,` + body(nil)[1:]:   "",
	} {
		got := a.call("orch", "POST", "/v1/credentials", text)
		if p := a.want(got, broker.CodeInvalidRequest); len(p.Errors) == 0 || p.Errors[0].Pointer != pointer || strings.Contains(got.body, "CANARY") {
			t.Errorf("%s: %+v", text, p.Errors)
		}
	}
	several := `{"agent_id":"a","credentials":[{"profile":"aws","scopes":["read"]},{"profile":"aws","profile":"pool","scopes":["read"]}]}`
	if p := a.want(a.call("orch", "POST", "/v1/tasks/t/credentials", several), broker.CodeInvalidRequest); len(p.Errors) == 0 || p.Errors[0].Pointer != "/credentials/1/profile" {
		t.Errorf("several: %+v", p.Errors)
	}
	if n := len(a.sandbox.AWS.Sessions()); n != 0 {
		t.Errorf("%d sessions were made", n)
	}
}

// PostgreSQL stores no NUL character. One in any text was "unavailable" where the contract has no pattern.
func TestNUL(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	id := a.issue("t").ID
	for _, c := range [][5]string{
		{"orch", "POST", "/v1/credentials", body(map[string]string{"metadata": `{"a":"x\u0000"}`}), "/metadata"},
		{"orch", "POST", "/v1/credentials", body(map[string]string{"task_id": `"\u0000"`}), "/task_id"},
		{"orch", "POST", "/v1/credentials/" + id + "/revoke", `{"reason":"a\u0000b"}`, "/reason"},
		{"orch", "POST", "/v1/tasks/t/end", `{"outcome":"\u0000"}`, "/outcome"},
		{"", "POST", "/v1/tickets/redeem", `{"ticket":"tpx_\u0000"}`, "/ticket"},
		{"ops", "POST", "/v1/pools/models/keys", `{"name":"k","value":"v","scopes":["a\u0000"]}`, "/scopes/0"},
		{"ops", "POST", "/v1/pools/models/keys", `{"name":"k","value":"v\u0000"}`, "/value"},
		{"ops", "POST", "/v1/pools/models/keys/key-1/quarantine", `{"reason":"\u0000"}`, "/reason"},
		{"ops", "POST", "/v1/pools/models/keys/key-1/rotate", `{"value":"\u0000"}`, "/value"},
		{"orch", "GET", "/v1/credentials?cursor=%00", "", "/query/cursor"},
		{"orch", "GET", "/v1/credentials?task_id=a%00", "", "/query/task_id"},
		{"aud", "GET", "/v1/audit/events?cursor=a%00", "", "/query/cursor"},
		{"aud", "GET", "/v1/audit/trace?upstream_id=%00", "", "/query/upstream_id"},
		{"orch", "GET", "/v1/tasks/a%00", "", "/path/task_id"},
		{"ops", "GET", "/v1/pools/%00/keys", "", "/path/pool"},
		{"orch", "GET", "/v1/nothing%00", "", "/path"},
		{"orch", "GET", "/livez?x=%00", "", "/query"},
	} {
		got := a.call(c[0], c[1], c[2], c[3])
		if p := a.want(got, broker.CodeInvalidRequest); len(p.Errors) == 0 || p.Errors[0].Pointer != c[4] {
			t.Errorf("%s %s %s: %+v", c[1], c[2], c[3], p.Errors)
		}
	}
	if _, response := a.dial("GET /v1/profiles HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\x00b\r\n\r\n"); response.StatusCode != http.StatusBadRequest {
		t.Errorf("in a header: %d", response.StatusCode)
	}
}

// A filter that cannot be decoded was left out, and the list then showed everything.
func TestQueryThatCannotBeDecoded(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for _, query := range []string{"task_id=%zz", "task_id=t;agent_id=a", "%=1", "task_id=%"} {
		if p := a.want(a.call("orch", "GET", "/v1/credentials?"+query, ""), broker.CodeInvalidRequest); len(p.Errors) == 0 || p.Errors[0].Pointer != "/query" {
			t.Errorf("%s: %+v", query, p.Errors)
		}
	}
}

// Generators and tools that read no YAML get the contract as JSON.
func TestContractAsJSON(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	got := a.call("", "GET", "/openapi.json", "")
	var document map[string]any
	if err := json.Unmarshal([]byte(got.body), &document); err != nil || got.header.Get("Content-Type") != "application/json" {
		t.Fatalf("%v: %d %s", err, got.status, got.header.Get("Content-Type"))
	}
	spec, err := openapi3.NewLoader().LoadFromData([]byte(got.body))
	if err != nil {
		t.Fatal(err)
	}
	same, err := readSpec(t).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if string(same) != got.body || spec.Validate(t.Context()) != nil {
		t.Error("it is not the contract")
	}
}
