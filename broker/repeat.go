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
	return b.again(ctx, caller, rs, was.Credentials)
}

// maxReplays bounds how often a repeated request looks again because another repetition of it was quicker.
const maxReplays = 4

// again is what a request was first answered. What a failure or a crash left without a secret is minted anew: all of the
// request, since nobody was ever answered it. Of several repetitions one mints, and the others answer what it got.
func (b *Broker) again(ctx context.Context, caller Caller, rs []Request, ids []CredentialID) ([]Issued, error) {
	var err error
	for range maxReplays {
		var out []Issued
		if out, err = b.replay(ctx, caller, rs, ids); !errors.Is(err, ErrMoved) {
			return out, err
		}
	}
	return nil, stillAtIt(err)
}

// replay is one attempt of again. ErrMoved: a credential changed after it was judged, so judge again.
func (b *Broker) replay(ctx context.Context, caller Caller, rs []Request, ids []CredentialID) ([]Issued, error) {
	list := make([]judged, len(ids))
	failed := false
	for i, id := range ids {
		var err error
		if list[i], err = b.judge(ctx, id); err != nil {
			return nil, err
		}
		failed = failed || list[i].undelivered
	}
	for _, c := range list { // what was answered and then ended is not revived, and what lives beside it is left alone
		lives := c.Version.State == StateIssuing || c.Version.State == StateActive && b.now().Before(c.Version.ExpiresAt)
		if !lives && !c.undelivered {
			return nil, Errorf(CodeCredentialEnded, "a credential that this key issued has ended; use a new key")
		}
	}
	if failed {
		return b.anew(ctx, caller, rs, list)
	}
	out := make([]Issued, len(list))
	for i, c := range list {
		var err error
		if out[i], err = b.asAnswered(ctx, caller, c.Credential, rs[i].Ticket); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// stillAtIt is the error for a request that waited for another one with the same key.
func stillAtIt(cause error) *Error {
	e := Errorf(CodeUnavailable, "the same request is still being worked on; ask again")
	e.RetryAfter = time.Second
	return e.Because(cause)
}

// judged is a credential of a repeated request: the active version, otherwise the newest one.
type judged struct {
	Credential
	newest      Credential // only this version may be followed by the next one: whoever judged an older one was too late
	undelivered bool       // no version of it was ever answered, and none will be
}

// judge waits until nothing of a credential is being minted, and finds what a repeated request is to be answered.
func (b *Broker) judge(ctx context.Context, id CredentialID) (judged, error) {
	newest, err := b.settled(ctx, id)
	j := judged{newest, newest, cameToNothing(newest)}
	if err != nil || newest.Version.State == StateActive || newest.Version.Number == 1 {
		return j, err
	}
	current, err := b.Ledger.Credential(ctx, id)
	if err == nil && current.Version.State == StateActive {
		return judged{current, newest, false}, nil
	}
	if err == nil && j.undelivered { // the newest one: a refresh that failed revives nothing that was answered before
		var delivered bool
		delivered, err = b.Ledger.Delivered(ctx, id)
		j.undelivered = !delivered
	}
	return j, err
}

// cameToNothing tells whether a version ended, or is ending, without anybody having been given its secret.
func cameToNothing(c Credential) bool {
	return c.Version.State == StateFailed && c.Version.Cause == CauseNone || c.Version.Cause == CauseAbandoned
}

// asAnswered is a living credential as it was first answered. One that was given as a ticket is never answered with its
// secret.
func (b *Broker) asAnswered(ctx context.Context, caller Caller, c Credential, ticket bool) (Issued, error) {
	switch {
	case c.Version.Unclaimed:
		sealed, expires, err := b.Ledger.TicketOf(ctx, c.ID)
		if errors.Is(err, ErrNoSuch) { // it was redeemed or ended between two looks
			err = ErrMoved
		}
		if err != nil {
			return Issued{}, err
		}
		bundle, err := openBundle(b.Sealer, sealed, c.Version.ID)
		i := Issued{Credential: c, Ticket: bundle.Fields[ticketField], TicketExpiresAt: expires}
		i.Secret.TaskToken = bundle.TaskToken
		return i, err
	case ticket:
		return Issued{}, Errorf(CodeTicketRedeemed, "the ticket that this key issued was redeemed; use a new key for another")
	}
	return b.open(ctx, caller, c)
}

// anew mints the next version of each credential of a request that came to nothing. What lives of it is ended first.
// ErrMoved: another repetition did so first, or does it now.
func (b *Broker) anew(ctx context.Context, caller Caller, rs []Request, list []judged) ([]Issued, error) {
	ctx = context.WithoutCancel(ctx) // half of it is nothing
	if rs[0].Ticket {
		return nil, Errorf(CodeTicketRedeemed, "the ticket that this key issued was used up; use a new key for another")
	}
	var token Secret
	var stored *NewTaskToken
	if rs[0].TaskToken { // the first one's value is lost with its secret
		token = NewToken(PrefixTask)
		stored = newTaskToken(token, list[0].Credential)
	}
	out := make([]Issued, len(list))
	for i, c := range list {
		if c.Version.State == StateActive {
			b.abandon(ctx, caller, c.Credential)
		}
		next, err := b.next(ctx, caller, c.newest, nil, stored)
		if err != nil {
			for _, begun := range out[:i] {
				b.abandon(ctx, caller, begun.Credential)
			}
			return nil, err
		}
		out[i], stored = Issued{Credential: next}, nil
		out[i].Secret.TaskToken = token
	}
	return b.mintAll(ctx, caller, out)
}

// repeated finds what a key was used for, and refuses it if that was for another request; ErrNoSuch.
func (b *Broker) repeated(ctx context.Context, caller Caller, want *RequestKey, r Request) (RequestKey, error) {
	was, err := b.Ledger.Repeated(ctx, want.Caller, want.SHA256)
	if err == nil && !want.At.Before(was.ExpiresAt) { // it is there until somebody tidies
		return was, ErrNoSuch
	}
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
	return &RequestKey{Caller: owner, SHA256: HashToken(key), RequestSHA256: sum[:], At: now, ExpiresAt: now.Add(keyLifetime)}, nil
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
			return c, stillAtIt(ctx.Err())
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
		return Issued{}, Errorf(CodeCredentialEnded, "the version has just ended").Because(ErrMoved)
	}
	bundle, err := openBundle(b.Sealer, sealed, c.Version.ID)
	if err != nil {
		return Issued{}, err
	}
	e := eventOf(EventResolved, caller, b.now(), c)
	e.State = "" // it changes none, and by now it may be another
	if c.Version.Ungiven {
		return Issued{Credential: c, Secret: bundle}, b.Ledger.Give(ctx, c.Version.ID, e)
	}
	return Issued{Credential: c, Secret: bundle}, b.Ledger.Record(ctx, e)
}

// maxAlive bounds how many versions of one credential may be alive: a holder that refreshes in a loop is a runaway too.
const maxAlive = 16

// next writes the intent of the version after c's, with what is left of the credential's life.
func (b *Broker) next(ctx context.Context, caller Caller, c Credential, key *RequestKey, token *NewTaskToken) (Credential, error) {
	return b.nextUntil(ctx, caller, c, key, token, time.Time{})
}

// nextUntil is next, for a version that nobody asked for where an end is given: its holder does not have it yet.
func (b *Broker) nextUntil(ctx context.Context, caller Caller, c Credential, key *RequestKey, token *NewTaskToken, end time.Time) (Credential, error) {
	r := Request{TaskID: c.TaskID, AgentID: c.AgentID, Profile: c.Profile, Scopes: c.Scopes}
	alive, err := b.Ledger.Alive(ctx, c.ID)
	if err != nil {
		return c, err
	}
	if len(alive) >= maxAlive {
		e := Errorf(CodeQuotaExceeded, "%d versions of this credential are alive, and more than that are not minted", len(alive))
		e.RetryAfter = 30 * time.Second
		return c, b.refuse(ctx, caller, r, e)
	}
	p, ok := b.profile(c.Profile)
	if !ok {
		return c, Errorf(CodeUnknownProfile, "the profile is no longer offered")
	}
	grant, err := b.Policy.Decide(Caller{Name: c.Caller, Role: RoleOrchestrator}, p, Request{
		TaskID: c.TaskID, AgentID: c.AgentID, Profile: c.Profile, Scopes: c.Scopes, TTL: c.TTL, Metadata: c.Metadata,
	})
	if err != nil {
		return c, b.refuse(ctx, caller, r, AsError(err))
	}
	if left := c.HardEnd.Sub(b.now()); end.IsZero() && left < p.MinTTL || left <= 0 {
		e := Errorf(CodeCredentialEnded, "the credential has reached the end of its life, which no refresh outlives; issue a new one")
		return c, b.refuse(ctx, caller, r, e)
	}
	c.Version = b.newVersion(c, p, c.Version.Number+1, grant.TTL)
	if !end.IsZero() {
		c.Version.Ungiven = true
		if end.Before(c.Version.ExpiresAt) {
			c.Version.ExpiresAt = end
		}
	}
	err = b.Ledger.Next(ctx, c, key, token, eventOf(EventIntended, caller, c.Version.IssuedAt, c))
	if errors.Is(err, ErrTaskEnded) {
		if now, findErr := b.Ledger.Credential(ctx, c.ID); findErr == nil && now.Version.Cause == CauseRevoked {
			return c, ended(now)
		}
		return c, taskEnded()
	}
	return c, err
}

// ended is the error for a credential whose version can no longer be had, or not yet.
func ended(c Credential) *Error {
	if c.Version.State == StateIssuing {
		return Errorf(CodeConflict, "the credential is not there yet: its ticket waits, or it is just being issued")
	}
	if c.Version.Cause == CauseCutOff {
		return Errorf(CodeCredentialEnded, "the version is %s (cut_off): refresh the credential", c.Version.State)
	}
	return Errorf(CodeCredentialEnded, "the credential is %s (%s)", c.Version.State, c.Version.Cause)
}
