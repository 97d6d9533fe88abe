package audit

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/broker"
)

// MaxPage is the most events one page holds.
const MaxPage = 1000

// Query selects events; empty fields match all. Since is inclusive, Until is not.
type Query struct {
	TaskID, AgentID, Caller, Profile, Provider, Type, CredentialID, UpstreamID string

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
func (l *Log) Find(ctx context.Context, q Query) (Page, error) {
	if q.Limit == 0 {
		q.Limit = 100
	}
	q.Limit = min(max(q.Limit, 1), MaxPage)
	sql, args, err := q.sql()
	if err != nil {
		return Page{}, err
	}
	rows, err := l.pool.Query(ctx, sql, args...)
	if err != nil {
		return Page{}, err
	}
	var p Page
	var xid uint64
	var seq int64
	var body string
	_, err = pgx.ForEachRow(rows, []any{&xid, &seq, &body}, func() error {
		if len(p.Events) < q.Limit {
			p.Events = append(p.Events, json.RawMessage(body))
			p.Next = cursor(xid, seq)
		}
		return nil
	})
	if err == nil && !q.OldestFirst && rows.CommandTag().RowsAffected() <= int64(q.Limit) {
		p.Next = ""
	}
	return p, err
}

// sql holds only the conditions in use, so that each combination is planned by what it really asks. One row more than
// the page tells whether there is a next one.
func (q Query) sql() (string, []any, error) {
	conditions := []string{"true"}
	var args []any
	where := func(condition string, value any) {
		args = append(args, value)
		conditions = append(conditions, strings.ReplaceAll(condition, "?", "$"+strconv.Itoa(len(args))))
	}
	if q.UpstreamID != "" {
		where("true", q.UpstreamID)
	}
	for _, f := range []struct{ condition, value string }{
		{"task_id = ? AND task_id <> ''", q.TaskID}, {"agent_id = ? AND agent_id <> ''", q.AgentID},
		{"caller = ?", q.Caller}, {"profile = ? AND profile <> ''", q.Profile},
		{"provider = ? AND provider <> ''", q.Provider}, {"type = ?", q.Type},
		{"credential_id = ? AND credential_id <> ''", q.CredentialID},
	} {
		if f.value != "" {
			where(f.condition, f.value)
		}
	}
	if !q.Since.IsZero() {
		where("at >= ?", q.Since)
	}
	if !q.Until.IsZero() {
		where("at < ?", q.Until)
	}
	order, beyond := "DESC", "<"
	if q.OldestFirst {
		order, beyond = "ASC", ">"
		conditions = append(conditions, "xid < pg_snapshot_xmin(pg_current_snapshot())")
	}
	if q.Cursor != "" {
		xid, seq, err := parseCursor(q.Cursor)
		if err != nil {
			return "", nil, err
		}
		args = append(args, strconv.FormatUint(xid, 10), seq)
		conditions = append(conditions, fmt.Sprintf("(xid, seq) %s ($%d::text::xid8, $%d)", beyond, len(args)-1, len(args)))
	}
	args = append(args, q.Limit+1)
	from := "events e"
	if q.UpstreamID != "" {
		// Few events bear one, which the planner cannot know: without the barrier it reads the whole record in its order.
		from = "(SELECT * FROM events WHERE upstream_ids @> ARRAY[$1] OFFSET 0) e"
	}
	return fmt.Sprintf("SELECT e.xid::text::bigint, e.seq, e.body FROM %s WHERE %s ORDER BY e.xid %s, e.seq %s LIMIT $%d", from,
		strings.Join(conditions, " AND "), order, order, len(args)), args, nil
}

func cursor(xid uint64, seq int64) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d.%d", xid, seq))
}

func parseCursor(s string) (xid uint64, seq int64, err error) {
	text, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		left, right, _ := strings.Cut(string(text), ".")
		var e2 error
		xid, err = strconv.ParseUint(left, 10, 64)
		if seq, e2 = strconv.ParseInt(right, 10, 64); err == nil {
			err = e2
		}
	}
	if err != nil {
		return 0, 0, &broker.Error{Code: broker.CodeInvalidRequest, Message: "the request is not valid",
			Faults: []broker.Fault{{Pointer: "/query/cursor", Reason: "is not a cursor that this API gave"}}}
	}
	return xid, seq, nil
}
