package sequence_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/migrations"
)

// old makes the partitions of two months that are over, and writes events of them and of today.
func (r *record) old(t *testing.T) {
	for _, month := range []int{1, 2} {
		r.tamper(fmt.Sprintf(`CREATE TABLE events_2020_%02d PARTITION OF events FOR VALUES FROM ('2020-%02d-01 00:00Z') TO ('2020-%02d-01 00:00Z')`, month, month, month+1),
			fmt.Sprintf("ALTER TABLE events_2020_%02d OWNER TO %s", month, migrations.OwnerRole))
	}
	february := time.Date(2020, 2, 1, 0, 0, 0, 0, time.UTC)
	for i := range 600 {
		e := r.event(r.n)
		// The clocks of two replicas differ by a minute, so that the months overlap in the order of the record.
		e.At = february.Add(time.Duration(i-300)*time.Second + time.Duration(i%2)*time.Minute)
		r.n++
		if err := r.store.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	r.write(50)
}

func (r *record) owner() *pgxpool.Pool {
	r.t.Helper()
	cfg, err := pgxpool.ParseConfig(r.db.AdminURL)
	if err != nil {
		r.t.Fatal(err)
	}
	cfg.ConnConfig.RuntimeParams["role"] = migrations.OwnerRole
	pool, err := pgxpool.NewWithConfig(r.t.Context(), cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(pool.Close)
	return pool
}

func (r *record) archive(before, dir string, brought ...tree.Checkpoint) ([]sequence.Archived, error) {
	r.t.Helper()
	month, err := time.Parse("2006-01", before)
	if err != nil {
		r.t.Fatal(err)
	}
	return sequence.Archive(r.t.Context(), r.owner(), r.signer.Keys(), month, dir, brought)
}

// late writes an event that a wrong clock dates.
func (r *record) late(at time.Time) {
	r.t.Helper()
	e := r.event(r.n)
	e.At = at
	r.n++
	if err := r.store.Record(r.t.Context(), e); err != nil {
		r.t.Fatal(err)
	}
}

// readFile is what an auditor finds in a file.
func (r *record) readFile(name string, brought tree.Checkpoint) tree.Report {
	r.t.Helper()
	file, err := os.Open(name)
	if err != nil {
		r.t.Fatal(err)
	}
	defer file.Close()
	h, lines, err := tree.Read(file)
	if err != nil {
		r.t.Fatal(err)
	}
	report, err := tree.Verify(h, lines, []tree.Checkpoint{brought})
	if err != nil || !report.OK() {
		r.t.Fatalf("%s: %+v, %v", name, report, err)
	}
	return report
}

// Two months leave the database; their files verify alone, what is left verifies, and proofs of what left still hold.
func TestArchive(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.old(t)
	c := r.settle()
	ids, dir := r.order(), t.TempDir()
	if n := r.read("SELECT note_event_stretches(200, 5)"); n < 120 {
		t.Fatalf("the times of %d stretches are noted", n)
	}
	done, err := r.archive("2020-03", dir, c)
	if err != nil || len(done) != 2 {
		t.Fatalf("%+v, %v", done, err)
	}
	// Searches do not look for what is gone: only notes of stretches that began in one month and ended in another stay.
	if n := r.read("SELECT count(*) FROM event_stretches WHERE earliest < '2020-03-01'"); n == 0 || n > 30 {
		t.Errorf("%d notes of what is gone", n)
	}
	if n := r.read("SELECT count(*) FROM event_stretches WHERE earliest = 'infinity'"); n != 2 {
		t.Errorf("the first stretches are gone: %d", n)
	}
	if done[0].Events+done[1].Events != 600 || done[0].Month != "2020-01" || done[0].Events < 200 || done[1].Events < 200 {
		t.Errorf("%+v", done)
	}
	if n := r.read("SELECT count(*) FROM events"); n != 50 {
		t.Errorf("%d events are left", n)
	}
	for i, a := range done {
		if report := r.readFile(a.File, c); report.Events < a.Events || (report.Away > 0) != (i == 1) {
			t.Errorf("%s: %+v", a.Month, report)
		}
	}
	r.write(5)
	r.settle()
	report := r.verify(c)
	if !report.OK() || report.Events != 55 || report.Away != 600 {
		t.Errorf("what is left: %+v", report)
	}
	in, err := r.log.Include(t.Context(), ids[10], 0, 0)
	if err != nil || in.Body != nil || !in.Away || in.Index != 10 {
		t.Errorf("of an archived event: %+v, %v", in, err)
	}
	// Again changes nothing.
	if again, err := r.archive("2020-03", dir); err != nil || len(again) != 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
	// An event that is removed now is not taken for archived.
	r.tamper("DELETE FROM events WHERE id = '" + ids[620] + "'")
	if f, _ := r.verify().First(); f.What != tree.Removed || f.Index != 620 {
		t.Errorf("%v", f)
	}
	for id, index := range map[string]int64{ids[620]: 0, "": 620} {
		if in, err := r.log.Include(t.Context(), id, index, 0); !errors.Is(err, sequence.ErrRemoved) {
			t.Errorf("its proof: %+v, %v", in, err)
		}
	}
	// What is there is not away, whatever is said of its month.
	r.tamper(`INSERT INTO tree_archives (month, from_idx, to_idx, events, size, sha256)
		SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM'), 0, 1, 1, 1, sha256('') FROM tree_leaves WHERE idx = 621`)
	if in, err := r.log.Include(t.Context(), ids[621], 0, 0); err != nil || in.Body == nil || in.Away {
		t.Errorf("its neighbour's: %+v, %v", in, err)
	}
}

// An event that a wrong clock dates into an archived month once ended archiving for ever: its table's name was taken, then
// its file's, then the month's row. Each time it goes into a file of its own, and verify takes them all.
func TestArchiveAgain(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.old(t)
	signed, dir := r.settle(), t.TempDir()
	done, err := r.archive("2020-02", dir, signed)
	if err != nil || len(done) != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	reports := []tree.Report{r.readFile(done[0].File, signed)}
	for i, want := range []string{"audit-2020-01-2.ndjson", "audit-2020-01-3.ndjson", "audit-2020-01-4.ndjson"} {
		switch i {
		case 1:
			r.tamper("DROP TABLE events_2020_01")
		case 2:
			dir = t.TempDir()
		}
		r.late(time.Date(2020, 1, 15, 0, 0, i, 0, time.UTC))
		signed = r.settle()
		if settled, err := sequence.Settle(t.Context(), r.owner()); err != nil || fmt.Sprint(settled) != "[{2020-01 1}]" {
			t.Fatalf("%v, %v", settled, err)
		}
		before := []string{"2020-02", "2020-03", "2020-03"}[i]
		done, err := r.archive(before, dir, signed)
		if err != nil || len(done) != 1+i%2 || done[0].Month != "2020-01" || done[0].Events != 1 || filepath.Base(done[0].File) != want {
			t.Fatalf("%+v, %v", done, err)
		}
		for _, a := range done {
			reports = append(reports, r.readFile(a.File, signed))
		}
	}
	whole := r.verify(signed)
	if !whole.OK() || whole.Events != 50 || whole.Away != 603 {
		t.Errorf("%+v", whole)
	}
	if missing := tree.Missing(append(reports, whole)); len(missing) != 0 {
		t.Errorf("no file has %v", missing)
	}
	if missing := tree.Missing(append(reports[:1:1], whole)); len(missing) == 0 {
		t.Error("what one file has not is not missed")
	}
	if made := r.names("SELECT relname::text FROM pg_class WHERE relname ~ '^events_2020_0[12](_\\d)?$'"); fmt.Sprint(made) != "[events_2020_01 events_2020_01_2 events_2020_01_3 events_2020_02]" {
		t.Errorf("the tables for the owner to drop are %q", made)
	}
}

// Who holds the record is not waited for again and again: meanwhile nothing can be written.
func TestArchiveBesideAReader(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.old(t)
	signed := r.settle()
	reader, err := r.admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Exec(t.Context(), "SELECT FROM events LIMIT 1"); err != nil {
		t.Fatal(err)
	}
	done, err := r.archive("2020-03", t.TempDir(), signed)
	if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != "55P03" || len(done) != 0 || strings.Contains(err.Error(), "2020-02") {
		t.Errorf("%+v, %v", done, err)
	}
	if err := reader.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A walk through the record that had begun when a month was archived once called that month's events removed.
func TestArchiveBesideVerify(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.old(t)
	signed := r.settle()
	h, lines, err := r.log.Export(t.Context(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if done, err := r.archive("2020-03", t.TempDir(), signed); err != nil || len(done) != 2 {
		t.Fatalf("%+v, %v", done, err)
	}
	report, err := tree.Verify(h, lines, []tree.Checkpoint{signed})
	if err != nil || !report.OK() || report.Events != 50 || report.Away != 600 {
		first, _ := report.First()
		t.Errorf("%v and %d more, %v", first, report.More, err)
	}
}

// Nothing leaves the database that does not verify, is not in the tree, or is of this month; and a month that stays keeps
// no other from leaving.
func TestArchiveKeepsWhatIsNotProven(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		before string
		do     func(r *record)
		want   string
		left   []string
	}{
		"an altered event": {"2020-03", func(r *record) { r.tamper("UPDATE events SET body = body || ' ' WHERE id = 'evt_00007'") }, "altered: event 7", []string{"2020-01"}},
		"an event that is not in the tree": {"2020-03", func(r *record) {
			r.late(time.Date(2020, 1, 5, 0, 0, 0, 0, time.UTC))
		}, "is not in the tree", []string{"2020-01"}},
		"a file that is there": {"2020-03", func(*record) {}, "audit-2020-01.ndjson: not an export as it was written", []string{"2020-01"}},
		"this month":           {"2999-01", func(*record) {}, "what is before 2999-01 is not over: the last month to archive before is this one", []string{"2020-01", "2020-02"}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := newRecord(t)
			r.old(t)
			signed := r.settle()
			dir := t.TempDir()
			if strings.Contains(what, "file") {
				if err := os.WriteFile(filepath.Join(dir, "audit-2020-01.ndjson"), []byte("mine"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			c.do(r)
			done, err := r.archive(c.before, dir, signed)
			if err == nil || !strings.Contains(err.Error(), c.want) || len(done)+len(c.left) != 2 {
				t.Errorf("%+v, %v", done, err)
			}
			left := r.names("SELECT DISTINCT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM') FROM events WHERE at < '2020-03-01 00:00Z'")
			if !slices.Equal(left, c.left) || r.read("SELECT count(*) FROM events WHERE at >= '2020-03-01 00:00Z'") != 50 {
				t.Errorf("%q is left", left)
			}
		})
	}
}

// A run that was cut off after its file was written is run again: the file is taken if it is this month's, whole, and as
// it was signed.
func TestArchiveIsRunAgain(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.old(t)
	signed := r.settle()
	dir := t.TempDir()
	r.tamper(`CREATE FUNCTION cut() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); END $$`,
		`CREATE EVENT TRIGGER cut ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION cut()`)
	if done, err := r.archive("2020-02", dir, signed); err == nil || len(done) != 0 || r.read("SELECT count(*) FROM events") != 650 {
		t.Fatalf("%v, %v", done, err)
	}
	r.tamper("DROP EVENT TRIGGER cut")
	file := filepath.Join(dir, "audit-2020-01.ndjson")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// Of some events only the hashes are there, as if they were archived: it verifies, and is not enough.
	event := regexp.MustCompile(`(?m),"event":\{"id":"evt_00007".*\}\}$`)
	for what, change := range map[string]func(string) string{
		"does not verify":              func(s string) string { return strings.Replace(s, "agent-17", "agent-18", 1) },
		"are in the database":          func(s string) string { return event.ReplaceAllString(s, `,"archived":"2020-01"}`) },
		"not an export":                func(s string) string { return s[:len(s)/2] },
		"other events than this month": func(string) string { return r.exported(0, 5) },
	} {
		if changed := change(string(text)); changed == string(text) {
			t.Fatalf("%s: it is not changed", what)
		} else if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		if done, err := r.archive("2020-02", dir, signed); err == nil || !strings.Contains(err.Error(), what) || len(done) != 0 {
			t.Errorf("%s: %v, %v", what, done, err)
		}
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	done, err := r.archive("2020-02", dir, signed)
	if err != nil || len(done) != 1 || done[0].Events != r.read("SELECT 650 - count(*) FROM events") {
		t.Errorf("run again: %+v, %v", done, err)
	}
}

// exported is an export of some leaves.
func (r *record) exported(from, to int64) string {
	r.t.Helper()
	h, lines, err := r.log.Export(r.t.Context(), from, to)
	if err != nil {
		r.t.Fatal(err)
	}
	var text strings.Builder
	if _, err := tree.Write(&text, h, lines); err != nil {
		r.t.Fatal(err)
	}
	return text.String()
}

// P4, for the tree: the service adds to it, and can do nothing else. The auditor reads, and nothing else.
func TestRightsOnTheTree(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.write(300)
	r.settle()
	auditor := "auditor_" + string(broker.NewVersionID())
	r.tamper("CREATE ROLE "+auditor+" LOGIN", "GRANT "+migrations.AuditorRole+" TO "+auditor)
	reader, err := pgxpool.New(t.Context(), r.db.URL(auditor))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		reader.Close()
		if _, err := r.admin.Exec(context.Background(), "DROP ROLE "+auditor); err != nil {
			t.Error(err)
		}
	})
	for _, table := range []string{"events", "tree_leaves", "tree_tiles", "tree_checkpoints", "tree_archives"} {
		for _, sql := range []string{"UPDATE %s SET %s = %[2]s", "DELETE FROM %s", "TRUNCATE %s", "DROP TABLE %s", "ALTER TABLE %s RENAME TO x"} {
			column := map[string]string{"events": "id", "tree_leaves": "idx", "tree_tiles": "n", "tree_checkpoints": "note", "tree_archives": "month"}[table]
			if strings.Contains(sql, "UPDATE") {
				sql = fmt.Sprintf(sql, table, column)
			} else {
				sql = fmt.Sprintf(sql, table)
			}
			for who, pool := range map[string]*pgxpool.Pool{"service": r.store.Pool(), "auditor": reader} {
				_, err := pool.Exec(t.Context(), sql)
				if pg, ok := err.(*pgconn.PgError); !ok || pg.Code != "42501" { //nolint:errorlint // as pgx returns it
					t.Errorf("%s: %s: %v", who, sql, err)
				}
			}
		}
		if _, err := reader.Exec(t.Context(), "INSERT INTO "+table+" SELECT * FROM "+table); err == nil {
			t.Errorf("the auditor inserts into %s", table)
		}
	}
	for _, table := range []string{"callers", "tokens", "credentials", "versions", "tickets", "idempotency"} {
		if _, err := reader.Exec(t.Context(), "SELECT FROM "+table); err == nil {
			t.Errorf("the auditor reads %s", table)
		}
	}
	if _, err := r.store.Pool().Exec(t.Context(), "INSERT INTO tree_archives (month, from_idx, to_idx, events, size, sha256) VALUES ('2020-01', 0, 1, 1, 1, sha256(''))"); err == nil {
		t.Error("the service says that months are archived")
	}
	report, err := sequence.NewLog(reader, r.signer.Keys()).Verify(t.Context(), nil)
	if err != nil || !report.OK() || report.Events != 300 {
		t.Errorf("the auditor verifies: %+v, %v", report, err)
	}
}
