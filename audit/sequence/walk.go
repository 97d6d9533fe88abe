package sequence

import (
	"cmp"
	"context"
	"errors"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/audit/tree"
)

// batch is how many leaves are read at a time, and at most three times as many events: a walk through the record takes
// the same memory however long it is, and whatever was done to it. It is a whole number of tiles.
const batch = 4096

// walk merges leaves and events by their position, and puts each stored tile behind its leaves.
type walk struct {
	l        *Log
	ctx      context.Context
	from, to int64
	end      bool   // the tree that is walked through ends with to
	times    *times // checks the stored time ranges of what is passed; nil: nobody does
	yield    func(tree.Line, error) bool

	after position     // up to where the events have been handed on
	tiles []storedTile // that overlap the batch; they are handed on as whole ones are passed
	hole  hole         // in the leaves, the last that was come to
}

type storedLeaf struct {
	position
	idx  int64
	id   string
	at   time.Time
	hash tlog.Hash
}

type storedEvent struct {
	position
	audit.Columns
	body []byte
}

type storedTile struct {
	n    int64
	data []byte
	done bool // handed on
}

func (p position) compare(q position) int {
	return cmp.Or(cmp.Compare(p.xid, q.xid), cmp.Compare(p.seq, q.seq))
}

// before is the position that comes right before p.
func (p position) before() position {
	if p.seq == math.MinInt64 {
		return position{p.xid - 1, math.MaxInt64}
	}
	return position{p.xid, p.seq - 1}
}

// firstPosition comes before every event but one at itself, lastPosition after each. PostgreSQL gives no event a place
// below (1, 1); an owner can.
var (
	firstPosition = position{0, math.MinInt64}
	lastPosition  = position{math.MaxUint64, math.MaxInt64}
)

// errEnough says that who walks wants no more lines.
var errEnough = errors.New("no more lines are wanted")

func (w walk) all(yield func(tree.Line, error) bool) { //nolint:gocritic // a copy: each walk begins anew
	w.yield = yield
	if err := w.run(); err != nil && !errors.Is(err, errEnough) {
		yield(tree.Line{}, err)
	}
}

func (w *walk) run() error {
	if err := w.begin(); err != nil {
		return err
	}
	for from := w.from; from < w.to; {
		next := min((from/batch+1)*batch, w.to) // whole tiles, but for the first and the last batch
		if err := w.batch(from, next); err != nil {
			return err
		}
		from = next
	}
	if w.end {
		return w.unborn()
	}
	return nil
}

// begin finds where the event of the leaf before the first stands.
func (w *walk) begin() error {
	w.after = firstPosition
	if w.from == 0 {
		return w.nowhere("(xid, seq) = ($1, $2)", firstPosition)
	}
	err := firstInOrder(w.ctx, w.l.pool, []any{&w.after.xid, &w.after.seq},
		"SELECT xid, seq FROM tree_leaves WHERE idx < $1 ORDER BY idx DESC LIMIT 1", w.from)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	return err
}

// unborn hands on the events of transactions that the server has not had yet. What waits for the tree is below them; these
// would wait for ever, while a search shows them.
func (w *walk) unborn() error {
	return w.nowhere("(xid, seq) > ($1, $2) AND xid >= pg_snapshot_xmax(pg_current_snapshot())", w.after)
}

// nowhere hands on events that no leaf can be of. It reads no more of them than a report would list.
func (w *walk) nowhere(where string, at position) error {
	bodies, err := collectInOrder(w.ctx, w.l.pool, pgx.RowTo[[]byte],
		"SELECT body FROM events WHERE "+where+" ORDER BY xid, seq LIMIT $3", at.xid, at.seq, batch)
	if err != nil {
		return err
	}
	for _, body := range bodies {
		if err := w.put(tree.Line{Index: -1, Body: body}); err != nil {
			return err
		}
	}
	return nil
}

// batch hands on the leaves [from, to): those that are there, run by run, and what is left of those that are not.
func (w *walk) batch(from, to int64) error {
	var err error
	if w.tiles, err = w.readTiles(from, to); err != nil {
		return err
	}
	leaves, err := w.readLeaves(from, to)
	if err != nil {
		return err
	}
	for from < to {
		n := int64(0)
		for n < int64(len(leaves)) && leaves[n].idx == from+n {
			n++
		}
		end := from + n
		if n > 0 {
			err = w.there(leaves[:n])
		} else {
			if end = to; len(leaves) > 0 {
				end = leaves[0].idx
			}
			err = w.gone(from, end)
		}
		if err != nil {
			return err
		}
		leaves, from = leaves[n:], end
	}
	return w.whole(to)
}

// there hands on leaves that follow each other, with the events up to the last one's.
func (w *walk) there(leaves []storedLeaf) error {
	for len(leaves) > 0 {
		end := w.after
		for _, l := range leaves { // in the order of the tree; an altered one may say anything
			if l.position.compare(end) > 0 {
				end = l.position
			}
		}
		limit := 2*len(leaves) + batch
		events, err := w.readEvents(end, limit)
		if err != nil {
			return err
		}
		n := len(leaves)
		if len(events) == limit { // far more than leaves: first those that they reach to
			end = events[limit-1].position
			for n > 0 && leaves[n-1].compare(end) > 0 {
				n--
			}
		}
		if err := w.times.window(leaves[:n], events, w.after, end); err != nil {
			return err
		}
		if err := w.merge(leaves[:n], events, end); err != nil {
			return err
		}
		leaves, w.after = leaves[n:], end
	}
	return nil
}

// put hands a line on, and before it the tiles that end before it.
func (w *walk) put(line tree.Line) error {
	if line.Index >= 0 {
		if err := w.whole(line.Index); err != nil {
			return err
		}
	}
	if !w.yield(line, nil) {
		return errEnough
	}
	return nil
}

// whole hands on the stored tiles of this walk whose leaves are all before that one.
func (w *walk) whole(before int64) error {
	for i := range w.tiles {
		t := &w.tiles[i]
		if t.done || t.n*tree.Width < w.from || (t.n+1)*tree.Width > before {
			continue
		}
		t.done = true
		line := tree.Tile{N: t.n}
		if len(t.data) == tree.Width*tlog.HashSize {
			line.Hash = rootOf(t.data)
		}
		if !w.yield(tree.Line{Index: -1, Tile: &line}, nil) {
			return errEnough
		}
	}
	return nil
}

func (w *walk) readLeaves(from, to int64) ([]storedLeaf, error) {
	return collectInOrder(w.ctx, w.l.pool, func(row pgx.CollectableRow) (l storedLeaf, err error) {
		var hash []byte
		err = row.Scan(&l.idx, &l.id, &l.xid, &l.seq, &l.at, &hash)
		copy(l.hash[:], hash)
		return l, err
	}, "SELECT idx, event_id, xid, seq, "+finiteAt+", hash FROM tree_leaves WHERE idx >= $1 AND idx < $2 ORDER BY idx", from, to)
}

func (w *walk) readTiles(from, to int64) ([]storedTile, error) {
	return collectInOrder(w.ctx, w.l.pool, func(row pgx.CollectableRow) (t storedTile, err error) {
		err = row.Scan(&t.n, &t.data)
		return t, err
	}, "SELECT n, data FROM tree_tiles WHERE level = 0 AND n >= $1 AND n < $2 ORDER BY n", from/tree.Width, (to+tree.Width-1)/tree.Width)
}

// readEvents reads those that were not handed on yet, up to a position, and no more than so many.
func (w *walk) readEvents(end position, limit int) ([]storedEvent, error) {
	return collectInOrder(w.ctx, w.l.pool, func(row pgx.CollectableRow) (e storedEvent, err error) {
		err = row.Scan(&e.xid, &e.seq, &e.ID, &e.At, &e.Type, &e.Caller, &e.TaskID, &e.AgentID, &e.Profile, &e.Provider,
			&e.CredentialID, &e.UpstreamIDs, &e.Fingerprint, &e.body)
		return e, err
	}, `SELECT xid, seq, id, `+finiteAt+`, type, caller, task_id, agent_id, profile, provider,
			credential_id, upstream_ids, fingerprint, body
		FROM events WHERE (xid, seq) > ($1, $2) AND (xid, seq) <= ($3, $4) ORDER BY xid, seq LIMIT $5`,
		w.after.xid, w.after.seq, end.xid, end.seq, limit)
}

// finiteAt is a time that Go has too: an owner may write infinity, which is to be named and not to end a walk.
const finiteAt = "CASE WHEN isfinite(at) THEN at ELSE '0001-01-01 00:00Z' END"
