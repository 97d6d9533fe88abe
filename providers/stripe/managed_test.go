package stripe_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/stripe"
)

func newManaged(t testing.TB, edit ...func(*sandbox.Config)) *rig {
	t.Helper()
	r := newRig(t, edit...)
	managed(&r.config)
	return r
}

func live(c *sandbox.Config) { c.SecretKey = livePlatform }

// intended is a credential as it stands when the upstream is asked, without a ledger.
func (r *rig) intended(p broker.Provider, ttl time.Duration, scopes ...string) broker.Credential {
	c := r.credential(scopes...)
	now := r.clock.Now().UTC()
	c.ID, c.CreatedAt, c.TTL, c.Caller, c.Requested = broker.NewCredentialID(), now, ttl, "orchestrator", scopes
	c.Version = broker.Version{ID: broker.NewVersionID(), Number: 1, State: broker.StateIssuing, IssuedAt: now, ExpiresAt: now.Add(ttl), Upstream: p.Upstream(c)}
	return c
}

// handedOut is the credential once its secret was given to somebody.
func (r *rig) handedOut(c broker.Credential, m broker.Minted) broker.Credential {
	c.Version.State, c.Version.UpstreamIDs, c.Version.Trace, c.Version.Fingerprint = broker.StateActive, m.UpstreamIDs, m.Trace, m.Secret.Fingerprint()
	r.safe.mu.Lock()
	defer r.safe.mu.Unlock()
	r.safe.handed[c.Version.ID] = m.Secret
	return c
}

func (r *rig) mint(t testing.TB, p broker.Provider, c broker.Credential) (broker.Credential, broker.Minted) {
	t.Helper()
	m, err := p.Mint(t.Context(), c)
	if err != nil {
		t.Fatalf("Mint: %v", err)
	}
	return r.handedOut(c, m), m
}

// A task's key has the permissions of its scopes, the end of its version and its version's name, and nothing else.
func TestManagedKey(t *testing.T) {
	t.Parallel()
	for mode, edit := range map[string]func(*sandbox.Config){"test": func(*sandbox.Config) {}, "live": live} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			r := newManaged(t, edit)
			p := r.open(t, nil)
			c, m := r.mint(t, p, r.intended(p, 10*time.Minute, "customers:write", "invoices:read"))
			keys := r.Keys()
			if len(keys) != 1 {
				t.Fatalf("%d keys", len(keys))
			}
			k := keys[0]
			if diff := cmp.Diff([]string{"customer_write", "invoice_read"}, k.Permissions); diff != "" { // write implies read
				t.Error(diff)
			}
			if k.Name != "taskpass-"+string(c.Version.ID) || !k.ExpiresAt.Equal(c.Version.ExpiresAt.Truncate(time.Second)) || !m.UpstreamExpiresAt.Equal(k.ExpiresAt) {
				t.Errorf("named %s, ends %s; the version is %s and ends %s", k.Name, k.ExpiresAt, c.Version.ID, c.Version.ExpiresAt)
			}
			secret := m.Secret.Fields["api_key"].Reveal()
			for path, want := range map[string]int{"/v1/customers": 200, "/v1/invoices": 200, "/v1/charges": 403, "/v1/payouts": 403, "/v1/balance": 403} {
				if got, _ := r.get(t, secret, path); got != want {
					t.Errorf("%s: %d, want %d", path, got, want)
				}
			}
			if !slices.Equal(m.UpstreamIDs, []string{k.ID, k.Name}) || m.Trace["key_id"] != k.ID || m.Trace["account"] != account ||
				m.Trace["permissions"] != "customer_write invoice_read" || !strings.HasPrefix(m.Trace["request_id"], "req_") ||
				!strings.HasSuffix(m.Trace["request_log_url"], m.Trace["request_id"]) {
				t.Errorf("recorded: %v, %v", m.UpstreamIDs, m.Trace)
			}
			r.logged(t)
		})
	}
}

// What differs from what was asked for is expired at once, and is given to nobody; the version stays in doubt.
func TestManagedLies(t *testing.T) {
	t.Parallel()
	sealed := func(alg jose.KeyAlgorithm, enc jose.ContentEncryption, to func(asked string) string) func([]byte, map[string]any) {
		return func(asked []byte, body map[string]any) {
			var in struct {
				PublicKey struct {
					PEMKey struct{ Data string } `json:"pem_key"`
				} `json:"public_key"`
			}
			if err := json.Unmarshal(asked, &in); err != nil {
				panic(err)
			}
			text, err := sandbox.Seal(to(in.PublicKey.PEMKey.Data), "rk_live_C4n4ryC4n4ryC4n4ry", alg, enc)
			if err != nil {
				panic(err)
			}
			body["secret_key"].(map[string]any)["encrypted_secret"].(map[string]any)["ciphertext"] = text
		}
	}
	ours := func(asked string) string { return asked }
	theirs := publicPEM(t)
	set := func(name string, value any) func([]byte, map[string]any) {
		return func(_ []byte, body map[string]any) { body[name] = value }
	}
	for name, c := range map[string]struct {
		live bool
		edit func([]byte, map[string]any)
	}{
		"more permissions":        {false, set("permissions", []string{"customer_read", "charge_read"})},
		"write instead of read":   {false, set("permissions", []string{"customer_write"})},
		"fewer permissions":       {false, set("permissions", []string{})},
		"connect permissions":     {false, set("connect_permissions", []string{"customer_read"})},
		"a later end":             {false, set("expires_at", "2099-01-01T00:00:00Z")},
		"no end":                  {false, set("expires_at", nil)},
		"an end that is no time":  {false, set("expires_at", "soon")},
		"the other mode":          {false, set("livemode", true)},
		"another name":            {false, set("name", "admin")},
		"another kind":            {false, set("type", "publishable_key")},
		"an expired key":          {false, set("status", "expired")},
		"no secret":               {false, set("secret_key", nil)},
		"an unrestricted key":     {false, set("secret_key", map[string]any{"token": "sk_test_C4n4ryC4n4ryC4n4ry"})},
		"a key of the other mode": {false, set("secret_key", map[string]any{"token": "rk_live_C4n4ryC4n4ryC4n4ry"})},
		"a secret with spaces":    {false, set("secret_key", map[string]any{"token": "rk_test_C4n4ry C4n4ry C4n4ry"})},
		"a live key in the clear": {true, set("secret_key", map[string]any{"token": "rk_live_C4n4ryC4n4ryC4n4ry"})},
		"RSA-OAEP with SHA-1":     {true, sealed(jose.RSA_OAEP, jose.A256GCM, ours)},
		"RSA1_5":                  {true, sealed(jose.RSA1_5, jose.A256GCM, ours)},
		"A128GCM":                 {true, sealed(jose.RSA_OAEP_256, jose.A128GCM, ours)},
		"A256CBC-HS512":           {true, sealed(jose.RSA_OAEP_256, jose.A256CBC_HS512, ours)},
		"another recipient":       {true, sealed(jose.RSA_OAEP_256, jose.A256GCM, func(string) string { return theirs })},
		"no JWE": {true, func(_ []byte, body map[string]any) {
			body["secret_key"].(map[string]any)["encrypted_secret"].(map[string]any)["ciphertext"] = "C4n4ry.C4n4ry"
		}},
		"another format": {true, func(_ []byte, body map[string]any) {
			body["secret_key"].(map[string]any)["encrypted_secret"].(map[string]any)["format"] = "plain"
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newManaged(t, func(cfg *sandbox.Config) {
				if c.live {
					live(cfg)
				}
			})
			p := r.open(t, nil)
			r.Inject(sandbox.Fault{Action: createKey, Kind: sandbox.Lie, Edit: c.edit})
			m, err := p.Mint(t.Context(), r.intended(p, time.Hour, "customers:read"))
			if err == nil || len(m.Secret.Fields) > 0 {
				t.Fatal("handed out")
			}
			if errors.Is(err, broker.ErrNotMinted) {
				t.Error("says that nothing was minted")
			}
			holdsNoSecret(t, err)
			if k := r.Keys()[0]; !k.Expired {
				t.Error("the key was left alive")
			}
			r.logged(t)
		})
	}
	// The control: what is as asked for is handed out.
	r := newManaged(t, live)
	p := r.open(t, nil)
	r.Inject(sandbox.Fault{Action: createKey, Kind: sandbox.Lie, Edit: sealed(jose.RSA_OAEP_256, jose.A256GCM, ours)})
	if _, err := p.Mint(t.Context(), r.intended(p, time.Hour, "customers:read")); err != nil {
		t.Errorf("the truth: %v", err)
	}
	// An answer that does not say what the key may do: the key itself is asked.
	r.Inject(sandbox.Fault{Action: createKey, Kind: sandbox.Lie, Edit: func(_ []byte, body map[string]any) { delete(body, "permissions") }})
	if _, err := p.Mint(t.Context(), r.intended(p, time.Hour, "customers:read")); err != nil {
		t.Errorf("silent on permissions: %v", err)
	}
}

// holdsNoSecret walks an error and its causes.
func holdsNoSecret(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for _, verb := range []string{"%s", "%+v", "%#v"} {
		if text := fmt.Sprintf(verb, err); strings.Contains(text, "C4n4ry") {
			t.Errorf("%T shows a secret: %s", err, text)
		}
	}
	switch e := err.(type) { //nolint:errorlint // walks the tree by hand
	case interface{ Unwrap() error }:
		holdsNoSecret(t, e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, cause := range e.Unwrap() {
			holdsNoSecret(t, cause)
		}
	}
}

// Destroyed is said when Stripe refuses the key as expired, not when it says that the key is.
func TestManagedRevokeWaitsForTheRefusal(t *testing.T) {
	t.Parallel()
	r := newManaged(t, func(c *sandbox.Config) { live(c); c.ExpireLag = 9 * time.Second })
	p := r.open(t, nil)
	c, m := r.mint(t, p, r.intended(p, time.Hour, "customers:read"))
	// It is looked at until the caller's time is over: then the sweeper has to come again.
	_, err := p.Revoke(providertest.ExpireAfter(t.Context(), r.asked(t, "GET /v1/balance", 2)), c)
	if err == nil || !r.Keys()[0].Expired || !r.alive(t, c, m.Secret) {
		t.Fatalf("expired: %t, alive: %t, and Revoke says %v", r.Keys()[0].Expired, r.alive(t, c, m.Secret), err)
	}
	if e := broker.AsError(err); !e.Code.Retryable() || e.RetryAfter <= 0 {
		t.Errorf("%v, again after %s", e, e.RetryAfter)
	}
	r.clock.Advance(9 * time.Second)
	done, err := p.Revoke(t.Context(), c)
	if err != nil || done.Result != broker.ResultDestroyed || done.Basis != "refused_as_expired" || !done.EffectiveAt.Equal(r.clock.Now()) {
		t.Fatalf("%+v, %v", done, err)
	}
	if r.alive(t, c, m.Secret) {
		t.Error("it works")
	}
}

// A 401 that may be for the caller's address is no proof.
func TestManagedBlockedAddress(t *testing.T) {
	t.Parallel()
	r := newManaged(t, func(c *sandbox.Config) { c.ExpireLag = time.Hour })
	p := r.open(t, nil)
	c, _ := r.mint(t, p, r.intended(p, time.Hour, "customers:read"))
	r.Inject(sandbox.Fault{Action: "GET /v1/balance", Kind: sandbox.Refuse, Status: 401, Times: -1, Message: "The IP address 192.0.2.1 may not use this key. C4n4ry"})
	if done, err := p.Revoke(providertest.ExpireAfter(t.Context(), r.asked(t, "GET /v1/balance", 2)), c); err == nil {
		t.Errorf("%+v", done)
	}
	r.ClearFaults()
	r.Inject(sandbox.Fault{Action: "GET /v1/balance", Kind: sandbox.Refuse, Status: 401, Times: -1, Message: "Invalid API Key provided: rk_test_C4n4ry"})
	if done, err := p.Revoke(t.Context(), c); err != nil || done.Result != broker.ResultDestroyed {
		t.Errorf("a key that Stripe does not know: %+v, %v", done, err)
	}
	r.logged(t)
}

// A lost key is found by its name on whatever page it is, and expired. Nobody has its secret, so its status has to do, with
// the lag on top.
func TestManagedLostMint(t *testing.T) {
	t.Parallel()
	r := newManaged(t, func(c *sandbox.Config) { live(c); c.PageSize, c.ExpireLag = 2, 9*time.Second })
	p := r.open(t, nil)
	r.Inject(sandbox.Fault{Action: createKey, Kind: sandbox.DropReply})
	lost := r.intended(p, time.Hour, "customers:read")
	if _, err := p.Mint(t.Context(), lost); err == nil || errors.Is(err, broker.ErrNotMinted) {
		t.Fatalf("lost: %v", err)
	}
	for range 7 {
		r.mint(t, p, r.intended(p, time.Hour, "customers:read"))
	}
	r.AddKey(sandbox.Key{Name: "taskpass-" + string(lost.Version.ID) + "x", Permissions: []string{"customer_read"}})
	pages := r.Calls("GET /v2/iam/api_keys")
	done, err := p.Revoke(t.Context(), lost)
	if err != nil || done.Result != broker.ResultDestroyed || done.Basis != "status_expired" || !done.EffectiveAt.Equal(r.clock.Now().Add(time.Minute)) {
		t.Fatalf("%+v, %v", done, err)
	}
	if n := r.Calls("GET /v2/iam/api_keys") - pages; n != 5 {
		t.Errorf("%d pages of nine keys, two a page", n)
	}
	for _, k := range r.Keys() {
		if k.Expired != (k.Name == "taskpass-"+string(lost.Version.ID)) {
			t.Errorf("%s: expired %t", k.Name, k.Expired)
		}
	}
	// Once more: it is not among the live ones, and that is proof.
	if done, err := p.Revoke(t.Context(), lost); err != nil || done.Basis != "not_found" {
		t.Errorf("again: %+v, %v", done, err)
	}
}

// Absence is proof only when a creation cannot be on its way any more.
func TestManagedAbsence(t *testing.T) {
	t.Parallel()
	r := newManaged(t)
	r.config.Revocation.Settle = nil
	p := r.open(t, nil)
	c := r.intended(p, time.Hour, "customers:read")
	_, err := p.Revoke(t.Context(), c)
	if e := broker.AsError(err); err == nil || e.RetryAfter != time.Minute || !e.Code.Retryable() {
		t.Errorf("at once: %v, again after %s", err, e.RetryAfter)
	}
	r.clock.Advance(time.Minute)
	if done, err := p.Revoke(t.Context(), c); err != nil || done.Result != broker.ResultDestroyed || done.Basis != "not_found" {
		t.Errorf("a minute later: %+v, %v", done, err)
	}
}

// A list that leads elsewhere is not followed: the broker's key goes to Stripe only.
func TestManagedForeignPage(t *testing.T) {
	t.Parallel()
	for _, next := range []string{"https://evil.example/v2/iam/api_keys", "/v1/customers?limit=1", "//evil.example/v2/iam/api_keys?page=2", "/v2/iam/api_keys"} {
		r := newManaged(t)
		p := r.open(t, nil)
		r.Inject(sandbox.Fault{Action: "GET /v2/iam/api_keys", Kind: sandbox.Lie, Edit: func(_ []byte, body map[string]any) { body["next_page_url"] = next }})
		if done, err := p.Revoke(t.Context(), r.intended(p, time.Hour, "customers:read")); err == nil || r.Calls("") != 1 {
			t.Errorf("%s: %+v after %d calls", next, done, r.Calls(""))
		}
	}
}

// Without the preview, everything starts, and who asks is told what is missing.
func TestManagedUnavailable(t *testing.T) {
	t.Parallel()
	r := newManaged(t, func(c *sandbox.Config) { c.Preview = false })
	p := r.open(t, nil)
	if r.Calls("") != 0 {
		t.Error("the start asked Stripe")
	}
	_, err := p.Mint(t.Context(), r.intended(p, time.Hour, "customers:read"))
	e := broker.AsError(err)
	if !errors.Is(err, broker.ErrNotMinted) || e.Code != broker.CodeUpstreamRefused || !strings.Contains(e.Message, "private preview") || !strings.Contains(e.Message, account) {
		t.Errorf("%v", err)
	}
	keeper := unwrap(p).(broker.Keeper)
	if _, err := keeper.Keep(t.Context()); err == nil || !strings.Contains(err.Error(), "private preview") {
		t.Errorf("upkeep: %v", err)
	}
	with := newManaged(t)
	keeper = unwrap(with.open(t, nil)).(broker.Keeper)
	if next, err := keeper.Keep(t.Context()); err != nil || !next.After(with.clock.Now()) || keeper.Keeps() == "" {
		t.Errorf("with the preview: %s, %v", next, err)
	}
	elsewhere := newManaged(t)
	elsewhere.config.Account = "acct_other"
	_, err = elsewhere.open(t, nil).Mint(t.Context(), elsewhere.intended(p, time.Hour, "customers:read"))
	if e := broker.AsError(err); e.Code != broker.CodeUpstreamRefused {
		t.Errorf("another account: %v", err)
	}
}

func unwrap(p broker.Provider) broker.Provider { return p.(watchedMint).Provider }

// The broker's own key of the wrong kind never leaves the machine.
func TestOwnKey(t *testing.T) {
	t.Parallel()
	r := newManaged(t)
	for what, value := range map[string]string{
		"of the other mode": "sk_live_C4n4ryC4n4ryC4n4ry", "publishable": "pk_test_C4n4ryC4n4ryC4n4ry", "no key": "C4n4ry", "two lines": "sk_test_C4n4ryC4n4ry\nC4n4ry",
	} {
		r.config.SecretKey = r.file(t, "other", value)
		p := r.open(t, nil)
		_, err := p.Mint(t.Context(), r.intended(p, time.Hour, "customers:read"))
		if e := broker.AsError(err); !errors.Is(err, broker.ErrNotMinted) || e.Code != broker.CodeUpstreamRefused {
			t.Errorf("%s: %v", what, err)
		}
		holdsNoSecret(t, err)
	}
	if n := r.Calls(""); n != 0 {
		t.Errorf("%d calls", n)
	}
	// It is read anew each time: an operator replaces it without a restart.
	r.config.SecretKey = r.file(t, "other", testPlatform)
	p := r.open(t, nil)
	r.mint(t, p, r.intended(p, time.Hour, "customers:read"))
}

// Ends are looked up in what was handed out; where that cannot be read, nothing is claimed.
func TestManagedSafeFails(t *testing.T) {
	t.Parallel()
	r := newManaged(t)
	p := r.open(t, nil)
	c, _ := r.mint(t, p, r.intended(p, time.Hour, "customers:read"))
	r.safe.failing = errors.New("the keyset is gone")
	if done, err := p.Revoke(t.Context(), c); err == nil {
		t.Errorf("%+v", done)
	}
}

// publicPEM is somebody else's RSA key.
func publicPEM(t testing.TB) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}
