package crashtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/audit/tree"
)

// logName is the audit log's, in the tests that sign one.
const logName = "taskpass.example/crash"

// long plays each kill point alone and beside another, and many random moments.
var long = os.Getenv("TASKPASS_LONG") != ""

// signs has the replicas keep the tree, and publish to one file that they share.
func (r *rig) signs() {
	r.t.Helper()
	r.settings.UpstreamTime = "10s"
	out, err := exec.Command(binary, "audit", "key", logName, filepath.Join(r.dir, "audit_key")).CombinedOutput()
	if err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
	r.settings.Audit = fmt.Sprintf("limits: {per_agent: 100000}\naudit: {name: %s, key: \"file:%s/audit_key\", publish: [{file: \"%[2]s/checkpoints\", every: 1s}]}", logName, r.dir)
	r.public = strings.TrimSpace(string(out))
}

// The whole process is killed at the sequencer's points, under load, and started anew: alone, and beside a replica that
// goes on.
func TestSequencerIsKilled(t *testing.T) {
	t.Parallel()
	for i, point := range sequencerPoints {
		for _, beside := range []bool{false, true} {
			if !long && beside != (i == 1) {
				continue
			}
			t.Run(fmt.Sprintf("%s beside %v", point, beside), func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				r.signs()
				var survivor *replica
				if beside {
					survivor = r.start("")
				}
				// The first rounds come before it is ready; where two take turns half of them are the other's.
				victim := r.start(point + ":3")
				others := []*replica{victim}
				if beside {
					others = append(others, survivor)
				}
				r.load(4, 1000, others...)
				victim.awaitKilled()
				r.treeHolds(r.start(""))
			})
		}
	}
}

// The process is killed at moments that nobody chose, again and again, beside a replica that goes on and then alone.
func TestKilledAtRandomWithTheTree(t *testing.T) {
	t.Parallel()
	kills := 2
	if long {
		kills = 12
	}
	r := newRig(t)
	r.signs()
	survivor := r.start("")
	for i := range kills {
		if i == kills/2 {
			survivor.stop()
		}
		victim := r.start("")
		moment := time.AfterFunc(time.Duration(rand.N(600))*time.Millisecond, func() { _ = victim.cmd.Process.Signal(syscall.SIGKILL) })
		others := []*replica{victim}
		if i < kills/2 {
			others = append(others, survivor)
		}
		r.load(4, 1000, others...)
		victim.awaitKilled()
		moment.Stop()
	}
	r.treeHolds(r.start(""))
}

// treeHolds waits until all is signed, and then holds the tree, what was published, and an export against each other.
func (r *rig) treeHolds(p *replica) {
	r.t.Helper()
	r.aftermath(p)
	r.eventually("all events are signed", func() bool {
		return r.count("SELECT (SELECT count(*) FROM events) - coalesce(max(size), 0) FROM tree_checkpoints") == 0
	})
	p.stop() // it publishes what waits
	keys, err := tree.ParseKeys(r.public)
	if err != nil {
		r.t.Fatal(err)
	}
	var published []tree.Checkpoint
	var broken int
	r.eventually("all that is signed is published", func() bool { // by a replica that goes on, at its next turn
		text, err := os.ReadFile(filepath.Join(r.dir, "checkpoints"))
		if err != nil {
			r.t.Fatal(err)
		}
		published, broken = keys.OpenAll(text)
		newest := int64(r.count("SELECT max(size) FROM tree_checkpoints"))
		return slices.ContainsFunc(published, func(c tree.Checkpoint) bool { return c.Size == newest })
	})
	if len(published) == 0 || broken > 0 { // a note is one write
		r.t.Errorf("%d published checkpoints, %d pieces of some", len(published), broken)
	}
	if n := r.count(`SELECT count(*) FROM events e FULL JOIN tree_leaves l ON l.xid = e.xid AND l.seq = e.seq AND l.event_id = e.id
		WHERE e.id IS NULL OR l.idx IS NULL`); n != 0 {
		r.t.Errorf("%d events and leaves do not go together", n)
	}
	r.signedOnce(keys, published)
	log := sequence.NewLog(r.admin, keys)
	report, err := log.Verify(r.t.Context(), published)
	if err != nil || !report.OK() || report.Beyond > 0 {
		r.t.Errorf("in the database: %v, %v", report.Faults, err)
	}
	r.verifiesOffline(log, published)
}

// signedOnce: no size was signed with two roots, and nothing was published that was not committed.
func (r *rig) signedOnce(keys *tree.Keys, published []tree.Checkpoint) {
	r.t.Helper()
	rows, err := r.admin.Query(r.t.Context(), "SELECT note FROM tree_checkpoints")
	if err != nil {
		r.t.Fatal(err)
	}
	notes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		r.t.Fatal(err)
	}
	roots, stored := map[int64]tlog.Hash{}, map[string]bool{}
	for _, n := range notes {
		stored[n] = true
		c, err := keys.Open([]byte(n))
		if err != nil {
			r.t.Fatal(err)
		}
		if root, again := roots[c.Size]; again && root != c.Root {
			r.t.Errorf("%d events are signed with two roots", c.Size)
		}
		roots[c.Size] = c.Root
	}
	for _, c := range published {
		if !stored[c.Note] {
			r.t.Errorf("a checkpoint for %d events is published and not in the database", c.Size)
		}
	}
}

func (r *rig) verifiesOffline(log *sequence.Log, published []tree.Checkpoint) {
	r.t.Helper()
	h, lines, err := log.Export(r.t.Context(), 0, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	var file bytes.Buffer
	if _, err := tree.Write(&file, h, lines); err != nil {
		r.t.Fatal(err)
	}
	if h, lines, err = tree.Read(&file); err != nil {
		r.t.Fatal(err)
	}
	report, err := tree.Verify(h, lines, published)
	if err != nil || !report.OK() || report.Events != int64(r.count("SELECT count(*) FROM events")) {
		r.t.Errorf("offline: %+v, %v", report, err)
	}
}
