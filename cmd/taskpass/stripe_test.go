package main

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/openapi"
	"github.com/taskpass/taskpass/providers/providertest"
	"github.com/taskpass/taskpass/providers/sandbox"
	"github.com/taskpass/taskpass/providers/sandbox/stripe"
)

// stripeKey issues a key of the profile stripe-demo.
func stripeKey(t *testing.T, s *stack, task, scope string) openapi.IssuedCredential {
	t.Helper()
	var issued openapi.IssuedCredential
	body := `{"task_id":"` + task + `","agent_id":"agent-1","profile":"stripe-demo","scopes":["` + scope + `"]}`
	text := mustCall(t, 201, "POST", s.BaseURL+"/v1/credentials", s.Tokens["orchestrator"].Reveal(), body)
	if err := json.Unmarshal([]byte(text), &issued); err != nil {
		t.Fatal(err)
	}
	return issued
}

// asksStripe is what the sandbox's Stripe answers to an agent.
func asksStripe(t *testing.T, s *stack, key, method, path string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, s.Sandbox.StripeURL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+key)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	return res.StatusCode
}

// The whole service lends the smallest restricted key; a revoked one stays stuck until Stripe itself refuses it.
func TestStripeDemo(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(tempDir(t), "data")
	var log output
	s, err := startStack(t.Context(), stackConfig{dataDir: dir, listen: "127.0.0.1:0", ephemeral: true, logger: newLogger(&log, "debug")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	reads, writes := stripeKey(t, s, "reads", "customers:read"), stripeKey(t, s, "writes", "customers:write")
	key := reads.Secret.Env["STRIPE_API_KEY"]
	if reads.Trace["key"] != "reads-customers" || reads.Trace["over_granted"] != "" || writes.Trace["key"] != "writes-customers" {
		t.Errorf("lent %v and %v", reads.Trace, writes.Trace)
	}
	for call, want := range map[string]int{"GET /v1/customers": 200, "POST /v1/customers": 403, "GET /v1/invoices": 403, "GET /v1/charges": 403} {
		method, path, _ := strings.Cut(call, " ")
		if got := asksStripe(t, s, key, method, path); got != want {
			t.Errorf("%s: %d, want %d", call, got, want)
		}
	}
	// Who finds the key asks whose it is: of the broker, and never by the key itself.
	token := writeFile(t, t.TempDir(), "token", s.Tokens["auditor"].Reveal())
	if r := must(t, "audit", "trace", key, "--url", s.BaseURL, "--token-file", token); !strings.HasPrefix(r.stdout, reads.ID+" version 1, active\n") || !strings.Contains(r.stderr, "by its SHA-256") {
		t.Error(r)
	}
	state := func() string {
		return mustCall(t, 200, "GET", s.BaseURL+"/v1/credentials/"+reads.ID, s.Tokens["auditor"].Reveal(), "")
	}
	mustCall(t, 202, "POST", s.BaseURL+"/v1/credentials/"+reads.ID+"/revoke", s.Tokens["orchestrator"].Reveal(), `{"reason":"leaked"}`)
	if text := state(); !strings.Contains(text, `"status":"stuck"`) || !strings.Contains(text, "awaiting_rotation") {
		t.Errorf("revoked, and Stripe still accepts it: %s", text)
	}
	// What an operator does: a new key at its place, and the old one expired in the dashboard.
	fresh := s.Sandbox.Stripe.AddKey(stripe.Key{Name: "reads-customers", Permissions: []string{"customer_read"}})
	providertest.WriteSecret(t, filepath.Join(dir, "keys", "stripe_reads-customers"), fresh)
	if err := s.Sandbox.Stripe.ExpireKey(key); err != nil {
		t.Fatal(err)
	}
	sql(t, s.AdminURL, "UPDATE versions SET due_at = now() WHERE state = 'stuck'") // it is looked at about each minute
	await(t, "it is said to be destroyed", func() bool { return strings.Contains(state(), `"result":"destroyed"`) })
	if text := state(); !strings.Contains(text, `"status":"revoked"`) || !strings.Contains(text, "refused_as_expired") {
		t.Errorf("ended: %s", text)
	}
	if next := stripeKey(t, s, "next", "customers:read"); next.Secret.Env["STRIPE_API_KEY"] != fresh {
		t.Errorf("the fresh key is not lent: %v", next.Trace)
	}
	for name := range sandbox.StripePermissions {
		if strings.Contains(log.String(), s.Sandbox.StripeKeys[name]) {
			t.Error("the log shows a key")
		}
	}
}
