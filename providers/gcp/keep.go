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

// Keeps names the accounts that are kept in step with the ledger; empty: none are. It is broker.Keeper's.
func (p *Provider) Keeps() string {
	if p.cfg.pooled() {
		return p.name
	}
	return ""
}

// Keep brings each account to the state that the ledger says, and says when to look again: one that rests is disabled,
// one whose rest is over is enabled. What somebody else changed is reported. One account's failure stops no other (P11).
func (p *Provider) Keep(ctx context.Context) (next time.Time, err error) {
	list, err := p.accounts.Accounts(ctx, p.cfg.Accounts)
	if err != nil {
		return time.Time{}, err
	}
	now := p.clock()
	next = now.Add(lookEvery)
	var errs []error
	for _, a := range list {
		if err := p.keep(ctx, a, now); err != nil {
			errs = append(errs, err)
		}
		if a.AliveUntil.After(now) && a.AliveUntil.Before(next) {
			next = a.AliveUntil
		}
	}
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
	case a.State == broker.AccountWaking:
		return p.wake(ctx, a.Email)
	case a.State == broker.AccountResting && !a.AliveUntil.After(now):
		won, err := p.accounts.Wake(ctx, a.Email, now)
		if err != nil || !won {
			return err
		}
		return p.wake(ctx, a.Email)
	case a.State == broker.AccountResting:
		return p.keepDisabled(ctx, a, now)
	case a.State == broker.AccountHeld:
		return p.keepHeld(ctx, a)
	}
	return nil
}

func (p *Provider) wake(ctx context.Context, email string) error {
	if err := p.clients.admin.EnableServiceAccount(ctx, &adminpb.EnableServiceAccountRequest{Name: resource(email)}); err != nil {
		return read(err).meaning(email)
	}
	return p.accounts.Awake(ctx, email)
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
	if err := p.clients.admin.DisableServiceAccount(ctx, &adminpb.DisableServiceAccountRequest{Name: resource(a.Email)}); err != nil {
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

// eventEdited is broker.EventUpstreamEdited: somebody else changed what the broker keeps upstream.
const eventEdited broker.EventType = "upstream.edited"

func (p *Provider) report(ctx context.Context, a broker.Account, found, did string) error {
	return p.accounts.Report(ctx, a.Email, found, broker.Event{
		ID: broker.NewEventID(), At: p.clock().UTC(), Type: eventEdited, Caller: broker.Caller{Name: "taskpass", Auth: "internal"},
		Provider: "gcp", Upstream: p.name, Credential: a.Holder, UpstreamIDs: []string{a.Email},
		Trace: map[string]string{"service_account": a.Email, "ledger": string(a.State), "found": found, "did": did},
	})
}
