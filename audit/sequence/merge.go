package sequence

import (
	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/tree"
)

// merge hands on leaves, each with its event, and the events up to end that are of no leaf.
func (w *walk) merge(leaves []storedLeaf, events []storedEvent, end position) error {
	own := pair(leaves, events)
	taken := make(map[int]bool, len(own))
	for _, e := range own {
		taken[e] = true
	}
	var archived map[string]bool // read when an event is missing, and so after the events: its month may have left meanwhile
	next := 0
	strangers := func(end position) error {
		for ; next < len(events) && events[next].compare(end) <= 0; next++ {
			if !taken[next] {
				if err := w.put(tree.Line{Index: -1, Body: events[next].body}); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for i, l := range leaves {
		if err := strangers(l.position); err != nil {
			return err
		}
		line := tree.Line{Index: l.idx, ID: l.id, Leaf: &l.hash}
		if e, ok := own[i]; ok {
			line.Body, line.Columns = events[e].body, l.contradicted(&events[e])
		} else {
			if archived == nil {
				var err error
				if archived, err = w.l.archived(w.ctx); err != nil {
					return err
				}
			}
			if month := l.at.UTC().Format("2006-01"); archived[month] {
				line.Away = month
			}
		}
		if err := w.put(line); err != nil {
			return err
		}
	}
	return strangers(end)
}

// pair finds the event of each leaf: what stands at its position. An owner can put several there, or point several leaves
// to one event. So no event is two leaves', and of several the leaf gets the one that it was made of, if that is there;
// what nobody gets is a stranger.
func pair(leaves []storedLeaf, events []storedEvent) (own map[int]int) {
	at := make(map[position][]int, len(events))
	for i := range events {
		at[events[i].position] = append(at[events[i].position], i)
	}
	own = make(map[int]int, len(leaves))
	taken := make(map[int]bool, len(leaves))
	take := func(fits func(l *storedLeaf, e *storedEvent, alone bool) bool) {
		for i := range leaves {
			if _, has := own[i]; has {
				continue
			}
			candidates := at[leaves[i].position]
			for _, e := range candidates {
				if !taken[e] && fits(&leaves[i], &events[e], len(candidates) == 1) {
					own[i], taken[e] = e, true
					break
				}
			}
		}
	}
	take(func(l *storedLeaf, e *storedEvent, alone bool) bool {
		return l.id == e.ID && (alone || tlog.RecordHash(e.body) == l.hash)
	})
	take(func(l *storedLeaf, e *storedEvent, _ bool) bool { return l.id == e.ID })
	take(func(*storedLeaf, *storedEvent, bool) bool { return true })
	return own
}
