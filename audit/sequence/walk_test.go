package sequence_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/audit/tree"
)

// keep copies the record and its tree aside, and gives what brings them back.
func (r *record) keep() (restore func()) {
	r.t.Helper()
	tables := []string{"events", "tree_leaves", "tree_tiles", "tree_checkpoints"}
	for _, table := range tables {
		r.tamper("CREATE TABLE kept_" + table + " AS TABLE " + table)
	}
	return func() {
		r.t.Helper()
		for _, table := range tables {
			r.tamper("TRUNCATE "+table, "INSERT INTO "+table+" OVERRIDING SYSTEM VALUE TABLE kept_"+table)
		}
	}
}

// Thousands of leaves that are gone, one after the other, once ended verify in an error, and so did thousands of events too
// many in one place. The first is named, the number of the others is right, and what comes after is read as ever: the
// event that is altered near the end is counted too. Both ways of verifying say the same.
func TestThousandsAtOnce(t *testing.T) {
	t.Parallel()
	const (
		events = `DELETE FROM events WHERE (xid, seq) IN (SELECT xid, seq FROM tree_leaves WHERE idx BETWEEN 500 AND 10499)`
		leaves = `DELETE FROM tree_leaves WHERE idx BETWEEN 500 AND 10499`
		tiles  = `DELETE FROM tree_tiles WHERE level = 0 AND n BETWEEN 1 AND 41`
		one    = `DELETE FROM events WHERE id = (SELECT id FROM events ORDER BY xid, seq OFFSET 5000 LIMIT 1)`
		crowd  = `INSERT INTO events (id, xid, seq, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body)
			OVERRIDING SYSTEM VALUE SELECT 'evt_new' || i, e.xid, e.seq, e.at, e.type, e.caller, e.task_id, e.agent_id, e.profile, e.provider, e.credential_id, e.upstream_ids,
			replace(e.body, e.id, 'evt_new' || i) FROM events e JOIN tree_leaves l USING (xid, seq), generate_series(1, 10000) i WHERE l.idx = 500`
	)
	r := newRecord(t)
	r.write(11_000)
	signed := r.settle()
	restore := r.keep()
	cases := []struct {
		name string
		sql  []string
		want tree.Fault
		all  int // faults; in the database each tile that is gone is one too
	}{
		{"leaves and their tiles", []string{leaves, tiles}, tree.Fault{What: tree.BadTree, Index: 500}, 10_001},
		{"leaves", []string{leaves}, tree.Fault{What: tree.BadTree, Index: 500}, 10_001},
		{"events too many at one place", []string{crowd}, tree.Fault{What: tree.Inserted, Index: 500}, 10_001},
		{"leaves, tiles and one of their events", []string{leaves, tiles, one}, tree.Fault{What: tree.Inserted, Index: 500}, 10_002},
		{"leaves and their events", []string{events, leaves}, tree.Fault{What: tree.Removed, Index: 500}, 10_001},
		{"leaves, tiles and events", []string{events, leaves, tiles}, tree.Fault{What: tree.Removed, Index: 500, To: 10_500}, 3}, // and the range of the whole
		{"every second leaf, and the tiles", []string{leaves + " AND idx % 2 = 0", tiles}, tree.Fault{What: tree.BadTree, Index: 500}, 5001},
	}
	if os.Getenv("TASKPASS_LONG") == "" {
		cases = cases[:1]
	}
	for _, c := range cases {
		r.tamper(`UPDATE events SET body = body || ' ' WHERE (xid, seq) = (SELECT xid, seq FROM tree_leaves WHERE idx = 10990)`)
		r.tamper(c.sql...)
		offline, _ := r.offline([]tree.Checkpoint{signed})
		for how, report := range map[string]tree.Report{"in the database": r.verify(signed), "offline": offline} {
			at := slices.IndexFunc(report.Faults, func(f tree.Fault) bool {
				return f.What == c.want.What && f.Index == c.want.Index && f.To == c.want.To
			})
			if at < 0 || at > 0 && c.want.To == 0 || report.OK() {
				t.Errorf("%s, %s: %v", c.name, how, report.Faults[:min(3, len(report.Faults))])
			}
			want := c.all
			if how == "in the database" && slices.Contains(c.sql, tiles) {
				want += 41
			}
			if all := len(report.Faults) + report.More; all != want {
				t.Errorf("%s, %s: %d faults, want %d: %v", c.name, how, all, want, report.Faults[len(report.Faults)-1])
			}
		}
		restore()
	}
	if report := r.verify(signed); !report.OK() {
		t.Errorf("as it was: %s", strings.TrimSpace(report.Faults[0].String()))
	}
}

// What waits for the tree is no fault: it is below what the server has not had yet.
func TestWhatWaitsIsNotInserted(t *testing.T) {
	t.Parallel()
	r, signed := attacked(t)
	r.write(5)
	offline, _ := r.offline(signed)
	for how, report := range map[string]tree.Report{"in the database": r.verify(signed...), "offline": offline} {
		if !report.OK() || report.Events != 1000 {
			t.Errorf("%s: %d events, %v", how, report.Events, report.Faults)
		}
	}
}
