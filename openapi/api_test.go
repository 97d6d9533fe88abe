package openapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/auth"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/broker/metrics"
	"github.com/taskpass/taskpass/broker/policy"
	"github.com/taskpass/taskpass/broker/seal"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/openapi"
	"github.com/taskpass/taskpass/providers"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/pool"
	"github.com/taskpass/taskpass/providers/providertest"
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

// logged collects the log, for tests that look into it.
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

// api is the whole house behind its HTTP contract: a real database, a sandboxed AWS, a pool of two keys in files, and a
// clock that stands still. Tokens are by caller: "orch" and "other" (orchestrators), "aud", "ops".
type api struct {
	t       testing.TB
	url     string
	db      pgtest.DB
	store   *store.Store
	broker  *broker.Broker
	callers *auth.Authenticator
	clock   *clock
	sandbox *sandbox.Sandbox
	log     *logged
	tokens  map[string]string
	dir     string // secrets in files: aws_id, aws_key, key-1, key-2
	http    *http.Client
	handler http.Handler
	limits  *broker.Concurrency
	ready   atomic.Pointer[error]
}

type setup struct {
	broker  broker.Config
	openapi openapi.Config
}

func newAPI(t testing.TB, options ...func(*api, *setup)) *api {
	t.Helper()
	a := &api{
		t: t, db: pgtest.New(t), clock: &clock{now: time.Now()}, log: &logged{}, tokens: map[string]string{}, dir: t.TempDir(),
	}
	logger := slog.New(slog.NewJSONHandler(a.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	if a.sandbox, err = sandbox.Start(sandbox.Config{Now: a.clock.Now}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.sandbox.Close(); err != nil {
			t.Error(err)
		}
	})
	if a.store, err = store.Open(t.Context(), store.Config{URL: a.databaseURL(), Logger: logger}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.store.Close)
	keyset, err := seal.NewKeyset()
	if err != nil {
		t.Fatal(err)
	}
	a.write("keyset", keyset.Reveal())
	sealer, err := seal.New(keyset)
	if err != nil {
		t.Fatal(err)
	}
	watch := metrics.New(a.store)
	a.callers = auth.New(a.store, a.clock.Now)
	s := &setup{
		broker: broker.Config{
			Ledger: a.store, Lists: a.store.Reading(), Sealer: sealer, Policy: policy.Policy{}, Clock: a.clock.Now, Logger: logger, Observer: watch,
			UpstreamTimeout: time.Minute, Profiles: a.profiles(sealer, logger),
		},
		openapi: openapi.Config{
			Audit: audit.NewLog(a.store.Reading().Pool()), Callers: a.callers, Logger: logger, Metrics: watch.Handler(), Requests: watch.Request,
			Ready: func(context.Context) error {
				if err := a.ready.Load(); err != nil {
					return *err
				}
				return nil
			},
		},
	}
	for _, option := range options {
		option(a, s)
	}
	if a.broker, err = broker.New(s.broker); err != nil {
		t.Fatal(err)
	}
	s.openapi.Broker = a.broker
	if s.openapi.Limits == nil {
		s.openapi.Limits = broker.NewConcurrency(broker.ConcurrencyBounds{})
	}
	a.limits = s.openapi.Limits
	if a.handler, err = openapi.New(s.openapi); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(a.handler)
	t.Cleanup(server.Close)
	a.url, a.http = server.URL, server.Client()
	for name, role := range map[string]broker.Role{
		"orch": broker.RoleOrchestrator, "other": broker.RoleOrchestrator, "aud": broker.RoleAuditor, "ops": broker.RoleOperator,
	} {
		a.tokens[name] = a.token(name, role, time.Hour)
	}
	return a
}

// dbPassword is asked for by no server of ours, and may show up nowhere all the same.
const dbPassword = "db-pass-CANARY-b7e1"

func (a *api) databaseURL() broker.Secret {
	a.t.Helper()
	u, err := url.Parse(a.db.URL(login))
	if err != nil {
		a.t.Fatal(err)
	}
	if _, has := u.User.Password(); !has {
		u.User = url.UserPassword(login, dbPassword)
	}
	return broker.NewSecret(u.String())
}

func (a *api) write(name, text string) broker.Ref {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	providertest.WriteSecret(a.t, path, text+"\n")
	return broker.Ref("file:" + path)
}

func (a *api) token(name string, role broker.Role, ttl time.Duration) string {
	a.t.Helper()
	secret, _, err := a.callers.Create(a.t.Context(), broker.Caller{Name: "test"}, name, role, ttl)
	if err != nil {
		a.t.Fatal(err)
	}
	return secret.Reveal()
}

// profiles are aws and pool, which "orch" and "other" may ask for anything; narrow, of which orch gets little; and
// theirs, of which it gets nothing.
func (a *api) profiles(sealer broker.Sealer, logger *slog.Logger) broker.Profiles {
	a.t.Helper()
	lag := 30 * time.Second
	statement := func(action string) aws.Scope {
		return aws.Scope{Statements: []aws.Statement{{
			Actions: []string{action}, Resources: []string{"arn:aws:s3:::" + sandbox.Bucket + "/tasks/{{.TaskID}}/*"},
		}}}
	}
	sections := map[string]providers.Config{
		"aws": {AWS: &aws.Config{
			RoleARN: sandbox.RoleARN, Region: sandbox.Region, Endpoint: a.sandbox.AWSURL, SourceIdentity: true,
			AccessKeyID: a.write("aws_id", a.sandbox.BrokerAccessKeyID), SecretAccessKey: a.write("aws_key", a.sandbox.BrokerSecretAccessKey),
			Tags: map[string]string{"task": "{{.TaskID}}"}, Revocation: aws.Revocation{Lag: &lag},
			Scopes: map[string]aws.Scope{"read": statement("s3:GetObject"), "write": statement("s3:PutObject")},
		}},
		"pool": {Pool: &pool.Config{
			Name: "models", Env: "MODEL_API_KEY", Scopes: []string{"call"}, Disclosed: "accept", Keys: []pool.Key{
				{Name: "key-1", Value: a.write("key-1", a.sandbox.ModelKeys[0])}, {Name: "key-2", Value: a.write("key-2", a.sandbox.ModelKeys[1])},
			},
		}},
	}
	deps := providers.Deps{Slots: a.store, Sealer: sealer, Denials: a.store, Clock: a.clock.Now, Logger: logger}
	profiles := broker.Profiles{}
	for name, section := range sections {
		upstream, err := providers.Open(a.t.Context(), name, section, deps)
		if err != nil {
			a.t.Fatal(err)
		}
		profiles[name] = broker.Profile{
			Name: name, Provider: name, Scopes: section.ScopeNames(name), Upstream: upstream,
			MinTTL: time.Minute, DefaultTTL: time.Hour, MaxTTL: 12 * time.Hour, Allow: []broker.Rule{{Callers: []string{"orch", "other"}}},
		}
	}
	narrow, theirs := profiles["aws"], profiles["aws"]
	narrow.Name, narrow.Allow = "narrow", []broker.Rule{{
		Callers: []string{"orch"}, Tasks: []string{"research-*"}, Scopes: []string{"read"}, MaxTTL: 10 * time.Minute,
	}}
	narrow.DefaultTTL = 5 * time.Minute
	theirs.Name, theirs.Allow = "theirs", []broker.Rule{{Callers: []string{"other"}}}
	profiles["narrow"], profiles["theirs"] = narrow, theirs
	return profiles
}

// answer is a response, read whole.
type answer struct {
	status int
	header http.Header
	body   string
}

// as a caller, or with no token for "".
func (a *api) call(as, method, path, body string, headers ...string) answer {
	a.t.Helper()
	got, err := a.try(a.t.Context(), as, method, path, body, headers...)
	if err != nil {
		a.t.Fatal(err)
	}
	return got
}

func (a *api) try(ctx context.Context, as, method, path, body string, headers ...string) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, a.url+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if body == "" {
		r.Body = http.NoBody
	}
	if as != "" {
		r.Header.Set("Authorization", "Bearer "+a.tokens[as])
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i+1] == "" {
			r.Header.Del(headers[i])
		} else {
			r.Header.Set(headers[i], headers[i+1])
		}
	}
	response, err := a.http.Do(r)
	if err != nil {
		return answer{}, err
	}
	text, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header, string(text)}, errors.Join(err, response.Body.Close())
}

// strict decodes with no field unknown and nothing behind.
func strict(t testing.TB, text string, into any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if d.More() {
		t.Fatalf("something stands behind the JSON: %s", text)
	}
}

// wellFormed tells what is wrong with a problem's form; nothing for one that is as the contract has it.
func wellFormed(got answer) (openapi.Problem, []string) {
	var wrong []string
	add := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	var p openapi.Problem
	d := json.NewDecoder(strings.NewReader(got.body))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return p, []string{fmt.Sprintf("status %d, no problem: %v: %.300q", got.status, err, got.body)}
	}
	code := broker.Code(p.Code)
	known := false
	for _, c := range broker.Codes() {
		known = known || c == code
	}
	if !known {
		add("the code %q is in no table", p.Code)
	}
	if got.status != code.Status() || p.Status != got.status {
		add("%s is answered with %d, in the body %d", code, got.status, p.Status)
	}
	if p.Type != "urn:taskpass:problem:"+p.Code || p.Title != http.StatusText(p.Status) || p.Detail == "" {
		add("type %q, title %q, detail %q", p.Type, p.Title, p.Detail)
	}
	if p.Retryable != code.Retryable() {
		add("%s is retryable: %v", code, p.Retryable)
	}
	if got.header.Get("Content-Type") != "application/problem+json" || got.header.Get("Cache-Control") != "no-store" {
		add("content type %q, cache control %q", got.header.Get("Content-Type"), got.header.Get("Cache-Control"))
	}
	if id := got.header.Get("X-Request-Id"); id == "" || id != p.RequestID {
		add("request id %q in the header, %q in the body", id, p.RequestID)
	}
	if (got.header.Get("WWW-Authenticate") != "") != (got.status == http.StatusUnauthorized) {
		add("WWW-Authenticate %q with %d", got.header.Get("WWW-Authenticate"), got.status)
	}
	after := got.header.Get("Retry-After")
	if n, err := strconv.Atoi(after); after != "" && (err != nil || n < 1 || float64(n) != p.RetryAfterSeconds) ||
		after == "" && p.RetryAfterSeconds != 0 || p.RetryAfterSeconds != math.Trunc(p.RetryAfterSeconds) {
		add("retry after %q in the header, %g in the body", after, p.RetryAfterSeconds)
	}
	for _, f := range p.Errors {
		if f.Reason == "" || f.Pointer != "" && !strings.HasPrefix(f.Pointer, "/") {
			add("fault %+v", f)
		}
	}
	return p, wrong
}

// want expects a problem of that code, in the contract's form.
func (a *api) want(got answer, code broker.Code) openapi.Problem {
	a.t.Helper()
	p, wrong := wellFormed(got)
	for _, w := range wrong {
		a.t.Errorf("%s", w)
	}
	if p.Code != string(code) {
		a.t.Errorf("answered %d %s (%s) %+v, want %s", got.status, p.Code, p.Detail, p.Errors, code)
	}
	return p
}

func request(profile, task, scopes string) string {
	return fmt.Sprintf(`{"task_id":%q,"agent_id":"agent-17","profile":%q,"scopes":[%s]}`, task, profile, scopes)
}

// issue gets an AWS session for a task of orch's.
func (a *api) issue(task string) openapi.IssuedCredential {
	a.t.Helper()
	return a.issued(a.call("orch", "POST", "/v1/credentials", request("aws", task, `"read"`)))
}

func (a *api) issued(got answer) openapi.IssuedCredential {
	a.t.Helper()
	if got.status != http.StatusCreated {
		a.t.Fatalf("answered %d: %s", got.status, got.body)
	}
	var c openapi.IssuedCredential
	strict(a.t, got.body, &c)
	return c
}

func (a *api) credential(got answer, status int) openapi.Credential {
	a.t.Helper()
	if got.status != status {
		a.t.Fatalf("answered %d, want %d: %s", got.status, status, got.body)
	}
	var c openapi.Credential
	strict(a.t, got.body, &c)
	return c
}

func (a *api) audit(query string) openapi.AuditPage {
	a.t.Helper()
	got := a.call("aud", "GET", "/v1/audit/events?"+query, "")
	if got.status != http.StatusOK {
		a.t.Fatalf("answered %d: %s", got.status, got.body)
	}
	var p openapi.AuditPage
	strict(a.t, got.body, &p)
	return p
}

// admin is the database as its superuser.
func (a *api) admin() *pgxpool.Pool {
	a.t.Helper()
	pool, err := pgxpool.New(a.t.Context(), a.db.AdminURL)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(pool.Close)
	return pool
}

func (a *api) sweep() {
	a.t.Helper()
	if err := a.broker.Sweep(a.t.Context()); err != nil {
		a.t.Fatal(err)
	}
}

// eventually polls until ok, for at most 10 s.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := time.After(2 * time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-limit:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}
