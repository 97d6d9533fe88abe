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

// open is a vendor with something to close, which watches as well.
type open struct {
	*vendor
	closed   atomic.Int32
	watching atomic.Int32
}

func (o *open) Close() error { o.closed.Add(1); return nil }

func (*open) Keeps() string { return "" }

func (*open) Keep(context.Context) (time.Time, error) { return time.Time{}, errors.New("not called") }

func (o *open) Watch(ctx context.Context) {
	o.watching.Add(1)
	defer o.watching.Add(-1)
	<-ctx.Done()
}

func newOpen() *open { return &open{vendor: newVendor()} }

func (o *open) profiles() broker.Profiles {
	return broker.Profiles{"p": profile("p", "vendor", o), "q": profile("q", "vendor", o)}
}

func (o *open) wantClosed(t *testing.T, want int32, when string) {
	t.Helper()
	if n := o.closed.Load(); n != want {
		t.Errorf("%s: closed %d times, want %d", when, n, want)
	}
}

// A call under way when the profiles are replaced finishes on the old provider, which is closed after it, once; new calls
// go to the new one.
func TestReplacedProvidersFinishTheirCalls(t *testing.T) {
	t.Parallel()
	old, next := newOpen(), newOpen()
	h := newHouse(t, func(c *broker.Config) { c.Profiles, c.UpstreamTimeout = old.profiles(), time.Minute })
	begun, finish := make(chan struct{}), make(chan struct{})
	old.behave(func(context.Context, broker.Credential, func()) error {
		close(begun)
		<-finish
		if old.closed.Load() > 0 {
			return errors.New("closed under a call")
		}
		return nil
	}, nil)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := h.Issue(t.Context(), orchestrator, ask("slow"), ""); err != nil {
			t.Error(err)
		}
	})
	<-begun
	if err := h.SetProfiles(next.profiles()); err != nil {
		t.Fatal(err)
	}
	h.issue("new")
	old.wantClosed(t, 0, "during the call")
	close(finish)
	wg.Wait()
	old.wantClosed(t, 1, "after the call")
	next.wantClosed(t, 0, "in force")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	next.wantClosed(t, 1, "after the broker's end")
	old.wantClosed(t, 1, "after the broker's end")
	if err := h.SetProfiles(newOpen().profiles()); err == nil {
		t.Error("a closed broker took profiles that nobody would close")
	}
	if _, err := h.Issue(t.Context(), orchestrator, ask("late"), ""); err == nil {
		t.Error("a closed broker issued")
	}
}

// A set that is refused stays the caller's, and the one in force is untouched.
func TestRefusedProfilesStayTheCallers(t *testing.T) {
	t.Parallel()
	old, bad := newOpen(), newOpen()
	bad.caps = broker.Capabilities{MaxTTL: time.Hour, Revoke: broker.RevokeNone}
	h := newHouse(t, func(c *broker.Config) { c.Profiles = old.profiles() })
	if err := h.SetProfiles(bad.profiles()); err == nil {
		t.Fatal("taken")
	}
	h.issue("t")
	old.wantClosed(t, 0, "in force")
	bad.wantClosed(t, 0, "refused")
	if err := bad.profiles().Close(); err != nil {
		t.Fatal(err)
	}
	bad.wantClosed(t, 1, "closed by its caller: once, though two profiles share it")
}

// A provider that does not obey its context cannot keep the replaced set open: the sweeper closes it when one call's time
// is over. Watches of the replaced set end.
func TestReplacedProvidersAreClosedInTheEnd(t *testing.T) {
	t.Parallel()
	old, next := newOpen(), newOpen()
	h := newHouse(t, func(c *broker.Config) { c.Profiles = old.profiles() })
	begun, finish := make(chan struct{}), make(chan struct{})
	old.behave(func(context.Context, broker.Credential, func()) error { close(begun); <-finish; return nil }, nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { _, _ = h.Issue(t.Context(), orchestrator, ask("stuck"), "") })
	defer close(finish)
	<-begun
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); h.Run(ctx) }()
	defer func() { stop(); <-ended }()
	eventually(t, "the provider is watched", func() bool { return old.watching.Load() == 1 })
	if err := h.SetProfiles(next.profiles()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new provider is watched instead", func() bool { return old.watching.Load() == 0 && next.watching.Load() == 1 })
	old.wantClosed(t, 0, "within the call's time")
	h.clock.Advance(h.wait())
	eventually(t, "the old provider is closed", func() bool { return old.closed.Load() == 1 })
}
