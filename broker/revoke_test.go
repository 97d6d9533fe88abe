package broker_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
)

func TestRevoke(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	issued := h.issue("t")
	c, err := h.Revoke(t.Context(), orchestrator, issued.ID, "the task was called off")
	if err != nil {
		t.Fatal(err)
	}
	v := c.Version
	if v.State != broker.StateRevoked || v.Cause != broker.CauseRevoked || v.Reason != "the task was called off" ||
		v.Revocation.Result != broker.ResultDestroyed || v.EndedAt.IsZero() || !v.DueAt.IsZero() {
		t.Errorf("answered %+v", v)
	}
	if diff := cmp.Diff(c, h.find(issued.ID)); diff != "" {
		t.Errorf("answered (-) and recorded (+) differ: %s", diff)
	}
	if len(h.vendor.living()) != 0 {
		t.Error("it is alive upstream")
	}
	var sealed []byte
	if err := h.admin().QueryRow(t.Context(), "SELECT sealed FROM versions WHERE id = $1", string(v.ID)).Scan(&sealed); err != nil || sealed != nil {
		t.Errorf("the sealed secret was not wiped: %d bytes, %v", len(sealed), err)
	}
	// Again: nothing changes, and nobody is asked.
	h.clock.Advance(time.Minute)
	again, err := h.Revoke(t.Context(), operator, issued.ID, "other words")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, again); diff != "" {
		t.Errorf("the second answer differs: %s", diff)
	}
	if n := h.vendor.revocations(v.ID); n != 1 {
		t.Errorf("the vendor was asked %d times", n)
	}
	h.wantEvents("t", "credential.intended by orch", "credential.issued by orch",
		"credential.revoke_requested by orch", "credential.revoked by orch")
}

func TestWhoMayRevoke(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	issued := h.issue("t")
	for _, c := range []struct {
		caller broker.Caller
		id     broker.CredentialID
		want   broker.Code
	}{
		{stranger, issued.ID, broker.CodeNotFound}, {auditor, issued.ID, broker.CodeForbidden},
		{operator, broker.NewCredentialID(), broker.CodeNotFound}, {auditor, "x", broker.CodeForbidden},
	} {
		if _, err := h.Revoke(t.Context(), c.caller, c.id, ""); codeOf(err) != c.want {
			t.Errorf("%s: %v, want %s", c.caller.Name, err, c.want)
		}
	}
	h.wantState(issued.ID, broker.StateActive)
	if _, err := h.Revoke(t.Context(), operator, issued.ID, ""); err != nil {
		t.Error(err)
	}
	h.wantState(issued.ID, broker.StateRevoked)
}

// What is being minted cannot be ended yet. It never becomes active: whoever asked for it gets nothing, and it is ended.
func TestRevokeWhileIssuing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.vendor.behave(func(_ context.Context, c broker.Credential, _ func()) error {
		now, err := h.Revoke(t.Context(), orchestrator, c.ID, "")
		if err != nil || now.Version.State.Ended() {
			t.Errorf("answered %s, %v", now.Version.State, err)
		}
		return nil
	}, nil)
	issued, err := h.Issue(t.Context(), orchestrator, ask("t"), "")
	if codeOf(err) != broker.CodeCredentialEnded || len(issued.Secret.Fields) > 0 {
		t.Errorf("answered %v with %v", err, issued.Secret.Fields)
	}
	h.sweep()
	h.wantState(h.only("t").ID, broker.StateRevoked)
	if alive := h.vendor.living(); len(alive) > 0 {
		t.Errorf("alive upstream: %v", alive)
	}
}

func TestRevokeAtOnceByMany(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	issued := h.issue("t")
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			c, err := h.Revoke(t.Context(), orchestrator, issued.ID, "")
			// Acknowledged is durable: nobody is told that it is still active.
			if err != nil || (c.Version.State != broker.StateRevoked && c.Version.State != broker.StateRevoking) {
				t.Errorf("answered %s, %v", c.Version.State, err)
			}
		})
	}
	wg.Wait()
	h.wantState(issued.ID, broker.StateRevoked)
	if n := h.vendor.revocations(issued.Version.ID); n != 1 {
		t.Errorf("the vendor was asked %d times", n)
	}
	h.wantEvents("t", "credential.intended by orch", "credential.issued by orch",
		"credential.revoke_requested by orch", "credential.revoked by orch")
}

// P3: bounded attempts with growing, jittered pauses; then stuck, retried slowly; then, when the vendor is back, done.
func TestVendorIsDown(t *testing.T) {
	t.Parallel()
	const attempts = 4
	h := newHouse(t, func(c *broker.Config) {
		c.MaxAttempts, c.Backoff, c.StuckRetry = attempts, 8*time.Second, 100*time.Hour
	})
	h.vendor.caps.SelfExpires = false
	r := ask("t")
	r.TTL = 2 * time.Hour
	issued, err := h.Issue(t.Context(), orchestrator, r, "")
	if err != nil {
		t.Fatal(err)
	}
	h.vendor.behave(nil, down)
	c, err := h.Revoke(t.Context(), orchestrator, issued.ID, "")
	if err != nil || c.Version.State != broker.StateRevoking || c.Version.Revocation.Result != broker.ResultNone ||
		c.Version.LastError != broker.CodeUpstreamError {
		t.Fatalf("answered %+v, %v", c.Version, err)
	}
	for attempt := 1; attempt < attempts; attempt++ {
		c = h.wantState(issued.ID, broker.StateRevoking)
		pause, want := c.Version.DueAt.Sub(h.clock.Now().UTC().Truncate(time.Microsecond)), 8*time.Second<<(attempt-1)
		if pause < want/2 || pause > want*3/2 {
			t.Errorf("after attempt %d it waits %s, want %s ± 50 %%", attempt, pause, want)
		}
		if c.Version.Attempts != attempt || h.vendor.revocations(c.Version.ID) != attempt {
			t.Errorf("attempt %d: recorded %d, asked %d times", attempt, c.Version.Attempts, h.vendor.revocations(c.Version.ID))
		}
		h.clock.Advance(pause - time.Millisecond)
		h.sweep() // too soon
		if h.vendor.revocations(c.Version.ID) != attempt {
			t.Error("it was tried too soon")
		}
		h.clock.Advance(time.Millisecond)
		h.sweep()
	}
	c = h.wantState(issued.ID, broker.StateStuck)
	if pause := c.Version.DueAt.Sub(h.clock.Now()); pause < 49*time.Hour || pause > 151*time.Hour {
		t.Errorf("stuck, it is tried again in %s", pause)
	}
	h.wantEvents("t", "credential.intended by orch", "credential.issued by orch",
		"credential.revoke_requested by orch", "credential.stuck by taskpass")
	if troubled, err := h.store.Troubled(t.Context()); err != nil || len(troubled) != 1 || troubled[0] != (broker.Count{Of: "vendor", State: "stuck", N: 1}) {
		t.Errorf("trouble shows as %v, %v", troubled, err)
	}
}

func TestStuckRecovers(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *broker.Config) { c.MaxAttempts, c.StuckRetry = 1, 10*time.Minute })
	h.vendor.caps.SelfExpires = false
	issued := h.issue("t")
	h.vendor.behave(nil, down)
	if c, err := h.Revoke(t.Context(), orchestrator, issued.ID, ""); err != nil || c.Version.State != broker.StateStuck {
		t.Fatalf("answered %s, %v", c.Version.State, err)
	}
	h.clock.Advance(15 * time.Minute)
	h.sweep() // still down: no second alarm
	h.wantState(issued.ID, broker.StateStuck)
	// A caller who asks again is told what is so, and nothing is tried on its account.
	if c, err := h.Revoke(t.Context(), orchestrator, issued.ID, ""); err != nil || c.Version.State != broker.StateStuck {
		t.Errorf("answered %s, %v", c.Version.State, err)
	}
	h.vendor.behave(nil, nil)
	h.clock.Advance(15 * time.Minute)
	h.sweep()
	h.wantState(issued.ID, broker.StateRevoked)
	h.wantEvents("t", "credential.intended by orch", "credential.issued by orch",
		"credential.revoke_requested by orch", "credential.stuck by orch", "credential.revoked by taskpass")
}

// What fails together is not retried together.
func TestBackoffIsJittered(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *broker.Config) { c.Backoff = time.Minute })
	h.vendor.behave(nil, down)
	pauses := map[time.Duration]bool{}
	for i := range 12 {
		issued := h.issue(name("t", i))
		c, err := h.Revoke(t.Context(), orchestrator, issued.ID, "")
		if err != nil {
			t.Fatal(err)
		}
		pauses[c.Version.DueAt.Sub(h.clock.Now())] = true
	}
	if len(pauses) < 10 {
		t.Errorf("12 versions wait %v", pauses)
	}
}

// A key that only an operator can end is stuck at once, is looked at often, and is done when it was replaced.
func TestNotRotated(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *broker.Config) { c.RotationCheck = 2 * time.Minute })
	h.vendor.caps.SelfExpires, h.vendor.caps.Revoke, h.vendor.caps.Disclosed = false, broker.RevokeNone, true
	issued := h.issue("t")
	h.vendor.behave(nil, func(context.Context, broker.Credential) (broker.Revocation, error) {
		return broker.Revocation{}, broker.ErrNotRotated
	})
	c, err := h.Revoke(t.Context(), orchestrator, issued.ID, "")
	if err != nil || c.Version.State != broker.StateStuck || c.Version.Revocation.Result != broker.ResultNone {
		t.Fatalf("answered %+v, %v", c.Version, err)
	}
	for range 3 {
		c = h.wantState(issued.ID, broker.StateStuck)
		if pause := c.Version.DueAt.Sub(h.clock.Now()); pause < time.Minute-time.Millisecond || pause > 3*time.Minute {
			t.Errorf("the next look is in %s", pause)
		}
		h.clock.Advance(3 * time.Minute)
		h.sweep()
	}
	if n := h.vendor.revocations(issued.Version.ID); n != 4 {
		t.Errorf("looked %d times", n)
	}
	h.vendor.behave(nil, nil)
	h.clock.Advance(3 * time.Minute)
	h.sweep()
	h.wantState(issued.ID, broker.StateRevoked)
	h.wantEvents("t", "credential.intended by orch", "credential.issued by orch",
		"credential.revoke_requested by orch", "credential.stuck by orch", "credential.revoked by taskpass")
}

// expires is a vendor that can end nothing before its time.
func expires(_ context.Context, c broker.Credential) (broker.Revocation, error) {
	return broker.Revocation{Result: broker.ResultExpires, EffectiveAt: c.Version.ExpiresAt, Basis: "self_expires"}, nil
}

func TestNothingCanEndIt(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	issued := h.issue("t")
	h.vendor.behave(nil, expires)
	c, err := h.Revoke(t.Context(), orchestrator, issued.ID, "")
	v := c.Version
	if err != nil || v.State != broker.StateRevoking || v.Revocation.Result != broker.ResultExpires || !v.Revocation.EffectiveAt.Equal(v.ExpiresAt) {
		t.Fatalf("answered %+v, %v", v, err)
	}
	h.clock.Advance(59 * time.Minute)
	h.sweep()
	if n := h.vendor.revocations(v.ID); n != 1 {
		t.Errorf("the vendor was asked %d times", n)
	}
	h.clock.Advance(time.Minute)
	h.sweep()
	c = h.wantState(issued.ID, broker.StateExpired)
	if c.Version.Cause != broker.CauseRevoked {
		t.Errorf("it ended because %s", c.Version.Cause)
	}
	h.wantEvents("t", "credential.intended by orch", "credential.issued by orch", "credential.revoke_requested by orch",
		"credential.revoke_deferred by orch", "credential.expired by taskpass")
}

// A reload may leave a stuck version to a provider that can end nothing before its time. That is an answer too.
func TestStuckThenNothingCanEndIt(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *broker.Config) { c.MaxAttempts, c.StuckRetry = 1, time.Minute })
	issued := h.issue("t")
	h.vendor.behave(nil, down)
	if c, err := h.Revoke(t.Context(), orchestrator, issued.ID, ""); err != nil || c.Version.State != broker.StateStuck {
		t.Fatalf("answered %s, %v", c.Version.State, err)
	}
	h.vendor.behave(nil, expires)
	h.clock.Advance(2 * time.Minute)
	h.sweep()
	asked := h.vendor.revocations(issued.Version.ID)
	c := h.find(issued.ID)
	if c.Version.Revocation.Result != broker.ResultExpires {
		t.Errorf("the vendor's answer was dropped: %s, result %q", c.Version.State, c.Version.Revocation.Result)
	}
	for range 5 {
		h.clock.Advance(3 * time.Minute)
		h.sweep()
	}
	if n := h.vendor.revocations(issued.Version.ID); n != asked {
		t.Errorf("the vendor was asked %d times more for what it said cannot be done", n-asked)
	}
	h.clock.Advance(time.Hour)
	h.sweep()
	h.wantState(issued.ID, broker.StateExpired)
}

// A revocation that is not durable is not acknowledged, and the vendor is not asked.
func TestRevocationIsNotWritten(t *testing.T) {
	t.Parallel()
	h, ledger := newSpoilt(t)
	issued := h.issue("t")
	ledger.set(func(s *spoilt) { s.move = failTo(broker.StateRevoking) })
	if c, err := h.Revoke(t.Context(), orchestrator, issued.ID, ""); codeOf(err) != broker.CodeUnavailable {
		t.Errorf("answered %s, %v", c.Version.State, err)
	}
	if h.vendor.revocations(issued.Version.ID) != 0 {
		t.Error("the vendor was asked")
	}
	h.wantState(issued.ID, broker.StateActive)
}

// The outcome of a revocation is not written: nothing is claimed, and the sweeper goes on with it.
func TestOutcomeOfRevocationIsNotWritten(t *testing.T) {
	t.Parallel()
	h, ledger := newSpoilt(t)
	issued := h.issue("t")
	ledger.set(func(s *spoilt) { s.move = failTo(broker.StateRevoked) })
	if c, err := h.Revoke(t.Context(), orchestrator, issued.ID, ""); err == nil && c.Version.State.Ended() {
		t.Errorf("answered %s, which is on no record", c.Version.State)
	}
	h.wantState(issued.ID, broker.StateRevoking)
	ledger.set(func(s *spoilt) { s.move = nil })
	h.clock.Advance(h.wait())
	h.sweep()
	h.wantState(issued.ID, broker.StateRevoked)
}

// Another replica was first, between the look and the move: the answer is what that one did.
func TestRevokeComesSecond(t *testing.T) {
	t.Parallel()
	h, ledger := newSpoilt(t)
	issued := h.issue("t")
	other, err := broker.New(h.with(h.store))
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	ledger.set(func(s *spoilt) {
		s.move = func(broker.Credential) (err error) {
			once.Do(func() { _, err = other.Revoke(t.Context(), operator, issued.ID, "first") })
			return err
		}
	})
	c, err := h.Revoke(t.Context(), orchestrator, issued.ID, "second")
	if err != nil || c.Version.State != broker.StateRevoked || c.Version.Reason != "first" {
		t.Errorf("answered %s because of %q, %v", c.Version.State, c.Version.Reason, err)
	}
	if n := h.vendor.revocations(issued.Version.ID); n != 1 {
		t.Errorf("the vendor was asked %d times", n)
	}
}

// with is the house's configuration over another ledger: another process.
func (h *house) with(l broker.Ledger) broker.Config {
	cfg := h.cfg
	cfg.Ledger = l
	return cfg
}

func TestDiesWhileRevoking(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"after_revoke_asked", "after_revoke_reply"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, dieAt(point))
			issued := h.issue("t")
			if dies(func() { _, _ = h.Revoke(t.Context(), orchestrator, issued.ID, "") }) {
				t.Fatal("it did not die")
			}
			h.wantState(issued.ID, broker.StateRevoking)
			cfg := h.cfg
			cfg.Reached = nil
			next, err := broker.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			h.clock.Advance(h.wait())
			if err := next.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			h.wantState(issued.ID, broker.StateRevoked)
			if alive := h.vendor.living(); len(alive) > 0 {
				t.Errorf("alive upstream: %v", alive)
			}
		})
	}
}

// A profile that an operator took away still owes its revocations, and pays them when it is back.
func TestProfileIsGone(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *broker.Config) { c.Backoff = time.Second })
	issued := h.issue("t")
	profiles := h.cfg.Profiles
	if err := h.SetProfiles(broker.Profiles{}); err != nil {
		t.Fatal(err)
	}
	c, err := h.Revoke(t.Context(), orchestrator, issued.ID, "")
	if err != nil || c.Version.State != broker.StateRevoking || c.Version.LastError == "" {
		t.Errorf("answered %+v, %v", c.Version, err)
	}
	if caps := h.Capabilities("p"); caps.Revoke != broker.RevokeNone || caps.SelfExpires {
		t.Errorf("a profile that is gone promises %+v", caps)
	}
	if err := h.SetProfiles(profiles); err != nil {
		t.Fatal(err)
	}
	h.clock.Advance(time.Minute)
	h.sweep()
	h.wantState(issued.ID, broker.StateRevoked)
}

func TestClientGoesMidRevocation(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	issued := h.issue("t")
	ctx, cancel := context.WithCancel(t.Context())
	h.vendor.behave(nil, func(work context.Context, _ broker.Credential) (broker.Revocation, error) {
		cancel()
		return broker.Revocation{}, work.Err()
	})
	if _, err := h.Revoke(ctx, orchestrator, issued.ID, ""); err != nil {
		t.Errorf("answered %v", err)
	}
	h.wantState(issued.ID, broker.StateRevoked)
}

func TestRevokeLost(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.vendor.behave(func(_ context.Context, _ broker.Credential, do func()) error {
		do()
		return errors.New("lost")
	}, nil)
	_, _ = h.Issue(t.Context(), orchestrator, ask("t"), "")
	id := h.wantState(h.only("t").ID, broker.StateLost).ID
	if c, err := h.Revoke(t.Context(), orchestrator, id, ""); err != nil || c.Version.State != broker.StateRevoked {
		t.Errorf("answered %s, %v", c.Version.State, err)
	}
	if alive := h.vendor.living(); len(alive) > 0 {
		t.Errorf("alive upstream: %v", alive)
	}
}
