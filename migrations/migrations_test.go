package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/migrations"
)

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m, nil)) // each test begins with an empty database
}

// login is a fresh account: roles belong to the whole server.
func login() migrations.Login {
	return migrations.Login{Name: "migrations_test_" + string(broker.NewVersionID())}
}

func up(t *testing.T, db pgtest.DB, l migrations.Login) {
	t.Helper()
	if err := migrations.Up(t.Context(), db.AdminURL, l); err != nil {
		t.Fatal(err)
	}
	if l.Name != "" {
		dropLogin(t, db, l.Name)
	}
}

// dropLogin takes an account away when the test ends, for servers that outlive it.
func dropLogin(t *testing.T, db pgtest.DB, name string) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		conn, err := pgx.Connect(ctx, db.AdminURL)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close(ctx)
		if _, err := conn.Exec(ctx, "DROP ROLE IF EXISTS "+name); err != nil {
			t.Error(err)
		}
	})
}

func connect(t *testing.T, at string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func read[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// schema is all that the migrations made, for comparing.
func schema(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), `
		SELECT 'column ' || table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable FROM information_schema.columns WHERE table_schema = 'public'
		UNION ALL SELECT 'constraint ' || conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
		UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
		UNION ALL SELECT 'grant ' || grantee || ' ' || privilege_type || ' ' || table_name FROM information_schema.role_table_grants WHERE table_schema = 'public'
		UNION ALL SELECT 'version ' || version_id FROM goose_db_version
		ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestUp(t *testing.T) {
	t.Parallel()
	db, l := pgtest.New(t), login()
	up(t, db, l)
	admin := connect(t, db.AdminURL)
	latest, err := migrations.Latest()
	if err != nil {
		t.Fatal(err)
	}
	if got := read[int64](t, admin, "SELECT max(version_id) FROM goose_db_version WHERE is_applied"); got != latest || latest < 1 {
		t.Errorf("the schema is at version %d, this build's is %d", got, latest)
	}
	before := schema(t, admin)
	for range 2 { // again changes nothing, with the login or without
		up(t, db, l)
		up(t, db, migrations.Login{})
	}
	if diff := cmp.Diff(before, schema(t, admin)); diff != "" {
		t.Errorf("another run changed (-before +after): %s", diff)
	}
}

// Any number of replicas may start at once: one does the work, all succeed.
func TestUpByMany(t *testing.T) {
	t.Parallel()
	db, l := pgtest.New(t), login()
	errs := make([]error, 4)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = migrations.Up(t.Context(), db.AdminURL, l) })
	}
	wg.Wait()
	dropLogin(t, db, l.Name)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	admin := connect(t, db.AdminURL)
	if n := read[int](t, admin, "SELECT count(*) FROM (SELECT FROM goose_db_version WHERE version_id > 0 GROUP BY version_id HAVING count(*) > 1) twice"); n != 0 {
		t.Errorf("%d migrations ran twice", n)
	}
	if service := connect(t, db.URL(l.Name)); read[int](t, service, "SELECT count(*) FROM versions") != 0 {
		t.Error("a new ledger is not empty")
	}
}

// Two installations on one server share the roles.
func TestRolesAreShared(t *testing.T) {
	t.Parallel()
	one, other, l := pgtest.New(t), pgtest.New(t), login()
	up(t, one, l)
	up(t, other, l)
	for _, db := range []pgtest.DB{one, other} {
		read[int](t, connect(t, db.URL(l.Name)), "SELECT count(*) FROM credentials")
	}
}

func TestRoles(t *testing.T) {
	t.Parallel()
	db, l := pgtest.New(t), login()
	up(t, db, l)
	admin := connect(t, db.AdminURL)
	for _, role := range []string{migrations.OwnerRole, migrations.ServiceRole} {
		if read[bool](t, admin, "SELECT rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls OR rolreplication FROM pg_roles WHERE rolname = $1", role) {
			t.Errorf("%s can log in, or more", role)
		}
	}
	if read[bool](t, admin, "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls OR rolreplication FROM pg_roles WHERE rolname = $1", l.Name) {
		t.Error("the service's account can do more than log in")
	}
	if read[bool](t, admin, "SELECT pg_has_role($1, $2, 'MEMBER') OR pg_has_role($3, $2, 'MEMBER')", l.Name, migrations.OwnerRole, migrations.ServiceRole) {
		t.Error("the service can become the owner")
	}
	if !read[bool](t, admin, "SELECT pg_has_role($1, $2, 'USAGE')", l.Name, migrations.ServiceRole) {
		t.Error("the service's account is no member of the service's role")
	}
	if n := read[int](t, admin, `SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relowner <> $1::regrole`, migrations.OwnerRole); n != 0 {
		t.Errorf("%d relations belong to others than %s", n, migrations.OwnerRole)
	}
	if n := read[int](t, admin, `SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proowner <> $1::regrole`, migrations.OwnerRole); n != 0 {
		t.Errorf("%d functions belong to others than %s", n, migrations.OwnerRole)
	}
}

// Until PostgreSQL 15 everybody may create in the schema public. Whoever can do that can put an operator or a function
// in the way of the owner's own functions.
func TestServiceCreatesNothing(t *testing.T) {
	t.Parallel()
	db, l := pgtest.New(t), login()
	if _, err := connect(t, db.AdminURL).Exec(t.Context(), "GRANT CREATE ON SCHEMA public TO PUBLIC"); err != nil {
		t.Fatal(err)
	}
	up(t, db, l)
	service := connect(t, db.URL(l.Name))
	for _, statement := range []string{
		"CREATE TABLE mine (x int)", "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'", "CREATE SCHEMA mine",
		"ALTER TABLE events ADD COLUMN x int", "ALTER TABLE versions DISABLE TRIGGER ALL", "DROP TABLE events", "DROP TRIGGER versions_diagram ON versions",
		"ALTER TABLE versions DROP CONSTRAINT versions_ended_is_wiped", "SET ROLE " + migrations.OwnerRole, "SET session_replication_role = replica",
	} {
		if _, err := service.Exec(t.Context(), statement); !refused(err) {
			t.Errorf("%s: %v", statement, err)
		}
	}
}

func refused(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "42501"
}

func TestPartitions(t *testing.T) {
	t.Parallel()
	db, l := pgtest.New(t), login()
	up(t, db, l)
	admin := connect(t, db.AdminURL)
	partitions := func() []string {
		rows, err := admin.Query(t.Context(), "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'events'::regclass ORDER BY 1")
		if err != nil {
			t.Fatal(err)
		}
		list, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	now := read[time.Time](t, admin, "SELECT now()").UTC()
	first := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	var want []string
	for i := range 4 {
		want = append(want, first.AddDate(0, i, 0).Format("events_2006_01"))
	}
	want = append(want, "events_default")
	if diff := cmp.Diff(want, partitions()); diff != "" {
		t.Errorf("partitions: %s", diff)
	}

	// The service may call for more, many at once, and nobody else may.
	errs := make([]error, 4)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			conn, err := pgx.Connect(t.Context(), db.URL(l.Name))
			if err == nil {
				defer conn.Close(t.Context())
				_, err = conn.Exec(t.Context(), "SELECT ensure_event_partitions(6)")
			}
			errs[i] = err
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if got := partitions(); len(got) != 8 {
		t.Errorf("six months ahead: %q", got)
	}
	stranger := login().Name
	if _, err := admin.Exec(t.Context(), "CREATE ROLE "+stranger+" LOGIN"); err != nil {
		t.Fatal(err)
	}
	dropLogin(t, db, stranger)
	if _, err := connect(t, db.URL(stranger)).Exec(t.Context(), "SELECT ensure_event_partitions(6)"); !refused(err) {
		t.Errorf("a stranger calls for partitions: %v", err)
	}
	service := connect(t, db.URL(l.Name))
	for _, months := range []int{-1, 25, 1_000_000} {
		if _, err := service.Exec(t.Context(), "SELECT ensure_event_partitions($1)", months); err == nil {
			t.Errorf("%d months ahead", months)
		}
	}
	// A partition is not to be reached around its parent's rights.
	for _, statement := range []string{"DELETE FROM " + want[0], "UPDATE " + want[0] + " SET body = ''", "TRUNCATE " + want[0], "DELETE FROM events_default"} {
		if _, err := service.Exec(t.Context(), statement); !refused(err) {
			t.Errorf("%s: %v", statement, err)
		}
	}
	// The owner's rights that the function lends are lent to it alone: a table of the caller's stands not in its way.
	if _, err := service.Exec(t.Context(), "CREATE TEMP TABLE events_default (at timestamptz)"); err != nil {
		t.Fatal(err)
	}
	if _, err := service.Exec(t.Context(), "SELECT ensure_event_partitions(7)"); err != nil || len(partitions()) != 9 {
		t.Errorf("with a temporary table in its way: %v, %q", err, partitions())
	}
	if _, err := service.Exec(t.Context(), "DROP TABLE pg_temp.events_default"); err != nil { // or its owner cannot be dropped
		t.Error(err)
	}
}

// The service has the times of events noted; it cannot write what is noted, and nobody else can call for it.
func TestNotingTimes(t *testing.T) {
	t.Parallel()
	db, l := pgtest.New(t), login()
	up(t, db, l)
	admin, service := connect(t, db.AdminURL), connect(t, db.URL(l.Name))
	if n := read[int](t, service, "SELECT note_event_stretches(1, 1)"); n != 0 {
		t.Errorf("%d stretches of an empty record", n)
	}
	for _, bounds := range []string{"0, 1", "1, 0", "1025, 1", "1, 1025", "-1, 1"} {
		if _, err := service.Exec(t.Context(), "SELECT note_event_stretches("+bounds+")"); err == nil {
			t.Errorf("(%s)", bounds)
		}
	}
	for _, statement := range []string{
		"INSERT INTO event_stretches VALUES (0, '9', 9, '10', 9, now(), now())", "UPDATE event_stretches SET latest = now()", "DELETE FROM event_stretches",
	} {
		if _, err := service.Exec(t.Context(), statement); !refused(err) {
			t.Errorf("%s: %v", statement, err)
		}
	}
	stranger := login().Name
	if _, err := admin.Exec(t.Context(), "CREATE ROLE "+stranger+" LOGIN"); err != nil {
		t.Fatal(err)
	}
	dropLogin(t, db, stranger)
	if _, err := connect(t, db.URL(stranger)).Exec(t.Context(), "SELECT note_event_stretches(1, 1)"); !refused(err) {
		t.Errorf("a stranger has times noted: %v", err)
	}
}

// Without a bound, a migration that waits for one reader of the record would hold up all who write to it, behind its back.
func TestAReaderHoldsUpTheMigrationAlone(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	up(t, db, migrations.Login{})
	admin, reader := connect(t, db.AdminURL), connect(t, db.AdminURL)
	for _, statement := range []string{ // as it was before
		"DROP FUNCTION note_event_stretches", "DROP TABLE event_stretches", "CREATE INDEX events_by_time ON events (at)",
		"DELETE FROM goose_db_version WHERE version_id >= 8",
	} {
		if _, err := admin.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	tx, err := reader.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT FROM events"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	err = migrations.Up(ctx, db.AdminURL)
	if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != "55P03" {
		t.Errorf("beside an open reader: %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	up(t, db, migrations.Login{})
	if read[bool](t, admin, "SELECT to_regclass('events_by_time') IS NOT NULL OR to_regclass('event_stretches') IS NULL") {
		t.Error("run again, it is not done")
	}
}

// An event of a month whose partition is missing still finds its place, and then that month gets no partition of its own.
func TestEventOutsideThePartitions(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	up(t, db, migrations.Login{})
	admin := connect(t, db.AdminURL)
	_, err := admin.Exec(t.Context(), `INSERT INTO events (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body)
		VALUES ('evt_1', now() + interval '5 months', 'x', '', '', '', '', '', '', '{}', '{}')`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Exec(t.Context(), "SELECT ensure_event_partitions(6)"); err != nil {
		t.Fatal(err)
	}
	if n := read[int](t, admin, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'events'::regclass"); n != 7 {
		t.Errorf("%d partitions; want 7 months less the occupied one, and the default", n)
	}
	if n := read[int](t, admin, "SELECT count(*) FROM events"); n != 1 {
		t.Errorf("%d events", n)
	}
}

// The months are UTC's, wherever the session thinks it is.
func TestPartitionsAreUTC(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	up(t, db, migrations.Login{})
	admin := connect(t, db.AdminURL)
	for _, zone := range []string{"Pacific/Kiritimati", "Pacific/Niue", "Europe/Berlin"} {
		if _, err := admin.Exec(t.Context(), "SET timezone = '"+zone+"'"); err != nil {
			t.Fatal(err)
		}
		for _, statement := range []string{"SELECT ensure_event_partitions(12)", "SET timezone = 'UTC'"} {
			if _, err := admin.Exec(t.Context(), statement); err != nil {
				t.Fatalf("%s: %s: %v", zone, statement, err)
			}
		}
	}
	rows, err := admin.Query(t.Context(), `SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relispartition AND relkind = 'r' AND relname <> 'events_default'`)
	if err != nil {
		t.Fatal(err)
	}
	bounds, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bounds {
		if strings.Count(b, "-01 00:00:00+00") != 2 {
			t.Errorf("a partition %s", b)
		}
	}
}

// The service can log in with its password, and only with it. What is sent is a verifier that we compute: PostgreSQL
// itself says whether it is right.
func TestLoginByPassword(t *testing.T) {
	t.Parallel()
	db, l := pgtest.New(t), login()
	l.Password = broker.NewSecret(`C4n4ry'"\ pässword ` + string(broker.NewVersionID()))
	up(t, db, l)
	admin := connect(t, db.AdminURL)
	if stored := read[string](t, admin, "SELECT rolpassword FROM pg_authid WHERE rolname = $1", l.Name); !strings.HasPrefix(stored, "SCRAM-SHA-256$4096:") {
		t.Errorf("stored as %.20s…", stored)
	}
	demandPassword(t, admin, l.Name)
	with := func(password string) error {
		u, err := url.Parse(db.URL(l.Name))
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword(l.Name, password)
		conn, err := pgx.Connect(t.Context(), u.String())
		if err == nil {
			conn.Close(t.Context())
		}
		return err
	}
	if err := with(l.Password.Reveal()); err != nil {
		t.Errorf("with its password: %v", err)
	}
	for _, wrong := range []string{"", "x", l.Password.Reveal() + "x"} {
		pg, ok := errors.AsType[*pgconn.PgError](with(wrong))
		if wrong != "" && (!ok || pg.Code != "28P01") {
			t.Errorf("with a wrong password: %v", pg)
		}
	}
	// Another password replaces it; none leaves it.
	old := l.Password.Reveal()
	l.Password = broker.NewSecret("another")
	up(t, db, l)
	up(t, db, migrations.Login{Name: l.Name})
	if err := with("another"); err != nil {
		t.Errorf("with its new password: %v", err)
	}
	if with(old) == nil {
		t.Error("the old password is still good")
	}
}

// demandPassword makes the test's own server, which trusts everybody, ask this account for its password.
func demandPassword(t *testing.T, admin *pgx.Conn, name string) {
	t.Helper()
	if os.Getenv("TASKPASS_TEST_DATABASE_URL") != "" {
		t.Skip("not our server to configure")
	}
	file := read[string](t, admin, "SHOW hba_file")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append([]byte("local all "+name+" scram-sha-256\n"), text...), 0o600); err != nil { // keeps its owner
		t.Fatal(err)
	}
	if !read[bool](t, admin, "SELECT pg_reload_conf()") {
		t.Fatal("the server does not reload its configuration")
	}
	limit := time.Now().Add(2 * time.Minute)
	for { // the server reloads when it gets to it
		conn, err := pgx.Connect(t.Context(), strings.Replace(admin.Config().ConnString(), admin.Config().User+"@", name+"@", 1))
		if err != nil {
			return
		}
		conn.Close(t.Context())
		if time.Now().After(limit) {
			t.Fatal("the server asks for no password")
		}
	}
}

// No error shows the URL's password or the login's.
func TestErrorsKeepSecrets(t *testing.T) {
	t.Parallel()
	const canary = "C4n4ryC4n4ry"
	for _, at := range []string{
		"postgres://u:" + canary + "@[::1", "postgres://u:" + canary + "@127.0.0.1:1/db?sslmode=" + canary, canary,
		"postgres://u:" + canary + "@127.0.0.1:1/db?connect_timeout=1", "host=127.0.0.1 port=1 password=" + canary + " connect_timeout=1",
	} {
		err := migrations.Up(t.Context(), at, migrations.Login{Name: "x", Password: broker.NewSecret(canary)})
		if err == nil {
			t.Fatalf("%s: no error", at)
		}
		for e := err; e != nil; e = errors.Unwrap(e) {
			if text := fmt.Sprintf("%v %+v", e, e); strings.Contains(text, canary) {
				t.Errorf("%s", text)
			}
		}
	}
	// A name that cannot be a role's.
	db := pgtest.New(t)
	err := migrations.Up(t.Context(), db.AdminURL, migrations.Login{Name: "pg_reserved", Password: broker.NewSecret(canary)})
	if err == nil || strings.Contains(fmt.Sprintf("%+v", err), canary) {
		t.Errorf("a reserved name: %v", err)
	}
}

// A login's name is data, whatever it looks like.
func TestLoginNameIsQuoted(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	name := `Odd "name"; DROP TABLE versions; -- ` + string(broker.NewVersionID())
	if err := migrations.Up(t.Context(), db.AdminURL, migrations.Login{Name: name}); err != nil {
		t.Fatal(err)
	}
	dropLogin(t, db, pgx.Identifier{name}.Sanitize())
	admin := connect(t, db.AdminURL)
	if !read[bool](t, admin, "SELECT pg_has_role($1, $2, 'USAGE') AND to_regclass('versions') IS NOT NULL", name, migrations.ServiceRole) {
		t.Error("no such login, or no such table")
	}
}
