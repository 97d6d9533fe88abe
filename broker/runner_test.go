package broker_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// A loop that panics starts again, is counted, and its log bears the place but never the panic's value (P7).
func TestRunnerRestartsALoop(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	r := broker.NewRunner(slog.New(slog.NewTextHandler(&log, nil)))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	runs := 0
	r.Loop(ctx, "a loop", func(context.Context) {
		if runs++; runs == 1 {
			panic("the-secret")
		}
	})
	if runs != 2 || r.Panics()["a loop"] != 1 {
		t.Errorf("%d runs, panics %v", runs, r.Panics())
	}
	if text := log.String(); strings.Contains(text, "the-secret") || !strings.Contains(text, "runner_test.go:") || !strings.Contains(text, "a loop") {
		t.Errorf("log: %s", text)
	}
	stop()
	r.Loop(ctx, "ended", func(context.Context) { panic(1) }) // no second run once its context has ended
	if r.Panics()["ended"] != 1 {
		t.Error(r.Panics())
	}
	var none *broker.Runner
	if err := none.Do(ctx, "x", func() error { panic("y") }); err == nil || none.Panics() != nil {
		t.Error("a nil Runner does not recover")
	}
}

// A goroutine's panic is its waiter's, and calls off the others.
func TestGroupPassesPanicsOn(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	err := broker.Recovered(func() error {
		g := broker.Group{Panicked: stop}
		g.Go(func() { <-ctx.Done() })
		g.Go(func() { panic("value") })
		g.Wait()
		return nil
	})
	p, ok := errors.AsType[*broker.PanicError](err)
	if !ok || p.Type != "string" || strings.Contains(err.Error(), "value") {
		t.Errorf("%v", err)
	}
}

// panicky is a vendor all of whose methods panic.
type panicky struct {
	*vendor
	watches, keeps atomic.Int32
}

func (p *panicky) Keeps() string { return "panicky" }

func (p *panicky) Keep(context.Context) (time.Time, error) { p.keeps.Add(1); panic("Keep") }

func (p *panicky) Watch(context.Context) { p.watches.Add(1); panic("Watch") }

// A provider that panics in Watch, Keep, Mint and Revoke neither ends the process nor keeps another provider's work from
// being done, nor its own from being tried again.
func TestAPanickingProvider(t *testing.T) {
	t.Parallel()
	bad, good := &panicky{vendor: newVendor()}, newVendor()
	h := newHouse(t, func(c *broker.Config) {
		c.Profiles = broker.Profiles{"bad": profile("bad", "bad", bad), "good": profile("good", "good", good)}
	})
	boom := func(context.Context, broker.Credential) (broker.Revocation, error) { panic("Revoke") }
	req := ask("t")
	req.Profile = "bad"
	issued, err := h.Issue(t.Context(), orchestrator, req, "")
	if err != nil {
		t.Fatal(err)
	}
	bad.behave(func(context.Context, broker.Credential, func()) error { panic("Mint") }, boom)
	if _, err := h.Issue(t.Context(), orchestrator, req, ""); broker.AsError(err).Code != broker.CodeUpstreamError {
		t.Errorf("a mint that panicked: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); h.Run(ctx) }()
	defer func() { stop(); <-ended }()
	c, err := h.Revoke(t.Context(), orchestrator, issued.ID, "")
	if err != nil || c.Version.State != broker.StateRevoking {
		t.Errorf("a revocation that panicked: %s, %v", c.Version.State, err)
	}
	eventually(t, "the provider is watched again", func() bool { return bad.watches.Load() >= 2 && bad.keeps.Load() >= 1 }) // watched again after the panic
	req.Profile = "good"
	if issued, err = h.Issue(t.Context(), orchestrator, req, ""); err != nil {
		t.Fatal(err)
	}
	bad.behave(nil, nil)
	h.clock.Advance(time.Hour) // both are due
	eventually(t, "both are ended", func() bool { return h.find(issued.ID).Version.State.Ended() && h.find(c.ID).Version.State.Ended() })
	if n := h.Runner.Panics(); n["watch"] < 2 || n["provider"] < 3 {
		t.Errorf("counted: %v", n)
	}
}

// panickyLedger panics in one of the sweeper's calls.
type panickyLedger struct {
	broker.Ledger
	in    atomic.Pointer[string]
	calls atomic.Int32
}

func (l *panickyLedger) enter(name string) {
	if in := l.in.Load(); in != nil && *in == name {
		l.calls.Add(1)
		panic(name)
	}
}

func (l *panickyLedger) DueProviders(ctx context.Context, now time.Time) ([]string, error) {
	l.enter("DueProviders")
	return l.Ledger.DueProviders(ctx, now)
}

func (l *panickyLedger) ClaimTasks(ctx context.Context, now time.Time, lease time.Duration, limit int) ([]broker.Task, error) {
	l.enter("ClaimTasks")
	return l.Ledger.ClaimTasks(ctx, now, lease, limit)
}

func (l *panickyLedger) Tidy(ctx context.Context, now time.Time) error {
	l.enter("Tidy")
	return l.Ledger.Tidy(ctx, now)
}

func (l *panickyLedger) Claim(ctx context.Context, provider string, now time.Time, lease time.Duration, limit int) ([]broker.Credential, error) {
	l.enter("Claim")
	return l.Ledger.Claim(ctx, provider, now, lease, limit)
}

func (l *panickyLedger) Move(ctx context.Context, c broker.Credential, from []broker.State, sealed []byte, events ...broker.Event) error {
	if c.TaskID == "cursed" {
		l.enter("Move")
	}
	return l.Ledger.Move(ctx, c, from, sealed, events...)
}

// No part of the sweeper's work ends it: the process lives, the other parts go on, and the part itself works again
// afterwards. One bad row stops no other row.
func TestTheSweeperOutlivesPanics(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	l := &panickyLedger{Ledger: h.store}
	b, err := broker.New(h.with(l))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	in := "Tidy"
	l.in.Store(&in) // it is called once a minute, and at the start
	go func() { defer close(ended); b.Run(ctx) }()
	defer func() { stop(); <-ended }()
	eventually(t, "the ledger was asked", func() bool { return l.calls.Load() > 0 })
	for _, in := range []string{"ClaimTasks", "DueProviders", "Claim", "Move"} {
		l.in.Store(&in)
		l.calls.Store(0)
		cursed, other := h.issue("cursed"), h.issue("blessed")
		h.clock.Advance(time.Hour)
		eventually(t, "the ledger was asked", func() bool { return l.calls.Load() > 0 })
		if in == "ClaimTasks" || in == "Move" { // which keeps no other version from its end
			eventually(t, "the other version is ended", func() bool { return h.find(other.ID).Version.State.Ended() })
		}
		l.in.Store(nil)
		h.clock.Advance(time.Hour) // past the claim of the bad row
		eventually(t, "both versions are ended", func() bool { return h.find(cursed.ID).Version.State.Ended() && h.find(other.ID).Version.State.Ended() })
	}
}

// panickyObserver panics when a mint has its answer.
type panickyObserver struct{}

func (panickyObserver) Done(string, string, string, string) {}
func (panickyObserver) Lag(string, time.Duration)           {}
func (panickyObserver) Level(string, string, float64)       {}

func (panickyObserver) Phase(_, phase string, _ time.Duration) {
	if phase == "upstream" {
		panic("Phase")
	}
}

// What a request does in goroutines of its own panics in the request's, which the HTTP handler recovers. What was minted
// meanwhile is ended by the sweeper.
func TestAPanicInARequestsGoroutine(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	cfg := h.cfg
	cfg.Observer = panickyObserver{}
	b, err := broker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = broker.Recovered(func() error {
		_, err := b.IssueAll(t.Context(), orchestrator, []broker.Request{ask("t"), ask("t")}, "")
		return err
	})
	if _, ok := errors.AsType[*broker.PanicError](err); !ok {
		t.Fatalf("%v", err)
	}
	h.clock.Advance(h.wait())
	h.sweep()
	list, _, err := h.List(t.Context(), operator, broker.Filter{TaskID: "t", Limit: 10})
	if err != nil || len(list) != 2 || !list[0].Version.State.Ended() || !list[1].Version.State.Ended() {
		t.Errorf("%+v, %v", list, err)
	}
}
