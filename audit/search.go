package audit

import (
	"fmt"
	"strconv"
	"strings"
)

// field is a column that is asked for by one value.
type field struct {
	column string
	where  string // what else holds of the column, for its index to be used
	value  any
}

// driver is the value by which a search reads: a field's, or a name's, by their own indexes; the zero driver reads the
// record in its order.
type driver struct {
	field
	name bool
}

// drivers are the values that a search can read by, the one that is usually rarest first; never empty.
func (q Query) drivers() (list []driver) {
	for _, f := range []struct{ column, where, value string }{
		{"credential_id", " AND credential_id <> ''", q.CredentialID}, {"task_id", " AND task_id <> ''", q.TaskID},
		{"agent_id", " AND agent_id <> ''", q.AgentID}, {"type", "", q.Type}, {"caller", "", q.Caller},
		{"profile", " AND profile <> ''", q.Profile}, {"provider", " AND provider <> ''", q.Provider},
	} {
		if f.value != "" {
			list = append(list, driver{field: field{f.column, f.where, f.value}})
		}
	}
	if q.UpstreamID != "" {
		list = append([]driver{{field: field{value: q.UpstreamID}, name: true}}, list...)
	}
	if len(q.Fingerprint) > 0 {
		list = append([]driver{{field: field{"fingerprint", " AND fingerprint IS NOT NULL", q.Fingerprint}}}, list...)
	}
	if len(list) == 0 {
		list = []driver{{}}
	}
	return list
}

// search is a question for the events of a span, while its text is put together.
type search struct {
	span
	what       string // of each event
	conditions []string
	order      string // DESC or ASC
	limit      int    // part of the text: what is planned for any limit may read all that matches and sort it
	args       []any
}

// search asks for the first events of a span, at most limit.
func (q Query) search(in span, limit int) *search {
	s := &search{span: in, conditions: []string{"true"}, order: "DESC", limit: limit}
	if q.OldestFirst {
		s.order = "ASC"
		s.conditions = append(s.conditions, "xid < pg_snapshot_xmin(pg_current_snapshot())")
	}
	return s
}

// matching is what is asked of an event that has all the query's values and times, the driver's own aside; NULL of others.
// They are compared in the answer, not in the conditions, so that the events that are passed over count as examined.
func (s *search) matching(q Query, by driver, what string) string {
	conditions := s.times(q)
	for _, d := range q.drivers() {
		switch {
		case d.column == by.column && d.name == by.name:
		case d.name:
			conditions = append(conditions, s.arg(d.value)+" = ANY (upstream_ids)")
		default:
			conditions = append(conditions, d.column+" = "+s.arg(d.value))
		}
	}
	if len(conditions) == 0 {
		return what
	}
	return "CASE WHEN " + strings.Join(conditions, " AND ") + " THEN " + what + " END"
}

// times are the conditions of the query's times.
func (s *search) times(q Query) (list []string) {
	if !q.Since.IsZero() {
		list = append(list, "at >= "+s.arg(q.Since))
	}
	if !q.Until.IsZero() {
		list = append(list, "at < "+s.arg(q.Until))
	}
	return list
}

// by reads by a driver.
func (s *search) by(d driver) string {
	switch {
	case d.name:
		return s.named(s.arg(d.value))
	case d.column != "":
		return s.own(d.field, s.arg(d.value), s.bounds())
	case s.span == (span{begin, end}):
		return s.page("events", "", "")
	}
	b := s.bounds()
	return s.page("events", "", fmt.Sprintf(" AND (xid, seq) > (%s) AND (xid, seq) < (%s)", b[0], b[1]))
}

// probes asks where the last of the first events is, of each driver that has so many.
func (s *search) probes(list []driver) string {
	var parts []string
	s.what = "NULL"
	for i, d := range list {
		parts = append(parts, fmt.Sprintf("(SELECT %d, xid, seq FROM (%s) e OFFSET %d LIMIT 1)", i, s.by(d), s.limit-1))
	}
	return strings.Join(parts, " UNION ALL ")
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

// named finds the events that bear a name, each of them once, by the indexes of migrations/00007_search.sql.
func (s *search) named(name string) string {
	var ways []string
	b, not := s.bounds(), ""
	within := fmt.Sprintf(" AND (xid, seq) > (%s) AND (xid, seq) < (%s)", b[0], b[1])
	for i := 1; i <= 3; i++ {
		column := fmt.Sprintf("upstream_ids[%d]", i)
		ways = append(ways, s.own(field{column: column, where: " AND " + column + " IS NOT NULL" + not}, name, b))
		not += fmt.Sprintf(" AND %s IS DISTINCT FROM %s", column, name)
	}
	// Few bear more names, which the planner cannot know: without the barrier it reads the whole record in its order.
	more := fmt.Sprintf("(SELECT * FROM events WHERE cardinality(upstream_ids) > 3 AND upstream_ids @> ARRAY[%s] OFFSET 0)", name)
	ways = append(ways, s.page(more, "", not+within))
	return fmt.Sprintf("SELECT * FROM ((%s)) e ORDER BY xid %s, seq %[2]s LIMIT %d", strings.Join(ways, ") UNION ALL ("), s.order, s.limit)
}
