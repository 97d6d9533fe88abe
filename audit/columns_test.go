package audit_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker/store"
)

// stored reads an event's columns and body as the database has them.
func stored(t *testing.T, s *store.Store, id string) (c audit.Columns, body []byte) {
	t.Helper()
	err := s.Pool().QueryRow(t.Context(), `SELECT id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, fingerprint, body
		FROM events WHERE id = $1`, id).
		Scan(&c.ID, &c.At, &c.Type, &c.Caller, &c.TaskID, &c.AgentID, &c.Profile, &c.Provider, &c.CredentialID, &c.UpstreamIDs, &c.Fingerprint, &body)
	if err != nil {
		t.Fatal(err)
	}
	return c, body
}

// What is written never contradicts itself, whatever the event: else an auditor would be told of tampering.
func TestColumnsSayWhatTheBodySays(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	for name, e := range shapes {
		e.ID = "evt_" + name
		record(t, s, e)
		if c, body := stored(t, s, e.ID); c.Contradicted(body) != nil {
			t.Errorf("%s: %v", name, c.Contradicted(body))
		}
	}
	// Times have nanoseconds until they are written.
	e := shapes["credential.issued"]
	e.ID, e.At = "evt_ns", time.Date(2026, 3, 1, 23, 59, 59, 999_999_999, time.FixedZone("", 3600))
	record(t, s, e)
	if c, body := stored(t, s, e.ID); c.Contradicted(body) != nil {
		t.Errorf("nanoseconds: %v", c.Contradicted(body))
	}
}

func TestContradicted(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	e := shapes["credential.issued"]
	e.ID = "evt_c"
	record(t, s, e)
	for name, change := range map[string]func(*audit.Columns){
		"id":            func(c *audit.Columns) { c.ID = "evt_d" },
		"at":            func(c *audit.Columns) { c.At = c.At.Add(time.Microsecond) },
		"type":          func(c *audit.Columns) { c.Type = "credential.revoked" },
		"caller":        func(c *audit.Columns) { c.Caller = "" },
		"task_id":       func(c *audit.Columns) { c.TaskID += "x" },
		"agent_id":      func(c *audit.Columns) { c.AgentID = strings.Repeat("ü", 1000) },
		"profile":       func(c *audit.Columns) { c.Profile = "x" },
		"provider":      func(c *audit.Columns) { c.Provider = "x" },
		"credential_id": func(c *audit.Columns) { c.CredentialID = "x" },
		"upstream_ids":  func(c *audit.Columns) { c.UpstreamIDs = append(c.UpstreamIDs, "x") },
		"fingerprint":   func(c *audit.Columns) { c.Fingerprint = nil },
	} {
		c, body := stored(t, s, e.ID)
		change(&c)
		got := c.Contradicted(body)
		if names := slices.Collect(maps.Keys(got)); len(names) != 1 || names[0] != name || len(got[name]) > 512 {
			t.Errorf("%s: %.300v", name, got)
		}
	}
	c, _ := stored(t, s, e.ID)
	if got := c.Contradicted([]byte("no event")); got["body"] == "" {
		t.Errorf("%v", got)
	}
	var columns []string
	rows, err := s.Pool().Query(context.Background(), `SELECT attname::text FROM pg_attribute WHERE attrelid = 'events'::regclass AND attnum > 0 AND NOT attisdropped`)
	if err == nil {
		columns, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range columns { // a column that is added must be held against the body too
		if !slices.Contains([]string{"id", "xid", "seq", "at", "type", "caller", "task_id", "agent_id", "profile", "provider", "credential_id",
			"upstream_ids", "fingerprint", "body"}, name) {
			t.Errorf("nothing holds the column %s against the body", name)
		}
	}
}
