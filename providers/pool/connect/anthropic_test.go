package connect_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/pool/connect"
	"github.com/taskpass/taskpass/providers/sandbox/anthropic"
	"github.com/taskpass/taskpass/providers/sandbox/fault"
)

func TestAnthropicRefusesAnEndedKey(t *testing.T) {
	t.Parallel()
	r := newAnthropic(t)
	if r.say(t, "sk-ant-1") != 200 {
		t.Fatal("the key does not work at first")
	}
	for range 2 { // ended already is success
		got, err := r.ender.End(t.Context(), connect.Key{Name: "k1", VendorID: "apikey_1"})
		want := broker.Revocation{Result: broker.ResultDenied, EffectiveAt: now.UTC().Add(time.Minute), Basis: "status_inactive"}
		if err != nil || got != want {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	if r.say(t, "sk-ant-1") != 401 || r.say(t, "sk-ant-2") != 200 {
		t.Error("the key works on, or its sibling does not")
	}
	if mode, lag := r.ender.Revoke(); mode != broker.RevokeDeny || lag != time.Minute {
		t.Error(mode, lag)
	}
}

func TestAnthropicKeyThatCannotBeChanged(t *testing.T) {
	t.Parallel()
	r := newAnthropic(t)
	if err := r.SetStatus("apikey_1", anthropic.Archived); err != nil {
		t.Fatal(err)
	}
	for id, basis := range map[string]string{"apikey_1": "status_archived", "apikey_3": "status_expired"} {
		if got, err := r.ender.End(t.Context(), connect.Key{VendorID: id}); err != nil || got.Basis != basis || got.Result != broker.ResultDenied {
			t.Errorf("%s: %+v, %v", id, got, err)
		}
	}
	// A refused request alone ends nothing.
	r.Inject(fault.Fault{Action: anthropic.UpdateKey, Kind: fault.Refuse, Status: 400})
	_, err := r.ender.End(t.Context(), connect.Key{VendorID: "apikey_2"})
	wantCode(t, err, broker.CodeUpstreamRefused)
}

// What is not found, or cannot be named, is not ended.
func TestAnthropicKeyThatIsNotFound(t *testing.T) {
	t.Parallel()
	r := newAnthropic(t)
	for _, id := range []string{"", "..", "apikey_9", "apikey_1/../apikey_2", "a?b", "sk-ant-canary key"} {
		_, err := r.ender.End(t.Context(), connect.Key{VendorID: id})
		wantCode(t, err, broker.CodeUpstreamRefused)
	}
	if n := r.Queue.Calls(anthropic.UpdateKey); n != 1 {
		t.Errorf("%d calls for one id that has the form", n)
	}
}

func TestAnthropicFaults(t *testing.T) {
	t.Parallel()
	for _, c := range faults {
		for _, action := range []string{anthropic.UpdateKey, anthropic.GetKey} {
			t.Run(c.name+" of "+action, func(t *testing.T) {
				t.Parallel()
				r := newAnthropic(t)
				f := c.fault
				f.Action, f.Times = action, -1
				r.Inject(f)
				got, err := r.ender.End(t.Context(), connect.Key{VendorID: "apikey_1"})
				if err == nil && action == anthropic.UpdateKey && f.Kind == fault.Verbatim && f.Status == 200 {
					t.Fatalf("an answer of another is believed: %+v", got)
				}
				e := wantCode(t, err, c.code)
				if e.RetryAfter != c.retryAfter {
					t.Errorf("retry after %s", e.RetryAfter)
				}
				r.Clear()
				if got, err = r.ender.End(t.Context(), connect.Key{VendorID: "apikey_1"}); err != nil || r.say(t, "sk-ant-1") != 401 {
					t.Errorf("asked again: %+v, %v", got, err)
				}
			})
		}
	}
}

// Success that the vendor only claims is none.
func TestAnthropicKeyThatStaysActive(t *testing.T) {
	t.Parallel()
	r := newAnthropic(t)
	r.Inject(fault.Fault{Action: anthropic.UpdateKey, Kind: fault.Verbatim, Status: 200, Body: `{"id":"apikey_1","status":"inactive"}`})
	_, err := r.ender.End(t.Context(), connect.Key{VendorID: "apikey_1"})
	wantCode(t, err, broker.CodeUpstreamError)
	r.Inject(fault.Fault{Action: anthropic.GetKey, Kind: fault.Verbatim, Status: 200, Body: `{"id":"apikey_2","status":"inactive"}`})
	_, err = r.ender.End(t.Context(), connect.Key{VendorID: "apikey_1"})
	wantCode(t, err, broker.CodeUpstreamError)
}

func TestAnthropicTimeOut(t *testing.T) {
	t.Parallel()
	r := newAnthropic(t)
	r.Inject(fault.Fault{Action: anthropic.UpdateKey, Kind: fault.Hang})
	_, err := r.ender.End(cancelled(t, r.Queue, anthropic.UpdateKey, 1), connect.Key{VendorID: "apikey_1"})
	wantCode(t, err, broker.CodeUpstreamTimeout)
	if errors.Is(err, broker.ErrNotMinted) {
		t.Error("a request that was sent is said not to have been")
	}
}

// The admin key is read anew each time; what is no admin key is told apart from what cannot be read.
func TestAnthropicAdminKey(t *testing.T) {
	t.Parallel()
	r := newAnthropic(t)
	for _, value := range []string{"sk-ant-1", "", "two\nlines-canary"} {
		rewrite(t, r.admin, value)
		_, err := r.ender.End(t.Context(), connect.Key{VendorID: "apikey_1"})
		wantCode(t, err, broker.CodeUpstreamRefused)
	}
	if n := r.Queue.Calls(anthropic.UpdateKey); n != 0 || r.Status("apikey_1") != anthropic.Active {
		t.Errorf("%d calls got in", n)
	}
	rewrite(t, r.admin, anthropicAdmin)
	if _, err := r.ender.End(t.Context(), connect.Key{VendorID: "apikey_1"}); err != nil {
		t.Error(err)
	}
}

// An admin key that reads a key may end it. What a proxy answers proves nothing.
func TestAnthropicProve(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, id string
		edit     func(r anthropicRig)
		want     broker.ProofState
	}{
		{"reads it", "apikey_1", func(anthropicRig) {}, broker.Proven},
		{"no such key", "apikey_9", func(anthropicRig) {}, broker.Lacking},
		{"no admin key", "apikey_1", func(r anthropicRig) { rewrite(t, r.admin, "sk-ant-admin-other") }, broker.Lacking},
		{"a login page", "apikey_1", func(r anthropicRig) {
			r.Inject(fault.Fault{Kind: fault.Verbatim, Status: 200, Body: "<html>" + planted})
		}, broker.NotProven},
		{"a proxy's refusal", "apikey_1", func(r anthropicRig) {
			r.Inject(fault.Fault{Kind: fault.Verbatim, Status: 403, Body: "<html>" + planted})
		}, broker.NotProven},
		{"another key", "apikey_1", func(r anthropicRig) {
			r.Inject(fault.Fault{Kind: fault.Verbatim, Status: 200, Body: `{"id":"apikey_2","status":"active"}`})
		}, broker.NotProven},
	} {
		r := newAnthropic(t)
		c.edit(r)
		proofs := r.ender.(connect.Prover).Prove(t.Context(), []connect.Key{{Name: "k", VendorID: c.id}})
		if len(proofs) != 1 || proofs[0].State != c.want || strings.Contains(proofs[0].How, planted) {
			t.Errorf("%s: %v; want %s", c.name, proofs, c.want)
		}
		if status := r.Status("apikey_1"); status != "active" {
			t.Errorf("%s: asking left the key %s", c.name, status)
		}
	}
}
