package openapi_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi"
)

func types(p openapi.AuditPage) string {
	var list []string
	for _, e := range p.Events {
		list = append(list, strings.TrimPrefix(e.Type, "credential."))
	}
	return strings.Join(list, " ")
}

func TestAuditOfOneTask(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	c := a.issue("t")
	a.call("orch", "POST", "/v1/credentials/"+c.ID+"/revoke", `{"reason":"over"}`)
	page := a.audit("task_id=t")
	if got := types(page); got != "revoked revoke_requested issued intended" {
		t.Fatalf("events: %s", got)
	}
	for _, e := range page.Events {
		if e.Caller.Name != "orch" || e.Caller.Role != "orchestrator" || !strings.HasPrefix(e.Caller.Auth, "token:tok_") || e.Caller.Addr != "127.0.0.1" ||
			e.RequestID == "" || e.CredentialID != c.ID || e.Version != 1 || e.Profile != "aws" || e.Provider != "aws" || e.AgentID != "agent-17" {
			t.Errorf("%s: %+v", e.Type, e)
		}
	}
	issued, revoked := page.Events[2], page.Events[0]
	if !slices.Equal(issued.UpstreamIds, []string{c.Trace["access_key_id"]}) || !strings.HasPrefix(issued.Fingerprint, "sha256:") || issued.State != "active" {
		t.Errorf("issued: %+v", issued)
	}
	if diff := cmp.Diff(c.Trace, issued.Trace); diff != "" {
		t.Errorf("trace: %s", diff)
	}
	if revoked.Reason != "over" || revoked.Cause != "revoked" || revoked.Revocation.Result != "denied" || revoked.State != "revoked" {
		t.Errorf("revoked: %+v", revoked)
	}
}

func TestAuditFilters(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	base := a.clock.Now()
	one := a.issue("t1")
	a.clock.Advance(time.Minute)
	two := a.issued(a.call("other", "POST", "/v1/credentials", request("pool", "t2", `"call"`)))
	a.clock.Advance(time.Minute)
	a.call("orch", "POST", "/v1/credentials", request("nobodys", "t3", `"x"`))

	at := func(d time.Duration) string { return url.QueryEscape(base.Add(d).UTC().Format(time.RFC3339Nano)) }
	for query, want := range map[string]string{
		"task_id=t1":              "issued intended",
		"agent_id=agent-17":       "refused issued intended issued intended",
		"caller=other":            "issued intended",
		"profile=pool":            "issued intended",
		"provider=aws":            "issued intended",
		"type=credential.refused": "refused",
		"credential_id=" + one.ID: "issued intended",
		"upstream_id=" + one.Trace["access_key_id"]:               "issued",
		"upstream_id=" + one.Trace["role_session_name"]:           "issued intended",
		"upstream_id=models/" + two.Trace["key"]:                  "issued",
		"upstream_id=nothing":                                     "",
		"agent_id=agent-17&since=" + at(time.Minute):              "refused issued intended",
		"agent_id=agent-17&until=" + at(time.Minute):              "issued intended",
		"agent_id=agent-17&since=" + at(90*time.Second):           "refused",
		"agent_id=agent-17&order=oldest&since=" + at(time.Minute): "intended issued refused",
		"task_id=t1&type=credential.issued&caller=orch&profile=aws&provider=aws&agent_id=agent-17&credential_id=" + one.ID + "&upstream_id=" + one.Trace["access_key_id"]: "issued",
		"task_id=t1&caller=other": "",
		"agent_id=agent-17&since=0001-01-01T00:00:00Z&until=9999-12-31T23:59:59Z": "refused issued intended issued intended",
		"agent_id=agent-17&until=0001-01-01T00:00:00Z":                            "",
	} {
		if strings.Contains(query, "oldest") {
			// What another test's transaction holds back comes when that one ends.
			eventually(t, query, func() bool { return types(a.audit(query)) == want })
		} else if got := types(a.audit(query)); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	if got := a.call("aud", "GET", "/v1/audit/events?task_id=nobodys", ""); strings.TrimSpace(got.body) != `{"events":[]}` {
		t.Errorf("nothing is %s", got.body)
	}
}

// Who reads the record is on it, with what was asked, before the answer is given.
func TestAuditReadIsRecorded(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.issue("t")
	a.call("aud", "GET", "/v1/audit/events?task_id=t&type=credential.issued&since=2026-01-01T00:00:00Z&limit=5", "", "X-Request-Id", "look-1")
	a.call("ops", "GET", "/v1/audit/events", "")
	a.call("orch", "GET", "/v1/audit/events", "") // refused: nothing was read
	page := a.audit("type=audit.read&order=newest")
	if len(page.Events) != 2 {
		t.Fatalf("%d readings: %+v", len(page.Events), page.Events)
	}
	first, second := page.Events[1], page.Events[0]
	if first.Caller.Name != "aud" || first.RequestID != "look-1" || second.Caller.Name != "ops" || len(second.Trace) != 0 {
		t.Errorf("readings: %+v", page.Events)
	}
	want := map[string]string{"task_id": "t", "type": "credential.issued", "since": "2026-01-01T00:00:00Z"}
	if diff := cmp.Diff(want, first.Trace); diff != "" {
		t.Errorf("what was asked: %s", diff)
	}
}

// A reading that cannot be put on record does not happen.
func TestAuditReadFailsClosed(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.issue("t")
	a.exec("REVOKE INSERT ON events FROM taskpass_service")
	got := a.call("aud", "GET", "/v1/audit/events?task_id=t", "")
	a.want(got, broker.CodeUnavailable)
	if strings.Contains(got.body, "crd_") {
		t.Error("it was read all the same")
	}
}

// Many write while one follows from the oldest on, by cursors alone.
func TestFollowingTheRecord(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	const writers, each = 4, 12
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				a.issue(fmt.Sprintf("w%d-%d", w, i))
			}
		})
	}
	seen := map[string]int{}
	issued := 0
	limit := time.Now().Add(2 * time.Minute)
	for cursor := ""; issued < writers*each && time.Now().Before(limit); {
		page := a.audit("order=oldest&type=credential.issued&limit=5" + cursor)
		if page.NextCursor == "" && issued+len(page.Events) < writers*each {
			continue // at the end: the last page is read again
		}
		for _, e := range page.Events {
			seen[e.ID]++
			issued++
		}
		cursor = "&cursor=" + page.NextCursor
	}
	wg.Wait()
	if len(seen) != writers*each || issued != writers*each {
		t.Errorf("%d readings of %d events, want %d of each", issued, len(seen), writers*each)
	}
}

// A follower that has read everything is told where to go on, or it would have to begin anew.
func TestFollowerAtTheEndCanGoOn(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.issue("t1")
	var page openapi.AuditPage
	eventually(t, "both events show", func() bool {
		page = a.audit("order=oldest&agent_id=agent-17")
		return len(page.Events) == 2
	})
	if page.NextCursor == "" {
		t.Fatal("the last page from the oldest on has no cursor")
	}
	a.issue("t2")
	eventually(t, "the next two show", func() bool {
		next := a.audit("order=oldest&agent_id=agent-17&cursor=" + page.NextCursor)
		return len(next.Events) == 2 && next.Events[0].TaskID == "t2"
	})
}

func TestMetricsAreServed(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.issue("t")
	a.call("orch", "GET", "/nowhere", "")
	got := a.call("", "GET", "/metrics", "")
	if got.status != http.StatusOK {
		t.Fatalf("answered %d", got.status)
	}
	for _, line := range []string{
		`taskpass_operations_total{op="issue",outcome="ok",profile="aws",provider="aws"} 1`,
		`taskpass_http_request_seconds_count{method="POST",route="/v1/credentials",status="201"} 1`,
		`taskpass_http_request_seconds_count{method="GET",route="",status="404"} 1`,
		`taskpass_ledger_up 1`,
	} {
		if !strings.Contains(got.body, "\n"+line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
}
