package store_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
)

// put writes a version in a state without asking the diagram, as the superuser.
func put(t testing.TB, conn *pgx.Conn, c broker.Credential, state broker.State) broker.Credential {
	t.Helper()
	c = into(c, state)
	columns := columnsOf(state)
	names, values := []string{"id", "credential_id", "number", "provider", "state", "issued_at", "expires_at", "self_expires", "upstream"},
		[]string{"$1", "$2", "1", "'aws'", "'" + string(state) + "'", "now()", "now() + interval '1 hour'", "true", "$3"}
	for name, value := range columns {
		names, values = append(names, name), append(values, value)
	}
	for _, statement := range []struct {
		sql  string
		args []any
	}{
		{`INSERT INTO credentials (id, caller, task_id, agent_id, profile, provider, requested, scopes, metadata, ttl_ms, created_at)
			VALUES ($1, 'orchestrator', $2, $3, 's3', 'aws', '{}', '{}', '{}', 1, now())`, []any{string(c.ID), c.TaskID, c.AgentID}},
		{"INSERT INTO versions (" + strings.Join(names, ", ") + ") VALUES (" + strings.Join(values, ", ") + ")", []any{string(c.Version.ID), string(c.ID), c.Version.Upstream}},
	} {
		if _, err := conn.Exec(t.Context(), statement.sql, statement.args...); err != nil {
			t.Fatalf("%s: %v", statement.sql, err)
		}
	}
	return c
}

// columnsOf are the columns that a state asks for, as SQL.
func columnsOf(s broker.State) map[string]string {
	m := map[string]string{"due_at": "now()", "ended_at": "NULL", "sealed": "NULL", "fingerprint": "NULL", "cause": "''", "result": "''", "effective_at": "NULL"}
	if s.Ended() {
		m["due_at"], m["ended_at"] = "NULL", "now()"
	}
	switch s {
	case broker.StateActive:
		m["sealed"], m["fingerprint"] = `'\x01'`, `'\x02'`
	case broker.StateRevoked:
		m["cause"], m["result"], m["effective_at"] = "'revoked'", "'denied'", "now()"
	case broker.StateRevoking, broker.StateExpired, broker.StateLost, broker.StateStuck:
		m["cause"] = "'revoked'"
	case broker.StateIssuing, broker.StateFailed:
	}
	return m
}

// The database holds the broker's own diagram: every way from every state to every state is tried, by the service's role
// with a statement of its own, and by Move.
func TestDiagram(t *testing.T) {
	t.Parallel()
	s, super := open(t, shared), admin(t, shared)
	for _, from := range broker.States() {
		for _, to := range broker.States() {
			legal := from == to || slices.Contains(from.Next(), to)
			c := put(t, super, credential(), from)
			sets := "state = '" + string(to) + "'"
			for name, value := range columnsOf(to) {
				sets += ", " + name + " = " + value
			}
			_, err := s.Pool().Exec(t.Context(), "UPDATE versions SET "+sets+" WHERE id = $1", string(c.Version.ID))
			if legal && err != nil || !legal && pgCode(err) != "23514" {
				t.Errorf("UPDATE from %s to %s: %v; the broker's table says %v", from, to, err, legal)
			}

			c = put(t, super, credential(), from)
			next := into(c, to)
			err = s.Move(t.Context(), next, []broker.State{from}, []byte("sealed"), event(broker.EventRevoked, next))
			switch {
			case legal && err != nil:
				t.Errorf("Move from %s to %s: %v", from, to, err)
			case !legal && (!errors.Is(err, broker.ErrMoved) || state(t, s, c) != from || events(t, s, c) != 0):
				t.Errorf("Move from %s to %s: %v; now %s with %d events", from, to, err, state(t, s, c), events(t, s, c))
			case legal && (state(t, s, c) != to || events(t, s, c) != 1):
				t.Errorf("Move from %s to %s: now %s with %d events", from, to, state(t, s, c), events(t, s, c))
			}
		}
	}
}

// Move is for who has seen the version as it is.
func TestMoveIsGuarded(t *testing.T) {
	t.Parallel()
	s, super := open(t, shared), admin(t, shared)
	for _, is := range broker.States() {
		for _, to := range is.Next() {
			for _, from := range [][]broker.State{nil, others(is)} {
				c := put(t, super, credential(), is)
				next := into(c, to)
				err := s.Move(t.Context(), next, from, nil, event(broker.EventRevoked, next))
				if !errors.Is(err, broker.ErrMoved) || state(t, s, c) != is || events(t, s, c) != 0 {
					t.Errorf("%s, moved to %s by one who thinks it %v: %v; now %s with %d events", is, to, from, err, state(t, s, c), events(t, s, c))
				}
			}
		}
	}
}

func others(s broker.State) []broker.State {
	return slices.DeleteFunc(broker.States(), func(o broker.State) bool { return o == s })
}

// What a row may not be, whoever writes it.
func TestConstraints(t *testing.T) {
	t.Parallel()
	s, super := open(t, shared), admin(t, shared)
	for _, c := range []struct {
		constraint string
		state      broker.State
		set        string
	}{
		{"versions_a_known_state", broker.StateActive, "state = 'moved'"},
		{"versions_a_known_state", broker.StateActive, "state = 'moved', sealed = NULL, due_at = NULL"}, // whatever else is wrong
		{"versions_active_has_secret", broker.StateActive, "sealed = NULL"},
		{"versions_active_has_secret", broker.StateActive, "fingerprint = NULL"},
		{"versions_alive_is_due", broker.StateActive, "due_at = NULL"},
		{"versions_alive_is_due", broker.StateIssuing, "due_at = NULL, ended_at = now()"},
		{"versions_alive_is_due", broker.StateStuck, "due_at = NULL"},
		{"versions_alive_is_due", broker.StateLost, "due_at = NULL"},
		{"versions_alive_is_due", broker.StateRevoked, "due_at = now()"},
		{"versions_alive_is_due", broker.StateExpired, "ended_at = NULL"},
		{"versions_ended_is_wiped", broker.StateRevoked, `sealed = '\x01'`},
		{"versions_ended_is_wiped", broker.StateExpired, `sealed = '\x01'`},
		{"versions_ended_is_wiped", broker.StateFailed, `sealed = '\x01'`},
		{"versions_ending_has_cause", broker.StateRevoking, "cause = ''"},
		{"versions_ending_has_cause", broker.StateStuck, "cause = ''"},
		{"versions_ending_has_cause", broker.StateLost, "cause = ''"},
		{"versions_ending_has_cause", broker.StateExpired, "cause = ''"},
		{"versions_revoked_has_result", broker.StateRevoked, "result = ''"},
		{"versions_revoked_has_result", broker.StateRevoked, "effective_at = NULL"},
		{"versions_unclaimed_is_issuing", broker.StateActive, "unclaimed = true"},
		{"versions_id_check", broker.StateActive, "id = 'Not-An-Id'"},
		{"versions_number_check", broker.StateActive, "number = 0"},
		{"versions_check", broker.StateActive, "expires_at = issued_at"},
	} {
		row := put(t, super, credential(), c.state)
		_, err := s.Pool().Exec(t.Context(), "UPDATE versions SET "+c.set+" WHERE id = $1", string(row.Version.ID))
		if pgCode(err) != "23514" || !strings.Contains(err.Error(), `"`+c.constraint+`"`) {
			t.Errorf("%s, %s: %v; want %s", c.state, c.set, err, c.constraint)
		}
	}
}

// A move that breaks another rule than the diagram's is no ErrMoved: that would hide a fault of ours.
func TestMoveTellsFaultsFromRaces(t *testing.T) {
	t.Parallel()
	s := open(t, shared)
	c := begin(t, s, credential())
	next := into(c, broker.StateActive)
	for what, do := range map[string]func() error{
		"active without a secret": func() error {
			return s.Move(t.Context(), next, []broker.State{broker.StateIssuing}, nil, event(broker.EventIssued, next))
		},
		"lost without a cause": func() error {
			lost := into(c, broker.StateLost)
			lost.Version.Cause = ""
			return s.Move(t.Context(), lost, []broker.State{broker.StateIssuing}, nil, event(broker.EventLost, lost))
		},
	} {
		if err := do(); err == nil || errors.Is(err, broker.ErrMoved) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if state(t, s, c) != broker.StateIssuing || events(t, s, c) != 1 {
		t.Errorf("now %s with %d events", state(t, s, c), events(t, s, c))
	}
}

// Of many who move the same version at once, one does.
func TestMoveByMany(t *testing.T) {
	t.Parallel()
	one, other := open(t, shared), open(t, shared)
	c := activate(t, one, begin(t, one, credential()))
	next := into(c, broker.StateRevoking)
	errs := make(chan error, 20)
	for i := range cap(errs) {
		s := one
		if i%2 == 1 {
			s = other
		}
		go func() {
			errs <- s.Move(t.Context(), next, []broker.State{broker.StateActive}, nil, event(broker.EventRevokeAsked, next))
		}()
	}
	moved := 0
	for range cap(errs) {
		switch err := <-errs; {
		case err == nil:
			moved++
		case !errors.Is(err, broker.ErrMoved):
			t.Error(err)
		}
	}
	if moved != 1 || events(t, one, c) != 3 {
		t.Errorf("%d moved it, %d events", moved, events(t, one, c))
	}
}

// A secret is stored while the version lives and wiped with its end.
func TestSealedIsWiped(t *testing.T) {
	t.Parallel()
	s := open(t, shared)
	for _, ways := range [][]broker.State{
		{broker.StateExpired}, {broker.StateRevoking, broker.StateRevoked}, {broker.StateRevoking, broker.StateExpired},
		{broker.StateRevoking, broker.StateStuck, broker.StateRevoked}, {broker.StateRevoking, broker.StateStuck, broker.StateExpired},
	} {
		c := activate(t, s, begin(t, s, credential()))
		for _, to := range ways {
			if sealed, err := s.Sealed(t.Context(), c.Version.ID); err != nil || string(sealed) != "sealed" {
				t.Errorf("%s: %q, %v", c.Version.State, sealed, err)
			}
			c = move(t, s, c, to)
		}
		if sealed, err := s.Sealed(t.Context(), c.Version.ID); err != nil || sealed != nil {
			t.Errorf("%v: %q, %v", ways, sealed, err)
		}
	}
}
