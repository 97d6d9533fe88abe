package lifetest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
	"github.com/taskpass/taskpass/providers/pool"
	"github.com/taskpass/taskpass/providers/pool/connect"
	"github.com/taskpass/taskpass/providers/providertest"
)

// After a normal end a key rests as its pool says.
func TestRest(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {Rest: 5 * time.Minute}})
	p.hand(1)
	p.mustIssue(ask("p", "t1"))
	p.wantState("k00", client.Held)
	p.as("orch").endTask("t1")
	p.settled()
	p.wantState("k00", client.Resting)
	p.as("orch").issue(ask("p", "t2")).want(t, broker.CodePoolExhausted)
	p.clock.advance(5*time.Minute - time.Second)
	p.as("orch").issue(ask("p", "t2")).want(t, broker.CodePoolExhausted)
	p.clock.advance(time.Second)
	p.mustIssue(ask("p", "t2"))
	p.sound()
}

func TestReuseAfterRotation(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {Reuse: "after_rotation"}})
	values := p.hand(1)
	p.mustIssue(ask("p", "t1"))
	p.as("orch").endTask("t1")
	p.settled()
	p.wantState("k00", client.Resting)
	p.clock.advance(maxTTL)
	p.as("orch").issue(ask("p", "t2")).want(t, broker.CodePoolExhausted)
	p.as("ops").rotateKey("k00", p.value(), time.Hour).want(t, http.StatusAccepted)
	if got := p.mustIssue(ask("p", "t2")); valueOf(got.Secret) == values["k00"] {
		t.Error("the value of before was handed out again")
	}
	p.sound()
}

// What its holder was refused with rests until it was rotated too, where the pool says so.
func TestReuseAfterARefusal(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {Reuse: "after_rotation"}})
	p.hand(2)
	c := p.mustIssue(ask("p", "t1"))
	p.as("orch").report(c.ID, 1, 401).wantAdvice(t, client.Refresh, "replaced")
	p.clock.advance(time.Hour - time.Minute)
	p.as("orch").issue(ask("p", "t2", agent("b"))).want(t, broker.CodePoolExhausted)
	p.sound()
}

// A revoked credential's key is nobody's until its value has changed, whatever an operator says.
func TestRevokedKeyWaitsForItsRotation(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	values := p.hand(1)
	c := p.mustIssue(ask("p", "t1"))
	p.as("orch").revoke(c.ID).want(t, http.StatusAccepted)
	p.wantState("k00", client.Quarantined)
	p.as("ops").changeKey("k00", client.Free, "it is fine").want(t, http.StatusOK)
	p.clock.advance(maxTTL)
	p.settled()
	p.as("orch").issue(ask("p", "t2")).want(t, broker.CodePoolExhausted)
	p.as("ops").rotateKey("k00", p.value(), time.Hour).want(t, http.StatusAccepted)
	next := p.mustIssue(ask("p", "t2"))
	if valueOf(next.Secret) == values["k00"] {
		t.Error("a revoked value was handed out")
	}
	p.looked()
	p.as("orch").resolve(next.ID).want(t, http.StatusOK)
	p.looked()
	p.looked()
	if s := p.as("orch").get(c.ID).state; s.Status != client.Revoked || s.Revocation.Result != client.Destroyed {
		t.Errorf("after the rotation it is %s, %+v", s.Status, s.Revocation)
	}
	p.sound()
}

// A rotation that is aborted brings a revoked value back, and nobody gets it.
func TestAbortRevivesNoRevokedValue(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	values := p.hand(2)
	c := p.mustIssue(ask("p", "t1", agent("a")))
	p.as("orch").revoke(c.ID).want(t, http.StatusAccepted)
	p.as("ops").rotateKey(keyOf(c), p.value(), time.Hour).want(t, http.StatusAccepted)
	other := p.mustIssue(ask("p", "t2", agent("a")))
	if keyOf(other) != keyOf(c) {
		t.Fatalf("the agent gets %s, not its own key %s", keyOf(other), keyOf(c))
	}
	if s := p.as("orch").revoke(c.ID).state; s.Status != client.Stuck {
		t.Errorf("while its rotation can be aborted it is said to be %s, %s", s.Status, s.Revocation.Result)
	}
	p.as("ops").changeKey(keyOf(c), client.Abort, "").want(t, http.StatusOK)
	p.wantState(keyOf(c), client.Quarantined)
	p.looked()
	if got := valueOf(p.as("orch").resolve(other.ID).want(t, http.StatusOK).resolved.Secret); got == values[keyOf(c)] {
		t.Error("a revoked value was handed out")
	}
	p.as("orch").issue(ask("p", "t3", agent("b"))).want(t, broker.CodePoolExhausted)
	p.sound()
}

// A credential that left its key after a refusal is revoked: what it saw is not said to be dead, and nobody gets it.
func TestRevokedAfterItLeftItsKey(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	values := p.hand(2)
	c := p.mustIssue(ask("p", "t1"))
	first := keyOf(c)
	p.as("orch").report(c.ID, 1, 401).wantAdvice(t, client.Refresh, "replaced")
	p.as("orch").revoke(c.ID)
	if n := one[int](p.rig, "SELECT count(*)::int FROM versions WHERE state = 'stuck'"); n != 2 {
		t.Errorf("%d versions wait for a rotation, want both", n)
	}
	p.wantState("k00", client.Quarantined)
	p.wantState("k01", client.Quarantined)
	p.clock.advance(time.Hour)
	p.settled()
	p.as("orch").issue(ask("p", "t2", agent("b"))).want(t, broker.CodePoolExhausted)
	p.as("ops").rotateKey(first, p.value(), time.Hour).want(t, http.StatusAccepted)
	p.looked()
	p.looked()
	if got := p.mustIssue(ask("p", "t2", agent("b"))); keyOf(got) != first || valueOf(got.Secret) == values[first] {
		t.Errorf("got %s, the old value %v", keyOf(got), valueOf(got.Secret) == values[first])
	}
	if n := one[int](p.rig, "SELECT count(*)::int FROM versions WHERE state = 'revoked' AND result = 'destroyed'"); n != 1 {
		t.Errorf("%d versions are destroyed, want the one whose key was rotated", n)
	}
	p.sound()
}

func TestOperatorsQuarantine(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(1)
	p.as("ops").changeKey("k00", client.Quarantine, "seen in a log").want(t, http.StatusOK)
	p.wantState("k00", client.Quarantined)
	if k := p.stateOf("k00"); k.Reason != "seen in a log" {
		t.Errorf("reason %q", k.Reason)
	}
	p.as("orch").issue(ask("p", "t1")).want(t, broker.CodePoolExhausted)
	p.looked()
	p.wantState("k00", client.Quarantined)
	p.as("ops").changeKey("k00", client.Free, "").want(t, http.StatusOK)
	c := p.mustIssue(ask("p", "t1"))
	// Its holder's next version gets another key; freed, the first one is there again once that hold is over.
	p.as("ops").addKey(client.NewPoolKey{Name: "k01", Value: p.value()}).want(t, http.StatusCreated)
	p.as("ops").changeKey("k00", client.Quarantine, "again").want(t, http.StatusOK)
	if next := p.as("orch").refresh(c.ID, 1).want(t, http.StatusCreated).issued; keyOf(next) != "k01" {
		t.Errorf("the next version has %s", keyOf(next))
	}
	p.as("ops").changeKey("k00", client.Free, "").want(t, http.StatusOK)
	p.clock.advance(ttl)
	p.settled()
	if k := p.stateOf("k00"); k.Reason != "" {
		t.Errorf("free, with the reason %q", k.Reason)
	}
	p.mustIssue(ask("p", "t8", agent("x")))
	p.mustIssue(ask("p", "t9", agent("y")))
	for _, want := range []broker.EventType{broker.EventKeyQuarantined, broker.EventKeyFreed} {
		if n := p.countEvents("", want); n != 2 {
			t.Errorf("%d events %s", n, want)
		}
	}
	p.sound()
}

// A key by reference can be put into quarantine before anybody has looked at it.
func TestQuarantineOfWhatNobodyLookedAt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	api, ctx, cancel := r.as("ops").api()
	defer cancel()
	for i := range keysOfPool {
		got, err := api.ChangePoolKeyWithResponse(ctx, "models", fmt.Sprintf("key-%d", i+1), client.Quarantine, client.ChangePoolKey{})
		if err != nil || got.JSON200 == nil || got.JSON200.State != client.Quarantined {
			t.Fatalf("%v %s", err, got.Body)
		}
	}
	r.as("orch").issue(ask("pool", "t1")).want(t, broker.CodePoolExhausted)
	r.settled()
	r.clock.advance(time.Minute)
	r.settled()
	r.as("orch").issue(ask("pool", "t1")).want(t, broker.CodePoolExhausted)
	r.writeKey(0, "another value")
	r.clock.advance(time.Minute)
	r.settled()
	r.mustIssue(ask("pool", "t1"))
	r.sound()
}

// A retired key's value is wiped wherever it was kept, and its name is not used again.
func TestRetired(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(2)
	c := p.mustIssue(ask("p", "t1"))
	p.as("ops").rotateKey(keyOf(c), p.value(), time.Hour).want(t, http.StatusAccepted)
	p.as("ops").changeKey(keyOf(c), client.Retire, "leaked").want(t, http.StatusOK)
	p.wantState(keyOf(c), client.Retired)
	if n := one[int](p.rig, `SELECT (SELECT count(*) FROM keys WHERE sealed IS NOT NULL AND state = 'retired')::int
		+ (SELECT count(*) FROM rotations WHERE old_sealed IS NOT NULL)::int`); n != 0 {
		t.Errorf("%d values are kept", n)
	}
	next := p.as("orch").refresh(c.ID, 1).want(t, http.StatusCreated).issued
	if keyOf(next) == keyOf(c) {
		t.Error("a retired key was handed out")
	}
	for _, got := range []reply{
		p.as("ops").addKey(client.NewPoolKey{Name: keyOf(c), Value: p.value()}), p.as("ops").changeKey(keyOf(c), client.Free, ""),
		p.as("ops").changeKey(keyOf(c), client.Abort, ""),
	} {
		got.want(t, broker.CodeConflict)
	}
	p.as("ops").rotateKey(keyOf(c), p.value(), time.Hour).want(t, broker.CodeNotFound)
	p.clock.advance(ttl)
	p.settled()
	p.mustIssue(ask("p", "t2", agent("x")))
	p.as("orch").issue(ask("p", "t3", agent("y"))).want(t, broker.CodePoolExhausted)
	p.sound()
}

// The vendor can be told of a key that was retired before the vendor was there: the version was once stuck for good, for
// with the key's value the vendor's name for it was gone.
func TestRetiredBeforeTheVendorWasTold(t *testing.T) {
	t.Parallel()
	var up atomic.Bool
	told := make(chan string, 1)
	vendor := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !up.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		told <- r.URL.Path
	}))
	t.Cleanup(vendor.Close)
	p := newPools(t, map[string]pool.Config{"p": {Vendor: &connect.Config{HTTP: &connect.HTTP{
		URL: vendor.URL + "/{{.VendorID}}", Secret: providertest.SecretFile(t, "hook"),
	}}}})
	p.as("ops").addKey(client.NewPoolKey{Name: "k", Value: p.value(), VendorID: "id-7"}).want(t, http.StatusCreated)
	c := p.mustIssue(ask("p", "t1"))
	p.as("orch").revoke(c.ID).want(t, http.StatusAccepted)
	p.as("ops").changeKey("k", client.Retire, "leaked").want(t, http.StatusOK)
	up.Store(true)
	p.clock.advance(time.Hour)
	p.settled()
	got := p.as("orch").get(c.ID).state
	if got.Status != client.Revoked || got.Revocation.Result != client.Denied {
		t.Fatalf("it is %s (%+v)", got.Status, got.Revocation)
	}
	if path := <-told; path != "/id-7" {
		t.Errorf("the vendor was told of %s", path)
	}
	p.wantState("k", client.Retired)
	p.sound()
}

// Who may do what with a pool's keys.
func TestPoolRoles(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(1)
	token := p.mustIssue(ask("p", "t1", taskToken)).TaskToken
	for who, c := range map[string]caller{"aud": p.as("aud"), "orch": p.as("orch"), "agent": p.by(token)} {
		looks := c.poolKeys("keys")
		if may := who == "aud"; may != (looks.status == http.StatusOK) || !may && looks.code != broker.CodeForbidden {
			t.Errorf("%s looks: %d %s", who, looks.status, looks.code)
		}
		for what, got := range map[string]reply{
			"add": c.addKey(client.NewPoolKey{Name: "x", Value: "v"}), "rotate": c.rotateKey("k00", "v", 0),
			"abort": c.changeKey("k00", client.Abort, ""), "free": c.changeKey("k00", client.Free, ""),
			"quarantine": c.changeKey("k00", client.Quarantine, ""), "retire": c.changeKey("k00", client.Retire, ""),
		} {
			if got.code != broker.CodeForbidden {
				t.Errorf("%s may %s: %d %s", who, what, got.status, got.code)
			}
		}
	}
	p.wantState("k00", client.Held)
	ops := p.as("ops")
	ops.poolKeys("none").want(t, broker.CodeNotFound)
	ops.changeKey("none", client.Retire, "").want(t, broker.CodeNotFound)
	ops.rotateKey("none", "v", 0).want(t, broker.CodeNotFound)
	ops.changeKey("k00", client.Abort, "").want(t, broker.CodeConflict)
	ops.addKey(client.NewPoolKey{Name: "k00", Value: "v"}).want(t, broker.CodeConflict)
	ops.rotateKey("k00", "v", time.Second).want(t, broker.CodeInvalidRequest)
	ops.addKey(client.NewPoolKey{Name: "y", Value: ""}).want(t, broker.CodeInvalidRequest)
	ops.addKey(client.NewPoolKey{Name: "y", Value: strings.Repeat("x", 64<<10+1)}).want(t, broker.CodePayloadTooLarge)
}
