package stripe

import (
	"context"
	"net/http"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Revoke implements broker.Provider: it expires the version's key, and says destroyed when Stripe refuses the key. It is
// found by its id, or, where the mint's outcome was lost, by its name, which holds the version's id.
func (m *managed) Revoke(ctx context.Context, c broker.Credential) (broker.Revocation, error) {
	own, err := m.client.ownKey(m.cfg.SecretKey)
	if err != nil {
		return broker.Revocation{}, err
	}
	secret, seen, err := m.handed(ctx, c)
	if err != nil {
		return broker.Revocation{}, broker.Errorf(broker.CodeUnavailable, "what was handed out could not be looked up").Because(err)
	}
	if len(c.Version.UpstreamIDs) > 0 && plain(c.Version.UpstreamIDs[0]) {
		return m.end(ctx, own, c.Version.UpstreamIDs[0], secret, seen)
	}
	found, err := m.named(ctx, own, c.Version.ID)
	if err != nil {
		return broker.Revocation{}, err
	}
	if len(found) == 0 {
		return m.absent(c)
	}
	var done broker.Revocation
	for _, k := range found { // more than one only if Stripe made two of one request
		token := k.SecretKey.Token.Secret
		if done, err = m.end(ctx, own, k.ID, token, !token.Empty()); err != nil {
			return broker.Revocation{}, err
		}
	}
	return done, nil
}

// absent is for a version of whose key nothing is known and that has no live key: it was never made, or is expired. The
// creation may still be under way for a while after its answer was given up.
func (m *managed) absent(c broker.Credential) (broker.Revocation, error) {
	now := m.Clock().UTC()
	if wait := c.Version.IssuedAt.Add(or(m.cfg.Revocation.Settle, defaultSettle)).Sub(now); wait > 0 {
		e := broker.Errorf(broker.CodeUpstreamError, "no key of this version is there, and one may still appear")
		e.RetryAfter = wait
		return broker.Revocation{}, e
	}
	return broker.Revocation{Result: broker.ResultDestroyed, EffectiveAt: now.Add(m.lag()), Basis: "not_found"}, nil
}

func (m *managed) lag() time.Duration { return or(m.cfg.Revocation.Lag, defaultLag) }

// end expires a key and looks until it is refused. Without the secret there is nothing to look with: then the status and
// the lag have to do, and nobody can use the key, for its secret was given to nobody.
func (m *managed) end(ctx context.Context, own broker.Secret, id string, secret broker.Secret, seen bool) (broker.Revocation, error) {
	f := m.expire(ctx, own, id)
	switch {
	case f == nil:
	case f.refused() && f.status != http.StatusTooManyRequests && m.over(ctx, own, id): // it was expired before
	case f.status == http.StatusNotFound && seen: // rotated away, or another account's: the key itself tells
	default:
		return broker.Revocation{}, m.meaning(f)
	}
	if !seen {
		return broker.Revocation{Result: broker.ResultDestroyed, EffectiveAt: m.Clock().UTC().Add(m.lag()), Basis: "status_expired"}, nil
	}
	tick := time.NewTicker(m.PollEvery)
	defer tick.Stop()
	for {
		state, f := m.try(ctx, secret)
		switch {
		case f != nil && f.late: // the caller's time is over
		case f != nil:
			return broker.Revocation{}, f.meaning()
		case state == aliveNo:
			return broker.Revocation{Result: broker.ResultDestroyed, EffectiveAt: m.Clock().UTC(), Basis: "refused_as_expired"}, nil
		}
		if !pause(ctx, tick) {
			e := broker.Errorf(broker.CodeUpstreamError, "the key is expired at Stripe, and was not yet seen to be refused")
			e.RetryAfter = m.PollEvery
			return broker.Revocation{}, e
		}
	}
}
