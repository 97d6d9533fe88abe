package audit

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// MaxPage is the most events one page holds.
const MaxPage = 1000

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
}

// Log reads the record. It is safe for concurrent use.
type Log struct{ pool *pgxpool.Pool }

// NewLog reads from the database behind pool.
func NewLog(pool *pgxpool.Pool) *Log { return &Log{pool} }

// Find returns one page. Newest first shows all that is committed; oldest first stops short of what a transaction still
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
	var p Page
	more := q.OldestFirst // what is not yet written
	for _, s := range spans {
		over, err := l.read(ctx, q, what, s, &p)
		if err != nil {
			return Page{}, err
		}
		if more = more || over; over {
			break
		}
	}
	if !more {
		p.Next = ""
	}
	return p, nil
}

// read adds a span's events to the page, and tells whether some were over.
func (l *Log) read(ctx context.Context, q Query, what string, s span, p *Page) (over bool, err error) {
	sql, args := q.sql(what, s)
	each := func(rows pgx.Rows) error {
		var at position
		var text string
		_, err := pgx.ForEachRow(rows, []any{&at.xid, &at.seq, &text}, func() error {
			if over = len(p.Events) == q.Limit; !over {
				p.Events = append(p.Events, json.RawMessage(text))
				p.Next = at.cursor()
			}
			return nil
		})
		return err
	}
	if q.simple() {
		err = l.planned(ctx, sql, args, q.UpstreamID != "", each)
		return over, err
	}
	rows, err := l.pool.Query(ctx, sql, args...)
	if err == nil {
		err = each(rows)
	}
	return over, err
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
		if p.Next == "" || len(p.Events) < min(max(q.Limit, 1), MaxPage) {
			return nil
		}
		var err error
		q.Cursor = p.Next
		if p, err = l.Find(ctx, q); err != nil {
			return err
		}
	}
}
