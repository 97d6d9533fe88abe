package lifetest

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

func TestLimitsAreExact(t *testing.T) {
	t.Parallel()
	const many = 1000
	for kind, c := range map[string]struct {
		limits broker.Limits
		ask    func(i int) client.IssueRequest
		free   client.IssueRequest // what this limit is not for
	}{
		"task": {broker.Limits{PerTask: 7, PerAgent: many, PerProfile: many, PerCaller: many},
			func(int) client.IssueRequest { return ask("aws", "t1") }, ask("aws", "t2")},
		"agent": {broker.Limits{PerTask: many, PerAgent: 7, PerProfile: many, PerCaller: many},
			func(i int) client.IssueRequest { return ask("aws", "t"+string(rune('a'+i%20))) }, ask("aws", "t1", agent("agent-2"))},
		"profile": {broker.Limits{PerTask: many, PerAgent: many, PerProfile: 7, PerCaller: many},
			func(i int) client.IssueRequest {
				return ask("aws", "t"+string(rune('a'+i%20)), agent("a"+string(rune('a'+i%7))))
			}, ask("none", "t1")},
		"caller": {broker.Limits{PerTask: many, PerAgent: many, PerProfile: many, PerCaller: 7},
			func(i int) client.IssueRequest {
				return ask([]string{"aws", "none", "strict"}[i%3], "t"+string(rune('a'+i%20)), agent("a"+string(rune('a'+i%7))), ticket)
			}, client.IssueRequest{}},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(b *broker.Config) { b.Limits = c.limits })
			var issued, refused atomic.Int64
			together(50, func(i int) {
				switch got := r.as("orch").on(i).issue(c.ask(i)); {
				case got.status == http.StatusCreated:
					issued.Add(1)
				case got.code == broker.CodeQuotaExceeded:
					refused.Add(1)
				default:
					t.Errorf("%d %s", got.status, got.code)
				}
			})
			if issued.Load() != 7 || refused.Load() != 43 {
				t.Errorf("%d issued, %d refused, with a limit of 7", issued.Load(), refused.Load())
			}
			got := r.as("orch").issue(c.ask(0)).want(t, broker.CodeQuotaExceeded)
			if !strings.Contains(got.problem.Detail, "this "+kind+"'s 7") || got.problem.RetryAfterSeconds <= 0 {
				t.Errorf("it says %q, retry after %g s", got.problem.Detail, got.problem.RetryAfterSeconds)
			}
			if c.free.Profile != "" {
				r.mustIssue(c.free)
			}
			if kind != "profile" {
				r.as("other").issue(c.ask(0)).want(t, http.StatusCreated)
			}
			if n := r.countEvents("", broker.EventRefused); n != 44 {
				t.Errorf("%d refusals on record, want 44", n)
			}
			// What ends makes room, and no more than that.
			id := r.as("orch").find(client.ListCredentialsParams{}).list
			last := id[len(id)-1].ID
			r.as("orch").revoke(last)
			if s := r.as("orch").get(last).state.Status; s == client.Revoked || s == client.Failed {
				r.as("orch").issue(c.ask(0)).want(t, http.StatusCreated)
			}
			r.as("orch").issue(c.ask(0)).want(t, broker.CodeQuotaExceeded)
			r.sound()
			r.clock.advance(ttl + time.Minute)
			r.settled()
			for range 7 {
				r.as("orch").issue(c.ask(0)).want(t, http.StatusCreated)
			}
			r.as("orch").issue(c.ask(0)).want(t, broker.CodeQuotaExceeded)
			r.sound()
		})
	}
}

// A request for several is within the limits as a whole or not at all.
func TestLimitOfSeveral(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(b *broker.Config) {
		b.Limits = broker.Limits{PerTask: 5, PerAgent: 100, PerProfile: 3, PerCaller: 100}
	})
	r.as("orch").issueAll("t1", batch("aws", "none", "pool")).want(t, http.StatusCreated)
	r.as("orch").issueAll("t1", batch("aws", "none", "pool")).want(t, broker.CodeQuotaExceeded)
	r.as("orch").issueAll("t1", batch("aws", "none")).want(t, http.StatusCreated)
	got := r.as("orch").issueAll("t2", batch("pool", "aws", "aws")).want(t, broker.CodeQuotaExceeded)
	if !strings.Contains(got.problem.Detail, "profile's 3") {
		t.Errorf("it does not name the limit: %s", got.problem.Detail)
	}
	if n := one[int](r, "SELECT count(*)::int FROM versions"); n != 5 {
		t.Errorf("%d versions, want 5", n)
	}
	r.sound()
}

// One credential that is refreshed in a loop is a runaway too.
func TestLimitOfRefreshes(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(b *broker.Config) {
		b.Limits = broker.Limits{PerTask: 5, PerAgent: 100, PerProfile: 100, PerCaller: 100}
	})
	c := r.mustIssue(ask("none", "t1"))
	for range 20 {
		if got := r.as("orch").refresh(c.ID, 0); got.code == broker.CodeQuotaExceeded {
			return
		}
	}
	t.Errorf("%d versions are alive for a task that may have 5", one[int](r, "SELECT count(*)::int FROM versions WHERE due_at IS NOT NULL"))
}
