package console_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Each page that shows events has checked them, whoever asks for proofs or not.
func TestForgedEventsAreMarked(t *testing.T) {
	t.Parallel()
	const forged = `INSERT INTO events (id, xid, seq, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body)
		OVERRIDING SYSTEM VALUE SELECT 'evt_forged', xid, -seq, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, `
	for name, c := range map[string]struct {
		sql  string
		want string // on the row
	}{
		"an altered event": {`UPDATE events SET body = replace(body, 'agent-17', 'agent-99') WHERE task_id = 't' AND type = 'credential.issued'`,
			"is not the one that was signed"},
		"an altered event, with its leaf": {`UPDATE events SET body = replace(body, 'agent-17', 'agent-99') WHERE task_id = 't' AND type = 'credential.issued';
			UPDATE tree_leaves l SET hash = sha256('\x00'::bytea || convert_to(body, 'UTF8')) FROM events e WHERE e.id = l.event_id AND e.task_id = 't'`,
			"No proof could be had, or the stored one does not hold."},
		"an inserted event": {forged + `replace(body, id, 'evt_forged') FROM events WHERE task_id = 't' AND type = 'credential.issued'`,
			"it was put into the record behind the broker"},
		"an event twice": {forged + `body FROM events WHERE task_id = 't' AND type = 'credential.issued'`, "stands here twice"},
		"an event of another task": {`UPDATE events SET task_id = 't', credential_id = (SELECT credential_id FROM events WHERE task_id = 't' LIMIT 1),
			upstream_ids = (SELECT upstream_ids FROM events WHERE task_id = 't' AND type = 'credential.issued') WHERE task_id = 'u' AND type = 'credential.issued'`,
			"what it is searched by was altered"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			cr := r.issue("aws", "t", "read")
			r.issue("aws", "u", "read")
			r.sign()
			r.clock.Advance(10 * time.Minute)
			r.issue("aws", "v", "read")
			r.sign()
			v := r.enter("aud")
			pages := []string{"/console/task?id=t", "/console/credential?id=" + cr.ID, "/console/events?task_id=t", "/console/trace?q=" + cr.ID}
			for _, path := range pages {
				if body := v.see(path); strings.Contains(body, "NOT VERIFIED") || !strings.Contains(body, "credential.issued") {
					t.Fatalf("%s, before: %s", path, body)
				}
			}
			if _, err := r.admin.Exec(t.Context(), c.sql); err != nil {
				t.Fatal(err)
			}
			for _, path := range pages {
				trace := strings.HasPrefix(path, "/console/trace")
				if trace && name == "an event of another task" {
					continue // a trace leaves out what is not of the version, by the event itself
				}
				if body := v.see(path); !strings.Contains(body, `class="bigmark not-verified"`) || !strings.Contains(body, `class="mark not-verified"`) ||
					!strings.Contains(body, c.want) || strings.Count(body, `class="mark not-verified"`) != 1 {
					t.Errorf("%s: no single mark of %q: %s", path, c.want, body)
				}
			}
		})
	}
}

// Of bytes that are not proven the page does not say that they are the leaf's.
func TestAlteredEventPage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issue("aws", "t", "read")
	r.sign()
	v := r.enter("aud")
	ids, _ := shown(v.see("/console/task?id=t"))
	path, claim := "/console/event?id="+ids[0], "these are the bytes whose hash is the leaf"
	if body := v.see(path); !strings.Contains(body, claim) || !strings.Contains(body, "The proof") {
		t.Fatal(body)
	}
	for _, body := range []string{`replace(body, 'agent-17', 'agent-99')`, `'C4n4ry'`, `body || ' '`} {
		if _, err := r.admin.Exec(t.Context(), "UPDATE events SET body = "+body+" WHERE id = $1", ids[0]); err != nil {
			t.Fatal(err)
		}
		if got := v.see(path); strings.Contains(got, claim) || !strings.Contains(got, "NOT VERIFIED") || strings.Contains(got, "The proof") ||
			!strings.Contains(got, "<strong>not</strong> proven") {
			t.Errorf("%s: %s", body, got)
		}
	}
}

// An id that nothing has is not an event, and has no proof.
func TestNoSuchEvent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issue("aws", "t", "read")
	r.sign()
	v := r.enter("aud")
	p := v.get("/console/event?id=evt_nope")
	if p.status != http.StatusNotFound || strings.Contains(p.body, "The proof") || strings.Contains(p.body, "it is the only leaf") || !strings.Contains(p.body, "No such event") {
		t.Errorf("%d %s", p.status, p.body)
	}
	var reads int
	must(t, r.admin.QueryRow(t.Context(), `SELECT count(*) FROM events WHERE type = 'audit.read' AND body LIKE '%"console":"event"%' AND body NOT LIKE '%evt_nope%'`).Scan(&reads))
	if reads != 1 {
		t.Errorf("%d readings on the record", reads)
	}
}

// An event that is none is tampering, and no outage.
func TestTamperingIsNoOutage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issue("aws", "t", "read")
	r.api("orch", "POST", "/v1/credentials", `{"task_id":"t","agent_id":"agent-17","profile":"aws","scopes":["none"]}`)
	r.sign()
	v := r.enter("aud")
	if _, err := r.admin.Exec(t.Context(), "UPDATE events SET body = 'C4n4ry' WHERE type = 'credential.refused'"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "/console/events", "/console/task?id=t"} {
		if p := v.get(path); p.status != broker.CodeRecordTampered.Status() || !strings.Contains(p.body, "record_tampered") || strings.Contains(p.body, "C4n4ry") {
			t.Errorf("%s: %d %s", path, p.status, p.body)
		}
	}
}

// A parameter that a page does not know is a filter that does not filter.
func TestUnknownParameters(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issue("aws", "t", "read")
	v := r.enter("aud")
	for path, reasons := range map[string][]string{
		"/?status=stuck":                                             {"/query/status", "this page knows csv, live, verify, window"},
		"/?window=decade":                                            {"/query/window", "must be one of hour, day, week, month"},
		"/console/credentials?status=stuck":                          {"/query/status", "state, task_id"},
		"/console/credentials?state=stuk":                            {"/query/state", "must be one of issuing"},
		"/console/events?task=t":                                     {"/query/task", "task_id, type"},
		"/console/events?TASK_ID=t":                                  {"/query", "unknown parameter"},
		"/console/task?id=t&limit=3":                                 {"/query/limit"},
		"/console/task?id=t&id=u":                                    {"/query/id", "2 times"},
		"/console/credential?id=t&version=2":                         {"/query/version"},
		"/console/trace?q=x&since=2026-01-01":                        {"/query/since", "at, csv"},
		"/console/tree?size=1":                                       {"/query/size"},
		"/console/event?id=evt_1&index=0":                            {"/query/index"},
		"/console/signin?nxt=/console/events":                        {"/query/nxt", "this page knows ended, next"},
		"/console/signin?next=/&next=/console/events":                {"/query/next", "2 times"},
		"/console/task?id=t&verify=yes":                              {"/query/verify", "must be one of 1"},
		"/console/task?id=t&live=2":                                  {"/query/live"},
		"/console/events?limit=5;task_id=t":                          {"is not a query"},
		"/console/events?" + url.QueryEscape("sk_live_C4n4ry") + "=": {"/query", "unknown parameter"},
	} {
		p := v.get(path)
		if p.status != http.StatusBadRequest || strings.Contains(p.body, "C4n4ry") {
			t.Errorf("%s: %d %s", path, p.status, p.body)
		}
		for _, reason := range reasons {
			if !strings.Contains(p.body, reason) {
				t.Errorf("%s: no %q: %s", path, reason, p.body)
			}
		}
	}
	for _, path := range []string{"/?window=", "/console/credentials?state=&task_id=t", "/console/events?order=newest&limit=20", "/console/task?id=t&verify=1"} {
		v.see(path)
	}
}

// Nothing that somebody wrote is on a page or in its CSV without being seen.
func TestWhatNobodySeesIsShown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const evil = "a\u00adb\u3164c\ufe0fd\U000e0041e\u2066f\u200bg\ue000h\u0378i\u2028j\u00a0k\u2800l"
	const written = `a\u00adb\u3164c\ufe0fd\udb40\udc41e\u2066f\u200bg\ue000h\u0378i\u2028j\u00a0k\u2800l`
	c := r.issued(r.api("orch", "POST", "/v1/credentials",
		`{"task_id":"t","agent_id":"agent-17","profile":"aws","scopes":["read"],"metadata":{"note":"`+evil+`"}}`))
	if status, body := r.api("orch", "POST", "/v1/credentials/"+c.ID+"/revoke", `{"reason":"`+evil+`"}`); status != http.StatusOK {
		t.Fatal(status, body)
	}
	r.sign()
	v := r.enter("aud")
	for _, path := range []string{"/console/credential?id=" + c.ID, "/console/task?id=t", "/console/events", "/console/trace?q=" + c.ID,
		"/console/events?csv=events", "/console/task?id=t&csv=versions", "/console/trace?q=" + c.ID + "&csv=trace"} {
		body := v.see(path)
		if !strings.Contains(body, written) {
			t.Errorf("%s does not show it: %s", path, body)
		}
		if i := strings.IndexAny(body, "\u00ad\u3164\ufe0f\U000e0041\u2066\u200b\ue000\u0378\u2028\u00a0\u2800"); i >= 0 {
			t.Errorf("%s has %+q", path, body[i:i+4])
		}
	}
}

// A list as CSV has the marks of its page, and an event that is not proven does not tell when an end was asked for.
func TestMarksOfCSV(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.issue("aws", "t", "read")
	if status, body := r.api("orch", "POST", "/v1/credentials/"+c.ID+"/revoke", `{"reason":"over"}`); status != http.StatusOK {
		t.Fatal(status, body)
	}
	r.sign()
	v := r.enter("aud")
	lists := map[string]string{"/console/events?task_id=t": "events", "/console/task?id=t": "events", "/console/task?id=t&caller=orch": "events",
		"/console/credential?id=" + c.ID: "events", "/console/trace?q=" + c.ID: "trace"}
	marks := func(want int) {
		t.Helper()
		for path, name := range lists {
			rows := v.sheets(path)[name]
			bad := 0
			for _, row := range rows {
				if row["proof"] != "verified" && row["proof"] != "not-verified" {
					t.Errorf("%s: %q", path, row["proof"])
				} else if row["proof"] == "not-verified" {
					bad++
				}
			}
			if len(rows) == 0 || bad != want {
				t.Errorf("%s: %d of %d rows are marked, want %d", path, bad, len(rows), want)
			}
		}
	}
	asked := func(want bool) {
		t.Helper()
		if body := v.see("/console/trace?q=" + c.ID); strings.Contains(body, "asked for at") != want {
			t.Errorf("the trace says when its end was asked for: %t", !want)
		}
		if at := v.sheets("/console/task?id=t")["versions"][0]["end_asked_at"]; (at != "") != want {
			t.Errorf("the end was asked for at %q", at)
		}
	}
	marks(0)
	asked(true)
	if _, err := r.admin.Exec(t.Context(), `UPDATE events SET body = replace(body, 'over', 'done') WHERE type = $1`, broker.EventRevokeAsked); err != nil {
		t.Fatal(err)
	}
	marks(1)
	asked(false)
}

// A page checks a thousand events. Those after them have a mark too, and tell nothing.
func TestWhatIsNotCheckedIsMarked(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.issue("aws", "t", "read")
	for range 5 {
		c = r.refresh(c)
	}
	if _, err := r.admin.Exec(t.Context(), `INSERT INTO events (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, fingerprint, body)
		SELECT id || n, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, fingerprint, replace(body, id, id || n)
		FROM events, generate_series(1, 200) n WHERE type = 'credential.issued' OR fingerprint IS NOT NULL ORDER BY seq, n`); err != nil {
		t.Fatal(err)
	}
	r.sign()
	v := r.enter("aud")
	body := v.see("/console/trace?q=" + c.ID)
	if n := strings.Count(body, "mark unchecked"); n < 150 || !strings.Contains(body, "were not checked: a page checks 1000") {
		t.Errorf("%d events are marked as not checked", n)
	}
	proofs := map[string]int{}
	for _, row := range v.sheets("/console/trace?q=" + c.ID)["trace"] {
		proofs[row["proof"]]++
	}
	if len(proofs) != 2 || proofs["verified"] < 4 || proofs["unchecked"] < 1 {
		t.Errorf("%v", proofs)
	}
}
