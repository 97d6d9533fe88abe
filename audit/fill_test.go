package audit_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker/localpg/pgtest"
)

// filled is a year of a fleet's life: its credentials, each of them issued, resolved twice and revoked, and the events of
// that. A value says which credential it is of; the benchmark asks for it by that.
type filled struct {
	credentials int // each with six events
	start       time.Time
	months      int
	each        time.Duration // from one credential to the next
}

// at is when the k-th credential was intended.
func (f filled) at(k int) time.Time { return f.start.Add(time.Duration(k) * f.each) }

func (f filled) events() int { return 6 * f.credentials }

// versionOf is the session's name of the k-th credential: 16 of a-z and 2-7.
const versionOf = "translate(lpad(k::text, 16, '0'), '0123456789', 'abcdefghij')"

// The ledger. Of ten credentials seven are AWS sessions, two share one of 40 keys of a pool, and one has one of 100
// accounts at Google.
var fillLedger = []string{
	`INSERT INTO credentials (id, caller, task_id, agent_id, profile, provider, requested, scopes, metadata, ttl_ms, created_at)
		SELECT 'crd_' || lpad(k::text, 26, '0'), 'caller-' || k % 20, 'task-' || k / 5, 'agent-' || k % 5000, 'profile-' || k % 12,
			CASE WHEN k % 10 < 7 THEN 'aws' WHEN k % 10 < 9 THEN 'pool' ELSE 'gcp' END, '{read}', '{read}', '{}', 3600000, $2::timestamptz + k * $3::interval
		FROM generate_series(0, $1::bigint - 1) k`,
	`INSERT INTO versions (id, credential_id, number, provider, state, issued_at, expires_at, self_expires, upstream, upstream_ids, cause, result,
			effective_at, basis, fingerprint, ended_at)
		SELECT ` + versionOf + `, 'crd_' || lpad(k::text, 26, '0'), 1, CASE WHEN k % 10 < 7 THEN 'aws' WHEN k % 10 < 9 THEN 'pool' ELSE 'gcp' END,
			'revoked', at, at + interval '1 hour', true, 'arn:aws:iam::123456789012:role/taskpass-research', '{}', 'revoked', 'denied', at + interval '5 minutes', 'policy_written',
			CASE WHEN k % 10 IN (7, 8) THEN sha256(('key-' || k % 40)::bytea) ELSE sha256(k::text::bytea) END, at
		FROM generate_series(0, $1::bigint - 1) k, LATERAL (SELECT $2::timestamptz + k * $3::interval AS at) t`,
}

// fillMonth is the events of one month, in a table that becomes its partition: $1 to $2 are numbers of events, $3 the
// number of all. Their transactions are spread over those below the horizon of a new cluster, so that all are settled.
const fillMonth = `INSERT INTO %s (id, xid, seq, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, fingerprint, body)
	SELECT 'evt_' || lpad(i::text, 26, '0'), (3 + i * 500 / $3::bigint)::text::xid8, i, at, type, caller, task, agent, profile, provider, credential, names, fp,
		format('{"id":"evt_%%s","at":"%%s","type":"%%s","caller":{"name":"%%s","role":"orchestrator","auth":"token:tok_06f0000000000000000000000","addr":"10.0.0.7"},"request_id":"5e0b2e6c-6f3c-4a11-9be6-0c6f5f5f5f5f","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","task_id":"%%s","agent_id":"%%s","profile":"%%s","provider":"%%s","requested_scopes":["read"],"scopes":["read"],"ttl_seconds":3600,"credential_id":"%%s","version":1,"version_id":"%%s","state":"%%s","expires_at":"%%s","upstream":"arn:aws:iam::123456789012:role/taskpass-research"%%s%%s}',
			lpad(i::text, 26, '0'), to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), type, caller, task, agent, profile, provider, credential, names[1],
			(ARRAY['issuing', 'active', 'active', 'active', 'revoking', 'revoked'])[1 + i %% 6],
			to_char((born + interval '1 hour') AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
			CASE WHEN fp IS NULL THEN '' ELSE ',"upstream_ids":["' || names[2] || '"],"fingerprint":"sha256:' || encode(fp, 'hex') || '"' END,
			CASE WHEN i %% 6 = 5 THEN format(',"revocation":{"result":"denied","effective_at":"%%s","basis":"policy_written"}',
				to_char((born + interval '5 minutes') AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')) ELSE '' END)
	FROM (SELECT i, $4::timestamptz + i * $5::interval / 6 AS at, $4::timestamptz + k * $5::interval AS born, 'caller-' || k %% 20 AS caller, 'task-' || k / 5 AS task, 'agent-' || k %% 5000 AS agent, 'profile-' || k %% 12 AS profile,
			CASE WHEN k %% 10 < 7 THEN 'aws' WHEN k %% 10 < 9 THEN 'pool' ELSE 'gcp' END AS provider, 'crd_' || lpad(k::text, 26, '0') AS credential,
			CASE WHEN i %% 6 = 2 AND k %% 5000 = 0 THEN 'ticket.reused' ELSE (ARRAY['credential.intended', 'credential.issued', 'credential.resolved',
				'credential.resolved', 'credential.revoke_requested', 'credential.revoked'])[1 + i %% 6] END AS type,
			CASE WHEN i %% 6 = 0 THEN ARRAY[v] WHEN k %% 10 < 7 THEN ARRAY[v, 'ASIA' || lpad(k::text, 16, '0')]
				WHEN k %% 10 < 9 THEN ARRAY[v, 'models/key-' || k %% 40] ELSE ARRAY[v, 'slot-' || k %% 100 || '@project.iam.gserviceaccount.com', v] END AS names,
			CASE WHEN i %% 6 = 0 THEN NULL WHEN k %% 10 IN (7, 8) THEN sha256(('key-' || k %% 40)::bytea) ELSE sha256(k::text::bytea) END AS fp
		FROM generate_series($1::bigint, $2::bigint - 1) i, LATERAL (SELECT i / 6 AS k) n, LATERAL (SELECT ` + versionOf + ` AS v) s) e`

// fillRecord makes about n events over a year that ended with the last month. The indexes are built when a month is attached,
// which takes a quarter of the time that writing into them would.
func fillRecord(b *testing.B, db pgtest.DB, n int) filled {
	b.Helper()
	now := time.Now().UTC()
	f := filled{credentials: n / 6, months: 12, start: time.Date(now.Year()-1, now.Month(), 1, 0, 0, 0, 0, time.UTC)}
	year := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC).Sub(f.start)
	f.each = (year / time.Duration(f.credentials)).Truncate(time.Microsecond)
	interval := fmt.Sprintf("%d microseconds", f.each.Microseconds())
	conn, err := pgx.Connect(b.Context(), db.AdminURL)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(b.Context())
	do := func(sql string, args ...any) {
		b.Helper()
		if _, err := conn.Exec(b.Context(), sql, args...); err != nil {
			b.Fatalf("%.80s: %v", sql, err)
		}
	}
	do("SET maintenance_work_mem = '512MB'")
	for _, sql := range fillLedger {
		do(sql, f.credentials, f.start, interval)
	}
	first := 0
	for m := range f.months {
		from := f.start.AddDate(0, m, 0)
		to := from.AddDate(0, 1, 0)
		after := f.events() // the first event of the next month
		if m < f.months-1 {
			after = min(after, int((to.Sub(f.start)*6+f.each-1)/f.each))
		}
		table := "events_" + from.Format("2006_01")
		do("CREATE TABLE " + table + " (LIKE events INCLUDING DEFAULTS)")
		do(fmt.Sprintf(fillMonth, table), first, after, f.events(), f.start, interval)
		do(fmt.Sprintf("ALTER TABLE events ATTACH PARTITION %s FOR VALUES FROM ('%s') TO ('%s')", table, from.Format(time.RFC3339), to.Format(time.RFC3339)))
		first = after
	}
	do("VACUUM ANALYZE")
	return f
}
