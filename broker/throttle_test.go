package broker_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// metered is a vendor that bounds the rate of calls.
type metered struct {
	*vendor
	quota string
}

func (m metered) Quota() string { return m.quota }

func tooOften(context.Context, broker.Credential, func()) error {
	e := broker.Errorf(broker.CodeUpstreamThrottled, "too often")
	e.RetryAfter = 2 * time.Second
	return fmt.Errorf("%w: %w", broker.ErrNotMinted, e)
}

// mints tells what an issuance for a profile comes to, and how often its vendor was asked for it.
func (h *house) mints(profile string, v *vendor) (e *broker.Error, calls int) {
	h.t.Helper()
	count := func() (n int) {
		v.mu.Lock()
		defer v.mu.Unlock()
		for _, of := range v.minted {
			n += of
		}
		return n
	}
	before := count()
	r := ask("t")
	r.Profile = profile
	_, err := h.Issue(h.t.Context(), orchestrator, r, "")
	return broker.AsError(err), count() - before
}

// An upstream that says "too often" is left alone, for longer each time, by all profiles that share its quota and by no
// other; the first call that it answers ends that.
func TestThrottled(t *testing.T) {
	t.Parallel()
	one, same, apart := newVendor(), newVendor(), newVendor()
	h := newHouse(t, func(c *broker.Config) {
		c.Profiles = broker.Profiles{
			"one": profile("one", "v", metered{one, "q"}), "same": profile("same", "v", metered{same, "q"}),
			"apart": profile("apart", "v", metered{apart, "r"}), "free": profile("free", "v", newVendor()),
		}
	})
	one.behave(tooOften, nil)
	wait := time.Duration(0)
	for _, least := range []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, time.Minute, time.Minute} {
		h.clock.Advance(wait)
		if e, calls := h.mints("one", one); e == nil || e.Code != broker.CodeUpstreamThrottled || calls != 1 {
			t.Fatalf("after the pause: %v, %d calls", e, calls)
		}
		e, calls := h.mints("same", same)
		if e == nil || e.Code != broker.CodeUpstreamThrottled || calls != 0 {
			t.Fatalf("within the pause: %v, %d calls", e, calls)
		}
		if e.RetryAfter < least || e.RetryAfter > least*3/2 {
			t.Errorf("told to wait %s, want %s to half as much again", e.RetryAfter, least)
		}
		wait = e.RetryAfter
		for name, v := range map[string]*vendor{"apart": apart} {
			if e, calls := h.mints(name, v); e != nil || calls != 1 {
				t.Errorf("%s: %v, %d calls", name, e, calls)
			}
		}
	}
	h.clock.Advance(wait)
	one.behave(nil, nil)
	for _, p := range []struct {
		name string
		v    *vendor
	}{{"one", one}, {"same", same}} {
		if e, calls := h.mints(p.name, p.v); e != nil || calls != 1 {
			t.Errorf("%s, when it is over: %v, %d calls", p.name, e, calls)
		}
	}
	one.behave(tooOften, nil)
	h.mints("one", one)
	if e, _ := h.mints("one", one); e.RetryAfter > 3*time.Second {
		t.Errorf("a new beginning waits %s", e.RetryAfter)
	}
	// Nothing was ever sent for those that were held back: they are over, and count for no limit.
	if n := len(h.living()); n != 0 {
		t.Errorf("%d versions of refused requests are alive", n)
	}
}

// living lists the versions that may be alive, but for those that are active.
func (h *house) living() (list []broker.Credential) {
	h.t.Helper()
	for _, state := range []broker.State{broker.StateIssuing, broker.StateLost, broker.StateRevoking, broker.StateStuck} {
		found, _, err := h.List(h.t.Context(), auditor, broker.Filter{State: state, Limit: 100})
		if err != nil {
			h.t.Fatal(err)
		}
		list = append(list, found...)
	}
	return list
}
