package sequence_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
)

// rootOf comes to the root of the first n events in the database by an implementation that is not ours.
func (r *record) rootOf(n int64) tlog.Hash {
	r.t.Helper()
	rows, err := r.admin.Query(r.t.Context(), "SELECT body FROM events ORDER BY xid, seq LIMIT $1", n)
	if err != nil {
		r.t.Fatal(err)
	}
	bodies, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || int64(len(bodies)) != n {
		r.t.Fatalf("%d bodies of %d: %v", len(bodies), n, err)
	}
	theirs := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	for _, b := range bodies {
		if err := theirs.Append(rfc6962.DefaultHasher.HashLeaf([]byte(b)), nil); err != nil {
			r.t.Fatal(err)
		}
	}
	root, err := theirs.GetRootHash(nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return tlog.Hash(root)
}

func TestTheTreeIsThatOfTheEvents(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	for _, more := range []int{1, 1, 254, 1, 600, 3000} {
		r.write(more)
		c := r.settle()
		if want := r.rootOf(int64(r.n)); c.Root != want || c.Origin != origin {
			t.Fatalf("of %d events: signed %s of %s, transparency-dev has %s", r.n, c.Root, c.Origin, want)
		}
	}
	report := r.verify()
	if !report.OK() || report.Events != int64(r.n) {
		t.Errorf("%+v", report)
	}
	if n := r.read("SELECT count(*) FROM tree_tiles"); n != int64(r.n/256) {
		t.Errorf("%d tiles of %d events", n, r.n)
	}
}

// The proofs hold for who checks them with other code than ours.
func TestProofsByAnotherImplementation(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.write(777)
	c := r.settle()
	raw := func(list []tlog.Hash) (out [][]byte) {
		for _, h := range list {
			out = append(out, h[:])
		}
		return out
	}
	hasher := rfc6962.DefaultHasher
	for _, size := range []int64{0, 1, 2, 255, 256, 257, 512, 700, 777} {
		for _, index := range []int64{0, 1, 254, 255, 256, 511, 699, 776} {
			in, err := r.log.Include(t.Context(), "", index, size)
			if size > 0 && index >= size {
				if broker.AsError(err).Code != broker.CodeNotFound {
					t.Errorf("%d of %d: %v", index, size, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			root := r.rootOf(in.Size)
			if err := proof.VerifyInclusion(hasher, uint64(index), uint64(in.Size), hasher.HashLeaf(in.Body), raw(in.Proof), root[:]); err != nil {
				t.Errorf("%d of %d: %v", index, size, err)
			}
			other := root
			other[0]++
			if proof.VerifyInclusion(hasher, uint64(index), uint64(in.Size), hasher.HashLeaf(in.Body), raw(in.Proof), other[:]) == nil {
				t.Error("any root will do")
			}
		}
		if size == 0 {
			continue
		}
		p, err := r.log.Consist(t.Context(), size, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := proof.VerifyConsistency(hasher, uint64(size), uint64(c.Size), raw(p.Proof), raw([]tlog.Hash{r.rootOf(size)})[0], c.Root[:]); err != nil {
			t.Errorf("%d to %d: %v", size, c.Size, err)
		}
	}
	byID, err := r.log.Include(t.Context(), r.order()[400], 0, 0)
	if err != nil || byID.Index != 400 || byID.Signed.Note != c.Note {
		t.Errorf("by id: %+v, %v", byID, err)
	}
	for _, bad := range [][2]int64{{0, 0}, {778, 0}, {5, 778}, {-1, 5}, {9, 5}} {
		if _, err := r.log.Consist(t.Context(), bad[0], bad[1]); broker.AsError(err).Code != broker.CodeNotFound {
			t.Errorf("from %d to %d: %v", bad[0], bad[1], err)
		}
	}
}

// Tiles are what a client of tlog's own needs to come to the root.
func TestTilesByTlogsClient(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.write(1100)
	c := r.settle()
	reader := tlog.TileHashReader(tlog.Tree{N: c.Size, Hash: c.Root}, tiles{t, r.log})
	for _, index := range []int64{0, 300, 1023, 1024, 1099} {
		p, err := tlog.ProveRecord(c.Size, index, reader)
		if err != nil {
			t.Fatal(err)
		}
		in, err := r.log.Include(t.Context(), "", index, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := tlog.CheckRecord(p, c.Size, c.Root, index, tlog.RecordHash(in.Body)); err != nil {
			t.Error(err)
		}
	}
	for _, at := range [][2]int64{{0, 5}, {1, 1}, {2, 0}, {8, 0}, {-1, 0}, {0, -1}, {0, 1 << 60}, {70, 0}} {
		if _, err := r.log.Tile(t.Context(), int(at[0]), at[1]); broker.AsError(err).Code != broker.CodeNotFound {
			t.Errorf("tile %v: %v", at, err)
		}
	}
}

type tiles struct {
	t   *testing.T
	log *sequence.Log
}

func (tiles) Height() int                     { return tree.Height }
func (tiles) SaveTiles([]tlog.Tile, [][]byte) {}
func (s tiles) ReadTiles(list []tlog.Tile) (data [][]byte, err error) {
	for _, tile := range list {
		hashes, err := s.log.Tile(s.t.Context(), tile.L, tile.N)
		if err != nil {
			return nil, err
		}
		data = append(data, hashes[:tile.W*tlog.HashSize])
	}
	return data, nil
}

// Any number of replicas take turns, while many write: the order is the database's, and nothing is twice or missing.
func TestCompetingSequencers(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	ctx, stop := context.WithCancel(t.Context())
	var replicas, writers sync.WaitGroup
	for range 3 {
		s, err := sequence.New(sequence.Config{Pool: r.store.Pool(), Signer: r.signer, Logger: slog.New(slog.DiscardHandler),
			Every: time.Millisecond, Alarm: func(_ context.Context, reason string) error { t.Error(reason); return nil }})
		if err != nil {
			t.Fatal(err)
		}
		replicas.Go(func() { s.Run(ctx) })
	}
	const each, by = 150, 4
	for w := range by {
		writers.Go(func() {
			for i := range each {
				e := r.event(w*each + i)
				if err := r.store.Record(t.Context(), e); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	// What another test's transaction holds back meanwhile is signed at once when that ends: then there is one more to sign.
	for r.n = by * each; r.read("SELECT count(*) FROM tree_checkpoints") < 3 && r.n < 20_000; {
		r.write(1)
	}
	r.settle()
	stop()
	replicas.Wait()
	r.sequenced()
	if report := r.verify(); !report.OK() {
		t.Errorf("%+v", report.Faults)
	}
	if n := r.read("SELECT count(*) FROM tree_checkpoints"); n < 3 {
		t.Errorf("only %d checkpoints", n)
	}
}

// sequenced holds the leaves against the order of the record.
func (r *record) sequenced() {
	r.t.Helper()
	if diff := cmp.Diff(r.order(), r.list("SELECT event_id FROM tree_leaves ORDER BY idx")); diff != "" {
		r.t.Errorf("the leaves are not the events in their order: %s", diff)
	}
}

// A long transaction holds the tree back, and the lag shows it. What it wrote comes first, for it is older.
func TestLongTransaction(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.write(3)
	r.settle()
	long, err := r.admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = long.Rollback(context.Background()) }()
	insert := `INSERT INTO events (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body)
		VALUES ('evt_long', '2026-11-01T00:00:00Z', 'x', 'c', '', '', '', '', '', '{}', '{"id":"evt_long","at":"2026-11-01T00:00:00.000000Z","type":"x","caller":{"name":"c"}}')`
	if _, err := long.Exec(t.Context(), insert); err != nil {
		t.Fatal(err)
	}
	r.write(5)
	for range 3 {
		r.clock.Advance(time.Minute)
		if _, err := r.seq.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.read("SELECT count(*) FROM tree_leaves"); n != 3 {
		t.Errorf("%d leaves while an older transaction is open", n)
	}
	events, _, err := r.log.Lag(t.Context())
	if err != nil || events != 5 { // the sixth is not committed
		t.Errorf("a lag of %d, %v", events, err)
	}
	if n := r.read("SELECT count(*) FROM tree_checkpoints WHERE size = 3"); n < 3 {
		t.Errorf("%d checkpoints: the heart does not beat meanwhile", n)
	}
	if err := long.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.n++
	r.settle()
	r.sequenced()
	if i := slices.Index(r.order(), "evt_long"); i != 3 {
		t.Errorf("the long transaction's event is number %d", i)
	}
	if events, age, err := r.log.Lag(t.Context()); events != 0 || age != 0 || err != nil {
		t.Errorf("a lag of %d, %s, %v", events, age, err)
	}
	if report := r.verify(); !report.OK() {
		t.Errorf("%+v", report.Faults)
	}
}

// The connection dies at each point of a round: the next one goes on, and nothing is half there.
func TestCrash(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"in_round", "before_commit", "after_commit"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			r := newRecord(t)
			r.write(300)
			r.settle()
			r.write(300)
			died := false
			r.reached = func(ctx context.Context, at string) {
				if at == point && !died && r.read("SELECT count(*) FROM events") == 600 {
					died = true
					r.tamper("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND usename = '" + login + "'")
				}
			}
			r.clock.Advance(time.Minute)
			_, err := r.seq.Round(t.Context())
			if !died || (err == nil) != (point == "after_commit") {
				t.Fatalf("died %v: %v", died, err)
			}
			if n := r.read("SELECT count(*) FROM tree_leaves"); n != 300 && err != nil { // another test's transaction may hold a part back
				t.Errorf("%d leaves after the crash", n)
			}
			r.store.Pool().Reset()
			r.seq = r.sequencer() // as a new process
			r.settle()
			r.sequenced()
			if report := r.verify(); !report.OK() {
				t.Errorf("%+v", report.Faults)
			}
		})
	}
}

// A checkpoint a second under load at the most, and one a heartbeat if nothing happens.
func TestHowOftenItSigns(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.write(1)
	first := r.settle()
	round := func(after time.Duration) tree.Checkpoint {
		t.Helper()
		r.clock.Advance(after)
		if _, err := r.seq.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		c, err := r.log.Checkpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := round(40 * time.Second); c.Note != first.Note {
		t.Error("nothing happened, and it is signed again after 40 s")
	}
	if c := round(11 * time.Second); c.Size != 1 || c.Note == first.Note {
		t.Error("nothing is signed for 51 s")
	}
	r.write(1)
	grown := func() bool { return r.read("SELECT count(*) FROM tree_leaves") == 2 }
	for !grown() { // another test's transaction may hold it back
		if c := round(0); c.Size != 1 {
			t.Error("signed within a second")
		}
	}
	if c := round(time.Second); c.Size != 2 {
		t.Error("not signed after a second")
	}
}

// Rounds never come a second after each other to the millisecond. Once each that came a little early did not sign, and under
// load every other checkpoint was two seconds after the one before.
func TestEachRoundSignsUnderLoad(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.write(1)
	last := r.settle()
	round := func() tree.Checkpoint {
		t.Helper()
		if _, err := r.seq.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		c, err := r.log.Checkpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, after := range []time.Duration{999, 1001, 998, 1000, 940, 1060, 700, 1300, 501} {
		r.write(1)
		for r.read("SELECT count(*) FROM tree_leaves") < int64(r.n) { // another test's transaction may hold it back
			if round().Note != last.Note {
				t.Fatal("signed twice at once")
			}
		}
		r.clock.Advance(after * time.Millisecond)
		c := round()
		if c.Size != int64(r.n) {
			t.Errorf("nothing is signed %s after the last", c.At.Sub(last.At)+after*time.Millisecond)
		}
		last = c
	}
	r.write(1)
	r.clock.Advance(499 * time.Millisecond)
	if round().Note != last.Note {
		t.Error("signed twice within a second's half")
	}
}

// The keys are changed: both sign for a while, then the new one alone, and an auditor who knows both follows.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	oldKey, oldPublic, err := tree.NewKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	newKey, newPublic, err := tree.NewKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	var all []tree.Checkpoint
	for _, keys := range [][]broker.Secret{{oldKey}, {newKey, oldKey}, {newKey}} {
		if r.signer, err = tree.NewSigner(origin, keys...); err != nil {
			t.Fatal(err)
		}
		r.log = sequence.NewLog(r.store.Pool(), r.signer.Keys())
		r.seq = r.sequencer()
		r.write(10)
		c := r.settle()
		if n := strings.Count(c.Note, "\n— "); n != len(keys) {
			t.Errorf("%d signatures by %d keys", n, len(keys))
		}
		all = append(all, c)
	}
	opens := func(public string) (which string) {
		keys, err := tree.ParseKeys(public)
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range all {
			if _, err := keys.Open([]byte(c.Note)); err == nil {
				which += fmt.Sprint(i)
			}
		}
		return which
	}
	if o, n, both := opens(oldPublic), opens(newPublic), opens("# both\n"+oldPublic+"\n"+newPublic+"\n"); o != "01" || n != "12" || both != "012" {
		t.Errorf("the old key opens %s, the new %s, both %s", o, n, both)
	}
	keys, _ := tree.ParseKeys(oldPublic + "\n" + newPublic)
	report, err := sequence.NewLog(r.store.Pool(), keys).Verify(t.Context(), all)
	if err != nil || !report.OK() || len(report.Signed) < 3 {
		t.Errorf("%+v, %v", report, err)
	}
}

// After a restore the tree is refused under its old name, and goes on under a new one.
func TestAnotherName(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.write(20)
	r.settle()
	r.write(20)
	lost := r.settle()
	r.tamper("DELETE FROM events WHERE (xid, seq) > (SELECT xid, seq FROM tree_leaves WHERE idx = 24)", "DELETE FROM tree_leaves WHERE idx > 24",
		"DELETE FROM tree_checkpoints WHERE size > 25") // as a restore does
	if _, err := r.sequencer(lost).Round(t.Context()); !errors.Is(err, sequence.ErrRefused) {
		t.Fatalf("under the old name: %v", err)
	}
	key, _, err := tree.NewKey(origin + "-2")
	if err != nil {
		t.Fatal(err)
	}
	if r.signer, err = tree.NewSigner(origin+"-2", key); err != nil {
		t.Fatal(err)
	}
	r.log, r.n = sequence.NewLog(r.store.Pool(), r.signer.Keys()), 25
	r.seq = r.sequencer()
	if _, err := r.log.Checkpoint(t.Context()); broker.AsError(err).Code != broker.CodeNotFound {
		t.Errorf("before the first: %v", err)
	}
	for i := range 5 {
		if err := r.store.Record(t.Context(), r.event(100+i)); err != nil {
			t.Fatal(err)
		}
		r.n++
	}
	c := r.settle()
	if report := r.verify(c); !report.OK() || report.Events != 30 {
		t.Errorf("%+v", report)
	}
}
