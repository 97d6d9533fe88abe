package audit

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// MaxPage is the most events one page holds.
	MaxPage = 1000
	// maxExamined is how many events one page looks at, at most, to find those that match: what a page costs is bounded,
	// also for two common values that never meet.
	maxExamined = 10_000
)

// Query selects events; empty fields match all. Since is inclusive, Until is not.
type Query struct {
	TaskID, AgentID, Caller, Profile, Provider, Type, CredentialID, UpstreamID string

	Fingerprint  []byte // SHA-256 of a secret
	Since, Until time.Time
	OldestFirst  bool
	Cursor       string // from the page before
	Limit        int    // 1 to MaxPage; zero: 100
}

// Page is a run of events in their canonical form. Next is the cursor of what follows; empty at the end.
type Page struct {
	Events []json.RawMessage
	Next   string
	// Partial: the page is not full, or even empty, because maxExamined events were looked at. More may match after Next.
	Partial bool
}

// Log reads the record. It is safe for concurrent use.
type Log struct{ pool *pgxpool.Pool }

// NewLog reads from the database behind pool.
func NewLog(pool *pgxpool.Pool) *Log { return &Log{pool} }

// Find returns one page. It may hold fewer events than the limit although there are more: then it is Partial. Newest first shows all that is committed; oldest first stops short of what a transaction still
// open might yet precede, so that who follows the cursor misses nothing. A bad cursor is invalid_request.
func (l *Log) Find(ctx context.Context, q Query) (Page, error) { return l.find(ctx, q, "body") }

// find gives something of each event in the place of its body.
func (l *Log) find(ctx context.Context, q Query, what string) (Page, error) {
	if q.Limit == 0 {
		q.Limit = 100
	}
	q.Limit = min(max(q.Limit, 1), MaxPage)
	spans, err := l.spans(ctx, q)
	if err != nil {
		return Page{}, err
	}
	r := reading{log: l, query: q, what: what, left: maxExamined, size: q.Limit + 1}
	more := q.OldestFirst // what is not yet written
	for _, s := range spans {
		over, err := r.span(ctx, s)
		if err != nil {
			return Page{}, err
		}
		if more = more || over; over {
			break
		}
	}
	if !more {
		r.page.Next = ""
	}
	return r.page, nil
}

// reading is a page while it is read.
type reading struct {
	log   *Log
	query Query
	what  string
	page  Page
	left  int // events that may still be examined
	size  int // of the next run
}

// span adds a span's events to the page, run by run, and tells whether there is more than the page takes.
func (r *reading) span(ctx context.Context, s span) (over bool, err error) {
	for {
		by, err := r.driver(ctx, s)
		if err != nil {
			return false, err
		}
		last, n, over, err := r.run(ctx, s, by)
		if over || err != nil || n < r.size {
			return over, err
		}
		if r.left -= n; r.left <= 0 {
			r.page.Next, r.page.Partial = last.cursor(), true
			return true, nil
		}
		if r.query.OldestFirst {
			s.after = last
		} else {
			s.before = last
		}
		r.size = min(4*r.size, r.left)
	}
}

// run examines the next events of a span that have the driver's value, at most size.
func (r *reading) run(ctx context.Context, s span, by driver) (last position, n int, over bool, err error) {
	q := r.query.search(s, r.size)
	q.what = q.matching(r.query, by, r.what)
	err = r.log.planned(ctx, q.by(by), q.args, by.name, func(rows pgx.Rows) error {
		var text *string
		_, err := pgx.ForEachRow(rows, []any{&last.xid, &last.seq, &text}, func() error {
			n++
			if text == nil || over {
				return nil
			}
			if over = len(r.page.Events) == r.query.Limit; !over {
				r.page.Events = append(r.page.Events, json.RawMessage(*text))
				r.page.Next = last.cursor()
			}
			return nil
		})
		return err
	})
	return last, n, over, err
}

// probed is how many events of each value a probe counts off.
const probed = 100

// driver chooses by which of the query's values the next run of a span is found; the others are compared. It is the one
// whose next hundred events reach farthest, for it is the rarest here. A short run is not worth the question.
func (r *reading) driver(ctx context.Context, s span) (driver, error) {
	list := r.query.drivers()
	if len(list) == 1 || r.size < 4*probed {
		return list[0], nil
	}
	q := r.query.search(s, probed)
	sql := q.probes(list)
	best, far := -1, position{}
	reached := make([]bool, len(list))
	err := r.log.planned(ctx, sql, q.args, true, func(rows pgx.Rows) error {
		var i int
		var at position
		_, err := pgx.ForEachRow(rows, []any{&i, &at.xid, &at.seq}, func() error {
			reached[i] = true
			if best < 0 || far.less(at) == r.query.OldestFirst {
				best, far = i, at
			}
			return nil
		})
		return err
	})
	for i, full := range reached {
		if !full { // there are fewer than a hundred
			return list[i], err
		}
	}
	return list[max(best, 0)], err
}

// planned asks a question whose plan is the same for every value. It is made once: to make it takes longer than to run it.
// Of values that it does not know the planner may expect less than a page, and then read all that matches and sort it,
// though an index has it in order; so what needs no sorting is planned without. Or it may expect very many, and compile.
func (l *Log) planned(ctx context.Context, sql string, args []any, sorted bool, each func(pgx.Rows) error) error {
	batch := &pgx.Batch{}
	batch.Queue("SELECT set_config('plan_cache_mode', 'force_generic_plan', true), set_config('jit', 'off', true), set_config('enable_sort', $1, true)",
		strconv.FormatBool(sorted))
	batch.Queue(sql, args...).Query(each)
	return l.pool.SendBatch(ctx, batch).Close() // one transaction, so that the settings end with it
}

// Rest hands on a page that Find gave for the query, and those that follow it. Between pages no transaction is open,
// however slow the reader: one would hold back the tree. Oldest first it ends where Find would, not to follow what is new.
func (l *Log) Rest(ctx context.Context, q Query, p Page, each func(Page) error) error {
	for {
		if err := each(p); err != nil {
			return err
		}
		if p.Next == "" || !p.Partial && len(p.Events) < min(max(q.Limit, 1), MaxPage) {
			return nil
		}
		var err error
		q.Cursor = p.Next
		if p, err = l.Find(ctx, q); err != nil {
			return err
		}
	}
}
