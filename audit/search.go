package audit

import (
	"fmt"
	"strconv"
	"strings"
)

// simple tells whether no more than one value is asked for, at whatever time.
func (q Query) simple() bool {
	n := len(q.fields())
	return n == 0 || n == 1 && q.UpstreamID == ""
}

// field is a column that is asked for by one value.
type field struct {
	column string
	where  string // what else holds of the column, for its index to be used
	value  any
}

func (q Query) fields() []field {
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
		list = append(list, field{"fingerprint", " AND fingerprint IS NOT NULL", q.Fingerprint})
	}
	return list
}

// search is a question for the events of a span, while its text is put together. It holds only the conditions in use, so
// that each combination is planned by what it really asks.
type search struct {
	span
	what       string // of each event
	conditions []string
	order      string // DESC or ASC
	limit      int    // part of the text: what is planned for any limit may read all that matches and sort it
	args       []any
}

// sql asks for one row more than the page, which tells whether there is a next one.
func (q Query) sql(what string, in span) (string, []any) {
	s := search{span: in, what: what, conditions: []string{"true"}, order: "DESC", limit: q.Limit + 1}
	if q.OldestFirst {
		s.order = "ASC"
		s.conditions = append(s.conditions, "xid < pg_snapshot_xmin(pg_current_snapshot())")
	}
	if !q.Since.IsZero() {
		s.conditions = append(s.conditions, "at >= "+s.arg(q.Since))
	}
	if !q.Until.IsZero() {
		s.conditions = append(s.conditions, "at < "+s.arg(q.Until))
	}
	fields := q.fields()
	if len(fields) == 1 && q.UpstreamID == "" {
		return s.own(fields[0], s.arg(fields[0].value), s.bounds()), s.args
	}
	for _, f := range fields {
		s.conditions = append(s.conditions, f.column+" = "+s.arg(f.value)+f.where)
	}
	if q.UpstreamID != "" {
		return s.named(s.arg(q.UpstreamID), len(fields) == 0), s.args
	}
	if s.span != (span{begin, end}) {
		b := s.bounds()
		return s.page("events", "", fmt.Sprintf(" AND (xid, seq) > (%s) AND (xid, seq) < (%s)", b[0], b[1])), s.args
	}
	return s.page("events", "", ""), s.args
}

func (s *search) arg(value any) string {
	s.args = append(s.args, value)
	return "$" + strconv.Itoa(len(s.args))
}

// bounds are the span's two places.
func (s *search) bounds() (list [2]string) {
	for i, p := range []position{s.after, s.before} {
		list[i] = s.arg(strconv.FormatUint(p.xid, 10)) + "::text::xid8, " + s.arg(p.seq)
	}
	return list
}

// page is the first events of a table's, by a column, if one is given, and by the record's order.
func (s *search) page(from, by, more string) string {
	if by != "" {
		by = fmt.Sprintf("e.%s %s, ", by, s.order)
	}
	return fmt.Sprintf("SELECT e.xid::text::bigint AS xid, e.seq, %s FROM %s e WHERE %s%s ORDER BY %se.xid %s, e.seq %[6]s LIMIT %d",
		s.what, from, strings.Join(s.conditions, " AND "), more, by, s.order, s.limit)
}

// own finds a field's value by its own index, however many events share it. Of `=` the planner may think that reading the
// whole record in its order comes by enough of them; an index that begins with another column than the order cannot be
// passed over. All have the one value, so it is the same order.
func (s *search) own(f field, value string, b [2]string) string {
	return s.page("events", f.column, fmt.Sprintf(" AND (%[1]s, xid, seq) > (%[2]s, %[3]s) AND (%[1]s, xid, seq) < (%[2]s, %[4]s)%[5]s",
		f.column, value, b[0], b[1], f.where))
}

// named finds the events that bear a name, each of them once, by the indexes of migrations/00007_search.sql; alone tells
// that no other field is asked for.
func (s *search) named(name string, alone bool) string {
	var ways []string
	b, not := s.bounds(), ""
	within := fmt.Sprintf(" AND (xid, seq) > (%s) AND (xid, seq) < (%s)", b[0], b[1])
	for i := 1; i <= 3; i++ {
		column := fmt.Sprintf("upstream_ids[%d]", i)
		if alone {
			ways = append(ways, s.own(field{column: column, where: " AND " + column + " IS NOT NULL" + not}, name, b))
		} else {
			ways = append(ways, s.page("events", "", fmt.Sprintf(" AND %s = %s%s", column, name, not+within)))
		}
		not += fmt.Sprintf(" AND %s IS DISTINCT FROM %s", column, name)
	}
	// Few bear more names, which the planner cannot know: without the barrier it reads the whole record in its order.
	more := fmt.Sprintf("(SELECT * FROM events WHERE cardinality(upstream_ids) > 3 AND upstream_ids @> ARRAY[%s] OFFSET 0)", name)
	ways = append(ways, s.page(more, "", not+within))
	return fmt.Sprintf("SELECT * FROM ((%s)) e ORDER BY xid %s, seq %[2]s LIMIT %d", strings.Join(ways, ") UNION ALL ("), s.order, s.limit)
}
