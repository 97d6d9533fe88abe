// Package pool hands out plain API keys, one holder a key, from references that an operator keeps.
//
// It decides which key a task gets and when a key is safe to hand out again. It refuses to pretend: a plain key that an
// agent has seen works until somebody replaces it at its source, so an early end quarantines the key and stays open
// until its value has changed.
package pool

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// exhaustedPause is what a caller is told to wait when nobody knows when a key comes back.
const exhaustedPause = 30 * time.Second

// Provider implements broker.Provider for one pool.
type Provider struct {
	cfg   Config
	slots broker.Slots
	clock func() time.Time
}

// New makes the provider of one profile. Keys are read when they are handed out, not before: a replaced value is used
// from then on.
func New(cfg Config, slots broker.Slots, clock func() time.Time) (*Provider, error) {
	if cfg.Env == "" {
		cfg.Env = "API_KEY"
	}
	return &Provider{cfg, slots, clock}, nil
}

// Capabilities implements broker.Provider.
func (p *Provider) Capabilities() broker.Capabilities { return p.cfg.Capabilities() }

// Upstream implements broker.Provider.
func (p *Provider) Upstream(broker.Credential) string { return "pool:" + p.cfg.Name }

// Mint implements broker.Provider: it takes a key for the version. Taking is one statement of the ledger's database, so
// when it fails with an answer nothing was taken.
func (p *Provider) Mint(ctx context.Context, c broker.Credential) (broker.Minted, error) {
	choices := make([]broker.KeyChoice, 0, len(p.cfg.Keys))
	values := make(map[string]broker.Secret, len(p.cfg.Keys))
	for _, k := range p.cfg.Keys {
		value, err := k.Value.Resolve()
		if err != nil {
			continue // one unreadable key does not stop the others (P11)
		}
		sum := value.Fingerprint()
		values[k.Name] = value
		choices = append(choices, broker.KeyChoice{Name: k.Name, Fingerprint: sum[:]})
	}
	if len(choices) == 0 {
		return broker.Minted{}, fmt.Errorf("%w: %w", broker.ErrNotMinted,
			broker.Errorf(broker.CodeUpstreamRefused, "none of the pool's keys can be read: the operator should check their references"))
	}
	name, ok, back, err := p.slots.Take(ctx, p.cfg.Name, c, choices, p.clock())
	if err != nil {
		return broker.Minted{}, broker.Errorf(broker.CodeUnavailable, "the pool could not be asked").Because(err)
	}
	if !ok {
		return broker.Minted{}, fmt.Errorf("%w: %w", broker.ErrNotMinted, p.exhausted(back))
	}
	value := values[name]
	return broker.Minted{
		Secret: broker.Bundle{
			Type: "api_key", Primary: "api_key",
			Fields: map[string]broker.Secret{"api_key": value}, Env: map[string]broker.Secret{p.cfg.Env: value},
		},
		UpstreamIDs: []string{p.cfg.Name + "/" + name},
		Trace:       map[string]string{"pool": p.cfg.Name, "key": name},
	}, nil
}

func (p *Provider) exhausted(back time.Time) error {
	e := broker.Errorf(broker.CodePoolExhausted, "every key of the pool is held or quarantined")
	e.RetryAfter = exhaustedPause
	if wait := back.Sub(p.clock()); !back.IsZero() && wait > 0 {
		e.RetryAfter = wait
	}
	return e
}

// Revoke implements broker.Provider. A normal end (its time, its task's end, a newer version), or one before anybody saw
// the key, returns it to the pool. A revocation quarantines it, and is done only when the key's value has been replaced.
func (p *Provider) Revoke(ctx context.Context, c broker.Credential) (broker.Revocation, error) {
	held, ok, err := p.slots.Held(ctx, c.ID)
	if err != nil {
		return broker.Revocation{}, err
	}
	now := p.clock().UTC()
	if !ok { // never taken, or given back, or handed on after it was replaced: absence in the ledger is proof
		return broker.Revocation{Result: broker.ResultReleased, EffectiveAt: now, Basis: "not_held"}, nil
	}
	present := p.present(held)
	if c.Version.Cause != broker.CauseRevoked || c.Version.Fingerprint == nil {
		return broker.Revocation{Result: broker.ResultReleased, EffectiveAt: now, Basis: "returned"},
			p.slots.Release(ctx, c, present, now)
	}
	if !bytes.Equal(present, c.Version.Fingerprint) { // the reference holds another value than this version handed out
		return broker.Revocation{Result: broker.ResultDestroyed, EffectiveAt: now, Basis: "key_replaced"},
			p.slots.Release(ctx, c, present, now)
	}
	if err := p.slots.Quarantine(ctx, c.ID); err != nil {
		return broker.Revocation{}, err
	}
	return broker.Revocation{}, broker.ErrNotRotated
}

// present is the fingerprint of the key's value now. One that is no longer configured, or cannot be read, proves nothing:
// it counts as it was when it was taken.
func (p *Provider) present(held broker.KeyChoice) []byte {
	for _, k := range p.cfg.Keys {
		if k.Name == held.Name {
			if value, err := k.Value.Resolve(); err == nil {
				sum := value.Fingerprint()
				return sum[:]
			}
		}
	}
	return held.Fingerprint
}
