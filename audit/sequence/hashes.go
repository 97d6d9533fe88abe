package sequence

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/tree"
)

// querier is a pool, a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// errTree says that the stored tree is not whole: something that must be there is not, or has another form.
var errTree = errors.New("the stored tree is not whole")

// hashes implements tlog.HashReader for the tree in the database.
type hashes struct {
	ctx  context.Context
	q    querier
	kept map[place][]byte // tiles that were read; nil: each question reads its own
}

type place struct {
	level int
	n     int64
}

// ReadHashes reads whole tiles in one statement, and comes to each that is not whole in one more: there is at most one
// such a level on the way to a root.
func (h hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	tiles := h.kept
	if tiles == nil {
		tiles = map[place][]byte{}
	}
	var levels []int32
	var ns []int64
	for _, i := range indexes {
		t := tlog.TileForIndex(tree.Height, i)
		if at := (place{t.L, t.N}); tiles[at] == nil {
			tiles[at] = []byte{}
			levels, ns = append(levels, int32(t.L)), append(ns, t.N) //nolint:gosec // below 8
		}
	}
	if err := h.read(tiles, levels, ns); err != nil {
		return nil, err
	}
	list := make([]tlog.Hash, len(indexes))
	var err error
	for i, index := range indexes {
		t := tlog.TileForIndex(tree.Height, index)
		at := place{t.L, t.N}
		if len(tiles[at]) == 0 {
			if tiles[at], err = h.partial(at); err != nil {
				return nil, err
			}
		}
		if len(tiles[at]) < t.W*tlog.HashSize {
			return nil, fmt.Errorf("%w: tile %d of level %d ends too early", errTree, t.N, t.L)
		}
		t.W = len(tiles[at]) / tlog.HashSize
		if list[i], err = tlog.HashFromTile(t, tiles[at], index); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// read adds the stored ones of these tiles.
func (h hashes) read(tiles map[place][]byte, levels []int32, ns []int64) error {
	if len(ns) == 0 {
		return nil
	}
	rows, err := h.q.Query(h.ctx, `SELECT t.level, t.n, t.data FROM unnest($1::int[], $2::bigint[]) AS w (level, n)
		JOIN tree_tiles t ON t.level = w.level AND t.n = w.n`, levels, ns)
	if err != nil {
		return err
	}
	var level int
	var n int64
	var data []byte
	_, err = pgx.ForEachRow(rows, []any{&level, &n, &data}, func() error {
		tiles[place{level, n}] = append([]byte(nil), data...)
		return nil
	})
	return err
}

// partial comes to a tile that is not stored, for it is not yet whole.
func (h hashes) partial(at place) ([]byte, error) {
	sql := "SELECT idx, hash FROM tree_leaves WHERE idx >= $1 AND idx < $2 ORDER BY idx"
	args := []any{at.n * tree.Width, (at.n + 1) * tree.Width}
	if at.level > 0 {
		sql = "SELECT n, root FROM tree_tiles WHERE n >= $1 AND n < $2 AND level = $3 ORDER BY n"
		args = append(args, at.level-1)
	}
	rows, err := h.q.Query(h.ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return gather(rows, at.n*tree.Width)
}

// gather puts hashes together that must be numbered one after the other.
func gather(rows pgx.Rows, from int64) ([]byte, error) {
	var data, hash []byte
	var n int64
	_, err := pgx.ForEachRow(rows, []any{&n, &hash}, func() error {
		if n != from+int64(len(data)/tlog.HashSize) || len(hash) != tlog.HashSize {
			return fmt.Errorf("%w: a hash is missing before number %d", errTree, n)
		}
		data = append(data, hash...)
		return nil
	})
	return data, err
}

// rootOf is the hash of a whole tile.
func rootOf(data []byte) tlog.Hash {
	if len(data) == tlog.HashSize {
		return tlog.Hash(data)
	}
	half := len(data) / 2
	return tlog.NodeHash(rootOf(data[:half]), rootOf(data[half:]))
}
