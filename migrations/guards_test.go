package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/migrations"
)

// The list of guards is what a freshly migrated database has.
func TestGuardsAreThoseOfTheMigrations(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	up(t, db, migrations.Login{})
	query, err := os.ReadFile("guards/live.sql")
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	if err := pgx.BeginFunc(t.Context(), connect(t, db.AdminURL), func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "SET LOCAL search_path = pg_catalog"); err != nil {
			return err
		}
		rows, err := tx.Query(t.Context(), string(query), nil)
		if err != nil {
			return err
		}
		var object, like, guard, words string
		_, err = pgx.ForEachRow(rows, []any{&object, &like, &guard, &words}, func() error {
			// Roles belong to the server, where other tests make some; months are like events_default.
			if kind, _, _ := strings.Cut(object, " "); object == like && kind != "role" {
				fmt.Fprintln(&got, strings.TrimSuffix(object+"\t"+guard+"\t"+words, "\t"))
			}
			return nil
		})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	const file = "guards/expected.txt"
	if os.Getenv("TASKPASS_UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil { // part of the source
			t.Fatal(err)
		}
	}
	if v := read[string](t, connect(t, db.AdminURL), "SHOW server_version_num"); !strings.HasPrefix(v, "15") {
		t.Skip("the list is of PostgreSQL 15, and this one words definitions its own way")
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("a migration changed the guards; once they are as they should be, run TASKPASS_UPDATE=1 go test -run %s ./migrations (-listed +live): %s", t.Name(), diff)
	}
}

// Whatever guard is altered is named. Each case is rolled back: roles belong to the whole server.
func TestChangedGuardsAreNamed(t *testing.T) {
	t.Parallel()
	db, l, reader := pgtest.New(t), login(), login()
	reader.Role = migrations.AuditorRole
	up(t, db, l)
	up(t, db, reader)
	admin := connect(t, db.AdminURL)
	if g, err := migrations.Compare(t.Context(), connect(t, db.URL(reader.Name))); err != nil || len(g.Changed)+len(g.Unsure) > 0 {
		t.Fatalf("as it was migrated: %+v, %v", g, err)
	}
	changed := func(statements ...string) []string {
		t.Helper()
		tx, err := admin.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, sql := range statements {
			if _, err := tx.Exec(t.Context(), sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
		g, err := migrations.Compare(t.Context(), tx)
		if err := errors.Join(err, tx.Rollback(t.Context())); err != nil {
			t.Fatalf("%s: %v", statements, err)
		}
		return g.Changed
	}
	month := read[string](t, admin, "SELECT 'events_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')")
	for _, c := range []struct{ do, names string }{
		{"DROP TRIGGER versions_diagram ON versions", "table versions: missing: trigger versions_diagram"},
		{"ALTER TABLE versions DISABLE TRIGGER versions_diagram", "versions_follow_the_diagram, of type 19, disabled"},
		{"ALTER TABLE credentials DISABLE TRIGGER ALL; ALTER TABLE versions DISABLE TRIGGER ALL", "versions_credential_id_fkey is not enforced"},
		{"CREATE OR REPLACE FUNCTION versions_follow_the_diagram() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'", "function versions_follow_the_diagram()"},
		{"CREATE TRIGGER quiet BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()", "table events: not of the migrations: trigger quiet"},
		{"CREATE RULE quiet AS ON INSERT TO tree_leaves DO INSTEAD NOTHING", "table tree_leaves: not of the migrations: rule quiet"},
		{"ALTER TABLE events ENABLE ROW LEVEL SECURITY", "table events: not of the migrations: owned by taskpass_owner, with row security"},
		{"CREATE POLICY hide ON " + month + " USING (false)", month + ": not of the migrations: policy hide"},
		{"GRANT UPDATE ON events TO taskpass_service", "table events: not of the migrations: taskpass_service may UPDATE"},
		{"GRANT DELETE ON " + month + " TO PUBLIC", "table " + month + ": not of the migrations: PUBLIC may DELETE"},
		{"GRANT UPDATE (body) ON events TO PUBLIC", "table events: not of the migrations: PUBLIC may UPDATE of body"},
		{"GRANT INSERT ON event_stretches TO " + l.Name, "table event_stretches: not of the migrations: " + l.Name + " may INSERT"},
		{"REVOKE SELECT ON tree_leaves FROM taskpass_auditor", "table tree_leaves: missing: taskpass_auditor may SELECT"},
		{"GRANT SELECT ON versions TO taskpass_auditor", "table versions: not of the migrations: taskpass_auditor may SELECT"},
		{"GRANT EXECUTE ON FUNCTION note_event_stretches(int, int) TO PUBLIC", "function note_event_stretches(most integer, length integer): not of the migrations: PUBLIC may EXECUTE"},
		{"ALTER FUNCTION note_event_stretches(int, int) SET search_path = mine", "function note_event_stretches"},
		{"ALTER TABLE events OWNER TO taskpass_service", "table events: not of the migrations: owned by taskpass_service"},
		{"ALTER TABLE " + month + " OWNER TO taskpass_service", month + ": not of the migrations: owned by taskpass_service"},
		{"CREATE FUNCTION rewrite() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'DELETE FROM public.events'", "function rewrite(): not of the migrations"},
		{"CREATE SCHEMA other; GRANT USAGE ON SCHEMA other TO PUBLIC; CREATE FUNCTION other.rewrite() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'DELETE FROM public.events'", "function other.rewrite()"},
		{"ALTER TABLE versions DROP CONSTRAINT versions_ended_is_wiped", "table versions: missing: constraint versions_ended_is_wiped"},
		{"ALTER TABLE slots DROP CONSTRAINT slots_held_by_one, ADD CONSTRAINT slots_held_by_one CHECK (true)", "table slots: missing: constraint slots_held_by_one"},
		{"ALTER TABLE live_counts DROP CONSTRAINT live_counts_within_limit, ADD CONSTRAINT live_counts_within_limit CHECK (live >= 0) NOT VALID", "live_counts_within_limit, CHECK NOT VALID: CHECK ((live >= 0)) NOT VALID"},
		{"DROP INDEX slots_one_holder_a_key", "table slots: missing: unique index slots_one_holder_a_key"},
		{"ALTER TABLE events ALTER xid SET DEFAULT '1'", "table events: missing: column xid xid8 NOT NULL DEFAULT: pg_current_xact_id()"},
		{"ALTER TABLE tree_leaves SET UNLOGGED", "table tree_leaves: not of the migrations: owned by taskpass_owner, unlogged"},
		{"GRANT CREATE ON SCHEMA public TO PUBLIC", "schema public: not of the migrations: PUBLIC may CREATE"},
		{"ALTER DEFAULT PRIVILEGES FOR ROLE taskpass_owner GRANT DELETE ON TABLES TO taskpass_service", "role taskpass_owner: not of the migrations: gives rights"},
		{"DROP TABLE tree_archives", "table tree_archives is missing"},
		{"DROP FUNCTION note_event_stretches", "function note_event_stretches(most integer, length integer) is missing"},
		{"ALTER ROLE taskpass_service BYPASSRLS", "role taskpass_service: not of the migrations: bypasses row security"},
		{"ALTER ROLE taskpass_owner LOGIN", "role taskpass_owner: not of the migrations: may log in"},
		{"ALTER ROLE " + l.Name + " SUPERUSER", "role " + l.Name + ": not of the migrations: is a superuser"},
		{"GRANT taskpass_owner TO " + l.Name, "role " + l.Name + ": not of the migrations: is a member of taskpass_owner"},
		{"GRANT taskpass_owner TO taskpass_service", "role taskpass_service: not of the migrations: is a member of taskpass_owner"},
		{"GRANT pg_write_all_data TO " + reader.Name, "role " + reader.Name + ": not of the migrations: is a member of pg_write_all_data"},
		{"ALTER ROLE " + l.Name + " SET session_replication_role = replica", "role " + l.Name + ": not of the migrations: sets session_replication_role"},
		{"GRANT SET ON PARAMETER session_replication_role TO " + l.Name, "role " + l.Name + ": not of the migrations: may SET session_replication_role"},
		{"GRANT SET ON PARAMETER session_replication_role TO PUBLIC", "PUBLIC: not of the migrations: may SET session_replication_role"},
		{"SET LOCAL session_replication_role = replica", "server: not of the migrations: has session_replication_role replica"},
		{"DELETE FROM goose_db_version WHERE version_id = (SELECT max(version_id) FROM goose_db_version)", "use the build that migrated it"},
	} {
		if list := changed(c.do); !slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, c.names) }) {
			t.Errorf("%s: %q", c.do, list)
		}
	}
	// What operators may do.
	if list := changed("GRANT SELECT ON events TO pg_monitor", "CREATE TABLE mine (x int)", "GRANT pg_monitor TO "+l.Name,
		"SELECT ensure_event_partitions(9)", "ALTER TABLE events DETACH PARTITION "+month); len(list) > 0 {
		t.Errorf("%q", list)
	}
}

// otherMajor is a connection to a server that says it is of another major version.
type otherMajor struct {
	migrations.Beginner
	version int64
}

func (o otherMajor) Begin(ctx context.Context) (pgx.Tx, error) {
	tx, err := o.Beginner.Begin(ctx)
	return otherTx{tx, o.version}, err
}

type otherTx struct {
	pgx.Tx
	version int64
}

func (o otherTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if strings.Contains(sql, "server_version_num") {
		sql, args = "SELECT $1::bigint", []any{o.version}
	}
	return o.Tx.QueryRow(ctx, sql, args...)
}

// Where PostgreSQL words definitions its own way, other words are neither an alarm nor passed over, and facts are compared.
func TestGuardsOfAnotherMajorVersion(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	up(t, db, migrations.Login{})
	admin := connect(t, db.AdminURL)
	for _, version := range []int64{140_000, 170_004, 180_000} {
		for _, c := range []struct{ do, changed, unsure string }{
			{"SELECT", "", ""},
			{"ALTER TABLE live_counts DROP CONSTRAINT live_counts_within_limit, ADD CONSTRAINT live_counts_within_limit CHECK (live > -1)", "", "table live_counts: constraint live_counts_within_limit, CHECK"},
			{"ALTER TABLE keys ALTER why SET DEFAULT 'x'", "", "table keys: column why text NOT NULL DEFAULT"},
			{"ALTER TABLE live_counts DROP CONSTRAINT live_counts_within_limit, ADD CONSTRAINT live_counts_within_limit CHECK (live >= 0) NOT VALID", "live_counts_within_limit, CHECK NOT VALID", ""},
			{"ALTER TABLE live_counts DROP CONSTRAINT live_counts_within_limit", "table live_counts: missing: constraint live_counts_within_limit", ""},
			{"ALTER TABLE versions DISABLE TRIGGER versions_diagram", "disabled", ""},
			{"GRANT UPDATE ON events TO taskpass_service", "taskpass_service may UPDATE", ""},
		} {
			tx, err := admin.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, err = tx.Exec(t.Context(), c.do)
			g, err2 := migrations.Compare(t.Context(), otherMajor{tx, version})
			if err := errors.Join(err, err2, tx.Rollback(t.Context())); err != nil {
				t.Fatalf("%d: %s: %v", version, c.do, err)
			}
			if said := strings.Join(g.Changed, "\n"); (said == "") != (c.changed == "") || !strings.Contains(said, c.changed) {
				t.Errorf("%d: %s: changed: %q", version, c.do, g.Changed)
			}
			if said := strings.Join(g.Unsure, "\n"); (said == "") != (c.unsure == "") || !strings.Contains(said, c.unsure) {
				t.Errorf("%d: %s: unsure: %q", version, c.do, g.Unsure)
			}
		}
	}
}
