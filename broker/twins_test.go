package broker_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/taskpass/taskpass/broker"
)

type gated struct{}

// gate stops a request with gated in its context once, until it is opened: before its at-th look at the newest version, or
// before it writes a next one, whichever comes first.
type gate struct {
	broker.Ledger
	at              int32
	looks           atomic.Int32
	once            sync.Once
	reached, opened chan struct{}
}

func newGate(at int32) *gate {
	return &gate{at: at, reached: make(chan struct{}), opened: make(chan struct{})}
}

func (g *gate) stop() { g.once.Do(func() { close(g.reached); <-g.opened }) }

func (g *gate) Latest(ctx context.Context, id broker.CredentialID) (broker.Credential, error) {
	if ctx.Value(gated{}) != nil && g.looks.Add(1) == g.at {
		g.stop()
	}
	return g.Ledger.Latest(ctx, id)
}

func (g *gate) Next(ctx context.Context, c broker.Credential, k *broker.RequestKey, t *broker.NewTaskToken, e broker.Event) error {
	if ctx.Value(gated{}) != nil {
		g.stop()
	}
	return g.Ledger.Next(ctx, c, k, t, e)
}

func notMinted(context.Context, broker.Credential, func()) error { return broker.ErrNotMinted }

func requests(n int) []broker.Request {
	return slices.Repeat([]broker.Request{ask("t")}, n)
}

// answer shows what a request was answered, secrets included.
func answer(list []broker.Issued, err error) string {
	text := fmt.Sprintf("%v:", err)
	for _, i := range list {
		text += fmt.Sprintf(" %s/%d/%s", i.ID, i.Version.Number, i.Secret.Fields["key"].Reveal())
	}
	return text
}

// TestTwinsAfterAFailure has one repetition of a failed request overtake another, which had already judged version 1 dead.
func TestTwinsAfterAFailure(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n, " credentials"), func(t *testing.T) {
			t.Parallel()
			g := newGate(2)
			h := newHouse(t, func(c *broker.Config) { g.Ledger, c.Ledger = c.Ledger, g })
			h.vendor.behave(notMinted, nil)
			if _, err := h.IssueAll(t.Context(), orchestrator, requests(n), "key"); err == nil {
				t.Fatal("minted")
			}
			h.vendor.behave(nil, nil)
			slow := make(chan string, 1)
			go func() {
				slow <- answer(h.IssueAll(context.WithValue(t.Context(), gated{}, true), orchestrator, requests(n), "key"))
			}()
			<-g.reached
			fast, err := h.IssueAll(t.Context(), orchestrator, requests(n), "key")
			close(g.opened)
			if want, got := answer(fast, err), <-slow; err != nil || got != want {
				t.Errorf("one key, two answers:\n%s\n%s", want, got)
			}
			for _, i := range fast {
				alive, err := h.store.Alive(t.Context(), i.ID)
				if err != nil || len(alive) != 1 || alive[0].Version.ID != i.Version.ID || alive[0].Version.Cause != broker.CauseNone {
					t.Errorf("alive: %+v, %v", alive, err)
				}
			}
		})
	}
}

// TestManyTwinsAfterAFailure: however many repeat a failed batch at once, it is minted once and all get the same answer.
func TestManyTwinsAfterAFailure(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.vendor.behave(notMinted, nil)
	if _, err := h.IssueAll(t.Context(), orchestrator, requests(3), "key"); err == nil {
		t.Fatal("minted")
	}
	h.vendor.behave(nil, nil)
	answers := make([]string, 12)
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() { answers[i] = answer(h.IssueAll(t.Context(), orchestrator, requests(3), "key")) })
	}
	wg.Wait()
	slices.Sort(answers)
	if different := slices.Compact(answers); len(different) != 1 {
		t.Errorf("%d different answers: %s", len(different), different)
	}
	if living := h.vendor.living(); len(living) != 3 {
		t.Errorf("%d live upstream for 3 credentials", len(living))
	}
}

// A refresh that failed does not make the key of the issuance mint what was answered and has ended since.
func TestRepeatAfterAFailedRefreshRevivesNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	first, err := h.Issue(t.Context(), orchestrator, ask("t"), "key")
	if err != nil {
		t.Fatal(err)
	}
	h.vendor.behave(notMinted, nil)
	if _, err := h.Refresh(t.Context(), orchestrator, first.ID, 1, ""); err == nil {
		t.Fatal("refreshed")
	}
	h.vendor.behave(nil, nil)
	h.clock.Advance(first.Version.ExpiresAt.Sub(h.clock.Now()))
	if err := h.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	again, err := h.Issue(t.Context(), orchestrator, ask("t"), "key")
	if broker.AsError(err) == nil || broker.AsError(err).Code != broker.CodeCredentialEnded {
		t.Errorf("the key is answered version %d, %v", again.Version.Number, err)
	}
}

// A repeated refresh that looked before its twin's version became current, and again after a later one failed, answers
// the twin's version.
func TestRefreshTwinOvertakenByALaterFailure(t *testing.T) {
	t.Parallel()
	g := newGate(1)
	h := newHouse(t, func(c *broker.Config) { g.Ledger, c.Ledger = c.Ledger, g })
	c := h.issue("t")
	slow := make(chan string, 1)
	go func() {
		i, err := h.Refresh(context.WithValue(t.Context(), gated{}, true), orchestrator, c.ID, 1, "")
		slow <- answer([]broker.Issued{i}, err)
	}()
	<-g.reached
	fast, err := h.Refresh(t.Context(), orchestrator, c.ID, 1, "")
	h.vendor.behave(notMinted, nil)
	if _, failed := h.Refresh(t.Context(), orchestrator, c.ID, 2, ""); failed == nil {
		t.Fatal("refreshed")
	}
	h.vendor.behave(nil, nil)
	close(g.opened)
	if want, got := answer([]broker.Issued{fast}, err), <-slow; got != want {
		t.Errorf("two refreshes of version 1, two answers:\n%s\n%s", want, got)
	}
}
