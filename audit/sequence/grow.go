package sequence

import (
	"slices"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/tree"
)

// grow puts the next events into the tree, and the tiles that they make whole.
func (r *round) grow() error {
	leaves, err := r.next()
	if err != nil || len(leaves) == 0 {
		return err
	}
	// Two processes that were both to write here would break the primary key: one of the transactions fails as a whole.
	if _, err := r.tx.CopyFrom(r.ctx, pgx.Identifier{"tree_leaves"}, []string{"idx", "event_id", "xid", "seq", "at", "hash"},
		pgx.CopyFromSlice(len(leaves), func(i int) ([]any, error) {
			l := &leaves[i]
			return []any{r.size + int64(i), l.id, l.xid, l.seq, l.at, l.hash[:]}, nil
		})); err != nil {
		return err
	}
	before := r.size
	r.size += int64(len(leaves))
	r.last = leaves[len(leaves)-1].position
	r.more = len(leaves) == maxBatch
	return r.tiles(before, leaves)
}

// next reads the events that follow the tree's last, below every transaction that is still open. Their bodies are hashed as
// they come: of many large ones no more than one is in memory.
func (r *round) next() ([]leaf, error) {
	rows, err := r.tx.Query(r.ctx, `SELECT id, xid, seq, at, body FROM events
		WHERE (xid, seq) > ($1, $2) AND xid < pg_snapshot_xmin(pg_current_snapshot())
		ORDER BY xid, seq LIMIT $3`, r.last.xid, r.last.seq, maxBatch)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (l leaf, err error) {
		err = row.Scan(&l.id, &l.xid, &l.seq, &l.at, nil)
		l.hash = tlog.RecordHash(row.RawValues()[4]) // a text's bytes, in either format of the protocol
		return l, err
	})
}

// tiles stores the tiles that have become whole, level by level. leaves are those from before on.
func (r *round) tiles(before int64, leaves []leaf) error {
	from, to := before/tree.Width, r.size/tree.Width
	if from == to {
		return nil
	}
	hashes, err := r.partialTile(before)
	if err != nil {
		return err
	}
	for _, l := range leaves[:to*tree.Width-before] {
		hashes = append(hashes, l.hash[:]...)
	}
	for level := 0; from < to; level++ {
		roots, err := r.store(level, from, hashes)
		if err != nil {
			return err
		}
		first, end := from/tree.Width, to/tree.Width
		if first == end {
			return nil
		}
		// The tile above begins with roots that were stored before, and ends with some of these.
		earlier, err := r.roots(level, first*tree.Width, from)
		if err != nil {
			return err
		}
		hashes = append(earlier, roots...)[:(end-first)*tileBytes]
		from, to = first, end
	}
	return nil
}

const tileBytes = tree.Width * tlog.HashSize

// partialTile reads the leaves of the tile under way that were there before.
func (r *round) partialTile(before int64) ([]byte, error) {
	rows, err := r.tx.Query(r.ctx, "SELECT idx, hash FROM tree_leaves WHERE idx >= $1 AND idx < $2 ORDER BY idx",
		before/tree.Width*tree.Width, before)
	if err != nil {
		return nil, err
	}
	return whole(rows, before/tree.Width*tree.Width, before)
}

// roots reads those of the stored tiles [from, to) of a level.
func (r *round) roots(level int, from, to int64) ([]byte, error) {
	rows, err := r.tx.Query(r.ctx, "SELECT n, root FROM tree_tiles WHERE n >= $1 AND n < $2 AND level = $3 ORDER BY n", from, to, level)
	if err != nil {
		return nil, err
	}
	return whole(rows, from, to)
}

// whole gathers the hashes [from, to), all of which must be there.
func whole(rows pgx.Rows, from, to int64) ([]byte, error) {
	data, err := gather(rows, from)
	if err == nil && int64(len(data)) != (to-from)*tlog.HashSize {
		err = errTree
	}
	return data, err
}

// store stores whole tiles, of which from is the first, and gives their roots.
func (r *round) store(level int, from int64, hashes []byte) (roots []byte, err error) {
	tiles := slices.Collect(slices.Chunk(hashes, tileBytes))
	_, err = r.tx.CopyFrom(r.ctx, pgx.Identifier{"tree_tiles"}, []string{"level", "n", "data", "root"},
		pgx.CopyFromSlice(len(tiles), func(i int) ([]any, error) {
			root := rootOf(tiles[i])
			roots = append(roots, root[:]...)
			return []any{int32(level), from + int64(i), tiles[i], root[:]}, nil //nolint:gosec // below 8
		}))
	return roots, err
}
