package stripe_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/policy"
	"github.com/taskpass/taskpass/broker/seal"
	"github.com/taskpass/taskpass/broker/store"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/stripe"
	"github.com/taskpass/taskpass/providers/stripe"
)

var orchestrator = broker.Caller{Name: "orch", Role: broker.RoleOrchestrator, Auth: "test"}

// newBroker puts the rig's provider behind the real broker, on the real ledger with sealed secrets.
func (r *rig) newBroker(t testing.TB, ledger *store.Store) *broker.Broker {
	t.Helper()
	keyset, err := seal.NewKeyset()
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := seal.New(keyset)
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.NewTextHandler(locked{r.logMu, r.log}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	upstream, err := stripe.New(r.config, stripe.Deps{
		Slots: ledger, Handed: broker.Safe{Sealed: ledger, Sealer: sealer}, Clock: r.clock.Now, Logger: logger, PollEvery: 10 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := broker.New(broker.Config{
		Ledger: ledger, Sealer: sealer, Policy: policy.Policy{}, Clock: r.clock.Now, Logger: logger, UpstreamTimeout: time.Minute,
		Profiles: broker.Profiles{"billing": {
			Name: "billing", Provider: "stripe", Scopes: r.config.ScopeNames(), MinTTL: time.Minute, DefaultTTL: 30 * time.Minute,
			MaxTTL: 45 * time.Minute, Upstream: upstream, Allow: []broker.Rule{{Callers: []string{"orch"}}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Through the real broker: a revocation is acknowledged while Stripe still takes the key, and is said to be destroyed only
// when it does not. The proof is made with the sealed copy of what was handed out.
func TestBrokerRevokesManagedKey(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newManaged(t, func(c *sandbox.Config) { live(c); c.ExpireLag = 9 * time.Second })
	b := r.newBroker(t, ledger)
	issue := func() broker.Issued {
		t.Helper()
		id := string(broker.NewVersionID())
		i, err := b.Issue(t.Context(), orchestrator, broker.Request{
			TaskID: "task-" + id, AgentID: "agent-" + id, Profile: "billing", Scopes: []string{"customers:read"},
		}, "")
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	ended, spared := issue(), issue()
	b.UpstreamTimeout = time.Second // it looks whether the key is dead until then, and here it never is
	c, err := b.Revoke(t.Context(), orchestrator, ended.ID, "leaked")
	b.UpstreamTimeout = time.Minute
	if err != nil || c.Version.State != broker.StateRevoking || c.Version.Revocation.Result != broker.ResultNone {
		t.Fatalf("acknowledged: %s %+v, %v", c.Version.State, c.Version.Revocation, err)
	}
	if !r.alive(t, c, ended.Secret) {
		t.Fatal("the stand-in ended it at once: this shows nothing")
	}
	r.clock.Advance(time.Minute)
	if err := b.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err = ledger.Latest(t.Context(), ended.ID)
	if err != nil || c.Version.State != broker.StateRevoked || c.Version.Revocation.Result != broker.ResultDestroyed || c.Version.Revocation.Basis != "refused_as_expired" {
		t.Errorf("%s %+v, %v", c.Version.State, c.Version.Revocation, err)
	}
	if r.alive(t, c, ended.Secret) || !r.alive(t, c, spared.Secret) {
		t.Error("the wrong one is dead, or neither")
	}
	r.logged(t)
}

// A mint whose answer is lost leaves nothing alive: the broker finds the key by its name and ends it.
func TestBrokerEndsLostKey(t *testing.T) {
	t.Parallel()
	for mode, set := range map[string]func(*stripe.Config){"managed": managed, "ephemeral": ephemeral} {
		ledger := replicas(t, 1)[0]
		r := newRig(t)
		set(&r.config)
		b := r.newBroker(t, ledger)
		r.Inject(sandbox.Fault{Action: "POST /v1/ephemeral_keys", Kind: sandbox.DropReply})
		r.Inject(sandbox.Fault{Action: createKey, Kind: sandbox.DropReply})
		id := string(broker.NewVersionID())
		_, err := b.Issue(t.Context(), orchestrator, broker.Request{
			TaskID: "task-" + id, AgentID: "agent-" + id, Profile: "billing", Scopes: r.config.ScopeNames()[:1],
			Metadata: map[string]string{"customer": r.AddObject("customers", nil)},
		}, "")
		if broker.AsError(err).Code != broker.CodeUpstreamError {
			t.Fatalf("%s: %v", mode, err)
		}
		r.clock.Advance(time.Second)
		if err := b.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		list, err := ledger.Credentials(t.Context(), broker.Filter{TaskID: "task-" + id, Limit: 10})
		if err != nil || len(list) != 1 || list[0].Version.State != broker.StateRevoked || list[0].Version.Revocation.Result != broker.ResultDestroyed {
			t.Errorf("%s: %+v, %v", mode, list, err)
		}
		for _, k := range r.Keys() {
			if !k.Expired {
				t.Errorf("%s: %s is alive", mode, k.Name)
			}
		}
		if left := r.EphemeralKeys(); len(left) > 0 {
			t.Errorf("%s: %d ephemeral keys are alive", mode, len(left))
		}
		r.logged(t)
	}
}
