package stripe_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/providertest"
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
