package stripe_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/stripe"
)

// good is a configuration of each mode in which nothing is wrong.
func good(mode string) stripe.Config {
	c := stripe.Config{
		Mode: mode, Endpoint: "https://api.stripe.com", SecretKey: "env:STRIPE", Account: "acct_1",
		Scopes: map[string]stripe.Scope{"b": {Permissions: []string{"customer_read"}}, "a": {Permissions: []string{"invoice_read", "customer_write"}}},
	}
	switch mode {
	case "ephemeral":
		c.Ephemeral = &stripe.Ephemeral{For: "customer", Object: "{{.Metadata.customer}}", Version: "2024-04-10"}
		c.Scopes = map[string]stripe.Scope{"a": {}, "b": {}}
	case "pool":
		c.SecretKey = ""
		c.Pool = &stripe.Pool{Name: "p", Disclosed: "accept", Keys: []stripe.Key{{Name: "k", Value: "env:K", Permissions: []string{"customer_read"}}}}
	}
	return c
}

// Every fault is found, all at once, and none repeats what was submitted.
func TestCheck(t *testing.T) {
	t.Parallel()
	long, short := 2*time.Hour, time.Second
	for _, mode := range []string{"managed", "ephemeral", "pool"} {
		if faults := good(mode).Check(); len(faults) > 0 {
			t.Errorf("%s: %v", mode, faults)
		}
		if diff := cmp.Diff([]string{"a", "b"}, good(mode).ScopeNames()); diff != "" {
			t.Error(diff)
		}
	}
	for name, c := range map[string]struct {
		mode string
		edit func(*stripe.Config)
		want []string
	}{
		"mode":              {"managed", func(c *stripe.Config) { c.Mode = "C4n4ry" }, []string{"mode"}},
		"the key itself":    {"managed", func(c *stripe.Config) { c.SecretKey = "sk_live_C4n4ry" }, []string{"secret_key"}},
		"no key":            {"ephemeral", func(c *stripe.Config) { c.SecretKey = "" }, []string{"secret_key"}},
		"a key for a pool":  {"pool", func(c *stripe.Config) { c.SecretKey = "env:A" }, []string{"secret_key"}},
		"no account":        {"managed", func(c *stripe.Config) { c.Account = "" }, []string{"account"}},
		"account":           {"managed", func(c *stripe.Config) { c.Account = "C4n4ry" }, []string{"account"}},
		"plain http":        {"managed", func(c *stripe.Config) { c.Endpoint = "http://C4n4ry.example" }, []string{"endpoint"}},
		"endpoint's path":   {"managed", func(c *stripe.Config) { c.Endpoint = "https://C4n4ry.example/v1" }, []string{"endpoint"}},
		"endpoint's user":   {"managed", func(c *stripe.Config) { c.Endpoint = "https://a:C4n4ry@example.com" }, []string{"endpoint"}},
		"env":               {"managed", func(c *stripe.Config) { c.Env = "C4n4ry-x" }, []string{"env"}},
		"lag":               {"managed", func(c *stripe.Config) { c.Revocation.Lag, c.Revocation.Settle = &long, &long }, []string{"revocation.lag", "revocation.settle"}},
		"lag of a pool":     {"pool", func(c *stripe.Config) { c.Revocation.Lag = &short }, []string{"revocation.lag"}},
		"no ephemeral":      {"ephemeral", func(c *stripe.Config) { c.Ephemeral = nil }, []string{"ephemeral"}},
		"ephemeral":         {"managed", func(c *stripe.Config) { c.Ephemeral = &stripe.Ephemeral{} }, []string{"ephemeral"}},
		"ephemeral's parts": {"ephemeral", func(c *stripe.Config) { *c.Ephemeral = stripe.Ephemeral{"C4n4ry", "C4n4ry", "C4n4ry"} }, []string{"ephemeral.for", "ephemeral.object", "ephemeral.version"}},
		"ephemeral's scope": {"ephemeral", func(c *stripe.Config) { c.Scopes["a"] = stripe.Scope{Permissions: []string{"customer_read"}} }, []string{"scopes.a.permissions"}},
		"no pool":           {"pool", func(c *stripe.Config) { c.Pool = nil }, []string{"pool"}},
		"pool":              {"managed", func(c *stripe.Config) { c.Pool = &stripe.Pool{} }, []string{"pool"}},
		"no scopes":         {"managed", func(c *stripe.Config) { c.Scopes = nil }, []string{"scopes"}},
		"no permissions":    {"managed", func(c *stripe.Config) { c.Scopes["a"] = stripe.Scope{} }, []string{"scopes.a.permissions"}},
		"permissions": {"managed", func(c *stripe.Config) {
			c.Scopes["a"] = stripe.Scope{Permissions: []string{"api_key_write", "C4n4ry", "customer_read", "customer_read", "custmer_read"}}
		}, []string{"scopes.a.permissions[0]", "scopes.a.permissions[1]", "scopes.a.permissions[3]", "scopes.a.permissions[4]"}},
		"a new permission": {"managed", func(c *stripe.Config) {
			c.ExtraPermissions = []string{"moon_read"}
			c.Scopes["a"] = stripe.Scope{Permissions: []string{"moon_read"}}
		}, nil},
		"no new permission": {"managed", func(c *stripe.Config) { c.ExtraPermissions = []string{"C4n4ry"} }, []string{"extra_permissions[0]"}},
		"the pool's parts": {"pool", func(c *stripe.Config) {
			c.Pool = &stripe.Pool{Name: "C4n4ry!", Disclosed: "C4n4ry", Undeclared: "C4n4ry", ProbeWrites: "C4n4ry", CheckEvery: time.Millisecond, Keys: []stripe.Key{
				{Name: "k", Value: "env:K", Permissions: []string{"customer_read"}}, {Name: "k", Value: "env:K", Permissions: []string{"api_key_write"}},
				{Name: "C4n4ry!", Value: "rk_live_C4n4ry"},
			}}
		}, []string{"pool.check_every", "pool.disclosed", "pool.keys[1].name", "pool.keys[1].permissions[0]", "pool.keys[1].value", "pool.keys[2].name",
			"pool.keys[2].permissions", "pool.keys[2].value", "pool.name", "pool.probe_writes", "pool.undeclared"}},
		"an empty pool": {"pool", func(c *stripe.Config) { c.Pool.Keys = nil }, []string{"pool.keys"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := good(c.mode)
			c.edit(&config)
			var got []string
			for _, f := range config.Check() {
				got = append(got, f.Pointer)
				if strings.Contains(f.Reason, "C4n4ry") || f.Reason == "" {
					t.Errorf("%s: %s", f.Pointer, f.Reason)
				}
			}
			slices.Sort(got)
			if name == "mode" { // what a mode takes is not known then
				got = slices.DeleteFunc(got, func(p string) bool { return p != "mode" })
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			if _, err := stripe.New(config, stripe.Deps{}); (err != nil) != (len(c.want) > 0) {
				t.Errorf("New: %v", err)
			}
		})
	}
}

// What each mode promises.
func TestCapabilities(t *testing.T) {
	t.Parallel()
	for mode, want := range map[string]broker.Capabilities{
		"managed":   {MinTTL: 10 * time.Second, MaxTTL: 7 * 24 * time.Hour, SelfExpires: true, Revoke: broker.RevokeDestroy, RevokeLag: time.Minute},
		"ephemeral": {MinTTL: time.Second, MaxTTL: 55 * time.Minute, Revoke: broker.RevokeDestroy},
		"pool":      {MinTTL: time.Second, MaxTTL: 30 * 24 * time.Hour, Revoke: broker.RevokeNone, Disclosed: true},
	} {
		if got := good(mode).Capabilities(); got != want {
			t.Errorf("%s: %+v", mode, got)
		}
	}
	undisclosed := good("pool")
	undisclosed.Pool.Disclosed = ""
	if undisclosed.Capabilities().Disclosed {
		t.Error("nobody accepted it")
	}
}
