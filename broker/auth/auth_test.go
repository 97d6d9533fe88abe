package auth_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/auth"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/migrations"
)

const login = "taskpass_test"

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m, func(ctx context.Context, db pgtest.DB) error {
		return migrations.Up(ctx, db.AdminURL, migrations.Login{Name: login, Password: broker.NewSecret(db.Password)})
	}))
}

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

var admin = broker.Caller{Name: "cli:root", Role: broker.RoleOperator, Auth: "database"}

func open(t *testing.T) (*auth.Authenticator, *store.Store, *clock) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: broker.NewSecret(pgtest.New(t).URL(login))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	c := &clock{now: time.Now()}
	return auth.New(s, c.Now), s, c
}

func create(t *testing.T, a *auth.Authenticator, name string, role broker.Role, ttl time.Duration) (string, broker.Token) {
	t.Helper()
	secret, token, err := a.Create(t.Context(), admin, name, role, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return secret.Reveal(), token
}

// wants expects a refusal that does not repeat the token.
func wants(t *testing.T, a *auth.Authenticator, token string, code broker.Code) {
	t.Helper()
	caller, err := a.Authenticate(t.Context(), token)
	e, ok := errors.AsType[*broker.Error](err)
	if !ok || e.Code != code || caller != (broker.Caller{}) {
		t.Errorf("%.8q…: %+v, %v; want %s", token, caller, err, code)
	} else if len(token) > 8 && strings.Contains(e.Error(), token) {
		t.Errorf("the error repeats the token: %v", e)
	}
}

// slow counts looks at the ledger, and the first one waits.
type slow struct {
	*store.Store
	looks atomic.Int64
	begun chan struct{}
	goOn  chan struct{}
}

func (s *slow) FindToken(ctx context.Context, sha256 []byte) (broker.Token, error) {
	t, err := s.Store.FindToken(ctx, sha256)
	if s.looks.Add(1) == 1 {
		close(s.begun)
		<-s.goOn
	}
	return t, err
}

// P12: a burst of requests with one token costs few looks at the ledger. None of them is answered by a look that began
// before it came: the token may have been revoked in between.
func TestBurstOfOneToken(t *testing.T) {
	t.Parallel()
	_, s, clock := open(t)
	tokens := &slow{Store: s, begun: make(chan struct{}), goOn: make(chan struct{})}
	a := auth.New(tokens, clock.Now)
	secret, token := create(t, a, "orch", broker.RoleOrchestrator, time.Hour)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := a.Authenticate(t.Context(), secret); err != nil {
			t.Errorf("before the revocation: %v", err)
		}
	})
	<-tokens.begun
	if err := a.Revoke(t.Context(), admin, token.ID); err != nil {
		t.Fatal(err)
	}
	const many = 2000
	var ready sync.WaitGroup
	ready.Add(many)
	for range many {
		wg.Go(func() {
			ready.Done()
			wants(t, a, secret, broker.CodeTokenRevoked)
		})
	}
	ready.Wait()
	close(tokens.goOn)
	wg.Wait()
	if n := tokens.looks.Load(); n > many/10 {
		t.Errorf("%d looks for %d requests", n, many)
	}
}

func TestAuthenticate(t *testing.T) {
	t.Parallel()
	a, s, clock := open(t)
	for _, role := range []broker.Role{broker.RoleOrchestrator, broker.RoleAuditor, broker.RoleOperator} {
		secret, token := create(t, a, "c-"+string(role), role, time.Hour)
		caller, err := a.Authenticate(t.Context(), secret)
		if err != nil || caller != (broker.Caller{Name: "c-" + string(role), Role: role, Auth: "token:" + token.ID}) {
			t.Errorf("%s: %+v, %v", role, caller, err)
		}
	}
	good, token := create(t, a, "orch", broker.RoleOrchestrator, time.Hour)
	for _, bad := range []string{"", " ", "x", good[4:], good + "0", strings.ToUpper(good), "Bearer " + good, good[:39], "tpc_" + strings.Repeat("0", 36)} {
		wants(t, a, bad, broker.CodeUnauthenticated)
	}
	for _, prefix := range []broker.Prefix{broker.PrefixCaller, broker.PrefixTask, broker.PrefixTicket} {
		wants(t, a, broker.NewToken(prefix).Reveal(), broker.CodeUnauthenticated)
	}

	clock.Advance(time.Hour - time.Microsecond)
	if _, err := a.Authenticate(t.Context(), good); err != nil {
		t.Errorf("just before its end: %v", err)
	}
	clock.Advance(time.Microsecond)
	wants(t, a, good, broker.CodeTokenExpired)

	// Revoked says more than expired: somebody wanted it gone.
	if err := a.Revoke(t.Context(), admin, token.ID); err != nil {
		t.Fatal(err)
	}
	wants(t, a, good, broker.CodeTokenRevoked)

	s.Close()
	if _, err := a.Authenticate(t.Context(), good); broker.AsError(err).Code != broker.CodeUnavailable {
		t.Errorf("without a database: %v", err)
	}
}

// A token that was revoked is refused from that moment on, on every replica; others of the same caller are not.
func TestRevoke(t *testing.T) {
	t.Parallel()
	a, s, clock := open(t)
	replica := auth.New(s, clock.Now)
	one, token := create(t, a, "orch", broker.RoleOrchestrator, time.Hour)
	two, _ := create(t, a, "orch", broker.RoleOrchestrator, time.Hour)
	if _, err := replica.Authenticate(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	for range 2 { // doing it again changes nothing
		if err := a.Revoke(t.Context(), admin, token.ID); err != nil {
			t.Fatal(err)
		}
		clock.Advance(time.Second)
	}
	wants(t, replica, one, broker.CodeTokenRevoked)
	if _, err := replica.Authenticate(t.Context(), two); err != nil {
		t.Errorf("the caller's other token: %v", err)
	}
	list, err := s.Tokens(t.Context())
	if err != nil || len(list) != 2 {
		t.Fatalf("%d tokens, %v", len(list), err)
	}
	for _, l := range list {
		if l.ID == token.ID && !l.RevokedAt.Equal(token.CreatedAt.Truncate(time.Microsecond)) {
			t.Errorf("revoked at %s, the first time was %s", l.RevokedAt, token.CreatedAt)
		}
	}
	if err := a.Revoke(t.Context(), admin, broker.NewTokenID()); broker.AsError(err).Code != broker.CodeNotFound {
		t.Errorf("an unknown one: %v", err)
	}
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	a, s, _ := open(t)
	create(t, a, "orch", broker.RoleOrchestrator, time.Hour)
	for what, c := range map[string]struct {
		name string
		role broker.Role
		ttl  time.Duration
		code broker.Code
		at   string
	}{
		"no name":      {"", broker.RoleAuditor, time.Hour, broker.CodeInvalidRequest, "name"},
		"a bad name":   {"a/b", broker.RoleAuditor, time.Hour, broker.CodeInvalidRequest, "name"},
		"no role":      {"x", "", time.Hour, broker.CodeInvalidRequest, "role"},
		"a bad role":   {"x", "root", time.Hour, broker.CodeInvalidRequest, "role"},
		"an agent":     {"x", "agent", time.Hour, broker.CodeInvalidRequest, "role"},
		"no ttl":       {"x", broker.RoleAuditor, 0, broker.CodeInvalidRequest, "ttl"},
		"negative":     {"x", broker.RoleAuditor, -time.Hour, broker.CodeInvalidRequest, "ttl"},
		"too long":     {"x", broker.RoleAuditor, auth.MaxTokenTTL + time.Second, broker.CodeInvalidRequest, "ttl"},
		"another role": {"orch", broker.RoleAuditor, time.Hour, broker.CodeConflict, ""},
	} {
		secret, _, err := a.Create(t.Context(), admin, c.name, c.role, c.ttl)
		e := broker.AsError(err)
		if err == nil || e.Code != c.code || c.at != "" && (len(e.Faults) != 1 || e.Faults[0].Pointer != c.at) {
			t.Errorf("%s: %v, %q", what, err, secret.Reveal())
		}
	}
	if list, err := s.Tokens(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("%d tokens, %v", len(list), err)
	}
	create(t, a, "x", broker.RoleAuditor, auth.MaxTokenTTL)
}

// Tokens are on the record by their public ids; the database has their hashes and nothing else of them.
func TestRecord(t *testing.T) {
	t.Parallel()
	a, s, _ := open(t)
	secret, token := create(t, a, "orch", broker.RoleOrchestrator, time.Hour)
	if err := a.Revoke(t.Context(), admin, token.ID); err != nil {
		t.Fatal(err)
	}
	rows, err := s.Pool().Query(t.Context(), `SELECT type, caller, body, (SELECT string_agg(t::text, ' ') FROM tokens t) FROM events ORDER BY seq`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var types []string
	for rows.Next() {
		var kind, caller, body, tokens string
		if err := rows.Scan(&kind, &caller, &body, &tokens); err != nil {
			t.Fatal(err)
		}
		types = append(types, kind)
		if caller != "cli:root" || !strings.Contains(body, token.ID) {
			t.Errorf("%s by %s: %s", kind, caller, body)
		}
		if strings.Contains(body+tokens, secret) || strings.Contains(body+tokens, secret[4:34]) {
			t.Errorf("the token itself is in the database: %s %s", body, tokens)
		}
	}
	if got := strings.Join(types, " "); got != "token.created token.revoked" {
		t.Errorf("events: %s (%v)", got, rows.Err())
	}
}
