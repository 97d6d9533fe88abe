package sequence_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/audit/sequence"
)

// An event is away only if its own month is, in UTC whatever zone the session has: a month is not the same in all of them,
// and what was removed from the first hours of the next one is not archived.
func TestOnlyTheMonthThatLeftIsAway(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.old(t) // the five minutes before February, and the five after
	r.settle()
	ids, february := r.order(), r.list("SELECT id FROM events_2020_02")
	if done, err := r.archive("2020-02", t.TempDir()); err != nil || len(done) != 1 || len(february) < 200 || len(february) > 400 {
		t.Fatalf("%+v, %v, %d are left", done, err, len(february))
	}
	r.tamper("DELETE FROM events_2020_02")
	for _, zone := range []string{"Pacific/Auckland", "America/Los_Angeles"} {
		cfg, err := pgxpool.ParseConfig(r.db.URL(login))
		if err != nil {
			t.Fatal(err)
		}
		cfg.ConnConfig.RuntimeParams["timezone"] = zone
		pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		log := sequence.NewLog(pool, r.signer.Keys())
		for i := 0; i < 600; i += 7 {
			in, err := log.Include(t.Context(), ids[i], 0, 0)
			if removed := slices.Contains(february, ids[i]); errors.Is(err, sequence.ErrRemoved) != removed || in.Away == removed {
				t.Errorf("%s, %s: away %t, %v", zone, ids[i], in.Away, err)
			}
		}
	}
}

// A month that leaves while a proof waits for its lock is seen whole: the event is there, or its month is archived.
func TestProofWhileTheMonthLeaves(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.old(t)
	r.settle()
	ids := r.order()
	tx, err := r.owner().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	for _, sql := range []string{
		"LOCK TABLE events, events_2020_01 IN ACCESS EXCLUSIVE MODE",
		"INSERT INTO tree_archives (month, from_idx, to_idx, events, size, sha256) VALUES ('2020-01', 0, 1, 1, 1, sha256(''))",
		"ALTER TABLE events DETACH PARTITION events_2020_01",
	} {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	type answer struct {
		in  sequence.Inclusion
		err error
	}
	given := make(chan answer, 1)
	go func() {
		in, err := r.log.Include(t.Context(), ids[0], 0, 0)
		given <- answer{in, err}
	}()
	for r.read("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 0 {
		runtime.Gosched()
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := <-given; a.err != nil || !a.in.Away {
		t.Errorf("%+v, %v", a.in, a.err)
	}
}
