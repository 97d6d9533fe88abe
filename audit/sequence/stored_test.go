package sequence_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/audit/tree"
)

// named is what and where of every fault of a report.
func named(report tree.Report) string {
	var list []string
	for _, f := range report.Faults {
		list = append(list, fmt.Sprintf("%s %d %d", f.What, f.Index, f.To))
	}
	return strings.Join(list, ", ")
}

// Rows of the tree that no event is read by, of a tree of 1000 leaves. A broker refused over most of them, and verify
// called the database verified.
func TestStoredRowsAreVerified(t *testing.T) {
	t.Parallel()
	const leaf = `INSERT INTO tree_leaves VALUES (%s, 'evt', '9223372036854775807', 1, now(), sha256('x'))`
	for what, c := range map[string]struct {
		sql, want string
		refused   bool // by a broker
	}{
		"roots of tiles":       {"UPDATE tree_tiles SET root = sha256('x') WHERE level = 0", "tree 0 256, tree 256 512, tree 512 768", true},
		"no tiles":             {"DELETE FROM tree_tiles", "tree 0 256, tree 256 512, tree 512 768", true},
		"one tile is gone":     {"DELETE FROM tree_tiles WHERE n = 1", "tree 256 512", true},
		"a leaf far beyond":    {fmt.Sprintf(leaf, "5000"), "tree 5000 0", true},
		"a leaf at the end":    {fmt.Sprintf(leaf, "9223372036854775807"), "tree 9223372036854775807 0", false},
		"a leaf of no event":   {fmt.Sprintf(leaf, "1000"), "tree 1000 0", true},
		"a tile of level 5":    {"INSERT INTO tree_tiles SELECT 5, 0, data, root FROM tree_tiles WHERE n = 0", "tree 0 281474976710656", false},
		"a tile beyond all":    {"INSERT INTO tree_tiles SELECT 7, 9223372036854775807, data, root FROM tree_tiles WHERE n = 0", "tree 9223372036854775806 9223372036854775807", false},
		"a tile not yet whole": {"INSERT INTO tree_tiles SELECT 0, 3, data, root FROM tree_tiles WHERE n = 0", "tree 768 1024", false},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r, signed := attacked(t)
			r.tamper(c.sql)
			if report := r.verify(signed...); named(report) != c.want || report.OK() {
				t.Errorf("named %s, want %s: %v", named(report), c.want, report.Faults)
			}
			if !c.refused {
				return
			}
			r.clock.Advance(time.Hour)
			if _, err := r.seq.Round(t.Context()); !errors.Is(err, sequence.ErrRefused) {
				t.Errorf("a broker says %v", err)
			}
		})
	}
}

// Of a tree that has a tile of level 1 each is held against those below it, and only the one that was altered is named.
func TestTilesOfTiles(t *testing.T) {
	if os.Getenv("TASKPASS_LONG") == "" {
		t.Skip("66,000 events: make test-long")
	}
	t.Parallel()
	const more = 66_000
	r := newRecord(t)
	r.write(1)
	r.tamper(fmt.Sprintf(`INSERT INTO events (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, fingerprint, body)
		SELECT 'evt_x' || i, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, fingerprint, replace(body, id, 'evt_x' || i)
		FROM events, generate_series(1, %d) i`, more))
	r.n += more
	signed := r.settle()
	if report := r.verify(signed); !report.OK() {
		t.Fatalf("before: %v", report.Faults)
	}
	for _, c := range []struct{ set, where, want string }{
		{"root = sha256('x')", "level = 1", "tree 0 65536"},
		{"data = overlay(data PLACING '\\x00000000' FROM 1409)", "level = 1", "tree 0 65536"},
		{"root = sha256('x')", "level = 0 AND n = 7", "tree 1792 2048"},
		{"data = overlay(data PLACING '\\x00000000' FROM 1409)", "level = 0 AND n = 7", "tree 1792 2048"},
		{"n = 1", "level = 1", "tree 0 65536, tree 65536 131072"},
		{"data = n.data, root = n.root FROM (SELECT data, root FROM tree_tiles WHERE level = 0 AND n = 3) n", "level = 1", "tree 0 65536"},
	} {
		r.tamper("CREATE TABLE kept AS TABLE tree_tiles", "UPDATE tree_tiles SET "+c.set+" WHERE "+c.where)
		if report := r.verify(signed); named(report) != c.want {
			t.Errorf("%s where %s: %v", c.set, c.where, report.Faults)
		}
		r.tamper("TRUNCATE tree_tiles", "INSERT INTO tree_tiles TABLE kept", "DROP TABLE kept")
	}
}

// Leaves that no checkpoint has yet are no fault as long as they follow each other and each has its event.
func TestLeavesPastTheNewestCheckpoint(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]string{
		"SELECT 1": "",
		"DELETE FROM tree_leaves WHERE idx BETWEEN 700 AND 710":                                                "tree 711 0",
		"DELETE FROM events WHERE id = (SELECT event_id FROM tree_leaves WHERE idx = 700)":                     "tree 700 0",
		"UPDATE events SET body = body || ' ' WHERE id = (SELECT event_id FROM tree_leaves WHERE idx = 700)":   "altered 700 0",
		"UPDATE tree_leaves SET at = at - interval '1 day' WHERE idx = 700":                                    "tree 700 0",
		"UPDATE tree_tiles SET data = overlay(data PLACING '\\x00000000' FROM 1409) WHERE level = 0 AND n = 2": "tree 512 768",
		"UPDATE tree_leaves SET at = at - interval '1 day' WHERE idx = 599":                                    "tree 599 0",
		"DELETE FROM tree_tiles WHERE n = 2":                                                                   "tree 512 768",
		"UPDATE events SET task_id = 'another' WHERE id = (SELECT event_id FROM tree_leaves WHERE idx = 999)":  "altered 999 0",
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			r, signed := attacked(t)
			r.tamper("DELETE FROM tree_checkpoints WHERE size > 600", sql)
			if report := r.verify(signed[0]); named(report) != want || report.Proven != 600 {
				t.Errorf("%s: named %s, want %s: %v", sql, named(report), want, report.Faults)
			}
		})
	}
}
