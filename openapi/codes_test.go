package openapi_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi"
	sandboxaws "github.com/taskpass/taskpass/providers/sandbox/aws"
)

// provoked is one way to each code, over HTTP alone.
var provoked = map[broker.Code]struct {
	by         func(a *api) answer
	retryAfter time.Duration
	pointers   string
	limits     broker.Limits
}{
	broker.CodeInvalidRequest: {by: func(a *api) answer {
		return a.call("orch", "POST", "/v1/credentials", request("aws", "a/b", `"read"`))
	}, pointers: "/task_id"},
	broker.CodeUnauthenticated: {by: func(a *api) answer { return a.call("", "GET", "/v1/profiles", "") }},
	broker.CodeTokenExpired: {by: func(a *api) answer {
		a.clock.Advance(2 * time.Hour)
		return a.call("orch", "GET", "/v1/profiles", "")
	}},
	broker.CodeTokenRevoked: {by: func(a *api) answer {
		list, err := a.store.Tokens(a.t.Context())
		if err != nil {
			a.t.Fatal(err)
		}
		for _, token := range list {
			if token.Caller == "orch" {
				if err := a.callers.Revoke(a.t.Context(), broker.Caller{Name: "test"}, token.ID); err != nil {
					a.t.Fatal(err)
				}
			}
		}
		return a.call("orch", "GET", "/v1/profiles", "")
	}},
	broker.CodeForbidden: {by: func(a *api) answer {
		return a.call("orch", "POST", "/v1/credentials", request("theirs", "t", `"read"`))
	}, pointers: "/profile"},
	broker.CodeScopeNotAllowed: {by: func(a *api) answer {
		return a.call("orch", "POST", "/v1/credentials", request("narrow", "research-1", `"read","write"`))
	}, pointers: "/scopes/1"},
	broker.CodeTaskNotAllowed: {by: func(a *api) answer {
		return a.call("orch", "POST", "/v1/credentials", request("narrow", "billing-1", `"read"`))
	}, pointers: "/task_id"},
	broker.CodeNotFound: {by: func(a *api) answer {
		return a.call("orch", "GET", "/v1/credentials/"+string(broker.NewCredentialID()), "")
	}},
	broker.CodeMethodNotAllowed: {by: func(a *api) answer { return a.call("orch", "DELETE", "/v1/credentials", "") }},
	broker.CodeUnsupportedMediaType: {by: func(a *api) answer {
		return a.call("orch", "POST", "/v1/credentials", body(nil), "Content-Type", "text/plain")
	}},
	broker.CodePayloadTooLarge: {by: func(a *api) answer {
		return a.call("orch", "POST", "/v1/credentials", strings.Repeat(" ", 5<<20))
	}},
	broker.CodeUnknownProfile: {by: func(a *api) answer {
		return a.call("orch", "POST", "/v1/credentials", request("nobodys", "t", `"read"`))
	}, pointers: "/profile"},
	broker.CodeUnknownScope: {by: func(a *api) answer {
		return a.call("orch", "POST", "/v1/credentials", request("aws", "t", `"read","own","all"`))
	}, pointers: "/scopes/1 /scopes/2"},
	broker.CodeTTLOutOfRange: {by: func(a *api) answer {
		return a.call("orch", "POST", "/v1/credentials", `{"task_id":"t","agent_id":"a","profile":"aws","scopes":["read"],"ttl_seconds":59}`)
	}, pointers: "/ttl_seconds"},
	broker.CodePoolExhausted: {by: func(a *api) answer {
		for _, task := range []string{"t1", "t2"} {
			a.issued(a.call("orch", "POST", "/v1/credentials", request("pool", task, `"call"`)))
		}
		a.clock.Advance(10 * time.Minute)
		return a.call("orch", "POST", "/v1/credentials", request("pool", "t3", `"call"`))
	}, retryAfter: 50 * time.Minute},
	broker.CodeRecordTampered: {by: func(a *api) answer {
		a.issue("t")
		a.exec("UPDATE events SET body = 'C4n4ry' WHERE task_id = 't'")
		return a.call("aud", "GET", "/v1/audit/events?task_id=t", "")
	}},
	broker.CodeUpstreamThrottled: {by: func(a *api) answer { return a.withFault(sandboxaws.Throttle) }, retryAfter: 2 * time.Second},
	broker.CodeUpstreamRefused:   {by: func(a *api) answer { return a.withFault(sandboxaws.AccessDenied) }},
	broker.CodeUpstreamError:     {by: func(a *api) answer { return a.withFault(sandboxaws.ServerError) }},
	broker.CodeUpstreamTimeout: {by: func(a *api) answer {
		a.broker.UpstreamTimeout = time.Second // its only call of the vendor is the one that hangs
		return a.withFault(sandboxaws.Hang)
	}},
	broker.CodeUnavailable: {by: func(a *api) answer {
		a.exec("REVOKE INSERT ON credentials FROM taskpass_service")
		return a.call("orch", "POST", "/v1/credentials", request("aws", "t", `"read"`))
	}},
	broker.CodeConflict: {by: func(a *api) answer {
		a.issued(a.call("orch", "POST", "/v1/credentials", body(map[string]string{"parent_task_id": `"p1"`})))
		return a.call("orch", "POST", "/v1/credentials", body(map[string]string{"parent_task_id": `"p2"`}))
	}},
	broker.CodeTaskEnded: {by: func(a *api) answer {
		a.issue("t")
		a.call("orch", "POST", "/v1/tasks/t/end", "")
		return a.call("orch", "POST", "/v1/credentials", body(nil))
	}},
	broker.CodeCredentialEnded: {by: func(a *api) answer {
		id := a.issue("t").ID
		a.call("orch", "POST", "/v1/credentials/"+id+"/revoke", "")
		return a.call("orch", "POST", "/v1/credentials/"+id+"/refresh", "")
	}},
	broker.CodeTicketRedeemed: {by: func(a *api) answer {
		ticket := a.ticket()
		if got := a.redeem(ticket); got.status != http.StatusOK {
			a.t.Fatalf("redeemed: %d %s", got.status, got.body)
		}
		return a.redeem(ticket)
	}},
	broker.CodeTicketExpired: {by: func(a *api) answer {
		ticket := a.ticket()
		a.clock.Advance(time.Hour)
		return a.redeem(ticket)
	}},
	broker.CodeIdempotencyMismatch: {by: func(a *api) answer {
		a.call("orch", "POST", "/v1/credentials", body(nil), "Idempotency-Key", "k")
		return a.call("orch", "POST", "/v1/credentials", body(map[string]string{"agent_id": `"b"`}), "Idempotency-Key", "k")
	}},
	broker.CodeRateLimited: {by: func(a *api) answer {
		for range 10 {
			a.want(a.redeem(broker.NewToken(broker.PrefixTicket).Reveal()), broker.CodeNotFound)
		}
		return a.redeem(broker.NewToken(broker.PrefixTicket).Reveal())
	}, retryAfter: time.Second},
	broker.CodeQuotaExceeded: {by: func(a *api) answer {
		a.issue("t")
		return a.call("orch", "POST", "/v1/credentials", body(nil))
	}, retryAfter: 30 * time.Second, limits: broker.Limits{PerTask: 1, PerAgent: 100, PerProfile: 100, PerCaller: 100}},
	broker.CodeCircuitOpen: {by: func(a *api) answer {
		id := a.issue("t").ID
		for version := range 3 {
			got := a.call("orch", "POST", "/v1/credentials/"+id+"/reports", fmt.Sprintf(`{"status":401,"version":%d}`, version+1))
			if got.status != http.StatusOK {
				a.t.Fatalf("reported: %d %s", got.status, got.body)
			}
		}
		return a.call("orch", "POST", "/v1/credentials/"+id+"/resolve", "")
	}},
}

func (a *api) ticket() string {
	a.t.Helper()
	c := a.issued(a.call("orch", "POST", "/v1/credentials", body(map[string]string{"delivery": `"ticket"`})))
	if c.Ticket.Value == "" || len(c.Secret.Fields) > 0 {
		a.t.Fatal("no ticket, or a secret beside it")
	}
	return c.Ticket.Value
}

func (a *api) redeem(ticket string) answer {
	a.t.Helper()
	return a.call("", "POST", "/v1/tickets/redeem", `{"ticket":"`+ticket+`"}`)
}

func (a *api) exec(sql string) {
	a.t.Helper()
	if _, err := a.admin().Exec(a.t.Context(), sql); err != nil {
		a.t.Fatal(err)
	}
}

func (a *api) withFault(kind sandboxaws.FaultKind) answer {
	a.sandbox.AWS.Inject(sandboxaws.Fault{Action: "AssumeRole", Kind: kind})
	return a.call("orch", "POST", "/v1/credentials", request("aws", "t", `"read"`))
}

// Every code of the table, each with its one status, in the form of RFC 9457.
func TestCodes(t *testing.T) {
	t.Parallel()
	for _, code := range broker.Codes() {
		c, ok := provoked[code]
		if !ok {
			t.Errorf("%s: nothing provokes it", code)
			continue
		}
		t.Run(string(code), func(t *testing.T) {
			t.Parallel()
			a := newAPI(t, func(_ *api, s *setup) { s.broker.Limits = c.limits })
			p := a.want(c.by(a), code)
			if got := time.Duration(p.RetryAfterSeconds) * time.Second; got != c.retryAfter {
				t.Errorf("retry after %s, want %s", got, c.retryAfter)
			}
			var pointers []string
			for _, f := range p.Errors {
				pointers = append(pointers, f.Pointer)
			}
			if got := strings.Join(pointers, " "); got != c.pointers {
				t.Errorf("pointers %q, want %q", got, c.pointers)
			}
		})
	}
}

// A refusal says every reason at once, with the bounds.
func TestRefusalSaysEveryReason(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	p := a.want(a.call("orch", "POST", "/v1/credentials",
		`{"task_id":"research-1","agent_id":"a","profile":"narrow","scopes":["own","write","read"],"ttl_seconds":7200}`), broker.CodeUnknownScope)
	want := map[string]string{
		"/scopes/0": "names no scope", "/scopes/1": "no rule", "/ttl_seconds": "7200 s exceeds this profile's 600 s",
	}
	for _, f := range p.Errors {
		if !strings.Contains(f.Reason, want[f.Pointer]) || want[f.Pointer] == "" {
			t.Errorf("reason %+v", f)
		}
		if !strings.Contains(p.Detail, f.Reason) {
			t.Errorf("the detail leaves out %q: %s", f.Reason, p.Detail)
		}
		delete(want, f.Pointer)
	}
	if len(want) > 0 {
		t.Errorf("no reason for %v", want)
	}
	events := a.audit("task_id=research-1").Events
	if len(events) != 1 || events[0].Type != "credential.refused" || events[0].Code != "unknown_scope" || len(events[0].Reasons) != len(p.Errors) {
		t.Errorf("recorded: %+v", events)
	}
	if events[0].RequestID != p.RequestID {
		t.Errorf("the record has request %s, the answer %s", events[0].RequestID, p.RequestID)
	}
}

func TestTTLBoundsAreSaid(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for ttl, want := range map[string]string{"59": "59 s is below this profile's 60 s", "43201": "43201 s exceeds this profile's 43200 s"} {
		p := a.want(a.call("orch", "POST", "/v1/credentials",
			`{"task_id":"t","agent_id":"a","profile":"aws","scopes":["read"],"ttl_seconds":`+ttl+`}`), broker.CodeTTLOutOfRange)
		if !strings.Contains(p.Detail, want) || len(p.Errors) != 1 || !strings.Contains(p.Errors[0].Reason, want) {
			t.Errorf("%s: %q %+v", ttl, p.Detail, p.Errors)
		}
	}
	for _, ttl := range []string{"60", "43200"} {
		a.issued(a.call("orch", "POST", "/v1/credentials",
			`{"task_id":"t","agent_id":"a","profile":"aws","scopes":["read"],"ttl_seconds":`+ttl+`}`))
	}
}

func TestReady(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for _, path := range []string{"/livez", "/readyz"} {
		if got := a.call("", "GET", path, ""); got.status != http.StatusOK || got.body != "ok\n" {
			t.Errorf("%s: %d %q", path, got.status, got.body)
		}
	}
	down := errors.New("password=s3cr3t")
	a.ready.Store(&down)
	if p := a.want(a.call("", "GET", "/readyz", ""), broker.CodeUnavailable); strings.Contains(p.Detail, "s3cr3t") {
		t.Errorf("it tells why: %s", p.Detail)
	}
	if got := a.call("", "GET", "/livez", ""); got.status != http.StatusOK {
		t.Errorf("/livez: %d", got.status)
	}
}

// A clock that is far from the ledger's is named, and is no reason to take a replica out of traffic.
func TestReadyNamesTheClock(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	a := newAPI(t, func(_ *api, s *setup) {
		s.openapi.ClockDifference = func() time.Duration { return time.Duration(ahead.Load()) }
	})
	for difference, want := range map[time.Duration]string{
		0: "ok\n", 5 * time.Second: "ok\n", -5 * time.Second: "ok\n",
		5100 * time.Millisecond: "degraded\nclock: this process's clock is 5.1 s ahead of PostgreSQL's; at most 5 s is normal\n",
		-time.Hour:              "degraded\nclock: this process's clock is 3600.0 s behind PostgreSQL's; at most 5 s is normal\n",
	} {
		ahead.Store(int64(difference))
		if got := a.call("", "GET", "/readyz", ""); got.status != http.StatusOK || got.body != want {
			t.Errorf("%s: %d %q, want %q", difference, got.status, got.body, want)
		}
	}
}

// The database is gone: nothing is handed out, and no driver's text is.
func TestDatabaseIsGone(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.store.Close()
	for _, c := range [][3]string{
		{"orch", "POST", "/v1/credentials"}, {"orch", "GET", "/v1/profiles"}, {"aud", "GET", "/v1/audit/events"}, {"orch", "GET", "/v1/credentials"},
	} {
		p := a.want(a.call(c[0], c[1], c[2], ""), broker.CodeUnavailable)
		if strings.Contains(p.Detail, "pool") || strings.Contains(p.Detail, "sql") {
			t.Errorf("it tells the driver's words: %s", p.Detail)
		}
	}
	if len(a.sandbox.AWS.Sessions()) != 0 {
		t.Error("AWS was asked")
	}
}

// A pool whose keys cannot be read is its operator's affair.
func TestPoolKeysAreGone(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for _, name := range []string{"key-1", "key-2"} {
		if err := os.Remove(filepath.Join(a.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	a.want(a.call("orch", "POST", "/v1/credentials", request("pool", "t", `"call"`)), broker.CodeUpstreamRefused)
	events := a.audit("task_id=t&type=credential.failed").Events
	if len(events) != 1 || events[0].State != "failed" || events[0].Code != "upstream_refused" {
		t.Errorf("recorded: %+v", events)
	}
}

// panics is a part of the house that fails in the worst way.
type panics struct{ openapi.Authenticator }

func (panics) Authenticate(context.Context, string) (broker.Caller, error) { panic("s3cr3t-CANARY") }

func TestPanicIsAnswered(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(_ *api, s *setup) { s.openapi.Callers = panics{} })
	got := a.call("orch", "GET", "/v1/profiles", "")
	a.want(got, broker.CodeUnavailable)
	if strings.Contains(got.body+a.log.String(), "CANARY") {
		t.Errorf("the panic's value shows:\n%s\n%s", got.body, a.log)
	}
	if !strings.Contains(a.log.String(), "codes_test.go:") {
		t.Errorf("the log does not say where it was: %s", a.log)
	}
}
