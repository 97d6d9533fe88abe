package stripe_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/stripe"
)

// What is said of the broker's key is what the stand-in lets it do, and nothing that works is left behind.
func TestProve(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		edit   func(r *rig)
		writes bool
		right  string
		want   broker.ProofState
	}{
		{"managed", func(r *rig) { managed(&r.config) }, false, "making and expiring", broker.NotProven},
		{"managed, tried", func(r *rig) { managed(&r.config) }, true, "making and expiring", broker.Proven},
		{"ephemeral", func(r *rig) { ephemeral(&r.config) }, false, "ephemeral_key_write", broker.NotProven},
		{"ephemeral, tried", func(r *rig) { ephemeral(&r.config) }, true, "ephemeral_key_write", broker.Proven},
		{"another key", func(r *rig) {
			ephemeral(&r.config)
			r.config.SecretKey = providertest.SecretFile(t, "sk_test_C4n4rySomebodyElse")
		}, true, "secret_key", broker.Lacking},
	} {
		r := newRig(t)
		c.edit(r)
		p, ok := r.open(t, nil).(watchedMint).Provider.(broker.Prover)
		if !ok {
			t.Fatalf("%s: cannot be asked", c.name)
		}
		proofs := p.Prove(t.Context(), c.writes)
		if !slices.ContainsFunc(proofs, func(p broker.Proof) bool { return strings.HasPrefix(p.Right, c.right) && p.State == c.want }) {
			t.Errorf("%s: %v; want %s %s", c.name, proofs, c.right, c.want)
		}
		for _, k := range r.Keys() {
			if k.Managed && !k.Expired {
				t.Errorf("%s: left a key behind", c.name)
			}
		}
	}
}

// Each key of a pool is tried as before it is handed out, and that the broker can revoke none is not hidden.
func TestProvePool(t *testing.T) {
	t.Parallel()
	r := newPool(t, 1)
	r.register(t, "short", r.AddKey(sandbox.Key{Permissions: []string{"invoice_read"}}), "customer_read")
	if err := r.ExpireKey(r.add(t, "dead", "customer_read")); err != nil {
		t.Fatal(err)
	}
	r.register(t, "wide", r.AddKey(sandbox.Key{Permissions: []string{"customer_read", "payout_read"}}), "customer_read")
	p, ok := r.open(t, nil).(watchedMint).Provider.(broker.Prover)
	if !ok {
		t.Fatal("cannot be asked")
	}
	got := map[string]broker.ProofState{}
	for _, proof := range p.Prove(t.Context(), true) {
		got[proof.Right] = proof.State
	}
	want := map[string]broker.ProofState{
		"key k0": broker.Proven, "key short": broker.Lacking, "key dead": broker.Lacking, "key wide": broker.Lacking,
		"revoking a key of the pool": broker.NotProven,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
