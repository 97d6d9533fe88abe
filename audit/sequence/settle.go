package sequence

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Settled is one month whose partition was made late.
type Settled struct {
	Month  string // "2006-01"
	Events int64
}

// Settle gives a partition to each month that has none though events of it are there: they came into events_default,
// where they are in the way of that partition and cannot be archived. Neither their order nor a byte of them changes, so
// the tree stays what it is. Each month is one transaction, in which nothing else is written to the record; who writes
// waits for it. owner is as for Archive.
func Settle(ctx context.Context, owner *pgxpool.Pool) ([]Settled, error) {
	rows, err := owner.Query(ctx, `SELECT DISTINCT date_trunc('month', at AT TIME ZONE 'UTC') FROM events_default
		WHERE at >= '2000-01-01 00:00Z' AND at < '10000-01-01 00:00Z' ORDER BY 1`) // what else is there is of no month of ours
	if err != nil {
		return nil, err
	}
	months, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	if err != nil {
		return nil, err
	}
	var done []Settled
	for _, month := range months {
		s := Settled{Month: month.Format("2006-01")}
		if err := pgx.BeginFunc(ctx, owner, func(tx pgx.Tx) (err error) {
			s.Events, err = settle(ctx, tx, month)
			return err
		}); err != nil {
			return done, fmt.Errorf("%s stays in events_default: %w", s.Month, err)
		}
		done = append(done, s)
	}
	return done, nil
}

// settle makes the partition as a table of its own, for PostgreSQL makes none over rows in the default, and attaches it:
// that gives it the indexes of the others.
func settle(ctx context.Context, tx pgx.Tx, month time.Time) (events int64, err error) {
	table, end := "events_"+month.Format("2006_01"), month.AddDate(0, 1, 0)
	bounds := fmt.Sprintf("FROM ('%s') TO ('%s')", month.Format(time.RFC3339), end.Format(time.RFC3339))
	for _, sql := range []string{
		// Whoever waits for this lock holds up who writes events: better to give up and be run again. The first lock is
		// what ensure_event_partitions takes.
		"SET LOCAL lock_timeout = '3s'",
		"SELECT pg_advisory_xact_lock(hashtext('taskpass.event_partitions'))",
		"LOCK TABLE events, events_default IN ACCESS EXCLUSIVE MODE",
		"CREATE TABLE " + table + " (LIKE events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return 0, err
		}
	}
	tag, err := tx.Exec(ctx, "WITH moved AS (DELETE FROM events WHERE at >= $1 AND at < $2 RETURNING *) INSERT INTO "+table+" SELECT * FROM moved",
		month, end)
	if err != nil {
		return 0, err
	}
	for _, sql := range []string{
		"ALTER TABLE events ATTACH PARTITION " + table + " FOR VALUES " + bounds,
		// What is deleted still takes room, and that it takes none is how it is seen that no month was missed.
		"DO $$ BEGIN IF NOT EXISTS (SELECT FROM events_default) THEN TRUNCATE events_default; END IF; END $$",
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return 0, err
		}
	}
	return tag.RowsAffected(), nil
}

// Unsettled is how many bytes stand in events_default: 0 unless a month's partition was not made in time.
func (l *Log) Unsettled(ctx context.Context) (bytes int64, err error) {
	err = l.pool.QueryRow(ctx, "SELECT pg_relation_size('events_default')").Scan(&bytes)
	return bytes, err
}
