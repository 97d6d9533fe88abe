package openapi

import (
	"context"
	"encoding/json"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
)

// TraceAudit implements StrictServerInterface.
func (s *server) TraceAudit(ctx context.Context, r TraceAuditRequestObject) (TraceAuditResponseObject, error) {
	caller := *callerOf(ctx)
	if !caller.ReadsAll() {
		return nil, broker.Errorf(broker.CodeForbidden, "the role %s does not read the audit record", caller.Role)
	}
	p := r.Params
	if (p.UpstreamID == nil) == (p.Fingerprint == nil) {
		return nil, invalid(broker.Fault{Pointer: "/query/upstream_id", Reason: "give either upstream_id or fingerprint"})
	}
	q := audit.TraceQuery{Name: value(p.UpstreamID), Fingerprint: unhex(value(p.Fingerprint)), At: given(p.At), Limit: value(p.Limit)}
	traced, err := s.Audit.Trace(ctx, q, s.Broker.Clock())
	if err != nil {
		return nil, err
	}
	asked := filters(audit.Query{UpstreamID: q.Name, Fingerprint: q.Fingerprint}, len(traced.Held) > 0)
	asked["trace"] = "versions"
	if !q.At.IsZero() {
		asked["at"] = q.At.UTC().Format(time.RFC3339Nano)
	}
	if err := s.Broker.AuditRead(ctx, caller, asked); err != nil {
		return nil, err // who reads the record is on it, or does not read it
	}
	var answer TraceAudit200JSONResponse
	text, err := json.Marshal(traced)
	if err == nil {
		err = json.Unmarshal(text, &answer)
	}
	if err != nil {
		return nil, audit.Undecodable()
	}
	return answer, nil
}
