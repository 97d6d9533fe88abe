package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/broker"
)

// mark is what the proofs say of an event, or of several.
type mark struct {
	// "verified", "waiting" (not in the tree yet), "archived" (only its hash is here), "first" (nothing to hold it against),
	// "not-verified"; "" where nothing was asked
	Kind  string
	Words string
	Index int64
}

// Label is the mark in a word or two.
func (m mark) Label() string {
	return map[string]string{"verified": "✓ verified", "waiting": "not yet in the tree", "archived": "archived", "first": "the first look",
		"not-verified": "✗ NOT VERIFIED"}[m.Kind]
}

func notVerified(format string, args ...any) mark {
	return mark{Kind: "not-verified", Words: fmt.Sprintf(format, args...)}
}

const (
	maxProofs = 100 // of one page: each costs some reads

	late = 2 * time.Minute // after which an event that is not in the tree is no longer just new
)

// prove holds the bytes that are shown against the newest signed checkpoint, event by event.
func (c *console) prove(ctx context.Context, list []entry) (mark, error) {
	verified, waiting, bad := 0, 0, 0
	for i := range list {
		if i >= maxProofs {
			break
		}
		in, err := c.Tree.Include(ctx, list[i].ID, 0, 0)
		if ctx.Err() != nil {
			return mark{}, ctx.Err()
		}
		list[i].Mark = c.included(in, list[i].Body, err)
		if list[i].Mark.Kind == "waiting" && in.Signed.At.Sub(list[i].At) > late {
			list[i].Mark = notVerified("The event is older than the newest checkpoint, and not in the tree: it was put into the record behind the " +
				"broker's back, or a transaction that is still open holds the tree up.")
		}
		switch list[i].Mark.Kind {
		case "verified":
			verified++
		case "waiting":
			waiting++
		default:
			bad++
		}
	}
	switch left := len(list) - maxProofs; {
	case bad > 0:
		return notVerified("%d of these %d events are not what the signed tree holds, or that cannot be shown. Run `taskpass audit verify`.", bad, len(list)), nil
	case left > 0:
		return mark{Kind: "waiting", Words: fmt.Sprintf("%d are verified, %d are not yet in the tree, and %d were not checked: a page checks %d.",
			verified, waiting, left, maxProofs)}, nil
	case waiting > 0:
		return mark{Kind: "waiting", Words: fmt.Sprintf("%d are verified. %d are not yet in the tree: look again in a moment.", verified, waiting)}, nil
	case verified == 0:
		return mark{}, nil
	}
	return mark{Kind: "verified", Words: fmt.Sprintf("All %d events are, byte for byte, in the tree that the newest checkpoint signs.", verified)}, nil
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

// proven is the page of one event.
type proven struct {
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
	p := proven{In: in, Entry: entry{ID: id, Body: in.Body, Mark: c.included(in, in.Body, err)}}
	if in.Body != nil && json.Unmarshal(in.Body, &p.Entry) != nil {
		return view{}, errors.New("an audit event does not decode")
	}
	if p.Entry.ID != id {
		p.Entry.Mark = notVerified("Another event than %s stands in its place.", id)
	}
	return view{Title: "Event " + id, Template: "event", Data: p,
		Asked: asked("event", in.EventID != "", map[string]string{"event_id": id, "proof": "inclusion"})}, nil
}
