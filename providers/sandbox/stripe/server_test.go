package stripe_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	sdk "github.com/stripe/stripe-go/v76"
	"github.com/stripe/stripe-go/v76/customer"
	"github.com/stripe/stripe-go/v76/ephemeralkey"

	sandbox "github.com/taskpass/taskpass/providers/sandbox/stripe"
)

const version = "2026-08-26.preview"

type vendor struct {
	*sandbox.Server
	url    string
	client *http.Client
	own    string

	mu  sync.Mutex
	now time.Time
}

func (v *vendor) advance(d time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.now = v.now.Add(d)
}

func start(t *testing.T, edit ...func(*sandbox.Config)) *vendor {
	t.Helper()
	v := &vendor{own: "sk_test_ownownownownownown", now: time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)}
	cfg := sandbox.Config{SecretKey: v.own, Preview: true, Now: func() time.Time {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.now
	}}
	for _, e := range edit {
		e(&cfg)
	}
	v.own = cfg.SecretKey
	var err error
	if v.Server, err = sandbox.New(cfg); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(v.Server)
	transport := &http.Transport{}
	t.Cleanup(func() {
		v.Close()
		transport.CloseIdleConnections()
		web.Close()
	})
	v.url, v.client = web.URL, &http.Client{Transport: transport}
	return v
}

type result struct {
	status int
	header http.Header
	body   map[string]any
}

func (r result) code() string {
	e, _ := r.body["error"].(map[string]any)
	code, _ := e["code"].(string)
	return code
}

func (r result) message() string {
	e, _ := r.body["error"].(map[string]any)
	text, _ := e["message"].(string)
	return text
}

// do calls with a key; header is name, value, …
func (v *vendor) do(t *testing.T, key, method, path, body string, header ...string) result {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, v.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+key)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if strings.HasPrefix(path, "/v2/") {
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Stripe-Version", version)
		r.Header.Set("Stripe-Context", "acct_sandbox")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := v.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	out := result{status: res.StatusCode, header: res.Header}
	if err := json.Unmarshal(text, &out.body); err != nil {
		t.Fatalf("%s %s answers %s: %s", method, path, res.Status, text)
	}
	return out
}

// A key reads and writes what its permissions say, and nothing else; the refusal names the permission in Stripe's words.
func TestPermissions(t *testing.T) {
	t.Parallel()
	v := start(t)
	key := v.AddKey(sandbox.Key{Name: "k", Permissions: []string{"customer_write", "invoice_read"}})
	old := v.AddKey(sandbox.Key{Name: "old", Permissions: []string{"plan_read"}, OldWords: true})
	for _, c := range []struct {
		key, method, path string
		want              int
	}{
		{key, "GET", "/v1/customers?limit=1", 200}, // write implies read
		{key, "POST", "/v1/customers", 200},
		{key, "GET", "/v1/invoices?limit=1", 200},
		{key, "POST", "/v1/invoices", 403},
		{key, "GET", "/v1/charges", 403},
		{key, "POST", "/v1/refunds", 403},
		{old, "GET", "/v1/prices", 200},
		{old, "GET", "/v1/customers", 403},
		{v.own, "GET", "/v1/payouts", 200},
		{"rk_test_0123456789012345", "GET", "/v1/customers", 401},
		{key, "GET", "/v1/nothing", 404},
	} {
		if got := v.do(t, c.key, c.method, c.path, ""); got.status != c.want || got.header.Get("Request-Id") == "" {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, got.status, c.want)
		}
	}
	newer := v.do(t, key, "GET", "/v1/charges", "")
	older := v.do(t, old, "GET", "/v1/customers", "")
	if newer.code() != "more_permissions_required" || !strings.Contains(newer.message(), "('charge_read')") || !strings.Contains(newer.message(), key[len(key)-6:]) {
		t.Errorf("the newer form: %v", newer.body)
	}
	if older.code() != "" || !strings.Contains(older.message(), "'rak_customer_read'") {
		t.Errorf("the older form: %v", older.body)
	}
	if err := v.ExpireKey(key); err != nil {
		t.Fatal(err)
	}
	if got := v.do(t, key, "GET", "/v1/customers", ""); got.status != 401 || got.code() != "api_key_expired" {
		t.Errorf("an expired key: %d %s", got.status, got.code())
	}
}

// The same Idempotency-Key gives the same object, and another request under it is refused.
func TestIdempotency(t *testing.T) {
	t.Parallel()
	v := start(t)
	one := v.do(t, v.own, "POST", "/v1/customers", "name=a", "Idempotency-Key", "x")
	two := v.do(t, v.own, "POST", "/v1/customers", "name=a", "Idempotency-Key", "x")
	if one.body["id"] != two.body["id"] || two.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("%v, then %v", one.body["id"], two.body["id"])
	}
	other := v.do(t, v.own, "POST", "/v1/customers", "name=b", "Idempotency-Key", "x")
	if e, _ := other.body["error"].(map[string]any); other.status != 400 || e["type"] != "idempotency_error" {
		t.Errorf("another request: %v", other.body)
	}
	if got := v.do(t, v.own, "POST", "/v1/customers", "nonsense=1"); got.code() != "parameter_unknown" {
		t.Errorf("an unknown parameter: %v", got.body)
	}
}

func TestEphemeralKeys(t *testing.T) {
	t.Parallel()
	v := start(t)
	mine, other := v.AddObject("customers", nil), v.AddObject("customers", nil)
	if got := v.do(t, v.own, "POST", "/v1/ephemeral_keys", "customer="+mine); got.status != 400 {
		t.Errorf("without a version: %d", got.status)
	}
	got := v.do(t, v.own, "POST", "/v1/ephemeral_keys", "customer="+mine, "Stripe-Version", "2024-04-10")
	secret, _ := got.body["secret"].(string)
	if !strings.HasPrefix(secret, "ek_test_") {
		t.Fatalf("%v", got.body)
	}
	try := func(path string) int { return v.do(t, secret, "GET", path, "").status }
	if try("/v1/customers/"+mine) != 200 || try("/v1/customers/"+other) != 403 || try("/v1/customers") != 403 {
		t.Error("it is for one customer")
	}
	v.advance(time.Hour)
	if try("/v1/customers/"+mine) != 401 {
		t.Error("it works after its hour")
	}
	got = v.do(t, v.own, "POST", "/v1/ephemeral_keys", "customer="+mine, "Stripe-Version", "2024-04-10")
	secret, _ = got.body["secret"].(string)
	id, _ := got.body["id"].(string)
	if v.do(t, v.own, "DELETE", "/v1/ephemeral_keys/"+id, "").status != 200 || try("/v1/customers/"+mine) != 401 {
		t.Error("it works after its deletion")
	}
	if again := v.do(t, v.own, "DELETE", "/v1/ephemeral_keys/"+id, ""); again.code() != "resource_missing" {
		t.Errorf("deleted twice: %v", again.body)
	}
}

// publicPEM makes a key pair and gives the public half as it is sent.
func publicPEM(t *testing.T, bits int) (*rsa.PrivateKey, string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func TestPreviewLive(t *testing.T) {
	t.Parallel()
	v := start(t, func(c *sandbox.Config) { c.SecretKey = "sk_live_ownownownownownown" })
	key, public := publicPEM(t, 2048)
	create := func(public string) result {
		body, _ := json.Marshal(map[string]any{
			"type": "secret_key", "name": "n", "permissions": []string{"customer_read"}, "expires_at": v.now.Add(time.Hour),
			"public_key": map[string]any{"pem_key": map[string]any{"algorithm": "RSA", "data": public}},
		})
		return v.do(t, v.own, "POST", "/v2/iam/api_keys", string(body))
	}
	got := create(public)
	sealed, _ := got.body["secret_key"].(map[string]any)
	inner, _ := sealed["encrypted_secret"].(map[string]any)
	text, _ := inner["ciphertext"].(string)
	jwe, err := jose.ParseEncryptedCompact(text, []jose.KeyAlgorithm{jose.RSA_OAEP_256}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		t.Fatalf("%v in %v", err, got.body)
	}
	secret, err := jwe.Decrypt(key)
	if err != nil || !bytes.HasPrefix(secret, []byte("rk_live_")) {
		t.Fatal(err)
	}
	if sealed["token"] != nil {
		t.Error("a live secret in the clear")
	}
	if v.do(t, string(secret), "GET", "/v1/customers", "").status != 200 || v.do(t, string(secret), "GET", "/v1/charges", "").status != 403 {
		t.Error("it has not just its permissions")
	}
	v.advance(time.Hour)
	if v.do(t, string(secret), "GET", "/v1/customers", "").status != 401 {
		t.Error("it works after expires_at")
	}
	if got := create("no key"); got.status != 400 || !strings.HasPrefix(got.code(), "api_key_") {
		t.Errorf("a bad public key: %v", got.body)
	}
}

// Expiry bites late, by time or by uses; a list is paged; an empty list of permissions changes nothing; rotation is at once.
func TestPreviewLife(t *testing.T) {
	t.Parallel()
	v := start(t, func(c *sandbox.Config) { c.PageSize, c.ExpireLag, c.ExpireUses = 2, 9*time.Second, 1 })
	create := func(name string) (id, secret string) {
		got := v.do(t, v.own, "POST", "/v2/iam/api_keys", fmt.Sprintf(`{"type":"secret_key","name":%q,"permissions":["customer_read"]}`, name))
		id, _ = got.body["id"].(string)
		token, _ := got.body["secret_key"].(map[string]any)
		secret, _ = token["token"].(string)
		return id, secret
	}
	works := func(secret string) bool { return v.do(t, secret, "GET", "/v1/customers", "").status == 200 }
	id, secret := create("a")
	if got := v.do(t, v.own, "POST", "/v2/iam/api_keys/"+id+"/expire", ""); got.body["status"] != "expired" {
		t.Fatalf("%v", got.body)
	}
	for range 2 {
		if !works(secret) {
			t.Error("it was refused at once")
		}
	}
	v.advance(9 * time.Second)
	if works(secret) {
		t.Error("it works after the lag")
	}
	if got := v.do(t, v.own, "POST", "/v2/iam/api_keys/"+id+"/expire", ""); got.status != 400 {
		t.Errorf("expired twice: %v", got.body)
	}
	for _, name := range []string{"b", "c", "d", "e"} {
		create(name)
	}
	names, next := "", "/v2/iam/api_keys?limit=100&include_expired=true"
	for pages := 0; next != "" && pages < 5; pages++ {
		got := v.do(t, v.own, "GET", next, "")
		for _, k := range got.body["data"].([]any) {
			names += k.(map[string]any)["name"].(string)
		}
		next, _ = got.body["next_page_url"].(string)
	}
	if names != "edcba" {
		t.Errorf("the pages hold %s", names)
	}
	id, secret = create("f")
	v.do(t, v.own, "POST", "/v2/iam/api_keys/"+id, `{"permissions":[]}`)
	if !works(secret) {
		t.Error("an empty list of permissions changed something")
	}
	rotated := v.do(t, v.own, "POST", "/v2/iam/api_keys/"+id+"/rotate", "{}")
	if rotated.body["id"] == id || works(secret) || v.do(t, v.own, "GET", "/v2/iam/api_keys/"+id, "").status != 404 {
		t.Error("the rotated key is still there")
	}
}

func TestPreviewIsGuarded(t *testing.T) {
	t.Parallel()
	without := start(t, func(c *sandbox.Config) { c.Preview = false })
	if got := without.do(t, without.own, "GET", "/v2/iam/api_keys", ""); got.status != 404 || !strings.Contains(got.message(), "Unrecognized request URL") {
		t.Errorf("without the preview: %v", got.body)
	}
	v := start(t)
	restricted := v.AddKey(sandbox.Key{Permissions: []string{"customer_write"}})
	for what, got := range map[string]result{
		"a restricted key": v.do(t, restricted, "GET", "/v2/iam/api_keys", ""),
		"another version":  v.do(t, v.own, "GET", "/v2/iam/api_keys", "", "Stripe-Version", "2024-04-10"),
		"another account":  v.do(t, v.own, "GET", "/v2/iam/api_keys", "", "Stripe-Context", "acct_2"),
	} {
		if got.status < 400 {
			t.Errorf("%s: %d", what, got.status)
		}
	}
}

// Stripe's own library talks to it, and reads its errors.
func TestSDK(t *testing.T) {
	t.Parallel()
	v := start(t)
	backend := sdk.GetBackendWithConfig(sdk.APIBackend, &sdk.BackendConfig{
		URL: sdk.String(v.url), HTTPClient: v.client, MaxNetworkRetries: sdk.Int64(0), LeveledLogger: &sdk.LeveledLogger{Level: sdk.LevelNull},
	})
	made, err := customer.Client{B: backend, Key: v.own}.New(&sdk.CustomerParams{Name: sdk.String("a")})
	if err != nil {
		t.Fatal(err)
	}
	key, err := ephemeralkey.Client{B: backend, Key: v.own}.New(&sdk.EphemeralKeyParams{Customer: sdk.String(made.ID), StripeVersion: sdk.String("2024-04-10")})
	if err != nil || key.Secret == "" || key.Expires != v.now.Add(time.Hour).Unix() {
		t.Fatalf("%v", err)
	}
	v.Inject(sandbox.Fault{Action: "GET /v1/customers/*", Kind: sandbox.Throttle})
	_, err = customer.Client{B: backend, Key: v.own}.Get(made.ID, nil)
	if e, ok := errors.AsType[*sdk.Error](err); !ok || e.HTTPStatusCode != 429 || e.Code != "rate_limit" || e.RequestID == "" {
		t.Errorf("throttled: %T", err)
	}
	if n := v.Calls("GET /v1/customers/*"); n != 1 {
		t.Errorf("%d calls counted", n)
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	v := start(t)
	v.Inject(sandbox.Fault{Kind: sandbox.DropReply, Action: "POST /v1/customers"})
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, v.url+"/v1/customers", http.NoBody)
	r.Header.Set("Authorization", "Bearer "+v.own)
	if res, err := v.client.Do(r); err == nil {
		res.Body.Close()
		t.Error("an answer came")
	}
	if got := v.do(t, v.own, "GET", "/v1/customers", ""); len(got.body["data"].([]any)) != 1 {
		t.Error("the work was not done")
	}
	v.Inject(sandbox.Fault{Kind: sandbox.Lie, Action: "GET /v1/customers", Edit: func(_ []byte, body map[string]any) { body["object"] = "lie" }})
	if got := v.do(t, v.own, "GET", "/v1/customers", ""); got.body["object"] != "lie" {
		t.Error("it told the truth")
	}
	if got := v.do(t, v.own, "GET", "/v1/customers", ""); got.body["object"] != "list" {
		t.Error("it lied twice")
	}
}
