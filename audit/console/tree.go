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

	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
)

const (
	treeShown = 20                   // newest events that the tree's page proves
	treePace  = 3                    // each look reads and checks as many proofs
	seenLife  = 400 * 24 * time.Hour // the longest that browsers keep a cookie
)

// checkpointSeen is what a browser was shown last, so that the next look can tell whether the tree still begins with it.
type checkpointSeen struct {
	Origin string    `json:"o"`
	Size   int64     `json:"s"`
	Root   tlog.Hash `json:"r"`
	At     time.Time `json:"a"`
}

// treeState is the page of the tree.
type treeState struct {
	Tree       bool // there is one
	Checkpoint tree.Checkpoint
	LagEvents  int64
	Lag        time.Duration
	Refused    string
	Looked     time.Time
	Followed   bool // it is a look of a live page, not the page's first
	Extends    mark
	Included   mark
	Table      table
}

// tree shows the newest checkpoint, whether the newest events are below it, and whether it extends what this browser was
// shown before: that is in its cookie, and, for a live page that asks again, the id of the last event that it got.
func (c *console) tree(ctx context.Context, r *http.Request) (view, error) {
	var former checkpointSeen
	if !c.open(sealSeen, r.Header.Get("Last-Event-ID"), &former) {
		c.cookie(r, "seen", sealSeen, &former)
	}
	return c.treeAfter(ctx, former, live(r))
}

// treeAfter is a look at the tree, held against a former one. The next look of a live page is held against this one,
// unless this one is not verified: then against the same again.
func (c *console) treeAfter(ctx context.Context, former checkpointSeen, followed bool) (view, error) {
	v := view{Title: "The tree", Template: "tree", Pace: treePace, Asked: asked("tree", true, nil)}
	s := treeState{Tree: c.Tree != nil, Refused: c.Refused(), Looked: c.Clock(), Followed: followed}
	if c.Tree == nil {
		v.Data, v.Pace = s, 0
		return v, nil
	}
	err := c.readTree(ctx, &s, former)
	if cp := s.Checkpoint; cp.Size > 0 && s.Extends.Kind != "not-verified" && s.Included.Kind != "not-verified" {
		former = checkpointSeen{cp.Origin, cp.Size, cp.Root, cp.At}
		v.Seen = &former
	}
	v.Next = func(ctx context.Context, _ *http.Request) (view, error) { return c.treeAfter(ctx, former, true) }
	v.Sheets = map[string]sheet{"events": eventSheet(s.Table.Entries)}
	v.Data = s
	return v, err
}

func (c *console) readTree(ctx context.Context, s *treeState, former checkpointSeen) (err error) {
	if s.Checkpoint, s.LagEvents, s.Lag, err = c.newest(ctx); err != nil || s.Checkpoint.Size == 0 {
		return err
	}
	if former.Origin != s.Checkpoint.Origin {
		former = checkpointSeen{} // another log's
	}
	s.Extends = c.extends(ctx, former, s.Checkpoint)
	err = c.newestLeaves(ctx, s)
	s.Table.Caption, s.Table.Marked = fmt.Sprintf("The newest %d events of the tree", len(s.Table.Entries)), true
	return err
}

// newest is the checkpoint that was signed last, and what waits for the next. Size 0: none was signed yet; the first one
// comes within seconds.
func (c *console) newest(ctx context.Context) (cp tree.Checkpoint, events int64, lag time.Duration, err error) {
	cp, err = c.Tree.Checkpoint(ctx)
	if e, ok := errors.AsType[*broker.Error](err); ok && e.Code == broker.CodeNotFound {
		err = nil
	}
	if err == nil {
		events, lag, err = c.Tree.Lag(ctx)
	}
	return cp, events, lag, err
}

// extends tells whether the tree begins with the one that this browser was shown before.
func (c *console) extends(ctx context.Context, former checkpointSeen, now tree.Checkpoint) mark {
	switch {
	case former.Size == 0:
		return mark{Kind: "first", Words: "This browser was shown no checkpoint before, so there is nothing to hold this one against. It is remembered from now on."}
	case former.Size > now.Size:
		return notVerified("This browser was shown a tree of %d events at %s UTC. This one has %d: events are missing.", former.Size, stamp(former.At), now.Size)
	}
	p, err := c.Tree.Consist(ctx, former.Size, now.Size)
	if err != nil {
		if ctx.Err() == nil { // else the reader went away
			c.Logger.Error("console: a tree's consistency could not be verified", "error", err)
		}
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
	verified, archived := 0, 0
	var bad mark
	for i := s.Checkpoint.Size - 1; i >= max(0, s.Checkpoint.Size-treeShown); i-- {
		in, err := c.Tree.Include(ctx, "", i, 0)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		e := entry{ID: in.EventID, Body: bytes.Clone(in.Body), Mark: c.included(in, in.Body, err)}
		switch {
		case e.Mark.Kind == "waiting":
			e.Mark = notVerified("The tree is shorter than the one that was signed.")
		case err == nil && in.Index != i:
			e.Mark = notVerified("The proof is of another leaf.")
		case in.Body != nil && json.Unmarshal(in.Body, &e) != nil:
			e.Mark = notVerified("It is no event.")
		}
		if e.ID == "" {
			e.ID = fmt.Sprintf("leaf %d", i)
		}
		switch e.Mark.Kind {
		case "verified":
			verified++
		case "archived":
			archived++
		default:
			bad = e.Mark
		}
		s.Table.Entries = append(s.Table.Entries, e)
	}
	s.Included = newestMark(len(s.Table.Entries), verified, archived, bad)
	return nil
}

// newestMark is what the proofs say of the tree's n newest events together. bad is the mark of one that does not hold.
func newestMark(n, verified, archived int, bad mark) mark {
	switch {
	case bad.Kind != "":
		return notVerified("%d of the %d newest events are not what was signed. %s Run `taskpass audit verify`.", n-verified-archived, n, bad.Words)
	case archived > 0:
		return mark{Kind: "archived", Words: fmt.Sprintf("Of the %d newest events of the tree, %d lead to the signed root. Of the other %d only the hashes do: "+
			"the database says that they are archived, so they are not here to be held against them.", n, verified, archived)}
	}
	return mark{Kind: "verified", Words: fmt.Sprintf("The %d newest events of the tree lead to the signed root.", n)}
}
