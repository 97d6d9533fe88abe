package openapi

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// defaultWait is how long a watch waits unless told otherwise.
const defaultWait = 30 * time.Second

// RefreshCredential implements StrictServerInterface.
func (s *server) RefreshCredential(ctx context.Context, r RefreshCredentialRequestObject) (RefreshCredentialResponseObject, error) {
	seen := 0
	if r.Body != nil {
		seen = r.Body.Version
	}
	issued, err := s.Broker.Refresh(ctx, *callerOf(ctx), broker.CredentialID(r.ID), seen, value(r.Params.IdempotencyKey))
	if err != nil {
		return nil, err
	}
	return RefreshCredential201JSONResponse(s.issued(issued)), nil
}

// ResolveCredential implements StrictServerInterface.
func (s *server) ResolveCredential(ctx context.Context, r ResolveCredentialRequestObject) (ResolveCredentialResponseObject, error) {
	known, _ := strconv.Atoi(strings.Trim(strings.TrimPrefix(value(r.Params.IfNoneMatch), "W/"), `"`)) // the contract holds its form
	resolved, err := s.Broker.Resolve(ctx, *callerOf(ctx), broker.CredentialID(r.ID), known)
	if err != nil {
		return nil, err
	}
	c := s.credential(resolved.Credential)
	etag := strconv.Quote(strconv.Itoa(c.Version))
	if resolved.NotModified {
		return ResolveCredential304Response{Headers: ResolveCredential304ResponseHeaders{ETag: etag}}, nil
	}
	return ResolveCredential200JSONResponse{
		Headers: ResolveCredential200ResponseHeaders{ETag: etag},
		Body: ResolvedCredential{
			ID: c.ID, Version: c.Version, Status: c.Status, ExpiresAt: c.ExpiresAt, RefreshAfter: c.RefreshAfter,
			CacheForSeconds: resolved.CacheFor.Seconds(), Secret: revealed(resolved.Secret),
		},
	}, nil
}

// WatchCredential implements StrictServerInterface.
func (s *server) WatchCredential(ctx context.Context, r WatchCredentialRequestObject) (WatchCredentialResponseObject, error) {
	wait := defaultWait
	if text := value(r.Params.Wait); text != "" { // whole seconds, by the contract
		n, _ := strconv.Atoi(strings.TrimSuffix(text, "s"))
		wait = time.Duration(n) * time.Second
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.Stopping, cancel)()
	wait = max(0, wait-sinceArrival(ctx)) // the time that authentication took is part of it
	c, changed, err := s.Broker.Watch(ctx, *callerOf(ctx), broker.CredentialID(r.ID), r.Params.Version, wait)
	if err != nil {
		return nil, err
	}
	if !changed {
		return WatchCredential304Response{}, nil
	}
	return WatchCredential200JSONResponse(s.credential(c)), nil
}

// RedeemTicket implements StrictServerInterface.
func (s *server) RedeemTicket(ctx context.Context, r RedeemTicketRequestObject) (RedeemTicketResponseObject, error) {
	client := *callerOf(ctx)
	if wait := s.guesses.Wait(client.Addr); wait > 0 {
		e := broker.Errorf(broker.CodeRateLimited, "too many tickets from this address were not known here")
		e.RetryAfter = wait
		return nil, e
	}
	issued, err := s.Broker.Redeem(ctx, client, r.Body.Ticket)
	if err != nil {
		if broker.AsError(err).Code == broker.CodeNotFound {
			s.guesses.Wrong(client.Addr)
		}
		return nil, err
	}
	return RedeemTicket200JSONResponse(s.issued(issued)), nil
}
