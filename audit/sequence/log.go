package sequence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
)

// Log reads checkpoints and proofs. Every proof is checked before it is given; one that does not hold is an error, for
// then the tree was altered. It is safe for concurrent use.
type Log struct {
	pool *pgxpool.Pool
	keys *tree.Keys
}

// NewLog reads from the database behind pool what was signed by one of the keys.
func NewLog(pool *pgxpool.Pool, keys *tree.Keys) *Log { return &Log{pool, keys} }

// tampered is the error for callers where the stored tree or record contradicts what was signed; any other error stays what
// it is. The cause stays inside.
func tampered(err error) error {
	if !errors.Is(err, errTree) {
		return err
	}
	return broker.Errorf(broker.CodeRecordTampered, "the stored audit record is not the one that was signed: "+
		"keep the database as it is, and run `taskpass audit verify`").Because(err)
}

// newestNote is the checkpoints of a log of that name, the newest first. A tree goes on under another name after its
// record was restored; what the old name signed is not this log's.
const newestNote = `SELECT note FROM tree_checkpoints WHERE starts_with(note, $1 || E'\n') ORDER BY id DESC`

// Inclusion shows that an event is a leaf of the tree of Size leaves, whose root is Root.
type Inclusion struct {
	EventID string
	Index   int64
	Size    int64
	Root    tlog.Hash
	Leaf    tlog.Hash
	Proof   []tlog.Hash
	Body    []byte          // the event's canonical bytes, of which Leaf is the hash; nil only if Away
	Away    bool            // the event is not there, and the database says that its month was archived; nothing proves that it was
	Signed  tree.Checkpoint // the newest; of Size leaves unless another size was asked for
}

// ErrRemoved says that the event of a leaf is gone, and was not archived.
var ErrRemoved = fmt.Errorf("%w: the event of a leaf is gone, and its month was not archived", errTree)

// leafWhere is a leaf, its event, and whether the month of it was archived: all as of one moment, for a month may be
// leaving just now. Of several leaves of one event it is the first: see migrations/00006_tree.sql. An order by idx itself
// could make the planner walk through the whole tree in search of the event.
const leafWhere = `SELECT l.idx, l.event_id, l.hash, e.body,
		e.body IS NULL AND EXISTS (SELECT FROM tree_archives WHERE month = to_char(l.at AT TIME ZONE 'UTC', 'YYYY-MM'))
	FROM (SELECT * FROM tree_leaves WHERE %s = $1 ORDER BY idx + 0 LIMIT 1) l LEFT JOIN events e ON e.xid = l.xid AND e.seq = l.seq`

// Consistency shows that the tree of To leaves begins with that of From.
type Consistency struct {
	From, To         int64
	FromRoot, ToRoot tlog.Hash
	Proof            []tlog.Hash
}

// Checkpoint is the newest one; not_found before the first.
func (l *Log) Checkpoint(ctx context.Context) (tree.Checkpoint, error) {
	var text string
	err := firstInOrder(ctx, l.pool, []any{&text}, newestNote+" LIMIT 1", l.keys.Origin())
	if errors.Is(err, pgx.ErrNoRows) {
		return tree.Checkpoint{}, broker.Errorf(broker.CodeNotFound, "no checkpoint is signed yet")
	}
	if err != nil {
		return tree.Checkpoint{}, err
	}
	c, err := l.keys.Open([]byte(text))
	if err != nil {
		return c, tampered(fmt.Errorf("%w: the newest stored checkpoint: %w", errTree, err))
	}
	return c, nil
}

// Include proves an event by its id, or the leaf of that index if the id is empty. A size of 0 is the newest
// checkpoint's. What is not in the tree (yet) is not_found; record_tampered where the proof does not hold, or the event is
// not the one that was signed.
func (l *Log) Include(ctx context.Context, eventID string, index, size int64) (in Inclusion, err error) {
	in, err = l.include(ctx, eventID, index, size)
	return in, tampered(err)
}

func (l *Log) include(ctx context.Context, eventID string, index, size int64) (in Inclusion, err error) {
	if in.Signed, err = l.Checkpoint(ctx); err != nil {
		return in, err
	}
	if in.Size = size; size == 0 {
		in.Size = in.Signed.Size
	}
	var hash []byte
	column, arg := "idx", any(index)
	if eventID != "" {
		column, arg = "event_id", eventID
	}
	err = l.pool.QueryRow(ctx, fmt.Sprintf(leafWhere, column), arg).Scan(&in.Index, &in.EventID, &hash, &in.Body, &in.Away)
	if errors.Is(err, pgx.ErrNoRows) && eventID == "" && 0 <= index && index < min(in.Size, in.Signed.Size) {
		return in, fmt.Errorf("%w: leaf %d is missing", errTree, index)
	}
	if errors.Is(err, pgx.ErrNoRows) || err == nil && in.Index >= in.Size {
		return in, broker.Errorf(broker.CodeNotFound, "no such event is in the tree yet, or not in one of that size")
	}
	if err != nil {
		return in, err
	}
	if err := l.within(in.Size, in.Signed); err != nil {
		return in, err
	}
	copy(in.Leaf[:], hash) // one of another length is no leaf of this tree, and proves nothing
	reader := hashes{ctx: ctx, q: l.pool}
	if in.Root, err = tlog.TreeHash(in.Size, reader); err != nil {
		return in, err
	}
	proof, err := tlog.ProveRecord(in.Size, in.Index, reader)
	if err != nil {
		return in, err
	}
	in.Proof = proof
	return in, l.hold(ctx, in)
}

// hold checks an inclusion before it is given: against the signed root, and the event against its leaf.
func (l *Log) hold(ctx context.Context, in Inclusion) error {
	if in.Size == in.Signed.Size && in.Root != in.Signed.Root {
		return fmt.Errorf("%w: it does not come to the signed root", errTree)
	}
	if in.Size < in.Signed.Size {
		proof, err := tlog.ProveTree(in.Signed.Size, in.Size, hashes{ctx: ctx, q: l.pool})
		if err != nil {
			return err
		}
		if err := tlog.CheckTree(proof, in.Signed.Size, in.Signed.Root, in.Size, in.Root); err != nil {
			return fmt.Errorf("%w: %w", errTree, err)
		}
	}
	if err := tlog.CheckRecord(in.Proof, in.Size, in.Root, in.Index, in.Leaf); err != nil {
		return fmt.Errorf("%w: %w", errTree, err)
	}
	if in.Body == nil && !in.Away {
		return ErrRemoved
	}
	if in.Body != nil && tlog.RecordHash(in.Body) != in.Leaf {
		return fmt.Errorf("%w: the event %s is not the one in it", errTree, in.EventID)
	}
	return nil
}

func (l *Log) within(size int64, c tree.Checkpoint) error {
	if size < 1 || size > c.Size {
		return broker.Errorf(broker.CodeNotFound, "no tree of that size is signed; the newest has %d events", c.Size)
	}
	return nil
}

// Consist proves that the tree of to leaves extends that of from. A to of 0 is the newest checkpoint's. record_tampered where
// the stored one does not.
func (l *Log) Consist(ctx context.Context, from, to int64) (p Consistency, err error) {
	p, err = l.consist(ctx, from, to)
	return p, tampered(err)
}

func (l *Log) consist(ctx context.Context, from, to int64) (p Consistency, err error) {
	c, err := l.Checkpoint(ctx)
	if err != nil {
		return p, err
	}
	if to == 0 {
		to = c.Size
	}
	if err := errors.Join(l.within(to, c), l.within(from, c)); err != nil {
		return p, err
	}
	if from > to {
		return p, broker.Errorf(broker.CodeNotFound, "a tree extends smaller ones only")
	}
	p = Consistency{From: from, To: to}
	reader := hashes{ctx: ctx, q: l.pool}
	var err1, err2, err3 error
	p.FromRoot, err1 = tlog.TreeHash(from, reader)
	p.ToRoot, err2 = tlog.TreeHash(to, reader)
	var proof tlog.TreeProof
	if from < to {
		proof, err3 = tlog.ProveTree(to, from, reader)
	}
	if err := errors.Join(err1, err2, err3); err != nil {
		return p, err
	}
	p.Proof = proof
	if to == c.Size && p.ToRoot != c.Root {
		return p, fmt.Errorf("%w: it does not come to the signed root", errTree)
	}
	if from < to {
		if err := tlog.CheckTree(proof, to, p.ToRoot, from, p.FromRoot); err != nil {
			return p, fmt.Errorf("%w: %w", errTree, err)
		}
	}
	return p, nil
}

// Tile gives the hashes of a tile of the tree that the newest checkpoint signs, as C2SP's tlog-tiles has them: 256 of
// them, or as many as there are. not_found if there is none.
func (l *Log) Tile(ctx context.Context, level int, n int64) ([]byte, error) {
	c, err := l.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	width := int64(0)
	if 0 <= level && level < 8 && n >= 0 {
		width = min(c.Size>>(tree.Height*level)-n*tree.Width, tree.Width)
	}
	if n > c.Size/tree.Width || width <= 0 {
		return nil, broker.Errorf(broker.CodeNotFound, "there is no such tile")
	}
	data, err := tlog.ReadTileData(tlog.Tile{H: tree.Height, L: level, N: n, W: int(width)}, hashes{ctx: ctx, q: l.pool})
	return data, tampered(err)
}

// lagCounted is how many waiting events Lag reads at most. It is asked at every scrape.
const lagCounted = 500

// Lag is how much of the record is not in the tree yet: how many events, and how old the oldest is. It reads lagCounted
// events at most. Of more than that the number is how far the newest event's seq is ahead of the tree's last: transactions
// that were rolled back make it too large, and those that overtook each other too small, by as many events as they had.
func (l *Log) Lag(ctx context.Context) (events int64, oldest time.Duration, err error) {
	var seconds float64
	var newest, last int64
	err = firstInOrder(ctx, l.pool, []any{&events, &seconds, &newest, &last}, `SELECT count(*),
			coalesce(extract(epoch FROM now() - min(at) FILTER (WHERE isfinite(at))), 0)::float8,
			coalesce((SELECT seq FROM events ORDER BY xid DESC, seq DESC LIMIT 1), 0),
			coalesce((SELECT seq FROM tree_leaves ORDER BY idx DESC LIMIT 1), 0)
		FROM (SELECT e.at FROM events e WHERE (e.xid, e.seq) > (
				coalesce((SELECT xid FROM tree_leaves ORDER BY idx DESC LIMIT 1), '0'::xid8),
				coalesce((SELECT seq FROM tree_leaves ORDER BY idx DESC LIMIT 1), 0))
			ORDER BY e.xid, e.seq LIMIT $1) waiting`, lagCounted)
	if ahead := newest - last; events == lagCounted && newest > 0 && last >= 0 { // what an owner made up is not counted
		events = max(events, ahead)
	}
	return events, max(time.Duration(seconds*float64(time.Second)), 0), err
}
