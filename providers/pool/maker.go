package pool

import (
	"context"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/pool/connect"
)

// Maker implements broker.Provider for a vendor that makes a key for each task: nothing is shared, and nothing goes back.
type Maker struct {
	cfg   Config
	maker connect.Maker
	clock func() time.Time
}

// madeGrace is how long after an unanswered Make the vendor may still list nothing of it.
const madeGrace = time.Minute

// NewMaker makes the provider of one profile whose vendor makes keys.
func NewMaker(cfg Config, deps Deps) (*Maker, error) {
	if cfg.Env == "" {
		cfg.Env = "API_KEY"
	}
	maker, err := connect.OpenMaker(*cfg.Vendor, connect.Wire{Clock: deps.Clock})
	if err != nil {
		return nil, err
	}
	return &Maker{cfg, maker, deps.Clock}, nil
}

// Capabilities implements broker.Provider.
func (m *Maker) Capabilities() broker.Capabilities { return m.cfg.Capabilities() }

// Upstream implements broker.Provider.
func (m *Maker) Upstream(broker.Credential) string { return "pool:" + m.cfg.Name }

// Quota implements broker.Metered.
func (m *Maker) Quota() string { return "pool/" + m.cfg.Name }

// Mint implements broker.Provider: the key's name is the version's id.
func (m *Maker) Mint(ctx context.Context, c broker.Credential) (broker.Minted, error) {
	value, id, trace, err := m.maker.Make(ctx, string(c.Version.ID))
	if err != nil {
		return broker.Minted{}, err
	}
	if trace == nil {
		trace = map[string]string{}
	}
	trace["pool"] = m.cfg.Name
	minted := broker.Minted{
		Secret: broker.Bundle{
			Type: "api_key", Primary: "api_key",
			Fields: map[string]broker.Secret{"api_key": value}, Env: map[string]broker.Secret{m.cfg.Env: value},
		},
		Trace: trace,
	}
	if id != "" {
		minted.UpstreamIDs, minted.OwnID, trace["vendor_id"] = []string{id}, true, id
	}
	return minted, nil
}

// Revoke implements broker.Provider. That the vendor lists nothing of a mint that was not answered proves nothing at first:
// it may still be under way.
func (m *Maker) Revoke(ctx context.Context, c broker.Credential) (broker.Revocation, error) {
	done, err := m.maker.End(ctx, string(c.Version.ID))
	if err == nil && done.Basis == "not_listed" && c.Version.Fingerprint == nil && m.clock().Before(c.Version.IssuedAt.Add(madeGrace)) {
		e := broker.Errorf(broker.CodeUpstreamError, "the vendor lists no such key yet")
		e.RetryAfter = c.Version.IssuedAt.Add(madeGrace).Sub(m.clock())
		return broker.Revocation{}, e
	}
	return done, err
}
