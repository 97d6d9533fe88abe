package store_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/postgres"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/migrations"
)

// hostile are defaults that somebody may have given a role, a database or a server for other programs' sake.
var hostile = map[string]string{
	"default_transaction_isolation": "serializable", "default_transaction_deferrable": "on", "search_path": "elsewhere",
	"lock_timeout": "1ms", "statement_timeout": "2s", "idle_in_transaction_session_timeout": "1s", "idle_session_timeout": "2s",
	"DateStyle": "SQL, DMY", "TimeZone": "Asia/Kolkata", "IntervalStyle": "sql_standard", "bytea_output": "escape",
	"extra_float_digits": "-15", "standard_conforming_strings": "off", "client_encoding": "LATIN1", "row_security": "off",
	"synchronous_commit": "off", "transform_null_equals": "on", "array_nulls": "off", "gin_fuzzy_search_limit": "1",
	"plan_cache_mode": "force_generic_plan", "enable_indexscan": "off", "enable_sort": "off", "enable_seqscan": "off",
	"enable_bitmapscan": "off", "enable_nestloop": "off", "enable_hashjoin": "off", "enable_mergejoin": "off",
	"enable_partition_pruning": "off", "tcp_keepalives_idle": "0", "xmlbinary": "hex", "check_function_bodies": "off",
	"join_collapse_limit": "1", "from_collapse_limit": "1", "geqo_threshold": "2", "enable_memoize": "off", "enable_gathermerge": "off",
}

// Defaults of a role or a database change nothing of a session, and nothing of what the store does: not one of 40 writes,
// 10 at once, is lost.
func TestDefaultsChangeNothing(t *testing.T) {
	t.Parallel()
	db := own(t)
	super := admin(t, db)
	usual := settingsOf(t, open(t, db))
	for _, statement := range []string{"CREATE SCHEMA elsewhere", "CREATE TABLE elsewhere.versions ()"} {
		if _, err := super.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range hostile {
		if _, err := super.Exec(t.Context(), "ALTER ROLE "+login+" IN DATABASE "+db.name+" SET "+name+" = '"+value+"'"); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	s := open(t, db, func(c *store.Config) { c.MaxConns = 12 })
	if diff := cmp.Diff(usual, settingsOf(t, s)); diff != "" {
		t.Errorf("the session (-usual +with hostile defaults): %s", diff)
	}
	latest, err := migrations.Latest()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context(), latest); err != nil {
		t.Error(err)
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 4 {
				c := credential()
				c.Caller = "one" // so that all change the same counts
				if err := s.Begin(t.Context(), intent([]broker.Event{event(broker.EventIntended, c)}, c)); err != nil {
					t.Errorf("Begin: %v", err)
					return
				}
				if err := s.Activate(t.Context(), into(c, broker.StateActive), []byte{0xff, '\\', 0}, start, event(broker.EventIssued, c)); err != nil {
					t.Errorf("Activate: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if n := read[int](t, s.Pool(), "SELECT count(*) FROM versions WHERE state = 'active' AND sealed = '\\xff5c00'"); n != 40 {
		t.Errorf("%d of 40 are there", n)
	}
}

// settingsOf is what of the hostile settings the store's sessions have.
func settingsOf(t *testing.T, s *store.Store) map[string]string {
	t.Helper()
	got := map[string]string{}
	for name := range hostile {
		got[name] = read[string](t, s.Pool(), "SELECT current_setting($1)", name)
	}
	return got
}

// A default that only a superuser may change, and that would pass over every trigger, is not worked with.
func TestTriggersCannotBeSwitchedOff(t *testing.T) {
	t.Parallel()
	db := own(t)
	if _, err := admin(t, db).Exec(t.Context(), "ALTER ROLE "+login+" IN DATABASE "+db.name+" SET session_replication_role = 'replica'"); err != nil {
		t.Fatal(err)
	}
	s := open(t, db)
	if err := s.Check(t.Context(), 1); pgCode(err) != "42501" || !strings.Contains(postgres.Reason(err), "settings") {
		t.Errorf("%v", err)
	}
}

// While the database is read-only every write fails, Check says why, and what can be read is read. Once it is writable
// again the next write works: no session that was opened meanwhile stays in the pool.
func TestReadOnlyIsNotKept(t *testing.T) {
	t.Parallel()
	db := own(t)
	super := admin(t, db)
	s := open(t, db)
	latest, err := migrations.Latest()
	if err != nil {
		t.Fatal(err)
	}
	c := begin(t, s, credential())
	do := func(statement string) {
		t.Helper()
		if _, err := super.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		do("ALTER DATABASE " + db.name + " SET default_transaction_read_only = on")
		do("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
		var fault postgres.Fault
		eventually(t, "Check says that it is read-only", func() bool {
			return errors.As(s.Check(t.Context(), latest), &fault) && strings.Contains(string(fault), "read-only")
		})
		for range 8 { // more than the pool has
			one := credential()
			err := s.Begin(t.Context(), intent([]broker.Event{event(broker.EventIntended, one)}, one))
			if pgCode(err) != "25006" {
				t.Fatalf("a write: %v", err)
			}
		}
		if _, err := s.Credential(t.Context(), c.ID); err != nil {
			t.Errorf("a read: %v", err)
		}
		do("ALTER DATABASE " + db.name + " RESET default_transaction_read_only")
		if err := s.Check(t.Context(), latest); err != nil {
			t.Errorf("writable again: %v", err)
		}
		for range 8 {
			begin(t, s, credential())
		}
	}
}

// A server that ends sessions costs one write, not as many as the pool has connections.
func TestLostSessionsAreDropped(t *testing.T) {
	t.Parallel()
	db := own(t)
	super := admin(t, db)
	s := open(t, db)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() { _, _ = s.Pool().Exec(t.Context(), "SELECT pg_sleep(0.2)") })
	}
	wg.Wait()
	if n := s.Pool().Stat().TotalConns(); n < 4 {
		t.Fatalf("the pool has %d connections; this test shows nothing", n)
	}
	if n := read[int](t, super, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid()`); n < 4 {
		t.Fatalf("%d were ended", n)
	}
	failed := 0
	for range 8 {
		if _, err := s.Pool().Exec(t.Context(), "SELECT 1"); err != nil {
			failed++
		}
	}
	if failed > 1 {
		t.Errorf("%d statements failed", failed)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-limit:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}
