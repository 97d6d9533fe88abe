package store

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store/db"
)

// SQLSTATEs and constraints that mean something to the broker.
const (
	undefinedTable        = "42P01"
	insufficientPrivilege = "42501"
	checkViolation        = "23514"
	uniqueViolation       = "23505"

	constraintState   = "versions_state"
	constraintDiagram = "versions_diagram"
	constraintOneKey  = "slots_one_holder_a_key"
)

func isCode(err error, code string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == code
}

func breaks(err error, code string, constraints ...string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || pg.Code != code {
		return false
	}
	for _, c := range constraints {
		if pg.ConstraintName == c {
			return true
		}
	}
	return false
}

// Begin implements broker.Ledger.
func (s *Store) Begin(ctx context.Context, c broker.Credential, e broker.Event) error {
	metadata, err := json.Marshal(orEmpty(c.Metadata))
	if err != nil {
		return err
	}
	v := c.Version
	return s.commit(ctx, []broker.Event{e}, func(q *db.Queries) error {
		return q.BeginCredential(ctx, db.BeginCredentialParams{
			CredentialID: string(c.ID), Caller: c.Caller, TaskID: c.TaskID, AgentID: c.AgentID,
			Profile: c.Profile, Provider: c.Provider, Requested: c.Requested, Scopes: c.Scopes, Metadata: metadata,
			TtlMs: c.TTL.Milliseconds(), CreatedAt: c.CreatedAt,
			VersionID: string(v.ID), Number: int32(v.Number), State: string(v.State), //nolint:gosec // counts from 1
			IssuedAt: v.IssuedAt, ExpiresAt: v.ExpiresAt, SelfExpires: v.SelfExpires, Upstream: v.Upstream, DueAt: &v.DueAt,
		})
	})
}

// Move implements broker.Ledger.
func (s *Store) Move(ctx context.Context, c broker.Credential, from []broker.State, sealed []byte, events ...broker.Event) error {
	v := c.Version
	trace, err := json.Marshal(orEmpty(v.Trace))
	if err != nil {
		return err
	}
	states := make([]string, len(from))
	for i, f := range from {
		states[i] = string(f)
	}
	err = s.commit(ctx, events, func(q *db.Queries) error {
		return q.MoveVersion(ctx, db.MoveVersionParams{
			ID: string(v.ID), FromStates: states, State: string(v.State), Sealed: sealed,
			UpstreamExpiresAt: orNil(v.UpstreamExpiresAt), UpstreamIds: nonNil(v.UpstreamIDs), Trace: trace,
			Fingerprint: v.Fingerprint, Cause: string(v.Cause), Reason: v.Reason,
			Result: string(v.Revocation.Result), EffectiveAt: orNil(v.Revocation.EffectiveAt), Basis: v.Revocation.Basis,
			LastError: string(v.LastError), Attempts: int32(v.Attempts), //nolint:gosec // one a day at the most
			DueAt: orNil(v.DueAt), EndedAt: orNil(v.EndedAt),
		})
	})
	if breaks(err, checkViolation, constraintState, constraintDiagram) {
		return broker.ErrMoved
	}
	return err
}

// Record implements broker.Ledger.
func (s *Store) Record(ctx context.Context, events ...broker.Event) error {
	return s.commit(ctx, events, nil)
}

// Credential implements broker.Ledger.
func (s *Store) Credential(ctx context.Context, id broker.CredentialID) (broker.Credential, error) {
	row, err := s.q.FindCredential(ctx, string(id))
	if errors.Is(err, pgx.ErrNoRows) {
		return broker.Credential{}, broker.ErrNoSuch
	}
	if err != nil {
		return broker.Credential{}, err
	}
	return toCredential(row.Credential, row.Version)
}

// Claim implements broker.Ledger.
func (s *Store) Claim(ctx context.Context, provider string, now time.Time, lease time.Duration, limit int) ([]broker.Credential, error) {
	rows, err := s.q.ClaimDue(ctx, db.ClaimDueParams{
		Provider: provider, Now: &now, LeaseUntil: new(now.Add(lease)), MaxRows: int32(limit), //nolint:gosec // a small constant
	})
	if err != nil {
		return nil, err
	}
	list := make([]broker.Credential, 0, len(rows))
	for _, row := range rows {
		c, err := toCredential(row.Credential, row.Version)
		if err != nil { // one bad row stops nothing else (P11); its lease brings it, and this line, back
			s.logger.ErrorContext(ctx, "due version unreadable", "version_id", row.Version.ID, "error", err)
			continue
		}
		c.Version.Attempts = int(row.AttemptsNow)
		list = append(list, c)
	}
	return list, nil
}

// DueProviders implements broker.Ledger.
func (s *Store) DueProviders(ctx context.Context, now time.Time) ([]string, error) {
	return s.q.DueProviders(ctx, &now)
}

// toCredential makes the domain's nouns of two rows.
func toCredential(c db.Credential, v db.Version) (broker.Credential, error) {
	var metadata, trace map[string]string
	if err := errors.Join(json.Unmarshal(c.Metadata, &metadata), json.Unmarshal(v.Trace, &trace)); err != nil {
		return broker.Credential{}, err
	}
	return broker.Credential{
		ID: broker.CredentialID(c.ID), TaskID: c.TaskID, AgentID: c.AgentID, Profile: c.Profile, Provider: c.Provider,
		Caller: c.Caller, Requested: c.Requested, Scopes: c.Scopes, Metadata: metadata,
		TTL: time.Duration(c.TtlMs) * time.Millisecond, CreatedAt: c.CreatedAt.UTC(),
		Version: broker.Version{
			ID: broker.VersionID(v.ID), Number: int(v.Number), State: broker.State(v.State),
			IssuedAt: v.IssuedAt.UTC(), ExpiresAt: v.ExpiresAt.UTC(), UpstreamExpiresAt: orZero(v.UpstreamExpiresAt),
			SelfExpires: v.SelfExpires, Upstream: v.Upstream, UpstreamIDs: v.UpstreamIds, Trace: trace,
			Fingerprint: v.Fingerprint, Cause: broker.Cause(v.Cause), Reason: v.Reason,
			Revocation: broker.Revocation{
				Result: broker.Result(v.Result), EffectiveAt: orZero(v.EffectiveAt), Basis: v.Basis,
			},
			LastError: broker.Code(v.LastError), Attempts: int(v.Attempts),
			DueAt: orZero(v.DueAt), EndedAt: orZero(v.EndedAt),
		},
	}, nil
}

func orNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
