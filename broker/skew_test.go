package broker_test

import (
	"context"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
)

// replica is another process on the same database, its own clock being off; it decides by PostgreSQL's, as serve does.
func (h *house) replica(off time.Duration) *broker.Broker {
	h.t.Helper()
	s, err := store.Open(h.t.Context(), store.Config{
		URL: broker.NewSecret(h.db.URL(login)), Clock: func() time.Time { return time.Now().Add(off) },
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(s.Close)
	if err := s.MeasureClock(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	cfg := h.cfg
	cfg.Ledger, cfg.Clock = s, s.Now
	b, err := broker.New(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

// A replica's clock that is hours ahead abandons nothing that another one is minting, and ends nothing early.
func TestClockAheadAbandonsNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *broker.Config) { c.Clock = nil; c.UpstreamTimeout = 10 * time.Minute })
	ahead := h.replica(12 * time.Hour)
	before := h.issue("t")
	h.vendor.behave(func(context.Context, broker.Credential, func()) error { return ahead.Sweep(context.Background()) }, nil)
	issued, err := h.Issue(t.Context(), orchestrator, ask("t"), "key")
	if err != nil {
		t.Fatalf("issued while a replica with a wrong clock sweeps: %v", err)
	}
	for _, id := range []broker.CredentialID{before.ID, issued.ID} {
		h.wantState(id, broker.StateActive)
	}
}

// A replica's clock that is hours behind ends on time what has come to its end.
func TestClockBehindExpiresOnTime(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	behind := h.replica(-12 * time.Hour)
	h.clock.Advance(-2 * time.Hour) // issued two hours ago, for one
	c := h.issue("t")
	if err := behind.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.wantState(c.ID, broker.StateExpired)
	if _, err := behind.Resolve(t.Context(), orchestrator, c.ID, 0); err == nil {
		t.Error("it gives an expired secret away")
	}
}

// What a replica with a wrong clock issues ends when PostgreSQL's clock says so.
func TestClockOfAnIssuance(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for _, off := range []time.Duration{-12 * time.Hour, 12 * time.Hour} {
		issued, err := h.replica(off).Issue(t.Context(), orchestrator, ask("t"), "")
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(issued.Version.ExpiresAt); left <= 0 || left > 2*time.Hour {
			t.Errorf("a clock that is %s off issues for one hour, which ends in %s", off, left)
		}
	}
}
