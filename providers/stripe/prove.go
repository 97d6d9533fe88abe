package stripe

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// probeLife is how long the key lives at the most that Prove makes and expires.
const probeLife = 5 * time.Minute

var (
	_ broker.Prover = (*managed)(nil)
	_ broker.Prover = (*ephemeral)(nil)
	_ broker.Prover = (*pooled)(nil)
)

// Prove implements broker.Prover. Listing keys proves the preview and the right to read; with writes, a key of one scope is
// made, which nobody is given, and expired.
func (m *managed) Prove(ctx context.Context, writes bool) []broker.Proof {
	const read, write = "reading managed keys", "making and expiring managed keys"
	if _, err := m.Keep(ctx); err != nil {
		return []broker.Proof{stateOf(read, err)}
	}
	list := []broker.Proof{{Right: read, State: broker.Proven, How: "GET " + keysPath}}
	if !writes {
		return append(list, broker.Proof{Right: write, State: broker.NotProven, How: "Stripe does not say what a key may do: prove it by --probe-writes"})
	}
	now := m.Clock().UTC()
	c := broker.Credential{Scopes: m.cfg.ScopeNames()[:1], Version: broker.Version{
		ID: broker.NewVersionID(), Number: 1, IssuedAt: now, ExpiresAt: now.Add(max(probeLife, minManaged)), Cause: broker.CauseAbandoned,
	}}
	minted, err := m.Mint(ctx, c)
	if err == nil {
		c.Version.UpstreamIDs = minted.UpstreamIDs
		own, keyErr := m.client.ownKey(m.cfg.SecretKey)
		if err = keyErr; err == nil {
			if f := m.expire(ctx, own, minted.UpstreamIDs[0]); f != nil {
				err = m.meaning(f)
			}
		}
	}
	return append(list, stateOf(write, err))
}

// Prove implements broker.Prover. With writes, a key that does not exist is deleted: Stripe looks at the right first.
func (e *ephemeral) Prove(ctx context.Context, writes bool) []broker.Proof {
	const right = "ephemeral_key_write of secret_key"
	own, err := e.client.ownKey(e.cfg.SecretKey)
	if err != nil {
		return []broker.Proof{stateOf("secret_key", err)}
	}
	state, f := e.try(ctx, own)
	switch {
	case f != nil:
		return []broker.Proof{stateOf("secret_key", f.meaning())}
	case state != aliveYes:
		return []broker.Proof{{Right: "secret_key", State: broker.Lacking, How: saysKey}}
	case !writes:
		return []broker.Proof{{Right: "secret_key", State: broker.Proven, How: "GET /v1/balance"},
			{Right: right, State: broker.NotProven, How: "Stripe does not say what a key may do: prove it by --probe-writes"}}
	}
	f = e.remove(ctx, own, "ephkey_taskpassprobe")
	if f != nil && !f.unread && f.status == http.StatusNotFound {
		return []broker.Proof{{Right: right, State: broker.Proven, How: "DELETE of a key that does not exist"}}
	}
	if f == nil {
		return []broker.Proof{{Right: right, State: broker.NotProven, How: "Stripe deleted a key that does not exist"}}
	}
	return []broker.Proof{stateOf(right, f.meaning())}
}

// Prove implements broker.Prover: each key is tried as it is before it is handed out. No key can be revoked by the broker.
func (p *pooled) Prove(ctx context.Context, _ bool) []broker.Proof {
	keys, reasons, _ := p.present()
	var list []broker.Proof
	for _, reason := range reasons {
		list = append(list, broker.Proof{Right: "a key of the pool", State: broker.Lacking, How: reason})
	}
	for _, k := range keys {
		f, err := p.admit(ctx, k)
		if err != nil {
			list = append(list, stateOf("key "+k.name, err))
			continue
		}
		proof := broker.Proof{Right: "key " + k.name, State: broker.Proven, How: "accepted, and as declared as far as calls tell"}
		if why := p.unfit(k, f, permissions{}); why != "" {
			proof.State, proof.How = broker.Lacking, why
		} else if len(f.short) > 0 {
			proof.State, proof.How = broker.Lacking, "lacks declared permissions"
		}
		list = append(list, proof)
	}
	return append(list, broker.Proof{Right: "revoking a key of the pool", State: broker.NotProven, How: "only an operator can, in Stripe's dashboard"})
}

// stateOf says what the outcome of a call means for a right: a refusal is that it lacks.
func stateOf(right string, err error) broker.Proof {
	e := broker.AsError(err)
	switch {
	case err == nil:
		return broker.Proof{Right: right, State: broker.Proven, How: "done, and undone"}
	case slices.Contains([]broker.Code{broker.CodeUpstreamRefused, broker.CodeInvalidRequest}, e.Code):
		return broker.Proof{Right: right, State: broker.Lacking, How: e.Message}
	}
	return broker.NotProvenBy(right, err)
}
