package broker_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// keeper is a vendor that keeps something, and counts its turns.
type keeper struct {
	*vendor
	name string
	now  func() time.Time

	mu    sync.Mutex
	turns int
	every time.Duration
	err   error
}

func (k *keeper) Keeps() string { return k.name }

func (k *keeper) Keep(context.Context) (time.Time, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.turns++
	return k.now().Add(k.every), k.err
}

func (k *keeper) had(t *testing.T, want int, when string) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.turns != want {
		t.Errorf("%s: %d turns, want %d", when, k.turns, want)
	}
	k.turns = 0
}

// What is kept is looked after at once, then when it asked for it, on one replica, once for all profiles that keep it. A
// failure is repeated soon, and who asks for it sooner gets it sooner.
func TestUpkeep(t *testing.T) {
	t.Parallel()
	k := &keeper{vendor: newVendor(), name: "role", every: time.Minute}
	none := &keeper{vendor: newVendor()}
	h := newHouse(t, func(c *broker.Config) {
		k.now, none.now = c.Clock, c.Clock
		c.Profiles = broker.Profiles{"a": profile("a", "v", k), "b": profile("b", "v", k), "c": profile("c", "v", none)}
	})
	other, err := broker.New(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	sweep := func() {
		t.Helper()
		var wg sync.WaitGroup
		for _, b := range []*broker.Broker{h.Broker, other} {
			wg.Go(func() {
				if err := b.Sweep(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	sweep()
	k.had(t, 1, "at first")
	sweep()
	k.had(t, 0, "again")
	h.clock.Advance(time.Minute - time.Millisecond)
	sweep()
	k.had(t, 0, "before its time")
	h.clock.Advance(time.Millisecond)
	sweep()
	k.had(t, 1, "at its time")

	if err := h.store.Save(t.Context(), "role", broker.Notes{State: []byte(`{}`), LookBy: h.clock.Now().Add(time.Second)}); err != nil {
		t.Fatal(err)
	}
	h.clock.Advance(time.Second)
	sweep()
	k.had(t, 1, "sooner, as it was asked")

	k.err = errors.New("the vendor is down")
	h.clock.Advance(time.Minute)
	sweep()
	k.had(t, 2, "failing: the other profile tries too")
	h.clock.Advance(50 * time.Second)
	sweep()
	k.had(t, 2, "after a failure")
	none.had(t, 0, "who keeps nothing")
}

// A turn that a crash cut short comes back.
func TestUpkeepAfterACrash(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	now := h.clock.Now()
	claim := func(at time.Time) int {
		t.Helper()
		got, err := h.store.ClaimUpkeep(t.Context(), []string{"role", "other"}, at, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return len(got)
	}
	for i, c := range []struct {
		at   time.Time
		want int
	}{{now, 2}, {now, 0}, {now.Add(time.Minute - time.Second), 0}, {now.Add(time.Minute), 2}} {
		if n := claim(c.at); n != c.want {
			t.Errorf("%d: claimed %d, want %d", i, n, c.want)
		}
	}
	// Asked for again while it was being done: that is not forgotten.
	leased := now.Add(2 * time.Minute)
	if err := h.store.Save(t.Context(), "role", broker.Notes{LookBy: now.Add(90 * time.Second)}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"role", "other"} {
		if err := h.store.Kept(t.Context(), name, leased, now.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if n := claim(now.Add(90 * time.Second)); n != 1 {
		t.Errorf("%d are due, want the one that was asked for", n)
	}
}
