package store_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/migrations"
)

// forgettable are the tables whose rows are no record: what is of no use any more may go.
var forgettable = []string{"idempotency", "left_keys", "live_counts", "task_tokens"}

// P4: the service's role adds to the record. It cannot alter or delete an event, by whatever name it calls the table.
func TestServiceRewritesNothing(t *testing.T) {
	t.Parallel()
	s := open(t, shared)
	c := begin(t, s, credential())
	rows, err := s.Pool().Query(t.Context(), `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if len(tables) < 10 {
		t.Fatalf("only the tables %q", tables)
	}
	column := func(table string) string {
		return read[string](t, s.Pool(), "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum = 1", table)
	}
	for _, table := range tables {
		forbidden := []string{"TRUNCATE " + table, "ALTER TABLE " + table + " ADD COLUMN x int", "DROP TABLE " + table,
			"CREATE TRIGGER x BEFORE INSERT ON " + table + " FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
			"CREATE RULE x AS ON INSERT TO " + table + " DO INSTEAD NOTHING"}
		if !slices.Contains(forgettable, table) {
			forbidden = append(forbidden, "DELETE FROM "+table)
		}
		if strings.HasPrefix(table, "event") || strings.HasPrefix(table, "tree_") || table == "goose_db_version" {
			forbidden = append(forbidden, fmt.Sprintf("UPDATE %s SET %s = DEFAULT", table, column(table)), "SELECT * FROM "+table+" FOR UPDATE")
		}
		if table != "events" && strings.HasPrefix(table, "event") || table == "goose_db_version" || table == "tree_archives" {
			forbidden = append(forbidden, "INSERT INTO "+table+" DEFAULT VALUES")
		}
		for _, statement := range forbidden {
			if _, err := s.Pool().Exec(t.Context(), statement); pgCode(err) != "42501" {
				t.Errorf("%s: %v", statement, err)
			}
		}
	}
	for _, statement := range []string{
		"CREATE TABLE mine (x int)", "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
		"SET ROLE " + migrations.OwnerRole, "SET session_replication_role = replica", "COPY events TO PROGRAM 'cat'",
		"CREATE OR REPLACE FUNCTION versions_follow_the_diagram() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
		// The order of the record is not the service's to choose.
		"INSERT INTO events (id, seq, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body) OVERRIDING SYSTEM VALUE " +
			"VALUES ('evt_x', 1, now(), 'x', '', '', '', '', '', '', '{}', '{}')",
		"INSERT INTO events (id, xid, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body) " +
			"VALUES ('evt_y', '3', now(), 'x', '', '', '', '', '', '', '{}', '{}')",
	} {
		if _, err := s.Pool().Exec(t.Context(), statement); pgCode(err) != "42501" {
			t.Errorf("%s: %v", statement, err)
		}
	}
	if events(t, s, c) != 1 {
		t.Error("the record has changed")
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	db := own(t)
	super := admin(t, db)
	latest, err := migrations.Latest()
	if err != nil {
		t.Fatal(err)
	}
	check := func(url string, version int64) error {
		t.Helper()
		s, err := store.Open(t.Context(), store.Config{URL: broker.NewSecret(url), MaxConns: 2})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		return s.Check(t.Context(), version)
	}
	as := func(name string) string { return strings.Replace(db.service, login, name, 1) }
	said := func(what string, err error, want string) {
		t.Helper()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v; want to be told %q", what, err, want)
		}
	}
	account := func(name string, statements ...string) string {
		t.Helper()
		name += "_" + string(broker.NewVersionID())
		for _, statement := range append([]string{"CREATE ROLE NAME LOGIN"}, statements...) {
			if _, err := super.Exec(t.Context(), strings.ReplaceAll(statement, "NAME", name)); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(func() { asAdmin(t, db, "DROP OWNED BY "+name, "DROP ROLE "+name) })
		return name
	}

	said("as it should be", check(db.service, latest), "")
	said("a newer schema: the next build is being rolled out", check(db.service, latest-1), "")
	said("an older schema", check(db.service, latest+1), "older than this build")
	said("the superuser", check(db.admin, latest), "may alter or delete audit events")
	owner := account("owner", "GRANT "+migrations.OwnerRole+" TO NAME")
	said("one of the owner's", check(as(owner), latest), "may alter or delete audit events")
	for _, right := range []string{"UPDATE", "DELETE", "TRUNCATE"} {
		more := account("more", "GRANT "+migrations.ServiceRole+" TO NAME", "GRANT "+right+" ON events TO NAME")
		said("a service that may "+right, check(as(more), latest), "may alter or delete audit events")
	}
	tree := account("tree", "GRANT "+migrations.ServiceRole+" TO NAME", "GRANT DELETE ON tree_leaves TO NAME")
	said("a service that may DELETE leaves of the tree", check(as(tree), latest), "may alter or delete audit events")
	column := account("column", "GRANT "+migrations.ServiceRole+" TO NAME", "GRANT UPDATE (body) ON events TO NAME")
	said("a service that may UPDATE one column", check(as(column), latest), "may alter or delete audit events")
	said("a stranger", check(as(account("stranger")), latest), "not a member of taskpass_service")

	name := "empty_" + string(broker.NewVersionID())
	if _, err := super.Exec(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { asAdmin(t, db, "DROP DATABASE "+name+" WITH (FORCE)") })
	said("an empty database", check(strings.Replace(db.admin, db.name, name, 1), latest), "run `taskpass migrate`")
	said("no database", check(strings.Replace(db.service, db.name, "nowhere", 1), latest), "cannot be asked")
}

// asAdmin cleans up behind a test, whose context has ended.
func asAdmin(t testing.TB, db database, statements ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, db.admin)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close(ctx)
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			t.Errorf("%s: %v", statement, err)
		}
	}
}

// The URL may bear a password: no error shows it.
func TestOpenKeepsThePassword(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"postgres://u:C4n4ry@[::1", "postgres://u:C4n4ry@h/d?sslmode=C4n4ry", "C4n4ry", "postgres://u:C4n4ry@h:port/d"} {
		s, err := store.Open(t.Context(), store.Config{URL: broker.NewSecret(url)})
		if err == nil {
			s.Close()
			t.Errorf("%s opened", url)
		} else if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), "C4n4ry") {
			t.Errorf("%v", err)
		}
	}
	s, err := store.Open(t.Context(), store.Config{URL: broker.NewSecret("postgres://u:C4n4ry@127.0.0.1:1/d?connect_timeout=1")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Check(t.Context(), 1); err == nil || strings.Contains(fmt.Sprintf("%v %+v", err, err), "C4n4ry") {
		t.Errorf("%v", err)
	}
}

// What a session of the store's is like: nothing of it can hang for ever.
func TestSessionsHaveLimits(t *testing.T) {
	t.Parallel()
	s := open(t, shared)
	got := map[string]string{}
	for _, name := range []string{"statement_timeout", "idle_in_transaction_session_timeout", "TimeZone", "application_name"} {
		got[name] = read[string](t, s.Pool(), "SELECT current_setting($1)", name)
	}
	want := map[string]string{"statement_timeout": "30s", "idle_in_transaction_session_timeout": "10s", "TimeZone": "UTC", "application_name": "taskpass"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPartitionsByTheService(t *testing.T) {
	t.Parallel()
	s := open(t, shared)
	for range 2 {
		if err := s.EnsurePartitions(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := read[int](t, s.Pool(), "SELECT count(*) FROM pg_inherits WHERE inhparent = 'events'::regclass"); n != 5 {
		t.Errorf("%d partitions; want four months and the default", n)
	}
}
