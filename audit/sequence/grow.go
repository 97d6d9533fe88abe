package sequence

import (
	"time"

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
	n := len(leaves)
	idx, xids, seqs := make([]int64, n), make([]uint64, n), make([]int64, n)
	ids, ats, sums := make([]string, n), make([]time.Time, n), make([][]byte, n)
	for i, l := range leaves {
		idx[i], xids[i], seqs[i] = r.size+int64(i), l.xid, l.seq
		ids[i], ats[i], sums[i] = l.id, l.at, l.hash[:]
	}
	// Two processes that were both to write here would break the primary key: one of the transactions fails as a whole.
	if _, err := r.tx.Exec(r.ctx, `INSERT INTO tree_leaves (idx, event_id, xid, seq, at, hash)
		SELECT *
		FROM unnest($1::bigint[], $2::text[], $3::xid8[], $4::bigint[], $5::timestamptz[], $6::bytea[]) AS l (idx, event_id, xid, seq, at, hash)`,
		idx, ids, xids, seqs, ats, sums); err != nil {
		return err
	}
	before := r.size
	r.size += int64(n)
	r.last = leaves[n-1].position
	r.more = n == maxBatch
	return r.tiles(before)
}

// next reads the events that follow the tree's last, below every transaction that is still open.
func (r *round) next() ([]leaf, error) {
	rows, err := r.tx.Query(r.ctx, `SELECT id, xid, seq, at, body FROM events
		WHERE (xid, seq) > ($1, $2) AND xid < pg_snapshot_xmin(pg_current_snapshot())
		ORDER BY xid, seq LIMIT $3`, r.last.xid, r.last.seq, maxBatch)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (l leaf, err error) {
		var body []byte
		err = row.Scan(&l.id, &l.xid, &l.seq, &l.at, &body)
		l.hash = tlog.RecordHash(body)
		return l, err
	})
}

// tiles stores the tiles that have become whole, level by level.
func (r *round) tiles(before int64) error {
	from, to := before/tree.Width, r.size/tree.Width
	for level := 0; from < to; level++ {
		sql, args := "SELECT idx, hash FROM tree_leaves WHERE idx >= $1 AND idx < $2 ORDER BY idx", []any{from * tree.Width, to * tree.Width}
		if level > 0 {
			sql = "SELECT n, root FROM tree_tiles WHERE n >= $1 AND n < $2 AND level = $3 ORDER BY n"
			args = append(args, level-1)
		}
		rows, err := r.tx.Query(r.ctx, sql, args...)
		if err != nil {
			return err
		}
		data, err := gather(rows, from*tree.Width)
		if err != nil {
			return err
		}
		const size = tree.Width * tlog.HashSize
		if int64(len(data)) != (to-from)*size {
			return errTree
		}
		batch := &pgx.Batch{}
		for n := from; n < to; n++ {
			tile := data[(n-from)*size:][:size]
			root := rootOf(tile)
			batch.Queue("INSERT INTO tree_tiles (level, n, data, root) VALUES ($1, $2, $3, $4)", level, n, tile, root[:])
		}
		if err := r.tx.SendBatch(r.ctx, batch).Close(); err != nil {
			return err
		}
		from, to = from/tree.Width, to/tree.Width
	}
	return nil
}
