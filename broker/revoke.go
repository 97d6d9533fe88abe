package broker

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"
)

// Find returns a credential's state, never its secret. What the caller may not see does not exist for it.
func (b *Broker) Find(ctx context.Context, caller Caller, id CredentialID) (Credential, error) {
	return b.find(ctx, caller, useSee, id)
}

func (b *Broker) find(ctx context.Context, caller Caller, u use, id CredentialID) (Credential, error) {
	if err := caller.mayUse(u); err != nil {
		return Credential{}, err
	}
	c, err := b.Ledger.Credential(ctx, id)
	if errors.Is(err, ErrNoSuch) || err == nil && !caller.owns(c) {
		return Credential{}, Errorf(CodeNotFound, "there is no such credential")
	}
	return c, err
}

// List returns credentials by filter, newest first: an orchestrator's own, an agent's task's, everybody's for the others.
func (b *Broker) List(ctx context.Context, caller Caller, f Filter) (page []Credential, next CredentialID, err error) {
	if err := caller.mayUse(useSee); err != nil {
		return nil, "", err
	}
	if !caller.ReadsAll() {
		if f.Caller != "" && f.Caller != caller.Name {
			return nil, "", nil
		}
		f.Caller = caller.Name
	}
	if caller.Role == RoleAgent {
		if f.TaskID != "" && f.TaskID != caller.TaskID {
			return nil, "", nil
		}
		f.TaskID = caller.TaskID
	}
	return b.Lists.CredentialPage(ctx, f)
}

// Revoke ends a credential now, with all its versions. When it returns without error the revocation is durable (P3); the
// credential's version says what has been achieved so far. Revoking what has ended, or is being ended, changes nothing
// and is no error.
func (b *Broker) Revoke(ctx context.Context, caller Caller, id CredentialID, reason string) (Credential, error) {
	c, err := b.find(ctx, caller, useRevoke, id)
	if err != nil {
		return Credential{}, err
	}
	return b.endAll(context.WithoutCancel(ctx), caller, c, CauseRevoked, reason)
}

// Achieved tells whether all that can be achieved of a credential's end now is achieved, for each of its versions.
func (b *Broker) Achieved(ctx context.Context, id CredentialID) (bool, error) {
	alive, err := b.Ledger.Alive(ctx, id)
	for _, c := range alive {
		if c.Version.Revocation.Result != ResultExpires {
			return false, err
		}
	}
	return err == nil, err
}

// endAll ends every version of a credential and answers its state afterwards.
func (b *Broker) endAll(ctx context.Context, caller Caller, c Credential, cause Cause, reason string) (Credential, error) {
	// A refresh that looked before the wish was durable may have added a version: look again until there is no new one.
	// After that none can come: the ledger refuses it.
	seen := map[VersionID]bool{}
	for {
		alive, err := b.Ledger.Alive(ctx, c.ID)
		if err != nil {
			return Credential{}, err
		}
		alive = slices.DeleteFunc(alive, func(a Credential) bool { return seen[a.Version.ID] })
		if len(alive) == 0 {
			return b.noMore(ctx, caller, c.ID, cause, reason)
		}
		for _, a := range alive {
			seen[a.Version.ID] = true
		}
		if err := b.endVersions(ctx, caller, alive, cause, reason); err != nil {
			return Credential{}, err
		}
	}
}

// noMore answers the state of a credential of which nothing is alive. One that was cut off could still be refreshed: that
// is over now.
func (b *Broker) noMore(ctx context.Context, caller Caller, id CredentialID, cause Cause, reason string) (Credential, error) {
	c, err := b.Ledger.Credential(ctx, id)
	if err != nil || c.Version.Cause != CauseCutOff {
		return c, err
	}
	c.Version.Cause, c.Version.Reason = cause, reason
	if err := b.Ledger.Forbid(ctx, id, eventOf(EventRevokeAsked, caller, b.now(), c)); err != nil && !errors.Is(err, ErrMoved) {
		return c, err
	}
	return b.Ledger.Credential(ctx, id)
}

// endVersions makes the wish to end each version durable, and then one attempt at each. The error says that a wish is not
// durable; an attempt that failed is no error, for the sweeper goes on with it.
func (b *Broker) endVersions(ctx context.Context, caller Caller, list []Credential, cause Cause, reason string) error {
	asked := make([]Credential, len(list))
	begun := make([]bool, len(list))
	errs := make([]error, len(list))
	each(len(list), func(i int) {
		c := list[i]
		c.Version.Reason = reason
		asked[i], begun[i], errs[i] = b.askEnd(ctx, caller, c, cause)
	})
	if err := errors.Join(errs...); err != nil {
		return err
	}
	b.Reached("after_revoke_asked")
	each(len(asked), func(i int) {
		if !begun[i] {
			return
		}
		if err := b.end(ctx, caller, asked[i]); err != nil {
			b.Logger.ErrorContext(ctx, "attempt not recorded; the sweeper goes on", "version_id", asked[i].Version.ID, "error", err)
		}
	})
	return nil
}

// each runs fn for 0 to n-1, some at once.
func each(n int, fn func(i int)) {
	if n == 1 {
		fn(0)
		return
	}
	var wg Group
	turn := make(chan struct{}, sweepWorkers)
	for i := range n {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			fn(i)
		})
	}
	wg.Wait()
}

// askEnd makes the wish to end one version durable, and tells whether an attempt can be made now. What is being minted
// cannot be ended yet: it is kept from becoming active, and ends when its mint does.
func (b *Broker) askEnd(ctx context.Context, caller Caller, c Credential, cause Cause) (Credential, bool, error) {
	switch s := c.Version.State; {
	case s == StateIssuing && c.Version.Unclaimed:
		err := b.voidTicket(ctx, caller, c, cause)
		if errors.Is(err, ErrMoved) { // redeemed at the last moment
			return b.askIssuing(ctx, caller, c, cause)
		}
		return c, false, err
	case s == StateIssuing:
		return b.askIssuing(ctx, caller, c, cause)
	case !slices.Contains(leadingTo(StateRevoking), s):
		return c, false, nil
	}
	c, err := b.beginEnd(ctx, caller, c, cause)
	if errors.Is(err, ErrMoved) { // somebody else just did
		return c, false, nil
	}
	return c, err == nil, err
}

// askIssuing keeps what is being minted from becoming active; if it just did, it is ended as what is active.
func (b *Broker) askIssuing(ctx context.Context, caller Caller, c Credential, cause Cause) (Credential, bool, error) {
	asked := c
	asked.Version.Cause = cause
	err := b.Ledger.AskIssuingToEnd(ctx, c.Version.ID, cause, eventOf(EventRevokeAsked, caller, b.now(), asked))
	if !errors.Is(err, ErrMoved) {
		return c, false, err
	}
	alive, err := b.Ledger.Alive(ctx, c.ID)
	if err != nil {
		return c, false, err
	}
	for _, now := range alive {
		if now.Version.ID == c.Version.ID {
			now.Version.Reason = c.Version.Reason
			return b.askEnd(ctx, caller, now, cause)
		}
	}
	return c, false, nil // it failed, and so ended
}

// voidTicket ends a version whose ticket nobody has redeemed: the upstream was never asked. ErrMoved: somebody just has.
func (b *Broker) voidTicket(ctx context.Context, caller Caller, c Credential, cause Cause) error {
	now := b.now()
	v := &c.Version
	v.State, v.Cause, v.EndedAt, v.DueAt = StateFailed, cause, now, time.Time{}
	event := EventRevoked
	if cause == CauseExpired {
		event = EventTicketExpired
	}
	return b.Ledger.Move(ctx, c, []State{StateIssuing}, nil, eventOf(event, caller, now, c))
}

// beginEnd makes the wish to end a version durable, leased to this process for the time an attempt takes.
func (b *Broker) beginEnd(ctx context.Context, caller Caller, c Credential, cause Cause) (Credential, error) {
	now := b.now()
	from := leadingTo(StateRevoking)
	v := &c.Version
	v.State, v.Cause, v.Attempts, v.DueAt = StateRevoking, cause, 1, now.Add(b.UpstreamTimeout+abandonAfter)
	var events []Event
	if cause != CauseExpired { // an end at its time was asked for when it was issued
		events = append(events, eventOf(EventRevokeAsked, caller, now, c))
	}
	return c, b.Ledger.Move(ctx, c, from, nil, events...)
}

// end makes one attempt to end a version that is on the ledger as ending, and writes what came of it.
func (b *Broker) end(ctx context.Context, caller Caller, c Credential) error {
	from := []State{c.Version.State}
	var done Revocation
	p, leave, known := b.use(c.Profile)
	err := error(Errorf(CodeUpstreamError, "the profile is no longer configured"))
	if known {
		err = b.upstream(ctx, func(ctx context.Context) (err error) {
			done, err = p.Upstream.Revoke(ctx, c)
			return err
		})
	}
	leave()
	b.Reached("after_revoke_reply")
	ctx, cancel := context.WithTimeout(ctx, outcomeTimeout)
	defer cancel()

	var events []Event
	if err != nil {
		c, events = b.notEnded(caller, c, err)
	} else {
		c, events = b.endedBy(caller, c, done)
	}
	b.Observer.Done("revoke", c.Profile, c.Provider, string(c.Version.State))
	if err := b.Ledger.Move(ctx, c, from, nil, events...); err != nil && !errors.Is(err, ErrMoved) {
		return err // acknowledged all the same: the sweeper goes on with it
	}
	return nil
}

func (b *Broker) endedBy(caller Caller, c Credential, done Revocation) (Credential, []Event) {
	now := b.now()
	v := &c.Version
	v.Revocation, v.LastError = done, ""
	switch {
	case done.Result == ResultExpires: // revoking or stuck it stays until then
		v.DueAt = done.EffectiveAt
		return c, []Event{eventOf(EventRevokeDeferred, caller, now, c)}
	case v.Cause == CauseExpired:
		v.State, v.EndedAt, v.DueAt = StateExpired, now, time.Time{}
		return c, []Event{eventOf(EventExpired, caller, now, c)}
	}
	v.State, v.EndedAt, v.DueAt = StateRevoked, now, time.Time{}
	return c, []Event{eventOf(EventRevoked, caller, now, c)}
}

// notEnded puts the next attempt off: with growing, jittered pauses at first, slowly once stuck.
func (b *Broker) notEnded(caller Caller, c Credential, err error) (Credential, []Event) {
	now := b.now()
	v := &c.Version
	wasStuck := v.State == StateStuck
	e := upstreamError(err)
	v.LastError = e.Code
	switch {
	case errors.Is(err, ErrNotRotated): // nothing went wrong: it is the operator's turn
		v.LastError, v.Revocation.Basis = "", "awaiting_rotation"
		v.State, v.DueAt = StateStuck, now.Add(jitter(b.RotationCheck))
	case wasStuck || v.Attempts >= b.MaxAttempts:
		v.State, v.DueAt = StateStuck, now.Add(jitter(b.StuckRetry))
	default:
		v.DueAt = now.Add(max(jitter(b.Backoff<<min(v.Attempts-1, 8)), e.RetryAfter))
	}
	if v.SelfExpires && now.Before(v.ExpiresAt) && v.DueAt.After(v.ExpiresAt) {
		v.DueAt = v.ExpiresAt // then it is over by itself
	}
	b.Logger.Warn("version not ended", "version_id", v.ID, "profile", c.Profile, "attempts", v.Attempts,
		"code", v.LastError, "state", v.State, VendorAttr(err))
	if v.State == StateStuck && !wasStuck {
		return c, []Event{eventOf(EventStuck, caller, now, c)}
	}
	return c, nil
}

// jitter spreads d by ±50 %, so that what failed together is not retried together.
func jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(rand.Int64N(int64(d)+1))
}
