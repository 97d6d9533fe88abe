package openapi

import (
	"context"
	"encoding/base64"
	"time"

	"github.com/taskpass/taskpass/broker"
)

const defaultPage = 100

// IssueCredential implements StrictServerInterface.
func (s *server) IssueCredential(ctx context.Context, r IssueCredentialRequestObject) (IssueCredentialResponseObject, error) {
	issued, err := s.Broker.Issue(ctx, *callerOf(ctx), broker.Request{
		TaskID: r.Body.TaskID, AgentID: r.Body.AgentID, Profile: r.Body.Profile, Scopes: r.Body.Scopes,
		TTL: time.Duration(r.Body.TTLSeconds) * time.Second, Metadata: r.Body.Metadata,
		ParentTaskID: r.Body.ParentTaskID, TaskToken: r.Body.TaskToken, Ticket: r.Body.Delivery == IssueRequestDeliveryTicket,
	}, value(r.Params.IdempotencyKey))
	if err != nil {
		return nil, err
	}
	return IssueCredential201JSONResponse(s.issued(issued)), nil
}

// GetCredential implements StrictServerInterface.
func (s *server) GetCredential(ctx context.Context, r GetCredentialRequestObject) (GetCredentialResponseObject, error) {
	c, err := s.Broker.Find(ctx, *callerOf(ctx), broker.CredentialID(r.ID))
	if err != nil {
		return nil, err
	}
	return GetCredential200JSONResponse(s.credential(c)), nil
}

// ListCredentials implements StrictServerInterface.
func (s *server) ListCredentials(ctx context.Context, r ListCredentialsRequestObject) (ListCredentialsResponseObject, error) {
	p := r.Params
	limit := defaultPage
	if p.Limit != nil {
		limit = *p.Limit
	}
	before, err := base64.RawURLEncoding.DecodeString(value(p.Cursor))
	if err != nil || len(before) > 0 && !broker.ValidID(string(before)) {
		return nil, invalid(broker.Fault{Pointer: "/query/cursor", Reason: "is not a cursor that this API gave"})
	}
	list, next, err := s.Broker.List(ctx, *callerOf(ctx), broker.Filter{
		TaskID: value(p.TaskID), AgentID: value(p.AgentID), Profile: value(p.Profile), Caller: value(p.Caller),
		State:  broker.State(value(p.Status)),
		Before: broker.CredentialID(before), Limit: limit,
	})
	if err != nil {
		return nil, err
	}
	page := ListCredentials200JSONResponse{Credentials: make([]Credential, 0, len(list))}
	if next != "" {
		page.NextCursor = base64.RawURLEncoding.EncodeToString([]byte(next))
	}
	for _, c := range list {
		page.Credentials = append(page.Credentials, s.credential(c))
	}
	return page, nil
}

// RevokeCredential implements StrictServerInterface.
func (s *server) RevokeCredential(ctx context.Context, r RevokeCredentialRequestObject) (RevokeCredentialResponseObject, error) {
	reason := ""
	if r.Body != nil {
		reason = r.Body.Reason
	}
	c, err := s.Broker.Revoke(ctx, *callerOf(ctx), broker.CredentialID(r.ID), reason)
	if err != nil {
		return nil, err
	}
	achieved, err := s.Broker.Achieved(ctx, c.ID)
	if err != nil {
		return nil, err
	}
	if achieved {
		return RevokeCredential200JSONResponse(s.credential(c)), nil
	}
	return RevokeCredential202JSONResponse(s.credential(c)), nil
}

// ListProfiles implements StrictServerInterface.
func (s *server) ListProfiles(ctx context.Context, _ ListProfilesRequestObject) (ListProfilesResponseObject, error) {
	out := ListProfiles200JSONResponse{Profiles: []Profile{}}
	offers, err := s.Broker.ProfilesFor(*callerOf(ctx))
	if err != nil {
		return nil, err
	}
	for _, p := range offers {
		caps := p.Upstream.Capabilities()
		out.Profiles = append(out.Profiles, Profile{
			Name: p.Name, Provider: p.Provider, Scopes: p.Scopes,
			TTLSeconds: Profile_TTLSeconds{Default: p.DefaultTTL.Seconds(), Min: p.MinTTL.Seconds(), Max: p.MaxTTL.Seconds()},
			Capabilities: Profile_Capabilities{
				SelfExpires: caps.SelfExpires, Revoke: ProfileCapabilitiesRevoke(caps.Revoke),
				RevokeLagSeconds: caps.RevokeLag.Seconds(), Disclosed: caps.Disclosed,
			},
		})
	}
	return out, nil
}

func (s *server) credential(c broker.Credential) Credential {
	v := c.Version
	caps := s.Broker.Capabilities(c.Profile)
	trace := v.Trace
	if trace == nil {
		trace = map[string]string{}
	}
	return Credential{
		ID: string(c.ID), Version: v.Number, TaskID: c.TaskID, Caller: c.Caller, AgentID: c.AgentID,
		Profile: c.Profile, Provider: c.Provider, Scopes: c.Scopes, Metadata: c.Metadata, Status: Status(v.State),
		IssuedAt: v.IssuedAt, ExpiresAt: v.ExpiresAt, RefreshAfter: broker.RefreshAfter(v.IssuedAt, v.ExpiresAt),
		UpstreamExpiresAt: v.UpstreamExpiresAt, UsableAfter: v.UsableAfter(), EndedAt: v.EndedAt, Cause: string(v.Cause), Reason: v.Reason, Trace: trace,
		Revocation: Revocation{
			Mode: RevocationMode(caps.Revoke), LagSeconds: caps.RevokeLag.Seconds(),
			Result: RevocationResult(v.Revocation.Result), EffectiveAt: v.Revocation.EffectiveAt,
			Basis: v.Revocation.Basis, LastError: string(v.LastError),
		},
	}
}

// issued and revealed are the places where a secret goes into an answer.
func (s *server) issued(i broker.Issued) IssuedCredential {
	c := s.credential(i.Credential)
	out := IssuedCredential{
		ID: c.ID, Version: c.Version, TaskID: c.TaskID, Caller: c.Caller, AgentID: c.AgentID, Profile: c.Profile, Provider: c.Provider,
		Scopes: c.Scopes, Metadata: c.Metadata, Status: c.Status, IssuedAt: c.IssuedAt, ExpiresAt: c.ExpiresAt,
		RefreshAfter: c.RefreshAfter, UpstreamExpiresAt: c.UpstreamExpiresAt, UsableAfter: c.UsableAfter, Revocation: c.Revocation, Trace: c.Trace,
		TaskToken: i.Secret.TaskToken.Reveal(),
	}
	if i.Ticket.Empty() {
		out.Secret = revealed(i.Secret)
	} else {
		out.Ticket = Ticket{Value: i.Ticket.Reveal(), ExpiresAt: i.TicketExpiresAt}
	}
	return out
}

func revealed(b broker.Bundle) Secret {
	return Secret{Type: b.Type, Fields: reveal(b.Fields), Env: reveal(b.Env)}
}

func reveal(m map[string]broker.Secret) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[k] = v.Reveal()
	}
	return out
}

// value is what p points to; the zero value where a parameter was left out.
func value[T any](p *T) T {
	if p == nil {
		return *new(T)
	}
	return *p
}
