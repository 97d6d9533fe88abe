package tree

import "fmt"

// finish comes to the root of the whole tree and says what all that was seen amounts to.
func (v *verifier) finish() {
	h := &v.report.Header
	v.skip(h.To)
	for i, n := range Nodes(h.To, h.Size) {
		v.events.add(n.Level, h.Right[i])
		v.leaves.add(n.Level, h.Right[i])
	}
	if h.Size > h.To {
		v.take()
	}
	v.report.Proven = max(min(v.good, h.To), h.From)
	v.judge()
	v.report.order()
}

// judge turns what was seen at the leaves into what the checkpoints prove.
func (v *verifier) judge() {
	for _, b := range v.bad {
		if b.checkpoint.Size < v.good { // a larger one is right, so this one was never of the same log
			v.forked(b.checkpoint)
		}
	}
	if len(v.bad) == 0 || v.bad[len(v.bad)-1].checkpoint.Size < v.good {
		v.clear(v.good)
		return
	}
	v.clear(v.before)
	if v.bad[len(v.bad)-1].leaves {
		// The stored hashes are the signed ones: what contradicts them was named, event by event.
		for _, b := range v.bad {
			if !b.leaves && b.checkpoint.Size >= v.good {
				v.forked(b.checkpoint)
			}
		}
		return
	}
	from := max(v.before, v.report.Header.From)
	for _, b := range v.bad {
		switch {
		case b.checkpoint.Size < v.good:
		case b.leaves:
			from = max(from, b.checkpoint.Size)
		default:
			v.rewritten(from, b.checkpoint)
			return
		}
	}
}

func (v *verifier) forked(c Checkpoint) {
	v.report.Faults = append(v.report.Faults, Fault{What: Forked, Index: c.Size - 1, Detail: fmt.Sprintf(
		"the checkpoint of %s signs another root for %d events than a larger checkpoint does, which these events come to",
		c.At.Format(timeFormat), c.Size)})
}

// rewritten names the narrowest range that is proven: it begins where the last good checkpoint ends. A stored tile that
// was left as it was narrows it further.
func (v *verifier) rewritten(from int64, c Checkpoint) {
	to := c.Size
	if h := v.report.Header; h.To < to && from < h.To {
		to = h.To
	}
	for i, f := range v.report.Faults {
		if f.What == BadTree && f.To > 0 && f.Index >= from && f.To <= to {
			v.report.Faults[i].What = Rewritten
		}
	}
	v.report.Faults = append(v.report.Faults, Fault{What: Rewritten, Index: from, To: to, Detail: fmt.Sprintf(
		"they do not come to the root that was signed for %d events at %s", c.Size, c.At.Format(timeFormat))})
}

// clear corrects what was said of leaves below a checkpoint that the events come to: those are the events that were
// signed, so it is the stored hash that was altered.
func (v *verifier) clear(to int64) {
	for i, f := range v.report.Faults {
		if f.What == Altered && f.Detail == hashDiffers && f.Index < to {
			v.report.Faults[i].What, v.report.Faults[i].Detail = BadTree, "the event is as it was signed; the hash stored for it is not"
		}
	}
}

const hashDiffers = "its hash is not the one in the tree"
