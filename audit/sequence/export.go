package sequence

import (
	"context"
	"iter"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
)

// Export is a walk through leaves [From, To) and their events, for tree.Write or tree.Verify. To 0 is the newest
// checkpoint's size. Nothing is judged here: what contradicts itself is handed on as it is.
func (l *Log) Export(ctx context.Context, from, to int64) (tree.Header, iter.Seq2[tree.Line, error], error) {
	c, err := l.newest(ctx)
	if err != nil {
		return tree.Header{}, nil, err
	}
	h, w, err := l.export(ctx, c, from, to)
	return h, w.all, err
}

// export is an Export that a checkpoint of the whole tree goes with.
func (l *Log) export(ctx context.Context, c tree.Checkpoint, from, to int64) (h tree.Header, w walk, err error) {
	if to == 0 {
		to = c.Size
	}
	if from < 0 || from >= to || to > c.Size {
		return h, w, broker.Errorf(broker.CodeInvalidRequest, "no such range: the newest checkpoint has %d events", c.Size)
	}
	h = tree.Header{Origin: c.Origin, From: from, To: to, Size: c.Size, Checkpoint: c.Note}
	if h.Left, err = l.nodes(ctx, tree.Nodes(0, from)); err != nil {
		return h, w, err
	}
	if h.Right, err = l.nodes(ctx, tree.Nodes(to, c.Size)); err != nil {
		return h, w, err
	}
	return h, walk{l: l, ctx: ctx, from: from, to: to, end: to == c.Size}, nil
}

// maxNotes is how many of the newest checkpoints are tried.
const maxNotes = 1000

// newest is the newest checkpoint that opens: one that was altered does not keep an auditor from verifying.
func (l *Log) newest(ctx context.Context) (c tree.Checkpoint, err error) {
	notes, err := collectInOrder(ctx, l.pool, pgx.RowTo[string], newestNote+" LIMIT $2", l.keys.Origin(), maxNotes)
	if err != nil {
		return c, err
	}
	for _, n := range notes {
		if c, err := l.keys.Open([]byte(n)); err == nil {
			return c, nil
		}
	}
	if len(notes) == maxNotes {
		return c, broker.Errorf(broker.CodeNotFound, "none of the newest %d checkpoints is signed by a known key", maxNotes)
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
	return hashes{ctx: ctx, q: l.pool}.ReadHashes(indexes)
}

// archived is which months have left the database, by the database's own word.
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
