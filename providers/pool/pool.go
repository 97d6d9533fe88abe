// Package pool hands out plain API keys, one holder a key, from references that an operator keeps or values that were handed
// in.
//
// It decides which key a task gets, when a key is safe to hand out again, and when its holders must move to another value.
// It refuses to pretend: a plain key that an agent has seen works until somebody replaces it at its source, so an early end
// quarantines the key and stays open until its value has changed.
package pool

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/pool/connect"
	"github.com/taskpass/taskpass/providers/pool/resolve"
)

const (
	// exhaustedPause is what a caller is told to wait when nobody knows when a key comes back.
	exhaustedPause = 30 * time.Second
	// refusedRest is how long a key is left alone after its holder was refused with it.
	refusedRest = time.Minute
)

// Deps is what the provider needs of the broker's house. All are required.
type Deps struct {
	Slots  broker.Slots
	Sealer broker.Sealer
	Clock  func() time.Time
}

// Provider implements broker.Provider for one pool.
type Provider struct {
	cfg   Config
	slots broker.Slots
	seal  broker.Sealer
	clock func() time.Time
	ender connect.Ender // nil: nobody tells the vendor

	values values
}

// New makes the provider of one profile. Keys are read when they are handed out, not before: a replaced value is used
// from then on.
func New(cfg Config, deps Deps) (*Provider, error) {
	if cfg.Env == "" {
		cfg.Env = "API_KEY"
	}
	cfg.MaxHolders = cmp.Or(cfg.MaxHolders, 1)
	cfg.MaxRefusals = cmp.Or(cfg.MaxRefusals, defaultRefusals)
	cfg.Deadline = cmp.Or(cfg.Deadline, broker.DefaultDeadline)
	cfg.CheckEvery = cmp.Or(cfg.CheckEvery, defaultCheck)
	stores, err := resolve.New(cfg.Stores, resolve.Wire{Clock: deps.Clock})
	if err != nil {
		return nil, err
	}
	p := &Provider{cfg: cfg, slots: deps.Slots, seal: deps.Sealer, clock: deps.Clock}
	p.values = values{stores: stores, keep: cfg.CheckEvery, clock: deps.Clock}
	if cfg.Vendor != nil {
		if p.ender, err = connect.OpenEnder(*cfg.Vendor, connect.Wire{Clock: deps.Clock}); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Capabilities implements broker.Provider.
func (p *Provider) Capabilities() broker.Capabilities { return p.cfg.Capabilities() }

// Upstream implements broker.Provider.
func (p *Provider) Upstream(broker.Credential) string { return p.Keeps() }

// Mint implements broker.Provider: it takes a key for the version. Taking is one statement of the ledger's database, so
// when it fails with an answer nothing was taken.
func (p *Provider) Mint(ctx context.Context, c broker.Credential) (broker.Minted, error) {
	keys, err := p.keys(ctx)
	if err != nil {
		return broker.Minted{}, err
	}
	fit := p.fitting(keys, c.Scopes)
	if len(fit) == 0 {
		return broker.Minted{}, fmt.Errorf("%w: %w", broker.ErrNotMinted, nothingFits(len(keys)))
	}
	choices := make([]broker.KeyChoice, len(fit))
	for i, k := range fit {
		choices[i] = broker.KeyChoice{Name: k.name, Fingerprint: k.fingerprint, Rank: k.rank, Seats: p.cfg.MaxHolders}
	}
	name, ok, back, err := p.takes(ctx, c, choices)
	if err != nil {
		return broker.Minted{}, broker.Errorf(broker.CodeUnavailable, "the pool could not be asked").Because(err)
	}
	if !ok {
		return broker.Minted{}, fmt.Errorf("%w: %w", broker.ErrNotMinted, p.exhausted(back))
	}
	return p.minted(fit, name), nil
}

func (p *Provider) takes(ctx context.Context, c broker.Credential, choices []broker.KeyChoice) (string, bool, time.Time, error) {
	now := p.clock()
	rest, _ := p.rest(now)
	return p.slots.Take(ctx, p.cfg.Name, c, choices, rest, now)
}

func (p *Provider) minted(fit []key, name string) broker.Minted {
	for _, k := range fit {
		if k.name != name {
			continue
		}
		m := broker.Minted{
			Secret: broker.Bundle{
				Type: "api_key", Primary: "api_key",
				Fields: map[string]broker.Secret{"api_key": k.value}, Env: map[string]broker.Secret{p.cfg.Env: k.value},
			},
			UpstreamIDs: []string{p.cfg.Name + "/" + name},
			Trace:       map[string]string{"pool": p.cfg.Name, "key": name},
		}
		if k.vendorID != "" {
			m.UpstreamIDs, m.Trace["vendor_id"] = append(m.UpstreamIDs, k.vendorID), k.vendorID
		}
		if len(k.over) > 0 {
			m.Trace["over_granted"] = joined(k.over)
		}
		return m
	}
	panic("a key that was not offered was taken")
}

func nothingFits(readable int) error {
	if readable == 0 {
		return broker.Errorf(broker.CodeUpstreamRefused, "none of the pool's keys can be read: the operator should check their references")
	}
	return broker.Errorf(broker.CodeUpstreamRefused, "no key of the pool has these scopes: the operator should add one, or ask for fewer")
}

func (p *Provider) exhausted(back time.Time) error {
	e := broker.Errorf(broker.CodePoolExhausted, "every key of the pool that has these scopes is held, resting or quarantined")
	e.RetryAfter = exhaustedPause
	if wait := back.Sub(p.clock()); !back.IsZero() && wait > 0 {
		e.RetryAfter = wait
	}
	return e
}

// Revoke implements broker.Provider. A normal end (its time, its task's end, a newer version), or one before anybody saw
// the key, returns it to the pool, where it may have to rest. A revocation quarantines it, and is done only when the key's
// value has been replaced.
func (p *Provider) Revoke(ctx context.Context, c broker.Credential) (broker.Revocation, error) {
	held, ok, err := p.slots.Held(ctx, c.ID)
	if err != nil {
		return broker.Revocation{}, err
	}
	now := p.clock().UTC()
	if had := c.Version.Trace["key"]; had != "" && c.Version.Cause == broker.CauseRevoked && (!ok || held.Name != had) {
		return p.revokeLeft(ctx, c, broker.KeyChoice{Name: had, Fingerprint: c.Version.Fingerprint}, now)
	}
	if !ok { // never taken, or given back, or handed on after it was replaced: absence in the ledger is proof
		return broker.Revocation{Result: broker.ResultReleased, EffectiveAt: now, Basis: "not_held"}, nil
	}
	present, err := p.present(ctx, held)
	if err != nil {
		return broker.Revocation{}, err
	}
	if c.Version.Cause != broker.CauseRevoked || c.Version.Fingerprint == nil {
		rest, basis := broker.Rest{}, "returned"
		if c.Version.Fingerprint != nil { // somebody has seen it
			rest, basis = p.rest(now)
		}
		return broker.Revocation{Result: broker.ResultReleased, EffectiveAt: now, Basis: basis},
			p.slots.Release(ctx, c, present, rest, now)
	}
	gone, err := p.gone(ctx, c, present, held.Name)
	if err != nil {
		return broker.Revocation{}, err
	}
	if gone { // the key has another value than this version handed out
		return broker.Revocation{Result: broker.ResultDestroyed, EffectiveAt: now, Basis: "key_replaced"},
			p.slots.Release(ctx, c, present, broker.Rest{}, now)
	}
	if err := p.slots.Quarantine(ctx, c.ID); err != nil {
		return broker.Revocation{}, err
	}
	return p.end(ctx, held.Name, c.Version.Fingerprint)
}

// end has the vendor refuse a key's value, where there is a way. The key stays in quarantine until its value has changed.
func (p *Provider) end(ctx context.Context, name string, fingerprint []byte) (broker.Revocation, error) {
	if p.ender == nil {
		return broker.Revocation{}, broker.ErrNotRotated
	}
	keys, err := p.keys(ctx)
	if err != nil {
		return broker.Revocation{}, err
	}
	told := connect.Key{Name: name, Fingerprint: fingerprint}
	for _, k := range keys {
		if k.name == name && bytes.Equal(k.fingerprint, fingerprint) {
			told.VendorID = k.vendorID
		}
	}
	if told.VendorID == "" && p.cfg.Vendor.HTTP == nil { // nobody said how the vendor calls it
		return broker.Revocation{}, broker.ErrNotRotated
	}
	return p.ender.End(ctx, told)
}

// gone tells whether a key has another value than a version handed out, for good: while holders move it may come back.
func (p *Provider) gone(ctx context.Context, c broker.Credential, present []byte, name string) (bool, error) {
	if bytes.Equal(present, c.Version.Fingerprint) {
		return false, nil
	}
	draining, err := p.slots.Draining(ctx, p.cfg.Name, name, c.Version.Fingerprint)
	return !draining, err
}

// revokeLeft ends a version whose key the credential does not hold any more, for it was refused or could not be handed out
// again. What was seen is not handed to others all the same.
func (p *Provider) revokeLeft(ctx context.Context, c broker.Credential, left broker.KeyChoice, now time.Time) (broker.Revocation, error) {
	present, err := p.present(ctx, left)
	if err != nil {
		return broker.Revocation{}, err
	}
	gone, err := p.gone(ctx, c, present, left.Name)
	switch {
	case err != nil:
		return broker.Revocation{}, err
	case gone:
		return broker.Revocation{Result: broker.ResultDestroyed, EffectiveAt: now, Basis: "key_replaced"}, nil
	case bytes.Equal(present, left.Fingerprint):
		if err := p.slots.QuarantineKey(ctx, p.cfg.Name, left.Name, left.Fingerprint, "a credential that had it was revoked", now); err != nil {
			return broker.Revocation{}, err
		}
	}
	return p.end(ctx, left.Name, left.Fingerprint)
}

// rest is how a key is left alone after a normal end.
func (p *Provider) rest(now time.Time) (broker.Rest, string) {
	switch {
	case p.cfg.Reuse == "after_rotation":
		return broker.Rest{UntilRotated: true}, "resting_until_rotated"
	case p.cfg.Rest > 0:
		return broker.Rest{Until: now.Add(p.cfg.Rest)}, "resting"
	}
	return broker.Rest{}, "returned"
}

// present is the fingerprint of the key's value now. One that is no longer configured, or cannot be read, proves nothing:
// it counts as it was when it was taken.
func (p *Provider) present(ctx context.Context, held broker.KeyChoice) ([]byte, error) {
	keys, err := p.keys(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if k.name == held.Name {
			return k.fingerprint, nil
		}
	}
	return held.Fingerprint, nil
}

// Keeps implements broker.Keeper: the pool's keys move with their values.
func (p *Provider) Keeps() string { return "pool:" + p.cfg.Name }

// Keep implements broker.Keeper: it looks whether a value has changed, and how far the holders have moved.
func (p *Provider) Keep(ctx context.Context) (time.Time, error) {
	next := p.clock().Add(p.cfg.CheckEvery*3/4 + rand.N(p.cfg.CheckEvery/2))
	keys, err := p.keys(ctx)
	if err != nil {
		return next, err
	}
	choices := make([]broker.KeyChoice, len(keys))
	for i, k := range keys {
		choices[i] = broker.KeyChoice{Name: k.name, Fingerprint: k.fingerprint}
	}
	old, err := p.slots.Converge(ctx, p.cfg.Name, choices, p.cfg.Deadline, p.clock().UTC())
	if p.ender == nil {
		return next, err
	}
	for _, r := range old {
		_, endErr := p.ender.End(ctx, connect.Key{Name: r.Name, VendorID: r.VendorID, Fingerprint: r.Fingerprint})
		if endErr == nil {
			endErr = p.slots.Retired(ctx, r, p.clock().UTC())
		}
		err = errors.Join(err, endErr)
	}
	return next, err
}

// Watch implements broker.Watcher: a value that changes at its source is looked at now.
func (p *Provider) Watch(ctx context.Context) {
	refs := make([]string, len(p.cfg.Keys))
	for i, k := range p.cfg.Keys {
		refs[i] = string(k.Value)
	}
	p.values.stores.Watch(ctx, refs, p.cfg.CheckEvery, func(ref string) {
		p.values.forget(ref)
		_ = p.slots.Soon(ctx, p.Keeps(), p.clock().UTC()) // else it is looked at when it is due
	})
}

// Pool implements broker.Pooled.
func (p *Provider) Pool() string { return p.cfg.Name }

// Configured implements broker.Pooled.
func (p *Provider) Configured() []broker.PoolKey {
	list := make([]broker.PoolKey, len(p.cfg.Keys))
	for i, k := range p.cfg.Keys {
		list[i] = broker.PoolKey{Name: k.Name, Scopes: k.Scopes, Labels: k.Labels, VendorID: k.VendorID}
	}
	return list
}

// Refused implements broker.Pooled. The key rests for a while; others may then try it, until it has been refused too often.
func (p *Provider) Refused(ctx context.Context, c broker.Credential) (bool, error) {
	held, ok, err := p.slots.Held(ctx, c.ID)
	if err != nil || !ok {
		return false, err
	}
	present, err := p.present(ctx, held)
	if err != nil || !bytes.Equal(present, c.Version.Fingerprint) {
		return false, err // the next version bears another value of the same key
	}
	now := p.clock().UTC()
	rest, _ := p.rest(now)
	rest.Until = later(rest.Until, now.Add(refusedRest))
	left, err := p.slots.Leave(ctx, c.ID, broker.KeyChoice{Name: held.Name, Fingerprint: present}, rest)
	if err != nil || !left { // another report of the same refusal was first
		return false, err
	}
	return p.slots.StrikeKey(ctx, p.cfg.Name, held.Name, present, p.cfg.MaxRefusals, now)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Worked implements broker.Pooled.
func (p *Provider) Worked(ctx context.Context, c broker.Credential) error {
	held, ok, err := p.slots.Held(ctx, c.ID)
	if err != nil || !ok {
		return err
	}
	return p.slots.Pardon(ctx, p.cfg.Name, held.Name)
}
