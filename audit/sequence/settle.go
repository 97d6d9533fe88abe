package sequence

import (
	"context"
	"errors"
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

// ofAMonth is of a time whose month has a name, "2006-01". No clock shows another.
const ofAMonth = "at >= '0001-01-01 00:00Z' AND at < '10000-01-01 00:00Z'"

// Settle gives a partition to each month that has none though events of it are there: they came into events_default,
// where they are in the way of that partition and cannot be archived. Neither their order nor a byte of them changes, so
// the tree stays what it is. Each month is one transaction, in which nothing else is written to the record; who writes
// waits for it. A month that fails keeps no other from being settled. owner is as for Archive.
func Settle(ctx context.Context, owner *pgxpool.Pool) ([]Settled, error) {
	rows, err := owner.Query(ctx, "SELECT DISTINCT date_trunc('month', at AT TIME ZONE 'UTC') FROM events_default WHERE "+ofAMonth+" ORDER BY 1")
	if err != nil {
		return nil, err
	}
	months, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	if err != nil {
		return nil, err
	}
	var done []Settled
	var errs []error
	for _, month := range months {
		s := Settled{Month: month.Format("2006-01")}
		if err := pgx.BeginFunc(ctx, owner, func(tx pgx.Tx) (err error) {
			s.Events, err = settle(ctx, tx, month)
			return err
		}); err != nil {
			errs = append(errs, fmt.Errorf("%s stays in events_default: %w", s.Month, err))
			if futile(ctx, err) {
				return done, errors.Join(errs...)
			}
			continue
		}
		done = append(done, s)
	}
	return done, errors.Join(append(errs, sweep(ctx, owner))...)
}

// settle makes the partition as a table of its own, for PostgreSQL makes none over rows in the default, and attaches it:
// that gives it the indexes of the others.
func settle(ctx context.Context, tx pgx.Tx, month time.Time) (events int64, err error) {
	for _, sql := range []string{
		// Whoever waits for this lock holds up who writes events: better to give up and be run again. The first lock is
		// what ensure_event_partitions takes.
		"SET LOCAL lock_timeout = '3s'",
		"SELECT pg_advisory_xact_lock(hashtext('taskpass.event_partitions'))",
		"LOCK TABLE events, events_default IN ACCESS EXCLUSIVE MODE",
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return 0, err
		}
	}
	table, err := freeTable(ctx, tx, "events_"+month.Format("2006_01"))
	if err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, "CREATE TABLE "+table+" (LIKE events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)"); err != nil {
		return 0, err
	}
	end := month.AddDate(0, 1, 0)
	tag, err := tx.Exec(ctx, "WITH moved AS (DELETE FROM events WHERE at >= $1 AND at < $2 RETURNING *) INSERT INTO "+table+" SELECT * FROM moved",
		month, end)
	if err != nil {
		return 0, err
	}
	_, err = tx.Exec(ctx, fmt.Sprintf("ALTER TABLE events ATTACH PARTITION %s FOR VALUES FROM ('%s') TO ('%s')",
		table, month.Format(time.RFC3339), end.Format(time.RFC3339)))
	return tag.RowsAffected(), err
}

// freeTable is that name, or with a number behind it if the month was archived and its table is still there.
func freeTable(ctx context.Context, tx pgx.Tx, name string) (free string, err error) {
	for n, taken := 1, true; taken && err == nil; n++ {
		if free = name; n > 1 {
			free += fmt.Sprintf("_%d", n)
		}
		err = tx.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", free).Scan(&taken)
	}
	return free, err
}

// sweep gives back the room of what was moved, or was never committed: that events_default takes none is how it is seen
// that no month was missed. It says what cannot be moved.
func sweep(ctx context.Context, owner *pgxpool.Pool) error {
	var waste bool
	var strange int64
	if err := owner.QueryRow(ctx, `SELECT pg_relation_size('events_default') > 0 AND NOT EXISTS (SELECT FROM events_default), count(*)
		FROM events_default WHERE NOT (`+ofAMonth+")").Scan(&waste, &strange); err != nil {
		return err
	}
	if strange > 0 {
		return fmt.Errorf("%d events stay in events_default: their times are in no year from 1 to 9999", strange)
	}
	if !waste {
		return nil
	}
	if err := pgx.BeginFunc(ctx, owner, func(tx pgx.Tx) error {
		for _, sql := range []string{
			"SET LOCAL lock_timeout = '3s'",
			"LOCK TABLE events_default IN ACCESS EXCLUSIVE MODE",
			"DO $$ BEGIN IF NOT EXISTS (SELECT FROM events_default) THEN TRUNCATE events_default; END IF; END $$",
		} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("events_default is empty, and its room is not given back: %w", err)
	}
	return nil
}

// Unsettled is how many bytes stand in events_default: 0 unless a month's partition was not made in time.
func (l *Log) Unsettled(ctx context.Context) (bytes int64, err error) {
	err = l.pool.QueryRow(ctx, "SELECT pg_relation_size('events_default')").Scan(&bytes)
	return bytes, err
}
