package tree

import "slices"

// Span is the leaves [From, To).
type Span struct{ From, To int64 }

// maxSpans bounds how many runs of archived events a report keeps apart.
const maxSpans = 100_000

// away notes that a leaf's event is said to be in an archive.
func (r *Report) away(index int64) {
	r.Away++
	if last := len(r.Absent) - 1; last >= 0 && r.Absent[last].To == index {
		r.Absent[last].To++
		return
	}
	if len(r.Absent) == maxSpans {
		r.add(Fault{What: Removed, Index: index, Detail: "more runs of archived events than can be kept apart stand before it"})
		return
	}
	r.Absent = append(r.Absent, Span{index, index + 1})
}

// shown is where the events themselves were, and were verified.
func (r Report) shown() []Span {
	if !r.OK() {
		return nil
	}
	return without([]Span{{r.Header.From, r.Header.To}}, r.Absent)
}

// Missing lists the leaves whose events are said to be in an archive, and that none of these reports has seen. Whoever
// owns the database can say of an event that it is archived: only the archive itself shows that it was not removed.
func Missing(reports []Report) []Span {
	var missing []Span
	for _, r := range reports {
		missing = append(missing, r.Absent...)
	}
	slices.SortFunc(missing, func(a, b Span) int { return int(min(max(a.From-b.From, -1), 1)) })
	for _, r := range reports {
		missing = without(missing, r.shown())
	}
	return missing
}

// without takes spans in order out of spans in order.
func without(from, take []Span) []Span {
	var left []Span
	for _, s := range from {
		// The first that may reach into s: what is taken is in order and apart.
		i, _ := slices.BinarySearchFunc(take, s.From, func(t Span, at int64) int {
			if t.To <= at {
				return -1
			}
			return 1
		})
		for ; i < len(take) && take[i].From < s.To && s.From < s.To; i++ {
			if take[i].From > s.From {
				left = append(left, Span{s.From, take[i].From})
			}
			s.From = max(s.From, take[i].To)
		}
		if s.From < s.To {
			left = append(left, s)
		}
	}
	return left
}
