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
	notNullViolation      = "23502"

	constraintState     = "versions_a_known_state"
	constraintDiagram   = "versions_diagram"
	constraintHasSecret = "versions_active_has_secret"
	constraintNumber    = "versions_credential_id_number_key"
	constraintOneHold   = "slots_one_holder_a_key"
	constraintLimit     = "live_counts_within_limit"
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

// Begin implements broker.Versions.
func (s *Store) Begin(ctx context.Context, in broker.Intent) error {
	w := &write{events: in.Events}
	err := s.commit(ctx, w, func(q *db.Queries) error {
		if err := addKey(ctx, q, in.Key, idsOf(in.Credentials)); err != nil {
			return err
		}
		for _, c := range in.Credentials {
			w.counts = append(w.counts, countsOf(c, 1, in.Limits)...)
			if err := beginCredential(ctx, q, c); err != nil {
				return err
			}
		}
		return beginExtras(ctx, q, in)
	})
	switch {
	case keyUsed(err):
		return broker.ErrKeyUsed
	case breaks(err, checkViolation, constraintState):
		return broker.ErrTaskEnded
	case breaks(err, checkViolation, constraintLimit):
		return s.overLimit(ctx, in)
	}
	return err
}

// addKey comes first in its transaction: a repeated request is told so, whatever else is wrong with it by now.
func addKey(ctx context.Context, q *db.Queries, k *broker.RequestKey, ids []string) error {
	if k == nil {
		return nil
	}
	return q.AddIdempotency(ctx, db.AddIdempotencyParams{
		Caller: k.Caller, KeySha256: k.SHA256, RequestSha256: k.RequestSHA256, Credentials: ids,
		Seen: int32(k.Seen), ExpiresAt: k.ExpiresAt, Now: k.At, //nolint:gosec // counts from 1
	})
}

// keyUsed tells whether a statement failed because its key was used and has not run out: see AddIdempotency.
func keyUsed(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == notNullViolation && pg.TableName == "idempotency" && pg.ColumnName == "request_sha256"
}

func idsOf(list []broker.Credential) []string {
	ids := make([]string, len(list))
	for i, c := range list {
		ids[i] = string(c.ID)
	}
	return ids
}

func beginCredential(ctx context.Context, q *db.Queries, c broker.Credential) error {
	metadata, err := json.Marshal(orEmpty(c.Metadata))
	if err != nil {
		return err
	}
	v := c.Version
	return q.BeginCredential(ctx, db.BeginCredentialParams{
		CredentialID: string(c.ID), Caller: c.Caller, TaskID: c.TaskID, AgentID: c.AgentID,
		Profile: c.Profile, Provider: c.Provider, Requested: c.Requested, Scopes: c.Scopes, Metadata: metadata,
		TtlMs: c.TTL.Milliseconds(), CreatedAt: c.CreatedAt, HardEndAt: orNil(c.HardEnd), ParentTaskID: c.Parent,
		VersionID: string(v.ID), Number: int32(v.Number), State: string(v.State), //nolint:gosec // counts from 1
		IssuedAt: v.IssuedAt, ExpiresAt: v.ExpiresAt, SelfExpires: v.SelfExpires, Upstream: v.Upstream,
		DueAt: &v.DueAt, Unclaimed: v.Unclaimed,
	})
}

func beginExtras(ctx context.Context, q *db.Queries, in broker.Intent) error {
	for _, t := range in.Tickets {
		if err := q.AddTicket(ctx, db.AddTicketParams{
			Sha256: t.SHA256, CredentialID: string(t.Credential), VersionID: string(t.Version), Sealed: t.Sealed, ExpiresAt: t.ExpiresAt,
		}); err != nil {
			return err
		}
	}
	if t := in.TaskToken; t != nil {
		return q.AddTaskToken(ctx, db.AddTaskTokenParams{
			Sha256: t.SHA256, ID: t.ID, Caller: t.Caller, TaskID: t.TaskID, CreatedAt: t.CreatedAt, ExpiresAt: t.ExpiresAt,
		})
	}
	return nil
}

// Next implements broker.Versions.
func (s *Store) Next(ctx context.Context, c broker.Credential, key *broker.RequestKey, token *broker.NewTaskToken, e broker.Event) error {
	v := c.Version
	w := &write{events: []broker.Event{e}, counts: countsOf(c, 1, unlimited)}
	err := s.commit(ctx, w, func(q *db.Queries) error {
		err := errors.Join(addKey(ctx, q, key, []string{string(c.ID)}), beginExtras(ctx, q, broker.Intent{TaskToken: token}))
		if err != nil {
			return err
		}
		return q.BeginVersion(ctx, db.BeginVersionParams{
			ID: string(v.ID), CredentialID: string(c.ID), Number: int32(v.Number), Provider: c.Provider, //nolint:gosec // counts from 1
			Caller: c.Caller, TaskID: c.TaskID, State: string(v.State), IssuedAt: v.IssuedAt, ExpiresAt: v.ExpiresAt,
			SelfExpires: v.SelfExpires, Upstream: v.Upstream, DueAt: &v.DueAt, Ungiven: v.Ungiven,
		})
	})
	switch {
	case keyUsed(err):
		return broker.ErrKeyUsed
	case breaks(err, uniqueViolation, constraintNumber):
		return broker.ErrMoved
	case breaks(err, checkViolation, constraintState):
		return broker.ErrTaskEnded
	}
	return err
}

// knownFor is how far back an upstream id is looked for: longer than any version lives (30 days at most).
const knownFor = 32 * 24 * time.Hour

// Activate implements broker.Versions.
func (s *Store) Activate(ctx context.Context, c broker.Credential, sealed []byte, others time.Time, e broker.Event) error {
	w := &write{events: []broker.Event{e}}
	if own := c.Version.UpstreamIDs; c.Version.OwnID && len(own) > 0 {
		last := &write{}
		err := errors.Join(db.New(capture{w}).LockOwnID(ctx, own[0]), db.New(capture{last}).RefuseKnownID(ctx, db.RefuseKnownIDParams{
			ID: string(c.Version.ID), OwnID: own[0], Since: e.At.Add(-knownFor),
		}))
		if err != nil {
			return err
		}
		w.after = last.statements
	}
	return s.move(ctx, w, c, []broker.State{broker.StateIssuing}, sealed, func(q *db.Queries) error {
		if c.Version.Number == 1 {
			return nil
		}
		w.notify = append(w.notify, c.ID)
		return q.SucceedVersion(ctx, db.SucceedVersionParams{
			Number: int32(c.Version.Number), CredentialID: string(c.ID), Until: others, //nolint:gosec // counts from 1
		})
	})
}

// Move implements broker.Versions.
func (s *Store) Move(ctx context.Context, c broker.Credential, from []broker.State, sealed []byte, events ...broker.Event) error {
	w := &write{events: events}
	if c.Version.State.Ended() {
		w.counts = countsOf(c, -1, broker.Limits{})
	}
	if len(events) > 0 { // an attempt put off changes nothing that a holder should know
		w.notify = append(w.notify, c.ID)
	}
	return s.move(ctx, w, c, from, sealed, func(*db.Queries) error { return nil })
}

func (s *Store) move(ctx context.Context, w *write, c broker.Credential, from []broker.State, sealed []byte, more func(*db.Queries) error) error {
	v := c.Version
	trace, err := json.Marshal(orEmpty(v.Trace))
	if err != nil {
		return err
	}
	states := make([]string, len(from))
	for i, f := range from {
		states[i] = string(f)
	}
	err = s.commit(ctx, w, func(q *db.Queries) error {
		if v.Unclaimed { // before its version, as a redemption locks them: neither waits for the other in a circle
			if err := q.VoidTicket(ctx, string(v.ID)); err != nil {
				return err
			}
		}
		return errors.Join(q.MoveVersion(ctx, db.MoveVersionParams{
			ID: string(v.ID), FromStates: states, State: string(v.State), Sealed: sealed,
			Caller: c.Caller, TaskID: c.TaskID, Unclaimed: v.Unclaimed,
			UpstreamExpiresAt: orNil(v.UpstreamExpiresAt), UpstreamIds: nonNil(v.UpstreamIDs), Trace: trace,
			Fingerprint: v.Fingerprint, Cause: string(v.Cause), Reason: v.Reason,
			Result: string(v.Revocation.Result), EffectiveAt: orNil(v.Revocation.EffectiveAt), Basis: v.Revocation.Basis,
			LastError: string(v.LastError), Attempts: int32(v.Attempts), //nolint:gosec // one a day at the most
			DueAt: orNil(v.DueAt), EndedAt: orNil(v.EndedAt),
		}), more(q))
	})
	switch {
	case breaks(err, checkViolation, constraintState, constraintDiagram):
		return broker.ErrMoved
	case breaks(err, checkViolation, constraintHasSecret):
		return broker.ErrIDKnown
	}
	return err
}

// AskIssuingToEnd implements broker.Versions.
func (s *Store) AskIssuingToEnd(ctx context.Context, id broker.VersionID, cause broker.Cause, e broker.Event) error {
	return s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
		asked, err := q.AskIssuingToEnd(ctx, db.AskIssuingToEndParams{Cause: string(cause), ID: string(id)})
		if err == nil && asked == 0 {
			err = broker.ErrMoved
		}
		return []broker.Event{e}, err
	})
}

// Forbid implements broker.Versions.
func (s *Store) Forbid(ctx context.Context, id broker.CredentialID, e broker.Event) error {
	return s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
		n, err := q.Forbid(ctx, string(id))
		if err == nil && n == 0 {
			err = broker.ErrMoved
		}
		return []broker.Event{e}, err
	})
}

// Record implements broker.Versions.
func (s *Store) Record(ctx context.Context, events ...broker.Event) error {
	return s.commit(ctx, &write{events: events}, nil)
}

// Tidy implements broker.Versions.
func (s *Store) Tidy(ctx context.Context, now time.Time) error {
	return errors.Join(s.q.DropOldIdempotency(ctx, now), s.q.DropOldTaskTokens(ctx, now), s.q.DropIdleCounts(ctx), s.q.DropLeftKeys(ctx))
}

func orNoSuch(err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return broker.ErrNoSuch
	}
	return err
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
