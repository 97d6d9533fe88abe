package broker

import (
	"context"
	"errors"
	"slices"
	"time"
)

// maxCache is the longest that a holder may keep a resolved secret before it asks again.
const maxCache = time.Minute

// Refresh mints the credential's next version; the one before stays good for the profile's overlap. seen is the version
// that the holder has, zero for whatever is current: who asks for a successor that is there already gets it, so that two
// who refresh the same version at once get the same one. No version outlives the credential's hard end. key, where not
// empty, makes a refresh that does not name its version idempotent too.
func (b *Broker) Refresh(ctx context.Context, caller Caller, id CredentialID, seen int, key string) (Issued, error) {
	issued, err := b.refresh(ctx, caller, id, seen, key)
	b.Observer.Done("refresh", issued.Profile, issued.Provider, outcomeOf(err))
	return issued, err
}

func (b *Broker) refresh(ctx context.Context, caller Caller, id CredentialID, seen int, key string) (Issued, error) {
	var want *RequestKey
	for {
		c, err := b.find(ctx, caller, useRefresh, id)
		if err == nil {
			c, err = b.held(ctx, c)
		}
		if err != nil {
			return Issued{}, err
		}
		if c.Strikes >= maxStrikes {
			return Issued{Credential: c}, halted()
		}
		if key != "" {
			if want, err = newRequestKey(caller, key, []any{"refresh", id, seen}, b.now()); err != nil {
				return Issued{}, err
			}
		}
		if want != nil {
			was, err := b.repeated(ctx, caller, want, Request{TaskID: c.TaskID, AgentID: c.AgentID, Profile: c.Profile})
			if err == nil {
				seen, want = was.Seen, nil // its key is on the ledger
			} else if !errors.Is(err, ErrNoSuch) {
				return Issued{Credential: c}, err
			}
		}
		good := c.Version.State == StateActive || c.Version.Cause == CauseCutOff // that one was ended for others' sake
		if !good || !b.now().Before(c.Version.ExpiresAt) {
			return Issued{Credential: c}, ended(c)
		}
		if seen == 0 {
			seen = c.Version.Number
		}
		if seen < c.Version.Number && c.Version.State == StateActive {
			issued, err := b.open(ctx, caller, c)
			if errors.Is(err, ErrMoved) {
				continue
			}
			return issued, err
		}
		latest, overtaken, err := b.latest(ctx, c)
		if err != nil {
			return Issued{Credential: c}, err
		}
		if overtaken {
			continue
		}
		if want != nil {
			want.Seen = seen
		}
		next, err := b.next(ctx, caller, latest, want, nil)
		if errors.Is(err, ErrMoved) || errors.Is(err, ErrKeyUsed) {
			continue
		}
		if err != nil {
			return Issued{Credential: c}, err
		}
		b.Reached("after_refresh_intent")
		issued, err := b.mint(context.WithoutCancel(ctx), caller, Issued{Credential: next}, EventRefreshed)
		b.Reached("after_refresh")
		return issued, err
	}
}

// latest is the credential's newest version, once nobody mints it any more. overtaken tells that another version than c's
// became the current one meanwhile.
func (b *Broker) latest(ctx context.Context, c Credential) (latest Credential, overtaken bool, err error) {
	latest, err = b.Ledger.Latest(ctx, c.ID)
	if err == nil && latest.Version.State == StateIssuing { // another request is at it
		latest, err = b.settled(ctx, c.ID)
	}
	if err != nil || latest.Version.Number <= c.Version.Number {
		return latest, false, err
	}
	now, err := b.Ledger.Credential(ctx, c.ID) // the newest, or one before it, may be the current one by now
	if err == nil {
		now, err = b.held(ctx, now)
	}
	return latest, err == nil && now.Version.Number != c.Version.Number, err
}

// held is a credential with the version that its holder has. That is the current one, unless that was abandoned, which
// nobody was given: then it is the newest that still works and was not asked to end for another reason than that one.
func (b *Broker) held(ctx context.Context, c Credential) (Credential, error) {
	if c.Version.Cause != CauseAbandoned {
		return c, nil
	}
	alive, err := b.Ledger.Alive(ctx, c.ID)
	has := c
	for _, a := range alive {
		v := a.Version
		works := v.State == StateActive && (v.Cause == CauseNone || v.Cause == CauseReplaced)
		if works && (has.Version.Cause == CauseAbandoned || v.Number > has.Version.Number) {
			has = a
		}
	}
	return has, err
}

// Resolved is the current secret of a credential, for who holds the reference.
type Resolved struct {
	Issued
	CacheFor    time.Duration // how long it may be kept before asking again
	NotModified bool          // the holder has this version; there is no secret in the answer
}

// AnyVersion stands for whichever version is the current one.
const AnyVersion = -1

// Resolve gives the current secret to whoever may hold it: the caller it was issued to, or the task's own token. known
// are the versions that the holder has already; AnyVersion for whichever is the current one.
func (b *Broker) Resolve(ctx context.Context, caller Caller, id CredentialID, known ...int) (Resolved, error) {
	c, err := b.find(ctx, caller, useResolve, id)
	if err == nil {
		c, err = b.held(ctx, c)
	}
	if err != nil {
		return Resolved{}, err
	}
	now := b.now()
	if c.Version.State != StateActive || c.Version.Cause == CauseCutOff || !now.Before(c.Version.ExpiresAt) {
		return Resolved{}, ended(c)
	}
	if c.Strikes >= maxStrikes {
		return Resolved{}, halted()
	}
	r := Resolved{Issued: Issued{Credential: c}, CacheFor: min(maxCache, c.Version.ExpiresAt.Sub(now)/10)}
	if slices.Contains(known, c.Version.Number) || slices.Contains(known, AnyVersion) {
		r.NotModified = true
		return r, nil
	}
	if r.Issued, err = b.open(ctx, caller, c); err != nil {
		return Resolved{}, err
	}
	r.Secret.TaskToken = Secret{} // it was answered when it was issued, to the orchestrator
	return r, nil
}
