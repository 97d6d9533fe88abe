package gcp

import (
	"context"
	"errors"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// aliveUntil is when nothing that is made for the version can work any more. It is on the ledger before Google is asked,
// so that a mint whose answer is lost counts too.
func (p *Provider) aliveUntil(c broker.Credential) time.Time {
	until := c.Version.ExpiresAt.Add(p.cfg.skew())
	if p.cfg.Mode == modeKey {
		until = until.Add(keyTokenLife)
	}
	return until
}

// mintPooled takes an account for the version, and mints on it.
func (p *Provider) mintPooled(ctx context.Context, c broker.Credential) (broker.Minted, error) {
	most := 0
	if p.shared {
		most = broker.ShareSize(len(p.cfg.Accounts), p.cfg.SharePercent)
	}
	o, ok, back, err := p.accounts.Occupy(ctx, c, p.cfg.Accounts, most, p.aliveUntil(c), p.clock())
	if errors.Is(err, broker.ErrOverShare) {
		return broker.Minted{}, nothing(p.overShare(back))
	}
	if err != nil { // it may hold one all the same
		return broker.Minted{}, broker.Errorf(broker.CodeUnavailable, "the ledger of service accounts could not be asked").Because(err)
	}
	if !ok {
		return broker.Minted{}, nothing(p.exhausted(back))
	}
	h := &hold{email: o.Email, fresh: !o.Kept}
	if !o.AwakeAt.IsZero() {
		h.settled = o.AwakeAt.Add(settleAfter)
	}
	if !o.Awake {
		if err := p.enable(ctx, c.Version.ID, h); err != nil {
			return broker.Minted{}, p.vacated(ctx, c, h, err)
		}
	}
	m, err := p.mintOn(ctx, c, h)
	if err != nil {
		return broker.Minted{}, p.vacated(ctx, c, h, err)
	}
	return m, nil
}

// vacated gives the account back where surely nothing was made for it; where it may still be enabled by a call that was
// not answered, to nobody before that is over: it could revive the next holder's token after its end. One that cannot be
// enabled fails no other mint meanwhile. If giving it back fails, the version is not said to be nothing: then its end does.
func (p *Provider) vacated(ctx context.Context, c broker.Credential, h *hold, cause error) error {
	if !isNothing(cause) {
		return cause
	}
	var until time.Time
	if h.doubtful {
		until = p.clock().Add(p.cfg.skew())
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), vacateTimeout)
	defer cancel()
	if err := p.accounts.Vacate(ctx, c, until); err != nil {
		p.logger.ErrorContext(ctx, "service account not given back; its version's end does", "version_id", c.Version.ID, "error", err)
		return broker.AsError(cause)
	}
	return cause
}

func (p *Provider) exhausted(back time.Time) error {
	e := broker.Errorf(broker.CodePoolExhausted, "every service account of the profile is held, or rests until its last token is dead")
	e.RetryAfter = p.wait(back)
	return e
}

// overShare is the answer for a caller that has used up its share.
func (p *Provider) overShare(back time.Time) *broker.Error {
	e := broker.Errorf(broker.CodeQuotaExceeded, "your service accounts of this profile, held and resting, are the share of them that one caller may use: "+
		"end credentials earlier, or have the operator add accounts or raise the profile's share_percent")
	e.RetryAfter = p.wait(back)
	return e
}

func (p *Provider) wait(back time.Time) time.Duration {
	if wait := back.Sub(p.clock()); !back.IsZero() && wait > 0 {
		return wait
	}
	return exhaustedPause
}

// revokePooled ends the hold and disables the account. What other versions of the credential need is left alone: this
// version then dies at its end (a token), or by its key's deletion (a key).
func (p *Provider) revokePooled(ctx context.Context, c broker.Credential) (broker.Revocation, error) {
	list, err := p.accounts.Rest(ctx, c)
	if err != nil {
		return broker.Revocation{}, broker.Errorf(broker.CodeUnavailable, "the ledger of service accounts could not be asked").Because(err)
	}
	now := p.clock().UTC()
	for _, a := range list {
		if a.State != broker.AccountHeld || a.Holder != c.ID {
			continue
		}
		if p.cfg.Mode == modeKey {
			return p.revokeKey(ctx, c, a.Email)
		}
		return selfExpires(c), nil
	}
	basis := "not_held" // it never held one: the ledger knows before Google does
	for _, a := range list {
		if a.State != broker.AccountResting || !a.AliveUntil.After(now.Add(lastMoment)) {
			basis = "time_over" // nothing that was made for it works: it is somebody else's, or may be next
			continue
		}
		basis = "account_disabled"
		if err := p.disable(ctx, c.Version.ID, a.Email); err != nil {
			return broker.Revocation{}, read(err).meaning(a.Email)
		}
		if err := p.accounts.Stopped(ctx, a.Email, now); err != nil {
			return broker.Revocation{}, broker.Errorf(broker.CodeUnavailable, "that the account is disabled could not be recorded").Because(err)
		}
		if p.cfg.Mode == modeKey {
			if _, err := p.revokeKey(ctx, c, a.Email); err != nil { // it would be one of the account's ten for ever
				return broker.Revocation{}, err
			}
		}
	}
	return broker.Revocation{Result: broker.ResultDenied, EffectiveAt: now, Basis: basis}, nil
}
