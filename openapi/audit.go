package openapi

import (
	"context"
	"encoding/json"
	"maps"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
)

// ListAuditEvents implements StrictServerInterface.
func (s *server) ListAuditEvents(ctx context.Context, r ListAuditEventsRequestObject) (ListAuditEventsResponseObject, error) {
	caller := *callerOf(ctx)
	if !caller.ReadsAll() {
		return nil, broker.Errorf(broker.CodeForbidden, "the role %s does not read the audit record", caller.Role)
	}
	p := r.Params
	q := audit.Query{
		TaskID: value(p.TaskID), AgentID: value(p.AgentID), Caller: value(p.Caller), Profile: value(p.Profile),
		Provider: value(p.Provider), Type: value(p.Type), CredentialID: value(p.CredentialID), UpstreamID: value(p.UpstreamID),
		Since: given(p.Since), Until: given(p.Until), OldestFirst: value(p.Order) == Oldest,
		Cursor: value(p.Cursor), Limit: value(p.Limit), Fingerprint: unhex(value(p.Fingerprint)),
	}
	if format := formatOf(ctx); format != formatJSON {
		return s.export(ctx, caller, q, format)
	}
	found, err := s.Audit.Find(ctx, q)
	if err != nil {
		return nil, err
	}
	if err := s.Broker.AuditRead(ctx, caller, filters(q, len(found.Events) > 0)); err != nil {
		return nil, err // who reads the record is on it, or does not read it
	}
	page := ListAuditEvents200JSONResponse{Events: make([]AuditEvent, len(found.Events)), NextCursor: found.Next}
	for i, body := range found.Events {
		if err := json.Unmarshal(body, &page.Events[i]); err != nil {
			return nil, audit.Undecodable()
		}
	}
	return page, nil
}

// unhex is the hash in a fingerprint; nil for none. The contract has bounded its form.
func unhex(fingerprint string) []byte {
	sum, _ := audit.ParseFingerprint(fingerprint)
	return sum
}

// filters is what was asked, as the record keeps it: the contract has bounded each value's form.
func filters(q audit.Query, known bool) map[string]string {
	m := map[string]string{
		"task_id": q.TaskID, "agent_id": q.AgentID, "caller": q.Caller, "profile": q.Profile, "provider": q.Provider,
		"type": q.Type, "credential_id": q.CredentialID, "upstream_id": q.UpstreamID,
	}
	for k, v := range m {
		if v != "" && !known { // it may be a secret that somebody found and looks for
			m[k] = audit.Hashed(v)
		}
	}
	if len(q.Fingerprint) > 0 {
		m["fingerprint"] = audit.Fingerprint(q.Fingerprint)
	}
	if !q.Since.IsZero() {
		m["since"] = q.Since.UTC().Format(time.RFC3339Nano)
	}
	if !q.Until.IsZero() {
		m["until"] = q.Until.UTC().Format(time.RFC3339Nano)
	}
	maps.DeleteFunc(m, func(_, v string) bool { return v == "" })
	return m
}

// given is a time that was asked for; the zero time is none. The first instant of the year 1, which is the same, is taken
// for the one after it: nothing is older.
func given(t *time.Time) time.Time {
	if t != nil && t.IsZero() {
		return t.Add(1)
	}
	return value(t)
}
