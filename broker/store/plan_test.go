package store_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
)

const rows = 50_000

// crowd fills a ledger with credentials that have mostly ended, as one looks after a while; $1 is their number.
//
// Of each hundred: 85 expired, 8 revoked, 5 active, one that is revoking and one that is stuck, one issuing.
var crowd = []string{
	`INSERT INTO credentials (id, caller, task_id, agent_id, profile, provider, requested, scopes, metadata, ttl_ms, created_at)
		SELECT 'crd_' || lpad(i::text, 26, '0'), CASE WHEN i % 5000 = 0 THEN 'caller-rare' ELSE 'caller-' || i % 4 END, 'task-' || i / 5, 'agent-' || i % 500,
			CASE WHEN i % 5000 = 0 THEN 'profile-rare' ELSE 'profile-' || i % 3 END, (ARRAY['aws', 'gcp', 'pool'])[1 + i % 3], '{a}', '{a}', '{}', 60000, now() - (50000 - i) * interval '1 second'
		FROM generate_series(1, 50000) i`,
	`INSERT INTO versions (id, credential_id, number, provider, state, issued_at, expires_at, self_expires, upstream, cause, result,
			effective_at, sealed, fingerprint, due_at, ended_at)
		SELECT translate(lpad(i::text, 16, '0'), '0123456789', 'abcdefghij'), 'crd_' || lpad(i::text, 26, '0'), 1, (ARRAY['aws', 'gcp', 'pool'])[1 + i % 3],
			s.state, at, at + interval '1 minute' + CASE WHEN i % 97 = 0 THEN interval '1 day' ELSE '0' END, true, 'role-' || i % 3,
			CASE WHEN s.state IN ('active', 'issuing') THEN '' ELSE 'revoked' END, CASE WHEN s.state = 'revoked' THEN 'denied' ELSE '' END,
			CASE WHEN s.state = 'revoked' THEN at END, CASE WHEN s.state = 'active' THEN '\x01'::bytea END, CASE WHEN s.state = 'active' THEN '\x01'::bytea END,
			CASE WHEN s.state IN ('expired', 'revoked') THEN NULL WHEN s.state = 'active' THEN now() + interval '1 hour' ELSE now() + (i / 100 % 50 - 3) * interval '1 minute' END,
			CASE WHEN s.state IN ('expired', 'revoked') THEN at END
		FROM generate_series(1, 50000) i, LATERAL (SELECT now() - (50000 - i) * interval '1 second' AS at,
			CASE WHEN i % 100 < 85 THEN 'expired' WHEN i % 100 < 93 THEN 'revoked' WHEN i % 100 < 97 THEN 'active'
				WHEN i % 100 = 97 THEN 'revoking' WHEN i % 100 = 98 THEN 'stuck' ELSE 'issuing' END AS state) s`,
	`INSERT INTO events (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body)
		SELECT 'evt_' || i, now() - (50000 - i) * interval '1 second', CASE WHEN i % 1000 = 0 THEN 'credential.stuck' WHEN i % 10 = 2 THEN 'credential.refused' ELSE 'credential.issued' END,
			CASE WHEN i % 5000 = 0 THEN 'caller-rare' ELSE 'caller-' || i % 4 END, 'task-' || i / 5, 'agent-' || i % 500,
			CASE WHEN i % 5000 = 0 THEN 'profile-rare' ELSE 'profile-' || i % 3 END,
			CASE WHEN i % 5000 = 0 THEN 'rare' ELSE (ARRAY['aws', 'gcp', 'pool'])[1 + i % 3] END, 'crd_' || lpad(i::text, 26, '0'), ARRAY['AKIA' || i, 'v' || i, 'search/key-' || i % 4], '{}'
		FROM generate_series(1, 50000) i`,
	`INSERT INTO slots (pool, name, seat, state, credential_id, fingerprint, due_back_at)
		SELECT 'big', 'k' || i, 1, 'held', 'crd_' || lpad((i * 100 + 93)::text, 26, '0'), int4send(i), now() + interval '1 hour' FROM generate_series(1, 5) i`,
	"INSERT INTO tree_archives (month, from_idx, to_idx, events, size, sha256) VALUES ('2020-01', 0, 1, 1, 1, sha256(''))",
	"ANALYZE",
}

// reads is what PostgreSQL has read so far of the tables that grow.
type reads struct {
	sequential, byIndex int64            // rows
	scans               map[string]int64 // by index; a partition's index counts as its parent's
}

// readsOf reads PostgreSQL's own count of what really was done. An EXPLAIN would tell only what is meant to be done for
// the arguments that it is given; a plan that is kept (the generic one, after some executions) can be another.
func readsOf(t *testing.T, s *store.Store, super *pgx.Conn) reads {
	t.Helper()
	// The store has one connection, so this is the session that did the work: what it counted shows from now on.
	if _, err := s.Pool().Exec(t.Context(), "SELECT pg_stat_force_next_flush()"); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{"SELECT", "SELECT pg_stat_clear_snapshot()"} {
		if _, err := s.Pool().Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
		if _, err := super.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	r := reads{scans: map[string]int64{}}
	const grow = "(relname IN ('versions', 'credentials') OR relname LIKE 'events%')"
	err := super.QueryRow(t.Context(), "SELECT sum(seq_tup_read), sum(idx_tup_fetch) FROM pg_stat_user_tables WHERE "+grow).Scan(&r.sequential, &r.byIndex)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := super.Query(t.Context(), `SELECT COALESCE(p.relname, s.indexrelname), sum(s.idx_scan)::bigint, sum(s.idx_tup_read)::bigint
		FROM pg_stat_user_indexes s LEFT JOIN pg_inherits i ON i.inhrelid = s.indexrelid LEFT JOIN pg_class p ON p.oid = i.inhparent
		WHERE (s.relname IN ('versions', 'credentials') OR s.relname LIKE 'events%') GROUP BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	var name string
	var scans, read int64
	if _, err := pgx.ForEachRow(rows, []any{&name, &scans, &read}, func() error { r.scans[name] = scans; return nil }); err != nil {
		t.Fatal(err)
	}
	return r
}

// However much is on the ledger, a question reads what it asks for, and by the index that was made for it.
func TestQuestionsUseTheirIndexes(t *testing.T) {
	t.Parallel()
	db := own(t)
	super := admin(t, db)
	if read[int](t, super, "SELECT current_setting('server_version_num')::int") < 150_000 {
		t.Skip("this PostgreSQL cannot be told to publish its statistics")
	}
	for _, statement := range crowd {
		if _, err := super.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%.60s: %v", statement, err)
		}
	}
	s := open(t, db, func(c *store.Config) { c.MaxConns = 1 })
	log := audit.NewLog(s.Pool())
	noteTimes(t, log, super)
	now, turned := time.Now(), 0
	list := func(f broker.Filter) func() (int, error) {
		return func() (int, error) {
			if f.Limit == 0 {
				f.Limit = 50
			}
			found, _, err := s.CredentialPage(t.Context(), f)
			return len(found), err
		}
	}
	ago := func(hours int) time.Time { return now.Add(-time.Duration(hours) * time.Hour) }
	find := func(q audit.Query) func() (int, error) {
		return func() (int, error) {
			if q.Limit == 0 {
				q.Limit = 50
			}
			p, err := log.Find(t.Context(), q)
			return len(p.Events), err
		}
	}
	trace := func(q audit.TraceQuery) func() (int, error) {
		return func() (int, error) {
			found, err := log.Trace(t.Context(), q, now)
			return len(found.Held), err
		}
	}
	oldestFirst := func(q audit.Query) func() (int, error) {
		q.OldestFirst = true
		return find(q)
	}
	for _, c := range []struct {
		name  string
		ask   func() (int, error)
		index string // by which it is found; empty: any
		least int    // answers
		most  int64  // rows read for one answer of up to 50
	}{
		{"claim", func() (int, error) {
			found, err := s.Claim(t.Context(), "aws", now, time.Hour, 2)
			return len(found), err
		}, "versions_due", 1, 100},
		{"due providers", func() (int, error) {
			found, err := s.DueProviders(t.Context(), now)
			return len(found), err
		}, "versions_due", 3, 50},
		{"a pool's rotations", func() (int, error) {
			turned++
			var keys []broker.KeyChoice
			for i := range 5 {
				keys = append(keys, broker.KeyChoice{Name: fmt.Sprint("k", i+1), Fingerprint: fmt.Appendf(nil, "%d %d", turned, i)})
			}
			if _, err := s.Converge(t.Context(), "big", keys, time.Hour, now); err != nil {
				return 0, err
			}
			found, err := s.PoolKeys(t.Context(), "big")
			return len(found), err
		}, "versions_credential_id_number_key", 5, 6000},
		{"denied", func() (int, error) {
			found, err := s.Denied(t.Context(), "role-0", now)
			return len(found), err
		}, "versions_denied", 1, 500},

		{"by id", func() (int, error) {
			_, err := s.Credential(t.Context(), "crd_00000000000000000000012345")
			return 1, err
		}, "credentials_pkey", 1, 10},
		{"alive of one", func() (int, error) {
			_, err := s.Alive(t.Context(), "crd_00000000000000000000012345")
			return 0, err
		}, "", 0, 10},
		{"list all", list(broker.Filter{}), "credentials_pkey", 50, 400},
		{"list a page", list(broker.Filter{Before: "crd_00000000000000000000025000"}), "credentials_pkey", 50, 400},
		{"list by task", list(broker.Filter{TaskID: "task-77"}), "credentials_by_task", 5, 50},
		{"list by agent", list(broker.Filter{AgentID: "agent-77"}), "credentials_by_agent", 50, 500},
		{"list by caller", list(broker.Filter{Caller: "caller-1"}), "", 50, 500},
		{"list by rare caller", list(broker.Filter{Caller: "caller-rare"}), "credentials_by_caller", 10, 100},
		{"list by nobody", list(broker.Filter{Caller: "nobody"}), "credentials_by_caller", 0, 10},
		{"list by profile", list(broker.Filter{Profile: "profile-1"}), "", 50, 500},
		{"list by rare profile", list(broker.Filter{Profile: "profile-rare"}), "credentials_by_profile", 10, 100},
		{"list by caller and task", list(broker.Filter{Caller: "caller-1", TaskID: "task-77"}), "credentials_by_task", 1, 50},
		{"list active", list(broker.Filter{State: broker.StateActive}), "", 50, 6000},
		{"list expired", list(broker.Filter{State: broker.StateExpired}), "", 50, 500},
		{"list revoked", list(broker.Filter{State: broker.StateRevoked}), "", 50, 4000},
		{"list revoking", list(broker.Filter{State: broker.StateRevoking}), "versions_troubled", 50, 1200},
		{"list stuck", list(broker.Filter{State: broker.StateStuck}), "versions_troubled", 50, 1200},
		{"list issuing", list(broker.Filter{State: broker.StateIssuing}), "versions_troubled", 50, 1200},
		{"list lost", list(broker.Filter{State: broker.StateLost}), "versions_troubled", 0, 50},
		{"list failed", list(broker.Filter{State: broker.StateFailed}), "versions_troubled", 0, 50},
		{"list a caller's stuck", list(broker.Filter{Caller: "caller-1", State: broker.StateStuck}), "", 0, 2500},
		{"a task's alive", func() (int, error) {
			found, err := s.AliveOf(t.Context(), broker.Task{Caller: "caller-0", ID: "task-79"}, "", 50)
			return len(found), err
		}, "credentials_by_task", 0, 50},
		{"what is due of a task's tree", func() (int, error) {
			n, err := s.TaskPending(t.Context(), broker.Task{Caller: "caller-0", ID: "task-79"})
			return int(n), err
		}, "credentials_by_task", 1, 50},
		{"a task", func() (int, error) {
			found, err := s.FindTasks(t.Context(), "", "task-77")
			return len(found), err
		}, "credentials_by_task", 1, 50},

		{"record, newest", find(audit.Query{}), "events_in_order", 50, 200},
		{"record, oldest", oldestFirst(audit.Query{}), "events_in_order", 50, 200},
		{"record by task", find(audit.Query{TaskID: "task-77"}), "events_by_task", 5, 50},
		{"record by agent", find(audit.Query{AgentID: "agent-77"}), "events_by_agent", 50, 300},
		{"record by agent, oldest", oldestFirst(audit.Query{AgentID: "agent-77"}), "events_by_agent", 50, 300},
		{"record by caller", find(audit.Query{Caller: "caller-1"}), "", 50, 500},
		{"record by rare caller", find(audit.Query{Caller: "caller-rare"}), "events_by_caller", 10, 100},
		{"record by rare profile", find(audit.Query{Profile: "profile-rare"}), "events_by_profile", 10, 100},
		{"record by rare provider", find(audit.Query{Provider: "rare"}), "events_by_provider", 10, 100},
		{"record by profile", find(audit.Query{Profile: "profile-1"}), "", 50, 500},
		{"record by provider", find(audit.Query{Provider: "gcp"}), "", 50, 500},
		{"record by common type", find(audit.Query{Type: "credential.issued"}), "", 50, 500},
		{"record by rare type", find(audit.Query{Type: "credential.stuck"}), "events_by_type", 50, 500},
		{"record by credential", find(audit.Query{CredentialID: "crd_00000000000000000000012345"}), "events_by_credential", 1, 20},
		{"record by upstream id", find(audit.Query{UpstreamID: "AKIA12345"}), "events_by_name_1", 1, 20},
		{"record by upstream id, oldest", oldestFirst(audit.Query{UpstreamID: "AKIA12345"}), "events_by_name_1", 1, 20},
		{"record by nobody's upstream id", find(audit.Query{UpstreamID: "AKIANOBODY"}), "events_by_name_1", 0, 20},
		{"record by second upstream id", find(audit.Query{UpstreamID: "v12345"}), "events_by_name_2", 1, 20},
		{"record by nobody's type", find(audit.Query{Type: "credential.lost"}), "events_by_type", 0, 20},
		{"record by fingerprint", find(audit.Query{Fingerprint: []byte("x")}), "events_by_fingerprint", 0, 20},
		{"record by shared upstream id", find(audit.Query{UpstreamID: "search/key-1"}), "events_by_name_3", 50, 60},
		{"record since", find(audit.Query{Since: ago(1)}), "events_in_order", 50, 200},
		{"record since, oldest", oldestFirst(audit.Query{Since: ago(7)}), "events_in_order", 50, 2400},
		{"record until", find(audit.Query{Until: ago(7)}), "events_in_order", 50, 3000},
		{"record until, oldest", oldestFirst(audit.Query{Until: ago(7)}), "events_in_order", 50, 200},
		{"record of an hour", find(audit.Query{Since: ago(7), Until: ago(6)}), "events_in_order", 50, 2400},
		{"record of an hour, oldest", oldestFirst(audit.Query{Since: ago(7), Until: ago(6)}), "events_in_order", 50, 2400},
		{"record of no time", find(audit.Query{Since: ago(-3), Until: ago(-4)}), "", 0, 2400},
		{"record by caller, until", find(audit.Query{Caller: "caller-1", Until: ago(7)}), "events_by_caller", 50, 800},
		{"record by caller, an hour", find(audit.Query{Caller: "caller-1", Since: ago(7), Until: ago(6)}), "events_by_caller", 50, 800},
		{"record by caller, since, oldest", oldestFirst(audit.Query{Caller: "caller-1", Since: ago(7)}), "events_by_caller", 50, 800},
		{"record by rare caller, since", find(audit.Query{Caller: "caller-rare", Since: ago(7)}), "events_by_caller", 5, 50},
		{"record by shared upstream id, until", find(audit.Query{UpstreamID: "search/key-1", Until: ago(7)}), "events_by_name_3", 50, 800},
		{"record by task, since", find(audit.Query{TaskID: "task-9000", Since: ago(7)}), "events_by_task", 5, 50},
		{"trace a name where months are archived", trace(audit.TraceQuery{Name: "AKIANOBODY"}), "versions_ended_by_name", 0, 8000}, // all that is alive
		{"trace a secret where months are archived", trace(audit.TraceQuery{Fingerprint: []byte("x")}), "versions_ended_by_fingerprint", 0, 8000},
		{"trace a credential where months are archived", trace(audit.TraceQuery{Name: "crd_00000000000000000000012345"}), "versions_credential_id_number_key", 1, 50},
		{"refusals of an hour", func() (int, error) {
			found, _, err := log.Refusals(t.Context(), ago(1), time.Minute)
			return len(found), err
		}, "events_by_type", 50, 800}, // of 5000
		{"an upstream id that is known", func() (int, error) {
			c := broker.Credential{ID: "crd_00000000000000000000000199", Version: broker.Version{
				ID: "aaaaaaaaaaaaabjj", Number: 1, State: broker.StateActive, OwnID: true, UpstreamIDs: []string{"v7"},
				Fingerprint: []byte("x"), DueAt: now.Add(time.Hour),
			}}
			e := event(broker.EventIssued, c)
			e.At = now
			if err := s.Activate(t.Context(), c, []byte("sealed"), now, e); !errors.Is(err, broker.ErrIDKnown) {
				return 0, err
			}
			return 1, nil
		}, "events_by_name_2", 1, 50},
		// A page examines at most 10,000 events, and a few hundred to choose by which value.
		{"record by a pair that never meets", find(audit.Query{Provider: "aws", Profile: "profile-1"}), "", 0, 12_000},
		{"record by a pair that never meets, oldest", oldestFirst(audit.Query{Provider: "aws", Profile: "profile-1"}), "", 0, 12_000},
		{"record by a name and a provider that never meet", find(audit.Query{UpstreamID: "search/key-1", Provider: "rare"}), "", 0, 2_000},
		{"record by a rare type and a common caller", find(audit.Query{Caller: "caller-0", Type: "credential.stuck"}), "events_by_type", 40, 2_500},
		{"record by task and type", find(audit.Query{TaskID: "task-77", Type: "credential.issued"}), "events_by_task", 5, 50},
	} {
		const times = 8 // more than PostgreSQL takes to consider the plan that it keeps
		before := readsOf(t, s, super)
		for range times {
			n, err := c.ask()
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if n < c.least {
				t.Errorf("%s: %d answers; this proves nothing", c.name, n)
				break
			}
		}
		after := readsOf(t, s, super)
		if n := after.sequential - before.sequential; n > 0 {
			t.Errorf("%s: reads whole tables, %d rows each time", c.name, n/times)
		}
		if n := (after.byIndex - before.byIndex) / times; n > c.most {
			t.Errorf("%s: reads %d rows of %d each time; want %d at the most", c.name, n, rows, c.most)
		}
		if c.index != "" && after.scans[c.index] == before.scans[c.index] {
			t.Errorf("%s: does not use %s, but %s", c.name, c.index, strings.Join(used(before, after), ", "))
		}
	}
}

// noteTimes notes the times of what is on the record, all of it: the horizon of the whole server may be held back by
// another test's transaction for a while.
func noteTimes(t *testing.T, log *audit.Log, super *pgx.Conn) {
	t.Helper()
	limit := time.After(2 * time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for read[int](t, super, "SELECT count(*) FROM event_stretches WHERE level = 0") < rows/256 {
		if _, err := log.Note(t.Context()); err != nil {
			t.Fatal(err)
		}
		select {
		case <-limit:
			t.Fatal("the record never settles")
		case <-tick.C:
		}
	}
}

func used(before, after reads) []string {
	var names []string
	for name, n := range after.scans {
		if n > before.scans[name] {
			names = append(names, fmt.Sprintf("%s ×%d", name, n-before.scans[name]))
		}
	}
	slices.Sort(names)
	return names
}
