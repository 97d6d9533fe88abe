package aws_test

import (
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/aws"
)

// What is said of the right to revoke is what the stand-in's policies really allow, with and without writes.
func TestProve(t *testing.T) {
	t.Parallel()
	const all = `{"Effect":"Allow","Action":["sts:*","iam:*"],"Resource":"*"}`
	for _, c := range []struct {
		name, policy         string
		writes               bool
		proven, lacking, not []string // each a part of a right
		says                 string
	}{
		{"granted", all, false, []string{"iam:PutRolePolicy", "iam:DeleteRolePolicy"}, nil, nil, "SimulatePrincipalPolicy"},
		{"granted, tried", all, true, []string{"iam:PutRolePolicy", "iam:DeleteRolePolicy"}, nil, nil, "undone"},
		{"cannot put", all + `,{"Effect":"Deny","Action":"iam:PutRolePolicy","Resource":"*"}`, false, []string{"iam:GetRole"}, []string{"iam:PutRolePolicy"}, nil, "grant"},
		{"cannot put, tried", all + `,{"Effect":"Deny","Action":"iam:PutRolePolicy","Resource":"*"}`, true, nil, []string{"iam:PutRolePolicy"}, nil, "refused the write"},
		{"cannot ask", all + `,{"Effect":"Deny","Action":"iam:SimulatePrincipalPolicy","Resource":"*"}`, false, nil, nil, []string{"the right to revoke"}, "grant iam:SimulatePrincipalPolicy"},
		{"cannot ask, tried", all + `,{"Effect":"Deny","Action":"iam:SimulatePrincipalPolicy","Resource":"*"}`, true, []string{"iam:PutRolePolicy"}, nil, []string{"the right to revoke"}, "undone"},
	} {
		server, err := sandbox.New(sandbox.Config{
			AccessKeyID: keyID, SecretAccessKey: key, MaxSkew: -1, UserPolicy: `{"Version":"2012-10-17","Statement":[` + c.policy + `]}`,
			Roles: []sandbox.Role{{Name: "agents", Policy: rolePolicy}},
		})
		if err != nil {
			t.Fatal(err)
		}
		web := httptest.NewServer(server)
		cfg := config(t, web.URL)
		cfg.RoleARN = server.RoleARN("agents")
		proofs := open(t, cfg, nil, providertest.NewClock().Now).Prove(t.Context(), c.writes)
		web.Close()
		server.Close()
		has := func(state broker.ProofState, right string) bool {
			return slices.ContainsFunc(proofs, func(p broker.Proof) bool { return p.State == state && strings.HasPrefix(p.Right, right) })
		}
		for state, rights := range map[broker.ProofState][]string{broker.Proven: c.proven, broker.Lacking: c.lacking, broker.NotProven: c.not} {
			for _, right := range rights {
				if !has(state, right) {
					t.Errorf("%s: %s is not %s: %v", c.name, right, state, proofs)
				}
			}
		}
		if len(c.lacking) == 0 && has(broker.Lacking, "") {
			t.Errorf("%s: lacks something: %v", c.name, proofs)
		}
		if !slices.ContainsFunc(proofs, func(p broker.Proof) bool { return strings.Contains(p.How, c.says) }) {
			t.Errorf("%s: does not say %q: %v", c.name, c.says, proofs)
		}
		if left := server.RolePolicies("agents"); len(left) > 0 {
			t.Errorf("%s: left %v behind", c.name, left)
		}
	}
	cfg := config(t, "http://"+providertest.Refusing(t))
	if proofs := open(t, cfg, nil, providertest.NewClock().Now).Prove(t.Context(), true); len(proofs) == 0 || proofs[0].State != broker.NotProven {
		t.Errorf("unreachable: %v", proofs)
	}
	cfg.Revocation = aws.Revocation{Mode: "none"}
	if proofs := open(t, cfg, nil, providertest.NewClock().Now).Prove(t.Context(), true); len(proofs) > 0 {
		t.Errorf("mode none: %v", proofs)
	}
}
