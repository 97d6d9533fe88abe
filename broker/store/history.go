package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
)

// What the auditor's pages show of the ledger beside single credentials.

const everyVersion = "SELECT " + credentialColumns + ", " + versionColumns + `
FROM credentials c JOIN versions v ON v.credential_id = c.id WHERE %s ORDER BY c.id DESC, v.number DESC LIMIT $2`

// VersionsOf lists a credential's versions, whatever became of them, the newest first; at most limit.
func (s *Store) VersionsOf(ctx context.Context, id broker.CredentialID, limit int) ([]broker.Credential, error) {
	return s.versions(ctx, "c.id = $1", string(id), limit)
}

// VersionsOfTask lists the versions of all credentials of one caller's task, the newest credential first; at most limit.
func (s *Store) VersionsOfTask(ctx context.Context, caller, id string, limit int) ([]broker.Credential, error) {
	return s.versions(ctx, "c.task_id = $1 AND c.caller = $3", id, limit, caller)
}

func (s *Store) versions(ctx context.Context, where, value string, limit int, more ...any) ([]broker.Credential, error) {
	rows, err := s.pool.Query(ctx, fmt.Sprintf(everyVersion, where), append([]any{value, limit}, more...)...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanCredential)
}

// What may be alive, counted. An index holds just these versions; live_counts has a row for each of the others' keys.
const aliveByProvider = `SELECT provider, '', count(*) AS n FROM versions WHERE due_at IS NOT NULL
	GROUP BY provider ORDER BY n DESC, provider LIMIT $1`

const aliveByKey = `SELECT key, '', live FROM live_counts WHERE kind = $2 AND live > 0 ORDER BY live DESC, key LIMIT $1`

// LiveBy counts the versions that have not ended, by "provider", "profile", "agent" (CALLER/AGENT) or "caller": the
// largest counts first, at most limit.
func (s *Store) LiveBy(ctx context.Context, by string, limit int) ([]broker.Count, error) {
	sql, args := aliveByProvider, []any{limit}
	if by != "provider" {
		sql, args = aliveByKey, append(args, by)
	}
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[broker.Count])
}
