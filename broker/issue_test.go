package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
)

func TestIssue(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	request := ask("task-1")
	request.Scopes, request.TTL, request.Metadata = []string{"write", "read", "write"}, 20*time.Minute, map[string]string{"run": "42"}
	issued, err := h.Issue(t.Context(), orchestrator, request, "")
	if err != nil {
		t.Fatal(err)
	}
	if got := issued.Secret.Fields["key"].Reveal(); got != "secret-of-"+string(issued.Version.ID) {
		t.Errorf("the secret is %q", got)
	}
	c := h.wantState(issued.ID, broker.StateActive)
	if diff := cmp.Diff([]string{"read", "write"}, c.Scopes); diff != "" {
		t.Errorf("scopes: %s", diff)
	}
	now := h.clock.Now().UTC().Truncate(time.Microsecond)
	if !c.Version.IssuedAt.Equal(now) || !c.Version.ExpiresAt.Equal(now.Add(20*time.Minute)) || !c.Version.DueAt.Equal(c.Version.ExpiresAt) {
		t.Errorf("issued %s, expires %s, due %s", c.Version.IssuedAt, c.Version.ExpiresAt, c.Version.DueAt)
	}
	sum := issued.Secret.Fields["key"].Fingerprint()
	if !bytes.Equal(c.Version.Fingerprint, sum[:]) {
		t.Error("the fingerprint is not the secret's SHA-256")
	}
	if c.Caller != "orch" || c.TaskID != "task-1" || c.AgentID != "agent-1" || c.Profile != "p" || c.Provider != "vendor" ||
		c.Version.Upstream != "vendor:account" || c.Metadata["run"] != "42" || len(c.Version.UpstreamIDs) != 1 {
		t.Errorf("recorded: %+v", c)
	}
	// What the answer says is what the ledger says.
	if diff := cmp.Diff(issued.Credential, c); diff != "" {
		t.Errorf("answered (-) and recorded (+) differ: %s", diff)
	}
	h.wantEvents("task-1", "credential.intended by orch", "credential.issued by orch")
	intended := h.events("task-1")[0]
	if diff := cmp.Diff(request.Scopes, intended.Scopes); diff != "" {
		t.Errorf("the intent does not record what was asked: %s", diff)
	}
}

func TestIssueTakesTheProfilesDefaultTTL(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	if issued := h.issue("t"); issued.Version.ExpiresAt.Sub(issued.Version.IssuedAt) != time.Hour {
		t.Errorf("lives %s", issued.Version.ExpiresAt.Sub(issued.Version.IssuedAt))
	}
}

// What a failed mint means for the caller, for the ledger, and for what may be alive upstream.
func TestMintFails(t *testing.T) {
	t.Parallel()
	throttled := broker.Errorf(broker.CodeUpstreamThrottled, "slow down")
	throttled.RetryAfter = 7 * time.Second
	const failed, lost = broker.StateFailed, broker.StateLost
	for what, c := range map[string]struct {
		mint  func(ctx context.Context, c broker.Credential, do func()) error
		code  broker.Code
		state broker.State
	}{
		"a definite refusal": {func(context.Context, broker.Credential, func()) error {
			return fmt.Errorf("%w: %w", broker.ErrNotMinted, throttled)
		}, broker.CodeUpstreamThrottled, failed},
		"nothing was sent": {func(context.Context, broker.Credential, func()) error {
			return broker.ErrNotMinted
		}, broker.CodeUpstreamError, failed},
		"the reply is lost": {func(_ context.Context, _ broker.Credential, do func()) error {
			do()
			return errors.New("connection reset")
		}, broker.CodeUpstreamError, lost},
		"a 500 after the work": {func(_ context.Context, _ broker.Credential, do func()) error {
			do()
			return broker.Errorf(broker.CodeUpstreamRefused, "the vendor failed").Because(errors.New("500"))
		}, broker.CodeUpstreamRefused, lost},
		"it hangs": {func(ctx context.Context, _ broker.Credential, do func()) error {
			do()
			<-ctx.Done()
			return ctx.Err()
		}, broker.CodeUpstreamTimeout, lost},
		"it panics": {func(_ context.Context, _ broker.Credential, do func()) error {
			do()
			panic(planted)
		}, broker.CodeUpstreamError, lost},
		"it panics with an error": {func(_ context.Context, _ broker.Credential, do func()) error {
			do()
			panic(fmt.Errorf("%w: %s", broker.ErrNotMinted, planted)) // what a panic says proves nothing
		}, broker.CodeUpstreamError, lost},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var logged bytes.Buffer
			h := newHouse(t, func(cfg *broker.Config) {
				if what == "it hangs" {
					cfg.UpstreamTimeout = 100 * time.Millisecond
				}
				cfg.Logger = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
			})
			h.vendor.behave(c.mint, nil)
			issued, err := h.Issue(t.Context(), orchestrator, ask("t"), "")
			if codeOf(err) != c.code || len(issued.Secret.Fields) > 0 {
				t.Errorf("answered %v with secret %v; want %s", err, issued.Secret.Fields, c.code)
			}
			if c.code == broker.CodeUpstreamThrottled && broker.AsError(err).RetryAfter != throttled.RetryAfter {
				t.Errorf("retry after %s", broker.AsError(err).RetryAfter)
			}
			if strings.Contains(err.Error(), "reset") || leaks(err.Error()+fmt.Sprint(errors.Unwrap(err))) {
				t.Errorf("the error tells what the vendor said: %v", err)
			}
			v := h.only("t").Version
			if v.State != c.state || v.LastError != c.code {
				t.Errorf("recorded as %s, %q", v.State, v.LastError)
			}
			h.sweep()
			v = h.only("t").Version
			if c.state == failed {
				h.wantEvents("t", "credential.intended by orch", "credential.failed by orch")
				if v.State != failed || h.vendor.revocations(v.ID) != 0 || v.EndedAt.IsZero() || !v.DueAt.IsZero() {
					t.Errorf("a failed mint goes on: %+v", v)
				}
			} else {
				h.wantEvents("t", "credential.intended by orch", "credential.lost by orch",
					"credential.revoke_requested by taskpass", "credential.revoked by taskpass")
				if v.State != broker.StateRevoked || v.Cause != broker.CauseAbandoned || v.Revocation.Result != broker.ResultDestroyed {
					t.Errorf("a lost version was not ended: %+v", v)
				}
			}
			if alive := h.vendor.living(); len(alive) > 0 {
				t.Errorf("alive upstream: %v", alive)
			}
			if leaks(logged.String()) {
				t.Errorf("the log tells what the panic said:\n%s", &logged)
			}
		})
	}
}

// P1: an issuance that cannot be made durable hands nothing out, and what the vendor made is ended: at once if the ledger
// answers again, else when the intent is due.
func TestOutcomeIsNotWritten(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		fail   []broker.State
		after  broker.State
		lostBy string
	}{
		"once":   {[]broker.State{broker.StateActive}, broker.StateLost, "orch"},
		"at all": {[]broker.State{broker.StateActive, broker.StateLost}, broker.StateIssuing, "taskpass"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h, ledger := newSpoilt(t)
			ledger.set(func(s *spoilt) { s.move = failTo(c.fail...) })
			issued, err := h.Issue(t.Context(), orchestrator, ask("t"), "")
			if codeOf(err) != broker.CodeUnavailable || !errors.Is(err, errDisk) || strings.Contains(err.Error(), errDisk.Error()) {
				t.Errorf("answered %v", err)
			}
			if len(issued.Secret.Fields)+len(issued.Secret.Env) > 0 {
				t.Error("a secret was handed out that is on no record")
			}
			id := h.wantState(h.only("t").ID, c.after).ID
			if len(h.vendor.living()) != 1 {
				t.Fatal("the test wants something alive upstream")
			}
			ledger.set(func(s *spoilt) { s.move = nil })
			if c.after == broker.StateIssuing {
				h.sweep() // it may still be under way: nothing is done yet
				h.wantState(id, broker.StateIssuing)
				h.clock.Advance(h.wait())
			}
			h.sweep()
			h.wantState(id, broker.StateRevoked)
			h.wantEvents("t", "credential.intended by orch", "credential.lost by "+c.lostBy,
				"credential.revoke_requested by taskpass", "credential.revoked by taskpass")
			if alive := h.vendor.living(); len(alive) > 0 {
				t.Errorf("alive upstream: %v", alive)
			}
		})
	}
}

// A write that failed may have been committed all the same: the answer was lost, not the issuance. Nobody has the secret,
// so it does not stay alive.
func TestOutcomeIsWrittenButNotAnswered(t *testing.T) {
	t.Parallel()
	h, ledger := newSpoilt(t)
	ledger.set(func(s *spoilt) { s.answer = func() error { return errDisk } })
	issued, err := h.Issue(t.Context(), orchestrator, ask("t"), "")
	if codeOf(err) != broker.CodeUnavailable || len(issued.Secret.Fields) > 0 {
		t.Errorf("answered %v with %v", err, issued.Secret.Fields)
	}
	ledger.set(func(s *spoilt) { s.answer = nil })
	h.clock.Advance(h.wait())
	h.sweep()
	h.wantState(h.only("t").ID, broker.StateRevoked)
	if alive := h.vendor.living(); len(alive) > 0 {
		t.Errorf("alive upstream: %v", alive)
	}
}

// The failed mint itself is not written either: the intent stands, so it is ended all the same.
func TestFailureIsNotWritten(t *testing.T) {
	t.Parallel()
	for _, state := range []broker.State{broker.StateFailed, broker.StateLost} {
		t.Run(string(state), func(t *testing.T) {
			t.Parallel()
			h, ledger := newSpoilt(t)
			ledger.set(func(s *spoilt) { s.move = failTo(state) })
			h.vendor.behave(func(context.Context, broker.Credential, func()) error {
				if state == broker.StateFailed {
					return broker.ErrNotMinted
				}
				return errors.New("lost")
			}, nil)
			if _, err := h.Issue(t.Context(), orchestrator, ask("t"), ""); codeOf(err) != broker.CodeUpstreamError {
				t.Errorf("answered %v", err)
			}
			c := h.wantState(h.only("t").ID, broker.StateIssuing)
			ledger.set(func(s *spoilt) { s.move = nil })
			h.clock.Advance(h.wait())
			h.sweep()
			h.wantState(c.ID, broker.StateRevoked)
		})
	}
}

// P2: without the intent on record the vendor is not asked.
func TestIntentIsNotWritten(t *testing.T) {
	t.Parallel()
	h, ledger := newSpoilt(t)
	ledger.set(func(s *spoilt) { s.begin = func() error { return errDisk } })
	if _, err := h.Issue(t.Context(), orchestrator, ask("t"), ""); codeOf(err) != broker.CodeUnavailable {
		t.Errorf("answered %v", err)
	}
	if len(h.vendor.minted) != 0 {
		t.Error("the vendor was asked")
	}
	h.wantEvents("t")
}

// A sealer that fails is like an outcome that is not written.
func TestSealingFails(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *broker.Config) { c.Sealer = brokenSealer{c.Sealer} })
	issued, err := h.Issue(t.Context(), orchestrator, ask("t"), "")
	if err == nil || len(issued.Secret.Fields) > 0 {
		t.Fatalf("answered %v with %v", err, issued.Secret)
	}
	if codeOf(err) != broker.CodeUnavailable {
		t.Errorf("answered %s: the upstream did its part, the broker failed", codeOf(err))
	}
	h.sweep()
	h.wantState(h.only("t").ID, broker.StateRevoked)
	if alive := h.vendor.living(); len(alive) > 0 {
		t.Errorf("alive upstream: %v", alive)
	}
}

type brokenSealer struct{ broker.Sealer }

func (brokenSealer) Seal([]byte, broker.VersionID) ([]byte, error) { return nil, errDisk }

// The client's going changes nothing: half a mint would be a lost one.
func TestClientGoesMidMint(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	ctx, cancel := context.WithCancel(t.Context())
	h.vendor.behave(func(mint context.Context, _ broker.Credential, _ func()) error {
		cancel()
		return mint.Err() // the work's context has not ended with the client's
	}, nil)
	if _, err := h.Issue(ctx, orchestrator, ask("t"), ""); err != nil {
		t.Errorf("answered %v", err)
	}
	h.wantState(h.only("t").ID, broker.StateActive)
	h.wantEvents("t", "credential.intended by orch", "credential.issued by orch")
}

// The process dies at each named point. Nothing stays alive unknown, nothing is reported wrongly.
func TestDiesWhileIssuing(t *testing.T) {
	t.Parallel()
	for point, want := range map[string]broker.State{
		"after_intent": broker.StateRevoked, "after_reply": broker.StateRevoked, "after_outcome": broker.StateActive,
	} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, dieAt(point))
			if dies(func() { h.issue("t") }) {
				t.Fatal("it did not die")
			}
			id := h.only("t").ID
			h.clock.Advance(h.wait())
			h.sweep()
			c := h.wantState(id, want)
			if (want == broker.StateActive) != (len(h.vendor.living()) == 1) {
				t.Errorf("%s is %s, and alive upstream is %v", c.Version.ID, c.Version.State, h.vendor.living())
			}
			h.clock.Advance(time.Hour)
			h.sweep()
			if c := h.find(id); !c.Version.State.Ended() {
				t.Errorf("in the end it is %s", c.Version.State)
			}
		})
	}
}

func dieAt(point string) func(*broker.Config) {
	return func(c *broker.Config) {
		c.Reached = func(p string) {
			if p == point {
				runtime.Goexit()
			}
		}
	}
}

// dies runs fn as a process that may end in the middle, and tells whether it came to its own end.
func dies(fn func()) (returned bool) {
	var wg sync.WaitGroup
	wg.Go(func() {
		fn()
		returned = true
	})
	wg.Wait()
	return returned
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for i, c := range []struct {
		what     string
		caller   broker.Caller
		change   func(*broker.Request)
		code     broker.Code
		pointers []string
	}{
		{"the caller's role", auditor, nil, broker.CodeForbidden, nil},
		{"an operator's role", operator, nil, broker.CodeForbidden, nil},
		{"no rule", stranger, nil, broker.CodeForbidden, []string{"/profile"}},
		{"profile", orchestrator, func(r *broker.Request) { r.Profile = "q" }, broker.CodeUnknownProfile, []string{"/profile"}},
		{"scope", orchestrator, func(r *broker.Request) { r.Scopes = []string{"read", "own"} }, broker.CodeUnknownScope, []string{"/scopes/1"}},
		{"ttl", orchestrator, func(r *broker.Request) { r.TTL = 3 * time.Hour }, broker.CodeTTLOutOfRange, []string{"/ttl_seconds"}},
		{"all at once", orchestrator, func(r *broker.Request) { r.TTL, r.Scopes = 3*time.Hour, []string{"own", "read", "all"} },
			broker.CodeUnknownScope, []string{"/scopes/0", "/scopes/2", "/ttl_seconds"}},
		{"agent", orchestrator, func(r *broker.Request) { r.AgentID = planted + "/*" }, broker.CodeInvalidRequest, []string{"/agent_id"}},
		{"scopes", orchestrator, func(r *broker.Request) { r.Scopes = nil }, broker.CodeInvalidRequest, []string{"/scopes"}},
		{"metadata", orchestrator, func(r *broker.Request) { r.Metadata = map[string]string{"k": strings.Repeat("x", 257)} },
			broker.CodeInvalidRequest, []string{"/metadata"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			task := name("t", i)
			r := ask(task)
			if c.change != nil {
				c.change(&r)
			}
			_, err := h.Issue(t.Context(), c.caller, r, "")
			e := broker.AsError(err)
			if codeOf(err) != c.code {
				t.Fatalf("answered %v", err)
			}
			var pointers []string
			for _, f := range e.Faults {
				pointers = append(pointers, f.Pointer)
			}
			if diff := cmp.Diff(c.pointers, pointers); diff != "" {
				t.Errorf("pointers: %s", diff)
			}
			events := h.events(task)
			if len(events) != 1 {
				t.Fatalf("%d events", len(events))
			}
			got := events[0]
			if got.Type != "credential.refused" || got.Code != string(c.code) || got.Caller.Name != c.caller.Name {
				t.Errorf("recorded: %+v", got)
			}
			if diff := cmp.Diff(e.Faults, got.Reasons); diff != "" {
				t.Errorf("answered (-) and recorded (+) reasons differ: %s", diff)
			}
		})
	}
	t.Cleanup(func() {
		if len(h.vendor.minted) != 0 {
			t.Error("the vendor was asked for what was refused")
		}
	})
}

// What has no id's form is neither recorded nor repeated: it may be a secret in the wrong field.
func TestRefusalRecordsNoForeignText(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	bad := "\"},{\x00" + planted
	_, err := h.Issue(t.Context(), orchestrator, broker.Request{
		TaskID: bad, AgentID: bad, Profile: bad, Scopes: []string{bad}, Metadata: map[string]string{bad: bad},
	}, "")
	if codeOf(err) != broker.CodeInvalidRequest || leaks(fmt.Sprint(err, broker.AsError(err).Faults)) {
		t.Errorf("answered %v %v", err, broker.AsError(err).Faults)
	}
	events := h.events("")
	if len(events) != 1 || leaks(fmt.Sprint(events)) {
		t.Errorf("recorded: %+v", events)
	}
}

// A refusal that cannot be put on record is not given as one: nobody probes the policy unseen.
func TestRefusalIsNotWritten(t *testing.T) {
	t.Parallel()
	h, ledger := newSpoilt(t)
	ledger.set(func(s *spoilt) { s.record = func() error { return errDisk } })
	for _, profile := range []string{"p", "q"} {
		r := ask("t")
		r.Profile, r.Scopes = profile, []string{"unknown"}
		if _, err := h.Issue(t.Context(), orchestrator, r, ""); codeOf(err) != broker.CodeUnavailable || len(broker.AsError(err).Faults) > 0 {
			t.Errorf("answered %v", err)
		}
	}
}

// P6, in the domain itself: what the policy grants is what is minted.
func TestPolicyNarrows(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *broker.Config) { c.Policy = narrow{c.Policy} })
	r := ask("t")
	r.Scopes = []string{"read", "write"}
	issued, err := h.Issue(t.Context(), orchestrator, r, "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"read"}, issued.Scopes); diff != "" {
		t.Error(diff)
	}
}

type narrow struct{ broker.Policy }

func (n narrow) Decide(broker.Caller, broker.Profile, broker.Request) (broker.Grant, error) {
	return broker.Grant{Scopes: []string{"read"}, TTL: time.Minute}, nil
}

// Requests share commits; none gets another's answer.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	const n = 100
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			r := ask(name("t", i))
			if i%5 == 4 {
				r.Scopes = []string{"unknown"}
			}
			issued, err := h.Issue(t.Context(), orchestrator, r, "")
			switch {
			case i%5 == 4 && codeOf(err) != broker.CodeUnknownScope:
				t.Errorf("task %d: %v", i, err)
			case i%5 != 4 && (err != nil || issued.TaskID != r.TaskID ||
				issued.Secret.Fields["key"].Reveal() != "secret-of-"+string(issued.Version.ID)):
				t.Errorf("task %d got %s: %v", i, issued.TaskID, err)
			}
		})
	}
	wg.Wait()
	if alive := h.vendor.living(); len(alive) != n-n/5 {
		t.Errorf("%d alive upstream", len(alive))
	}
	for i := range n {
		if i%5 == 4 {
			h.wantEvents(name("t", i), "credential.refused by orch")
		} else {
			h.wantEvents(name("t", i), "credential.intended by orch", "credential.issued by orch")
		}
	}
}
