package sequence_test

import (
	"context"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// A round that panics, at whatever point, holds no connection and no lock afterwards: the next ones put each event into the
// tree once.
func TestTheSequencerOutlivesPanics(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	runner := broker.NewRunner(nil)
	const each = 12 // more than the pool has connections
	left := map[string]int{"in_round": each, "before_commit": each, "after_commit": each}
	r.reached = func(_ context.Context, point string) {
		if left[point]--; left[point] >= 0 {
			panic("C4n4ry")
		}
	}
	for range 3 * each {
		r.write(3)
		r.clock.Advance(2 * time.Second)
		_ = runner.Do(t.Context(), "sequencer", func() error {
			_, err := r.seq.Round(t.Context())
			if err != nil {
				t.Error(err)
			}
			return err
		})
	}
	r.settle()
	if n := runner.Panics()["sequencer"]; n < 2*each {
		t.Errorf("%d panics", n)
	}
	if rep := r.verify(); !rep.OK() {
		t.Errorf("%+v", rep)
	}
}
