package sequence_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
)

// replica is a sequencer with keys and a clock of its own.
func (r *record) replica(ahead time.Duration, keys ...broker.Secret) (*sequence.Sequencer, *tree.Keys) {
	r.t.Helper()
	signer, err := tree.NewSigner(origin, keys...)
	if err != nil {
		r.t.Fatal(err)
	}
	s, err := sequence.New(sequence.Config{Pool: r.store.Pool(), Signer: signer, Logger: slog.New(slog.DiscardHandler),
		Clock: func() time.Time { return r.clock.Now().Add(ahead) },
		Alarm: r.alarm})
	if err != nil {
		r.t.Fatal(err)
	}
	return s, signer.Keys()
}

// Two replicas whose clocks are an hour apart take turns: what they sign is of one log, whatever the times say, and neither
// takes the other's for tampering.
func TestClocksApart(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	key, _, err := tree.NewKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	late, keys := r.replica(0, key)
	early, _ := r.replica(time.Hour, key)
	var all []tree.Checkpoint
	for i := 0; i < 20 || len(all) == 0; i++ { // another test's transaction may hold them back
		r.write(7)
		r.clock.Advance(2 * time.Second)
		for _, s := range []*sequence.Sequencer{late, early}[i%2:] {
			if _, err := s.Round(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if c, err := sequence.NewLog(r.store.Pool(), keys).Checkpoint(t.Context()); err == nil {
			all = append(all, c)
		}
	}
	report, err := sequence.NewLog(r.store.Pool(), keys).Verify(t.Context(), all)
	if err != nil || !report.OK() || len(r.alarms) != 0 || len(all) == 0 {
		t.Errorf("%v, %v; %d alarms", report.Faults, err, len(r.alarms))
	}
}

// While the keys change, a replica may not know the new one yet: each goes on with what it can open, they sign one log,
// and an auditor who has both keys verifies it. Neither who knows only the old key nor who knows only the new one signs
// over a record that is rewritten meanwhile.
func TestKeysChangeInTheMiddleOfAnAttack(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	oldKey, oldPublic, err1 := tree.NewKey(origin)
	newKey, newPublic, err2 := tree.NewKey(origin)
	both, err3 := tree.ParseKeys(oldPublic + "\n" + newPublic)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	before, _ := r.replica(0, oldKey)
	between, _ := r.replica(0, newKey, oldKey)
	after, _ := r.replica(0, newKey)
	replicas := []*sequence.Sequencer{before, between, after}
	log := sequence.NewLog(r.store.Pool(), both)
	turn := func(i int) error {
		r.clock.Advance(2 * time.Minute)
		_, err := replicas[i%3].Round(t.Context())
		return err
	}
	var all []tree.Checkpoint
	for i := 0; i < 12 || len(all) == 0 || all[len(all)-1].Size < int64(r.n); i++ {
		if i < 12 {
			r.write(25)
		}
		if err := turn(i); err != nil {
			t.Fatal(err)
		}
		if c, err := log.Checkpoint(t.Context()); err == nil {
			all = append(all, c)
		}
	}
	for i := range 3 { // each has seen the end
		if err := turn(i); err != nil {
			t.Fatal(err)
		}
	}
	if report, err := log.Verify(t.Context(), all); err != nil || !report.OK() || len(report.Signed) < 3 {
		t.Errorf("%+v, %v", report, err)
	}
	r.rewrite(r.order()[30])
	r.tamper("TRUNCATE tree_checkpoints")
	for i := range 3 {
		if err := turn(i); !errors.Is(err, sequence.ErrRefused) {
			t.Errorf("replica %d on a rewritten tree: %v", i, err)
		}
	}
	if n := r.read("SELECT count(*) FROM tree_checkpoints"); n != 0 {
		t.Errorf("%d checkpoints are signed", n)
	}
}

// What somebody with the service's login writes beside the log's own checkpoints: garbage, an old one again, one for a
// tree that is not there. Nobody is kept from signing, and what is signed is of the same log.
func TestCheckpointsWrittenByOthers(t *testing.T) {
	t.Parallel()
	r, signed := attacked(t)
	stranger := newSigner(t)
	forged, err := stranger.Sign(5000, tlog.RecordHash([]byte("x")), r.clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	for what, note := range map[string]string{"garbage": origin + "\nx\n", "an old one": signed[0].Note, "a stranger's": forged.Note} {
		if _, err := r.store.Pool().Exec(t.Context(), "INSERT INTO tree_checkpoints (size, at, note) VALUES (900000, now(), $1)", note); err != nil {
			t.Fatal(err)
		}
		r.write(3)
		if c := r.settle(); c.Size != int64(r.n) {
			t.Errorf("%s: the newest is of %d events", what, c.Size)
		}
		if len(r.alarms) > 0 {
			t.Errorf("%s: %s", what, <-r.alarms)
		}
	}
	f, bad := r.verify(signed...).First()
	if !bad || f.What != tree.Unsigned {
		t.Errorf("found first: %v", f)
	}
}

// That the tree was rewritten is told until it is on the record: once it was told a single time, and a database that was
// away just then kept it off the record for good.
func TestAlarmUntilItIsTaken(t *testing.T) {
	t.Parallel()
	r, _ := attacked(t)
	var told []string
	s, err := sequence.New(sequence.Config{Pool: r.store.Pool(), Signer: r.signer, Logger: slog.New(slog.DiscardHandler), Clock: r.clock.Now,
		Alarm: func(_ context.Context, reason string) error {
			if told = append(told, reason); len(told) < 3 {
				return errShut
			}
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	r.tamper("DELETE FROM tree_leaves WHERE idx >= 500")
	for range 5 {
		if _, err := s.Round(t.Context()); !errors.Is(err, sequence.ErrRefused) {
			t.Fatal(err)
		}
	}
	if len(told) != 3 || told[0] != s.Refused() || told[2] != s.Refused() {
		t.Errorf("told %q, refused for %q", told, s.Refused())
	}
}
