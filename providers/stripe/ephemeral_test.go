package stripe_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/stripe"
	"github.com/taskpass/taskpass/providers/stripe"
)

func newEphemeral(t testing.TB, edit ...func(*sandbox.Config)) *rig {
	t.Helper()
	r := newRig(t, edit...)
	ephemeral(&r.config)
	return r
}

// A key is for the one object that the request names, of each kind.
func TestEphemeralKey(t *testing.T) {
	t.Parallel()
	for kind, resource := range map[string]string{"customer": "customers", "issuing_card": "issuing/cards", "verification_session": "identity/verification_sessions"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newEphemeral(t, live)
			r.config.Ephemeral = &stripe.Ephemeral{For: kind, Object: "{{.Metadata.what}}", Version: "2024-04-10"}
			p := r.open(t, nil)
			mine, other := r.AddObject(resource, nil), r.AddObject(resource, nil)
			c := r.intended(p, 10*time.Minute, "wallet")
			c.Metadata = map[string]string{"what": mine}
			c, m := r.mint(t, p, c)
			secret := m.Secret.Fields["api_key"].Reveal()
			for path, want := range map[string]int{"/v1/" + resource + "/" + mine: 200, "/v1/" + resource + "/" + other: 403, "/v1/" + resource: 403} {
				if got, _ := r.get(t, secret, path); got != want {
					t.Errorf("%s: %d, want %d", path, got, want)
				}
			}
			made := r.EphemeralKeys()[0]
			if m.UpstreamIDs[0] != made.ID || made.IdempotencyKey != string(c.Version.ID) || m.Trace["object"] != mine || m.Trace["for"] != kind || m.Trace["request_id"] == "" {
				t.Errorf("recorded: %v, %v", m.UpstreamIDs, m.Trace)
			}
			if done, err := p.Revoke(t.Context(), c); err != nil || done.Result != broker.ResultDestroyed || done.Basis != "deleted" {
				t.Fatalf("%+v, %v", done, err)
			}
			if got, _ := r.get(t, secret, "/v1/"+resource+"/"+mine); got != 401 {
				t.Errorf("deleted, and Stripe answers %d", got)
			}
			// Once more: the key itself tells that it is gone, for an id that is not known may be another account's.
			if done, err := p.Revoke(t.Context(), c); err != nil || done.Basis != "refused_as_expired" {
				t.Errorf("again: %+v, %v", done, err)
			}
			r.logged(t)
		})
	}
}

// What metadata holds goes into a request only in the form of an id.
func TestEphemeralObjects(t *testing.T) {
	t.Parallel()
	r := newEphemeral(t)
	p := r.open(t, nil)
	for _, id := range []string{"", "cus_", "ic_1", "cus_1&issuing_card=ic_1", "cus_1/../x", "CUS_1", strings.Repeat("cus_", 40)} {
		c := r.intended(p, time.Minute, "wallet")
		c.Metadata = map[string]string{"customer": id}
		_, err := p.Mint(t.Context(), c)
		if e := broker.AsError(err); e.Code != broker.CodeInvalidRequest || !errors.Is(err, broker.ErrNotMinted) || len(e.Faults) != 1 || e.Faults[0].Pointer != "/metadata/customer" {
			t.Errorf("%q: %v", id, err)
		}
	}
	if n := r.Calls(""); n != 0 {
		t.Errorf("%d calls", n)
	}
	c := r.intended(p, time.Minute, "wallet")
	c.Metadata = map[string]string{"customer": "cus_nobody"}
	if _, err := p.Mint(t.Context(), c); broker.AsError(err).Code != broker.CodeInvalidRequest || !errors.Is(err, broker.ErrNotMinted) {
		t.Errorf("a customer that is not there: %v", err)
	}
}

// What differs from what was asked for is deleted and given to nobody.
func TestEphemeralLies(t *testing.T) {
	t.Parallel()
	set := func(name string, value any) func([]byte, map[string]any) {
		return func(_ []byte, body map[string]any) { body[name] = value }
	}
	for name, c := range map[string]struct {
		edit  func([]byte, map[string]any)
		stays bool // it cannot be told which one to delete
	}{
		"another customer":    {set("associated_objects", []any{map[string]any{"type": "customer", "id": "cus_other"}}), false},
		"the other mode":      {set("livemode", true), false},
		"an unrestricted key": {set("secret", "sk_test_C4n4ryC4n4ryC4n4ry"), false},
		"no secret":           {set("secret", nil), false},
		"a long life":         {set("expires", 4102444800), false},
		"an id with a path":   {set("id", "ephkey_1/../../customers"), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newEphemeral(t)
			p := r.open(t, nil)
			r.Inject(sandbox.Fault{Action: createEph, Kind: sandbox.Lie, Edit: c.edit})
			m, err := p.Mint(t.Context(), r.intended(p, time.Minute, "wallet"))
			if err == nil || len(m.Secret.Fields) > 0 || errors.Is(err, broker.ErrNotMinted) {
				t.Fatalf("%v", err)
			}
			holdsNoSecret(t, err)
			if left := len(r.EphemeralKeys()); (left == 1) != c.stays {
				t.Errorf("%d keys are left", left)
			}
			r.logged(t)
		})
	}
}

// A key whose answer was lost is found by asking again under the same Idempotency-Key, and deleted. Where that cannot be,
// it is said to die by itself, and when.
func TestEphemeralLost(t *testing.T) {
	t.Parallel()
	r := newEphemeral(t)
	p := r.open(t, nil)
	r.Inject(sandbox.Fault{Action: createEph, Kind: sandbox.DropReply})
	c := r.intended(p, time.Minute, "wallet")
	if _, err := p.Mint(t.Context(), c); err == nil || errors.Is(err, broker.ErrNotMinted) {
		t.Fatalf("lost: %v", err)
	}
	secret := r.EphemeralKeys()[0].Secret
	if done, err := p.Revoke(t.Context(), c); err != nil || done.Result != broker.ResultDestroyed || done.Basis != "deleted" {
		t.Fatalf("%+v, %v", done, err)
	}
	if got, _ := r.get(t, secret, "/v1/customers/"+c.Metadata["customer"]); got != 401 || len(r.EphemeralKeys()) != 0 {
		t.Errorf("it works: %d", got)
	}
	// Again: the answer is the same key, which is gone.
	if done, err := p.Revoke(t.Context(), c); err != nil || done.Result != broker.ResultDestroyed {
		t.Errorf("again: %+v, %v", done, err)
	}

	// The version of the API was changed in the configuration meanwhile: the request is another, and is refused.
	r.Inject(sandbox.Fault{Action: createEph, Kind: sandbox.DropReply})
	c = r.intended(p, time.Minute, "wallet")
	if _, err := p.Mint(t.Context(), c); err == nil {
		t.Fatal("minted")
	}
	c.Metadata = map[string]string{"customer": r.AddObject("customers", nil)}
	done, err := p.Revoke(t.Context(), c)
	if gone := c.Version.IssuedAt.Add(90 * time.Minute); err != nil || done.Result != broker.ResultExpires || !done.EffectiveAt.Equal(gone) {
		t.Fatalf("%+v, %v", done, err)
	}
	if r.clock.To(done.EffectiveAt); r.alive(t, c, bundleOf(r.EphemeralKeys()[0].Secret)) {
		t.Error("it does not die by itself")
	}
	if done, err := p.Revoke(t.Context(), c); err != nil || done.Result != broker.ResultDestroyed || done.Basis != "self_expired" {
		t.Errorf("afterwards: %+v, %v", done, err)
	}
}

// "Not found" without proof is not gone.
func TestEphemeralNotFound(t *testing.T) {
	t.Parallel()
	r := newEphemeral(t)
	p := r.open(t, nil)
	c, m := r.mint(t, p, r.intended(p, time.Minute, "wallet"))
	r.Inject(sandbox.Fault{Action: deleteEph, Kind: sandbox.Refuse, Status: 404, Code: "resource_missing"})
	if done, err := p.Revoke(t.Context(), c); err == nil {
		t.Errorf("%+v, and it works: %t", done, r.alive(t, c, m.Secret))
	}
}
