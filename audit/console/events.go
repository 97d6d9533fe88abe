package console

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
)

// pageSize is how many events a page shows unless it is asked for another number.
const pageSize = 50

// table is a run of events as every page shows them.
type table struct {
	Caption string
	Entries []entry
	Verify  string // where the same is had with proofs; empty: it is, or there is no tree
	Marked  bool   // the proofs were asked for
	Verdict mark   // over all of them
	Empty   string // what to say when there is none
}

// search is the page of all filters.
type search struct {
	Fields map[string]string
	Types  []broker.EventType
	Limits []string
	Table  table
	Next   string // the page that follows; empty at the end
	Newest string // the first page, if this is not it
}

// filters are the fields of the query that select events, in the order of the form.
var filters = []string{"task_id", "agent_id", "caller", "profile", "provider", "type", "credential_id", "upstream_id", "fingerprint"}

// query reads the filters; all that is wrong is invalid_request.
func query(r *http.Request) (q audit.Query, fields map[string]string, err error) {
	fields = map[string]string{}
	for _, name := range append([]string{"order", "limit", "cursor"}, filters...) {
		if fields[name], err = field(r, name); err != nil {
			return q, nil, err
		}
	}
	q = audit.Query{
		TaskID: fields["task_id"], AgentID: fields["agent_id"], Caller: fields["caller"], Profile: fields["profile"],
		Provider: fields["provider"], Type: fields["type"], CredentialID: fields["credential_id"], UpstreamID: fields["upstream_id"],
		OldestFirst: fields["order"] == "oldest", Cursor: fields["cursor"], Limit: pageSize,
	}
	if l := fields["limit"]; l != "" {
		if q.Limit, err = strconv.Atoi(l); err != nil || q.Limit < 1 || q.Limit > audit.MaxPage {
			return q, nil, invalid("limit", "is not 1 to 1000")
		}
	}
	if fields["since"], q.Since, err = momentOf(r, "since"); err != nil {
		return q, nil, err
	}
	if fields["until"], q.Until, err = momentOf(r, "until"); err != nil {
		return q, nil, err
	}
	if f := fields["fingerprint"]; f != "" {
		if q.Fingerprint, err = audit.ParseFingerprint(f); err != nil {
			return q, nil, invalid("fingerprint", err.Error())
		}
		fields["fingerprint"] = audit.Fingerprint(q.Fingerprint)
	}
	return q, fields, nil
}

// momentOf reads a time of the query, as a browser's user or the API writes it; without a zone it is UTC. Empty: the zero
// time.
func momentOf(r *http.Request, name string) (text string, at time.Time, err error) {
	if text, err = field(r, name); err != nil || text == "" {
		return text, at, err
	}
	text = strings.Replace(text, " ", "T", 1) // as the pages themselves show times
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04", "2006-01-02T15:04:05", "2006-01-02"} {
		if at, err := time.Parse(layout, text); err == nil {
			return text, at, nil
		}
	}
	return "", at, invalid(name, "is not a time, such as 2026-01-31T09:00")
}

// find reads a page of events.
func (c *console) find(ctx context.Context, q audit.Query) ([]entry, string, error) {
	found, err := c.Record.Find(ctx, q)
	if err != nil {
		return nil, "", err
	}
	list, err := readEntries(found.Events)
	return list, found.Next, err
}

// events is the search.
func (c *console) events(ctx context.Context, r *http.Request) (view, error) {
	q, fields, err := query(r)
	if err != nil {
		return view{}, err
	}
	list, next, err := c.find(ctx, q)
	if err != nil {
		return view{}, err
	}
	s := search{Fields: fields, Types: broker.EventTypes(), Limits: []string{"20", "50", "100", "500", "1000"}}
	s.Table, err = c.table(ctx, r, list, q)
	if err != nil {
		return view{}, err
	}
	s.Table.Caption, s.Table.Empty = "Events, the newest first", "No event matches."
	if q.OldestFirst {
		s.Table.Caption = "Events, the oldest first"
	}
	link := linkOf(fields)
	if fields["cursor"] != "" {
		link.Del("cursor")
		s.Newest = "/console/events?" + link.Encode()
	}
	if next != "" && len(list) == 0 {
		s.Table.Empty = "No event matches on this page: a page looks at 10,000 events. There may be some on the next one."
	}
	if next != "" {
		link.Set("cursor", next)
		s.Next = "/console/events?" + link.Encode()
	}
	v := view{Title: "Events", Template: "events", Data: s, Asked: asked("events", len(list) > 0, searched(fields)),
		Sheets: map[string]sheet{"events": eventSheet(list)}}
	if q.Cursor == "" && !q.OldestFirst && !s.Table.Marked {
		v.Pace = 1
	}
	return v, nil
}

// linkOf is the filters in use, as a shareable link has them.
func linkOf(fields map[string]string) url.Values {
	q := url.Values{}
	for name, value := range fields {
		if value != "" {
			q.Set(name, value)
		}
	}
	return q
}

// searched is what the record keeps of a search: its filters, as the API's.
func searched(fields map[string]string) map[string]string {
	m := map[string]string{}
	for _, name := range append([]string{"since", "until"}, filters...) {
		m[name] = fields[name]
	}
	return m
}

// table puts together the events that a query found. Each is proven, or says that it is not; the proofs themselves are shown
// if they are asked for.
func (c *console) table(ctx context.Context, r *http.Request, list []entry, q audit.Query) (table, error) {
	t := table{Entries: list, Empty: "There is none."}
	if c.Tree == nil {
		return t, nil
	}
	if t.Marked = r.URL.Query().Get("verify") == "1"; !t.Marked {
		t.Verify = linkTo(r.URL, "verify", "1")
	}
	entries := pointers(list)
	if err := c.prove(ctx, entries, t.Marked); err != nil {
		return t, err
	}
	for _, e := range entries {
		if !e.matches(q) {
			e.Mark = notVerified("The record has the event here, and the event itself does not belong here: what it is searched by was altered.")
		}
	}
	if t.Verdict = sum(entries); !t.Marked && t.Verdict.Kind != "not-verified" {
		t.Verdict = mark{}
	}
	return t, nil
}

// matches tells whether the event itself is what was asked for: the record finds it by columns beside it.
func (e *entry) matches(q audit.Query) bool {
	for _, f := range [][2]string{
		{q.TaskID, e.TaskID}, {q.AgentID, e.AgentID}, {q.Caller, e.Caller.Name}, {q.Profile, e.Profile}, {q.Provider, e.Provider},
		{q.Type, e.Type}, {q.CredentialID, e.CredentialID}, {audit.Fingerprint(q.Fingerprint), e.Fingerprint},
	} {
		if f[0] != "" && f[0] != f[1] {
			return false
		}
	}
	return (q.UpstreamID == "" || q.UpstreamID == e.VersionID || slices.Contains(e.UpstreamIDs, q.UpstreamID)) &&
		!e.At.Before(q.Since) && (q.Until.IsZero() || e.At.Before(q.Until))
}
