package aws_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/aws"
)

// newForeignRig is a rig whose role is of another account than the broker's, and wants an external id.
// "denier-…" is a role beside it that may write its policies.
func newForeignRig(t *testing.T, edit func(*aws.Config)) *rig {
	t.Helper()
	const account, external = "210987654321", "ext-1"
	clock := providertest.NewClock()
	role := "agents-" + string(broker.NewVersionID())
	server, err := sandbox.New(sandbox.Config{
		AccessKeyID: keyID, SecretAccessKey: key, Now: clock.Now, MaxSkew: -1,
		Roles: []sandbox.Role{
			{Name: role, AccountID: account, ExternalID: external, MaxSessionDuration: 12 * time.Hour, Policy: rolePolicy},
			{Name: "denier-" + role, AccountID: account, ExternalID: external,
				Policy: `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"iam:*","Resource":"*"}]}`},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	server.CreateBucket(bucket)
	f := newFront(server)
	web := httptest.NewServer(f)
	transport := &http.Transport{}
	t.Cleanup(func() { f.open(); server.Close(); transport.CloseIdleConnections(); web.Close() })
	r := &rig{Server: server, front: f, clock: clock, client: &http.Client{Transport: transport}, role: role}
	r.config = config(t, web.URL)
	r.config.RoleARN, r.config.ExternalID = server.RoleARN(role), external
	r.config.Revocation.IAMRoleARN = server.RoleARN("denier-" + role)
	if edit != nil {
		edit(&r.config)
	}
	return r
}

// A role of another account is denied through a role there.
func TestDenyInAnotherAccount(t *testing.T) {
	t.Parallel()
	r := newForeignRig(t, nil)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	c, m := r.issue(t, p, ledger, time.Hour)
	sibling, other := r.issue(t, p, ledger, time.Hour)
	if !r.alive(t, c, m.Secret) {
		t.Fatal("it does not work")
	}
	r.revokeAll(t, []broker.Credential{providertest.Ask(t, ledger, c, broker.CauseRevoked)}, func(int) *aws.Provider { return p })
	if r.alive(t, c, m.Secret) || !r.alive(t, sibling, other.Secret) {
		t.Errorf("revoked: alive %v; its sibling: alive %v", r.alive(t, c, m.Secret), r.alive(t, sibling, other.Secret))
	}
}

// Without such a role a denial is never claimed: IAM looks in the broker's own account only, where there may be a role of
// the same name.
func TestDenyInTheWrongAccountIsNotClaimed(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newForeignRig(t, func(c *aws.Config) { c.Revocation.IAMRoleARN = "" })
	p := r.replica(t, ledger)
	c, m := r.issue(t, p, ledger, time.Hour)
	done, err := p.Revoke(t.Context(), providertest.Ask(t, ledger, c, broker.CauseRevoked))
	silent(t, err)
	if e := broker.AsError(err); err == nil || e.Code != broker.CodeUpstreamRefused || done.Result != broker.ResultNone {
		t.Errorf("no such role here: %+v, %v", done, err)
	}
	if !r.alive(t, c, m.Secret) {
		t.Error("it is dead all the same")
	}

	w := newWire(t) // answers with a role of the same name
	w.answers(func(rw http.ResponseWriter, req *http.Request) {
		w.mu.Lock()
		action := w.asked[len(w.asked)-1].Get("Action")
		w.mu.Unlock()
		if action == "GetRole" {
			reply(rw, http.StatusOK, `<GetRoleResponse><GetRoleResult><Role><RoleId>AROAEXAMPLE</RoleId><Arn>arn:aws:iam::111122223333:role/agents</Arn></Role></GetRoleResult></GetRoleResponse>`)
			return
		}
		t.Errorf("%s was asked of the wrong role", action)
		reply(rw, http.StatusOK, "<"+action+"Response/>")
	})
	q := open(t, config(t, w.url), list{"abcdefghijklmnop"}, w.clock.Now)
	done, err = q.Revoke(t.Context(), w.request("read"))
	if e := broker.AsError(err); err == nil || !strings.Contains(e.Message, "iam_role_arn") || done.Result != broker.ResultNone {
		t.Errorf("a namesake: %+v, %v", done, err)
	}
}

func TestIAMRoleIsChecked(t *testing.T) {
	t.Parallel()
	for arn, ok := range map[string]bool{
		"": true, "arn:aws:iam::123456789012:role/denier": true,
		"arn:aws:iam::123456789012:role/agents": false, "arn:aws:iam::999999999999:role/denier": false,
		"arn:aws-cn:iam::123456789012:role/denier": false, "denier": false, "arn:aws:iam::123456789012:user/denier": false,
	} {
		c := config(t, "http://127.0.0.1:1")
		c.Revocation.IAMRoleARN = arn
		if faults := c.Check(); (len(faults) == 0) != ok {
			t.Errorf("%q: %v", arn, faults)
		}
	}
}
