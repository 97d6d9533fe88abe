package gcp_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/gcp"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/gcp"
)

// What is said of the broker's rights is what the stand-in really lets it do.
func TestProve(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, mode  string
		lacks       []string
		creators    []string
		writes      bool
		right, says string
		want        broker.ProofState
	}{
		{"slot", "slot", nil, nil, false, "iam.serviceAccounts.disable", "testIamPermissions", broker.Proven},
		{"slot that cannot disable", "slot", []string{"iam.serviceAccounts.disable"}, nil, false, "iam.serviceAccounts.disable", "grant", broker.Lacking},
		{"slot, tried", "slot", nil, nil, true, "iam.serviceAccounts.disable by a write", "not tried", broker.NotProven},
		{"no token creator", "slot", nil, []string{"nobody@x"}, false, "iam.serviceAccounts.getAccessToken", "grant", broker.Lacking},
		{"impersonate", "impersonate", nil, nil, false, "iam.serviceAccounts.getAccessToken", "testIamPermissions", broker.Proven},
		{"key", "key", nil, nil, false, "iam.serviceAccountKeys.delete", "testIamPermissions", broker.Proven},
		{"key, tried", "key", nil, nil, true, "iam.serviceAccountKeys.delete", "undone", broker.Proven},
		{"key that cannot be uploaded", "key", []string{"iam.serviceAccountKeys.create"}, nil, true, "iam.serviceAccountKeys.create", "lacks", broker.Lacking},
	} {
		r := newRig(t, c.mode, 2, func(s *sandbox.Config, _ *gcp.Config) {
			s.BrokerLacks = c.lacks
			for i := range s.Accounts {
				s.Accounts[i].TokenCreators = c.creators
			}
		})
		proofs := r.provider(t, nil).Prove(t.Context(), c.writes)
		if !slices.ContainsFunc(proofs, func(p broker.Proof) bool {
			return strings.HasPrefix(p.Right, c.right) && p.State == c.want && strings.Contains(p.How, c.says)
		}) {
			t.Errorf("%s: %v; want %s %s, and to be told of %q", c.name, proofs, c.right, c.want, c.says)
		}
		for _, email := range r.emails {
			if info, _ := r.Account(email); info.Disabled || len(info.Keys) > 0 {
				t.Errorf("%s: left %s disabled: %t, with %d keys", c.name, email, info.Disabled, len(info.Keys))
			}
		}
	}
}
