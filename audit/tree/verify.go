package tree

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// Verify walks through an export once, in constant memory, and holds it against checkpoints whose signatures were
// verified by Open. An error means that the export could not be read to its end; the report then says what was found
// until there.
//
// It comes to the root twice: from the events, and from the leaf hashes that are stored beside them. Where the events
// come to a signed root, they are what was signed, whatever is stored. Where only the stored hashes do, each event that
// does not have its hash is proven bad. Where neither does, the tree itself was rewritten, and the checkpoints say
// between which events.
func Verify(h Header, lines iter.Seq2[Line, error], checkpoints []Checkpoint, files ...*Notes) (Report, error) {
	for _, n := range files {
		checkpoints = append(slices.Clip(checkpoints), n.Kept...)
	}
	for _, c := range checkpoints {
		if c.Origin != h.Origin {
			return Report{Header: h}, fmt.Errorf("the export is of the log %.128q, a checkpoint of %.128q", h.Origin, c.Origin)
		}
	}
	v := newVerifier(h, checkpoints)
	for _, n := range files {
		f, err := n.follow()
		defer f.stop()
		if err != nil {
			return v.report, err
		}
		v.files = append(v.files, f)
	}
	v.take() // a checkpoint may end where the export begins
	for line, err := range lines {
		if err != nil {
			v.report.order()
			return v.report, err
		}
		v.line(line)
	}
	v.finish()
	return v.report, v.err
}

type verifier struct {
	report Report

	events, leaves         *hasher // from bodies, with the leaf's hash where one is gone; from leaf hashes alone
	eventsTile, leavesTile *hasher // of the Width leaves under way
	untiled                bool    // a tile of which not all leaves are known

	pending []Checkpoint // not yet come to, smallest first
	good    int64        // the largest size at which the events came to a signed root; -1: none
	before  int64        // the same, when the first bad one was met
	bad     []verdict    // those that the events do not come to
	files   []*follower  // with more checkpoints
	err     error        // in reading them
}

type verdict struct {
	checkpoint Checkpoint
	leaves     bool // the stored leaf hashes do come to its root
}

func newVerifier(h Header, checkpoints []Checkpoint) *verifier {
	v := &verifier{report: Report{Header: h}, events: &hasher{}, good: -1}
	for i, n := range Nodes(0, h.From) {
		v.events.add(n.Level, h.Left[i])
	}
	v.leaves = v.events.clone()
	v.restart()
	v.untiled = h.From%Width != 0

	sorted := slices.Clone(checkpoints)
	slices.SortStableFunc(sorted, func(a, b Checkpoint) int {
		if a.Size != b.Size {
			return int(min(max(a.Size-b.Size, -1), 1))
		}
		return a.At.Compare(b.At)
	})
	for _, c := range sorted {
		last := len(v.pending) - 1
		switch {
		case c.Size > h.Size:
			v.report.add(Fault{What: Truncated, Index: h.Size, To: c.Size, Detail: fmt.Sprintf(
				"a checkpoint of %s has %d events, this record %d: its end was cut off, or the export is older than the checkpoint",
				c.At.Format(timeFormat), c.Size, h.Size)})
		case c.Size < h.From || c.Size > h.To && c.Size < h.Size || c.Size == h.From && h.From == 0:
			v.report.Beyond++
		case last >= 0 && v.pending[last].Size == c.Size && v.pending[last].Root == c.Root: // the same again, some time later
		case last >= 0 && v.pending[last].Size == c.Size:
			v.report.add(contradiction(c, v.pending[last].Root))
		default:
			v.pending = append(v.pending, c)
		}
	}
	return v
}

func contradiction(c Checkpoint, root tlog.Hash) Fault {
	return Fault{What: Forked, Index: c.Size - 1, Detail: fmt.Sprintf(
		"two checkpoints are signed for %d events, with the roots %s and %s", c.Size, root, c.Root)}
}

func (v *verifier) restart() {
	v.eventsTile, v.leavesTile, v.untiled = &hasher{}, &hasher{}, false
}

// at is the leaf that comes next.
func (v *verifier) at() int64 { return v.events.size }

func (v *verifier) line(l Line) {
	switch {
	case l.Tile != nil:
		v.tile(*l.Tile)
		return
	case l.Index < 0:
		v.report.Events++
		detail := "an event that is in no leaf stands before this one"
		if v.at() == v.report.Header.Size {
			detail = "an event that is in no leaf stands behind the last one, where none can have come yet"
		}
		v.report.add(Fault{What: Inserted, Index: v.at(), EventID: idOf(l.Body), Detail: detail})
		return
	case l.Index < v.at() || l.Index >= v.report.Header.To:
		v.report.Events++
		v.report.add(Fault{What: Reordered, Index: l.Index, EventID: l.ID, Detail: fmt.Sprintf("its line stands where event %d has its place", v.at())})
		return
	}
	v.skip(l.Index)
	v.event(l)
}

// skip passes over leaves that are not there at all: no root beyond can be come to.
func (v *verifier) skip(to int64) {
	from := v.at()
	if from >= to {
		return
	}
	gap := Fault{What: Removed, Index: from, To: to, Detail: "neither what happened nor its leaf is there"}
	if to == from+1 {
		gap.To = 0
	}
	v.report.add(gap)
	for _, n := range Nodes(from, to) {
		v.events.add(n.Level, tlog.Hash{})
		v.leaves.add(n.Level, tlog.Hash{})
	}
	for len(v.pending) > 0 && v.pending[0].Size <= to {
		v.refuse(v.pending[0], false)
		v.pending = v.pending[1:]
	}
	v.restart()
	v.untiled = to%Width != 0
}

// event holds a leaf's event against what the tree and the searchable columns say of it.
func (v *verifier) event(l Line) {
	var leaf tlog.Hash
	if l.Leaf != nil {
		leaf = *l.Leaf
	}
	if l.Body == nil {
		if l.Away != "" {
			v.report.away(l.Index)
		} else {
			v.report.add(Fault{What: Removed, Index: l.Index, EventID: l.ID, Detail: "the tree has its hash, the record does not have the event"})
		}
		v.push(leaf, leaf)
		return
	}
	v.report.Events++
	sum, id := tlog.RecordHash(l.Body), idOf(l.Body)
	switch {
	case l.Leaf == nil:
		v.report.add(Fault{What: BadTree, Index: l.Index, EventID: id, Detail: "its leaf is gone"})
		leaf = sum
	case l.ID == "" && id != "" && sum == leaf:
		v.report.add(Fault{What: BadTree, Index: l.Index, EventID: id, Detail: "the event is as it was put into the tree; what was stored of it there is gone"})
	case id != l.ID && l.ID != "":
		v.report.add(Fault{What: Reordered, Index: l.Index, EventID: id, Detail: "here stood " + l.ID})
	case sum != leaf:
		v.report.add(Fault{What: Altered, Index: l.Index, EventID: id, Detail: hashDiffers})
	}
	if len(l.Columns) > 0 {
		what, names := Altered, make([]string, 0, len(l.Columns))
		for name := range l.Columns {
			names = append(names, name)
		}
		slices.Sort(names)
		switch {
		case slices.Contains(names, "at"):
			what = Redated
		case slices.Equal(names, []string{LeafTime}):
			what = BadTree
		}
		v.report.add(Fault{What: what, Index: l.Index, EventID: id, Detail: fmt.Sprintf("what it is searched by contradicts its body: %v", names)})
	}
	v.push(sum, leaf)
}

func idOf(body []byte) string {
	var e struct {
		ID string `json:"id"`
	}
	if json.Unmarshal(body, &e) != nil || len(e.ID) > 128 {
		return ""
	}
	return e.ID
}

func (v *verifier) push(event, leaf tlog.Hash) {
	if v.at()%Width == 0 {
		v.restart()
	}
	for _, h := range []*hasher{v.events, v.eventsTile} {
		h.add(0, event)
	}
	for _, h := range []*hasher{v.leaves, v.leavesTile} {
		h.add(0, leaf)
	}
	v.take()
}

// tile holds the stored hash of a whole tile against the leaves that were just read. What it narrows down is only a
// hint until the root is come to.
func (v *verifier) tile(t Tile) {
	if t.N < 0 || t.N >= v.report.Header.Size/Width || t.N*Width < v.report.Header.From {
		v.report.add(Fault{What: BadTree, Index: v.at(), Detail: "before it stands a stored hash that is of other events"})
		return
	}
	from := t.N * Width
	if to := from + Width; to <= v.report.Header.To {
		v.skip(to)
	}
	switch {
	case v.at() != from+Width:
		v.report.add(Fault{What: BadTree, Index: from, To: from + Width, Detail: "the stored hash of these events stands in the wrong place"})
	case v.untiled || v.eventsTile.size != Width: // some were missing, which was said
	case v.eventsTile.root() != t.Hash && v.leavesTile.root() != t.Hash:
		v.report.add(Fault{What: BadTree, Index: from, To: from + Width, Detail: "the stored hash of these events is not theirs"})
	}
}

// take holds the roots come to so far against the checkpoints of this size, if there are any.
func (v *verifier) take() {
	v.known()
	for _, f := range v.files {
		v.err = errors.Join(v.err, v.hold(f))
	}
}

// known is take for those whose signatures were verified.
func (v *verifier) known() {
	if len(v.pending) == 0 || v.pending[0].Size != v.at() || v.at() == 0 {
		return
	}
	c := v.pending[0]
	v.pending = v.pending[1:]
	if v.events.root() != c.Root {
		v.refuse(c, v.leaves.root() == c.Root)
		return
	}
	v.good = c.Size
	if len(v.report.Signed) >= maxFaults {
		v.report.Signed = v.report.Signed[:maxFaults-1]
	}
	v.report.Signed = append(v.report.Signed, c)
}

func (v *verifier) refuse(c Checkpoint, leaves bool) {
	if len(v.bad) == 0 {
		for _, f := range v.files {
			v.prove(f)
		}
		v.before = v.good
	}
	v.bad = append(v.bad, verdict{c, leaves})
}
