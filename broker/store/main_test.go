package store_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/migrations"
)

// login is the service's account in the tests' databases.
const login = "taskpass_store_test"

// database is where a test works.
type database struct{ name, admin, service string }

// shared is for tests that look at rows of their own only: a copy for each test would take most of the time.
var shared database

// own is a copy of the migrated template, for tests that look at everything or break things.
func own(t testing.TB) database {
	t.Helper()
	db := pgtest.New(t)
	return database{db.Name, db.AdminURL, db.URL(login)}
}

func TestMain(m *testing.M) {
	var dropShared func() error
	code := pgtest.Main(m, func(ctx context.Context, db pgtest.DB) error {
		u, err := url.Parse(db.AdminURL)
		if err != nil {
			return err
		}
		password, given := u.User.Password()
		l := migrations.Login{Name: login, Password: broker.NewSecret(password)}
		if err := migrations.Up(ctx, db.AdminURL, l); err != nil {
			return err
		}
		shared.name = "shared_" + string(broker.NewVersionID())
		if err := exec(ctx, u, "CREATE DATABASE "+shared.name); err != nil {
			return err
		}
		if os.Getenv("TASKPASS_TEST_DATABASE_URL") != "" { // a server that outlives us
			template := *u
			dropShared = func() error {
				return exec(context.Background(), &template, "DROP DATABASE "+shared.name+" WITH (FORCE)")
			}
		}
		u.Path = "/" + shared.name
		shared.admin = u.String()
		if err := migrations.Up(ctx, shared.admin, l); err != nil {
			return err
		}
		if u.User = url.User(login); given {
			u.User = url.UserPassword(login, password)
		}
		shared.service = u.String()
		return nil
	})
	var err error
	if dropShared != nil {
		err = dropShared()
	}
	if err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// exec runs one statement in the server's own database.
func exec(ctx context.Context, at *url.URL, statement string) error {
	u := *at
	u.Path = "/postgres"
	conn, err := pgx.Connect(ctx, u.String())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, statement)
	return err
}

// start is the tests' present. It is a whole microsecond, which is what PostgreSQL keeps.
var start = time.Now().UTC().Truncate(time.Microsecond)

// open is a replica's store on a database.
func open(t testing.TB, db database, edit ...func(*store.Config)) *store.Store {
	t.Helper()
	cfg := store.Config{URL: broker.NewSecret(db.service), MaxConns: 6}
	for _, e := range edit {
		e(&cfg)
	}
	s, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// admin connects as the superuser, past all rights.
func admin(t testing.TB, db database) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.admin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func read[T any](t testing.TB, q querier, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := q.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// credential is one that is about to be minted, of a task and an agent of its own.
func credential() broker.Credential {
	id := string(broker.NewVersionID())
	return broker.Credential{
		ID: broker.NewCredentialID(), TaskID: "task-" + id, AgentID: "agent-" + id, Profile: "s3", Provider: "aws-" + id,
		Caller: "orchestrator", Requested: []string{"read", "read"}, Scopes: []string{"read"},
		Metadata: map[string]string{"k": "v"}, TTL: time.Hour, CreatedAt: start,
		Version: broker.Version{
			ID: broker.NewVersionID(), Number: 1, State: broker.StateIssuing, IssuedAt: start, ExpiresAt: start.Add(time.Hour),
			SelfExpires: true, Upstream: "arn:aws:iam::1:role/x", DueAt: start.Add(time.Minute),
		},
	}
}

func event(kind broker.EventType, c broker.Credential) broker.Event {
	return broker.Event{
		ID: broker.NewEventID(), At: start, Type: kind, Caller: broker.Caller{Name: c.Caller, Role: broker.RoleOrchestrator},
		TaskID: c.TaskID, AgentID: c.AgentID, Profile: c.Profile, Provider: c.Provider, Credential: c.ID,
		Version: c.Version.Number, VersionID: c.Version.ID, State: c.Version.State, UpstreamIDs: c.Version.UpstreamIDs,
	}
}

// broken is an event that PostgreSQL refuses: its text holds a NUL.
func broken(c broker.Credential) broker.Event {
	e := event(broker.EventIssued, c)
	e.AgentID = "a\x00b"
	return e
}

func intent(events []broker.Event, list ...broker.Credential) broker.Intent {
	return broker.Intent{Credentials: list, Events: events, Limits: broker.DefaultLimits}
}

func begin(t testing.TB, s *store.Store, c broker.Credential) broker.Credential {
	t.Helper()
	if err := s.Begin(t.Context(), intent([]broker.Event{event(broker.EventIntended, c)}, c)); err != nil {
		t.Fatal(err)
	}
	return c
}

func activate(t testing.TB, s *store.Store, c broker.Credential) broker.Credential {
	t.Helper()
	c = into(c, broker.StateActive)
	if err := s.Activate(t.Context(), c, []byte("sealed"), start, event(broker.EventIssued, c)); err != nil {
		t.Fatal(err)
	}
	return c
}

func move(t testing.TB, s *store.Store, c broker.Credential, to broker.State) broker.Credential {
	t.Helper()
	from := c.Version.State
	c = into(c, to)
	if err := s.Move(t.Context(), c, []broker.State{from}, nil, event(broker.EventRevoked, c)); err != nil {
		t.Fatalf("%s to %s: %v", from, to, err)
	}
	return c
}

// into fills a version's fields as they belong to a state.
func into(c broker.Credential, to broker.State) broker.Credential {
	v := &c.Version
	v.State, v.DueAt, v.EndedAt = to, start.Add(time.Minute), time.Time{}
	switch to {
	case broker.StateActive:
		v.Fingerprint, v.UpstreamIDs, v.Trace = []byte("fingerprint"), []string{"ASIA" + string(v.ID)}, map[string]string{"request_id": "r"}
	case broker.StateRevoking, broker.StateStuck:
		v.Cause, v.Reason, v.Attempts, v.LastError = broker.CauseRevoked, "said so", 1, broker.CodeUpstreamError
	case broker.StateLost:
		v.Cause = broker.CauseAbandoned
	case broker.StateRevoked:
		v.Cause, v.Revocation = broker.CauseRevoked, broker.Revocation{Result: broker.ResultDenied, EffectiveAt: start, Basis: "b"}
	case broker.StateExpired:
		v.Cause, v.Revocation = broker.CauseExpired, broker.Revocation{Result: broker.ResultExpires, EffectiveAt: start, Basis: "b"}
	case broker.StateFailed, broker.StateIssuing:
	}
	if to.Ended() {
		v.DueAt, v.EndedAt = time.Time{}, start
	}
	return c
}

// events counts what is on the record about a credential.
func events(t testing.TB, s *store.Store, c broker.Credential) int {
	t.Helper()
	return read[int](t, s.Pool(), "SELECT count(*) FROM events WHERE credential_id = $1", string(c.ID))
}

// state is a version's, as the database has it; empty: there is none.
func state(t testing.TB, s *store.Store, c broker.Credential) broker.State {
	t.Helper()
	return broker.State(read[string](t, s.Pool(), "SELECT COALESCE((SELECT state FROM versions WHERE id = $1), '')", string(c.Version.ID)))
}

func pgCode(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}

// within runs do, which must end by itself: in moments, but a busy machine is given two minutes.
func within(t testing.TB, what string, do func(context.Context)) {
	t.Helper()
	const limit = 2 * time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); do(ctx) }()
	select {
	case <-done:
	case <-ctx.Done():
		<-done // it obeys its context, or the test binary's own limit ends it
		t.Errorf("%s: not done in %s", what, limit)
	}
}
