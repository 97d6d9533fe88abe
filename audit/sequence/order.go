package sequence

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// inOrder makes PostgreSQL follow the indexes that have the record's order, until the transaction ends. Left to its
// statistics it does not: those of a table that is only appended to end before its newest rows, so the planner expects
// next to nothing after any position near the end, and reads and sorts all that is there to find the first few.
//
// A statement that needs these settings always runs under them: a connection keeps the plan of each statement.
const inOrder = `set_config('enable_sort', 'off', true), set_config('enable_seqscan', 'off', true),
	set_config('enable_bitmapscan', 'off', true), set_config('max_parallel_workers_per_gather', '0', true),
	set_config('jit', 'off', true), set_config('plan_cache_mode', 'force_generic_plan', true)`

// readInOrder runs one query in a transaction of its own, under inOrder.
func readInOrder(ctx context.Context, pool *pgxpool.Pool, each func(pgx.Rows) error, sql string, args ...any) error {
	batch := &pgx.Batch{}
	batch.Queue("SELECT " + inOrder)
	batch.Queue(sql, args...).Query(each)
	return pool.SendBatch(ctx, batch).Close()
}

// collectInOrder is readInOrder for all of the rows.
func collectInOrder[T any](ctx context.Context, pool *pgxpool.Pool, row pgx.RowToFunc[T], sql string, args ...any) (list []T, err error) {
	err = readInOrder(ctx, pool, func(rows pgx.Rows) (err error) {
		list, err = pgx.CollectRows(rows, row)
		return err
	}, sql, args...)
	return list, err
}

// firstInOrder is readInOrder for the only row; pgx.ErrNoRows if there is none.
func firstInOrder(ctx context.Context, pool *pgxpool.Pool, into []any, sql string, args ...any) error {
	return readInOrder(ctx, pool, func(rows pgx.Rows) error {
		defer rows.Close()
		if !rows.Next() {
			if err := rows.Err(); err != nil {
				return err
			}
			return pgx.ErrNoRows
		}
		return rows.Scan(into...)
	}, sql, args...)
}
