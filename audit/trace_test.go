package audit_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/broker/store"
)

// hold puts a version on the ledger and the record: it had the key from a time on, and ended, or not, as is said.
func hold(t *testing.T, s *store.Store, admin *pgx.Conn, k int, issued time.Time, state broker.State, end broker.Revocation) {
	t.Helper()
	v := broker.VersionID(fmt.Sprintf("abcdefghijklmn%c%c", 'a'+k/26, 'a'+k%26))
	credential := broker.CredentialID(fmt.Sprint("crd_", k))
	dead := state == broker.StateRevoked || state == broker.StateExpired
	for _, c := range []struct {
		sql  string
		args []any
	}{
		{`INSERT INTO credentials (id, caller, task_id, agent_id, profile, provider, requested, scopes, metadata, ttl_ms, created_at)
			VALUES ($1, 'c', $2, 'a', 'p', 'pool', '{x}', '{x}', '{}', 3600000, $3)`, []any{credential, fmt.Sprint("t", k), issued}},
		{`INSERT INTO versions (id, credential_id, number, provider, state, issued_at, expires_at, self_expires, upstream, upstream_ids, cause, result, effective_at, sealed, fingerprint, due_at, ended_at)
			VALUES ($1, $2, 1, 'pool', $3, $4, $5, false, 'pool:models', '{models/key}', CASE WHEN $6 THEN 'revoked' ELSE '' END, $7, $8, CASE WHEN NOT $6 THEN '\x01'::bytea END, '\x01',
				CASE WHEN NOT $6 THEN now() END, CASE WHEN $6 THEN now() END)`,
			[]any{v, credential, state, issued, issued.Add(time.Hour), dead, end.Result, orNil(end.EffectiveAt)}},
	} {
		if _, err := admin.Exec(t.Context(), c.sql, c.args...); err != nil {
			t.Fatal(err)
		}
	}
	e := broker.Event{
		ID: fmt.Sprint("i", k), At: issued, Type: broker.EventIssued, State: broker.StateActive, Credential: credential, Version: 1, VersionID: v,
		TaskID: fmt.Sprint("t", k), AgentID: "a", Profile: "p", Provider: "pool", Requested: []string{"x"}, Scopes: []string{"x"}, TTL: time.Hour,
		ExpiresAt: issued.Add(time.Hour), Upstream: "pool:models", UpstreamIDs: []string{"models/key"}, Fingerprint: []byte{1},
	}
	record(t, s, e)
	if dead {
		e.ID, e.At, e.Type, e.State, e.Revocation = fmt.Sprint("r", k), issued.Add(20*time.Minute), broker.EventRevoked, state, end
		record(t, s, e)
	}
}

func orNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func withAdmin(t *testing.T) (*store.Store, *pgx.Conn) {
	t.Helper()
	db := pgtest.New(t)
	s, err := store.Open(t.Context(), store.Config{URL: broker.NewSecret(db.URL(login))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	admin, err := pgx.Connect(t.Context(), db.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close(context.Background()) })
	return s, admin
}

// holders puts 90 versions on the ledger and the record that had the key one after the other, for 30 hours, and ended
// in every way.
func holders(t *testing.T, s *store.Store, admin *pgx.Conn, base time.Time, random *rand.Rand) {
	t.Helper()
	for k := range 90 {
		issued := base.Add(time.Duration(k) * 20 * time.Minute)
		state, end := broker.StateRevoked, broker.Revocation{Result: broker.ResultDestroyed, EffectiveAt: issued.Add(time.Duration(random.IntN(180)) * time.Minute)}
		switch random.IntN(10) {
		case 0:
			end.Result = broker.ResultReleased
		case 1:
			state, end = broker.StateActive, broker.Revocation{}
		case 2:
			state = broker.StateExpired
		case 3:
			state, end = broker.StateExpired, broker.Revocation{}
		}
		hold(t, s, admin, k, issued, state, end)
	}
}

// Of a key that many had, the trace at a time is the trace at any time less those that it says were not yet issued, or were
// dead: it leaves most of them alone without looking them up, and must not leave out one that may have used the key.
func TestTraceAtATime(t *testing.T) {
	t.Parallel()
	s, admin := withAdmin(t)
	base, random := time.Now().UTC().Truncate(time.Minute).Add(-100*time.Hour), rand.New(rand.NewPCG(1, 1))
	holders(t, s, admin, base, random)
	l, now := audit.NewLog(s.Pool()), time.Now()
	all, err := l.Trace(t.Context(), audit.TraceQuery{Name: "models/key", Limit: audit.MaxTraced}, now)
	if err != nil || len(all.Held) != 90 || all.More {
		t.Fatalf("%d versions, more %v, %v", len(all.Held), all.More, err)
	}
	fewest := 90
	for range 40 {
		at := base.Add(time.Duration(random.IntN(32*60)) * time.Minute)
		want := slices.DeleteFunc(slices.Clone(all.Held), func(h audit.Held) bool {
			return h.IssuedAt.Add(-5*time.Minute).After(at) || h.Life.Since != nil && h.Life.Since.Add(5*time.Minute).Before(at)
		})
		got, err := l.Trace(t.Context(), audit.TraceQuery{Name: "models/key", At: at, Limit: audit.MaxTraced}, now)
		if diff := cmp.Diff(want, got.Held); err != nil || diff != "" {
			t.Fatalf("at %s: %v (-want +got)\n%s", at, err, diff)
		}
		fewest = min(fewest, len(want))
	}
	if fewest > 20 {
		t.Errorf("at least %d at any time: this proves little", fewest)
	}
}

// Whose a key is, or was, is on the ledger when the events that say so are in a file: a trace that said "unknown" of a
// credential that works would be a lie.
func TestTraceFindsWhatIsArchived(t *testing.T) {
	t.Parallel()
	s, admin := withAdmin(t)
	do := func(sql string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	do("CREATE TABLE events_2020_01 PARTITION OF events FOR VALUES FROM ('2020-01-01Z') TO ('2020-02-01Z')")
	base := time.Date(2020, 1, 31, 9, 0, 0, 0, time.UTC) // the latter half is in February
	holders(t, s, admin, base, rand.New(rand.NewPCG(1, 2)))
	l, now := audit.NewLog(s.Pool()), time.Now()
	queries := []audit.TraceQuery{
		{Name: "models/key", Limit: 100}, {Name: "models/key", Limit: 50}, {Fingerprint: []byte{1}, Limit: 100}, {Name: "nobody's"}, {Fingerprint: []byte{2}},
		{Name: "crd_3"}, {Name: "crd_80"}, {Name: "crd_90"}, {Name: "abcdefghijklmnaa"}, {Name: "AROAX:abcdefghijklmnad"}, {Name: "abcdefghijklmndl"},
	}
	for h := range 33 {
		at := base.Add(time.Duration(h-1) * time.Hour)
		queries = append(queries, audit.TraceQuery{Name: "models/key", At: at, Limit: 100}, audit.TraceQuery{Fingerprint: []byte{1}, At: at, Limit: 100})
	}
	ask := func(q audit.TraceQuery) (audit.Traced, []string) {
		t.Helper()
		found, err := l.Trace(t.Context(), q, now)
		if err != nil {
			t.Fatalf("%+v: %v", q, err)
		}
		var ids []string
		for _, h := range found.Held {
			ids = append(ids, fmt.Sprintln(h.VersionID, h.TaskID, h.Life.Alive, h.Life.How))
		}
		slices.Sort(ids)
		return found, ids
	}
	var before []audit.Traced
	var want [][]string
	for _, q := range queries {
		found, ids := ask(q)
		if found.ArchivedBefore != "" {
			t.Fatalf("%+v: archived before %q", q, found.ArchivedBefore)
		}
		before, want = append(before, found), append(want, ids)
	}
	do("ALTER TABLE events DETACH PARTITION events_2020_01")
	do("INSERT INTO tree_archives (month, from_idx, to_idx, events, size, sha256) VALUES ('2020-01', 0, 1, 1, 1, sha256(''))")
	gone := 0
	for i, q := range queries {
		found, ids := ask(q)
		if diff := cmp.Diff(want[i], ids); diff != "" || found.More != before[i].More || found.ArchivedBefore != "2020-02" {
			t.Errorf("%+v: more %v, archived before %q (-before +after)\n%s", q, found.More, found.ArchivedBefore, diff)
		}
		for _, h := range found.Held {
			if h.Events == nil {
				t.Errorf("%+v: %s has null for its events", q, h.VersionID)
			}
			if len(h.Events) == 0 {
				gone++
			}
		}
	}
	if gone == 0 {
		t.Error("all still have their events: this proves nothing")
	}
}
