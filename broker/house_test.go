package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/broker/policy"
	"github.com/taskpass/taskpass/broker/seal"
	"github.com/taskpass/taskpass/broker/store"
)

var (
	orchestrator = broker.Caller{Name: "orch", Role: broker.RoleOrchestrator, Auth: "test", RequestID: "req-1"}
	stranger     = broker.Caller{Name: "stranger", Role: broker.RoleOrchestrator, Auth: "test"}
	auditor      = broker.Caller{Name: "aud", Role: broker.RoleAuditor, Auth: "test"}
	operator     = broker.Caller{Name: "ops", Role: broker.RoleOperator, Auth: "test"}
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

// vendor is an upstream that remembers what is alive there. mint and revoke, if set, are asked first: an error of theirs
// is what the broker gets, after the work if they call do.
type vendor struct {
	caps broker.Capabilities

	mu      sync.Mutex
	alive   map[broker.VersionID]bool
	minted  map[broker.VersionID]int // calls
	revoked map[broker.VersionID]int
	mint    func(ctx context.Context, c broker.Credential, do func()) error
	revoke  func(ctx context.Context, c broker.Credential) (broker.Revocation, error)
	lie     func(*broker.Minted) // alters what was made, as a reply that lies does
}

func newVendor() *vendor {
	return &vendor{
		caps: broker.Capabilities{
			MinTTL: time.Second, MaxTTL: 24 * time.Hour, SelfExpires: true, Revoke: broker.RevokeDestroy,
		},
		alive: map[broker.VersionID]bool{}, minted: map[broker.VersionID]int{}, revoked: map[broker.VersionID]int{},
	}
}

func (v *vendor) Capabilities() broker.Capabilities { return v.caps }

func (v *vendor) Upstream(broker.Credential) string { return "vendor:account" }

func (v *vendor) Mint(ctx context.Context, c broker.Credential) (broker.Minted, error) {
	v.mu.Lock()
	v.minted[c.Version.ID]++
	mint := v.mint
	v.mu.Unlock()
	do := func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.alive[c.Version.ID] = true
	}
	if mint != nil {
		if err := mint(ctx, c, do); err != nil {
			return broker.Minted{}, err
		}
	}
	do()
	value := broker.NewSecret("secret-of-" + string(c.Version.ID))
	minted := broker.Minted{
		Secret: broker.Bundle{
			Type: "api_key", Primary: "key",
			Fields: map[string]broker.Secret{"key": value}, Env: map[string]broker.Secret{"VENDOR_KEY": value},
		},
		UpstreamExpiresAt: c.Version.ExpiresAt, OwnID: true,
		UpstreamIDs: []string{"key-" + string(c.Version.ID)}, Trace: map[string]string{"key_id": "key-" + string(c.Version.ID)},
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.lie != nil {
		v.lie(&minted)
	}
	return minted, nil
}

func (v *vendor) Revoke(ctx context.Context, c broker.Credential) (broker.Revocation, error) {
	v.mu.Lock()
	v.revoked[c.Version.ID]++
	revoke := v.revoke
	v.mu.Unlock()
	if revoke != nil {
		if done, err := revoke(ctx, c); err != nil || done.Result != broker.ResultNone {
			return done, err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.alive, c.Version.ID)
	return broker.Revocation{Result: broker.ResultDestroyed, EffectiveAt: c.Version.IssuedAt, Basis: "deleted"}, nil
}

// behave sets what happens to calls from now on.
func (v *vendor) behave(
	mint func(ctx context.Context, c broker.Credential, do func()) error,
	revoke func(ctx context.Context, c broker.Credential) (broker.Revocation, error),
) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mint, v.revoke = mint, revoke
}

func (v *vendor) living() []broker.VersionID {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Sorted(maps.Keys(v.alive))
}

func (v *vendor) revocations(id broker.VersionID) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.revoked[id]
}

func down(context.Context, broker.Credential) (broker.Revocation, error) {
	return broker.Revocation{}, broker.Errorf(broker.CodeUpstreamError, "the vendor is down")
}

func profile(name, provider string, upstream broker.Provider) broker.Profile {
	return broker.Profile{
		Name: name, Provider: provider, Scopes: []string{"read", "write"},
		MinTTL: time.Second, DefaultTTL: time.Hour, MaxTTL: 2 * time.Hour,
		Allow: []broker.Rule{{Callers: []string{"orch*"}}}, Upstream: upstream,
	}
}

// house is a broker with a database of its own, one profile "p" of one vendor, and a clock that stands still.
type house struct {
	*broker.Broker
	t      *testing.T
	db     pgtest.DB
	store  *store.Store
	vendor *vendor
	clock  *clock
	cfg    broker.Config
}

func newHouse(t *testing.T, options ...func(*broker.Config)) *house {
	t.Helper()
	h := &house{t: t, db: pgtest.New(t), vendor: newVendor(), clock: &clock{now: time.Now()}}
	h.store = h.openStore()
	h.cfg = broker.Config{
		Ledger: h.store, Sealer: newSealer(t), Policy: policy.Policy{}, Clock: h.clock.Now,
		Profiles: broker.Profiles{"p": profile("p", "vendor", h.vendor)}, Logger: slog.New(slog.DiscardHandler),
		UpstreamTimeout: time.Minute, SweepEvery: 5 * time.Millisecond,
	}
	for _, option := range options {
		option(&h.cfg)
	}
	var err error
	if h.Broker, err = broker.New(h.cfg); err != nil {
		t.Fatal(err)
	}
	return h
}

func newSealer(t *testing.T) broker.Sealer {
	t.Helper()
	keyset, err := seal.NewKeyset()
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := seal.New(keyset)
	if err != nil {
		t.Fatal(err)
	}
	return sealer
}

// openStore is another process's connections to the same database.
func (h *house) openStore() *store.Store {
	h.t.Helper()
	s, err := store.Open(h.t.Context(), store.Config{URL: broker.NewSecret(h.db.URL(login))})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(s.Close)
	return s
}

// admin is the database as its superuser: for looking where the service may not, and for breaking things.
func (h *house) admin() *pgxpool.Pool {
	h.t.Helper()
	pool, err := pgxpool.New(h.t.Context(), h.db.AdminURL)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(pool.Close)
	return pool
}

func (h *house) exec(sql string, args ...any) {
	h.t.Helper()
	if _, err := h.admin().Exec(h.t.Context(), sql, args...); err != nil {
		h.t.Fatal(err)
	}
}

func ask(task string) broker.Request {
	return broker.Request{TaskID: task, AgentID: "agent-1", Profile: "p", Scopes: []string{"read"}}
}

func (h *house) issue(task string) broker.Issued {
	h.t.Helper()
	issued, err := h.Issue(h.t.Context(), orchestrator, ask(task), "")
	if err != nil {
		h.t.Fatalf("issue: %v (%v)", err, errors.Unwrap(err))
	}
	return issued
}

// only is the one credential of a task, as it stands.
func (h *house) only(task string) broker.Credential {
	h.t.Helper()
	list, _, err := h.List(h.t.Context(), operator, broker.Filter{TaskID: task, Limit: 2})
	if err != nil || len(list) != 1 {
		h.t.Fatalf("task %s has %d credentials: %v", task, len(list), err)
	}
	return list[0]
}

func (h *house) find(id broker.CredentialID) broker.Credential {
	h.t.Helper()
	c, err := h.Find(h.t.Context(), operator, id)
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

func (h *house) sweep() {
	h.t.Helper()
	if err := h.Sweep(h.t.Context()); err != nil {
		h.t.Fatalf("sweep: %v", err)
	}
}

// wait is how long an intent, or an attempt, may stay open before it is taken for abandoned, and a moment more.
func (h *house) wait() time.Duration { return h.cfg.UpstreamTimeout + 21*time.Second }

func (h *house) wantState(id broker.CredentialID, want broker.State) broker.Credential {
	h.t.Helper()
	c := h.find(id)
	if c.Version.State != want {
		h.t.Errorf("%s is %s, want %s (last error %q, due %s)", id, c.Version.State, want, c.Version.LastError,
			c.Version.DueAt.Sub(h.clock.Now()))
	}
	return c
}

// event is what the tests read of an audit event.
type event struct {
	Type    string                `json:"type"`
	Caller  struct{ Name string } `json:"caller"`
	TaskID  string                `json:"task_id"`
	AgentID string                `json:"agent_id"`
	Profile string                `json:"profile"`
	State   string                `json:"state"`
	Cause   string                `json:"cause"`
	Reason  string                `json:"reason"`
	Code    string                `json:"code"`
	Reasons []broker.Fault        `json:"reasons"`
	Scopes  []string              `json:"requested_scopes"`
	Trace   map[string]string     `json:"trace"`
}

// events are a task's, in the order of their writing; all of them for an empty task.
func (h *house) events(task string) []event {
	h.t.Helper()
	rows, err := h.store.Pool().Query(h.t.Context(), "SELECT body FROM events WHERE $1 IN ('', task_id) ORDER BY xid, seq", task)
	if err != nil {
		h.t.Fatal(err)
	}
	defer rows.Close()
	var list []event
	for rows.Next() {
		var body string
		var e event
		if err := errors.Join(rows.Scan(&body), json.Unmarshal([]byte(body), &e)); err != nil {
			h.t.Fatal(err)
		}
		list = append(list, e)
	}
	if err := rows.Err(); err != nil {
		h.t.Fatal(err)
	}
	return list
}

// wantEvents compares a task's events with "type by caller" lines.
func (h *house) wantEvents(task string, want ...string) {
	h.t.Helper()
	var got []string
	for _, e := range h.events(task) {
		got = append(got, e.Type+" by "+e.Caller.Name)
	}
	if !slices.Equal(got, want) {
		h.t.Errorf("events of %s:\n got %q\nwant %q", task, got, want)
	}
}

// spoilt is a ledger some of whose writes fail.
type spoilt struct {
	broker.Ledger
	mu     sync.Mutex
	begin  func() error
	move   func(c broker.Credential) error // asked before a move or an activation; at an error nothing is written
	record func() error
	answer func() error // what comes of an activation that was written
}

var errDisk = errors.New("the disk is gone")

func (s *spoilt) set(fn func(*spoilt)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(s)
}

func (s *spoilt) Begin(ctx context.Context, in broker.Intent) error {
	s.mu.Lock()
	begin := s.begin
	s.mu.Unlock()
	if begin != nil {
		if err := begin(); err != nil {
			return err
		}
	}
	return s.Ledger.Begin(ctx, in)
}

func (s *spoilt) Move(ctx context.Context, c broker.Credential, from []broker.State, sealed []byte, events ...broker.Event) error {
	s.mu.Lock()
	move := s.move
	s.mu.Unlock()
	if move != nil {
		if err := move(c); err != nil {
			return err
		}
	}
	return s.Ledger.Move(ctx, c, from, sealed, events...)
}

func (s *spoilt) Activate(ctx context.Context, c broker.Credential, sealed []byte, others time.Time, e broker.Event) error {
	s.mu.Lock()
	move, answer := s.move, s.answer
	s.mu.Unlock()
	if move != nil {
		if err := move(c); err != nil {
			return err
		}
	}
	err := s.Ledger.Activate(ctx, c, sealed, others, e)
	if answer != nil {
		return errors.Join(err, answer())
	}
	return err
}

func (s *spoilt) Record(ctx context.Context, events ...broker.Event) error {
	s.mu.Lock()
	record := s.record
	s.mu.Unlock()
	if record != nil {
		if err := record(); err != nil {
			return err
		}
	}
	return s.Ledger.Record(ctx, events...)
}

// failTo makes moves to some states fail.
func failTo(states ...broker.State) func(broker.Credential) error {
	return func(c broker.Credential) error {
		if slices.Contains(states, c.Version.State) {
			return errDisk
		}
		return nil
	}
}

// newSpoilt is a house whose ledger can be spoilt.
func newSpoilt(t *testing.T, options ...func(*broker.Config)) (*house, *spoilt) {
	t.Helper()
	s := &spoilt{}
	h := newHouse(t, append(options, func(c *broker.Config) { s.Ledger, c.Ledger = c.Ledger, s })...)
	return h, s
}

func codeOf(err error) broker.Code {
	if err == nil {
		return ""
	}
	return broker.AsError(err).Code
}

// eventually polls until ok, for at most 10 s.
func eventually(t *testing.T, what string, ok func() bool) {
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

func name(prefix string, i int) string { return fmt.Sprintf("%s-%03d", prefix, i) }
