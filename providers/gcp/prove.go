package gcp

import (
	"context"
	"slices"
	"time"

	"cloud.google.com/go/iam/admin/apiv1/adminpb"
	"cloud.google.com/go/iam/apiv1/iampb"

	"github.com/taskpass/taskpass/broker"
)

// probeLife is how long the certificate of the key is valid that Prove uploads and deletes.
const probeLife = time.Minute

var _ broker.Prover = (*Provider)(nil)

// Prove implements broker.Prover: testIamPermissions says which of the rights the broker has on each account. With writes,
// a key is uploaded and deleted whose private half was thrown away. Enabling and disabling are never tried: an account may
// be a task's by then, or have just been disabled, and its old tokens would live again.
func (p *Provider) Prove(ctx context.Context, writes bool) []broker.Proof {
	var list []broker.Proof
	for _, email := range p.accountsOf() {
		list = append(list, p.test(ctx, email)...)
		if writes && p.cfg.Mode == modeKey {
			list = append(list, p.tryKey(ctx, email)...)
		}
	}
	if writes && p.cfg.Mode == modeSlot {
		list = append(list, broker.Proof{Right: "iam.serviceAccounts.disable by a write", State: broker.NotProven,
			How: "not tried: it could hit a task; testIamPermissions is the proof"})
	}
	return list
}

func (p *Provider) accountsOf() []string {
	if p.cfg.pooled() {
		return p.cfg.Accounts
	}
	return []string{p.cfg.ServiceAccount}
}

// rights are what the broker needs on an account.
func (c Config) rights() []string {
	var list []string
	switch {
	case c.Mode == modeKey:
		list = []string{"iam.serviceAccountKeys.create", "iam.serviceAccountKeys.delete", "iam.serviceAccountKeys.get", "iam.serviceAccountKeys.list"}
	case len(c.Delegates) > 0: // the last delegate needs it, and not the broker
	case c.Audience != "":
		list = []string{"iam.serviceAccounts.getOpenIdToken"}
	default:
		list = []string{"iam.serviceAccounts.getAccessToken"}
	}
	if c.pooled() {
		list = append(list, "iam.serviceAccounts.disable", "iam.serviceAccounts.enable", "iam.serviceAccounts.get")
	}
	return list
}

// test asks Google which of the rights the broker has. Asking needs no right.
func (p *Provider) test(ctx context.Context, email string) []broker.Proof {
	rights := p.cfg.rights()
	if len(rights) == 0 {
		return nil
	}
	out, err := p.clients.admin.TestIamPermissions(ctx, &iampb.TestIamPermissionsRequest{Resource: resource(email), Permissions: rights})
	if err != nil {
		return []broker.Proof{broker.NotProvenBy("the rights on "+email, read(err).meaning(email))}
	}
	var list []broker.Proof
	for _, right := range rights {
		proof := broker.Proof{Right: right + " on " + email, State: broker.Proven, How: "testIamPermissions"}
		if !slices.Contains(out.GetPermissions(), right) {
			proof.State, proof.How = broker.Lacking, "grant the role that docs/gcp.md names"
		}
		list = append(list, proof)
	}
	return list
}

// tryKey uploads a key that nobody can use, and deletes it.
func (p *Provider) tryKey(ctx context.Context, email string) []broker.Proof {
	create, remove := "iam.serviceAccountKeys.create on "+email, "iam.serviceAccountKeys.delete on "+email
	now := p.clock()
	_, certificate, err := newKey(broker.NewVersionID(), now, now.Add(probeLife))
	if err != nil {
		return []broker.Proof{broker.NotProvenBy(create, err)}
	}
	key, err := p.clients.admin.UploadServiceAccountKey(ctx, &adminpb.UploadServiceAccountKeyRequest{Name: resource(email), PublicKeyData: certificate})
	if err != nil {
		return []broker.Proof{triedKey(create, email, err)}
	}
	err = p.clients.admin.DeleteServiceAccountKey(ctx, &adminpb.DeleteServiceAccountKeyRequest{Name: key.GetName()})
	return []broker.Proof{triedKey(create, email, nil), triedKey(remove, email, err)}
}

func triedKey(right, email string, err error) broker.Proof {
	if err == nil {
		return broker.Proof{Right: right, State: broker.Proven, How: "done, and undone"}
	}
	a := read(err)
	e := a.meaning(email)
	if a.definite() && a.code == codePermissionDenied {
		return broker.Proof{Right: right, State: broker.Lacking, How: e.Message}
	}
	return broker.NotProvenBy(right, e)
}
