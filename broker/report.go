package broker

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// maxStrikes is how many refusals in a row a credential's holder may report before it is told to stop, for this cause. The
// circuit stays open until the credential's end.
const (
	maxStrikes        = 3
	causeRefusedAgain = "refused_again"
)

// Action is what a holder does after its upstream said no. Never the same again with the same secret after a 401.
type Action string

const (
	ActionRetry   Action = "retry"   // the same request, later: it was no matter of the credential
	ActionRefresh Action = "refresh" // there is a newer version: resolve it
	ActionHalt    Action = "halt"    // stop: nothing that the holder can do helps
)

// Report is what a holder's upstream answered to a version.
type Report struct {
	Version    int
	Status     int           // HTTP's
	RetryAfter time.Duration // as the upstream said; zero: it did not
}

// Advice is what a holder is told to do.
type Advice struct {
	Action     Action
	Cause      string        // a short machine word
	Version    int           // with ActionRefresh: the one to resolve
	RetryAfter time.Duration // with ActionRetry, and with ActionHalt where it may be over by then
}

// Pauses of ActionRetry where the upstream named none.
const (
	pauseThrottled = 5 * time.Second
	pauseFailing   = 2 * time.Second
)

// Report takes in what an upstream answered to the holder of a credential, and says what to do. A 401 is on the record; it
// mints the next version where that can help, and a holder whose versions are refused one after the other is halted. A key
// of a pool that is refused several times in a row goes into quarantine before its vendor locks it. A 403 is a matter of
// scopes, and changes nothing.
func (b *Broker) Report(ctx context.Context, caller Caller, id CredentialID, r Report) (Advice, error) {
	c, err := b.find(ctx, caller, useReport, id)
	if err != nil {
		return Advice{}, err
	}
	switch latest, err := b.Ledger.Latest(ctx, id); {
	case err != nil:
		return Advice{}, err
	case r.Version < 1 || r.Version > latest.Version.Number:
		return Advice{}, noVersion()
	}
	advice, err := b.advise(ctx, caller, c, r)
	if err == nil {
		b.Observer.Done("report", c.Profile, c.Provider, string(advice.Action))
	}
	return advice, err
}

func (b *Broker) advise(ctx context.Context, caller Caller, c Credential, r Report) (Advice, error) {
	good := c.Version.State == StateActive && c.Version.Cause != CauseCutOff && b.now().Before(c.Version.ExpiresAt)
	switch {
	case r.Status < http.StatusBadRequest && c.Strikes >= maxStrikes: // who was halted does not let itself go on
		return Advice{Action: ActionHalt, Cause: causeRefusedAgain}, nil
	case r.Status < http.StatusBadRequest:
		return Advice{Action: ActionRetry, Cause: "accepted"}, b.worked(ctx, c, r)
	case r.Status == http.StatusTooManyRequests:
		return Advice{Action: ActionRetry, Cause: "upstream_throttled", RetryAfter: max(r.RetryAfter, pauseThrottled)}, nil
	case r.Status >= http.StatusInternalServerError:
		return Advice{Action: ActionRetry, Cause: "upstream_error", RetryAfter: max(r.RetryAfter, pauseFailing)}, nil
	case r.Status == http.StatusForbidden:
		return Advice{Action: ActionHalt, Cause: "scope"}, nil
	case r.Status != http.StatusUnauthorized:
		return Advice{Action: ActionHalt, Cause: "request"}, nil
	case !good && c.Version.Cause == CauseCutOff:
		return Advice{Action: ActionRefresh, Cause: string(CauseCutOff), Version: c.Version.Number}, nil
	case !good:
		cause := c.Version.Cause
		if cause == CauseNone {
			cause = CauseExpired
		}
		return Advice{Action: ActionHalt, Cause: string(cause)}, nil
	case r.Version < c.Version.Number:
		return Advice{Action: ActionRefresh, Cause: "newer_version", Version: c.Version.Number}, nil
	case r.Version > c.Version.Number: // nobody was given it
		return Advice{}, noVersion()
	}
	return b.refused(ctx, caller, c)
}

func noVersion() *Error {
	e := Errorf(CodeInvalidRequest, "the credential has no such version")
	e.Faults = []Fault{{"/version", "is not a version of this credential"}}
	return e
}

// refused deals with a 401 to the current version.
func (b *Broker) refused(ctx context.Context, caller Caller, c Credential) (Advice, error) {
	strikes, err := b.Ledger.Strike(ctx, c.ID, c.Version.Number, false, b.reported(caller, c))
	if err != nil {
		return Advice{}, err
	}
	quarantined, err := b.refusedByPool(ctx, c)
	if e, ok := errors.AsType[*Error](err); ok && e.Code == CodeQuotaExceeded {
		b.Logger.WarnContext(ctx, "a refusal was reported beyond its caller's share of the pool: the key is left as it is",
			"credential_id", c.ID, "caller", c.Caller, "key", c.Version.Trace["key"])
		return Advice{Action: ActionHalt, Cause: string(e.Code), RetryAfter: e.RetryAfter}, nil
	}
	if err != nil {
		return Advice{}, Errorf(CodeUnavailable, "the pool could not be asked").Because(err)
	}
	if strikes >= maxStrikes {
		b.Logger.WarnContext(ctx, "versions are refused one after the other; their holder is halted", "credential_id", c.ID, "strikes", strikes)
		return Advice{Action: ActionHalt, Cause: causeRefusedAgain}, nil
	}
	next, err := b.refresh(ctx, caller, c.ID, c.Version.Number, "")
	switch e := AsError(err); {
	case err == nil && quarantined:
		return Advice{Action: ActionRefresh, Cause: "key_quarantined", Version: next.Version.Number}, nil
	case err == nil:
		return Advice{Action: ActionRefresh, Cause: "replaced", Version: next.Version.Number}, nil
	case e.Code == CodeUnavailable:
		return Advice{}, err
	default: // there is no other secret, and the same one is not tried again
		return Advice{Action: ActionHalt, Cause: string(e.Code), RetryAfter: e.RetryAfter}, nil
	}
}

// refusedByPool has a pool take in that its key was refused, and tells whether the key is in quarantine now.
func (b *Broker) refusedByPool(ctx context.Context, c Credential) (quarantined bool, err error) {
	p, done, ok := b.use(c.Profile)
	defer done()
	if pooled, isPool := p.Upstream.(Pooled); ok && isPool {
		return pooled.Refused(ctx, c)
	}
	return false, nil
}

// worked ends the row of refusals: a version that came after the refused one is accepted.
func (b *Broker) worked(ctx context.Context, c Credential, r Report) error {
	if r.Version != c.Version.Number {
		return nil
	}
	if _, err := b.Ledger.Strike(ctx, c.ID, c.Version.Number, true); err != nil {
		return err
	}
	p, done, ok := b.use(c.Profile)
	defer done()
	if pooled, isPool := p.Upstream.(Pooled); ok && isPool {
		return pooled.Worked(ctx, c)
	}
	return nil
}

func (b *Broker) reported(caller Caller, c Credential) Event {
	e := eventOf(EventReported, caller, b.now(), c)
	e.State, e.Code = "", CodeUpstreamRefused
	return e
}

// halted is the error for a credential whose versions were refused one after the other.
func halted() *Error {
	return Errorf(CodeCircuitOpen, "the upstream refused %d versions in a row: stop, and have an operator look", maxStrikes)
}

// succeed mints the version that follows one whose key has another value. It ends when that one would have ended: a rotation
// makes nobody's life longer. When it fails it is put off.
func (b *Broker) succeed(ctx context.Context, c Credential) error {
	latest, err := b.Ledger.Latest(ctx, c.ID)
	if err != nil {
		return err
	}
	if latest.Version.State == StateActive && latest.Version.Number > c.Version.Number { // its holder refreshed meanwhile
		return nil
	}
	if latest.Version.State == StateIssuing { // somebody is at it
		return b.putOff(ctx, c, b.now().Add(jitter(succeedRetry)))
	}
	next, err := b.nextUntil(ctx, sweeper, latest, nil, nil, c.Version.ExpiresAt) // after one that failed, too
	if err == nil {
		_, err = b.mint(ctx, sweeper, Issued{Credential: next}, EventRotated)
	}
	if err == nil || errors.Is(err, ErrMoved) {
		return nil
	}
	b.Logger.WarnContext(ctx, "no successor for a version whose key is being rotated", "version_id", c.Version.ID, "code", AsError(err).Code)
	return b.putOff(ctx, c, b.now().Add(max(jitter(succeedRetry), AsError(err).RetryAfter)))
}

// succeedRetry is how long a successor that could not be minted is put off.
const succeedRetry = 10 * time.Second

func (b *Broker) putOff(ctx context.Context, c Credential, until time.Time) error {
	if c.Version.DueAt = until; until.After(c.Version.ExpiresAt) {
		c.Version.DueAt = c.Version.ExpiresAt
	}
	return b.Ledger.Move(ctx, c, []State{StateActive}, nil)
}
