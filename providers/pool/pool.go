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
	"log/slog"
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

// Deps is what the provider needs of the broker. All but Shared and Logger are required.
type Deps struct {
	Slots  broker.Slots
	Sealer broker.Sealer
	Clock  func() time.Time
	Shared bool         // the rules of profiles let several callers use the pool: each has a share
	Logger *slog.Logger // nil: nothing is logged
}

// Provider implements broker.Provider for one pool.
type Provider struct {
	cfg   Config
	slots broker.Slots
	seal  broker.Sealer
	clock func() time.Time
	ender connect.Ender // nil: nobody tells the vendor

	shared   bool
	probe    *connect.Prober // nil: there is none
	probes   probes
	values   values
	problems broker.KeyProblems
	logger   *slog.Logger
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
	p := &Provider{
		cfg: cfg, slots: deps.Slots, seal: deps.Sealer, clock: deps.Clock,
		shared: deps.Shared && cfg.SharePercent < 100, // a caller that may use every key meets the pool's end, not its share's
	}
	if p.logger = deps.Logger; p.logger == nil {
		p.logger = slog.New(slog.DiscardHandler)
	}
	p.problems.Logger = p.logger
	if p.probes.known = map[string]verdict{}; cfg.Probe != nil {
		p.probe = connect.OpenProber(*cfg.Probe, connect.Wire{Clock: deps.Clock})
	}
	p.values = values{stores: stores, keep: cfg.CheckEvery, clock: deps.Clock}
	if cfg.Vendor != nil {
		if p.ender, err = connect.OpenEnder(*cfg.Vendor, connect.Wire{Clock: deps.Clock}); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Close closes the connections that are kept for the next call.
func (p *Provider) Close() error {
	p.values.stores.Close()
	return nil
}

// Capabilities implements broker.Provider.
func (p *Provider) Capabilities() broker.Capabilities { return p.cfg.Capabilities() }

// Upstream implements broker.Provider.
func (p *Provider) Upstream(broker.Credential) string { return p.Keeps() }

// Mint implements broker.Provider: it takes a key for the version. Taking is one statement of the ledger's database, so
// when it fails with an answer nothing was taken.
func (p *Provider) Mint(ctx context.Context, c broker.Credential) (broker.Minted, error) {
	keys, again, err := p.read(ctx)
	fit := p.fitting(keys, c.Scopes)
	// At the first look at files that were just written there may be no value yet. They settle together.
	for tries := 0; err == nil && len(fit) == 0 && again > 0 && tries < 2 && pause(ctx, again); tries++ {
		keys, again, err = p.read(ctx)
		fit = p.fitting(keys, c.Scopes)
	}
	if err != nil {
		return broker.Minted{}, err
	}
	if len(fit) == 0 {
		return broker.Minted{}, fmt.Errorf("%w: %w", broker.ErrNotMinted, nothingFits(len(keys)))
	}
	choices := make([]broker.KeyChoice, len(fit))
	for i, k := range fit {
		choices[i] = broker.KeyChoice{Name: k.name, Fingerprint: k.fingerprint, Rank: k.rank, Seats: p.cfg.MaxHolders}
	}
	name, ok, back, err := p.takes(ctx, c, choices, p.share(keys, fit))
	if errors.Is(err, broker.ErrOverShare) {
		return broker.Minted{}, fmt.Errorf("%w: %w", broker.ErrNotMinted, p.overShare(back))
	}
	if err != nil {
		return broker.Minted{}, broker.Errorf(broker.CodeUnavailable, "the pool could not be asked").Because(err)
	}
	if !ok {
		return broker.Minted{}, fmt.Errorf("%w: %w", broker.ErrNotMinted, p.exhausted(back))
	}
	return p.minted(fit, name), nil
}

func (p *Provider) takes(ctx context.Context, c broker.Credential, choices []broker.KeyChoice, share broker.Share) (string, bool, time.Time, error) {
	now := p.clock()
	rest, _ := p.rest(now)
	return p.slots.Take(ctx, p.cfg.Name, c, choices, share, rest, now)
}

// pause is false when ctx has ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
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
		return broker.Errorf(broker.CodeUpstreamRefused, "none of the pool's keys can be read and used: the operator should check their references, and what the list of its keys says of each")
	}
	return broker.Errorf(broker.CodeUpstreamRefused, "no key of the pool has these scopes: the operator should add one, or ask for fewer")
}

func (p *Provider) exhausted(back time.Time) error {
	e := broker.Errorf(broker.CodePoolExhausted, "every key of the pool that has these scopes is held, resting or quarantined")
	e.RetryAfter = p.wait(back)
	return e
}

func (p *Provider) wait(back time.Time) time.Duration {
	if wait := back.Sub(p.clock()); !back.IsZero() && wait > 0 {
		return wait
	}
	return exhaustedPause
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

// Watch implements broker.Watcher: a value that changes at its source is looked at now, and what is wrong with others
// is known on this replica too.
func (p *Provider) Watch(ctx context.Context) {
	ctx, stop := context.WithCancel(ctx)
	looking := broker.Group{Panicked: stop}
	defer looking.Wait()
	defer stop()
	looking.Go(func() {
		_, _ = p.keys(ctx) // for its problems
		for pause(ctx, p.cfg.CheckEvery*3/4+rand.N(p.cfg.CheckEvery/2)) {
			_, _ = p.keys(ctx)
		}
	})
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

// Problems implements broker.Pooled.
func (p *Provider) Problems() map[string]string { return p.problems.Known() }

// Refused implements broker.Pooled. The key rests for a while; others may then try it, until it has been refused too often.
func (p *Provider) Refused(ctx context.Context, c broker.Credential) (bool, error) {
	held, ok, err := p.slots.Held(ctx, c.ID)
	if err != nil || !ok {
		return false, err
	}
	keys, err := p.keys(ctx)
	if err != nil {
		return false, err
	}
	present := valueOf(keys, held)
	if !bytes.Equal(present, c.Version.Fingerprint) {
		return false, nil // the next version bears another value of the same key
	}
	now := p.clock().UTC()
	held.Fingerprint = present
	counts, confirmed, err := p.counted(ctx, c, keys, held, now)
	if err != nil {
		return false, err
	}
	if !counts {
		return false, p.overShare(now.Add(refusedRest))
	}
	rest, _ := p.rest(now)
	rest.Until, rest.Confirmed = later(rest.Until, now.Add(refusedRest)), confirmed
	reporter := c.Caller
	if confirmed {
		reporter = ""
	}
	left, err := p.slots.Leave(ctx, c.ID, broker.KeyChoice{Name: held.Name, Fingerprint: present}, rest)
	if err != nil || !left { // another report of the same refusal was first
		return false, err
	}
	return p.slots.StrikeKey(ctx, p.cfg.Name, held.Name, present, reporter, p.cfg.MaxRefusals, now)
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
