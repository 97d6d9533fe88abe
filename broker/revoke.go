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
	c, err := b.Ledger.Credential(ctx, id)
	if errors.Is(err, ErrNoSuch) || err == nil && !caller.owns(c) {
		return Credential{}, Errorf(CodeNotFound, "there is no such credential")
	}
	return c, err
}

// List returns credentials by filter, newest first: an orchestrator's own, everybody's for the others.
func (b *Broker) List(ctx context.Context, caller Caller, f Filter) ([]Credential, error) {
	if !caller.ReadsAll() {
		f.Caller = caller.Name
	}
	return b.Ledger.Credentials(ctx, f)
}

// Revoke ends a credential now. When it returns without error the revocation is durable (P3); the credential's version
// says what has been achieved so far. Revoking what has ended, or is being ended, changes nothing and is no error.
func (b *Broker) Revoke(ctx context.Context, caller Caller, id CredentialID, reason string) (Credential, error) {
	c, err := b.Find(ctx, caller, id)
	if err != nil {
		return Credential{}, err
	}
	if caller.Role == RoleAuditor {
		return Credential{}, Errorf(CodeForbidden, "an auditor changes nothing")
	}
	switch s := c.Version.State; {
	case s == StateIssuing:
		return Credential{}, Errorf(CodeConflict, "the credential is still being issued; ask again")
	case !slices.Contains(leadingTo(StateRevoking), s):
		return c, nil
	}
	c.Version.Reason = reason
	c, err = b.beginEnd(ctx, caller, c, CauseRevoked)
	if errors.Is(err, ErrMoved) { // somebody else just did
		return b.Find(ctx, caller, id)
	}
	if err != nil {
		return Credential{}, err
	}
	b.Reached("after_revoke_asked")
	return b.end(context.WithoutCancel(ctx), caller, c)
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
func (b *Broker) end(ctx context.Context, caller Caller, c Credential) (Credential, error) {
	from := []State{c.Version.State}
	var done Revocation
	p, known := b.profile(c.Profile)
	err := error(Errorf(CodeUpstreamError, "the profile is no longer configured"))
	if known {
		err = b.upstream(ctx, func(ctx context.Context) (err error) {
			done, err = p.Upstream.Revoke(ctx, c)
			return err
		})
	}
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
		return Credential{}, err // acknowledged all the same: the sweeper goes on with it
	}
	return c, nil
}

func (b *Broker) endedBy(caller Caller, c Credential, done Revocation) (Credential, []Event) {
	now := b.now()
	v := &c.Version
	v.Revocation, v.LastError = done, ""
	switch {
	case done.Result == ResultExpires:
		v.State, v.DueAt = StateRevoking, done.EffectiveAt
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
	v.LastError = upstreamError(err).Code
	switch {
	case errors.Is(err, ErrNotRotated):
		v.State, v.DueAt = StateStuck, now.Add(jitter(b.RotationCheck))
	case wasStuck || v.Attempts >= b.MaxAttempts:
		v.State, v.DueAt = StateStuck, now.Add(jitter(b.StuckRetry))
	default:
		v.DueAt = now.Add(jitter(b.Backoff << min(v.Attempts-1, 8)))
	}
	b.Logger.Warn("version not ended", "version_id", v.ID, "profile", c.Profile, "attempts", v.Attempts,
		"code", v.LastError, "state", v.State)
	if v.State == StateStuck && !wasStuck {
		return c, []Event{eventOf(EventStuck, caller, now, c)}
	}
	return c, nil
}

// jitter spreads d by ±50 %, so that what failed together is not retried together.
func jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(rand.Int64N(int64(d)+1))
}
