package console_test

import (
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi"
)

var rows = regexp.MustCompile(`(?s)<tr id="(evt_[^"]+)".*?<span class="type [^"]*">([^<]+)</span>`)

// shown lists the events of a page, by id or by type.
func shown(body string) (ids, types []string) {
	for _, m := range rows.FindAllStringSubmatch(body, -1) {
		ids, types = append(ids, m[1]), append(types, strings.TrimPrefix(m[2], "credential."))
	}
	return ids, types
}

func TestSearch(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	base := r.clock.Now()
	one := r.issue("aws", "t1", "read")
	r.clock.Advance(time.Minute)
	r.issue("pool", "t2", "call")
	r.clock.Advance(time.Minute)
	r.api("orch", "POST", "/v1/credentials", `{"task_id":"t3","agent_id":"agent-17","profile":"aws","scopes":["none"]}`)
	fingerprint := r.fingerprint(one.ID, 1)
	v := r.enter("aud")
	at := func(d time.Duration) string { return url.QueryEscape(base.Add(d).Format("2006-01-02T15:04:05")) }
	for query, want := range map[string]string{
		"task_id=t1":                                             "issued intended",
		"task_id=+t1+":                                           "issued intended",
		"agent_id=agent-17":                                      "refused issued intended issued intended",
		"caller=orch&provider=pool":                              "issued intended",
		"profile=pool":                                           "issued intended",
		"provider=aws":                                           "refused issued intended",
		"type=credential.refused":                                "refused",
		"credential_id=" + one.ID:                                "issued intended",
		"upstream_id=" + one.Trace["access_key_id"]:              "issued",
		"fingerprint=" + fingerprint:                             "issued",
		"fingerprint=" + strings.ToUpper(fingerprint):            "issued",
		"fingerprint=sha256:" + strings.Repeat("0", 64):          "",
		"task_id=t1&since=2001-01-01+00:00":                      "issued intended",
		"agent_id=agent-17&since=" + at(90*time.Second):          "refused",
		"agent_id=agent-17&until=" + at(30*time.Second):          "issued intended",
		"task_id=nobodys":                                        "",
		"task_id=t1&since=2001-01-01&until=2999-12-31T10:00:00Z": "issued intended",
		"agent_id=agent-17&since=" + at(30*time.Second) + "&until=" + at(90*time.Second): "issued intended",
	} {
		if _, got := shown(v.see("/console/events?" + query)); strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	for query, reason := range map[string]string{
		"task_id=t1&task_id=t2": "is given 2 times", "task_id=%zz": "is not a query", "order=upwards": "must be one of newest, oldest",
		"since=yesterday": "is not a time", "limit=0": "1 to 1000", "limit=x": "1 to 1000", "limit=1001": "1 to 1000",
		"task_id=a%00b": "control characters", "task_id=%ff": "control characters", "agent_id=" + strings.Repeat("a", 600): "512 bytes", "cursor=x": "cursor",
		"upstream_id=" + r.tokens["orch"]: "looks like a token", "unheard_of=+" + r.tokens["orch"]: "looks like a token",
		"fingerprint=sha256:00": "64 hexadecimal digits", "fingerprint=" + one.Trace["access_key_id"]: "64 hexadecimal digits",
	} {
		if p := v.get("/console/events?" + query); p.status != http.StatusBadRequest || !strings.Contains(p.body, reason) || strings.Contains(p.body, r.tokens["orch"]) {
			t.Errorf("%.40s: %d %s", query, p.status, p.body)
		}
	}
}

// Every event is on one page, whatever is written while somebody turns the pages; the link to the next page is in the page.
func TestPaging(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for i := range 6 {
		r.issue("aws", fmt.Sprintf("t%d", i), "read")
	}
	v := r.enter("aud")
	next := regexp.MustCompile(`<a href="([^"]+)" rel="next">`)
	for _, order := range []string{"", "&order=oldest"} {
		var all []string
		path := "/console/events?agent_id=agent-17&limit=5" + order
		if order != "" {
			// What another test's transaction holds back comes when that one ends.
			eventually(t, "all are there", func() bool {
				ids, _ := shown(v.see("/console/events?agent_id=agent-17&limit=100" + order))
				return len(ids) == 14
			})
		}
		for i := 0; path != ""; i++ {
			if i == 1 && order == "" {
				r.issue("aws", "later", "read") // newer than the cursor: no page shows it
			}
			body := v.see(path)
			ids, _ := shown(body)
			all = append(all, ids...)
			found := next.FindStringSubmatch(body)
			path = ""
			if found != nil && len(ids) > 0 {
				path = html.UnescapeString(found[1])
			}
		}
		want := 12
		if order != "" {
			want = 14
		}
		sorted := slices.Compact(slices.Sorted(slices.Values(all)))
		if len(all) != want || len(sorted) != want {
			t.Errorf("%q: %d events, %d different ones, want %d", order, len(all), len(sorted), want)
		}
	}
}

// turned is a character that turns around what follows it, and one that nobody sees.
const turned = "\u202e\u200b"

// What a caller says is shown as what it is: text.
func TestHostileWords(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const evil = `"><script>alert(1)</script><img src=x onerror=alert(2)>{{.}}' javascript:alert(3)` + turned
	c := r.issue("aws", "t", "read")
	reason, _ := json.Marshal(map[string]string{"reason": evil})
	if status, body := r.api("ops", "POST", "/v1/credentials/"+c.ID+"/revoke", string(reason)); status != http.StatusOK {
		t.Fatal(status, body)
	}
	// What no caller can bring into the database today, its owner can.
	must(t, r.store.Record(t.Context(), broker.Event{
		ID: "evt_" + evil, At: r.clock.Now(), Type: broker.EventType("credential." + evil), Caller: broker.Caller{Name: evil, Addr: evil}, TaskID: evil,
		AgentID: evil, Profile: evil, Credential: broker.CredentialID(evil), UpstreamIDs: []string{evil}, Reason: evil, Code: broker.Code(evil),
		Faults: []broker.Fault{{Pointer: evil, Reason: evil}},
	}, broker.Event{ID: broker.NewEventID(), At: r.clock.Now(), Type: broker.EventRefused, Caller: broker.Caller{Name: "x"}, Code: broker.Code(evil)}))
	if _, err := r.admin.Exec(t.Context(), "UPDATE credentials SET agent_id = $1, scopes = ARRAY[$1], metadata = jsonb_build_object($1::text, $1::text)", evil); err != nil {
		t.Fatal(err)
	}
	r.sign()
	v := r.enter("aud")
	q := url.QueryEscape(evil)
	for _, path := range []string{"/", "/console/events", "/console/events?verify=1", "/console/events?task_id=" + q, "/console/task?id=t", "/console/task?id=" + q, "/console/credential?id=" + c.ID,
		"/console/credential?id=" + q, "/console/credentials", "/console/credentials?state=" + q, "/console/trace?q=" + q, "/console/tree", "/console/event?id=" + q,
		"/console/signin?next=" + q, "/?window=" + q, "/console/" + url.PathEscape(evil)} {
		body := v.get(path).body
		for _, bad := range []string{turned[:3], turned[3:], "<script>alert", "<img src=x", "href=\"javascript:", "ZgotmplZ", "onerror=alert(2)>"} {
			if strings.Contains(body, bad) {
				t.Errorf("%.60s holds %s", path, bad)
			}
		}
		if n := strings.Count(body, "<script"); n != 1 {
			t.Errorf("%.60s has %d scripts", path, n)
		}
	}
	if body := v.see("/console/events"); !strings.Contains(body, "&lt;script&gt;alert(1)&lt;/script&gt;") || !strings.Contains(body, `\u202e\u200b`) {
		t.Error("what was said is not shown at all")
	}
}

// Two callers' tasks of one id have a page each: nothing of the one is on the other's.
func TestTaskPageOfTwoCallers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mine := r.issue("aws", "t", "read")
	secret, _, err := r.callers.Create(t.Context(), broker.Caller{Name: "test"}, "other", broker.RoleOrchestrator, time.Hour)
	must(t, err)
	r.tokens["other"] = secret.Reveal()
	status, answer := r.api("other", "POST", "/v1/credentials", `{"task_id":"t","agent_id":"agent-17","profile":"aws","scopes":["read"]}`)
	if status != 201 {
		t.Fatal(status, answer)
	}
	var theirs openapi.IssuedCredential
	if err := json.Unmarshal([]byte(answer), &theirs); err != nil {
		t.Fatal(err)
	}
	if status, answer := r.api("ops", "POST", "/v1/tasks/t/end?caller=other", `{"outcome":"stopped"}`); status/100 != 2 {
		t.Fatal(status, answer)
	}
	v := r.enter("aud")
	choice := v.see("/console/task?id=t")
	for _, owner := range []string{"orch", "other"} {
		if !strings.Contains(choice, `href="/console/task?id=t&amp;caller=`+owner+`"`) {
			t.Errorf("%s is no choice: %s", owner, choice)
		}
	}
	if strings.Contains(choice, mine.ID) || strings.Contains(choice, theirs.ID) {
		t.Error("the choice shows credentials")
	}
	first, second := v.see("/console/task?id=t&caller=orch"), v.see("/console/task?id=t&caller=other")
	for _, c := range []struct{ body, with, without string }{{first, mine.ID, theirs.ID}, {second, theirs.ID, mine.ID}} {
		if !strings.Contains(c.body, c.with) || strings.Contains(c.body, c.without) {
			t.Errorf("the page of %s: %s", c.with, c.body)
		}
	}
	if strings.Contains(first, "task.ended") || !strings.Contains(second, "task.ended") {
		t.Error("the end of other's task is not on its page alone")
	}
	if body := v.see("/console/task?id=t&caller=nobody"); !strings.Contains(body, "There is no such") {
		t.Errorf("of nobody: %s", body)
	}
}

// A task's page: the versions of all its credentials, drawn and in words, what was achieved, and how that is known.
func TestTaskPage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.issue("aws", "t", "read")
	r.clock.Advance(20 * time.Minute)
	second := r.refresh(first)
	key := r.issue("pool", "t", "call")
	r.clock.Advance(2 * time.Minute)
	asked := r.clock.Now()
	r.api("orch", "POST", "/v1/credentials/"+key.ID+"/revoke", `{"reason":"seen in a log"}`)
	v := r.enter("aud")
	body := v.see("/console/task?id=t")
	for _, want := range []string{
		"Of <strong>orch</strong>", "not ended", first.ID, key.ID, first.Trace["access_key_id"], second.Trace["access_key_id"], "models/key-1",
		"overlap of 10m with v1",
		"<title>aws, " + second.ID + " version 2, active: alive until " + second.ExpiresAt.UTC().Format("2006-01-02 15:04:05") + ".</title>",
		"</span> until an operator replaces the key: whoever has seen it can use it (awaiting_rotation).", "“seen in a log”", asked.Format("2006-01-02 15:04:05"),
		`<line class="now"`, `<polygon class="asked"`, `<rect class="overlap"`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q", want)
		}
	}
	if n := strings.Count(body, `<rect class="life`); n != 3 {
		t.Errorf("%d bars, want 3", n)
	}
	// Ended with its task.
	if status, answer := r.api("orch", "POST", "/v1/tasks/t/end", `{"outcome":"done"}`); status/100 != 2 {
		t.Fatal(status, answer)
	}
	body = v.see("/console/credential?id=" + first.ID)
	for _, want := range []string{"dead</span> since ", ": a policy on the role denies it (role_policy_written).", "task_ended", "denied",
		"<dt>run</dt><dd>42</dd>", "agent-17", "orch", "sha256:", "role_session_name"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q", want)
		}
	}
	if !strings.Contains(v.see("/console/task?id=t"), "“done”") {
		t.Error("the task's outcome is not shown")
	}
	for _, path := range []string{"/console/task?id=none", "/console/credential?id=crd_none", "/console/task", "/console/credential"} {
		if body := v.see(path); !strings.Contains(body, "There is no such") {
			t.Errorf("%s: %s", path, body)
		}
	}
}

func TestOverview(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issue("aws", "t", "read")
	r.issue("aws", "u", "read")
	key := r.issue("pool", "t", "call")
	r.api("orch", "POST", "/v1/credentials/"+key.ID+"/revoke", `{}`)
	for range 3 {
		r.api("orch", "POST", "/v1/credentials", `{"task_id":"t3","agent_id":"agent-17","profile":"aws","scopes":["none"]}`)
	}
	r.api("orch", "POST", "/v1/credentials", `{"task_id":"t3","agent_id":"agent-17","profile":"none","scopes":["none"]}`)
	v := r.enter("ops")
	text := strings.Join(strings.Fields(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(v.see("/"), " ")), " ")
	for _, want := range []string{"Versions by provider provider alive aws 2 pool 1", "aws 2", "agent-17 of orch 3", "pool stuck 1", "Stuck: an operator is needed", "models quarantined 1",
		"4 in all: 1 unknown_profile , 3 unknown_scope", "highest: 4", "No checkpoint is signed yet."} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	if n := strings.Count(v.see("/?window=month"), `class="refused"`); n != 1 {
		t.Errorf("%d bars", n)
	}
	r.clock.Advance(3 * time.Hour)
	if body := v.see("/?window=hour"); strings.Contains(body, `class="refused"`) || !strings.Contains(body, "0 in all") {
		t.Error("what is longer ago than the window is drawn")
	}
	list := v.see("/console/credentials?state=stuck")
	if !strings.Contains(list, key.ID) || strings.Count(list, "<tr>") != 2 {
		t.Error(list)
	}
}

// Who looks is on the record, with what was asked; what matched nothing may be a secret, and only its hash is kept.
func TestLookingIsRecorded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.issue("aws", "t", "read")
	v := r.enter("aud")
	reads := func() []map[string]string {
		_, body := r.api("aud", "GET", "/v1/audit/events?type=audit.read&caller=aud&limit=1", "")
		var page struct {
			Events []struct {
				Trace  map[string]string
				Caller struct{ Auth, Addr string }
				ID     string `json:"request_id"`
			}
		}
		must(t, json.Unmarshal([]byte(body), &page))
		e := page.Events[0]
		if e.Caller.Auth != "token:"+r.ids["aud"] || e.Caller.Addr != "127.0.0.1" || e.ID == "" {
			t.Errorf("who looked: %+v", e)
		}
		return []map[string]string{e.Trace}
	}
	for path, want := range map[string]string{
		"/":                                            "map[console:overview]",
		"/console/events?task_id=t":                    "map[console:events task_id:t]",
		"/console/events?task_id=t&csv=events":         "map[console:events csv:events task_id:t]",
		"/console/task?id=t":                           "map[console:task task_id:t]",
		"/console/credential?id=" + c.ID:               "map[console:credential credential_id:" + c.ID + "]",
		"/console/credentials?state=active":            "map[console:credentials state:active]",
		"/console/trace?q=" + c.Trace["access_key_id"]: "map[console:trace upstream_id:" + c.Trace["access_key_id"] + "]",
		"/console/trace":                               "map[console:trace]",
		"/console/trace?q=hidden&at=2026-01-01":        "map[at:2026-01-01 console:trace upstream_id:sha256:e564b4081d7a9ea4b00dada53bdae70c99b87b6fce869f0c3dd4d2bfa1e53e1c]",
		"/console/events?fingerprint=sha256:" + strings.Repeat("0", 64): "map[console:events fingerprint:sha256:" + strings.Repeat("0", 64) + "]",
		"/console/trace?q=hidden": "map[console:trace upstream_id:sha256:e564b4081d7a9ea4b00dada53bdae70c99b87b6fce869f0c3dd4d2bfa1e53e1c]",
		"/console/tree":           "map[console:tree]",
	} {
		v.see(path)
		if got := fmt.Sprint(reads()[0]); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	// If it cannot be recorded, nothing is shown.
	if _, err := r.admin.Exec(t.Context(), "REVOKE INSERT (id) ON events FROM taskpass_service"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "/console/events?task_id=t", "/console/events?task_id=t&csv=events", "/console/task?id=t", "/console/trace?q=" + c.Trace["access_key_id"]} {
		if p := v.get(path); p.status != http.StatusServiceUnavailable || strings.Contains(p.body, "agent-17") {
			t.Errorf("%s: %d", path, p.status)
		}
	}
}
