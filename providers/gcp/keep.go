package gcp

import (
	"context"
	"errors"
	"time"

	"cloud.google.com/go/iam/admin/apiv1/adminpb"

	"github.com/taskpass/taskpass/broker"
)

// lookEvery is how often accounts are looked at, whether or not anything is due.
const lookEvery = time.Minute

// keptAtOnce is how many accounts are looked at at a time.
const keptAtOnce = 8

var _ broker.Keeper = (*Provider)(nil)

// Keeps implements broker.Keeper: the accounts that one task holds at a time.
func (p *Provider) Keeps() string {
	if p.cfg.pooled() {
		return p.name
	}
	return ""
}

// Keep implements broker.Keeper. It brings each account to the state that the ledger says: one that rests is disabled, one
// whose rest is over is enabled. What somebody else changed is reported. One account's failure stops no other (P11).
func (p *Provider) Keep(ctx context.Context) (next time.Time, err error) {
	list, err := p.accounts.Accounts(ctx, p.cfg.Accounts)
	if err != nil {
		return time.Time{}, err
	}
	now := p.clock()
	next = now.Add(lookEvery)
	errs := make([]error, len(list))
	var wg broker.Group
	turn := make(chan struct{}, keptAtOnce)
	for i, a := range list {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			errs[i] = p.keep(ctx, a, now)
		})
		if a.AliveUntil.After(now) && a.AliveUntil.Before(next) {
			next = a.AliveUntil
		}
	}
	wg.Wait()
	return next, errors.Join(errs...)
}

func (p *Provider) keep(ctx context.Context, a broker.Account, now time.Time) error {
	switch {
	case a.Idle:
		if err := p.accounts.RestIdle(ctx, a); err != nil {
			return err
		}
		again, err := p.accounts.Accounts(ctx, []string{a.Email})
		if err != nil || len(again) != 1 || again[0].State != broker.AccountResting {
			return err
		}
		return p.keep(ctx, again[0], now)
	case a.State == broker.AccountResting && a.AliveUntil.After(now.Add(lastMoment)):
		return p.keepDisabled(ctx, a, now)
	case a.State == broker.AccountResting || a.State == broker.AccountWaking:
		if a.AliveUntil.After(now) {
			return nil // somebody enables it, or it is due so soon that a call might meet its next holder
		}
		return p.wake(ctx, a.Email, now)
	case a.State == broker.AccountHeld && !now.Before(a.UsedAt.Add(settleAfter)): // before, Google may not show it enabled
		return p.keepHeld(ctx, a)
	}
	return nil
}

// wake enables an account for its next holder. Should the call not be answered, it may still happen later, when that
// one's task has ended: so the next attempt waits until it cannot.
func (p *Provider) wake(ctx context.Context, email string, now time.Time) error {
	until := now.Add(p.cfg.skew())
	won, err := p.accounts.Wake(ctx, email, now, until)
	if err != nil || !won {
		return err
	}
	called, cancel := context.WithTimeout(ctx, moveTimeout)
	defer cancel()
	if err := p.clients.admin.EnableServiceAccount(called, &adminpb.EnableServiceAccountRequest{Name: resource(email)}); err != nil {
		return read(err).meaning(email)
	}
	return p.accounts.Awake(ctx, email, p.clock(), until)
}

// keepDisabled sees to it that an account that rests is disabled. One that was, and is not, was enabled by somebody else:
// dead tokens of the task before work again until this is done.
func (p *Provider) keepDisabled(ctx context.Context, a broker.Account, now time.Time) error {
	upstream, err := p.look(ctx, a.Email)
	if err != nil {
		return err
	}
	if upstream.GetDisabled() {
		if a.StoppedAt.IsZero() {
			return p.accounts.Stopped(ctx, a.Email, now)
		}
		return nil
	}
	called, cancel := context.WithTimeout(ctx, moveTimeout)
	defer cancel()
	if err := p.clients.admin.DisableServiceAccount(called, &adminpb.DisableServiceAccountRequest{Name: resource(a.Email)}); err != nil {
		return read(err).meaning(a.Email)
	}
	if a.StoppedAt.IsZero() { // nobody had disabled it yet
		return p.accounts.Stopped(ctx, a.Email, now)
	}
	return p.report(ctx, a, "enabled", "disabled_again")
}

// keepHeld reports an account that somebody disabled under a task. It is left so: who pulled that brake had a reason.
func (p *Provider) keepHeld(ctx context.Context, a broker.Account) error {
	upstream, err := p.look(ctx, a.Email)
	if err != nil || !upstream.GetDisabled() || a.Found == "disabled" {
		return err
	}
	return p.report(ctx, a, "disabled", "left_alone")
}

func (p *Provider) look(ctx context.Context, email string) (*adminpb.ServiceAccount, error) {
	upstream, err := p.clients.admin.GetServiceAccount(ctx, &adminpb.GetServiceAccountRequest{Name: resource(email)})
	if err != nil {
		return nil, read(err).meaning(email)
	}
	return upstream, nil
}

func (p *Provider) report(ctx context.Context, a broker.Account, found, did string) error {
	e := broker.NewFinding(broker.EventUpstreamEdited, p.clock(), "gcp", p.name, map[string]string{
		"service_account": a.Email, "ledger": string(a.State), "found": found, "did": did,
	})
	e.Credential, e.UpstreamIDs = a.Holder, []string{a.Email}
	return p.accounts.Report(ctx, a.Email, found, e)
}
