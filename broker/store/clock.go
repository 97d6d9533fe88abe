package store

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/taskpass/taskpass/broker"
)

const (
	// clockEvery is how often the difference from PostgreSQL's clock is measured. For so long a step of either clock may go
	// unnoticed.
	clockEvery = 10 * time.Second
	// clockTimeout bounds one measurement.
	clockTimeout = 5 * time.Second
)

// clock shows PostgreSQL's time without asking it each time. Between measurements it runs on the process's monotonic
// clock, so a step of the process's wall clock changes nothing. It is safe for concurrent use.
type clock struct {
	local  func() time.Time
	anchor atomic.Pointer[anchor] // nil: never measured
}

// anchor is one moment on both clocks.
type anchor struct{ database, local time.Time }

func (c *clock) now() time.Time {
	a := c.anchor.Load()
	if a == nil {
		return c.local()
	}
	return a.database.Add(c.local().Sub(a.local))
}

// observe takes in that PostgreSQL's clock showed a time somewhen between two local times. What fits the present anchor
// changes nothing, so the clock does not jitter with the network; what does not replaces it. The clock is never ahead of
// PostgreSQL's, so that nothing ends early, and behind by at most the time between.
func (c *clock) observe(sent, database, received time.Time) {
	if a := c.anchor.Load(); a != nil {
		earliest, latest := a.database.Add(sent.Sub(a.local)), a.database.Add(received.Sub(a.local))
		if !database.Before(earliest) && !database.After(latest) {
			return
		}
	}
	c.anchor.Store(&anchor{database.UTC(), received})
}

// Now is PostgreSQL's time, as last measured: the one clock of all replicas, by which leases, due times and ends are
// decided. Before the first measurement it is the process's own.
func (s *Store) Now() time.Time { return s.clock.now() }

// ClockDifference is how far the process's own clock is ahead of PostgreSQL's; negative where it is behind.
func (s *Store) ClockDifference() time.Duration {
	return s.clock.local().Round(0).Sub(s.clock.now().Round(0)) // without monotonic readings: the wall clock counts
}

// MeasureClock asks PostgreSQL for its time, once: one round trip, bounded.
func (s *Store) MeasureClock(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clockTimeout)
	defer cancel()
	conn, err := s.pool.Acquire(ctx) // before the clock is read: waiting for a connection is no travel time
	if err != nil {
		return err
	}
	defer conn.Release()
	var database time.Time
	sent := s.clock.local()
	if err := conn.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&database); err != nil {
		return err
	}
	s.clock.observe(sent, database, s.clock.local())
	return nil
}

// FollowClock measures again and again until ctx ends. While PostgreSQL does not answer, the last measurement stands.
func (s *Store) FollowClock(ctx context.Context) {
	tick := time.NewTicker(clockEvery)
	defer tick.Stop()
	apart := false
	for {
		if err := s.MeasureClock(ctx); err != nil && ctx.Err() == nil {
			s.logger.WarnContext(ctx, "PostgreSQL's clock could not be read; the last measurement stands", "error", err)
		}
		if d := s.ClockDifference(); (d.Abs() > broker.MaxClockDifference) != apart {
			apart = !apart
			s.logger.WarnContext(ctx, "this process's clock and PostgreSQL's", "seconds_ahead", d.Seconds(), "apart", apart)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
