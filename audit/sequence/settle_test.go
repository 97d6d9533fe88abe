package sequence_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/audit/tree"
)

// missed writes events of two months that have no partition, and some of today.
func (r *record) missed() {
	r.t.Helper()
	february := time.Date(2020, 2, 1, 0, 0, 0, 0, time.UTC)
	for i := range 300 {
		e := r.event(r.n)
		e.At = february.Add(time.Duration(i-150) * time.Second)
		r.n++
		if err := r.store.Record(r.t.Context(), e); err != nil {
			r.t.Fatal(err)
		}
	}
	r.write(20)
}

func (r *record) names(sql string) []string {
	r.t.Helper()
	var list []string
	if err := r.admin.QueryRow(r.t.Context(), "SELECT coalesce(array_agg(x ORDER BY x), '{}') FROM ("+sql+") x (x)").Scan(&list); err != nil {
		r.t.Fatal(err)
	}
	return list
}

// shape is what a partition is: columns, constraints, indexes, owner and rights, without the names of it and its indexes.
func (r *record) shape(table string) []string {
	r.t.Helper()
	list := r.names(fmt.Sprintf(`SELECT column_name || ' ' || data_type || ' ' || is_nullable || ' ' || coalesce(column_default, '') FROM information_schema.columns WHERE table_name = '%[1]s'
		UNION ALL SELECT regexp_replace(indexdef, 'INDEX \S+ ON', 'INDEX ON') FROM pg_indexes WHERE tablename = '%[1]s'
		UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = '%[1]s'::regclass
		UNION ALL SELECT relowner::regrole || ' ' || coalesce(relacl::text, '') || ' ' || relispartition FROM pg_class WHERE oid = '%[1]s'::regclass`, table))
	for i := range list {
		list[i] = strings.ReplaceAll(list[i], table, "TABLE")
	}
	slices.Sort(list)
	return list
}

// Months whose partitions were not made in time get them; the tree is what it was, byte for byte; then they are archived
// like any other, and what is left verifies with the files.
func TestSettle(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.missed()
	signed := r.settle()
	_, before := r.offline([]tree.Checkpoint{signed})
	if n, err := r.log.Unsettled(t.Context()); n == 0 || err != nil {
		t.Errorf("%d bytes are unsettled, %v", n, err)
	}
	done, err := sequence.Settle(t.Context(), r.owner())
	if want := "[{2020-01 150} {2020-02 150}]"; err != nil || fmt.Sprint(done) != want {
		t.Fatalf("%v, %v", done, err)
	}
	if n, err := r.log.Unsettled(t.Context()); n != 0 || err != nil {
		t.Errorf("%d bytes are unsettled, %v", n, err)
	}
	report, after := r.offline([]tree.Checkpoint{signed})
	if !report.OK() || !bytes.Equal(before, after) {
		t.Errorf("the export is another one: %v", report.Faults)
	}
	own := "events_" + time.Now().UTC().Format("2006_01")
	if late, made := r.shape("events_2020_02"), r.shape(own); !slices.Equal(late, made) {
		t.Errorf("a partition made late is\n%q\none made in time\n%q", late, made)
	}
	if again, err := sequence.Settle(t.Context(), r.owner()); err != nil || len(again) != 0 {
		t.Errorf("again: %v, %v", again, err)
	}
	archived, err := r.archive("2020-03", t.TempDir(), signed)
	if err != nil || len(archived) != 2 || archived[0].Events+archived[1].Events != 300 {
		t.Fatalf("%+v, %v", archived, err)
	}
	r.write(3)
	r.settle()
	if report := r.verify(signed); !report.OK() || report.Events != 23 || report.Away != 300 {
		t.Errorf("%+v", report)
	}
}

// Whatever a clock shows is settled and archived: what stayed in events_default kept the metric from 0 for ever. So did an
// event that was never committed. What no clock shows is named, and keeps no month from being settled.
func TestSettleAnyTime(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	utc := func(year int, month time.Month) time.Time { return time.Date(year, month, 1, 0, 0, 0, 0, time.UTC) }
	for _, at := range []time.Time{utc(1, 2), utc(1970, 1), utc(2000, 1).Add(-time.Microsecond), utc(9999, 12)} {
		r.late(at)
	}
	r.write(1)
	signed := r.settle()
	done, err := sequence.Settle(t.Context(), r.owner())
	if want := "[{0001-02 1} {1970-01 1} {1999-12 1} {9999-12 1}]"; err != nil || fmt.Sprint(done) != want {
		t.Fatalf("%v, %v", done, err)
	}
	settled := func() {
		t.Helper()
		if n, err := r.log.Unsettled(t.Context()); n != 0 || err != nil {
			t.Errorf("%d bytes are unsettled, %v", n, err)
		}
	}
	settled()
	archived, err := r.archive("2000-01", t.TempDir(), signed)
	if err != nil || len(archived) != 3 || archived[0].Events+archived[1].Events+archived[2].Events != 3 {
		t.Errorf("%+v, %v", archived, err)
	}
	if report := r.verify(signed); !report.OK() || report.Events != 2 || report.Away != 3 {
		t.Errorf("%+v", report)
	}

	const row = `INSERT INTO events (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body)
		VALUES ('evt_x', '%s', 'x', 'c', '', '', '', '', '', '{}', '{}')`
	tx, err := r.admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), fmt.Sprintf(row, "1980-01-01Z")); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := r.log.Unsettled(t.Context()); n == 0 || err != nil {
		t.Errorf("what was rolled back takes %d bytes, %v", n, err)
	}
	if done, err := sequence.Settle(t.Context(), r.owner()); err != nil || len(done) != 0 {
		t.Errorf("%v, %v", done, err)
	}
	settled()

	r.tamper(fmt.Sprintf(row, "infinity"), fmt.Sprintf(row, "1980-01-01Z"))
	if done, err := sequence.Settle(t.Context(), r.owner()); err == nil || !strings.HasPrefix(err.Error(), "1 events stay in events_default") || fmt.Sprint(done) != "[{1980-01 1}]" {
		t.Errorf("%v, %v", done, err)
	}
}

// A month that fails keeps no other in events_default.
func TestSettleGoesOn(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.missed()
	r.tamper(`CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
			IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity = 'public.events_2020_01') THEN RAISE 'not this one'; END IF;
		END $$`,
		`CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION refuse()`)
	done, err := sequence.Settle(t.Context(), r.owner())
	if err == nil || !strings.HasPrefix(err.Error(), "2020-01 stays in events_default: ") || fmt.Sprint(done) != "[{2020-02 150}]" {
		t.Errorf("%v, %v", done, err)
	}
}

// Who writes meanwhile waits a moment, and what is written then is in its place too.
func TestSettleBesideWriters(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.missed()
	var writers sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	written := make([]int, 3)
	for w := range written {
		writers.Go(func() {
			for ; ctx.Err() == nil; written[w]++ {
				e := r.event(10_000*(w+1) + written[w])
				if e.At = time.Date(2020, 1, 20, 0, 0, w, 0, time.UTC); written[w]%2 == 0 {
					e.At = r.base
				}
				if err := r.store.Record(t.Context(), e); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done, err := sequence.Settle(t.Context(), r.owner())
	stop()
	writers.Wait()
	if err != nil || len(done) != 2 {
		t.Fatalf("%v, %v", done, err)
	}
	r.n += written[0] + written[1] + written[2]
	signed := r.settle()
	if report := r.verify(signed); !report.OK() || report.Events != int64(r.n) {
		t.Errorf("%+v", report.Faults)
	}
	r.sequenced()
	if n := r.read("SELECT count(*) FROM events_default"); n != 0 {
		t.Errorf("%d events are left", n)
	}
}

// A crash at any of its statements leaves all as it was; a reader that takes too long makes it give up. Then it is run
// again.
func TestSettleIsCutOff(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.missed()
	signed := r.settle()
	before := r.names("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'events'::regclass")
	// The crash: the connection is cut when the partition is attached, after all was moved.
	r.tamper(`CREATE FUNCTION cut() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); END $$`,
		`CREATE EVENT TRIGGER cut ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION cut()`)
	if done, err := sequence.Settle(t.Context(), r.owner()); err == nil || len(done) != 0 || !strings.HasPrefix(err.Error(), "2020-01 stays in events_default: ") {
		t.Errorf("%v, %v", done, err)
	}
	r.tamper("DROP EVENT TRIGGER cut")
	reader, err := r.admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Exec(t.Context(), "SELECT FROM events LIMIT 1"); err != nil {
		t.Fatal(err)
	}
	_, err = sequence.Settle(t.Context(), r.owner())
	if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != "55P03" { // lock_not_available
		t.Errorf("beside a long reader: %v", err)
	}
	if err := reader.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := r.names("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'events'::regclass"); !slices.Equal(before, after) || r.read("SELECT count(*) FROM events_default") != 300 {
		t.Errorf("the partitions are %q", after)
	}
	if report := r.verify(signed); !report.OK() {
		t.Errorf("%v", report.Faults)
	}
	if done, err := sequence.Settle(t.Context(), r.owner()); err != nil || len(done) != 2 {
		t.Errorf("run again: %v, %v", done, err)
	}
	if report := r.verify(signed); !report.OK() {
		t.Errorf("%v", report.Faults)
	}
}
