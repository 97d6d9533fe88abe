package store_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker/store"
)

// far is a clock difference that no busy machine brings about: the tests compare clocks to within half of it.
const far = time.Hour

func near(got, want time.Duration) bool { return (got - want).Abs() < far/2 }

// However wrong a process's clock is, and whatever step it makes, the store's is PostgreSQL's once it was measured.
func TestClockIsPostgreSQLs(t *testing.T) {
	t.Parallel()
	var off atomic.Int64
	s := open(t, own(t), func(c *store.Config) {
		c.Clock = func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
	})
	now := func() time.Duration { return time.Until(s.Now()) } // PostgreSQL runs here: its clock is this one
	off.Store(int64(-far))
	if !near(now(), -far) {
		t.Errorf("before it was measured it is %s off", now())
	}
	for _, step := range []time.Duration{-far, 3 * far, 0} {
		off.Store(int64(step))
		if err := s.MeasureClock(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !near(now(), 0) || !near(s.ClockDifference(), step) {
			t.Errorf("of a clock that is %s off: the store's is %s off, and the difference %s", step, now(), s.ClockDifference())
		}
	}
}

// What a measurement cannot tell from travel time changes nothing: the clock does not jitter and never runs backwards.
func TestClockDoesNotJitter(t *testing.T) {
	t.Parallel()
	start := time.Now()
	var elapsed atomic.Int64
	s := open(t, own(t), func(c *store.Config) {
		c.Clock = func() time.Time { return start.Add(time.Duration(elapsed.Add(int64(far)))) } // each look is an hour later
	})
	if err := s.MeasureClock(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := s.Now().Add(-time.Duration(elapsed.Load()))
	elapsed.Store(int64(far / 2)) // about the time of the first measurement: it fits
	if err := s.MeasureClock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if second := s.Now().Add(-time.Duration(elapsed.Load())); !second.Equal(first) {
		t.Errorf("moved by %s", second.Sub(first))
	}
}

// While PostgreSQL does not answer, the last measurement stands.
func TestClockWithoutPostgreSQL(t *testing.T) {
	t.Parallel()
	s := open(t, own(t), func(c *store.Config) { c.Clock = func() time.Time { return time.Now().Add(-far) } })
	if err := s.MeasureClock(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Pool().Close()
	if err := s.MeasureClock(t.Context()); err == nil {
		t.Fatal("measured without a connection")
	}
	if !near(time.Until(s.Now()), 0) {
		t.Errorf("it is %s off", time.Until(s.Now()))
	}
}
