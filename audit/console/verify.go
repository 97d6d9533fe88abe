package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
)

// mark is what the proofs say of an event, or of several.
type mark struct {
	Kind  string // "verified", "waiting" (not in the tree yet), "not-verified"; "" where nothing was asked
	Words string
	Index int64
}

// Label is the mark in a word or two.
func (m mark) Label() string {
	return map[string]string{"verified": "✓ verified", "waiting": "not yet in the tree", "not-verified": "✗ NOT VERIFIED"}[m.Kind]
}

func notVerified(format string, args ...any) mark {
	return mark{Kind: "not-verified", Words: fmt.Sprintf(format, args...)}
}

const (
	maxProofs = 100 // of one page: each costs some reads
	treeShown = 20  // newest events that the tree's page proves

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
	if err != nil {
		c.Logger.Error("console: an event could not be verified", "error", err)
		return notVerified("No proof could be had, or the stored one does not hold.")
	}
	switch {
	case in.Size != in.Signed.Size || in.Root != in.Signed.Root:
		return notVerified("The proof is for another root than the signed one.")
	case tlog.CheckRecord(in.Proof, in.Size, in.Signed.Root, in.Index, in.Leaf) != nil:
		return notVerified("The proof does not lead to the signed root.")
	case body == nil:
		return mark{"waiting", "Its place in the tree is proven; the event itself is archived, so it was not held against it.", in.Index}
	case tlog.RecordHash(body) != in.Leaf:
		return notVerified("The event that is shown is not the one that was signed: it was altered afterwards.")
	}
	return mark{"verified", fmt.Sprintf("Leaf %d of %d below the root that was signed at %s UTC.", in.Index, in.Size, stamp(in.Signed.At)), in.Index}
}

// checkpointSeen is what a browser was shown last, so that the next look can tell whether the tree still begins with it.
type checkpointSeen struct {
	Origin string    `json:"o"`
	Size   int64     `json:"s"`
	Root   tlog.Hash `json:"r"`
	At     time.Time `json:"a"`
}

const seenLife = 400 * 24 * time.Hour // the longest that browsers keep a cookie

// treeState is the page of the tree.
type treeState struct {
	Tree       bool // there is one
	Checkpoint tree.Checkpoint
	Age        time.Duration
	LagEvents  int64
	Lag        time.Duration
	Refused    string
	Former     checkpointSeen // Size 0: this browser was shown none
	Extends    mark
	Included   mark
	Table      table
}

// remember is the checkpoint that this browser is to hold the next one against; false if it is to keep what it has.
func (s treeState) remember() (checkpointSeen, bool) {
	cp := s.Checkpoint
	return checkpointSeen{cp.Origin, cp.Size, cp.Root, cp.At}, cp.Size > 0 && s.Extends.Kind != "not-verified" && s.Included.Kind != "not-verified"
}

// tree shows the newest checkpoint, whether the newest events are below it, and whether it extends what was seen before.
func (c *console) tree(ctx context.Context, r *http.Request) (view, error) {
	v := view{Title: "The tree", Template: "tree", Asked: asked("tree", true, nil)}
	s := treeState{Tree: c.Tree != nil, Refused: c.Refused()}
	if c.Tree == nil {
		v.Data = s
		return v, nil
	}
	var err error
	s.Checkpoint, err = c.Tree.Checkpoint(ctx)
	if e, ok := errors.AsType[*broker.Error](err); ok && e.Code == broker.CodeNotFound {
		err = nil // the first one comes within seconds
	}
	if err == nil {
		s.LagEvents, s.Lag, err = c.Tree.Lag(ctx)
	}
	if err == nil && s.Checkpoint.Size > 0 {
		s.Age = c.Clock().Sub(s.Checkpoint.At)
		if c.cookie(r, "seen", sealSeen, &s.Former) && s.Former.Origin != s.Checkpoint.Origin {
			s.Former = checkpointSeen{} // another log's
		}
		s.Extends = c.extends(ctx, s.Former, s.Checkpoint)
		err = c.newestLeaves(ctx, &s)
	}
	s.Table.Caption, s.Table.Marked = fmt.Sprintf("The newest %d events of the tree", len(s.Table.Entries)), true
	v.Data = s
	return v, err
}

// extends tells whether the tree begins with the one that this browser was shown before.
func (c *console) extends(ctx context.Context, former checkpointSeen, now tree.Checkpoint) mark {
	switch {
	case former.Size == 0:
		return mark{Kind: "waiting", Words: "This browser was shown no checkpoint before, so there is nothing to hold this one against. It is remembered from now on."}
	case former.Size > now.Size:
		return notVerified("This browser was shown a tree of %d events at %s UTC. This one has %d: events are missing.", former.Size, stamp(former.At), now.Size)
	}
	p, err := c.Tree.Consist(ctx, former.Size, now.Size)
	if err != nil {
		c.Logger.Error("console: a tree's consistency could not be verified", "error", err)
		return notVerified("No proof could be had that the tree extends the one of %d events that this browser was shown, or the stored one does not hold.", former.Size)
	}
	if former.Size == now.Size && former.Root != now.Root || former.Size < now.Size &&
		tlog.CheckTree(p.Proof, now.Size, now.Root, former.Size, former.Root) != nil {
		return notVerified("The tree does not begin with the one of %d events that this browser was shown at %s UTC: history was rewritten.", former.Size, stamp(former.At))
	}
	return mark{Kind: "verified", Words: fmt.Sprintf("It begins with the tree of %d events that this browser was shown, signed at %s UTC.", former.Size, stamp(former.At))}
}

// newestLeaves reads and proves the tree's newest events.
func (c *console) newestLeaves(ctx context.Context, s *treeState) error {
	good := 0
	var bad mark
	for i := s.Checkpoint.Size - 1; i >= max(0, s.Checkpoint.Size-treeShown); i-- {
		in, err := c.Tree.Include(ctx, "", i, 0)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		e := entry{ID: in.EventID, Body: bytes.Clone(in.Body), Mark: c.included(in, in.Body, err)}
		if in.Body != nil && json.Unmarshal(in.Body, &e) != nil {
			e.Mark = notVerified("It is no event.")
		}
		if e.ID == "" {
			e.ID = fmt.Sprintf("leaf %d", i)
		}
		if e.Mark.Kind == "not-verified" {
			bad = e.Mark
		} else {
			good++
		}
		s.Table.Entries = append(s.Table.Entries, e)
	}
	if n := len(s.Table.Entries); bad.Kind != "" {
		s.Included = notVerified("%d of the %d newest events are not what was signed. %s Run `taskpass audit verify`.", n-good, n, bad.Words)
	} else {
		s.Included = mark{Kind: "verified", Words: fmt.Sprintf("The %d newest events of the tree lead to the signed root.", n)}
	}
	return nil
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
	return view{Title: "Event " + id, Template: "event", Data: p,
		Asked: asked("event", in.EventID != "", map[string]string{"event_id": id, "proof": "inclusion"})}, nil
}
