package sequence_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/audit/tree"
)

// note notes the times of all events, 16 to a row, 16 rows to one of the upper level.
func (r *record) note() {
	r.t.Helper()
	limit := time.After(2 * time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if r.read("SELECT note_event_stretches(1024, 16)") > 0 {
			continue
		}
		// Another test's transaction, in another database of the server, holds the newest back.
		if r.read("SELECT count(*) FROM event_stretches WHERE level = 0") >= r.read("SELECT count(*) / 16 FROM events") {
			return
		}
		select {
		case <-limit:
			r.t.Fatal("the newest events are never noted")
		case <-tick.C:
		}
	}
}

// Who alters the time ranges hides events from searches by time. verify recomputes them.
func TestAlteredTimeRangesAreNamed(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.write(1500)
	r.settle()
	r.note()
	r.write(100)
	r.note() // of these none is in the tree
	r.tamper("CREATE TABLE kept AS TABLE event_stretches")
	if report := r.verify(); !report.OK() || len(report.Faults) > 0 {
		t.Fatal(report.Faults)
	}
	row := func(level, n int) string {
		return fmt.Sprintf("(level, after_xid, after_seq) = (SELECT level, after_xid, after_seq FROM event_stretches WHERE level = %d ORDER BY after_xid, after_seq OFFSET %d LIMIT 1)", level, n)
	}
	for name, statement := range map[string]string{
		"its end is earlier":           "UPDATE event_stretches SET latest = latest - interval '1 us' WHERE " + row(0, 7),
		"its start is later":           "UPDATE event_stretches SET earliest = earliest + interval '1 us' WHERE " + row(0, 80),
		"one that is not in the tree":  "UPDATE event_stretches SET earliest = earliest + interval '1 us' WHERE " + row(0, 98),
		"of the upper level":           "UPDATE event_stretches SET latest = latest - interval '100 us' WHERE " + row(1, 3),
		"both levels":                  "UPDATE event_stretches SET latest = latest - interval '15 us'",
		"it has no events":             "UPDATE event_stretches SET earliest = 'infinity', latest = '-infinity' WHERE " + row(0, 33),
		"it is wider":                  "UPDATE event_stretches SET latest = 'infinity' WHERE " + row(0, 5),
		"it ends elsewhere":            "UPDATE event_stretches SET seq = seq + 3 WHERE " + row(0, 9),
		"it ends before":               "UPDATE event_stretches SET seq = seq - 3 WHERE " + row(1, 2),
		"it begins elsewhere":          "UPDATE event_stretches SET after_seq = after_seq + 3 WHERE " + row(0, 9),
		"one is gone":                  "DELETE FROM event_stretches WHERE " + row(0, 20),
		"one of the upper level":       "DELETE FROM event_stretches WHERE " + row(1, 2),
		"the first is gone":            "DELETE FROM event_stretches WHERE " + row(0, 0),
		"the first of the upper level": "DELETE FROM event_stretches WHERE " + row(1, 0),
		"a level is gone":              "DELETE FROM event_stretches WHERE level = 1",
		"all are gone":                 "DELETE FROM event_stretches",
		"events to come are ruled out": "INSERT INTO event_stretches SELECT 0, xid, seq, '18446744073709551615', 9, 'infinity', '-infinity' FROM event_stretches WHERE level = 0 ORDER BY xid DESC, seq DESC LIMIT 1",
		"one inside another": "INSERT INTO event_stretches SELECT 0, after_xid, after_seq + 1, xid, seq, 'infinity', '-infinity' FROM event_stretches WHERE " +
			row(0, 11),
	} {
		r.tamper(statement)
		report := r.verify()
		if f, bad := report.First(); !bad || f.What != tree.BadTimes || report.OK() {
			t.Errorf("%s: %v", name, report.Faults)
		}
		r.tamper("TRUNCATE event_stretches", "INSERT INTO event_stretches TABLE kept")
	}
	if report := r.verify(); !report.OK() {
		t.Error("put right again:", report.Faults)
	}
}

// The report says which events a search by time no longer finds.
func TestHiddenFromSearchesByTime(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.write(1000)
	r.settle()
	r.note()
	at := r.base.Add(500 * time.Microsecond)
	find := func() int {
		p, err := audit.NewLog(r.store.Pool()).Find(t.Context(), audit.Query{Since: at, Until: at.Add(10 * time.Microsecond)})
		if err != nil {
			t.Fatal(err)
		}
		return len(p.Events)
	}
	if n := find(); n != 10 {
		t.Fatalf("%d events", n)
	}
	r.tamper("UPDATE event_stretches SET latest = earliest WHERE level = 0 AND earliest BETWEEN '"+at.Add(-16*time.Microsecond).Format(time.RFC3339Nano)+"' AND '"+at.Format(time.RFC3339Nano)+"'",
		"UPDATE event_stretches SET latest = earliest WHERE level = 1")
	if n := find(); n == 10 {
		t.Fatal("nothing is hidden")
	}
	var said []string
	for _, f := range r.verify().Faults {
		said = append(said, f.String())
	}
	if text := strings.Join(said, "\n"); !strings.Contains(text, "times: events 496 to 511: their time range of level 0") || !strings.Contains(text, "miss some of them") {
		t.Error(text)
	}
}

// Months that were archived take their ranges along, but for those that have other events too.
func TestTimeRangesOfArchivedMonths(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.old(t)
	r.settle()
	r.note()
	if done, err := r.archive("2020-02", t.TempDir()); err != nil || len(done) == 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	if report := r.verify(); len(report.Faults) > 0 || report.Away == 0 {
		t.Errorf("%d away, %v", report.Away, report.Faults)
	}
	r.tamper("UPDATE event_stretches SET latest = earliest WHERE earliest < '2020-02-01' AND latest >= '2020-02-01' AND latest > earliest")
	if f, bad := r.verify().First(); !bad || f.What != tree.BadTimes {
		t.Errorf("%v, %v", f, bad)
	}
}

// Each stored checkpoint is looked at, also those between the ones that narrow a fault down.
func TestOldAlteredCheckpointsAreNamed(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	for range 30 {
		r.write(3)
		r.settle()
	}
	r.tamper("CREATE TABLE kept AS SELECT id, size, at, note FROM tree_checkpoints")
	if report := r.verify(); !report.OK() {
		t.Fatal(report.Faults)
	}
	const old = " WHERE id = (SELECT id FROM tree_checkpoints WHERE size = 30 ORDER BY id LIMIT 1)"
	for name, set := range map[string]string{
		"the root":        `note = regexp_replace(note, '^(\S+\n\d+\n)....', '\1AAAA')`,
		"the size":        `note = regexp_replace(note, '\n30\n', E'\n29\n')`,
		"the signature":   `note = regexp_replace(note, '....\n$', E'AAA=\n')`,
		"no signature":    `note = regexp_replace(note, '\n\n.*', E'\n\n')`,
		"no note":         `note = 'x'`,
		"another log":     `note = regexp_replace(note, '^taskpass', 'mallory')`,
		"the column size": `size = 31`,
		"the column at":   `at = at + interval '1 s'`,
		"at no time":      `at = 'infinity'`,
	} {
		r.tamper("UPDATE tree_checkpoints SET " + set + old)
		report := r.verify()
		if f, bad := report.First(); !bad || f.What != tree.Unsigned || f.Index != 29 && f.Index != 30 || len(report.Faults) != 1 {
			t.Errorf("%s: %v", name, report.Faults)
		}
		r.tamper("UPDATE tree_checkpoints c SET size = k.size, at = k.at, note = k.note FROM kept k WHERE k.id = c.id")
	}
	if report := r.verify(); !report.OK() {
		t.Error("put right again:", report.Faults)
	}
}

// A tree that went on under another name still verifies by each name's key.
func TestCheckpointsOfAnotherName(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	for range 10 {
		r.write(2)
		r.settle()
	}
	r.tamper(`INSERT INTO tree_checkpoints (size, at, note) SELECT size, at, regexp_replace(note, '^taskpass', 'later') FROM tree_checkpoints ORDER BY id DESC LIMIT 1`)
	if report := r.verify(); !report.OK() {
		t.Error("before another log:", report.Faults)
	}
	r.write(2)
	r.settle()
	if f, bad := r.verify().First(); !bad || f.What != tree.Unsigned {
		t.Errorf("within: %v", f)
	}
	r.tamper(`DELETE FROM tree_checkpoints WHERE id < (SELECT id FROM tree_checkpoints WHERE note LIKE 'later%')`)
	if report := r.verify(); !report.OK() {
		t.Error("after another log:", report.Faults)
	}
}
