package openapi

import (
	"context"
	"encoding/json"
	"errors"

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
		TaskID: p.TaskID, AgentID: p.AgentID, Caller: p.Caller, Profile: p.Profile, Provider: p.Provider, Type: p.Type,
		CredentialID: p.CredentialID, UpstreamID: p.UpstreamID, Since: p.Since, Until: p.Until,
		OldestFirst: p.Order == Oldest, Cursor: p.Cursor, Limit: p.Limit,
	}
	found, err := s.Audit.Find(ctx, q)
	if err != nil {
		return nil, err
	}
	if err := s.Broker.AuditRead(ctx, caller, filters(p)); err != nil {
		return nil, err // who reads the record is on it, or does not read it
	}
	page := ListAuditEvents200JSONResponse{Events: make([]AuditEvent, len(found.Events)), NextCursor: found.Next}
	for i, body := range found.Events {
		if err := json.Unmarshal(body, &page.Events[i]); err != nil {
			return nil, errors.New("an audit event does not decode") // err may quote the event
		}
	}
	return page, nil
}

// filters is what was asked, as the record keeps it: the contract has bounded each value's form.
func filters(p ListAuditEventsParams) map[string]string {
	m := map[string]string{
		"task_id": p.TaskID, "agent_id": p.AgentID, "caller": p.Caller, "profile": p.Profile, "provider": p.Provider,
		"type": p.Type, "credential_id": p.CredentialID, "upstream_id": p.UpstreamID,
	}
	for k, v := range m {
		if v == "" {
			delete(m, k)
		}
	}
	return m
}
