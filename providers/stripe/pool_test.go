package stripe_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/stripe"
	"github.com/taskpass/taskpass/providers/stripe"
)

// lend mints out of the pool and records it.
func (r *poolRig) lend(t testing.TB, p broker.Provider, ledger *store.Store, scopes ...string) (broker.Credential, broker.Minted, error) {
	t.Helper()
	l := book{ledger, r.safe}
	c := providertest.Intend(t, l, p, r.credential(scopes...), r.clock.Now(), time.Hour)
	m, err := p.Mint(t.Context(), c)
	if err != nil {
		return c, m, err
	}
	return providertest.Activate(t, l, c, m), m, nil
}

func (r *poolRig) mustLend(t testing.TB, p broker.Provider, ledger *store.Store, scopes ...string) (broker.Credential, broker.Minted) {
	t.Helper()
	c, m, err := r.lend(t, p, ledger, scopes...)
	if err != nil {
		t.Fatalf("%v: %v", scopes, err)
	}
	return c, m
}

// A task gets the smallest key that suffices; when those are out the next larger; and what it can do beyond is recorded.
func TestSmallestKey(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newPool(t, 0)
	r.add(t, "everything", "customer_write", "invoice_write", "charge_read", "payout_write")
	r.add(t, "reads-both", "customer_read", "invoice_read")
	r.add(t, "reads-customers", "customer_read")
	r.add(t, "writes-customers", "customer_write")
	p := r.open(t, ledger)
	for _, c := range []struct {
		scopes           []string
		key, overGranted string
	}{
		{[]string{"customers:read"}, "reads-customers", ""},
		{[]string{"customers:read", "invoices:read"}, "reads-both", ""},
		{[]string{"customers:read"}, "writes-customers", "customer_write"},
		{[]string{"customers:read"}, "everything", "charge_read customer_write invoice_read invoice_write payout_read payout_write"},
	} {
		_, m := r.mustLend(t, p, ledger, c.scopes...)
		if m.Trace["key"] != c.key || m.Trace["over_granted"] != c.overGranted {
			t.Errorf("%v: %s, over by %q; want %s, %q", c.scopes, m.Trace["key"], m.Trace["over_granted"], c.key, c.overGranted)
		}
		if m.UpstreamIDs[0] != "stripe:"+r.name+"/"+c.key {
			t.Errorf("recorded as %v", m.UpstreamIDs)
		}
	}
	_, _, err := r.lend(t, p, ledger, "customers:read")
	if e := broker.AsError(err); e.Code != broker.CodePoolExhausted || !errors.Is(err, broker.ErrNotMinted) || e.RetryAfter <= 0 {
		t.Errorf("all are out: %v", err)
	}
	r.logged(t)
}

// No key fits: the error names what is missing and where to make a key that has it.
func TestNoKeyFits(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newPool(t, 0)
	r.add(t, "k", "customer_read")
	p := r.open(t, ledger)
	_, _, err := r.lend(t, p, ledger, "customers:write", "invoices:read")
	e := broker.AsError(err)
	link := "https://dashboard.stripe.com/test/apikeys/create?name=taskpass-" + r.name + "&permissions[]=rak_customer_write&permissions[]=rak_invoice_read"
	if e.Code != broker.CodeUpstreamRefused || !errors.Is(err, broker.ErrNotMinted) ||
		!strings.Contains(e.Message, "lacks customer_write, invoice_read") || !strings.HasSuffix(e.Message, link) {
		t.Errorf("%v", err)
	}
	if n := r.Calls(""); n != 0 {
		t.Errorf("%d calls for a key that does not suffice by what is declared", n)
	}
	r.config.Livemode = true
	_, _, err = r.lend(t, r.open(t, ledger), ledger, "customers:read")
	if e := broker.AsError(err); !strings.Contains(e.Message, "https://dashboard.stripe.com/apikeys/create?") || !strings.Contains(e.Message, "mode") {
		t.Errorf("a test key in live mode: %v", err)
	}
}

// A key is tried before it is handed out: one that lacks, has more than, or is not what was declared stays in.
func TestAdmission(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	for name, c := range map[string]struct {
		register func(*poolRig)
		edit     func(*stripe.Config)
		wants    string // empty: it is handed out
		trace    map[string]string
	}{
		"as declared": {
			register: func(r *poolRig) { r.add(t, "k", "customer_read", "invoice_read") },
			trace:    map[string]string{"unverified": "", "over_granted": "invoice_read"},
		},
		"lacks": {register: func(r *poolRig) {
			r.register(t, "k", r.AddKey(sandbox.Key{Permissions: []string{"invoice_read"}}), "customer_read", "invoice_read")
		}, wants: "k lacks customer_read"},
		"lacks, told in the older words": {register: func(r *poolRig) {
			r.register(t, "k", r.AddKey(sandbox.Key{Permissions: []string{"invoice_read"}, OldWords: true}), "customer_read")
		}, wants: "k lacks customer_read"},
		"has more": {register: func(r *poolRig) {
			r.register(t, "k", r.AddKey(sandbox.Key{Permissions: []string{"customer_read", "charge_write", "payout_read"}}), "customer_read")
		}, wants: "k can do more than is declared: charge_read, payout_read"},
		"has more, accepted": {register: func(r *poolRig) {
			r.register(t, "k", r.AddKey(sandbox.Key{Permissions: []string{"customer_read", "payout_read"}}), "customer_read")
		}, edit: func(c *stripe.Config) { c.Pool.Undeclared = "accept" }, trace: map[string]string{"over_granted": "payout_read"}},
		"expired": {register: func(r *poolRig) {
			if err := r.ExpireKey(r.add(t, "k", "customer_read")); err != nil {
				t.Fatal(err)
			}
		}, wants: "k is not accepted by Stripe"},
		"unrestricted": {register: func(r *poolRig) { r.register(t, "k", testPlatform, "customer_read") }, wants: "k is an unrestricted key (sk_)"},
		"live": {register: func(r *poolRig) { r.register(t, "k", "rk_live_C4n4ryC4n4ryC4n4ry", "customer_read") },
			wants: "k is not a restricted key of this profile's mode"},
		"no key": {register: func(r *poolRig) { r.register(t, "k", "C4n4ryC4n4ryC4n4ryC4n4ry", "customer_read") }, wants: "k is not a restricted key"},
		"another works": {register: func(r *poolRig) {
			r.register(t, "a", r.AddKey(sandbox.Key{Permissions: []string{"invoice_read"}}), "customer_read")
			r.add(t, "b", "customer_read", "charge_read")
		}, trace: map[string]string{"key": "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newPool(t, 0)
			c.register(r)
			p := r.open(t, ledger, func(cfg *stripe.Config) {
				if c.edit != nil {
					c.edit(cfg)
				}
			})
			_, m, err := r.lend(t, p, ledger, "customers:read")
			r.logged(t)
			if c.wants == "" {
				if err != nil {
					t.Fatal(err)
				}
				for k, want := range c.trace {
					if m.Trace[k] != want {
						t.Errorf("%s: %q, want %q", k, m.Trace[k], want)
					}
				}
				return
			}
			if err == nil || !errors.Is(err, broker.ErrNotMinted) || !strings.Contains(err.Error(), c.wants) {
				t.Errorf("%v; want: %s", err, c.wants)
			}
			holdsNoSecret(t, err)
			if held := r.holders(t, ledger); len(held) != 0 {
				t.Errorf("held all the same: %v", held)
			}
		})
	}
}

// Writes are tried only where the operator says so, and nothing is made by it.
func TestWriteProbes(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	for _, accept := range []bool{false, true} {
		r := newPool(t, 0)
		if accept {
			r.config.Pool.ProbeWrites = "accept"
		}
		r.add(t, "k", "customer_write")
		p := r.open(t, ledger)
		_, m := r.mustLend(t, p, ledger, "customers:write")
		posts := r.Calls("POST /v1/*")
		if want := map[bool]string{false: "customer_write", true: ""}[accept]; m.Trace["unverified"] != want || (posts > 0) != accept {
			t.Errorf("probe_writes %t: unverified %q, %d POSTs", accept, m.Trace["unverified"], posts)
		}
		// A key that reads as declared and writes besides: only a write tells.
		r.register(t, "sly", r.AddKey(sandbox.Key{Permissions: []string{"customer_read", "charge_write"}}), "customer_read", "charge_read")
		p = r.open(t, ledger)
		_, _, err := r.lend(t, p, ledger, "customers:read")
		if refused := err != nil && strings.Contains(r.logged(t), "undeclared=charge_write"); refused != accept {
			t.Errorf("probe_writes %t: %v", accept, err)
		}
	}
}

// What was found out is remembered for a while; what spoke against a key is looked at again soon.
func TestAdmissionIsRemembered(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newPool(t, 0)
	secret := r.AddKey(sandbox.Key{Permissions: []string{"invoice_read"}})
	r.register(t, "k", secret, "customer_read")
	p := r.open(t, ledger)
	if _, _, err := r.lend(t, p, ledger, "customers:read"); err == nil {
		t.Fatal("handed out")
	}
	if err := r.SetPermissions(secret, "customer_read"); err != nil {
		t.Fatal(err)
	}
	calls := r.Calls("")
	if _, _, err := r.lend(t, p, ledger, "customers:read"); err == nil || r.Calls("") != calls {
		t.Errorf("at once: %v, %d calls", err, r.Calls("")-calls)
	}
	r.clock.Advance(time.Minute)
	c, _ := r.mustLend(t, p, ledger, "customers:read")
	l := book{ledger, r.safe}
	end := func(c broker.Credential) {
		t.Helper()
		c = providertest.Ask(t, l, c, broker.CauseTaskEnded)
		done, err := p.Revoke(t.Context(), c)
		if err != nil || done.Result != broker.ResultReleased {
			t.Fatalf("%+v, %v", done, err)
		}
		providertest.Settle(t, l, c, done)
	}
	end(c)
	calls = r.Calls("")
	c, _ = r.mustLend(t, p, ledger, "customers:read")
	if n := r.Calls("") - calls; n != 0 {
		t.Errorf("tried again, with %d calls", n)
	}
	end(c)
	// Somebody widened it in the dashboard: found at the next trial.
	if err := r.SetPermissions(secret, "customer_read", "payout_write"); err != nil {
		t.Fatal(err)
	}
	r.clock.Advance(time.Hour)
	if _, _, err := r.lend(t, p, ledger, "customers:read"); err == nil || !strings.Contains(err.Error(), "payout_read") {
		t.Errorf("widened: %v", err)
	}
}

// What Stripe answers when a key is tried, as far as it is no answer about the key.
func TestAdmissionFails(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	for name, c := range map[string]struct {
		fault sandbox.Fault
		code  broker.Code
	}{
		"throttled": {sandbox.Fault{Kind: sandbox.Throttle, Message: providertest.Canary}, broker.CodeUpstreamThrottled},
		"failing":   {sandbox.Fault{Kind: sandbox.ServerError, Body: providertest.Canary}, broker.CodeUpstreamError},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newPool(t, 1)
			p := r.open(t, ledger)
			r.Inject(c.fault)
			_, _, err := r.lend(t, p, ledger, "customers:read")
			if e := broker.AsError(err); e.Code != c.code || !errors.Is(err, broker.ErrNotMinted) {
				t.Errorf("%v", err)
			}
			holdsNoSecret(t, err)
			if held := r.holders(t, ledger); len(held) != 0 {
				t.Errorf("held all the same: %v", held)
			}
			if _, m := r.mustLend(t, p, ledger, "customers:read"); m.Trace["key"] != "k0" {
				t.Errorf("afterwards: %v", m.Trace)
			}
		})
	}
	t.Run("unreachable", func(t *testing.T) {
		t.Parallel()
		r := newPool(t, 1)
		r.config.Endpoint = "http://" + providertest.Refusing(t)
		_, _, err := r.lend(t, r.open(t, ledger), ledger, "customers:read")
		if e := broker.AsError(err); !e.Code.Retryable() || !errors.Is(err, broker.ErrNotMinted) || len(r.holders(t, ledger)) != 0 {
			t.Errorf("%v", err)
		}
	})
	t.Run("says nothing of the key", func(t *testing.T) { // an account without invoices, say: unverified, and handed out
		t.Parallel()
		r := newPool(t, 1)
		p := r.open(t, ledger)
		r.Inject(sandbox.Fault{Action: "GET /v1/customers", Kind: sandbox.Refuse, Status: 400})
		if _, m := r.mustLend(t, p, ledger, "customers:read"); m.Trace["unverified"] != "customer_read" {
			t.Errorf("%v", m.Trace)
		}
	})
}

// A revoked key is quarantined until Stripe itself refuses the value that was handed out: another value at its place, and
// even a key that was put there, is no proof.
func TestPoolRevocation(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newPool(t, 1)
	p := r.open(t, ledger)
	l := book{ledger, r.safe}
	c, m := r.mustLend(t, p, ledger, "customers:read")
	old := r.value(t, "k0")
	c = providertest.Ask(t, l, c, broker.CauseRevoked)
	awaits := func(when string) {
		t.Helper()
		if done, err := p.Revoke(t.Context(), c); !errors.Is(err, broker.ErrNotRotated) {
			t.Errorf("%s: %+v, %v", when, done, err)
		}
	}
	awaits("at once")
	if _, _, err := r.lend(t, p, ledger, "customers:read"); broker.AsError(err).Code != broker.CodePoolExhausted {
		t.Errorf("a quarantined key was handed out: %v", err)
	}
	// The file has another key, and the old one still works.
	r.file(t, "k0", r.AddKey(sandbox.Key{Name: "fresh", Secret: "rk_test_C4n4ryC4n4ry" + string(broker.NewVersionID()), Permissions: []string{"customer_read"}}))
	awaits("replaced here, not there")
	if !r.alive(t, c, m.Secret) {
		t.Fatal("the stand-in ended it")
	}
	// Stripe cannot be asked: that is a failure, and no proof either.
	r.Inject(sandbox.Fault{Action: "GET /v1/balance", Kind: sandbox.ServerError})
	if _, err := p.Revoke(t.Context(), c); err == nil || errors.Is(err, broker.ErrNotRotated) {
		t.Errorf("Stripe failed: %v", err)
	}
	if err := r.ExpireKey(old); err != nil {
		t.Fatal(err)
	}
	done, err := p.Revoke(t.Context(), c)
	if err != nil || done.Result != broker.ResultDestroyed || done.Basis != "refused_as_expired" {
		t.Fatalf("%+v, %v", done, err)
	}
	providertest.Settle(t, l, c, done)
	if _, m := r.mustLend(t, p, ledger, "customers:read"); m.Secret.Fields["api_key"].Reveal() == old {
		t.Error("the revoked key was handed out again")
	}
	r.logged(t)
}

// An operator who only expires the key has ended it: that is said, and its dead value is not handed out.
func TestPoolRevokedAndNotReplaced(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newPool(t, 1)
	p := r.open(t, ledger)
	l := book{ledger, r.safe}
	c, _ := r.mustLend(t, p, ledger, "customers:read")
	c = providertest.Ask(t, l, c, broker.CauseRevoked)
	if err := r.ExpireKey(r.value(t, "k0")); err != nil {
		t.Fatal(err)
	}
	done, err := p.Revoke(t.Context(), c)
	if err != nil || done.Result != broker.ResultDestroyed {
		t.Fatalf("%+v, %v", done, err)
	}
	providertest.Settle(t, l, c, done)
	if _, m, err := r.lend(t, p, ledger, "customers:read"); err == nil {
		t.Errorf("a dead key was handed out: %v", m.Trace)
	}
	r.rotate(t, "k0", "customer_read")
	r.mustLend(t, p, ledger, "customers:read")
}

// Two replicas and many tasks: one holder a key.
func TestPoolOneHolder(t *testing.T) {
	t.Parallel()
	ledgers := replicas(t, 2)
	r := newPool(t, 5)
	type result struct {
		key string
		err error
	}
	results := make(chan result)
	ps := []broker.Provider{r.open(t, ledgers[0]), r.open(t, ledgers[1])}
	for i := range 15 {
		c := providertest.Intend(t, ledgers[0], ps[0], r.credential("customers:read"), r.clock.Now(), time.Hour)
		go func() {
			m, err := ps[i%2].Mint(t.Context(), c)
			results <- result{m.Trace["key"], err}
		}()
	}
	held := map[string]int{}
	for range 15 {
		if got := <-results; got.err == nil {
			held[got.key]++
		} else if broker.AsError(got.err).Code != broker.CodePoolExhausted {
			t.Error(got.err)
		}
	}
	if len(held) != 5 || fmt.Sprint(held) != "map[k0:1 k1:1 k2:1 k3:1 k4:1]" {
		t.Errorf("%v", held)
	}
}

// A caller that issues and revokes has its share of the keys in quarantine, and no more; another caller still gets one.
// What no header can carry is passed over, and named.
func TestShareOfStripeKeys(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newPool(t, 0)
	for i := range 5 {
		r.add(t, fmt.Sprint("reads-", i), "customer_read")
	}
	providertest.WriteSecret(t, filepath.Join(r.dir, "reads-4"), "\ufeffrk_test_C4n4ryC4n4ry\n")
	p := r.open(t, ledger, func(c *stripe.Config) {
		own := *c.Pool
		own.SharePercent = 50
		c.Pool = &own
	})
	var last error
	for range 4 {
		c, _, err := r.lend(t, p, ledger, "customers:read")
		if last = err; err != nil {
			break
		}
		if _, err := p.Revoke(t.Context(), providertest.Ask(t, book{ledger, r.safe}, c, broker.CauseRevoked)); !errors.Is(err, broker.ErrNotRotated) {
			t.Fatal(err)
		}
	}
	if e := broker.AsError(last); last == nil || e.Code != broker.CodeQuotaExceeded || !errors.Is(last, broker.ErrNotMinted) || e.RetryAfter <= 0 {
		t.Errorf("beyond the share: %v", last)
	}
	n := 0
	err := ledger.Pool().QueryRow(t.Context(), "SELECT count(*) FROM slots WHERE state = 'quarantined' AND pool = $1", "stripe:"+r.config.Pool.Name).Scan(&n)
	if err != nil || n != 2 {
		t.Errorf("%d of 4 usable keys are in quarantine, want 2", n)
	}
	other := r.credential("customers:read")
	other.Caller = "other"
	if _, err := p.Mint(t.Context(), providertest.Intend(t, book{ledger, r.safe}, p, other, r.clock.Now(), time.Hour)); err != nil {
		t.Errorf("another caller: %v", err)
	}
	_, _, err = r.lend(t, p, ledger, "invoices:read")
	if err == nil || !strings.Contains(err.Error(), "reads-4 cannot be handed out") || !strings.Contains(err.Error(), "byte order mark") || strings.Contains(err.Error(), "C4n4ry") || strings.Contains(err.Error(), r.dir) {
		t.Errorf("a key with a byte order mark: %v", err)
	}
}
