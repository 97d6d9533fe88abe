package pool

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/pool/connect"
)

// Revoke implements broker.Provider. A normal end (its time, its task's end, a newer version), or one before anybody saw
// the key, returns it to the pool, where it may have to rest. A revocation quarantines it, and is done only when the key's
// value has been replaced.
func (p *Provider) Revoke(ctx context.Context, c broker.Credential) (broker.Revocation, error) {
	held, ok, err := p.slots.Held(ctx, c.ID)
	if err != nil {
		return broker.Revocation{}, err
	}
	now := p.clock().UTC()
	had := c.Version.Trace["key"]
	left := had != "" && c.Version.Cause == broker.CauseRevoked && (!ok || held.Name != had)
	if !ok && !left { // never taken, or given back, or handed on after it was replaced: absence in the ledger is proof
		return broker.Revocation{Result: broker.ResultReleased, EffectiveAt: now, Basis: "not_held"}, nil
	}
	keys, err := p.keys(ctx)
	if err != nil {
		return broker.Revocation{}, err
	}
	if left {
		return p.revokeLeft(ctx, c, keys, broker.KeyChoice{Name: had, Fingerprint: c.Version.Fingerprint}, now)
	}
	present := valueOf(keys, held)
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
	return p.end(ctx, c, keys, held.Name)
}

// revokeLeft ends a version whose key the credential does not hold any more, for it was refused or could not be handed out
// again. What was seen is not handed to others all the same.
func (p *Provider) revokeLeft(ctx context.Context, c broker.Credential, keys []key, left broker.KeyChoice, now time.Time) (broker.Revocation, error) {
	present := valueOf(keys, left)
	gone, err := p.gone(ctx, c, present, left.Name)
	switch {
	case err != nil:
		return broker.Revocation{}, err
	case gone:
		return broker.Revocation{Result: broker.ResultDestroyed, EffectiveAt: now, Basis: "key_replaced"}, nil
	case bytes.Equal(present, left.Fingerprint):
		if err := p.slots.QuarantineKey(ctx, p.cfg.Name, left.Name, left.Fingerprint, c.Caller, "a credential that had it was revoked", now); err != nil {
			return broker.Revocation{}, err
		}
	}
	return p.end(ctx, c, keys, left.Name)
}

// gone tells whether a key has another value than a version handed out, for good: while holders move it may come back.
func (p *Provider) gone(ctx context.Context, c broker.Credential, present []byte, name string) (bool, error) {
	if bytes.Equal(present, c.Version.Fingerprint) {
		return false, nil
	}
	draining, err := p.slots.Draining(ctx, p.cfg.Name, name, c.Version.Fingerprint)
	return !draining, err
}

// end has the vendor refuse a version's value, where there is a way. The key stays in quarantine until its value has changed.
func (p *Provider) end(ctx context.Context, c broker.Credential, keys []key, name string) (broker.Revocation, error) {
	if p.ender == nil {
		return broker.Revocation{}, broker.ErrNotRotated
	}
	told := connect.Key{Name: name, Fingerprint: c.Version.Fingerprint}
	known := slices.ContainsFunc(p.cfg.Keys, func(k Key) bool { return k.Name == name })
	for _, k := range keys {
		if k.name != name {
			continue
		}
		known = true
		if bytes.Equal(k.fingerprint, told.Fingerprint) {
			told.VendorID = k.vendorID
		}
	}
	if !known { // it was retired: what the vendor called it is on the record, and no new value bears that id
		told.VendorID = c.Version.Trace["vendor_id"]
	}
	if told.VendorID == "" && p.cfg.Vendor.HTTP == nil { // nobody said how the vendor calls it
		return broker.Revocation{}, broker.ErrNotRotated
	}
	return p.ender.End(ctx, told)
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

// valueOf is the fingerprint of the key's value now. One that is no longer configured, or cannot be read, proves nothing: it
// counts as it was when it was taken.
func valueOf(keys []key, held broker.KeyChoice) []byte {
	if i := slices.IndexFunc(keys, func(k key) bool { return k.name == held.Name }); i >= 0 {
		return keys[i].fingerprint
	}
	return held.Fingerprint
}
