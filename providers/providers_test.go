package providers_test

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/gcp"
	"github.com/taskpass/taskpass/providers/pool"
	"github.com/taskpass/taskpass/providers/stripe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sections are a good section for every provider that there is.
func sections() map[string]providers.Config {
	return map[string]providers.Config{
		"aws": {AWS: &aws.Config{
			RoleARN: "arn:aws:iam::123456789012:role/agents", Region: "eu-west-1",
			AccessKeyID: "env:PATH", SecretAccessKey: "env:PATH",
			Scopes: map[string]aws.Scope{"b": {Statements: []aws.Statement{{Actions: []string{"s3:*"}, Resources: []string{"*"}}}},
				"a": {Statements: []aws.Statement{{Actions: []string{"s3:*"}, Resources: []string{"*"}}}}},
		}},
		"gcp": {GCP: &gcp.Config{
			Mode: "slot", Accounts: []string{"slot-1@p.iam.gserviceaccount.com"}, TokenFile: "env:PATH",
			Scopes: map[string]gcp.Scope{"b": {}, "a": {}},
		}},
		"pool": {Pool: &pool.Config{Name: "p", Keys: []pool.Key{{Name: "k", Value: "env:PATH"}}, Scopes: []string{"b", "a"}, Disclosed: "accept"}},
		"stripe": {Stripe: &stripe.Config{
			Mode: "managed", SecretKey: "env:PATH", Account: "acct_1",
			Scopes: map[string]stripe.Scope{"b": {Permissions: []string{"customer_read"}}, "a": {Permissions: []string{"invoice_read"}}},
		}},
	}
}

func deps() providers.Deps {
	return providers.Deps{Clock: time.Now, Logger: slog.New(slog.DiscardHandler)}
}

// closes ends the connections of a provider that keeps some.
func closes(t *testing.T, p broker.Provider) {
	t.Helper()
	if c, ok := p.(io.Closer); ok {
		t.Cleanup(func() { _ = c.Close() })
	}
}

func TestEveryProviderOpens(t *testing.T) {
	t.Parallel()
	good := sections()
	names := providers.Names()
	if !slices.IsSorted(names) || len(names) != len(good) {
		t.Fatalf("providers %q; this test knows %d", names, len(good))
	}
	promises := map[broker.Capabilities]bool{}
	for _, p := range providers.Promises() {
		if !slices.Contains(names, p.Provider) || p.How == "" {
			t.Errorf("a promise of %q, %q", p.Provider, p.How)
		}
		promises[p.Capabilities] = true
	}
	for _, name := range names {
		c := good[name]
		if faults := c.Check(name); len(faults) > 0 {
			t.Fatalf("%s: %v", name, faults)
		}
		if diff := cmp.Diff([]string{"a", "b"}, c.ScopeNames(name)); diff != "" {
			t.Errorf("%s: scopes: %s", name, diff)
		}
		p, err := providers.Open(t.Context(), name, c, deps())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		closes(t, p)
		if caps := p.Capabilities(); !promises[caps] {
			t.Errorf("%s promises %+v, which the README's table does not", name, caps)
		}
		if p.Upstream(broker.Credential{}) == "" {
			t.Errorf("%s: its upstream has no name", name)
		}
	}
}

// A profile has the one section of its provider.
func TestSections(t *testing.T) {
	t.Parallel()
	good := sections()
	both := providers.Config{AWS: good["aws"].AWS, Pool: good["pool"].Pool}
	for _, c := range []struct {
		name   string
		config providers.Config
		want   string
	}{
		{"aws", providers.Config{}, "missing"},
		{"pool", good["aws"], "missing"},
		{"aws", good["pool"], "missing"},
		{"vault", good["aws"], "missing"},
		{"", good["aws"], "missing"},
		{"aws", both, "only"},
		{"pool", both, "only"},
	} {
		faults := c.config.Check(c.name)
		if len(faults) != 1 || faults[0].Pointer != "" || !strings.Contains(faults[0].Reason, c.want) {
			t.Errorf("%q: %v", c.name, faults)
		}
		if names := c.config.ScopeNames(c.name); names != nil {
			t.Errorf("%q: scopes %q", c.name, names)
		}
		if p, err := providers.Open(t.Context(), c.name, c.config, deps()); err == nil {
			t.Errorf("%q opened as %T", c.name, p)
		}
	}
}

// Faults are found before anything is opened, with their place in the file.
func TestFaultsHaveTheirPlace(t *testing.T) {
	t.Parallel()
	good := sections()
	good["aws"].AWS.Region = "nowhere"
	good["pool"].Pool.Keys[0].Value = "sk-C4n4ry"
	for name, want := range map[string]string{"aws": "aws.region", "pool": "pool.keys[0].value"} {
		c := good[name]
		faults := c.Check(name)
		if len(faults) != 1 || faults[0].Pointer != want {
			t.Errorf("%s: %v", name, faults)
		}
		_, err := providers.Open(t.Context(), name, c, deps())
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "C4n4ry") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Opening asks no upstream, so that a broker starts while a vendor is down.
func TestOpeningAsksNobody(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for name, c := range sections() {
		if name == "aws" {
			c.AWS.Endpoint = "http://192.0.2.1" // TEST-NET-1: nobody is there, and nobody says so
		}
		p, err := providers.Open(ctx, name, c, deps())
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		closes(t, p)
	}
}
