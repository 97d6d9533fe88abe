package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

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
// MaxRefusals: then the oldest are not counted. It reads what was refused since then, not what was before.
func (l *Log) Refusals(ctx context.Context, since time.Time, width time.Duration) (list []Refused, complete bool, err error) {
	q := Query{Type: string(broker.EventRefused), Since: since, Limit: MaxRefusals}
	parts, err := l.spans(ctx, q)
	found := map[Refused]int64{} // of each one's time and code
	for _, part := range parts {
		if err != nil || q.Limit < 0 {
			break
		}
		err = l.refused(ctx, q, part, width, func(r Refused) {
			n := r.N
			r.N, q.Limit = 0, q.Limit-int(n)
			found[r] += n
		})
	}
	for r, n := range found {
		r.N = n
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b Refused) int { return cmp.Or(a.From.Compare(b.From), cmp.Compare(a.Code, b.Code)) })
	return list, q.Limit >= 0, err
}

// refused counts the refusals of one part of the order, the newest up to the query's limit and one more.
func (l *Log) refused(ctx context.Context, q Query, in span, width time.Duration, each func(Refused)) error {
	s := q.search(in, q.Limit+1)
	s.what, s.conditions = "at, body", append(s.conditions, s.times(q)...)
	events, args := s.by(q.drivers()[0]), s.args
	sql := fmt.Sprintf("SELECT date_bin($%d, at, $%d), coalesce(body::json ->> 'code', ''), count(*) FROM (%s) newest GROUP BY 1, 2", len(args)+1, len(args)+2, events)
	err := l.planned(ctx, sql, append(args, width, q.Since), false, func(rows pgx.Rows) error {
		var r Refused
		_, err := pgx.ForEachRow(rows, []any{&r.From, &r.Code, &r.N}, func() error {
			each(r)
			return nil
		})
		return err
	})
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "22P02" { // invalid_text_representation: not JSON
		return Undecodable()
	}
	return err
}
