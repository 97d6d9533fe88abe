package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store/db"
)

// maxPage is the most credentials one call lists.
const maxPage = 500

// maxExamined is how many credentials, or versions in trouble, one page looks at to find those that match: what a page
// costs is bounded, also for values that never meet.
const maxExamined = 10_000

// A credential is listed with the version that is spoken of: see the query FindCredential.
const eachSpokenOf = `credentials c CROSS JOIN LATERAL (
	SELECT * FROM versions x WHERE x.credential_id = c.id AND (x.number = c.current OR x.due_at IS NOT NULL)
	ORDER BY x.number = c.current AND x.due_at IS NOT NULL DESC, x.due_at IS NOT NULL DESC, x.number DESC LIMIT 1) v`

// isTroubled is the condition of the index versions_troubled.
const isTroubled = `v.state IN ('issuing', 'revoking', 'lost', 'stuck', 'failed')`

// Trouble is listed also where it is a version's that has a successor. Few versions are in these states, and an index
// holds just them, in the order of the list.
const eachTroubled = `versions v JOIN credentials c ON c.id = v.credential_id AND ` + isTroubled + `
	AND NOT EXISTS (SELECT FROM versions y WHERE y.credential_id = v.credential_id AND y.state = v.state AND y.number > v.number)`

// listed are the values of a filter by what compares them, the one that is usually rarest first. The text of a query
// holds only those in use, so that each has a plan of its own that uses its index.
func listed(f broker.Filter) (list []condition) {
	for _, c := range []condition{
		{"c.task_id", f.TaskID}, {"c.agent_id", f.AgentID}, {"c.caller", f.Caller}, {"c.profile", f.Profile},
		{"v.state", string(f.State)},
	} {
		if c.value != "" {
			list = append(list, c)
		}
	}
	return list
}

type condition struct{ column, value string }

// where is the text of conditions; their values are added to args.
func where(conditions []condition, args *[]any) string {
	parts := []string{"true"}
	for _, c := range conditions {
		*args = append(*args, c.value)
		parts = append(parts, fmt.Sprintf("%s = $%d", c.column, len(*args)))
	}
	return strings.Join(parts, " AND ")
}

// Credentials implements broker.Versions.
func (s *Store) Credentials(ctx context.Context, f broker.Filter) ([]broker.Credential, error) {
	var args []any
	conditions := where(listed(f), &args)
	from, id := eachSpokenOf, "c.id"
	if troubled(f.State) {
		from, id = eachTroubled, "v.credential_id"
	}
	if f.Before != "" {
		args = append(args, string(f.Before))
		conditions += fmt.Sprintf(" AND %s < $%d", id, len(args))
	}
	return s.list(ctx, from, conditions, id, min(max(f.Limit, 1), maxPage), args)
}

func (s *Store) list(ctx context.Context, from, conditions, id string, limit int, args []any) ([]broker.Credential, error) {
	rows, err := s.pool.Query(ctx, fmt.Sprintf("SELECT %s, %s FROM %s WHERE %s ORDER BY %s DESC LIMIT $%d",
		credentialColumns, versionColumns, from, conditions, id, len(args)+1), append(args, limit)...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanCredential)
}

func troubled(state broker.State) bool {
	switch state {
	case broker.StateIssuing, broker.StateRevoking, broker.StateLost, broker.StateStuck, broker.StateFailed:
		return true
	}
	return false
}

// CredentialPage implements broker.Lists. What it examines is found by one value of the filter, by that one's index, and
// is the filter's caller's: next never tells a caller about another one's credentials. The other values are compared.
func (s *Store) CredentialPage(ctx context.Context, f broker.Filter) (page []broker.Credential, next broker.CredentialID, err error) {
	var args []any
	conditions := listed(f)
	table, id := "credentials c", "c.id"
	found := slices.DeleteFunc(slices.Clone(conditions), func(c condition) bool {
		return c.column == "v.state" || c.column != "c.caller" && c != conditions[0]
	})
	from := strings.TrimPrefix(eachSpokenOf, "credentials c")
	if troubled(f.State) { // few versions are, and an index has just them
		table, id, from = "versions v", "v.credential_id", strings.TrimPrefix(eachTroubled, "versions v")
		found = []condition{{"v.state", string(f.State)}}
		if f.Caller != "" {
			table += " JOIN credentials c ON c.id = v.credential_id"
			found = append(found, condition{"c.caller", f.Caller})
		}
	}
	in := where(found, &args)
	if troubled(f.State) {
		in += " AND " + isTroubled // else a plan for any state could not use the index
	}
	if f.Before != "" {
		args = append(args, string(f.Before))
		in += fmt.Sprintf(" AND %s < $%d", id, len(args))
	}
	in = fmt.Sprintf("FROM %s WHERE %s ORDER BY %s DESC", table, in, id)
	examined, of := slices.Clone(args), id[:1]
	from = fmt.Sprintf("(SELECT %s.* %s LIMIT %d) %s%s", of, in, maxExamined, of, from)
	limit := min(max(f.Limit, 1), maxPage)
	page, err = s.list(ctx, from, where(conditions, &args), id, limit+1, args)
	switch {
	case err != nil:
		return nil, "", err
	case len(page) > limit:
		return page[:limit], page[limit-1].ID, nil
	}
	last := fmt.Sprintf("SELECT %s %s OFFSET %d LIMIT 1", id, in, maxExamined-1)
	if err = s.pool.QueryRow(ctx, last, examined...).Scan(&next); errors.Is(err, pgx.ErrNoRows) {
		err = nil // all there are were examined
	}
	return page, next, err
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
