package openapi

import (
	"context"
	"net/http"
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
	resolved, err := s.Broker.Resolve(ctx, *callerOf(ctx), broker.CredentialID(r.ID), knownBy(value(r.Params.IfNoneMatch))...)
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

// knownBy is which versions the client has, by its If-None-Match: a list of ETags, or "*" for any. Versions are compared
// weakly, as RFC 9110 has it for this header. A tag that is no version matches none.
func knownBy(match string) (versions []int) {
	if match == "*" {
		return []int{broker.AnyVersion}
	}
	for tag := range strings.SplitSeq(match, ",") {
		tag = strings.Trim(strings.TrimPrefix(strings.TrimSpace(tag), "W/"), `"`)
		if n, err := strconv.ParseUint(tag, 10, 31); err == nil {
			versions = append(versions, int(n))
		}
	}
	return versions
}

// joinTags makes one header of several If-None-Match, which mean the same as one with a list.
func joinTags(h http.Header) {
	if values := h.Values("If-None-Match"); len(values) > 1 {
		h.Set("If-None-Match", strings.Join(values, ", "))
	}
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
