package pool_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/providers/pool"
	"github.com/taskpass/taskpass/providers/pool/connect"
	"github.com/taskpass/taskpass/providers/providertest"
	"github.com/taskpass/taskpass/providers/sandbox/anthropic"
	"github.com/taskpass/taskpass/providers/sandbox/fault"
	"github.com/taskpass/taskpass/providers/sandbox/openai"
)

// Each vendor that can be told is held to the contract of all providers.
func TestVendorContracts(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	for name, subject := range map[string]func(*testing.T, *store.Store) providertest.Subject{
		"anthropic": anthropicSubject, "hook": hookSubject, "openai": openaiSubject,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			providertest.Run(t, func(t *testing.T) providertest.Subject { return subject(t, ledger) })
		})
	}
}

// post is what an agent does with a key: yes, or refused for what it is.
func post(t testing.TB, url, header, value string) bool {
	t.Helper()
	in, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"hello"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	in.Header.Set(header, value)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	out, err := (&http.Client{Transport: transport}).Do(in)
	if err != nil {
		t.Fatal(err)
	}
	_ = out.Body.Close()
	if out.StatusCode != http.StatusOK && out.StatusCode != http.StatusUnauthorized {
		t.Fatalf("the vendor answers %s", out.Status)
	}
	return out.StatusCode == http.StatusOK
}

// told is a subject of a pool with keys whose vendor is told to refuse them.
func told(t *testing.T, ledger *store.Store, cfg pool.Config, clock *providertest.Clock, alive func(key string) bool,
	goWrong func(providertest.Fault) (<-chan struct{}, bool), lie func(providertest.Lie) bool) providertest.Subject {
	t.Helper()
	if faults := cfg.Check(); len(faults) > 0 {
		t.Fatalf("configuration: %v", faults)
	}
	wire := newProxy(t, ledgerURL)
	open := func(s *store.Store) *pool.Provider {
		p, err := pool.New(cfg, pool.Deps{Slots: s, Sealer: sealer, Clock: clock.Now})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	r := &rig{name: cfg.Name}
	return providertest.Subject{
		Provider: open(openStore(t, wire.url)), Ledger: ledger, Clock: clock,
		Credential: func() broker.Credential { return r.credential("") },
		Alive: func(_ testing.TB, _ broker.Credential, secret broker.Bundle) bool {
			return alive(secret.Env["API_KEY"].Reveal())
		},
		Known: func(t testing.TB) []broker.VersionID {
			var ids []broker.VersionID
			for _, id := range r.holders(t, ledger) {
				c, err := ledger.Latest(t.Context(), id)
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, c.Version.ID)
			}
			return ids
		},
		Fault: func(t testing.TB, at providertest.Operation, f providertest.Fault) (<-chan struct{}, bool) {
			if at == providertest.Mint { // that goes to the database only, and is the plain pool's
				return nil, false
			}
			return goWrong(f)
		},
		Lie: func(_ testing.TB, at providertest.Operation, l providertest.Lie) bool {
			return at == providertest.Revoke && lie(l)
		},
		Lost:    func(testing.TB) broker.Bundle { return broker.Bundle{} },
		Replace: func(testing.TB, broker.Bundle) {},
	}
}

func vendorFault(q *fault.Queue, action string) func(providertest.Fault) (<-chan struct{}, bool) {
	return func(f providertest.Fault) (<-chan struct{}, bool) {
		kind := map[providertest.Fault]fault.Fault{
			providertest.Refuse:      {Action: action, Kind: fault.Refuse, Status: 403},
			providertest.Throttle:    {Action: action, Kind: fault.Throttle},
			providertest.ServerError: {Action: action, Kind: fault.Verbatim, Status: 500, Body: providertest.Canary},
			providertest.LoseReply:   {Action: action, Kind: fault.DropReply},
			providertest.Hang:        {Action: action, Kind: fault.Hang},
		}[f]
		n := q.Calls(action)
		q.Inject(kind)
		met := make(chan struct{})
		go func() { q.Await(action, n+1); close(met) }()
		return met, true
	}
}

// vendorLie alters the next answer to an action; secret is the JSON field of the value that is made.
func vendorLie(q *fault.Queue, action, secret string) func(providertest.Lie) bool {
	return func(l providertest.Lie) bool {
		value, whole := "", ""
		switch l {
		case providertest.LoginPage:
			whole = "<html>" + providertest.Canary + "</html>"
		case providertest.EmptyAnswer:
			whole = "{}"
		case providertest.NoSecret:
		case providertest.SpaceInSecret:
			value = "sk-C4n4ry\\r\\n"
		case providertest.HugeSecret:
			value = strings.Repeat("a", 5<<20)
		default:
			return false // nothing that is made here has an end
		}
		if whole == "" && secret == "" {
			return false
		}
		field := regexp.MustCompile(`"` + secret + `": *"[^"]*"`)
		q.Inject(fault.Fault{Action: action, Kind: fault.Lie, Edit: func(body []byte) []byte {
			if whole != "" {
				return []byte(whole)
			}
			return field.ReplaceAll(body, []byte(`"`+secret+`":"`+value+`"`))
		}})
		return true
	}
}

func anthropicSubject(t *testing.T, ledger *store.Store) providertest.Subject {
	clock, admin := providertest.NewClock(), "sk-ant-admin-C4n4ry"
	cfg := pool.Config{Name: "pool-" + string(broker.NewVersionID()), Scopes: []string{"use"}, Disclosed: "accept"}
	var keys []anthropic.Key
	for i := range providertest.AtOnce + 2 {
		id, secret := fmt.Sprintf("apikey_%d", i), fmt.Sprintf("sk-ant-C4n4ry-%d-%s", i, broker.NewVersionID())
		keys = append(keys, anthropic.Key{ID: id, Secret: secret})
		cfg.Keys = append(cfg.Keys, pool.Key{Name: fmt.Sprintf("k%d", i), Value: providertest.SecretFile(t, secret), VendorID: id})
	}
	vendor, err := anthropic.New(anthropic.Config{AdminKey: admin, Keys: keys, Now: clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(vendor)
	t.Cleanup(func() { vendor.Close(); web.Close() })
	cfg.Vendor = &connect.Config{Anthropic: &connect.Anthropic{AdminKey: providertest.SecretFile(t, admin), Endpoint: web.URL, Lag: new(time.Duration(0))}}
	return told(t, ledger, cfg, clock, func(key string) bool { return post(t, web.URL+"/v1/messages", "X-Api-Key", key) },
		vendorFault(vendor.Queue, anthropic.UpdateKey), vendorLie(vendor.Queue, anthropic.GetKey, ""))
}

// hooked is an operator's hook, and the vendor behind it.
type hooked struct {
	mu    sync.Mutex
	ended map[string]bool // fingerprints
}

func (h *hooked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.URL.Path == "/use" {
		sum := sha256.Sum256([]byte(r.Header.Get("X-Api-Key")))
		if h.ended[fmt.Sprintf("sha256:%x", sum)] {
			w.WriteHeader(http.StatusUnauthorized)
		}
		return
	}
	var told struct{ Fingerprint string }
	if json.Unmarshal(body, &told) != nil || told.Fingerprint == "" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	h.ended[told.Fingerprint] = true
}

func hookSubject(t *testing.T, ledger *store.Store) providertest.Subject {
	clock := providertest.NewClock()
	cfg := pool.Config{Name: "pool-" + string(broker.NewVersionID()), Scopes: []string{"use"}, Disclosed: "accept"}
	for i := range providertest.AtOnce + 2 {
		cfg.Keys = append(cfg.Keys, pool.Key{Name: fmt.Sprintf("k%d", i), Value: providertest.SecretFile(t, fmt.Sprintf("sk-C4n4ry-%d-%s", i, broker.NewVersionID()))})
	}
	vendor := &hooked{ended: map[string]bool{}}
	queue := fault.New()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/use" {
			vendor.ServeHTTP(w, r)
			return
		}
		body, _ := io.ReadAll(r.Body) // so that the server notices when the client goes away
		r.Body = io.NopCloser(bytes.NewReader(body))
		queue.Serve(w, r, "end", vendor.ServeHTTP, func(w http.ResponseWriter, status int) { w.WriteHeader(status) })
	}))
	t.Cleanup(func() { queue.Close(); web.Close() })
	cfg.Vendor = &connect.Config{HTTP: &connect.HTTP{URL: web.URL + "/end", Secret: providertest.SecretFile(t, "hook-C4n4ry"), Lag: new(time.Duration(0))}}
	return told(t, ledger, cfg, clock, func(key string) bool { return post(t, web.URL+"/use", "X-Api-Key", key) }, vendorFault(queue, "end"),
		func(l providertest.Lie) bool { return l == providertest.LoginPage && vendorLie(queue, "end", "")(l) })
}

func openaiSubject(t *testing.T, ledger *store.Store) providertest.Subject {
	clock, admin := providertest.NewClock(), "sk-admin-C4n4ry"
	vendor, err := openai.New(openai.Config{AdminKey: admin, Projects: []string{"proj_1"}, Now: clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	front := &lossy{next: vendor}
	web := httptest.NewServer(front)
	t.Cleanup(func() { vendor.Close(); web.Close() })
	config := func(url string) pool.Config {
		return pool.Config{Name: "made", Scopes: []string{"use"}, Vendor: &connect.Config{
			OpenAI: &connect.OpenAI{AdminKey: providertest.SecretFile(t, admin), Project: "proj_1", Endpoint: url, Lag: new(time.Duration(0))},
		}}
	}
	open := func(url string) *pool.Maker {
		p, err := pool.NewMaker(config(url), pool.Deps{Clock: clock.Now})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	r := &rig{name: "made"}
	return providertest.Subject{
		Provider: patient{open(web.URL), clock}, Unreachable: open("http://" + providertest.Refusing(t)), Ledger: ledger, Clock: clock,
		Credential: func() broker.Credential { return r.credential("") },
		Alive: func(t testing.TB, _ broker.Credential, secret broker.Bundle) bool {
			return post(t, web.URL+"/v1/chat/completions", "Authorization", "Bearer "+secret.Env["API_KEY"].Reveal())
		},
		Known: func(testing.TB) []broker.VersionID {
			var ids []broker.VersionID
			for _, a := range vendor.Accounts() {
				ids = append(ids, broker.VersionID(a.Name))
			}
			return ids
		},
		Calls: func() int { return vendor.Queue.Calls(openai.Create) },
		Fault: func(t testing.TB, at providertest.Operation, f providertest.Fault) (<-chan struct{}, bool) {
			action := openai.Create
			if at == providertest.Revoke {
				action = openai.List
				if f == providertest.LoseReply { // Go's client sends a GET again by itself
					action = openai.Delete
				}
			}
			if f == providertest.LoseReply && at == providertest.Mint {
				front.lose()
				return nil, true
			}
			return vendorFault(vendor.Queue, action)(f)
		},
		Lie: func(_ testing.TB, at providertest.Operation, l providertest.Lie) bool {
			if at == providertest.Revoke {
				return vendorLie(vendor.Queue, openai.Delete, "")(l)
			}
			return vendorLie(vendor.Queue, openai.Create, "value")(l)
		},
		Lost: func(testing.TB) broker.Bundle { return front.lost() },
	}
}

// patient does what the sweeper does: it comes back when it was told to.
type patient struct {
	*pool.Maker
	clock *providertest.Clock
}

func (p patient) Revoke(ctx context.Context, c broker.Credential) (broker.Revocation, error) {
	done, err := p.Maker.Revoke(ctx, c)
	if e := broker.AsError(err); err != nil && e.Code == broker.CodeUpstreamError && e.RetryAfter > 0 {
		p.clock.Advance(e.RetryAfter)
		return p.Maker.Revoke(ctx, c)
	}
	return done, err
}

// lossy keeps the answer of a call back, when it is told to.
type lossy struct {
	next http.Handler

	mu    sync.Mutex
	loses bool
	kept  []byte
}

func (l *lossy) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loses = true
}

func (l *lossy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	loses := l.loses && strings.HasSuffix(r.URL.Path, "/service_accounts") && r.Method == http.MethodPost
	l.mu.Unlock()
	if !loses {
		l.next.ServeHTTP(w, r)
		return
	}
	answer := httptest.NewRecorder()
	l.next.ServeHTTP(answer, r)
	l.mu.Lock()
	l.loses, l.kept = false, answer.Body.Bytes()
	l.mu.Unlock()
	panic(http.ErrAbortHandler)
}

func (l *lossy) lost() broker.Bundle {
	l.mu.Lock()
	defer l.mu.Unlock()
	var made struct {
		APIKey struct{ Value string } `json:"api_key"`
	}
	_ = json.Unmarshal(l.kept, &made)
	return broker.Bundle{Type: "api_key", Primary: "api_key", Env: map[string]broker.Secret{"API_KEY": broker.NewSecret(made.APIKey.Value)}}
}

// What is said of a vendor's admin key is what the stand-in lets it do, and no key is left behind.
func TestProve(t *testing.T) {
	t.Parallel()
	vendor, err := openai.New(openai.Config{AdminKey: "sk-admin-1", Projects: []string{"proj_1"}})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(vendor)
	t.Cleanup(func() { vendor.Close(); web.Close() })
	for _, c := range []struct {
		admin  string
		writes bool
		right  string
		want   broker.ProofState
	}{
		{"sk-admin-1", false, "listing keys", broker.Proven},
		{"sk-admin-1", false, "making and ending keys", broker.NotProven},
		{"sk-admin-1", true, "making and ending keys", broker.Proven},
		{"sk-admin-2", true, "listing keys", broker.Lacking},
	} {
		m, err := pool.NewMaker(pool.Config{Name: "made", Scopes: []string{"use"}, Vendor: &connect.Config{
			OpenAI: &connect.OpenAI{AdminKey: providertest.SecretFile(t, c.admin), Project: "proj_1", Endpoint: web.URL},
		}}, pool.Deps{Clock: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		proofs := m.Prove(t.Context(), c.writes)
		if !slices.ContainsFunc(proofs, func(p broker.Proof) bool { return p.Right == c.right && p.State == c.want }) {
			t.Errorf("%s, writes %t: %v; want %s %s", c.admin, c.writes, proofs, c.right, c.want)
		}
		if n := len(vendor.Accounts()); n > 0 {
			t.Errorf("left %d accounts behind", n)
		}
	}
}
