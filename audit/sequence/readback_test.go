package sequence_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/audit/tree"
)

// As long as one place cannot be read nothing is signed and nothing enters the tree, for what is there may contradict it.
// The record goes on, and the lag shows that somebody waits.
func TestNothingIsSignedBeforeEachPlaceWasRead(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.write(20)
	first := r.settle()
	open, shut := &published{list: []tree.Checkpoint{first}}, &published{list: []tree.Checkpoint{first}}
	shut.shut.Store(true)
	r.seq = r.sequencerOf(shut, open)
	r.write(5)
	for range 3 {
		r.clock.Advance(time.Hour)
		if _, err := r.seq.Round(t.Context()); !errors.Is(err, sequence.ErrUnread) || !errors.Is(err, errShut) {
			t.Errorf("a round: %v", err)
		}
	}
	if leaves, signed := r.read("SELECT count(*) FROM tree_leaves"), r.read("SELECT count(*) FROM tree_checkpoints WHERE size > 20"); leaves != 20 || signed != 0 {
		t.Errorf("%d leaves, %d new checkpoints", leaves, signed)
	}
	if waiting, _, err := r.log.Lag(t.Context()); waiting != 5 || err != nil {
		t.Errorf("a lag of %d, %v", waiting, err)
	}
	shut.shut.Store(false)
	r.settle()
	shut.shut.Store(true) // each is read once
	r.write(1)
	r.settle()
	if report := r.verify(first); !report.OK() {
		t.Errorf("%+v", report.Faults)
	}
}

// A tree that was rewritten while no broker ran is refused by what any one of the places holds, also by one that could
// only be read later.
func TestEachPlaceIsHeldAgainstTheTree(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		places func(first, second, forked tree.Checkpoint) (read, late []tree.Checkpoint)
		want   string
	}{
		"by the older checkpoint alone":  {func(a, _, _ tree.Checkpoint) (_, _ []tree.Checkpoint) { return []tree.Checkpoint{a}, nil }, "the first 600 events do not come to the root"},
		"by a place that was read later": {func(_, b, _ tree.Checkpoint) (_, _ []tree.Checkpoint) { return nil, []tree.Checkpoint{b} }, "the first 1000 events do not come to the root"},
		"though another place agrees": {func(a, _, f tree.Checkpoint) (_, _ []tree.Checkpoint) {
			return []tree.Checkpoint{f}, []tree.Checkpoint{a}
		}, "the first 600 events do not come to the root"},
		"for two places do not agree": {func(_, b, f tree.Checkpoint) (_, _ []tree.Checkpoint) {
			return []tree.Checkpoint{b}, []tree.Checkpoint{f}
		}, "two checkpoints are signed for 1000 events"},
		"for one place contradicts itself": {func(a, b, f tree.Checkpoint) (_, _ []tree.Checkpoint) { return []tree.Checkpoint{f, a, b}, nil }, "two checkpoints are signed for 1000 events"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r, signed := attacked(t)
			r.rewrite(r.order()[500])
			r.tamper("DELETE FROM tree_checkpoints")
			if _, err := r.sequencer().Round(t.Context()); err != nil { // who knows nothing signs it
				t.Fatal(err)
			}
			forked, err := r.log.Checkpoint(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			r.tamper("DELETE FROM tree_checkpoints")
			read, late := c.places(signed[0], signed[1], forked)
			second := &published{list: late}
			second.shut.Store(true)
			s := r.sequencerOf(&published{list: read}, second)
			if _, err := s.Round(t.Context()); !errors.Is(err, sequence.ErrUnread) {
				t.Fatal(err)
			}
			second.shut.Store(false)
			if _, err := s.Round(t.Context()); !errors.Is(err, sequence.ErrRefused) || !strings.Contains(s.Refused(), c.want) {
				t.Errorf("%v: %s", err, s.Refused())
			}
			if n := r.read("SELECT count(*) FROM tree_checkpoints"); n != 0 {
				t.Errorf("%d checkpoints are signed", n)
			}
		})
	}
}

// A sequencer that waits says so, tries again by itself, and ends when it is told to.
func TestAPlaceIsTriedAgain(t *testing.T) {
	t.Parallel()
	r := newRecord(t)
	r.write(3)
	place := &counted{tried: make(chan struct{}, 100)}
	place.shut.Store(true)
	var said bytes.Buffer
	signed := make(signals, 100)
	s, err := sequence.New(sequence.Config{Pool: r.store.Pool(), Signer: r.signer, Logger: slog.New(slog.NewTextHandler(&said, nil)),
		ReadBack: []sequence.Reader{place}, Publish: []sequence.Publisher{signed}, Every: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) })
	for range 4 {
		<-place.tried
	}
	place.shut.Store(false)
	<-signed
	stop()
	wg.Wait()
	if text := said.String(); !strings.Contains(text, "nothing is signed before what was published has been read back: the place is shut") {
		t.Errorf("the log: %s", text)
	}
	place.shut.Store(true)
	s, _ = sequence.New(sequence.Config{Pool: r.store.Pool(), Signer: r.signer, Logger: slog.New(slog.DiscardHandler), ReadBack: []sequence.Reader{place}, Every: time.Hour})
	ctx, stop = context.WithCancel(t.Context())
	wg.Go(func() { s.Run(ctx) })
	<-place.tried
	stop()
	wg.Wait() // it waits for an hour and ends all the same
}

// signals is told of each checkpoint.
type signals chan tree.Checkpoint

func (s signals) Publish(c tree.Checkpoint) {
	select {
	case s <- c:
	default:
	}
}

type counted struct {
	published
	tried chan struct{}
}

func (c *counted) Newest(ctx context.Context, keys *tree.Keys) ([]tree.Checkpoint, error) {
	select {
	case c.tried <- struct{}{}:
	default:
	}
	return c.published.Newest(ctx, keys)
}

// A leaf far beyond the tree's end leaves a hole that never heals: that is an alarm, and no round that fails for ever.
func TestAHoleAboveWhatIsSigned(t *testing.T) {
	t.Parallel()
	r, _ := attacked(t)
	root := tlog.RecordHash([]byte("x"))
	if _, err := r.admin.Exec(t.Context(), "INSERT INTO tree_leaves SELECT 5000, 'evt', xid, seq, now(), $1 FROM tree_leaves WHERE idx = 999", root[:]); err != nil {
		t.Fatal(err)
	}
	r.write(1)
	r.clock.Advance(time.Hour)
	if _, err := r.seq.Round(t.Context()); !errors.Is(err, sequence.ErrRefused) || !strings.Contains(r.seq.Refused(), "not whole") || len(r.alarms) != 1 {
		t.Errorf("%v: %s", err, r.seq.Refused())
	}
}
