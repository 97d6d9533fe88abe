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

// troubled are the states that few versions are in, which have an index of their own.
const troubled = "('issuing', 'revoking', 'lost', 'stuck', 'failed')"

// spokenOf finds the version that is spoken of: see the query FindCredential.
const spokenOf = `(x.number = c.current OR x.due_at IS NOT NULL)
	ORDER BY x.number = c.current AND x.due_at IS NOT NULL DESC, x.due_at IS NOT NULL DESC, x.number DESC`

// Credentials implements broker.Ledger. The text of the query holds only the conditions in use, so that each has a plan
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
	spoken := spokenOf
	switch f.State {
	case broker.StateIssuing, broker.StateRevoking, broker.StateLost, broker.StateStuck, broker.StateFailed:
		// Trouble is listed also where it is a version's that has a successor.
		spoken = "x.state = v.state ORDER BY x.number DESC"
		conditions = append(conditions, "v.state IN "+troubled)
	}
	if f.Before != "" {
		where("c.id", "<", string(f.Before))
	}
	args = append(args, min(max(f.Limit, 1), maxPage))
	rows, err := s.pool.Query(ctx, `SELECT `+credentialColumns+`, `+versionColumns+`
		FROM credentials c JOIN versions v ON v.credential_id = c.id
			AND v.number = (SELECT x.number FROM versions x WHERE x.credential_id = c.id AND `+spoken+` LIMIT 1)
		WHERE `+strings.Join(conditions, " AND ")+`
		ORDER BY c.id DESC LIMIT $`+fmt.Sprint(len(args)), args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (broker.Credential, error) {
		var c db.Credential
		var v db.Version
		err := row.Scan(&c.ID, &c.Caller, &c.TaskID, &c.AgentID, &c.Profile, &c.Provider, &c.Requested, &c.Scopes,
			&c.Metadata, &c.TtlMs, &c.CreatedAt, &c.HardEndAt,
			&v.ID, &v.Number, &v.State, &v.IssuedAt, &v.ExpiresAt, &v.UpstreamExpiresAt, &v.SelfExpires, &v.Upstream,
			&v.UpstreamIds, &v.Trace, &v.Fingerprint, &v.Cause, &v.Reason, &v.Result, &v.EffectiveAt, &v.Basis,
			&v.LastError, &v.Attempts, &v.DueAt, &v.EndedAt, &v.Unclaimed)
		if err != nil {
			return broker.Credential{}, err
		}
		return toCredential(c, v)
	})
}

const credentialColumns = `c.id, c.caller, c.task_id, c.agent_id, c.profile, c.provider, c.requested, c.scopes,
	c.metadata, c.ttl_ms, c.created_at, c.hard_end_at`

const versionColumns = `v.id, v.number, v.state, v.issued_at, v.expires_at, v.upstream_expires_at, v.self_expires,
	v.upstream, v.upstream_ids, v.trace, v.fingerprint, v.cause, v.reason, v.result, v.effective_at, v.basis,
	v.last_error, v.attempts, v.due_at, v.ended_at, v.unclaimed`
