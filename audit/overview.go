package audit

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
)

// MaxRefusals is how many refusals are counted at most, the newest: what an overview costs has a bound.
const MaxRefusals = 20_000

// Refused is how many refusals of one code there were in a span of time that begins at From.
type Refused struct {
	From time.Time
	Code broker.Code
	N    int64
}

// Refusals counts what was refused since then, in spans of that width. complete is false where there were more than
// MaxRefusals: then the oldest are not counted.
func (l *Log) Refusals(ctx context.Context, since time.Time, width time.Duration) (list []Refused, complete bool, err error) {
	rows, err := l.pool.Query(ctx, `SELECT date_bin(make_interval(secs => $2), at, $1), coalesce(body::json ->> 'code', ''), count(*)
		FROM (SELECT at, body FROM events WHERE type = $3 AND at >= $1 ORDER BY xid DESC, seq DESC LIMIT $4) newest
		GROUP BY 1, 2 ORDER BY 1, 2`, since, width.Seconds(), string(broker.EventRefused), MaxRefusals+1)
	if err != nil {
		return nil, false, err
	}
	total := int64(0)
	list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r Refused, err error) {
		err = row.Scan(&r.From, &r.Code, &r.N)
		total += r.N
		return r, err
	})
	return list, total <= MaxRefusals, err
}
