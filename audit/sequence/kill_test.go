package sequence_test

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/audit/sequence"
)

// Three replicas lose their connections again and again, at whatever statement they are, while others write: each event
// is in the tree once, in its order, and all that was signed and published extends what came before.
func TestKillsAtAnyMoment(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	cfg, err := pgxpool.ParseConfig(r.db.URL(login))
	if err != nil {
		t.Fatal(err)
	}
	cfg.ConnConfig.RuntimeParams["application_name"] = "sequencer"
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	ctx, stop := context.WithCancel(t.Context())
	var replicas, killer sync.WaitGroup
	for range 3 {
		s, err := sequence.New(sequence.Config{Pool: pool, Signer: r.signer, Logger: slog.New(slog.DiscardHandler),
			Every: time.Millisecond, Alarm: func(_ context.Context, reason string) error { t.Error(reason); return nil }})
		if err != nil {
			t.Fatal(err)
		}
		replicas.Go(func() { s.Run(ctx) })
	}
	var kills atomic.Int64
	killer.Go(func() {
		tick := time.NewTicker(7 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			tag, err := r.admin.Exec(context.Background(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE application_name = 'sequencer' AND datname = current_database() AND state <> 'idle'`)
			if err != nil {
				t.Error(err)
			}
			kills.Add(tag.RowsAffected())
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	})
	for i := 0; i < 30 || kills.Load() < 3 && i < 1000; i++ {
		r.write(60)
	}
	stop()
	replicas.Wait()
	killer.Wait()
	if n := kills.Load(); n < 3 {
		t.Errorf("only %d connections were cut", n)
	}
	r.settle()
	r.sequenced()
	if report := r.verify(); !report.OK() || report.Events != int64(r.n) {
		t.Errorf("%+v", report)
	}
}
