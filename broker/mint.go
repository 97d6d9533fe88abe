package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// outcomeTimeout bounds the writing of an outcome, which goes on when the client has gone.
const outcomeTimeout = 10 * time.Second

// abandonAfter is how long past the upstream's time limit an intent may stay open before it is taken for abandoned. An
// outcome that comes later still is refused by the ledger, so this is only how long a repeated request may have to wait.
const abandonAfter = 5 * time.Second

// mintAll mints what is on the ledger as issuing: all of it, or, when one fails, nothing that stays alive.
func (b *Broker) mintAll(ctx context.Context, caller Caller, list []Issued) ([]Issued, error) {
	errs := make([]error, len(list))
	var wg Group
	for i := range list {
		if list[i].Version.Unclaimed {
			continue // asked for when its ticket is redeemed
		}
		if len(list) == 1 { // the common case needs no goroutine
			list[i], errs[i] = b.mint(ctx, caller, list[i], EventIssued)
			break
		}
		wg.Go(func() { list[i], errs[i] = b.mint(ctx, caller, list[i], EventIssued) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			for j := range list {
				if errs[j] == nil {
					b.abandon(ctx, caller, list[j].Credential)
				}
			}
			if len(list) > 1 {
				e := AsError(err)
				if len(e.Faults) == 0 {
					e.Faults = []Fault{{"", "could not be issued, so none was"}}
				}
				err = pointInto(e, i, len(list))
			}
			return nil, err
		}
	}
	return list, nil
}

// mint asks the upstream for a version that is on the ledger as issuing, and makes the outcome durable before it gives
// the secret (P1).
func (b *Broker) mint(ctx context.Context, caller Caller, i Issued, event EventType) (Issued, error) {
	start := time.Now()
	c := i.Credential
	p, done, ok := b.use(c.Profile)
	defer done()
	if !ok {
		return i, b.unminted(ctx, caller, c, fmt.Errorf("%w: %w", ErrNotMinted, Errorf(CodeUnknownProfile, "the profile is no longer offered")))
	}
	if err := b.paused(p.Upstream); err != nil {
		return i, b.unminted(ctx, caller, c, fmt.Errorf("%w: %w", ErrNotMinted, err))
	}
	begun := b.now()
	if !begun.Before(c.Version.DueAt) { // the database was slow: any replica may have abandoned it by now
		e := Errorf(CodeUnavailable, "recording the intent took too long; nothing was minted, try again")
		return i, b.unminted(ctx, caller, c, fmt.Errorf("%w: %w", ErrNotMinted, e))
	}
	var minted Minted
	err := b.upstream(ctx, func(ctx context.Context) (err error) {
		if minted, err = p.Upstream.Mint(ctx, c); err != nil {
			return err
		}
		return CheckMinted(minted, c.Version, p.Upstream.Capabilities(), b.now())
	})
	b.learnPace(p.Upstream, begun, err)
	b.Observer.Phase(c.Profile, "upstream", time.Since(start))
	b.Reached("after_reply")
	if err != nil {
		return i, b.unminted(ctx, caller, c, err)
	}
	for name, level := range minted.Levels {
		b.Observer.Level(c.Profile, name, level)
	}
	minted.Secret = withEnv(minted.Secret, p.Env)
	minted.Secret.TaskToken = i.Secret.TaskToken
	i.Secret = minted.Secret
	i.Credential, err = b.activate(ctx, caller, c, p, minted, event)
	return i, err
}

func (b *Broker) activate(ctx context.Context, caller Caller, c Credential, p Profile, minted Minted, event EventType) (Credential, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, outcomeTimeout)
	defer cancel()
	sealed, err := sealBundle(b.Sealer, minted.Secret, c.Version.ID)
	if err != nil {
		return c, b.unminted(ctx, caller, c, Errorf(CodeUnavailable, "the secret could not be sealed, so it was not handed out").Because(err))
	}
	done := c
	v := &done.Version
	v.State, v.DueAt = StateActive, v.ExpiresAt
	v.UpstreamExpiresAt, v.UpstreamIDs, v.Trace = minted.UpstreamExpiresAt, minted.UpstreamIDs, minted.Trace
	v.Fingerprint, v.OwnID = minted.Secret.Fingerprint(), minted.OwnID
	now := b.now()
	err = b.Ledger.Activate(ctx, done, sealed, now.Add(p.Overlap), eventOf(event, caller, now, done))
	if err != nil {
		b.Logger.ErrorContext(ctx, "issuance not recorded; its secret was dropped", "version_id", v.ID, "error", err)
		e := b.notActivated(ctx, c, err)
		b.abandon(ctx, caller, c)
		return c, e
	}
	v.OwnID = false
	b.Observer.Phase(c.Profile, "outcome", time.Since(start))
	b.Reached("after_outcome")
	return done, nil
}

// notActivated is the error for a version that was minted and could not become active: somebody requested its end, or
// it took so long that the sweeper abandoned it, which nobody requested and may be tried again.
func (b *Broker) notActivated(ctx context.Context, c Credential, cause error) error {
	if errors.Is(cause, ErrIDKnown) {
		return lie("it bears the id of another one")
	}
	if errors.Is(cause, ErrMoved) {
		now, err := b.Ledger.Version(ctx, c.Version.ID)
		if err == nil && now.Version.Cause != CauseAbandoned {
			return Errorf(CodeCredentialEnded, "its end was requested while it was being issued; nothing was handed out")
		}
	}
	e := Errorf(CodeUnavailable, "the issuance could not be recorded in time, so its secret was not handed out; try again")
	e.RetryAfter = time.Second
	return e.Because(cause)
}

// abandon sees to it that a version whose secret nobody was given is ended, whichever of its states the ledger holds: a
// write that failed may have been committed all the same. What it cannot reach now the sweeper does later.
func (b *Broker) abandon(ctx context.Context, caller Caller, c Credential) {
	ctx, cancel := context.WithTimeout(ctx, outcomeTimeout)
	defer cancel()
	now := b.now()
	lost := c
	lost.Version.State, lost.Version.Cause, lost.Version.DueAt = StateLost, CauseAbandoned, now
	event := EventLost
	if c.Version.Unclaimed { // its ticket was never given away
		lost.Version.State, lost.Version.EndedAt, lost.Version.DueAt, event = StateFailed, now, time.Time{}, EventFailed
	}
	err := b.Ledger.Move(ctx, lost, []State{StateIssuing}, nil, eventOf(event, caller, now, lost))
	if errors.Is(err, ErrMoved) {
		if alive, findErr := b.Ledger.Version(ctx, c.Version.ID); findErr == nil && alive.Version.State == StateActive {
			if alive, err = b.beginEnd(ctx, caller, alive, CauseAbandoned); err == nil {
				err = b.end(ctx, caller, alive)
			}
		}
	}
	if err != nil && !errors.Is(err, ErrMoved) {
		b.Logger.ErrorContext(ctx, "abandoned version left to the sweeper", "version_id", c.Version.ID, "error", err)
	}
}

// unminted records a failed mint: failed where the upstream surely made nothing, else lost and due at once.
func (b *Broker) unminted(ctx context.Context, caller Caller, c Credential, cause error) error {
	ctx, cancel := context.WithTimeout(ctx, outcomeTimeout)
	defer cancel()
	e := upstreamError(cause)
	now := b.now()
	c.Version.LastError = e.Code
	event := EventLost
	if errors.Is(cause, ErrNotMinted) {
		event = EventFailed
		c.Version.State, c.Version.EndedAt, c.Version.DueAt = StateFailed, now, time.Time{}
	} else {
		c.Version.State, c.Version.Cause, c.Version.DueAt = StateLost, CauseAbandoned, now
	}
	err := b.Ledger.Move(ctx, c, []State{StateIssuing}, nil, eventOf(event, caller, now, c))
	if err != nil { // the intent stands; the sweeper takes it up
		b.Logger.ErrorContext(ctx, "failed mint not recorded", "version_id", c.Version.ID, "error", err)
	}
	b.Logger.WarnContext(ctx, "mint failed", "version_id", c.Version.ID, "profile", c.Profile,
		"code", e.Code, "state", c.Version.State, slog.Any("cause", e.Err), VendorAttr(cause))
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
