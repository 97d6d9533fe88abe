package tree

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// What is wrong with a record, in the words of a report.
const (
	Altered   = "altered"    // the event is not the one that was put into the tree
	Redated   = "re-dated"   // its searchable time is not the one in its body
	Reordered = "re-ordered" // it stands where another event was put
	Removed   = "removed"    // the leaf is there, the event is not
	Inserted  = "inserted"   // the event is there, but in no leaf, though later ones are in the tree
	Rewritten = "rewritten"  // the tree does not come to a root that was signed; the range says between which checkpoints
	Truncated = "truncated"  // a signed checkpoint has more events than the record
	Forked    = "forked"     // two signed checkpoints contradict each other
	BadTree   = "tree"       // the events are as signed, but what is stored of the tree is not
	Unsigned  = "unsigned"   // a stored checkpoint that no known key has signed, or that is not stored as it was signed
	BadTimes  = "times"      // the time range that searches by time go by is not that of the events
)

// Fault is one thing wrong. It is about the leaf Index, or the leaves [Index, To).
type Fault struct {
	What    string
	Index   int64 // -1: the event is in no leaf
	To      int64 // 0: it is about one leaf
	EventID string
	Detail  string
}

func (f Fault) String() string {
	var b strings.Builder
	b.WriteString(f.What)
	if f.To > 0 {
		fmt.Fprintf(&b, ": events %d to %d", f.Index, f.To-1)
	} else {
		fmt.Fprintf(&b, ": event %d", f.Index)
	}
	if f.EventID != "" {
		b.WriteString(" " + f.EventID)
	}
	return b.String() + ": " + f.Detail
}

// maxFaults is how many faults a report lists; of the rest it has the number.
const maxFaults = 100

// Report is what Verify found.
type Report struct {
	Header Header
	Events int64        // bodies that were read
	Away   int64        // leaves whose events are said to be in an archive: of them only the hashes were verified
	Absent []Span       // those leaves, in order: see Missing
	Signed []Checkpoint // those that the events come to, smallest first, at most maxFaults and always the largest
	Proven int64        // leaves from Header.From to here are below a checkpoint that was verified
	Beyond int          // checkpoints that could not be held against this export, for it does not reach or begin there
	Faults []Fault      // from the first bad event on
	More   int          // faults that are not listed
}

// OK tells whether everything was held against a checkpoint and nothing is wrong. It says nothing of events that are said
// to be archived: Missing does.
func (r Report) OK() bool { return len(r.Faults) == 0 && r.Proven == r.Header.To }

// First is the first bad event, or the narrowest range that it is in.
func (r Report) First() (Fault, bool) {
	if len(r.Faults) == 0 {
		return Fault{}, false
	}
	return r.Faults[0], true
}

func (r *Report) add(f Fault) {
	if len(r.Faults) >= maxFaults {
		r.More++
		return
	}
	r.Faults = append(r.Faults, f)
}

// Join puts other faults behind those that are there, but for what was named already.
func (r *Report) Join(faults ...Fault) {
	for _, f := range faults {
		if !slices.ContainsFunc(r.Faults, func(g Fault) bool { return g.What == f.What && g.Index == f.Index && g.To == f.To }) {
			r.add(f)
		}
	}
}

// order puts what is about one event first, by where it is, and behind it the ranges, the narrowest first.
func (r *Report) order() {
	width := func(f Fault) int64 { return max(f.To-f.Index, 1) }
	slices.SortStableFunc(r.Faults, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(width(a), width(b)), cmp.Compare(a.Index, b.Index))
	})
}
