package broker

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Issued is a credential with the secret of its version: the one answer that bears a secret.
type Issued struct {
	Credential
	Secret Bundle
}

// outcomeTimeout bounds the writing of an outcome, which goes on when the client has gone.
const outcomeTimeout = 10 * time.Second

// abandonAfter is how long past the upstream's time limit an intent may stay open before it is taken for abandoned.
const abandonAfter = 2 * outcomeTimeout

// Issue mints one credential for one task. The secret is returned only once its issuance is durable (P1); whatever may
// exist upstream is on the ledger before the upstream is asked (P2). A refusal is audited with all its reasons.
func (b *Broker) Issue(ctx context.Context, caller Caller, r Request) (Issued, error) {
	issued, err := b.issue(ctx, caller, r)
	outcome := "ok"
	if err != nil {
		outcome = string(AsError(err).Code)
	}
	b.Observer.Done("issue", issued.Profile, issued.Provider, outcome)
	return issued, err
}

func (b *Broker) issue(ctx context.Context, caller Caller, r Request) (Issued, error) {
	start := time.Now()
	p, grant, err := b.decide(caller, r)
	if err != nil {
		return Issued{}, b.refuse(ctx, caller, p, r, AsError(err))
	}
	b.Observer.Phase(p.Name, "policy", time.Since(start))

	c := b.intent(caller, p, r, grant)
	start = time.Now()
	if err := b.Ledger.Begin(ctx, c, eventOf(EventIntended, caller, c.CreatedAt, c)); err != nil {
		return Issued{Credential: c}, err
	}
	b.Observer.Phase(p.Name, "intent", time.Since(start))
	b.Reached("after_intent")

	// From here on the work is finished whether or not the client still waits: half a mint is a lost one.
	return b.mint(context.WithoutCancel(ctx), caller, p, c)
}

func (b *Broker) decide(caller Caller, r Request) (Profile, Grant, error) {
	if caller.Role != RoleOrchestrator {
		return Profile{}, Grant{}, Errorf(CodeForbidden, "the role %s issues no credentials", caller.Role)
	}
	if faults := r.check(); len(faults) > 0 {
		return Profile{}, Grant{}, &Error{Code: CodeInvalidRequest, Message: "the request is not valid", Faults: faults}
	}
	p, ok := b.profile(r.Profile)
	if !ok {
		err := Errorf(CodeUnknownProfile, "there is no profile of that name")
		err.Faults = []Fault{{"/profile", "names no profile"}}
		return Profile{}, Grant{}, err
	}
	grant, err := b.Policy.Decide(caller, p, r)
	return p, grant, err
}

// check holds the rules that the OpenAPI document also states: the domain does not rely on its adapter.
func (r Request) check() []Fault {
	var faults []Fault
	if !ValidID(r.TaskID) {
		faults = append(faults, Fault{"/task_id", "is not 1-128 of A-Z a-z 0-9 . _ : @ -"})
	}
	if !ValidID(r.AgentID) {
		faults = append(faults, Fault{"/agent_id", "is not 1-128 of A-Z a-z 0-9 . _ : @ -"})
	}
	if len(r.Scopes) == 0 {
		faults = append(faults, Fault{"/scopes", "names no scope"})
	}
	return append(faults, CheckMetadata(r.Metadata)...)
}

// refuse audits a refusal and returns it; a refusal that cannot be audited is answered as unavailable.
func (b *Broker) refuse(ctx context.Context, caller Caller, p Profile, r Request, e *Error) error {
	event := Event{
		ID: NewEventID(), At: b.now(), Type: EventRefused, Caller: caller,
		Provider: p.Provider, TTL: r.TTL, Code: e.Code, Faults: e.Faults,
	}
	// Only what has an id's form is recorded: a refused request may hold anything.
	event.TaskID, event.AgentID, event.Profile = idOrEmpty(r.TaskID), idOrEmpty(r.AgentID), idOrEmpty(r.Profile)
	for _, s := range r.Scopes {
		event.Requested = append(event.Requested, idOrEmpty(s))
	}
	if err := b.Ledger.Record(ctx, event); err != nil {
		return err
	}
	return e
}

func idOrEmpty(s string) string {
	if !ValidID(s) {
		return ""
	}
	return s
}

func (b *Broker) intent(caller Caller, p Profile, r Request, g Grant) Credential {
	now := b.now()
	c := Credential{
		ID: NewCredentialID(), TaskID: r.TaskID, AgentID: r.AgentID, Profile: p.Name, Provider: p.Provider,
		Caller: caller.Name, Requested: r.Scopes, Scopes: g.Scopes, Metadata: r.Metadata, TTL: g.TTL, CreatedAt: now,
		Version: Version{
			ID: NewVersionID(), Number: 1, State: StateIssuing, IssuedAt: now, ExpiresAt: now.Add(g.TTL),
			SelfExpires: p.Upstream.Capabilities().SelfExpires,
			DueAt:       now.Add(b.UpstreamTimeout + abandonAfter),
		},
	}
	c.Version.Upstream = p.Upstream.Upstream(c)
	return c
}

func (b *Broker) mint(ctx context.Context, caller Caller, p Profile, c Credential) (Issued, error) {
	start := time.Now()
	var minted Minted
	err := b.upstream(ctx, func(ctx context.Context) (err error) {
		minted, err = p.Upstream.Mint(ctx, c)
		return err
	})
	b.Observer.Phase(p.Name, "upstream", time.Since(start))
	b.Reached("after_reply")
	if err != nil {
		return Issued{Credential: c}, b.unminted(ctx, caller, c, err)
	}
	return b.activate(ctx, caller, c, minted)
}

// activate makes the issuance durable, and only then gives the secret.
func (b *Broker) activate(ctx context.Context, caller Caller, c Credential, minted Minted) (Issued, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, outcomeTimeout)
	defer cancel()
	sealed, err := sealBundle(b.Sealer, minted.Secret, c.Version.ID)
	if err != nil {
		return Issued{Credential: c}, b.unminted(ctx, caller, c, err)
	}
	v := &c.Version
	v.State, v.DueAt = StateActive, v.ExpiresAt
	v.UpstreamExpiresAt, v.UpstreamIDs, v.Trace = minted.UpstreamExpiresAt, minted.UpstreamIDs, minted.Trace
	v.Fingerprint = minted.Secret.Fingerprint()
	err = b.Ledger.Move(ctx, c, leadingTo(StateActive), sealed, eventOf(EventIssued, caller, b.now(), c))
	if err != nil {
		// Not durable, so not handed out. The intent stands, and the sweeper ends whatever the upstream holds.
		b.Logger.ErrorContext(ctx, "issuance not recorded; its secret was dropped", "version_id", v.ID, "error", err)
		return Issued{Credential: c}, Errorf(CodeUnavailable, "the issuance could not be recorded, so its secret was not handed out").Because(err)
	}
	b.Observer.Phase(c.Profile, "outcome", time.Since(start))
	b.Reached("after_outcome")
	return Issued{c, minted.Secret}, nil
}

// unminted records a failed mint: failed where the upstream surely made nothing, else lost and due at once.
func (b *Broker) unminted(ctx context.Context, caller Caller, c Credential, cause error) error {
	ctx, cancel := context.WithTimeout(ctx, outcomeTimeout)
	defer cancel()
	e := upstreamError(cause)
	c.Version.LastError = e.Code
	event := EventLost
	if errors.Is(cause, ErrNotMinted) {
		event = EventFailed
		c.Version.State, c.Version.EndedAt, c.Version.DueAt = StateFailed, b.now(), time.Time{}
	} else {
		c.Version.State, c.Version.Cause, c.Version.DueAt = StateLost, CauseAbandoned, b.now()
	}
	err := b.Ledger.Move(ctx, c, []State{StateIssuing}, nil, eventOf(event, caller, b.now(), c))
	if err != nil { // the intent stands; the sweeper takes it up
		b.Logger.ErrorContext(ctx, "failed mint not recorded", "version_id", c.Version.ID, "error", err)
	}
	b.Logger.WarnContext(ctx, "mint failed", "version_id", c.Version.ID, "profile", c.Profile,
		"code", e.Code, "state", c.Version.State, slog.Any("cause", e.Err))
	return e
}

// upstreamError is what the caller is told of a provider's failure.
func upstreamError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return Errorf(CodeUpstreamTimeout, "the upstream did not answer in time").Because(err)
	}
	return Errorf(CodeUpstreamError, "the upstream could not be asked").Because(err)
}
