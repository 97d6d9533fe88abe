package console

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
)

const (
	maxVersions = 500 // of one page; drawn are fewer
	listSize    = 100 // credentials of one page
)

// version is one version as the pages show it.
type version struct {
	broker.Credential
	Life        audit.Life
	Verdict     verdict
	Asked       time.Time // when its end was asked for; zero: it was not
	Overlaps    time.Duration
	With        int // the version before it, with which it overlapped
	Fingerprint string
}

func versionOf(cr broker.Credential, now time.Time) version {
	life := audit.LifeOf(cr.Version, now)
	return version{Credential: cr, Life: life, Verdict: judge(cr.Version, life, now), Fingerprint: audit.Fingerprint(cr.Version.Fingerprint)}
}

// V is the version itself, for the templates: the credential's fields hide some of its names.
func (v version) V() broker.Version { return v.Version }

// Until is when it ended, or will.
func (v version) Until() time.Time {
	switch {
	case v.Version.State == broker.StateActive:
		return lives(v.Version)
	case !v.Version.EndedAt.IsZero() && v.Version.EndedAt.Before(v.Version.ExpiresAt):
		return v.Version.EndedAt
	case v.Version.Revocation.Result == broker.ResultExpires:
		return v.Version.Revocation.EffectiveAt
	}
	return v.Version.ExpiresAt
}

// versions reads what belongs to versions from the record and works out their overlaps. list is in the ledger's order: of one
// credential the newest version first.
func (c *console) versions(ctx context.Context, list []broker.Credential, q audit.Query) ([]version, error) {
	q.Type, q.Limit = string(broker.EventRevokeAsked), audit.MaxPage
	asks, _, err := c.find(ctx, q)
	if err != nil {
		return nil, err
	}
	if err := c.proveAll(ctx, asks); err != nil {
		return nil, err
	}
	at := map[string]time.Time{}
	for _, e := range asks { // the newest first, and the first ask is what counts
		if e.Mark.Kind != "not-verified" {
			at[e.VersionID] = e.At
		}
	}
	now := c.Clock()
	out := make([]version, len(list))
	for i, cr := range list {
		out[i] = versionOf(cr, now)
		out[i].Asked = at[string(cr.Version.ID)]
	}
	for i := range out[:max(len(out)-1, 0)] {
		before := out[i+1]
		if before.ID != out[i].ID || before.Version.State == broker.StateFailed || out[i].Version.State == broker.StateFailed {
			continue
		}
		from, to := out[i].Version.IssuedAt, out[i].Until()
		if before.Until().Before(to) {
			to = before.Until()
		}
		if to.After(from) {
			out[i].Overlaps, out[i].With = to.Sub(from), before.Version.Number
		}
	}
	return out, nil
}

// span is the version as it is drawn.
func (v version) span() span {
	s := span{
		Group: v.Profile, Key: string(v.ID), Number: v.Version.Number, State: string(v.Version.State), Verdict: v.Verdict,
		From: v.Version.IssuedAt, To: v.Until(), Open: endless(v.Life), Planned: v.Version.ExpiresAt, Overlap: v.Overlaps, Asked: v.Asked,
	}
	if v.Version.State == broker.StateRevoked {
		s.Done = v.Version.EndedAt
	}
	return s
}

func (c *console) line(list []version) timeline {
	spans := make([]span, len(list))
	for i, v := range list {
		spans[i] = v.span()
	}
	return draw(spans, c.Clock(), time.Time{})
}

// taskPage is one caller's task. If several callers use the id and none was named, it only lists them.
type taskPage struct {
	ID       string
	Tasks    []broker.Task
	Choose   bool
	Versions []version
	More     bool
	Line     timeline
	Table    table
	All      string // where the rest of the events is
}

func (c *console) task(ctx context.Context, r *http.Request) (view, error) {
	id, err := field(r, "id")
	if err != nil {
		return view{}, err
	}
	owner, err := field(r, "caller")
	if err != nil {
		return view{}, err
	}
	p := taskPage{ID: id, All: "/console/events?" + url.Values{"task_id": {id}}.Encode()}
	if p.Tasks, err = c.Tasks.FindTasks(ctx, owner, id); err != nil {
		return view{}, err
	}
	fields := map[string]string{"task_id": id, "caller": owner}
	if p.Choose = len(p.Tasks) > 1; p.Choose {
		return view{Title: "Task " + id, Template: "task", Data: p, Asked: asked("task", true, fields)}, nil
	}
	if len(p.Tasks) == 1 {
		owner = p.Tasks[0].Caller
	}
	list, err := c.Ledger.VersionsOfTask(ctx, owner, id, maxVersions)
	if err != nil {
		return view{}, err
	}
	p.More = len(list) == maxVersions
	q := audit.Query{TaskID: id, Limit: pageSize}
	if p.Versions, err = c.versions(ctx, list, q); err != nil {
		return view{}, err
	}
	found, err := c.eventsOfTask(ctx, id, owner, list)
	if err == nil {
		p.Table, err = c.table(ctx, r, found, q)
	}
	p.Table.Caption = "The task's newest events"
	p.Line = c.line(p.Versions)
	known := id != "" && len(p.Tasks)+len(found) > 0
	v := view{Title: "Task " + id, Template: "task", Data: p, Asked: asked("task", known, fields),
		Sheets: map[string]sheet{"versions": versionSheet(p.Versions), "events": eventSheet(found)}}
	if !known {
		v.Title, v.Template, v.Data = "Task", "nothing", nothing{"task", id}
	} else if !p.Table.Marked {
		v.Pace = 1
	}
	return v, err
}

// eventsOfTask is the newest events of one caller's task, without those of other callers' tasks of the same id. list is
// versions of the owner's task. An owner of "" takes every event: only the record knows the task.
func (c *console) eventsOfTask(ctx context.Context, id, owner string, list []broker.Credential) ([]entry, error) {
	q := audit.Query{TaskID: id, Limit: pageSize}
	all, err := c.Tasks.FindTasks(ctx, "", id)
	if err != nil {
		return nil, err
	}
	if owner == "" || len(all) == 1 && all[0].Caller == owner {
		found, _, err := c.find(ctx, q)
		return found, err
	}
	own := map[string]bool{}
	for _, cr := range list {
		own[string(cr.ID)] = true
	}
	q.Limit = audit.MaxPage
	found, _, err := c.find(ctx, q)
	if err != nil {
		return nil, err
	}
	var kept []entry
	for _, e := range found {
		if e.CredentialID != "" {
			is, known := own[e.CredentialID]
			if !known {
				of, err := c.Ledger.VersionsOf(ctx, broker.CredentialID(e.CredentialID), 1)
				if err != nil {
					return nil, err
				}
				is = len(of) == 1 && of[0].Caller == owner
				own[e.CredentialID] = is
			}
			if !is {
				continue
			}
		} else if of := e.Trace[broker.TraceTaskCaller]; of != owner && (of != "" || e.Caller.Name != owner) {
			continue
		}
		if kept = append(kept, e); len(kept) == pageSize {
			break
		}
	}
	return kept, nil
}

// nothing is the page of what is not there.
type nothing struct{ Noun, ID string }

// credentialPage is one credential.
type credentialPage struct {
	Credential broker.Credential // with its newest version
	Versions   []version
	More       bool
	Line       timeline
	Table      table
	All        string
}

func (c *console) credential(ctx context.Context, r *http.Request) (view, error) {
	id, err := field(r, "id")
	if err != nil {
		return view{}, err
	}
	list, err := c.Ledger.VersionsOf(ctx, broker.CredentialID(id), maxVersions)
	if err != nil {
		return view{}, err
	}
	v := view{Title: "Credential " + id, Template: "credential", Pace: 1,
		Asked: asked("credential", len(list) > 0, map[string]string{"credential_id": id})}
	if len(list) == 0 {
		v.Title, v.Template, v.Data, v.Pace = "Credential", "nothing", nothing{"credential", id}, 0
		return v, nil
	}
	p := credentialPage{Credential: list[0], More: len(list) == maxVersions, All: "/console/events?" + url.Values{"credential_id": {id}}.Encode()}
	q := audit.Query{CredentialID: id, Limit: pageSize}
	if p.Versions, err = c.versions(ctx, list, q); err != nil {
		return view{}, err
	}
	found, _, err := c.find(ctx, q)
	if err == nil {
		p.Table, err = c.table(ctx, r, found, q)
	}
	p.Table.Caption = "The credential's newest events"
	p.Line = c.line(p.Versions)
	v.Sheets = map[string]sheet{"versions": versionSheet(p.Versions), "events": eventSheet(found)}
	if v.Data = p; p.Table.Marked {
		v.Pace = 0
	}
	return v, err
}

// credentialList is credentials by filter, each with the version that is spoken of.
type credentialList struct {
	Fields   map[string]string
	Versions []version
	Next     string
}

func (c *console) credentials(ctx context.Context, r *http.Request) (view, error) {
	fields := map[string]string{}
	for _, name := range []string{"task_id", "agent_id", "profile", "caller", "state", "before"} {
		var err error
		if fields[name], err = field(r, name); err != nil {
			return view{}, err
		}
	}
	list, err := c.Ledger.Credentials(ctx, broker.Filter{
		TaskID: fields["task_id"], AgentID: fields["agent_id"], Profile: fields["profile"], Caller: fields["caller"],
		State: broker.State(fields["state"]), Before: broker.CredentialID(fields["before"]), Limit: listSize,
	})
	if err != nil {
		return view{}, err
	}
	now := c.Clock()
	l := credentialList{Fields: fields}
	for _, cr := range list {
		l.Versions = append(l.Versions, versionOf(cr, now))
	}
	if len(list) == listSize {
		link := linkOf(fields)
		link.Set("before", string(list[listSize-1].ID))
		l.Next = "/console/credentials?" + link.Encode()
	}
	v := view{Title: "Credentials", Template: "credentials", Data: l, Asked: asked("credentials", len(list) > 0, fields),
		Sheets: map[string]sheet{"credentials": credentialSheet(l.Versions)}}
	if fields["before"] == "" {
		v.Pace = 2
	}
	return v, nil
}
