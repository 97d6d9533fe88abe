package broker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"time"
)

// pollEvery is how often a waiting request looks at the ledger, beside the hints it gets.
const pollEvery = 100 * time.Millisecond

// repeat answers a request whose key was used before. It waits for a twin that is still at it; what a crash or a failure
// left without a secret is minted anew, as the next version of the same credential.
func (b *Broker) repeat(ctx context.Context, caller Caller, rs []Request, key string) ([]Issued, error) {
	want, err := newRequestKey(caller, key, rs, b.now())
	if err != nil {
		return nil, err
	}
	was, err := b.repeated(ctx, caller, want, rs[0])
	if errors.Is(err, ErrNoSuch) { // it ran out just now
		return nil, Errorf(CodeConflict, "the idempotency key has just run out; use a new one")
	}
	if err != nil {
		return nil, err
	}
	list := make([]Issued, 0, len(was.Credentials))
	for i, id := range was.Credentials {
		issued, err := b.again(ctx, caller, id, rs[i].Ticket)
		if err != nil {
			for _, i := range list {
				b.abandon(context.WithoutCancel(ctx), caller, i.Credential)
			}
			return nil, err
		}
		list = append(list, issued)
	}
	return list, nil
}

// repeated finds what a key was used for, and refuses it if that was for another request; ErrNoSuch.
func (b *Broker) repeated(ctx context.Context, caller Caller, want *RequestKey, r Request) (RequestKey, error) {
	was, err := b.Ledger.Repeated(ctx, want.Caller, want.SHA256)
	if err == nil && !bytes.Equal(was.RequestSHA256, want.RequestSHA256) {
		return was, b.refuse(ctx, caller, r, Errorf(CodeIdempotencyMismatch, "this Idempotency-Key came with another request before"))
	}
	return was, err
}

// newRequestKey hashes a key, and the request that it came with: any value that says all of it as JSON.
func newRequestKey(caller Caller, key string, request any, now time.Time) (*RequestKey, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	owner := caller.Name
	if caller.Role == RoleAgent { // a task's keys are not its orchestrator's; no name has a slash
		owner += "/" + caller.TaskID
	}
	return &RequestKey{Caller: owner, SHA256: HashToken(key), RequestSHA256: sum[:], ExpiresAt: now.Add(keyLifetime)}, nil
}

// again is a credential as it was first answered. One that was given as a ticket is never answered with its secret.
func (b *Broker) again(ctx context.Context, caller Caller, id CredentialID, ticket bool) (Issued, error) {
	c, err := b.settled(ctx, id)
	if err != nil {
		return Issued{}, err
	}
	if c.Version.State != StateActive && c.Version.Number > 1 { // a refresh that came to nothing leaves the one before as it was
		if c, err = b.current(ctx, c); err != nil {
			return Issued{}, err
		}
	}
	switch s := c.Version.State; {
	case s == StateIssuing: // and so unclaimed
		sealed, expires, err := b.Ledger.TicketOf(ctx, id)
		if err != nil {
			return Issued{}, err
		}
		bundle, err := openBundle(b.Sealer, sealed, c.Version.ID)
		i := Issued{Credential: c, Ticket: bundle.Fields[ticketField], TicketExpiresAt: expires}
		i.Secret.TaskToken = bundle.TaskToken
		return i, err
	case ticket && c.Version.Cause != CauseExpired && c.Version.Cause != CauseRevoked:
		return Issued{}, Errorf(CodeTicketRedeemed, "the ticket that this key issued was redeemed; use a new key for another")
	case s == StateActive:
		return b.open(ctx, caller, c)
	case s == StateFailed && c.Version.Cause == CauseNone, c.Version.Cause == CauseAbandoned:
		next, err := b.next(ctx, caller, c, nil)
		if errors.Is(err, ErrMoved) {
			return b.again(ctx, caller, id, ticket)
		}
		if err != nil {
			return Issued{}, err
		}
		return b.mint(context.WithoutCancel(ctx), caller, Issued{Credential: next}, EventIssued)
	}
	return Issued{}, Errorf(CodeCredentialEnded, "the credential that this key issued has ended; use a new key")
}

// current is the credential with its current version if that is active, else as it was given.
func (b *Broker) current(ctx context.Context, latest Credential) (Credential, error) {
	c, err := b.Ledger.Credential(ctx, latest.ID)
	if err != nil || c.Version.State != StateActive {
		return latest, err
	}
	return c, nil
}

// settled waits until a credential's newest version is no longer being minted, by a request that may have died meanwhile:
// then, at its due time, it is taken for lost.
func (b *Broker) settled(ctx context.Context, id CredentialID) (Credential, error) {
	changed, done := b.Ledger.Changes(id)
	defer done()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		c, err := b.Ledger.Latest(ctx, id)
		if err != nil || c.Version.State != StateIssuing || c.Version.Unclaimed {
			return c, err
		}
		if !b.now().Before(c.Version.DueAt) {
			if err := b.settle(ctx, c); err != nil && !errors.Is(err, ErrMoved) {
				return c, err
			}
			continue
		}
		select {
		case <-ctx.Done():
			e := Errorf(CodeUnavailable, "the same request is still being worked on; ask again")
			e.RetryAfter = time.Second
			return c, e.Because(ctx.Err())
		case <-changed:
		case <-tick.C:
		}
	}
}

// open is an active credential with its secret, from its sealed copy. That it was given again is on the record first.
func (b *Broker) open(ctx context.Context, caller Caller, c Credential) (Issued, error) {
	sealed, err := b.Ledger.Sealed(ctx, c.Version.ID)
	if err != nil {
		return Issued{}, err
	}
	if sealed == nil { // it ended between two looks
		return Issued{}, ended(c)
	}
	bundle, err := openBundle(b.Sealer, sealed, c.Version.ID)
	if err != nil {
		return Issued{}, err
	}
	return Issued{Credential: c, Secret: bundle}, b.Ledger.Record(ctx, eventOf(EventResolved, caller, b.now(), c))
}

// next writes the intent of the version after c's, with what is left of the credential's life.
func (b *Broker) next(ctx context.Context, caller Caller, c Credential, key *RequestKey) (Credential, error) {
	p, ok := b.profile(c.Profile)
	if !ok {
		return c, Errorf(CodeUnknownProfile, "the profile is no longer offered")
	}
	grant, err := b.Policy.Decide(Caller{Name: c.Caller, Role: RoleOrchestrator}, p, Request{
		TaskID: c.TaskID, AgentID: c.AgentID, Profile: c.Profile, Scopes: c.Scopes, TTL: c.TTL, Metadata: c.Metadata,
	})
	if err != nil {
		return c, b.refuse(ctx, caller, Request{TaskID: c.TaskID, AgentID: c.AgentID, Profile: c.Profile, Scopes: c.Scopes}, AsError(err))
	}
	if left := c.HardEnd.Sub(b.now()); left < p.MinTTL || left <= 0 {
		e := Errorf(CodeCredentialEnded, "the credential has reached the end of its life, which no refresh outlives; issue a new one")
		return c, b.refuse(ctx, caller, Request{TaskID: c.TaskID, AgentID: c.AgentID, Profile: c.Profile, Scopes: c.Scopes}, e)
	}
	c.Version = b.newVersion(c, p, c.Version.Number+1, grant.TTL)
	err = b.Ledger.Next(ctx, c, key, eventOf(EventIntended, caller, c.Version.IssuedAt, c))
	if errors.Is(err, ErrTaskEnded) {
		if now, findErr := b.Ledger.Credential(ctx, c.ID); findErr == nil && now.Version.Cause == CauseRevoked {
			return c, ended(now)
		}
		return c, Errorf(CodeTaskEnded, "the task, or one above it, has ended: nothing is issued for it any more")
	}
	return c, err
}

// ended is the error for a credential whose version can no longer be had.
func ended(c Credential) *Error {
	return Errorf(CodeCredentialEnded, "the credential is %s (%s)", c.Version.State, c.Version.Cause)
}
