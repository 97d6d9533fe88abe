package stripe_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/stripe"
	"github.com/taskpass/taskpass/providers/stripe"
)

// The calls that make and end keys.
const (
	createKey    = "POST /v2/iam/api_keys"
	expireKey    = "POST /v2/iam/api_keys/*/expire"
	createEph    = "POST /v1/ephemeral_keys"
	deleteEph    = "DELETE /v1/ephemeral_keys/*"
	anyProbe     = "GET /v1/*"
	account      = "acct_sandbox"
	testPlatform = "sk_test_C4n4ryC4n4ryC4n4ry" // a canary: no error may show the broker's own key
	livePlatform = "sk_live_C4n4ryC4n4ryC4n4ry"
)

// rig is a running stand-in, and a configuration of one mode.
type rig struct {
	*sandbox.Server
	url    string
	client *http.Client
	clock  *providertest.Clock
	config stripe.Config
	dir    string
	log    *bytes.Buffer // what the provider logged
	logMu  *sync.Mutex
	safe   *safe
}

// safe has what was handed out: a mint's secret from the moment when the ledger has its outcome.
type safe struct {
	mu      sync.Mutex
	minted  map[broker.VersionID]broker.Bundle
	handed  map[broker.VersionID]broker.Bundle
	failing error
}

func (s *safe) Handed(_ context.Context, id broker.VersionID) (broker.Bundle, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.handed[id]
	return b, ok, s.failing
}

// watchedMint tells the safe what was minted.
type watchedMint struct {
	broker.Provider
	safe *safe
}

func (w watchedMint) Mint(ctx context.Context, c broker.Credential) (broker.Minted, error) {
	m, err := w.Provider.Mint(ctx, c)
	if err == nil {
		w.safe.mu.Lock()
		w.safe.minted[c.Version.ID] = m.Secret
		w.safe.mu.Unlock()
	}
	return m, err
}

// book is the ledger, which tells the safe what was handed out.
type book struct {
	*store.Store
	safe *safe
}

func (b book) Activate(ctx context.Context, c broker.Credential, sealed []byte, others time.Time, e broker.Event) error {
	err := b.Store.Activate(ctx, c, sealed, others, e)
	if err == nil {
		b.safe.mu.Lock()
		b.safe.handed[c.Version.ID] = b.safe.minted[c.Version.ID]
		b.safe.mu.Unlock()
	}
	return err
}

type locked struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// newRig starts a stand-in; the clock starts at a moment that is no whole second.
func newRig(t testing.TB, edit ...func(*sandbox.Config)) *rig {
	t.Helper()
	clock := providertest.NewClock()
	cfg := sandbox.Config{SecretKey: testPlatform, Preview: true, Now: clock.Now}
	for _, e := range edit {
		e(&cfg)
	}
	server, err := sandbox.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{
		Server: server, clock: clock, dir: t.TempDir(), log: &bytes.Buffer{}, logMu: &sync.Mutex{},
		safe: &safe{minted: map[broker.VersionID]broker.Bundle{}, handed: map[broker.VersionID]broker.Bundle{}},
	}
	web := httptest.NewServer(server)
	transport := &http.Transport{}
	t.Cleanup(func() {
		server.Close()
		transport.CloseIdleConnections()
		web.Close()
	})
	r.url, r.client = web.URL, &http.Client{Transport: transport}
	r.config = stripe.Config{
		Endpoint: web.URL, Livemode: strings.HasPrefix(cfg.SecretKey, "sk_live_"), SecretKey: r.file(t, "own", cfg.SecretKey),
		Scopes: map[string]stripe.Scope{
			"customers:read":  {Permissions: []string{"customer_read"}},
			"customers:write": {Permissions: []string{"customer_read", "customer_write"}},
			"invoices:read":   {Permissions: []string{"invoice_read"}},
		},
	}
	return r
}

var sharedKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func managed(c *stripe.Config) {
	c.Mode, c.Account = "managed", account
	none := time.Duration(0)
	c.Revocation = stripe.Revocation{Settle: &none} // a creation of the stand-in's is never late
}

func ephemeral(c *stripe.Config) {
	c.Mode, c.Ephemeral = "ephemeral", &stripe.Ephemeral{For: "customer", Object: "{{.Metadata.customer}}", Version: "2024-04-10"}
	c.Scopes = map[string]stripe.Scope{"wallet": {}}
}

// file writes a secret as an operator's tools do: a reader sees the old value or the new one.
func (r *rig) file(t testing.TB, name, value string) broker.Ref {
	t.Helper()
	path := filepath.Join(r.dir, name)
	providertest.WriteSecret(t, path, value+"\n")
	return broker.Ref("file:" + path)
}

// open makes the provider of the rig's configuration, which Check must accept.
func (r *rig) open(t testing.TB, slots broker.Slots, edit ...func(*stripe.Config)) broker.Provider {
	t.Helper()
	c := r.config
	for _, e := range edit {
		e(&c)
	}
	if faults := c.Check(); len(faults) > 0 {
		t.Fatalf("configuration: %v", faults)
	}
	p, err := stripe.New(c, stripe.Deps{
		Slots: slots, Handed: r.safe, Clock: r.clock.Now, PollEvery: time.Millisecond, GenerateKey: sharedKey,
		Shared: c.Pool != nil && c.Pool.SharePercent > 0,
		Logger: slog.New(slog.NewTextHandler(locked{r.logMu, r.log}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	return watchedMint{p, r.safe}
}

func (r *rig) credential(scopes ...string) broker.Credential {
	id := string(broker.NewVersionID())
	c := broker.Credential{TaskID: "task-" + id, AgentID: "agent-" + id, Profile: "stripe", Provider: "stripe", Scopes: scopes}
	if r.config.Mode == "ephemeral" {
		c.Metadata = map[string]string{"customer": r.AddObject("customers", nil)}
	}
	return c
}

// get calls Stripe as an agent does, and answers the status and the code.
func (r *rig) get(t testing.TB, key, path string) (int, string) {
	t.Helper()
	in, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	in.Header.Set("Authorization", "Bearer "+key)
	out, err := r.client.Do(in)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	var body struct {
		Error struct{ Code string }
	}
	_ = json.NewDecoder(out.Body).Decode(&body)
	return out.StatusCode, body.Error.Code
}

// alive tells whether the key can do what it is for: yes, or refused for what it is.
func (r *rig) alive(t testing.TB, c broker.Credential, secret broker.Bundle) bool {
	t.Helper()
	path := "/v1/customers?limit=1"
	if id := c.Metadata["customer"]; id != "" {
		path = "/v1/customers/" + id
	}
	switch status, _ := r.get(t, secret.Env["STRIPE_API_KEY"].Reveal(), path); status {
	case http.StatusOK:
		return true
	case http.StatusUnauthorized:
		return false
	default:
		t.Fatalf("Stripe answers %d", status)
		return false
	}
}

// asked is closed once Stripe has had n more such calls.
func (r *rig) asked(t testing.TB, pattern string, n int) <-chan struct{} {
	want, had := r.Calls(pattern)+n, make(chan struct{})
	tick := time.NewTicker(time.Millisecond)
	go func() {
		defer tick.Stop()
		for r.Calls(pattern) < want {
			select {
			case <-t.Context().Done():
				return
			case <-tick.C:
			}
		}
		close(had)
	}()
	return had
}

// logged fails the test if the provider's log shows a canary.
func (r *rig) logged(t testing.TB) string {
	t.Helper()
	r.logMu.Lock()
	defer r.logMu.Unlock()
	text := r.log.String()
	if strings.Contains(text, "C4n4ry") || strings.Contains(text, "rk_test_") || strings.Contains(text, "rk_live_") {
		t.Errorf("the log shows a secret: %s", text)
	}
	return text
}

func bundleOf(secret string) broker.Bundle {
	s := broker.NewSecret(secret)
	return broker.Bundle{Primary: "api_key", Fields: map[string]broker.Secret{"api_key": s}, Env: map[string]broker.Secret{"STRIPE_API_KEY": s}}
}
