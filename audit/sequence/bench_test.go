package sequence_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// BenchmarkSequence is how many events a second one process puts into the tree when many wait.
func BenchmarkSequence(b *testing.B) {
	r := newRecord(b)
	const some = 20_000
	written := 0
	for b.Loop() {
		b.StopTimer()
		for range some / 500 {
			events := make([]broker.Event, 500)
			for i := range events {
				events[i] = r.event(written)
				events[i].ID = fmt.Sprintf("evt_%08d", written)
				written++
			}
			if err := r.store.Record(b.Context(), events...); err != nil {
				b.Fatal(err)
			}
		}
		r.n = written
		b.StartTimer()
		for more := true; more; {
			var err error
			if more, err = r.seq.Round(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.N*some)/b.Elapsed().Seconds(), "events/s")
	r.settle()
	if report := r.verify(); !report.OK() {
		b.Error(report.Faults)
	}
}

// BenchmarkCatchUp is how fast one process puts a backlog into the tree: events of one transaction of which the planner's
// statistics know nothing. leaves/cpu-s is by the CPU time of this process alone, PostgreSQL's is not in it.
func BenchmarkCatchUp(b *testing.B) {
	const n = 200_000
	r := newRecord(b)
	for b.Loop() {
		b.StopTimer()
		r.backlog(n)
		used := cpu(b)
		b.StartTimer()
		for more := true; more; {
			var err error
			if more, err = r.seq.Round(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		b.ReportMetric(n/(cpu(b)-used).Seconds(), "leaves/cpu-s")
		b.StartTimer()
	}
	b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "leaves/s")
}

// cpu is the CPU time that this process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkVerify is how many events a second are verified in a database of 100 000.
func BenchmarkVerify(b *testing.B) {
	r := newRecord(b)
	r.write(100_000)
	r.settle()
	for b.Loop() {
		if report := r.verify(); !report.OK() {
			b.Fatal(report.Faults)
		}
	}
	b.ReportMetric(float64(b.N*r.n)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkInclude is one proof out of 100 000 events.
func BenchmarkInclude(b *testing.B) {
	r := newRecord(b)
	r.write(100_000)
	r.settle()
	ids := r.order()
	i := 0
	for b.Loop() {
		i = (i + 7919) % len(ids)
		if _, err := r.log.Include(b.Context(), ids[i], 0, 0); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIdleRound is what a round costs when there is nothing to do, in a tree of 100 000.
func BenchmarkIdleRound(b *testing.B) {
	r := newRecord(b)
	r.write(100_000)
	r.settle()
	for b.Loop() {
		if _, err := r.seq.Round(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
