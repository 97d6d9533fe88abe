package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Issued is a credential with the secret of its version, or with a ticket for it: the one answer that bears secrets.
type Issued struct {
	Credential
	Secret          Bundle
	Ticket          Secret // in place of the secret, where it was asked for
	TicketExpiresAt time.Time
}

// keyLifetime is how long an Idempotency-Key is remembered.
const keyLifetime = 24 * time.Hour

// maxBatch is the most credentials that one request may ask for.
const maxBatch = 16

// Issue mints one credential for one task. The secret is returned only once its issuance is durable (P1); whatever may
// exist upstream is on the ledger before the upstream is asked (P2). A refusal is audited with all its reasons.
//
// A key, where not empty, makes the request idempotent: the same key with the same request answers the same credential
// and secret for 24 h or until that ends, across replicas and crashes (P5); with another request idempotency_mismatch.
func (b *Broker) Issue(ctx context.Context, caller Caller, r Request, key string) (Issued, error) {
	list, err := b.IssueAll(ctx, caller, []Request{r}, key)
	if err != nil {
		return Issued{}, err
	}
	return list[0], nil
}

// IssueAll mints several credentials for one task: all, or none. When one fails, those that were minted are revoked, and
// the error says which one and why.
func (b *Broker) IssueAll(ctx context.Context, caller Caller, rs []Request, key string) ([]Issued, error) {
	list, err := b.issueAll(ctx, caller, rs, key)
	for _, r := range rs {
		p, _ := b.profile(r.Profile)
		b.Observer.Done("issue", p.Name, p.Provider, outcomeOf(err))
	}
	return list, err
}

func outcomeOf(err error) string {
	if err == nil {
		return "ok"
	}
	return string(AsError(err).Code)
}

func (b *Broker) issueAll(ctx context.Context, caller Caller, rs []Request, key string) ([]Issued, error) {
	start := time.Now()
	if n := len(rs); n == 0 || n > maxBatch {
		return nil, Errorf(CodeInvalidRequest, "a request asks for 1 to %d credentials", maxBatch)
	}
	rs = slices.Clone(rs)
	for i := range rs {
		if len(rs[i].Metadata) == 0 { // an empty object is the same request as none
			rs[i].Metadata = nil
		}
	}
	in, list, err := b.plan(ctx, caller, rs)
	if err != nil {
		return nil, err
	}
	if key != "" {
		if in.Key, err = newRequestKey(caller, key, rs, in.Credentials[0].CreatedAt); err != nil {
			return nil, err
		}
	}
	b.Observer.Phase(rs[0].Profile, "policy", time.Since(start))

	start = time.Now()
	if err := b.Ledger.Begin(ctx, in); err != nil {
		return b.notBegun(ctx, caller, rs, key, err)
	}
	b.Observer.Phase(rs[0].Profile, "intent", time.Since(start))
	b.Reached("after_intent")

	// From here on the work is finished whether or not the client still waits: half a mint is a lost one.
	return b.mintAll(context.WithoutCancel(ctx), caller, list)
}

// notBegun is what to do when the database's constraints refused an intent.
func (b *Broker) notBegun(ctx context.Context, caller Caller, rs []Request, key string, err error) ([]Issued, error) {
	if over, ok := errors.AsType[*LimitError](err); ok {
		return nil, b.refuseSome(ctx, caller, rs, overQuota(over, len(rs)))
	}
	switch {
	case errors.Is(err, ErrKeyUsed):
		return b.repeat(ctx, caller, rs, key)
	case errors.Is(err, ErrTaskEnded):
		return nil, b.refuseAll(ctx, caller, rs, taskEnded())
	}
	return nil, err
}

func taskEnded() *Error {
	return Errorf(CodeTaskEnded, "the task, or one above it, has ended: nothing is issued for it any more")
}

// plan decides on each request and makes what is to be written for all of them.
func (b *Broker) plan(ctx context.Context, caller Caller, rs []Request) (Intent, []Issued, error) {
	in := Intent{Limits: *b.limits.Load()}
	list := make([]Issued, 0, len(rs))
	var token Secret
	var refused []refusal
	for i, r := range rs {
		p, grant, err := b.decide(caller, r)
		if err != nil {
			refused = append(refused, refusal{i, pointInto(AsError(err), i, len(rs))})
		}
		if len(refused) > 0 { // nothing is issued: the others are only looked at
			continue
		}
		c := b.newCredential(caller, p, r, grant)
		event := EventIntended
		issued := Issued{Credential: c}
		if r.TaskToken && token.Empty() {
			token = NewToken(PrefixTask)
			in.TaskToken = newTaskToken(token, c)
		}
		issued.Secret.TaskToken = token
		if r.Ticket {
			event = EventTicketCreated
			if issued, err = b.addTicket(&in, issued, p); err != nil {
				return in, nil, err
			}
			c = issued.Credential
		}
		e := eventOf(event, caller, c.CreatedAt, c)
		in.Credentials, in.Events, list = append(in.Credentials, c), append(in.Events, e), append(list, issued)
	}
	if len(refused) > 0 {
		return in, nil, b.refuseSome(ctx, caller, rs, refused)
	}
	if parent := rs[0].ParentTaskID; parent != "" {
		err := b.Ledger.AddTask(ctx, Task{Caller: caller.Name, ID: rs[0].TaskID, Parent: parent})
		if errors.Is(err, ErrTaskEnded) {
			return in, nil, b.refuseAll(ctx, caller, rs, taskEnded())
		}
		if errors.Is(err, ErrMoved) {
			e := Errorf(CodeConflict, "the task has another parent: it keeps the first one")
			return in, nil, b.refuseAll(ctx, caller, rs, e)
		}
		if err != nil {
			return in, nil, err
		}
	}
	return in, list, nil
}

// pointInto makes the pointers of one credential's faults point into a request for several.
func pointInto(e *Error, i, of int) *Error {
	if of > 1 {
		for f := range e.Faults {
			e.Faults[f].Pointer = fmt.Sprintf("/credentials/%d%s", i, e.Faults[f].Pointer)
		}
		e.Message = fmt.Sprintf("credentials[%d]: %s", i, e.Message)
	}
	return e
}

func newTaskToken(token Secret, c Credential) *NewTaskToken {
	return &NewTaskToken{
		ID: NewTaskTokenID(), SHA256: HashToken(token.Reveal()), Caller: c.Caller, TaskID: c.TaskID,
		CreatedAt: c.CreatedAt, ExpiresAt: c.HardEnd,
	}
}

func (b *Broker) decide(caller Caller, r Request) (Profile, Grant, error) {
	if err := caller.mayUse(useIssue); err != nil {
		return Profile{}, Grant{}, err
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
	for pointer, id := range map[string]string{"/task_id": r.TaskID, "/agent_id": r.AgentID} {
		if idOrEmpty(id) == "" {
			faults = append(faults, Fault{pointer, "is not 1-128 of A-Z a-z 0-9 . _ : @ -, and not only dots"})
		}
	}
	if r.ParentTaskID != "" && (idOrEmpty(r.ParentTaskID) == "" || r.ParentTaskID == r.TaskID) {
		faults = append(faults, Fault{"/parent_task_id", "is not another task's id"})
	}
	if len(r.Scopes) == 0 {
		faults = append(faults, Fault{"/scopes", "names no scope"})
	}
	return append(faults, CheckMetadata(r.Metadata)...)
}

// idOrEmpty passes what has an id's form and is not one of our own tokens, put into the wrong field.
func idOrEmpty(s string) string {
	if !ValidID(s) || IsToken(s) {
		return ""
	}
	return s
}

// mintTime is how long a version may be in the making before it is taken for abandoned.
func (b *Broker) mintTime() time.Duration { return b.UpstreamTimeout + abandonAfter }

func (b *Broker) newCredential(caller Caller, p Profile, r Request, g Grant) Credential {
	now := b.now()
	c := Credential{
		ID: NewCredentialID(), TaskID: r.TaskID, Parent: r.ParentTaskID, AgentID: r.AgentID, Profile: p.Name, Provider: p.Provider,
		Caller: caller.Name, Requested: r.Scopes, Scopes: g.Scopes, Metadata: r.Metadata, TTL: g.TTL,
		CreatedAt: now, HardEnd: now.Add(max(p.MaxLifetime, g.TTL)),
	}
	c.Version = b.newVersion(c, p, 1, g.TTL)
	return c
}

func (b *Broker) newVersion(c Credential, p Profile, number int, ttl time.Duration) Version {
	now := b.now()
	v := Version{
		ID: NewVersionID(), Number: number, State: StateIssuing, IssuedAt: now, ExpiresAt: now.Add(ttl),
		SelfExpires: p.Upstream.Capabilities().SelfExpires, Upstream: p.Upstream.Upstream(c), DueAt: now.Add(b.mintTime()),
	}
	if v.ExpiresAt.After(c.HardEnd) {
		v.ExpiresAt = c.HardEnd
	}
	return v
}
