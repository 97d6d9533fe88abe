package audit_test

import (
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
		{`INSERT INTO versions (id, credential_id, number, provider, state, issued_at, expires_at, self_expires, upstream, cause, result, effective_at, sealed, fingerprint, due_at, ended_at)
			VALUES ($1, $2, 1, 'pool', $3, $4, $5, false, 'pool:models', CASE WHEN $6 THEN 'revoked' ELSE '' END, $7, $8, CASE WHEN NOT $6 THEN '\x01'::bytea END, '\x01',
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

// Of a key that many had, the trace at a time is the trace at any time less those that it says were not yet issued, or were
// dead: it leaves most of them alone without looking them up, and must not leave out one that may have used the key.
func TestTraceAtATime(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s, err := store.Open(t.Context(), store.Config{URL: broker.NewSecret(db.URL(login))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	admin, err := pgx.Connect(t.Context(), db.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	base, random := time.Now().UTC().Truncate(time.Minute).Add(-100*time.Hour), rand.New(rand.NewPCG(1, 1))
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
	l, now := audit.NewLog(s.Pool()), time.Now()
	all, err := l.Trace(t.Context(), audit.TraceQuery{Name: "models/key", Limit: audit.MaxTraced}, now)
	if err != nil || len(all.Held) != 90 || all.More {
		t.Fatalf("%d versions, more %v, %v", len(all.Held), all.More, err)
	}
	fewest := 90
	for range 100 {
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
