package audit

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// ArchivedBefore is the month (2006-01) after the newest one whose events are in a file; empty if there is none. Of what is
// not on the record nobody can say more than that it may be there.
func (l *Log) ArchivedBefore(ctx context.Context) (month string, err error) {
	err = l.pool.QueryRow(ctx, "SELECT coalesce(to_char(to_date(max(month), 'YYYY-MM') + interval '1 month', 'YYYY-MM'), '') FROM tree_archives").Scan(&month)
	return month, err
}

// knownAs finds versions on the ledger: what has ended by indexes that cost the issuing nothing (see 00010_archived.sql),
// and what is alive, which is little, by itself. Of those that were issued by $2 it leaves out who was certainly dead
// before $3, as deadBefore does, and who was found already.
const (
	knownAs = `SELECT id FROM (%s) v ORDER BY issued_at DESC, id DESC LIMIT $5`
	known   = `SELECT id, issued_at FROM versions WHERE %s AND issued_at <= $2 AND NOT id = ANY ($4)
		AND (effective_at >= $3 OR effective_at IS NULL OR result = 'released' OR state NOT IN ('revoked', 'expired'))`
)

// onLedger adds the versions that the ledger knows by the name, the newest first, to those that were found on the record.
func (l *Log) onLedger(ctx context.Context, q TraceQuery, found []string) (ids []string, more bool, err error) {
	where, value := []string{"upstream_ids @> ARRAY[$1::text] AND ended_at IS NOT NULL", "upstream_ids @> ARRAY[$1::text] AND due_at IS NOT NULL", "id = $1"}, any(searched(q.Name))
	switch {
	case len(q.Fingerprint) > 0:
		where, value = []string{"fingerprint = $1 AND ended_at IS NOT NULL", "fingerprint = $1 AND due_at IS NOT NULL"}, q.Fingerprint
	case strings.HasPrefix(q.Name, "crd_"):
		where, value = []string{"credential_id = $1"}, q.Name
	}
	for i := range where {
		where[i] = fmt.Sprintf(known, where[i])
	}
	var by, since time.Time // zero: any
	if !q.At.IsZero() {
		by, since = q.At.Add(clocksApart), q.At.Add(-clocksApart)
	}
	found = append([]string{}, found...) // not null, which no id would be unequal to
	args := []any{value, orInfinity(by, pgtype.Infinity), orInfinity(since, pgtype.NegativeInfinity), found, q.most() - len(found)}
	err = l.planned(ctx, fmt.Sprintf(knownAs, strings.Join(where, " UNION ")), args, true, func(rows pgx.Rows) error {
		ids, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	ids = append(found, ids...)
	return ids, len(ids) >= q.most(), err
}

const ledgerOf = `SELECT c.id, v.number, v.id, c.task_id, c.parent_task_id, c.agent_id, c.caller, c.profile, c.provider, c.requested, c.scopes, c.ttl_ms,
	v.state, v.issued_at, v.expires_at, v.upstream_expires_at, v.upstream, v.upstream_ids, v.trace, v.fingerprint, v.cause, v.reason,
	v.result, v.effective_at, v.basis, v.self_expires, v.unclaimed
FROM versions v JOIN credentials c ON c.id = v.credential_id WHERE v.id = ANY ($1)`

// ledger reads what became of versions, in the order of their ids given. One that is on the record only has nothing but its
// id.
func (l *Log) ledger(ctx context.Context, ids []string, now time.Time) (list []Held, err error) {
	err = l.planned(ctx, ledgerOf, []any{ids}, true, func(rows pgx.Rows) error {
		list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (Held, error) { return scanHeld(row, now) })
		return err
	})
	order := map[string]int{}
	for i, id := range ids {
		order[id] = i
		if err == nil && !slices.ContainsFunc(list, func(h Held) bool { return h.VersionID == id }) {
			list = append(list, Held{VersionID: id})
		}
	}
	slices.SortFunc(list, func(a, b Held) int { return cmp.Compare(order[a.VersionID], order[b.VersionID]) })
	return list, err
}

func scanHeld(row pgx.CollectableRow, now time.Time) (h Held, err error) {
	var end ending
	var ttl int64
	var fingerprint []byte
	err = row.Scan(&h.CredentialID, &h.Version, &h.VersionID, &h.TaskID, &h.ParentTaskID, &h.AgentID, &h.Caller, &h.Profile, &h.Provider,
		&h.RequestedScopes, &h.Scopes, &ttl, &h.State, &h.IssuedAt, &h.ExpiresAt, &h.UpstreamExpiresAt, &h.Upstream, &h.UpstreamIDs, &h.Trace,
		&fingerprint, &h.Cause, &h.Reason, &end.result, &end.effectiveAt, &end.basis, &end.selfExpires, &end.unclaimed)
	h.TTLSeconds, h.Fingerprint = float64(ttl)/1000, Fingerprint(fingerprint)
	h.IssuedAt, h.ExpiresAt = h.IssuedAt.UTC(), h.ExpiresAt.UTC()
	if h.UpstreamExpiresAt != nil {
		*h.UpstreamExpiresAt = h.UpstreamExpiresAt.UTC()
	}
	end.state, end.expiresAt = h.State, h.ExpiresAt
	h.Life = end.life(now.UTC())
	h.Ending = Ending{Result: end.result, Basis: end.basis}
	if end.effectiveAt != nil {
		h.Ending.EffectiveAt = *end.effectiveAt
	}
	return h, err
}
