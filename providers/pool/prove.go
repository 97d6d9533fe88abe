package pool

import (
	"context"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/pool/connect"
)

var (
	_ broker.Prover = (*Provider)(nil)
	_ broker.Prover = (*Maker)(nil)
)

// Prove implements broker.Prover for the keys of the configuration. A pool without a vendor promises no revocation.
func (p *Provider) Prove(ctx context.Context, _ bool) []broker.Proof {
	if p.ender == nil {
		return nil
	}
	keys := make([]connect.Key, len(p.cfg.Keys))
	for i, k := range p.cfg.Keys {
		keys[i] = connect.Key{Name: k.Name, VendorID: k.VendorID}
	}
	if prover, ok := p.ender.(connect.Prover); ok {
		return prover.Prove(ctx, keys)
	}
	return []broker.Proof{{Right: "ending keys by the vendor", State: broker.NotProven, How: "there is no call that proves it and ends no key"}}
}

// Prove implements broker.Prover. With writes, a key is made, which nobody is given, and ended.
func (m *Maker) Prove(ctx context.Context, writes bool) []broker.Proof {
	const right = "making and ending keys"
	name := string(broker.NewVersionID())
	if _, err := m.maker.End(ctx, name); err != nil { // it lists all, and ends nothing: nothing has that name
		return []broker.Proof{proofOf("listing keys", err)}
	}
	list := []broker.Proof{{Right: "listing keys", State: broker.Proven, How: "done"}}
	if !writes {
		return append(list, broker.Proof{Right: right, State: broker.NotProven, How: "the vendor does not say what an admin key may do: prove it by --probe-writes"})
	}
	_, _, _, err := m.maker.Make(ctx, name)
	if err == nil {
		_, err = m.maker.End(ctx, name)
	}
	return append(list, proofOf(right, err))
}

// proofOf says what the outcome of a call means for a right: a refusal is that it lacks.
func proofOf(right string, err error) broker.Proof {
	switch e := broker.AsError(err); {
	case err == nil:
		return broker.Proof{Right: right, State: broker.Proven, How: "done, and undone"}
	case e.Code == broker.CodeUpstreamRefused:
		return broker.Proof{Right: right, State: broker.Lacking, How: e.Message}
	}
	return broker.NotProvenBy(right, err)
}
