package console_test

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/console"
	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/broker"
)

// liar is a tree whose proofs are not what they should be. The real one checks them itself before it gives them, so that
// only a liar shows that the console does too.
type liar struct {
	console.Tree
	lies *lies
}

type lies struct {
	include atomic.Pointer[func(*sequence.Inclusion) error]
	consist atomic.Pointer[func(*sequence.Consistency)]
}

func (l liar) Include(ctx context.Context, id string, index, size int64) (sequence.Inclusion, error) {
	in, err := l.Tree.Include(ctx, id, index, size)
	if lie := l.lies.include.Load(); lie != nil && err == nil {
		err = (*lie)(&in)
	}
	return in, err
}

func (l liar) IncludeSeveral(ctx context.Context, ids []string) ([]sequence.Included, error) {
	list := make([]sequence.Included, len(ids))
	for i, id := range ids {
		list[i].Inclusion, list[i].Err = l.Include(ctx, id, 0, 0)
	}
	return list, nil
}

func (l liar) Consist(ctx context.Context, from, to int64) (sequence.Consistency, error) {
	p, err := l.Tree.Consist(ctx, from, to)
	if lie := l.lies.consist.Load(); lie != nil && err == nil {
		(*lie)(&p)
	}
	return p, err
}

// flipped is a proof with another hash in it.
func flipped(proof []tlog.Hash) []tlog.Hash {
	proof = slices.Clone(proof)
	proof[0][0]++
	return proof
}

// The console believes no proof: it works each out for itself, on every page that has a mark.
func TestNoProofIsBelieved(t *testing.T) {
	t.Parallel()
	told := &lies{}
	r := newRig(t, func(s *setup) { s.console.Tree = liar{s.console.Tree, told} })
	r.issue("aws", "t", "read")
	former := r.sign()
	r.issue("aws", "t", "read")
	r.sign()
	v := r.enter("aud")
	const onTask, onTree = "/console/task?id=t&verify=1", "/console/tree"
	task := v.see(onTask)
	if strings.Count(task, `class="mark verified"`) != 4 {
		t.Fatal("without a lie:", task)
	}
	ids, _ := shown(task)
	onEvent := "/console/event?id=" + ids[0]
	everywhere := []string{onEvent, onTask, onTree}
	altered := func(body []byte) []byte { return append(bytes.Clone(body), ' ') }
	for name, c := range map[string]struct {
		lie   func(in *sequence.Inclusion) error
		want  string
		pages []string
	}{
		"another body": {func(in *sequence.Inclusion) error { in.Body = altered(in.Body); return nil },
			"is not the one that was signed", []string{onEvent, onTree}}, // a task's page has the body from the record
		"another body, with its leaf": {func(in *sequence.Inclusion) error {
			in.Body = altered(in.Body)
			in.Leaf = tlog.RecordHash(in.Body)
			return nil
		}, "does not lead to the signed root", everywhere},
		"another path": {func(in *sequence.Inclusion) error { in.Proof = flipped(in.Proof); return nil }, "does not lead to the signed root", everywhere},
		"no path":      {func(in *sequence.Inclusion) error { in.Proof = nil; return nil }, "does not lead to the signed root", everywhere},
		"another root": {func(in *sequence.Inclusion) error { in.Root[0]++; return nil }, "for another root than the signed one", everywhere},
		"another size": {func(in *sequence.Inclusion) error { in.Size--; return nil }, "for another root than the signed one", everywhere},
		"another root, signed": {func(in *sequence.Inclusion) error {
			in.Root[0]++
			in.Signed.Root = in.Root
			return nil
		}, "does not lead to the signed root", everywhere},
		"another checkpoint": {func(in *sequence.Inclusion) error { in.Signed = former; return nil }, "for another root than the signed one", everywhere},
		"no body, and not away": {func(in *sequence.Inclusion) error { in.Body = nil; return nil },
			"The event is gone", []string{onEvent, onTree}},
		"removed between the list and the proof": {func(*sequence.Inclusion) error {
			return broker.Errorf(broker.CodeRecordTampered, "gone").Because(sequence.ErrRemoved)
		}, "The event is gone", everywhere},
		"no such leaf": {func(*sequence.Inclusion) error { return broker.Errorf(broker.CodeNotFound, "none") },
			"shorter than the one that was signed", []string{onTree}},
	} {
		told.include.Store(&c.lie)
		for _, page := range c.pages {
			if body := v.see(page); !strings.Contains(body, "NOT VERIFIED") || !strings.Contains(body, c.want) || strings.Contains(body, "✓") {
				t.Errorf("%s: %s says %s", name, page, body)
			}
		}
	}
	// A good proof of another event.
	neighbour := func(in *sequence.Inclusion) (err error) {
		*in, err = r.tree.Include(t.Context(), "", (in.Index+1)%in.Size, 0)
		return err
	}
	told.include.Store(&neighbour)
	for page, want := range map[string]string{
		onEvent: "Another event than " + ids[0], onTask: "is not the one that was signed", onTree: "The proof is of another leaf",
	} {
		if body := v.see(page); !strings.Contains(body, want) || strings.Contains(body, "✓") {
			t.Errorf("of another event: %s says %s", page, body)
		}
	}
	told.include.Store(nil)
	if body := v.see(onTree); !strings.Contains(body, "shown no checkpoint before") {
		t.Error("a look that was not verified is what the browser remembers:", body)
	}
	r.issue("aws", "t", "read")
	r.sign()
	other := func(p *sequence.Consistency) { p.Proof = flipped(p.Proof) }
	told.consist.Store(&other)
	if body := v.see(onTree); !strings.Contains(body, "history was rewritten") {
		t.Error("another proof of consistency:", body)
	}
}
