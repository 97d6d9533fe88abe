package broker_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// P9: after expires_at it is dead, by itself or by the broker's doing, and the record says so.
func TestExpiry(t *testing.T) {
	t.Parallel()
	for _, selfExpires := range []bool{true, false} {
		t.Run(map[bool]string{true: "by itself", false: "by the broker"}[selfExpires], func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			h.vendor.caps.SelfExpires = selfExpires
			issued := h.issue("t")
			h.clock.Advance(time.Hour - time.Microsecond)
			h.sweep()
			h.wantState(issued.ID, broker.StateActive)
			h.clock.Advance(2 * time.Microsecond)
			h.sweep()
			c := h.wantState(issued.ID, broker.StateExpired)
			if c.Version.Cause != broker.CauseExpired || c.Version.EndedAt.IsZero() {
				t.Errorf("recorded: %+v", c.Version)
			}
			h.wantEvents("t", "credential.intended by orch", "credential.issued by orch", "credential.expired by taskpass")
			if n := h.vendor.revocations(c.Version.ID); n != map[bool]int{true: 0, false: 1}[selfExpires] {
				t.Errorf("the vendor was asked %d times", n)
			}
			if !selfExpires && len(h.vendor.living()) > 0 {
				t.Error("it is alive upstream")
			}
			wiped := false
			if err := h.admin().QueryRow(t.Context(), "SELECT sealed IS NULL FROM versions").Scan(&wiped); err != nil || !wiped {
				t.Errorf("the sealed secret was not wiped (%v)", err)
			}
		})
	}
}

// P9: what should be dead and is not is listed as stuck, with an event to alarm on.
func TestExpiryFails(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *broker.Config) { c.MaxAttempts, c.Backoff = 2, time.Second })
	h.vendor.caps.SelfExpires = false
	issued := h.issue("t")
	h.vendor.behave(nil, down)
	h.clock.Advance(time.Hour)
	h.sweep()
	h.wantState(issued.ID, broker.StateRevoking)
	h.clock.Advance(2 * time.Second)
	h.sweep()
	h.wantState(issued.ID, broker.StateStuck)
	h.vendor.behave(nil, nil)
	h.clock.Advance(48 * time.Hour)
	h.sweep()
	if c := h.wantState(issued.ID, broker.StateExpired); c.Version.Cause != broker.CauseExpired {
		t.Errorf("it ended because %s", c.Version.Cause)
	}
	h.wantEvents("t", "credential.intended by orch", "credential.issued by orch",
		"credential.stuck by taskpass", "credential.expired by taskpass")
}

// A stuck version that the vendor ends by itself is no longer one once it has.
func TestStuckExpiresByItself(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *broker.Config) { c.MaxAttempts, c.StuckRetry = 1, 10*time.Minute })
	issued := h.issue("t")
	h.vendor.behave(nil, down)
	if _, err := h.Revoke(t.Context(), orchestrator, issued.ID, ""); err != nil {
		t.Fatal(err)
	}
	h.wantState(issued.ID, broker.StateStuck)
	h.clock.Advance(time.Hour)
	h.sweep()
	h.wantState(issued.ID, broker.StateExpired)
}

// Whatever fails, a version that ends by itself is not still "revoking" or "stuck" for long after its end: nobody waits
// for a slow retry to be told that it is dead.
func TestStuckIsOverSoonAfterItsEnd(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *broker.Config) { c.MaxAttempts = 1 }) // stuck is retried once a day
	issued := h.issue("t")
	h.vendor.behave(nil, down)
	if _, err := h.Revoke(t.Context(), orchestrator, issued.ID, ""); err != nil {
		t.Fatal(err)
	}
	h.clock.Advance(time.Hour + time.Minute)
	h.sweep()
	h.wantState(issued.ID, broker.StateExpired)
}

func TestAbandonedIntents(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *broker.Config) { c.MaxAttempts, c.Backoff, c.StuckRetry = 3, time.Second, time.Hour })
	lostReply := func(_ context.Context, _ broker.Credential, do func()) error { do(); return errors.New("lost") }
	h.vendor.behave(lostReply, down)
	if _, err := h.Issue(t.Context(), orchestrator, ask("t"), ""); err == nil {
		t.Fatal("issued")
	}
	id := h.wantState(h.only("t").ID, broker.StateLost).ID
	h.sweep()
	h.wantState(id, broker.StateRevoking)
	for range 3 {
		h.clock.Advance(10 * time.Second)
		h.sweep()
	}
	c := h.wantState(id, broker.StateStuck)
	if c.Version.Cause != broker.CauseAbandoned || h.vendor.revocations(c.Version.ID) != 3 {
		t.Errorf("because %s, after %d attempts", c.Version.Cause, h.vendor.revocations(c.Version.ID))
	}
	h.vendor.behave(nil, nil)
	h.clock.Advance(2 * time.Hour)
	h.sweep()
	if c := h.find(id); !c.Version.State.Ended() {
		t.Errorf("it is %s", c.Version.State)
	}
	if selfEnded := h.find(id).Version.State == broker.StateExpired; !selfEnded && len(h.vendor.living()) > 0 {
		t.Errorf("alive upstream: %v", h.vendor.living())
	}
}

// Nobody can know whether a lost version was made. If it was, it is over at its end.
func TestLostExpires(t *testing.T) {
	t.Parallel()
	h := newHouse(t, dieAt("after_reply"))
	if dies(func() { h.issue("t") }) {
		t.Fatal("it did not die")
	}
	id := h.only("t").ID
	h.clock.Advance(2 * time.Hour)
	h.sweep()
	c := h.wantState(id, broker.StateExpired)
	if c.Version.Cause != broker.CauseAbandoned {
		t.Errorf("it ended because %s", c.Version.Cause)
	}
	h.wantEvents("t", "credential.intended by orch", "credential.lost by taskpass", "credential.expired by taskpass")
}

// P11: a vendor that hangs and one whose code panics hold up nobody else; nor does a row that cannot be read.
func TestOneDeadVendor(t *testing.T) {
	t.Parallel()
	hanging, panicking := newVendor(), newVendor()
	h := newHouse(t, func(c *broker.Config) {
		c.Profiles["hang"] = profile("hang", "hanging", hanging)
		c.Profiles["panic"] = profile("panic", "panicking", panicking)
	})
	hung, letGo := make(chan struct{}, 100), make(chan struct{})
	hanging.behave(nil, func(context.Context, broker.Credential) (broker.Revocation, error) {
		hung <- struct{}{}
		<-letGo
		return broker.Revocation{}, errors.New("nothing came")
	})
	panicking.behave(nil, func(context.Context, broker.Credential) (broker.Revocation, error) { panic("boom") })
	for _, v := range []*vendor{hanging, panicking, h.vendor} {
		v.caps.SelfExpires = false
	}
	var good []broker.CredentialID
	for i := range 40 {
		for _, p := range []string{"hang", "panic", "p"} {
			r := ask(name(p, i))
			r.Profile, r.TTL = p, time.Minute
			issued, err := h.Issue(t.Context(), orchestrator, r, "")
			if err != nil {
				t.Fatal(err)
			}
			if p == "p" {
				good = append(good, issued.ID)
			}
		}
	}
	bad := good[0]
	h.exec(`UPDATE versions SET trace = '"no object"' WHERE credential_id = $1`, string(bad))
	h.clock.Advance(2 * time.Minute)

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { h.Run(ctx) })
	<-hung // from now on one vendor hangs
	eventually(t, "the good vendor's are all done while another hangs", func() bool {
		done, _, err := h.List(t.Context(), operator, broker.Filter{Profile: "p", State: broker.StateExpired, Limit: 100})
		return err == nil && len(done) == len(good)-1
	})
	eventually(t, "the panicking vendor's are all tried", func() bool {
		list, _, err := h.List(t.Context(), operator, broker.Filter{Profile: "panic", State: broker.StateRevoking, Limit: 100})
		return err == nil && len(list) == 40
	})
	cancel()
	underWay := len(hung)
	close(letGo)
	wg.Wait()
	// The calls under way are waited for; what was only leased is given back, not begun, but for one that just is.
	if n := len(hung) - underWay; n > 1 {
		t.Errorf("%d were begun after Run was told to stop", n)
	}
	if n, _, err := h.List(t.Context(), operator, broker.Filter{Profile: "hang", State: broker.StateExpired, Limit: 100}); err != nil || len(n) > 0 {
		t.Errorf("%d of the hanging vendor's are reported ended (%v)", len(n), err)
	}
}

// P10: any number of replicas; each piece of work is done once.
func TestTwoSweepers(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.vendor.caps.SelfExpires = false
	const n = 300 // more than one batch
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { h.issue(name("t", i)) })
	}
	wg.Wait()
	h.clock.Advance(2 * time.Hour)
	for range 3 {
		replica, err := broker.New(h.with(h.openStore()))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := replica.Sweep(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if alive := h.vendor.living(); len(alive) != 0 {
		t.Errorf("%d alive upstream", len(alive))
	}
	for id, calls := range h.vendor.revoked {
		if calls != 1 {
			t.Errorf("%s was ended %d times", id, calls)
		}
	}
	count := map[string]int{}
	for _, e := range h.events("") {
		count[e.Type]++
	}
	if len(h.vendor.revoked) != n || count["credential.expired"] != n || count["credential.revoked"] != 0 {
		t.Errorf("%d asked for, events %v", len(h.vendor.revoked), count)
	}
}

// The lease that a dead replica held comes back.
func TestLeaseComesBack(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.vendor.caps.SelfExpires = false
	issued := h.issue("t")
	h.clock.Advance(2 * time.Hour)
	leased, err := h.store.Claim(t.Context(), "vendor", h.clock.Now(), 2*time.Minute, 10) // and dies
	if err != nil || len(leased) != 1 {
		t.Fatalf("leased %d, %v", len(leased), err)
	}
	h.sweep()
	h.wantState(issued.ID, broker.StateActive)
	h.clock.Advance(2*time.Minute + time.Millisecond)
	h.sweep()
	h.wantState(issued.ID, broker.StateExpired)
}

// Run stops in the middle: what was begun is finished, the rest is given back, and another replica does it.
func TestRunStops(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.vendor.caps.SelfExpires = false
	const n = 60
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { h.issue(name("t", i)) })
	}
	wg.Wait()
	h.clock.Advance(2 * time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	var calls atomic.Int32
	h.vendor.behave(nil, func(work context.Context, _ broker.Credential) (broker.Revocation, error) {
		if calls.Add(1) == 5 {
			cancel()
		}
		return broker.Revocation{}, work.Err() // a step begun is not cut off
	})
	h.Run(ctx)
	ended, _, err := h.List(t.Context(), operator, broker.Filter{State: broker.StateExpired, Limit: 100})
	if err != nil || len(ended) != int(calls.Load()) {
		t.Errorf("%d calls to the vendor, %d recorded (%v)", calls.Load(), len(ended), err)
	}
	h.clock.Advance(3 * time.Minute)
	h.sweep()
	if alive := h.vendor.living(); len(alive) != 0 || int(calls.Load()) != n {
		t.Errorf("%d alive upstream after %d calls", len(alive), calls.Load())
	}
}

// Run stands a database that fails for a while.
func TestRunOutlivesAnOutage(t *testing.T) {
	t.Parallel()
	h, ledger := newSpoilt(t)
	h.vendor.caps.SelfExpires = false
	issued := h.issue("t")
	h.clock.Advance(2 * time.Hour)
	var failed atomic.Int32
	ledger.set(func(s *spoilt) {
		s.move = func(broker.Credential) error {
			if failed.Add(1) < 3 {
				return errDisk
			}
			return nil
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { h.Run(ctx) })
	eventually(t, "it is done at last", func() bool {
		h.clock.Advance(time.Minute) // leases run out
		return h.find(issued.ID).Version.State == broker.StateExpired
	})
	cancel()
	wg.Wait()
}

type watcher struct {
	mu     sync.Mutex
	late   []time.Duration
	phases map[string]int
	done   map[string]int
}

func (w *watcher) Phase(profile, phase string, _ time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.phases[profile+" "+phase]++
}

func (w *watcher) Done(op, profile, provider, outcome string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done[op+" "+profile+" "+provider+" "+outcome]++
}

func (w *watcher) Level(string, string, float64) {}

func (w *watcher) Lag(_ string, late time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.late = append(w.late, late)
}

func TestObserver(t *testing.T) {
	t.Parallel()
	w := &watcher{phases: map[string]int{}, done: map[string]int{}}
	h := newHouse(t, func(c *broker.Config) { c.Observer = w })
	issued := h.issue("t")
	r := ask("t2")
	r.Profile = "nobody's"
	_, _ = h.Issue(t.Context(), orchestrator, r, "")
	if _, err := h.Revoke(t.Context(), orchestrator, issued.ID, ""); err != nil {
		t.Fatal(err)
	}
	h.issue("t3")
	h.clock.Advance(time.Hour + 7*time.Second)
	h.sweep()
	for _, phase := range []string{"policy", "intent", "upstream", "outcome"} {
		if w.phases["p "+phase] != 2 {
			t.Errorf("phases: %v", w.phases)
		}
	}
	for _, done := range []string{"issue p vendor ok", "issue   unknown_profile", "revoke p vendor revoked"} {
		if w.done[done] == 0 {
			t.Errorf("%q is not among %v", done, w.done)
		}
	}
	if len(w.late) != 1 || w.late[0] != 7*time.Second {
		t.Errorf("lag: %v", w.late)
	}
}
