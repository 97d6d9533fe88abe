package stripe

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Deps is what the provider needs of the broker's house.
type Deps struct {
	Slots  broker.Slots // mode pool
	Shared bool         // mode pool: the rules of profiles let several callers use it, so each has a share
	Handed broker.Handed
	Clock  func() time.Time
	Logger *slog.Logger

	PollEvery time.Duration // between looks whether an expired key is refused; zero: 1 s

	// GenerateKey makes the key that live secrets are encrypted to; nil: a fresh RSA key. Tests share one, for making
	// one takes half a second.
	GenerateKey func() (*rsa.PrivateKey, error)
}

const pollEvery = time.Second

// New makes the provider of one profile. It asks Stripe nothing: what an account can do is found out when it is asked.
func New(cfg Config, deps Deps) (broker.Provider, error) {
	if f := cfg.Check(); len(f) > 0 {
		return nil, fmt.Errorf("%s %s", f[0].Pointer, f[0].Reason)
	}
	if cfg.Env == "" {
		cfg.Env = "STRIPE_API_KEY"
	}
	if deps.PollEvery == 0 {
		deps.PollEvery = pollEvery
	}
	if deps.GenerateKey == nil {
		deps.GenerateKey = func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, keyBits) }
	}
	c, err := newClient(cfg)
	if err != nil {
		return nil, err
	}
	b := base{cfg: cfg, client: c, Deps: deps}
	switch cfg.Mode {
	case modeManaged:
		return &managed{base: b}, nil
	case modeEphemeral:
		return &ephemeral{base: b}, nil
	}
	return newPooled(b), nil
}

// base is what the modes share.
type base struct {
	cfg    Config
	client *client
	Deps
}

// Capabilities implements broker.Provider.
func (b *base) Capabilities() broker.Capabilities { return b.cfg.Capabilities() }

// Close ends the connections that are kept for the next call.
func (b *base) Close() error {
	b.client.web.CloseIdleConnections()
	return nil
}

// bundle is a key as the agent gets it.
func (b *base) bundle(kind string, key broker.Secret) broker.Bundle {
	return broker.Bundle{
		Type: kind, Primary: "api_key",
		Fields: map[string]broker.Secret{"api_key": key}, Env: map[string]broker.Secret{b.cfg.Env: key},
	}
}

// wanted is what the credential's scopes come to, each name once and without what another implies.
func (b *base) wanted(c broker.Credential) ([]string, error) {
	var names []string
	for _, scope := range c.Scopes {
		s, ok := b.cfg.Scopes[scope]
		if !ok {
			return nil, refusedUnsent("the scope %s is no longer configured", scope)
		}
		names = append(names, s.Permissions...)
	}
	all := implying(names...)
	for name := range all {
		for read := range implying(name) {
			if read != name {
				delete(all, read)
			}
		}
	}
	return all.sorted(), nil
}

// handed is the secret that the version's holder has; ok is false where nobody was given one.
func (b *base) handed(ctx context.Context, c broker.Credential) (key broker.Secret, ok bool, err error) {
	if b.Handed == nil {
		return key, false, nil
	}
	bundle, ok, err := b.Handed.Handed(ctx, c.Version.ID)
	if err != nil || !ok {
		return key, false, err
	}
	key = bundle.Fields["api_key"]
	return key, !key.Empty(), nil
}

// alive is how a key fares at Stripe.
type alive int

const (
	aliveYes     alive = iota // accepted, whatever it may do
	aliveNo                   // refused as expired, or not known
	aliveUnclear              // refused with no word of the key: its holder's address may be what is refused
)

// try shows Stripe a key. Any call tells: whether it may make this one is not asked.
func (b *base) try(ctx context.Context, key broker.Secret) (alive, *failure) {
	_, f := b.client.do(ctx, request{method: "GET", path: "/v1/balance", key: key}, &ignored{})
	switch {
	case f == nil, f.status == 403:
		return aliveYes, nil
	case f.dead:
		return aliveNo, nil
	case f.status == 401:
		return aliveUnclear, nil
	}
	return aliveUnclear, f
}

// pause waits until the next look; false: the context ended.
func pause(ctx context.Context, tick *time.Ticker) bool {
	if ctx.Err() != nil {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-tick.C:
		return true
	}
}

var errNotAsAsked = errors.New("the answer is not what was asked for")
