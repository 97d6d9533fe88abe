package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/broker"
)

// mark is what the proofs say of an event, or of several.
type mark struct {
	// "verified", "waiting" (not in the tree yet), "archived" (only its hash is here), "first" (nothing to hold it against),
	// "not-verified", "unchecked" (a page checks maxProofs); "" where there is no tree
	Kind  string
	Words string
	Index int64
}

// Label is the mark in a word or two.
func (m mark) Label() string {
	return map[string]string{"verified": "✓ verified", "waiting": "not yet in the tree", "archived": "archived", "first": "the first look",
		"unchecked": "not checked", "not-verified": "✗ NOT VERIFIED"}[m.Kind]
}

// Doubtful tells whether the event is not proven.
func (m mark) Doubtful() bool { return m.Kind != "" && m.Kind != "verified" }

func notVerified(format string, args ...any) mark {
	return mark{Kind: "not-verified", Words: fmt.Sprintf(format, args...)}
}

const (
	maxProofs = 1000 // of one page
	maxProven = 20_000

	late = 2 * time.Minute // after which an event that is not in the tree is no longer just new
)

// proven remembers events that were found in a signed tree: their leaf hashes. Such an event stays one that was signed,
// whatever happens to the database, so a live page proves each event once. It holds up to twice maxProven hashes.
type proven struct {
	mu         sync.Mutex
	young, old map[tlog.Hash]bool
}

func (p *proven) has(h tlog.Hash) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.young[h] || p.old[h]
}

func (p *proven) add(h tlog.Hash) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.young) >= maxProven || p.young == nil {
		p.young, p.old = map[tlog.Hash]bool{}, p.young
	}
	p.young[h] = true
}

// prove compares the bytes that are shown with the newest signed checkpoint, event by event, and marks each. anew: also those
// that were proven before.
func (c *console) prove(ctx context.Context, list []*entry, anew bool) error {
	var ask []*entry
	seen := map[string]bool{}
	for i, e := range list {
		switch {
		case i >= maxProofs:
			e.Mark = mark{Kind: "unchecked", Words: fmt.Sprintf("A page checks %d events, and this is not one of them.", maxProofs)}
		case seen[e.ID]:
			e.Mark = notVerified("An event of this id stands here twice: no more than one of them is the one that was signed.")
		case !anew && c.proven.has(tlog.RecordHash(e.Body)):
			e.Mark = mark{Kind: "verified"}
		default:
			ask = append(ask, e)
		}
		seen[e.ID] = true
	}
	if len(ask) == 0 {
		return nil
	}
	ids := make([]string, len(ask))
	for i, e := range ask {
		ids[i] = e.ID
	}
	proofs, err := c.Tree.IncludeSeveral(ctx, ids)
	if err != nil {
		if code := broker.AsError(err).Code; code != broker.CodeNotFound && code != broker.CodeRecordTampered {
			return err // the database is away, which says nothing of the events
		}
		proofs = make([]sequence.Included, len(ask))
		for i := range proofs {
			proofs[i].Err = err
		}
	}
	for i, e := range ask {
		in := proofs[i].Inclusion
		e.Mark = c.included(in, e.Body, proofs[i].Err)
		if e.Mark.Kind == "waiting" && in.Signed.At.Sub(e.At) > late {
			e.Mark = notVerified("The event is older than the newest checkpoint, and not in the tree: it was put into the record behind the " +
				"broker's back, or the tree is behind, such as while a transaction is open for long.")
		}
		if e.Mark.Kind == "verified" {
			c.proven.add(in.Leaf)
		}
	}
	return nil
}

// proveAll marks events of which only something is shown.
func (c *console) proveAll(ctx context.Context, list []entry) error {
	if c.Tree == nil {
		return nil
	}
	return c.prove(ctx, pointers(list), false)
}

func pointers(list []entry) []*entry {
	all := make([]*entry, len(list))
	for i := range list {
		all[i] = &list[i]
	}
	return all
}

// sum is what the marks of a page say together. Kind is empty if nothing is to be said.
func sum(list []*entry) mark {
	verified, waiting, left, bad := 0, 0, 0, 0
	for _, e := range list {
		switch e.Mark.Kind {
		case "verified":
			verified++
		case "waiting":
			waiting++
		case "unchecked":
			left++
		case "": // there is no tree
		default:
			bad++
		}
	}
	switch {
	case bad > 0:
		return notVerified("%d of these %d events are not what the signed tree holds, or that cannot be shown. Run `taskpass audit verify`.", bad, len(list))
	case left > 0:
		return mark{Kind: "unchecked", Words: fmt.Sprintf("%d are verified, %d are not yet in the tree, and %d were not checked: a page checks %d.",
			verified, waiting, left, maxProofs)}
	case waiting > 0:
		return mark{Kind: "waiting", Words: fmt.Sprintf("%d are verified. %d are not yet in the tree: look again in a moment.", verified, waiting)}
	case verified == 0:
		return mark{}
	}
	return mark{Kind: "verified", Words: fmt.Sprintf("All %d events are, byte for byte, in the tree that the newest checkpoint signs.", verified)}
}

// included checks one proof, again and by itself: that the shown bytes are the leaf, that the leaf is below the root, and
// that the root is the signed one. Whose signature is good, the tree's keys have said.
func (c *console) included(in sequence.Inclusion, body []byte, err error) mark {
	if e, ok := errors.AsType[*broker.Error](err); ok && e.Code == broker.CodeNotFound {
		return mark{Kind: "waiting", Words: "The event is not in the tree that is signed. New events come into it within seconds."}
	}
	gone := notVerified("The event is gone: its hash is in the tree, and its month was not archived.")
	if err != nil {
		if !errors.Is(err, context.Canceled) { // else the reader went away
			c.Logger.Error("console: an event could not be verified", "error", err)
		}
		if errors.Is(err, sequence.ErrRemoved) {
			return gone
		}
		return notVerified("No proof could be had, or the stored one does not hold.")
	}
	switch {
	case in.Size != in.Signed.Size || in.Root != in.Signed.Root:
		return notVerified("The proof is for another root than the signed one.")
	case tlog.CheckRecord(in.Proof, in.Size, in.Signed.Root, in.Index, in.Leaf) != nil:
		return notVerified("The proof does not lead to the signed root.")
	case body == nil && in.Away:
		return mark{"archived", fmt.Sprintf("The hash of leaf %d of %d is below the root that was signed at %s UTC. The database says that the event is archived: "+
			"it is not here to be held against that hash. `taskpass audit verify --archive` does, with the archive's file.", in.Index, in.Size, stamp(in.Signed.At)), in.Index}
	case body == nil:
		return gone
	case tlog.RecordHash(body) != in.Leaf:
		return notVerified("The event that is shown is not the one that was signed: it was altered afterwards.")
	}
	return mark{"verified", fmt.Sprintf("Leaf %d of %d below the root that was signed at %s UTC.", in.Index, in.Size, stamp(in.Signed.At)), in.Index}
}

// eventPage is the page of one event.
type eventPage struct {
	Entry entry
	In    sequence.Inclusion
}

// event shows one event of the tree, with its proof.
func (c *console) event(ctx context.Context, r *http.Request) (view, error) {
	id, err := field(r, "id")
	if err != nil {
		return view{}, err
	}
	if c.Tree == nil {
		return view{}, broker.Errorf(broker.CodeNotFound, "this service signs no checkpoints: its configuration has no audit.key")
	}
	in, err := c.Tree.Include(ctx, id, 0, 0)
	switch code := broker.AsError(err); {
	case err == nil || code.Code == broker.CodeRecordTampered:
	case code.Code == broker.CodeNotFound:
		return view{Title: "Event", Template: "noevent", Status: http.StatusNotFound, Data: nothing{"event", id},
			Asked: asked("event", false, map[string]string{"event_id": id, "proof": "inclusion"})}, nil
	default:
		return view{}, err
	}
	p := eventPage{In: in, Entry: entry{ID: id, Body: in.Body, Mark: c.included(in, in.Body, err)}}
	switch unreadable := in.Body != nil && json.Unmarshal(in.Body, &p.Entry) != nil; {
	case unreadable:
		p.Entry = entry{ID: id, Body: in.Body, Mark: notVerified("What is stored in its place is no event.")}
	case p.Entry.ID != id:
		p.Entry.Mark = notVerified("Another event than %s stands in its place.", id)
	}
	return view{Title: "Event " + id, Template: "event", Data: p,
		Asked: asked("event", in.EventID != "", map[string]string{"event_id": id, "proof": "inclusion"})}, nil
}
