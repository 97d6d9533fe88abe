package console_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/audit/console"
	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/auth"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/broker/policy"
	"github.com/taskpass/taskpass/broker/seal"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/openapi"
	"github.com/taskpass/taskpass/providers"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/pool"
	"github.com/taskpass/taskpass/providers/sandbox"
)

// clock stands still until it is moved.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// logged collects the log.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// rig is the whole house with its console: a real database, a tree, sandboxed vendors, a clock that stands still, and two
// replicas. Callers: "orch", "aud", "ops". Profiles: "aws" and "pool".
type rig struct {
	t       testing.TB
	store   *store.Store
	admin   *pgxpool.Pool
	broker  *broker.Broker
	callers *auth.Authenticator
	clock   *clock
	log     *logged
	seq     *sequence.Sequencer
	tree    *sequence.Log
	signer  *tree.Signer
	urls    [2]string
	tokens  map[string]string
	ids     map[string]string // of the tokens
	secrets map[string]string // by what they are
	stop    context.CancelFunc
}

type setup struct{ console console.Config }

func newRig(t testing.TB, options ...func(*setup)) *rig {
	t.Helper()
	db := pgtest.New(t)
	r := &rig{t: t, clock: &clock{now: time.Now().UTC()}, log: &logged{}, tokens: map[string]string{}, ids: map[string]string{}, secrets: map[string]string{}}
	logger := slog.New(slog.NewJSONHandler(r.log, nil))
	vendors, err := sandbox.Start(sandbox.Config{Now: r.clock.Now})
	must(t, err)
	t.Cleanup(func() { must(t, vendors.Close()) })
	r.store, err = store.Open(t.Context(), store.Config{URL: broker.NewSecret(db.URL(login)), Logger: logger})
	must(t, err)
	t.Cleanup(r.store.Close)
	r.admin, err = pgxpool.New(t.Context(), db.AdminURL)
	must(t, err)
	t.Cleanup(r.admin.Close)
	keyset, err := seal.NewKeyset()
	must(t, err)
	sealer, err := seal.New(keyset)
	must(t, err)
	r.broker, err = broker.New(broker.Config{
		Ledger: r.store, Sealer: sealer, Policy: policy.Policy{}, Clock: r.clock.Now, Logger: logger, Profiles: r.profiles(vendors, logger),
	})
	must(t, err)
	r.callers = auth.New(r.store, r.clock.Now)
	private, _, err := tree.NewKey("taskpass.example/log")
	must(t, err)
	signer, err := tree.NewSigner("taskpass.example/log", private)
	must(t, err)
	r.signer = signer
	r.seq = newSequencer(t, r)
	r.tree = sequence.NewLog(r.store.Pool(), signer.Keys())
	stopping, stop := context.WithCancel(context.Background())
	r.stop = stop
	t.Cleanup(stop)
	for i := range r.urls {
		record := audit.NewLog(r.store.Pool())
		s := setup{console.Config{
			Record: record, Ledger: r.store, Tasks: r.store, Counts: r.store, Callers: r.callers, Recorder: r.broker, Sealer: sealer,
			Logger: logger, Tree: r.tree, Refused: r.seq.Refused, Stopping: stopping, Clock: r.clock.Now, Every: 20 * time.Millisecond,
		}}
		for _, o := range options {
			o(&s)
		}
		pages, err := console.New(s.console)
		must(t, err)
		api, err := openapi.New(openapi.Config{
			Broker: r.broker, Audit: record, Tree: r.tree, Callers: r.callers, Logger: logger, Stopping: stopping,
			Ready: func(context.Context) error { return nil }, Console: pages,
		})
		must(t, err)
		server := httptest.NewServer(api)
		t.Cleanup(server.Close)
		r.urls[i] = server.URL
	}
	for name, role := range map[string]broker.Role{"orch": broker.RoleOrchestrator, "aud": broker.RoleAuditor, "ops": broker.RoleOperator} {
		secret, token, err := r.callers.Create(t.Context(), broker.Caller{Name: "test"}, name, role, 48*time.Hour)
		must(t, err)
		r.tokens[name], r.ids[name], r.secrets["the token of "+name] = secret.Reveal(), token.ID, secret.Reveal()
	}
	r.secrets["the keyset"] = keyset.Reveal()
	return r
}

func newSequencer(t testing.TB, r *rig) *sequence.Sequencer {
	t.Helper()
	s, err := sequence.New(sequence.Config{Pool: r.store.Pool(), Signer: r.signer, Logger: slog.New(slog.NewJSONHandler(r.log, nil)), Clock: r.clock.Now})
	must(t, err)
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) profiles(vendors *sandbox.Sandbox, logger *slog.Logger) broker.Profiles {
	r.t.Helper()
	dir, lag := r.t.TempDir(), time.Duration(0)
	file := func(name, text string) broker.Ref {
		path := filepath.Join(dir, name)
		must(r.t, os.WriteFile(path, []byte(text+"\n"), 0o600))
		return broker.Ref("file:" + path)
	}
	r.secrets["the broker's AWS key"], r.secrets["a pool key"] = vendors.BrokerSecretAccessKey, vendors.ModelKeys[0]
	sections := map[string]providers.Config{
		"aws": {AWS: &aws.Config{
			RoleARN: sandbox.RoleARN, Region: sandbox.Region, Endpoint: vendors.AWSURL, SourceIdentity: true,
			AccessKeyID: file("id", vendors.BrokerAccessKeyID), SecretAccessKey: file("key", vendors.BrokerSecretAccessKey),
			Revocation: aws.Revocation{Lag: &lag},
			Scopes: map[string]aws.Scope{"read": {Statements: []aws.Statement{{
				Actions: []string{"s3:GetObject"}, Resources: []string{"arn:aws:s3:::" + sandbox.Bucket + "/tasks/{{.TaskID}}/*"},
			}}}},
		}},
		"pool": {Pool: &pool.Config{
			Name: "models", Env: "MODEL_API_KEY", Scopes: []string{"call"}, Disclosed: "accept",
			Keys: []pool.Key{{Name: "key-1", Value: file("key-1", vendors.ModelKeys[0])}},
		}},
	}
	profiles := broker.Profiles{}
	for name, section := range sections {
		upstream, err := providers.Open(r.t.Context(), name, section, providers.Deps{
			Slots: r.store, Denials: r.store, Accounts: r.store, Clock: r.clock.Now, Logger: logger,
		})
		must(r.t, err)
		profiles[name] = broker.Profile{
			Name: name, Provider: name, Scopes: section.ScopeNames(name), Upstream: upstream,
			MinTTL: time.Minute, DefaultTTL: time.Hour, MaxTTL: 12 * time.Hour, Allow: []broker.Rule{{Callers: []string{"*"}}},
		}
	}
	return profiles
}

// api calls the API as a caller.
func (r *rig) api(as, method, path, body string, headers ...string) (int, string) {
	r.t.Helper()
	q, err := http.NewRequestWithContext(r.t.Context(), method, r.urls[0]+path, strings.NewReader(body))
	must(r.t, err)
	q.Header.Set("Authorization", "Bearer "+r.tokens[as])
	if method == http.MethodPost {
		q.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		q.Header.Set(headers[i], headers[i+1])
	}
	answer, err := http.DefaultTransport.RoundTrip(q)
	must(r.t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	must(r.t, err)
	return answer.StatusCode, string(text)
}

// issue gets a credential, and keeps its secrets for the sweep.
func (r *rig) issue(profile, task, scope string) openapi.IssuedCredential {
	r.t.Helper()
	return r.issued(r.api("orch", "POST", "/v1/credentials",
		fmt.Sprintf(`{"task_id":%q,"agent_id":"agent-17","profile":%q,"scopes":[%q],"ttl_seconds":3600,"metadata":{"run":"42"}}`, task, profile, scope)))
}

func (r *rig) refresh(c openapi.IssuedCredential) openapi.IssuedCredential {
	r.t.Helper()
	return r.issued(r.api("orch", "POST", "/v1/credentials/"+c.ID+"/refresh", fmt.Sprintf(`{"version":%d}`, c.Version)))
}

func (r *rig) issued(status int, body string) openapi.IssuedCredential {
	r.t.Helper()
	var c openapi.IssuedCredential
	if status != http.StatusCreated || json.Unmarshal([]byte(body), &c) != nil {
		r.t.Fatalf("issuing answered %d: %s", status, body)
	}
	for name, value := range c.Secret.Fields {
		if name != "access_key_id" && name != "region" {
			r.secrets[fmt.Sprintf("%s of %s v%d", name, c.ID, c.Version)] = value
		}
	}
	return c
}

// fingerprint is the SHA-256 of a version's secret, as the pages take it.
func (r *rig) fingerprint(credential string, number int) (text string) {
	r.t.Helper()
	must(r.t, r.admin.QueryRow(r.t.Context(),
		"SELECT 'sha256:' || encode(fingerprint, 'hex') FROM versions WHERE credential_id = $1 AND number = $2", credential, number).Scan(&text))
	return text
}

// sign has rounds of the sequencer until all that is recorded is in the tree and signed.
func (r *rig) sign() tree.Checkpoint {
	r.t.Helper()
	var signed tree.Checkpoint
	eventually(r.t, "everything is signed", func() bool {
		r.clock.Advance(2 * time.Second)
		_, err := r.seq.Round(r.t.Context())
		must(r.t, err)
		waiting, _, err := r.tree.Lag(r.t.Context())
		must(r.t, err)
		signed, err = r.tree.Checkpoint(r.t.Context())
		return err == nil && waiting == 0
	})
	return signed
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	limit := time.After(2 * time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-limit:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

// visitor is a browser without scripts.
type visitor struct {
	r    *rig
	http *http.Client
}

func (r *rig) visitor() *visitor {
	r.t.Helper()
	jar, err := cookiejar.New(nil)
	must(r.t, err)
	transport := &http.Transport{}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &visitor{r, &http.Client{Jar: jar, Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// page is an answer, read whole.
type page struct {
	status int
	header http.Header
	body   string
}

func (v *visitor) do(method, target, body string, headers ...string) page {
	v.r.t.Helper()
	if strings.HasPrefix(target, "/") {
		target = v.r.urls[0] + target
	}
	q, err := http.NewRequestWithContext(v.r.t.Context(), method, target, strings.NewReader(body))
	must(v.r.t, err)
	if method == http.MethodPost {
		q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		q.Header.Set(headers[i], headers[i+1])
	}
	answer, err := v.http.Do(q)
	must(v.r.t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	must(v.r.t, err)
	return page{answer.StatusCode, answer.Header, string(text)}
}

func (v *visitor) get(target string) page { v.r.t.Helper(); return v.do("GET", target, "") }

// see gets a page that must be there.
func (v *visitor) see(target string) string {
	v.r.t.Helper()
	p := v.get(target)
	if p.status != http.StatusOK {
		v.r.t.Fatalf("%s answered %d: %s", target, p.status, p.body)
	}
	return p.body
}

var nonceField = regexp.MustCompile(`name="nonce" value="([^"]+)"`)

// try fills in the sign-in form.
func (v *visitor) try(token, next string, headers ...string) page {
	v.r.t.Helper()
	found := nonceField.FindStringSubmatch(v.see("/console/signin"))
	if found == nil {
		v.r.t.Fatal("the sign-in form has no nonce")
	}
	return v.do("POST", "/console/signin", url.Values{"token": {token}, "nonce": {found[1]}, "next": {next}}.Encode(), headers...)
}

// enter signs in as a caller.
func (r *rig) enter(as string) *visitor {
	r.t.Helper()
	v := r.visitor()
	if p := v.try(r.tokens[as], ""); p.status != http.StatusSeeOther || p.header.Get("Location") != "/" {
		r.t.Fatalf("signing in answered %d to %s", p.status, p.header.Get("Location"))
	}
	return v
}
