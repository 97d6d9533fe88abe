package broker_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/taskpass/taskpass/broker"
)

func TestRefreshAfter(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for ttl, want := range map[time.Duration]time.Duration{
		time.Second:      500 * time.Millisecond, // never before half of it
		8 * time.Minute:  4 * time.Minute,
		10 * time.Minute: 5 * time.Minute,
		15 * time.Minute: 10 * time.Minute, // five minutes before the end
		50 * time.Minute: 45 * time.Minute,
		time.Hour:        54 * time.Minute, // a tenth before the end
		12 * time.Hour:   648 * time.Minute,
		24 * time.Hour:   1296 * time.Minute,
	} {
		if got := broker.RefreshAfter(at, at.Add(ttl)).Sub(at); got != want {
			t.Errorf("of %s: after %s, want %s", ttl, got, want)
		}
	}
}

// diagram is the one of docs/architecture.md.
var diagram = map[broker.State][]broker.State{
	"issuing":  {"active", "failed", "lost"},
	"active":   {"revoking", "expired"},
	"lost":     {"revoking", "expired"},
	"revoking": {"revoked", "expired", "stuck"},
	"stuck":    {"revoked", "expired"},
	"revoked":  {}, "expired": {}, "failed": {},
}

func TestStates(t *testing.T) {
	t.Parallel()
	if len(broker.States()) != len(diagram) {
		t.Errorf("states: %v", broker.States())
	}
	for _, s := range broker.States() {
		if diff := cmp.Diff(diagram[s], s.Next()); diff != "" {
			t.Errorf("after %s: %s", s, diff)
		}
		if s.Ended() != (len(diagram[s]) == 0) {
			t.Errorf("%s has ended: %v", s, s.Ended())
		}
	}
}

// The database holds the same diagram, against whoever writes: each of the 64 ways is tried.
func TestDatabaseHoldsTheDiagram(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	issued := h.issue("t")
	admin := h.admin()
	id := string(issued.Version.ID)
	set := func(s broker.State) string { // all that the constraints want of a version in that state
		ended := "due_at = now(), ended_at = NULL, sealed = '\\x00'"
		if s.Ended() {
			ended = "due_at = NULL, ended_at = now(), sealed = NULL"
		}
		return `UPDATE versions SET state = '` + string(s) + `', ` + ended + `, fingerprint = '\x00', cause = 'x', result = 'x',
			effective_at = now() WHERE id = '` + id + `'`
	}
	for _, from := range broker.States() {
		for _, to := range broker.States() {
			if from == to {
				continue
			}
			// A superuser may skip the trigger to get to the first state; nobody may skip it from there.
			if _, err := admin.Exec(t.Context(), "ALTER TABLE versions DISABLE TRIGGER versions_diagram;"+set(from)+
				";ALTER TABLE versions ENABLE TRIGGER versions_diagram"); err != nil {
				t.Fatal(err)
			}
			_, err := h.store.Pool().Exec(t.Context(), set(to))
			if allowed := slices.Contains(diagram[from], to); allowed != (err == nil) {
				t.Errorf("%s to %s: %v", from, to, err)
			}
			if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.ConstraintName != "versions_diagram" {
				t.Errorf("%s to %s fails by %s", from, to, pg.ConstraintName)
			}
		}
	}
}

// What has ended keeps no secret; what may be alive is due for something: the constraints hold it against whoever writes.
func TestDatabaseHoldsTheConstraints(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	issued := h.issue("t")
	for constraint, change := range map[string]string{
		"versions_alive_is_due":       "due_at = NULL",
		"versions_ended_is_wiped":     "state = 'expired', cause = 'expired', due_at = NULL, ended_at = now()",
		"versions_active_has_secret":  "sealed = NULL",
		"versions_ending_has_cause":   "state = 'revoking', cause = ''",
		"versions_a_known_state":      "state = 'moved'",
		"versions_id_check":           "id = 'CAPITALS'",
		"versions_check":              "expires_at = issued_at",
		"versions_credential_id_fkey": "credential_id = 'crd_nobody'",
	} {
		_, err := h.store.Pool().Exec(t.Context(), "UPDATE versions SET "+change+" WHERE id = $1", string(issued.Version.ID))
		pg, ok := errors.AsType[*pgconn.PgError](err)
		if !ok || pg.ConstraintName != constraint {
			t.Errorf("%s: %v", change, err)
		}
	}
}

// P4: the service can add to the record and do nothing else to it; nor can it delete anything at all.
func TestServiceCannotRewriteTheRecord(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.issue("t")
	for _, statement := range []string{
		"UPDATE events SET type = 'x'", "DELETE FROM events", "TRUNCATE events", "DROP TABLE events",
		"ALTER TABLE events ADD COLUMN x int", "UPDATE events_default SET type = 'x'", "DELETE FROM events_default",
		"DELETE FROM versions", "DELETE FROM credentials", "DELETE FROM tokens", "DELETE FROM callers", "DELETE FROM slots",
		"TRUNCATE versions CASCADE", "ALTER TABLE versions DISABLE TRIGGER versions_diagram", "DROP TRIGGER versions_diagram ON versions",
		"CREATE TABLE x (y int)", "SET ROLE taskpass_owner", "SET session_replication_role = replica",
		"INSERT INTO events_default SELECT * FROM events",
	} {
		if _, err := h.store.Pool().Exec(t.Context(), statement); err == nil {
			t.Errorf("it may: %s", statement)
		}
	}
	// Not even a partition that is there by its own name.
	rows, err := h.admin().Query(t.Context(), `SELECT relid::text FROM pg_partition_tree('events') WHERE isleaf`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var partition string
		if err := rows.Scan(&partition); err != nil {
			t.Fatal(err)
		}
		for _, statement := range []string{"UPDATE " + partition + " SET type = 'x'", "DELETE FROM " + partition, "TRUNCATE " + partition} {
			if _, err := h.store.Pool().Exec(t.Context(), statement); err == nil {
				t.Errorf("it may: %s", statement)
			}
		}
	}
	if n := len(h.events("t")); n != 2 {
		t.Errorf("%d events are left", n)
	}
}
