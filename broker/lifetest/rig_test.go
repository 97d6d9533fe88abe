package lifetest

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	smithyhttp "github.com/aws/smithy-go/transport/http"
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
	"github.com/taskpass/taskpass/openapi/client"
	"github.com/taskpass/taskpass/providers"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/pool"
	"github.com/taskpass/taskpass/providers/providertest"
	vendor "github.com/taskpass/taskpass/providers/sandbox/aws"
)

// Terms of the rig's profiles.
const (
	ttl         = time.Hour
	maxTTL      = 2 * time.Hour
	maxLifetime = 4 * time.Hour
	overlap     = 5 * time.Minute
	ticketTTL   = 8 * time.Minute
	keysOfPool  = 3

	bucket     = "data"
	rolePolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`
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

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// rig is two replicas of the house on one database, before one vendor. Profiles: "aws" (deny, no lag), "strict" (the same,
// and a ticket's reuse revokes), "cutoff" (on a role of its own, with the cut-off), "none" (the vendor can end nothing early), "pool" (three keys in files). Callers: "orch"
// and "other" (orchestrators), "aud", "ops".
type rig struct {
	test     testing.TB // whose resources these are
	t        tb         // to whom faults are told
	db       pgtest.DB
	admin    *pgxpool.Pool
	clock    *clock
	vendor   *vendor.Server
	front    *front
	url      string // of the vendor
	http     *http.Client
	replicas [2]*replica
	tokens   map[string]string
	dir      string
	turn     atomic.Int64
}

// tb is what a test and a step of a rapid one have in common.
type tb interface {
	Helper()
	Logf(format string, args ...any)
	Error(args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// replica is one process's worth of the house.
type replica struct {
	store   *ledger
	broker  *broker.Broker
	callers *auth.Authenticator
	limits  *broker.Concurrency
	url     string
}

func newRig(t testing.TB, options ...func(*broker.Config)) *rig {
	t.Helper()
	r := &rig{
		test: t, t: t, db: pgtest.New(t), clock: &clock{now: time.Now().UTC().Truncate(time.Second)}, tokens: map[string]string{}, dir: t.TempDir(),
	}
	var err error
	if r.admin, err = pgxpool.New(t.Context(), r.db.AdminURL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.admin.Close)
	r.openVendor()
	keyset, err := seal.NewKeyset()
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := seal.New(keyset)
	if err != nil {
		t.Fatal(err)
	}
	for i := range keysOfPool {
		r.writeKey(i, "value")
	}
	for i := range r.replicas {
		r.replicas[i] = r.openReplica(sealer, options)
	}
	r.makeTokens()
	return r
}

func (r *rig) makeTokens() {
	r.t.Helper()
	for name, role := range map[string]broker.Role{
		"orch": broker.RoleOrchestrator, "other": broker.RoleOrchestrator, "aud": broker.RoleAuditor, "ops": broker.RoleOperator,
	} {
		secret, _, err := r.replicas[0].callers.Create(context.Background(), broker.Caller{Name: "test"}, name, role, 90*24*time.Hour)
		if err != nil {
			r.t.Fatal(err)
		}
		r.tokens[name] = secret.Reveal()
	}
}

func (r *rig) openVendor() {
	r.t.Helper()
	var err error
	r.vendor, err = vendor.New(vendor.Config{
		AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: "the-brokers-own-key", Now: r.clock.Now, MaxSkew: -1,
		Roles: []vendor.Role{
			{Name: "deny", MaxSessionDuration: 12 * time.Hour, Policy: rolePolicy},
			{Name: "cutoff", MaxSessionDuration: 12 * time.Hour, Policy: rolePolicy},
			{Name: "none", MaxSessionDuration: 12 * time.Hour, Policy: rolePolicy},
		},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.vendor.CreateBucket(bucket)
	r.front = newFront(r.vendor)
	web := httptest.NewServer(r.front)
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	r.test.Cleanup(func() {
		r.vendor.Close()
		transport.CloseIdleConnections()
		web.CloseClientConnections()
		web.Close()
	})
	r.url, r.http = web.URL, &http.Client{Transport: transport}
}

func (r *rig) write(name, text string) broker.Ref {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	providertest.WriteSecret(r.test, path, text+"\n")
	return broker.Ref("file:" + path)
}

// writeKey gives the pool's i-th key a value that begins with the text.
func (r *rig) writeKey(i int, text string) broker.Ref {
	name := "key-" + string(rune('1'+i))
	return r.write(name, text+"-of-"+name)
}

func (r *rig) openReplica(sealer broker.Sealer, options []func(*broker.Config)) *replica {
	t := r.test
	t.Helper()
	logger := slog.New(slog.DiscardHandler)
	if os.Getenv("LIFETEST_LOG") != "" {
		logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	s, err := store.Open(t.Context(), store.Config{URL: broker.NewSecret(r.db.URL(login)), Logger: logger, MaxConns: 12})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	watch := metrics.New(s)
	p := &replica{store: &ledger{Store: s}, callers: auth.New(s, r.clock.Now), limits: broker.NewConcurrency(broker.ConcurrencyBounds{})}
	cfg := broker.Config{
		Ledger: p.store, Sealer: sealer, Policy: policy.Policy{}, Clock: r.clock.Now, Logger: logger, Observer: watch,
		Profiles: r.profiles(s, sealer, logger), UpstreamTimeout: time.Minute, SweepEvery: 20 * time.Millisecond, LookEvery: time.Hour,
	}
	for _, option := range options {
		option(&cfg)
	}
	if p.broker, err = broker.New(cfg); err != nil {
		t.Fatal(err)
	}
	handler, err := openapi.New(openapi.Config{
		Broker: p.broker, Audit: audit.NewLog(s.Pool()), Callers: p.callers, Logger: logger, Limits: p.limits,
		Metrics: watch.Handler(), Requests: watch.Request, Ready: func(context.Context) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(handler)
	t.Cleanup(web.Close)
	p.url = web.URL
	return p
}

func (r *rig) profiles(s *store.Store, sealer broker.Sealer, logger *slog.Logger) broker.Profiles {
	t := r.test
	t.Helper()
	var noLag time.Duration
	section := func(role, mode string) providers.Config {
		return providers.Config{AWS: &aws.Config{
			RoleARN: r.vendor.RoleARN(role), Region: "eu-west-1", Endpoint: r.url,
			AccessKeyID: r.write("aws_id", "AKIAIOSFODNN7EXAMPLE"), SecretAccessKey: r.write("aws_key", "the-brokers-own-key"),
			Revocation: aws.Revocation{Mode: mode, Lag: &noLag},
			Scopes: map[string]aws.Scope{"read": {Statements: []aws.Statement{{
				Actions: []string{"s3:GetObject"}, Resources: []string{"arn:aws:s3:::" + bucket + "/tasks/{{.TaskID}}/*"},
			}}}},
		}}
	}
	cutoff := section("cutoff", "deny")
	cutoff.AWS.Revocation.CutOff = "accept"
	keys := pool.Config{Name: "models", Scopes: []string{"read"}, Disclosed: "accept"}
	for i := range keysOfPool {
		ref := r.writeKey(i, "value")
		keys.Keys = append(keys.Keys, pool.Key{Name: "key-" + string(rune('1'+i)), Value: ref})
	}
	profiles := broker.Profiles{}
	for name, section := range map[string]providers.Config{
		"aws": section("deny", "deny"), "strict": section("deny", "deny"), "none": section("none", "none"), "pool": {Pool: &keys},
		"cutoff": cutoff,
	} {
		kind := "aws"
		if name == "pool" {
			kind = name
		}
		upstream, err := providers.Open(t.Context(), kind, section, providers.Deps{Slots: s, Sealer: sealer, Denials: s, Clock: r.clock.Now, Logger: logger})
		if err != nil {
			t.Fatal(err)
		}
		profiles[name] = broker.Profile{
			Name: name, Provider: kind, Scopes: section.ScopeNames(kind), Upstream: upstream,
			MinTTL: time.Minute, DefaultTTL: ttl, MaxTTL: maxTTL, MaxLifetime: maxLifetime, Overlap: overlap, TicketTTL: ticketTTL,
			RevokeOnReuse: name == "strict", Allow: []broker.Rule{{Callers: []string{"orch", "other"}}},
		}
	}
	return profiles
}

// sweep does what is due on one replica, and on the other.
func (r *rig) sweep() {
	r.t.Helper()
	for _, p := range r.replicas {
		if err := p.broker.Sweep(context.Background()); err != nil {
			r.t.Errorf("sweep: %v", err)
		}
	}
}

// settled sweeps until what became due by the sweeping is done too.
func (r *rig) settled() {
	r.t.Helper()
	r.sweep()
	r.sweep()
}

// run has both replicas' sweepers work until the test ends or stop is called.
func (r *rig) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, p := range r.replicas {
		wg.Go(func() { p.broker.Run(ctx) })
	}
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	r.test.Cleanup(stop)
	return stop
}

// alive asks the vendor whether a secret works for a task: by reading an object that only this task may read.
func (r *rig) alive(secret client.Secret, task string) bool {
	r.t.Helper()
	f := secret.Fields
	if f["access_key_id"] == "" {
		r.t.Errorf("no AWS secret: %v", secret.Type)
		return false
	}
	key := "tasks/" + task + "/brief.txt"
	r.vendor.PutObject(bucket, key, []byte("do it"))
	c := s3.NewFromConfig(sdk.Config{
		Region: "eu-west-1", BaseEndpoint: &r.url, HTTPClient: r.http, Retryer: func() sdk.Retryer { return sdk.NopRetryer{} },
		Credentials: credentials.NewStaticCredentialsProvider(f["access_key_id"], f["secret_access_key"], f["session_token"]),
	}, func(o *s3.Options) { o.UsePathStyle = true })
	out, err := c.GetObject(context.Background(), &s3.GetObjectInput{Bucket: sdk.String(bucket), Key: &key})
	if err == nil {
		_ = out.Body.Close()
		return true
	}
	if re, ok := errors.AsType[*smithyhttp.ResponseError](err); !ok || re.HTTPStatusCode() != http.StatusForbidden && !strings.Contains(err.Error(), "ExpiredToken") {
		r.t.Errorf("the vendor did not say yes or no: %v", err)
	}
	return false
}

func (r *rig) wantAlive(what string, secret client.Secret, task string, want bool) {
	r.t.Helper()
	if got := r.alive(secret, task); got != want {
		r.t.Errorf("%s: it works upstream: %v, want %v", what, got, want)
	}
}

// one reads one value of the database.
func one[T any](r *rig, sql string, args ...any) T {
	r.t.Helper()
	var v T
	if err := r.admin.QueryRow(context.Background(), sql, args...).Scan(&v); err != nil {
		r.t.Errorf("%s: %v", sql, err)
	}
	return v
}

func (r *rig) exec(sql string, args ...any) {
	r.t.Helper()
	if _, err := r.admin.Exec(context.Background(), sql, args...); err != nil {
		r.t.Fatalf("%s: %v", sql, err)
	}
}

// event is an audit event, as the contract shows it.
type event = client.AuditEvent

// events are the record of a task, in its order; of all for "".
func (r *rig) events(task string) []event {
	r.t.Helper()
	rows, err := r.admin.Query(context.Background(), "SELECT body FROM events WHERE $1 IN ('', task_id) ORDER BY xid, seq", task)
	if err != nil {
		r.t.Fatal(err)
	}
	defer rows.Close()
	var list []event
	for rows.Next() {
		var body string
		var e event
		if err := errors.Join(rows.Scan(&body), json.Unmarshal([]byte(body), &e)); err != nil {
			r.t.Fatal(err)
		}
		list = append(list, e)
	}
	return list
}

func types(list []event) []string {
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = e.Type
	}
	return out
}

func (r *rig) countEvents(task string, t broker.EventType) int {
	r.t.Helper()
	n := 0
	for _, e := range r.events(task) {
		if e.Type == string(t) {
			n++
		}
	}
	return n
}

// illegal tells which versions' events do not follow the state diagram. Events that change no state are left out.
func illegal(list []event) []string {
	var wrong []string
	at := map[string]broker.State{}
	for _, e := range list {
		switch broker.EventType(e.Type) {
		case broker.EventResolved, broker.EventTicketReused, broker.EventRefused, broker.EventReported:
			continue
		}
		if e.VersionID == "" {
			continue
		}
		was, known := at[e.VersionID]
		now := broker.State(e.State)
		switch {
		case !known && now != broker.StateIssuing:
			wrong = append(wrong, e.CredentialID+": "+e.Type+" is the first event, in state "+e.State)
		case known && was != now && !slices.Contains(was.Next(), now):
			wrong = append(wrong, e.CredentialID+": "+e.Type+" takes a version from "+string(was)+" to "+e.State)
		}
		at[e.VersionID] = now
	}
	return wrong
}

// sound holds what must be true of any database at rest: events follow the diagram, each version is where its last event
// says, counts are right, and a key of a pool has a holder only while that may be alive.
func (r *rig) sound() {
	r.t.Helper()
	for _, w := range r.unsound() {
		r.t.Error(w)
	}
}

func (r *rig) unsound() []string {
	list := r.events("")
	wrong := illegal(list)
	last := map[string]string{}
	for _, e := range list {
		if t := broker.EventType(e.Type); e.VersionID != "" && t != broker.EventResolved && t != broker.EventTicketReused && t != broker.EventReported {
			last[e.VersionID] = e.State
		}
	}
	rows, err := r.admin.Query(context.Background(), "SELECT id, state FROM versions")
	if err != nil {
		return append(wrong, err.Error())
	}
	defer rows.Close()
	for rows.Next() {
		var id, state string
		if err := rows.Scan(&id, &state); err != nil {
			return append(wrong, err.Error())
		}
		// Revoking without an event is how an end at its time begins.
		if said := last[id]; said != state && state != "revoking" {
			wrong = append(wrong, "version "+id+" is "+state+", its last event says "+said)
		}
	}
	if n := one[int](r, recount); n != 0 {
		wrong = append(wrong, "live_counts differ from a recount")
	}
	if n := one[int](r, `SELECT count(*) FROM slots s WHERE s.state = 'held' AND NOT EXISTS
		(SELECT FROM versions v WHERE v.credential_id = s.credential_id AND v.due_at IS NOT NULL)`); n != 0 {
		wrong = append(wrong, "a key of the pool is held by a credential that has ended: it never comes back")
	}
	return wrong
}

const recount = `WITH real AS (
	SELECT kind, key, count(*) AS live FROM versions v JOIN credentials c ON c.id = v.credential_id,
		LATERAL (VALUES ('task', c.caller || '/' || c.task_id), ('agent', c.caller || '/' || c.agent_id),
			('profile', c.profile), ('caller', c.caller)) AS of (kind, key)
	WHERE v.due_at IS NOT NULL GROUP BY kind, key
), kept AS (SELECT kind, key, live FROM live_counts WHERE live <> 0)
SELECT count(*)::int FROM ((TABLE real EXCEPT TABLE kept) UNION ALL (TABLE kept EXCEPT TABLE real)) x`

// eventually polls until ok.
func eventually(t tb, what string, ok func() bool) {
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

// together runs n at once and waits.
func together(n int, fn func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() { <-start; fn(i) })
	}
	close(start)
	wg.Wait()
}
