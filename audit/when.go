package audit

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

const (
	// stretch is how many events a row of event_stretches sums up, and how many of these one of the level above. At either
	// end of a time a search reads up to so many events in vain.
	stretch = 256
	// notedAtOnce is how many stretches one transaction sums up.
	notedAtOnce = 256
	// maxSpans is how many parts of the order a search reads apart. If very wrong clocks make more of them, it reads what
	// lies between the last ones too.
	maxSpans = 16
)

// Note sums up what was settled since the last time, and tells whether more is waiting. Searches by time are slow without
// it, and find the same. Any number of replicas may call it; nobody who writes is held up.
func (l *Log) Note(ctx context.Context) (more bool, err error) {
	var noted int
	err = l.pool.QueryRow(ctx, "SELECT note_event_stretches($1, $2)", notedAtOnce, stretch).Scan(&noted)
	return noted == notedAtOnce, err
}

// whereSQL lists the places where stretches begin that may have events of a time and those that have none, in turn. One
// of the upper level that has other times too is looked at by its parts. What is not summed up yet, after the last
// stretch, is looked at itself: it is little, and most often has none. More than 10,000 events there may have some.
const whereSQL = `WITH upper AS (
	SELECT *, latest >= $1 AND earliest < $2 AS may, earliest >= $1 AND latest < $2 AS must FROM event_stretches WHERE level = 1
), parts AS (
	SELECT p.* FROM (
		SELECT after_xid, after_seq, xid, seq FROM upper WHERE may AND NOT must
		UNION ALL (SELECT xid, seq, '18446744073709551615', 0 FROM upper ORDER BY after_xid DESC, after_seq DESC LIMIT 1)) u,
	LATERAL (SELECT after_xid, after_seq, latest >= $1 AND earliest < $2 AS may FROM event_stretches
		WHERE level = 0 AND (after_xid, after_seq) >= (u.after_xid, u.after_seq) AND (after_xid, after_seq) < (u.xid, u.seq)
		ORDER BY after_xid, after_seq OFFSET 0) p -- the barrier keeps the planner from reading all of them
)
SELECT after_xid::text::bigint, after_seq, may FROM (
	SELECT after_xid, after_seq, may, lag(may) OVER (ORDER BY after_xid, after_seq) AS before FROM (
		SELECT after_xid, after_seq, may FROM upper WHERE may = must UNION ALL SELECT * FROM parts) s) t
WHERE may IS DISTINCT FROM before
UNION ALL SELECT xid::text::bigint, seq, coalesce((SELECT true FROM (
	SELECT at, row_number() OVER (ORDER BY xid, seq) AS n FROM events WHERE (xid, seq) > (last.xid, last.seq) ORDER BY xid, seq LIMIT 10000) newest
	WHERE at >= $1 AND at < $2 OR n = 10000 LIMIT 1), false)
FROM (SELECT xid, seq FROM event_stretches WHERE level = 0 ORDER BY after_xid DESC, after_seq DESC LIMIT 1) last
ORDER BY 1, 2`

// spans are the parts of the order that hold whatever is asked for, in the order of the reading. Nothing is missed, for
// of each stretch it is known which times are in it, right or wrong as the clocks were; and no event can come into a
// stretch any more. What is committed after this looked comes after all stretches, as if it came after the answer.
func (l *Log) spans(ctx context.Context, q Query) ([]span, error) {
	list := []span{{begin, end}}
	if !q.Since.IsZero() || !q.Until.IsZero() {
		var err error
		if list, err = l.at(ctx, q.Since, q.Until); err != nil {
			return nil, err
		}
	}
	return q.ahead(list)
}

// at lists the spans that may have events of a time, oldest first.
func (l *Log) at(ctx context.Context, since, until time.Time) (list []span, err error) {
	args := []any{orInfinity(since, pgtype.NegativeInfinity), orInfinity(until, pgtype.Infinity)}
	err = l.planned(ctx, whereSQL, args, true, func(rows pgx.Rows) error {
		var p position
		var may, open bool
		_, err := pgx.ForEachRow(rows, []any{&p.xid, &p.seq, &may}, func() error {
			switch {
			case may && !open:
				list = append(list, span{p, end})
			case !may && open:
				list[len(list)-1].before = position{p.xid, p.seq + 1} // the place itself is the stretch's before it
			}
			open = may
			return nil
		})
		return err
	})
	return list, err
}

func orInfinity(t time.Time, infinity pgtype.InfinityModifier) pgtype.Timestamptz {
	if t.IsZero() {
		return pgtype.Timestamptz{InfinityModifier: infinity, Valid: true}
	}
	return pgtype.Timestamptz{Time: t, Valid: true}
}
