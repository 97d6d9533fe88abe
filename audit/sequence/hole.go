package sequence

import (
	"errors"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/tree"
)

// hole is a run of leaves that are gone. It may be longer than the memory.
type hole struct {
	to     int64    // the next leaf that is there; or where the walk ends, if none is
	until  position // the last that an event of theirs can have
	paired bool     // as many events stand there as leaves are gone: each is in its place
	open   bool     // no leaf comes after it: events that are not in the tree yet may
}

// enter measures the hole that begins at a leaf.
func (w *walk) enter(from int64) error {
	h := hole{}
	err := firstInOrder(w.ctx, w.l.pool, []any{&h.to, &h.until.xid, &h.until.seq},
		"SELECT idx, xid, seq FROM tree_leaves WHERE idx >= $1 ORDER BY idx LIMIT 1", from)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		h.to, h.until, h.open = w.to, lastPosition, true
	case err != nil:
		return err
	default:
		h.until = h.until.before()
	}
	var events int64
	if err := firstInOrder(w.ctx, w.l.pool, []any{&events},
		`SELECT count(*) FROM (SELECT FROM events WHERE (xid, seq) > ($1, $2) AND (xid, seq) <= ($3, $4) LIMIT $5) e`,
		w.after.xid, w.after.seq, h.until.xid, h.until.seq, h.to-from+1); err != nil {
		return err
	}
	h.paired = events == h.to-from || h.open && events > h.to-from
	w.hole = h
	return nil
}

// gone hands on what is left of the leaves [from, to): the hashes that stored tiles have, and the events.
func (w *walk) gone(from, to int64) error {
	if from >= w.hole.to {
		if err := w.enter(from); err != nil {
			return err
		}
	}
	pass := w.compare
	if w.hole.paired {
		pass = w.inOrder
	}
	if err := pass(from, to); err != nil {
		return err
	}
	if to < w.hole.to || w.hole.open {
		return nil
	}
	return w.strangers(w.hole.until)
}

// eventsOnly is readEvents where no leaves are.
func (w *walk) eventsOnly(end position, limit int) ([]storedEvent, error) {
	events, err := w.readEvents(end, limit)
	if err == nil {
		err = w.times.window(nil, events, w.after, end)
	}
	return events, err
}

// inOrder gives each leaf the event that stands in its place.
func (w *walk) inOrder(from, to int64) error {
	events, err := w.eventsOnly(w.hole.until, int(to-from))
	if err != nil {
		return err
	}
	for i := range events {
		if err := w.leafless(from+int64(i), &events[i]); err != nil {
			return err
		}
		w.after = events[i].position
	}
	return nil
}

// compare finds the events of leaves by the hashes that tiles have, where there are more or fewer of them than leaves.
func (w *walk) compare(from, to int64) error {
	events, err := w.eventsOnly(w.hole.until, 2*batch)
	if err != nil {
		return err
	}
	by := make(map[tlog.Hash]int, len(events))
	for i := len(events) - 1; i >= 0; i-- { // of two alike the first
		by[tlog.RecordHash(events[i].body)] = i
	}
	next := 0
	for idx := from; idx < to; idx++ {
		hash := w.hash(idx)
		if hash == nil {
			continue
		}
		e, there := by[*hash]
		if !there || e < next {
			if err := w.put(tree.Line{Index: idx, Leaf: hash}); err != nil {
				return err
			}
			continue
		}
		for ; next < e; next++ {
			if err := w.put(tree.Line{Index: -1, Body: events[next].body}); err != nil {
				return err
			}
		}
		if err := w.leafless(idx, &events[e]); err != nil {
			return err
		}
		next, w.after = e+1, events[e].position
	}
	return nil
}

// strangers hands on the events up to a position, all of which are in no leaf.
func (w *walk) strangers(until position) error {
	for {
		events, err := w.eventsOnly(until, batch)
		if err != nil || len(events) == 0 {
			return err
		}
		for i := range events {
			if err := w.put(tree.Line{Index: -1, Body: events[i].body}); err != nil {
				return err
			}
			w.after = events[i].position
		}
	}
}

func (w *walk) leafless(idx int64, e *storedEvent) error {
	return w.put(tree.Line{Index: idx, Leaf: w.hash(idx), Body: e.body, Columns: e.Contradicted(e.body)})
}

// hash is what a stored tile has for a leaf; nil if none has it.
func (w *walk) hash(idx int64) *tlog.Hash {
	for _, t := range w.tiles {
		if at := int(idx%tree.Width) * tlog.HashSize; t.n == idx/tree.Width && len(t.data) >= at+tlog.HashSize {
			h := tlog.Hash(t.data[at:][:tlog.HashSize])
			return &h
		}
	}
	return nil
}
