package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store/db"
)

// maxPage is the most credentials one call lists.
const maxPage = 500

// A credential is listed with the version that is spoken of: see the query FindCredential.
const eachSpokenOf = `credentials c CROSS JOIN LATERAL (
	SELECT * FROM versions x WHERE x.credential_id = c.id AND (x.number = c.current OR x.due_at IS NOT NULL)
	ORDER BY x.number = c.current AND x.due_at IS NOT NULL DESC, x.due_at IS NOT NULL DESC, x.number DESC LIMIT 1) v`

// Trouble is listed also where it is a version's that has a successor. Few versions are in these states, and an index
// holds just them, in the order of the list.
const eachTroubled = `versions v JOIN credentials c ON c.id = v.credential_id
	AND v.state IN ('issuing', 'revoking', 'lost', 'stuck', 'failed')
	AND NOT EXISTS (SELECT FROM versions y WHERE y.credential_id = v.credential_id AND y.state = v.state AND y.number > v.number)`

// Credentials implements broker.Versions. The text of the query holds only the conditions in use, so that each has a plan
// of its own that uses its index.
func (s *Store) Credentials(ctx context.Context, f broker.Filter) ([]broker.Credential, error) {
	conditions := []string{"true"}
	args := []any{}
	where := func(column, op string, value any) {
		args = append(args, value)
		conditions = append(conditions, fmt.Sprintf("%s %s $%d", column, op, len(args)))
	}
	for column, value := range map[string]string{
		"c.caller": f.Caller, "c.task_id": f.TaskID, "c.agent_id": f.AgentID, "c.profile": f.Profile,
		"v.state": string(f.State),
	} {
		if value != "" {
			where(column, "=", value)
		}
	}
	from, id := eachSpokenOf, "c.id"
	switch f.State {
	case broker.StateIssuing, broker.StateRevoking, broker.StateLost, broker.StateStuck, broker.StateFailed:
		from, id = eachTroubled, "v.credential_id"
	}
	if f.Before != "" {
		where(id, "<", string(f.Before))
	}
	args = append(args, min(max(f.Limit, 1), maxPage))
	rows, err := s.pool.Query(ctx, fmt.Sprintf("SELECT %s, %s FROM %s WHERE %s ORDER BY %s DESC LIMIT $%d",
		credentialColumns, versionColumns, from, strings.Join(conditions, " AND "), id, len(args)), args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanCredential)
}

// scanCredential reads credentialColumns and versionColumns.
func scanCredential(row pgx.CollectableRow) (broker.Credential, error) {
	var c db.Credential
	var v db.Version
	err := row.Scan(&c.ID, &c.Caller, &c.TaskID, &c.AgentID, &c.Profile, &c.Provider, &c.Requested, &c.Scopes,
		&c.Metadata, &c.TtlMs, &c.CreatedAt, &c.HardEndAt, &c.Strikes,
		&v.ID, &v.Number, &v.State, &v.IssuedAt, &v.ExpiresAt, &v.UpstreamExpiresAt, &v.SelfExpires, &v.Upstream,
		&v.UpstreamIds, &v.Trace, &v.Fingerprint, &v.Cause, &v.Reason, &v.Result, &v.EffectiveAt, &v.Basis,
		&v.LastError, &v.Attempts, &v.DueAt, &v.EndedAt, &v.Unclaimed, &v.Succeed, &v.Ungiven)
	if err != nil {
		return broker.Credential{}, err
	}
	return toCredential(c, v)
}

const credentialColumns = `c.id, c.caller, c.task_id, c.agent_id, c.profile, c.provider, c.requested, c.scopes,
	c.metadata, c.ttl_ms, c.created_at, c.hard_end_at, c.strikes`

const versionColumns = `v.id, v.number, v.state, v.issued_at, v.expires_at, v.upstream_expires_at, v.self_expires,
	v.upstream, v.upstream_ids, v.trace, v.fingerprint, v.cause, v.reason, v.result, v.effective_at, v.basis,
	v.last_error, v.attempts, v.due_at, v.ended_at, v.unclaimed, v.succeed, v.ungiven`
