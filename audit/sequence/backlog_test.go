package sequence_test

import (
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/audit/sequence"
)

// backlog records n events in one transaction, as a bulk load does, of which the planner's statistics know nothing: they
// are from before it, and say that the record ends there.
func (r *record) backlog(n int) {
	r.t.Helper()
	r.write(500)
	r.tamper("ALTER TABLE tree_leaves SET (autovacuum_enabled = off)",
		`DO $$ DECLARE part regclass; BEGIN
			FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'events'::regclass LOOP
				EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', part);
			END LOOP;
		END $$`, "ANALYZE events, tree_leaves")
	if _, err := r.admin.Exec(r.t.Context(), `INSERT INTO events (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body)
		SELECT id, at, 'audit.read', 'auditor', '', '', '', '', '', '{}', format('{"id":"%s","at":"%s","type":"audit.read","caller":{"name":"auditor"},"reason":"%s"}',
			id, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), repeat('x', 500))
		FROM generate_series($1::int, $2::int) i, LATERAL (SELECT 'evt_bulk_' || lpad(i::text, 9, '0') AS id, $3::timestamptz + i * interval '1 us' AS at) e`,
		r.n, r.n+n-1, r.base); err != nil {
		r.t.Fatal(err)
	}
	r.n += n
}

// fetched is how many events PostgreSQL reads while something runs on connections of its own. A connection's counts are
// there once it has ended.
func (r *record) fetched(do func(pool *pgxpool.Pool)) int64 {
	r.t.Helper()
	const counted = `SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_all_tables WHERE relname LIKE 'events\_2%'`
	before := r.read(counted)
	cfg, err := pgxpool.ParseConfig(r.db.URL(login))
	if err != nil {
		r.t.Fatal(err)
	}
	cfg.ConnConfig.RuntimeParams["application_name"] = "counted"
	pool, err := pgxpool.NewWithConfig(r.t.Context(), cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	do(pool)
	pool.Close()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for r.read("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'counted' AND datname = current_database()") > 0 {
		<-tick.C // the test's own limit ends this
	}
	return r.read(counted) - before
}

// A backlog is read once, whatever the planner believes: not all of it in each round.
func TestBacklogIsReadOnce(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	const n = 40_000
	r.backlog(n)
	lag := r.fetched(func(pool *pgxpool.Pool) {
		events, _, err := sequence.NewLog(pool, r.signer.Keys()).Lag(t.Context())
		if err != nil || events < n || events > n+1000 {
			t.Errorf("%d events wait, %v", events, err)
		}
	})
	if lag > 2000 {
		t.Errorf("the lag takes %d events of %d to read", lag, n)
	}
	for _, q := range []audit.Query{{}, {OldestFirst: true}, {Since: r.base}, {Since: r.base, OldestFirst: true}, {Type: "audit.read", Since: r.base, OldestFirst: true}} {
		page := r.fetched(func(pool *pgxpool.Pool) {
			if found, err := audit.NewLog(pool).Find(t.Context(), q); err != nil || len(found.Events) != 100 {
				t.Errorf("%+v: %d events, %v", q, len(found.Events), err)
			}
		})
		if page > 2000 {
			t.Errorf("%+v: a page takes %d events of %d to read", q, page, n)
		}
	}
	noted := r.fetched(func(pool *pgxpool.Pool) {
		for {
			var stretches int
			if err := pool.QueryRow(t.Context(), "SELECT note_event_stretches(32, 256)").Scan(&stretches); err != nil {
				t.Fatal(err)
			}
			if stretches < 32 {
				return
			}
		}
	})
	if noted > n*3/2 {
		t.Errorf("noting the times reads %d events of %d", noted, n)
	}
	rounds := r.fetched(func(pool *pgxpool.Pool) {
		seq := r.sequencerOn(pool, &published{})
		for more := true; more; {
			var err error
			if more, err = seq.Round(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
	if rounds > n*3/2 {
		t.Errorf("the rounds read %d events of %d", rounds, n)
	}
	r.settle()
	verified := r.fetched(func(pool *pgxpool.Pool) {
		report, err := sequence.NewLog(pool, r.signer.Keys()).Verify(t.Context(), nil)
		if err != nil || !report.OK() {
			t.Errorf("%+v, %v", report.Faults, err)
		}
	})
	if verified > n*3/2 {
		t.Errorf("verifying reads %d events of %d", verified, n)
	}
	ids := r.order()
	if !slices.IsSorted(ids[len(ids)-n:]) {
		t.Error("the order is not that of the record")
	}
}
