package console

import (
	"context"
	"encoding/csv"
	"net/http"
	"net/url"
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
	CSV     string // where the same is had as CSV
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
var filters = []string{"task_id", "agent_id", "caller", "profile", "provider", "type", "credential_id", "upstream_id"}

// query reads the filters; all that is wrong is invalid_request.
func query(r *http.Request) (q audit.Query, fields map[string]string, err error) {
	fields = map[string]string{}
	for _, name := range append([]string{"since", "until", "order", "limit", "cursor"}, filters...) {
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
	if q.Since, err = moment(fields["since"]); err != nil {
		return q, nil, invalid("since", "is not a time, such as 2026-01-31T09:00")
	}
	if q.Until, err = moment(fields["until"]); err != nil {
		return q, nil, invalid("until", "is not a time, such as 2026-01-31T09:00")
	}
	return q, fields, nil
}

// moment reads a time as a browser's field or the API writes it; without a zone it is UTC.
func moment(s string) (t time.Time, err error) {
	if s == "" {
		return t, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04", "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err = time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return t, err
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
	s.Table, err = c.table(ctx, r, list, linkOf(fields), q.Limit)
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
	if next != "" {
		link.Set("cursor", next)
		s.Next = "/console/events?" + link.Encode()
	}
	v := view{Title: "Events", Template: "events", Data: s, Asked: asked("events", len(list) > 0, searched(fields))}
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

// table puts events together with their proofs, if those are asked for.
func (c *console) table(ctx context.Context, r *http.Request, list []entry, link url.Values, limit int) (table, error) {
	link.Set("limit", strconv.Itoa(limit))
	t := table{Entries: list, CSV: "/console/events.csv?" + link.Encode(), Empty: "There is none."}
	if c.Tree == nil {
		return t, nil
	}
	if r.URL.Query().Get("verify") != "1" {
		q := r.URL.Query()
		q.Set("verify", "1")
		q.Del("live")
		t.Verify = r.URL.Path + "?" + q.Encode()
		return t, nil
	}
	t.Marked = true
	var err error
	t.Verdict, err = c.prove(ctx, t.Entries)
	return t, err
}

var csvHeader = []string{"time", "type", "caller", "role", "authenticated_by", "address", "task_id", "parent_task_id", "agent_id", "profile", "provider",
	"requested_scopes", "scopes", "credential_id", "version", "version_id", "state", "expires_at", "upstream_ids", "fingerprint",
	"cause", "reason", "code", "reasons", "revocation", "effective_at", "basis", "trace", "request_id", "event_id"}

// csv gives what a search shows as CSV (RFC 4180).
func (c *console) csv(w http.ResponseWriter, r *http.Request, s *session) {
	q, fields, err := query(r)
	var list []entry
	if err == nil {
		list, _, err = c.find(r.Context(), q)
	}
	if err == nil {
		err = c.Recorder.AuditRead(r.Context(), s.caller, asked("csv", len(list) > 0, searched(fields)))
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	w.Header().Set("Content-Type", "text/csv; charset=utf-8; header=present")
	w.Header().Set("Content-Disposition", `attachment; filename="taskpass-events.csv"`)
	out := csv.NewWriter(w)
	out.UseCRLF = true
	_ = out.Write(csvHeader) // what goes wrong is told by Flush's Error, and then the client is gone
	for _, e := range list {
		row := []string{e.At.UTC().Format(time.RFC3339Nano), e.Type, e.Caller.Name, e.Caller.Role, e.Caller.Auth, e.Caller.Addr, e.TaskID,
			e.ParentTaskID, e.AgentID, e.Profile, e.Provider, strings.Join(e.Requested, " "), strings.Join(e.Scopes, " "), e.CredentialID,
			number(e.Version), e.VersionID, e.State, rfc(e.ExpiresAt), strings.Join(e.UpstreamIDs, " "), e.Fingerprint, e.Cause, e.Reason,
			e.Code, e.faults(), e.Revocation.Result, rfc(e.Revocation.EffectiveAt), e.Revocation.Basis, e.trace(), e.RequestID, e.ID}
		for i := range row {
			row[i] = audit.CSVText(row[i])
		}
		_ = out.Write(row)
	}
	out.Flush()
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func rfc(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}
