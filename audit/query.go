package audit

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
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
func (l *Log) Find(ctx context.Context, q Query) (Page, error) {
	if q.Limit == 0 {
		q.Limit = 100
	}
	q.Limit = min(max(q.Limit, 1), MaxPage)
	sql, args, err := q.sql()
	if err != nil {
		return Page{}, err
	}
	batch := &pgx.Batch{}
	if q.alone() {
		// The plan is the same for every value, so it is made once: to make it takes longer than to run it.
		batch.Queue("SELECT set_config('plan_cache_mode', 'force_generic_plan', true)")
	}
	batch.Queue(sql, args...)
	results := l.pool.SendBatch(ctx, batch) // one transaction, so that the setting ends with it
	p, err := q.read(results)
	return p, errors.Join(err, results.Close())
}

func (q Query) read(results pgx.BatchResults) (p Page, err error) {
	if q.alone() {
		if _, err := results.Exec(); err != nil {
			return p, err
		}
	}
	rows, err := results.Query()
	if err != nil {
		return p, err
	}
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

// alone tells whether one value is all that is asked for.
func (q Query) alone() bool {
	n := len(q.asked())
	return q.Since.IsZero() && q.Until.IsZero() && (n == 1 && q.UpstreamID == "" || n == 0 && q.UpstreamID != "")
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
	asked := q.asked()
	for _, f := range asked {
		where(f.column+" = ?"+f.where, f.value)
	}
	// One field alone is found by its own index, however many events share the value. Of `=` the planner may think that
	// reading the whole record in its order comes by enough of them; an index that begins with another column than the
	// order cannot be passed over. The column has one value, so it is the same order.
	first := ""
	if len(asked) == 1 && q.UpstreamID == "" {
		first = "e." + asked[0].column
		conditions[1] = strings.ReplaceAll(conditions[1], " = $1", " BETWEEN $1 AND $1")
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
	page := fmt.Sprintf("ORDER BY e.xid %s, e.seq %s LIMIT %d", order, order, q.Limit+1)
	if first != "" {
		page = strings.Replace(page, "BY ", "BY "+first+" "+order+", ", 1)
	}
	found := "SELECT e.xid, e.seq, e.body FROM events e WHERE " + strings.Join(conditions, " AND ")
	if window := q.Until.Sub(q.Since); len(asked) == 0 && !q.Since.IsZero() && !q.Until.IsZero() && window <= 48*time.Hour {
		// So few are sorted sooner than the month is read in its order. Without the barrier the planner thinks otherwise.
		found = strings.Replace(found, "FROM events e", "FROM (SELECT * FROM events WHERE at >= $1 AND at < $2 OFFSET 0) e", 1)
	}
	if q.UpstreamID != "" {
		args = append(args, q.UpstreamID)
		found = fmt.Sprintf("SELECT e.xid, e.seq, e.body FROM (%s) e", q.named(fmt.Sprintf("$%d", len(args)), conditions, page))
	}
	// The limit is part of the text: what is planned for any limit may read all that matches and sort it.
	return fmt.Sprintf("SELECT e.xid::text::bigint, e.seq, e.body FROM (%s %s) e ORDER BY e.xid %s, e.seq %s", found, page, order, order), args, nil
}

type field struct {
	column string
	where  string // what else holds of the column, for its index to be used
	value  any
}

// asked are the fields that have one value.
func (q Query) asked() []field {
	var list []field
	for _, f := range []struct{ column, where, value string }{
		{"task_id", " AND task_id <> ''", q.TaskID}, {"agent_id", " AND agent_id <> ''", q.AgentID}, {"caller", "", q.Caller},
		{"profile", " AND profile <> ''", q.Profile}, {"provider", " AND provider <> ''", q.Provider}, {"type", "", q.Type},
		{"credential_id", " AND credential_id <> ''", q.CredentialID},
	} {
		if f.value != "" {
			list = append(list, field{f.column, f.where, f.value})
		}
	}
	if len(q.Fingerprint) > 0 {
		list = append(list, field{"fingerprint", "", q.Fingerprint})
	}
	return list
}

// named finds the events that bear a name, each of them once, by the indexes of migrations/00007_search.sql.
func (q Query) named(value string, conditions []string, page string) string {
	both := strings.Join(conditions, " AND ")
	var ways []string
	not := ""
	for i := 1; i <= 3; i++ {
		ways = append(ways, fmt.Sprintf("(SELECT e.xid, e.seq, e.body FROM events e WHERE upstream_ids[%d] = %s%s AND %s %s)", i, value, not, both, page))
		not += fmt.Sprintf(" AND upstream_ids[%d] IS DISTINCT FROM %s", i, value)
	}
	// Few bear more names, which the planner cannot know: without the barrier it reads the whole record in its order.
	ways = append(ways, fmt.Sprintf("(SELECT e.xid, e.seq, e.body FROM (SELECT * FROM events WHERE cardinality(upstream_ids) > 3 AND upstream_ids @> ARRAY[%s] OFFSET 0) e WHERE %s%s %s)",
		value, both, not, page))
	return strings.Join(ways, " UNION ALL ")
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
