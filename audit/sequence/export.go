package sequence

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
)

// batch is how many leaves are read at a time: a walk through the record takes the same memory however long it is. It is
// a whole number of tiles.
const batch = 4096

// Export is a walk through leaves [From, To) and their events, for tree.Write or tree.Verify. To 0 is the newest
// checkpoint's size. Nothing is judged here: what contradicts itself is handed on as it is.
func (l *Log) Export(ctx context.Context, from, to int64) (tree.Header, iter.Seq2[tree.Line, error], error) {
	c, err := l.newest(ctx)
	if err != nil {
		return tree.Header{}, nil, err
	}
	return l.export(ctx, c, from, to)
}

// export is an Export that a checkpoint of the whole tree goes with.
func (l *Log) export(ctx context.Context, c tree.Checkpoint, from, to int64) (h tree.Header, lines iter.Seq2[tree.Line, error], err error) {
	if to == 0 {
		to = c.Size
	}
	if from < 0 || from >= to || to > c.Size {
		return h, nil, broker.Errorf(broker.CodeInvalidRequest, "no such range: the newest checkpoint has %d events", c.Size)
	}
	h = tree.Header{Origin: c.Origin, From: from, To: to, Size: c.Size, Checkpoint: c.Note}
	if h.Left, err = l.nodes(ctx, tree.Nodes(0, from)); err != nil {
		return h, nil, err
	}
	if h.Right, err = l.nodes(ctx, tree.Nodes(to, c.Size)); err != nil {
		return h, nil, err
	}
	archived, err := l.archived(ctx)
	if err != nil {
		return h, nil, err
	}
	w := walk{l: l, ctx: ctx, to: to, archived: archived}
	return h, func(yield func(tree.Line, error) bool) { w.all(from, yield) }, nil
}

// newest is the newest checkpoint that opens: one that was altered does not keep an auditor from verifying.
func (l *Log) newest(ctx context.Context) (c tree.Checkpoint, err error) {
	rows, err := l.pool.Query(ctx, newestNote+" LIMIT 1000", l.keys.Origin())
	if err != nil {
		return c, err
	}
	notes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return c, err
	}
	for _, n := range notes {
		if c, err := l.keys.Open([]byte(n)); err == nil {
			return c, nil
		}
	}
	return c, broker.Errorf(broker.CodeNotFound, "no checkpoint is signed by a known key")
}

func (l *Log) nodes(ctx context.Context, nodes []tree.Node) ([]tlog.Hash, error) {
	if len(nodes) == 0 {
		return nil, nil
	}
	indexes := make([]int64, len(nodes))
	for i, n := range nodes {
		indexes[i] = n.Index()
	}
	return hashes{ctx, l.pool}.ReadHashes(indexes)
}

// archived is which months are no longer in the database, by the database's own word.
func (l *Log) archived(ctx context.Context) (map[string]bool, error) {
	rows, err := l.pool.Query(ctx, "SELECT month FROM tree_archives")
	if err != nil {
		return nil, err
	}
	months, err := pgx.CollectRows(rows, pgx.RowTo[string])
	set := map[string]bool{}
	for _, m := range months {
		set[m] = true
	}
	return set, err
}

type walk struct {
	l        *Log
	ctx      context.Context
	to       int64
	archived map[string]bool
	after    position // of the last leaf read: where the events go on
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

func (w *walk) all(from int64, yield func(tree.Line, error) bool) {
	if err := w.begin(from); err != nil {
		yield(tree.Line{}, err)
		return
	}
	for from < w.to {
		next := min((from/batch+1)*batch, w.to) // whole tiles, but for the first and the last batch
		lines, err := w.lines(from, next)
		if err != nil {
			yield(tree.Line{}, err)
			return
		}
		for _, line := range lines {
			if !yield(line, nil) {
				return
			}
		}
		from = next
	}
}

// begin finds where the events of the leaf before the first stand.
func (w *walk) begin(from int64) error {
	if from == 0 {
		return nil
	}
	err := w.l.pool.QueryRow(w.ctx, "SELECT xid::text::bigint, seq FROM tree_leaves WHERE idx < $1 ORDER BY idx DESC LIMIT 1", from).
		Scan(&w.after.xid, &w.after.seq)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	return err
}

// lines merges leaves and events by their position, and puts each stored tile behind its leaves.
func (w *walk) lines(from, to int64) ([]tree.Line, error) {
	tiles, err := w.tiles(from, to)
	if err != nil {
		return nil, err
	}
	leaves, err := w.leaves(from, to, tiles)
	if err != nil || len(leaves) == 0 {
		return nil, err // leaves that are gone are the verifier's to say
	}
	end := w.after
	for _, l := range leaves { // in the order of the tree; an altered one may say anything
		if l.position.compare(end) > 0 {
			end = l.position
		}
	}
	events, err := w.events(end, len(leaves))
	if err != nil {
		return nil, err
	}
	w.after = end
	m := merge{events: events, by: map[position]*storedEvent{}, used: map[position]bool{}, tiles: tiles}
	for i := range events {
		m.by[events[i].position] = &events[i]
	}
	for i := range leaves {
		m.find(&leaves[i])
		m.used[leaves[i].position] = true
	}
	for _, l := range leaves {
		m.strangers(l.position)
		m.whole(l.idx)
		line := tree.Line{Index: l.idx, ID: l.id, Leaf: &l.hash}
		if e := m.by[l.position]; e != nil {
			line.Body, line.Columns = e.body, e.Contradicted(e.body)
		} else if month := l.at.UTC().Format("2006-01"); w.archived[month] {
			line.Away = month
		}
		m.lines = append(m.lines, line)
	}
	m.strangers(end)
	m.whole(to)
	return m.lines, nil
}

// merge brings leaves, events and tiles of one batch into one order.
type merge struct {
	lines  []tree.Line
	events []storedEvent // that are not yet passed
	by     map[position]*storedEvent
	used   map[position]bool      // by a leaf
	hashes map[tlog.Hash]position // of the events; nil until it is needed
	tiles  []storedTile
}

// find looks by its hash for the event of a leaf of which only the tile tells.
func (m *merge) find(l *storedLeaf) {
	if l.id != "" || l.position != (position{}) {
		return
	}
	if m.hashes == nil {
		m.hashes = make(map[tlog.Hash]position, len(m.events))
		for i := range m.events {
			m.hashes[tlog.RecordHash(m.events[i].body)] = m.events[i].position
		}
	}
	l.position = m.hashes[l.hash]
}

// strangers passes the events up to a position; those of no leaf are lines of their own.
func (m *merge) strangers(before position) {
	for len(m.events) > 0 && m.events[0].compare(before) <= 0 {
		if !m.used[m.events[0].position] {
			m.lines = append(m.lines, tree.Line{Index: -1, Body: m.events[0].body})
		}
		m.events = m.events[1:]
	}
}

// whole passes the stored tiles whose leaves are all before that one.
func (m *merge) whole(before int64) {
	for len(m.tiles) > 0 && (m.tiles[0].n+1)*tree.Width <= before {
		t := tree.Tile{N: m.tiles[0].n}
		if len(m.tiles[0].data) == tree.Width*tlog.HashSize {
			t.Hash = rootOf(m.tiles[0].data)
		}
		m.lines = append(m.lines, tree.Line{Index: -1, Tile: &t})
		m.tiles = m.tiles[1:]
	}
}

func (p position) compare(q position) int {
	return cmp.Or(cmp.Compare(p.xid, q.xid), cmp.Compare(p.seq, q.seq))
}

// leaves reads what the tree remembers of its leaves. Of one that is gone, a stored tile may still have the hash.
func (w *walk) leaves(from, to int64, tiles []storedTile) ([]storedLeaf, error) {
	rows, err := w.l.pool.Query(w.ctx, `SELECT idx, event_id, xid::text::bigint, seq, at, hash FROM tree_leaves
		WHERE idx >= $1 AND idx < $2 ORDER BY idx`, from, to)
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l storedLeaf, err error) {
		var hash []byte
		err = row.Scan(&l.idx, &l.id, &l.xid, &l.seq, &l.at, &hash)
		copy(l.hash[:], hash)
		return l, err
	})
	if err != nil || int64(len(found)) == to-from {
		return found, err
	}
	all := make([]storedLeaf, 0, to-from)
	for _, t := range tiles {
		for i := range len(t.data) / tlog.HashSize {
			all = append(all, storedLeaf{idx: t.n*tree.Width + int64(i), hash: tlog.Hash(t.data[i*tlog.HashSize:][:tlog.HashSize])})
		}
	}
	all = append(all, found...)
	slices.SortStableFunc(all, func(a, b storedLeaf) int { return cmp.Compare(a.idx, b.idx) })
	kept := all[:0]
	for i, l := range all { // of two, the second is the tree's own
		if i+1 == len(all) || all[i+1].idx != l.idx {
			kept = append(kept, l)
		}
	}
	return kept, nil
}

type storedTile struct {
	n    int64
	data []byte
}

// tiles are the stored ones whose leaves are all in the range.
func (w *walk) tiles(from, to int64) ([]storedTile, error) {
	rows, err := w.l.pool.Query(w.ctx, "SELECT n, data FROM tree_tiles WHERE level = 0 AND n >= $1 AND n < $2 ORDER BY n",
		(from+tree.Width-1)/tree.Width, to/tree.Width)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (t storedTile, err error) {
		err = row.Scan(&t.n, &t.data)
		return t, err
	})
}

// events are those up to a position. Far more than there are leaves is no record of ours, and would not fit the memory.
func (w *walk) events(end position, leaves int) ([]storedEvent, error) {
	limit := 2*leaves + batch
	rows, err := w.l.pool.Query(w.ctx, `SELECT xid::text::bigint, seq, id, at, type, caller, task_id, agent_id, profile, provider,
			credential_id, upstream_ids, fingerprint, body
		FROM events WHERE (xid, seq) > ($1::text::xid8, $2) AND (xid, seq) <= ($3::text::xid8, $4) ORDER BY xid, seq LIMIT $5`,
		formatXID(w.after.xid), w.after.seq, formatXID(end.xid), end.seq, limit)
	if err != nil {
		return nil, err
	}
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e storedEvent, err error) {
		err = row.Scan(&e.xid, &e.seq, &e.ID, &e.At, &e.Type, &e.Caller, &e.TaskID, &e.AgentID, &e.Profile, &e.Provider,
			&e.CredentialID, &e.UpstreamIDs, &e.Fingerprint, &e.body)
		return e, err
	})
	if err == nil && len(events) == limit {
		err = fmt.Errorf("%w: among the %d leaves that end at transaction %d stand more than %d events", errTree, leaves, end.xid, limit)
	}
	return events, err
}
