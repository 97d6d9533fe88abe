package store

import (
	"context"
	"errors"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store/db"
)

// Redeem implements broker.Tickets. The ticket's row is locked, so that of two who redeem it at once one is first.
func (s *Store) Redeem(ctx context.Context, sha256 []byte, now, due time.Time, event func(broker.Credential) broker.Event) (broker.Credential, error) {
	var c broker.Credential
	err := s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
		row, err := q.LockTicket(ctx, sha256)
		if err != nil {
			return nil, orNoSuch(err)
		}
		if c, err = toCredential(row.Credential, row.Version); err != nil {
			return nil, err
		}
		v := &c.Version
		switch {
		case row.Ticket.RedeemedAt != nil:
			return nil, broker.ErrRedeemed
		case !v.Unclaimed || v.State != broker.StateIssuing || v.Cause != broker.CauseNone || !now.Before(row.Ticket.ExpiresAt):
			return nil, broker.ErrVoid
		}
		v.Unclaimed, v.IssuedAt, v.ExpiresAt, v.DueAt = false, now, now.Add(c.TTL), due
		if !c.HardEnd.IsZero() && v.ExpiresAt.After(c.HardEnd) {
			v.ExpiresAt = c.HardEnd
		}
		err = errors.Join(
			q.UseTicket(ctx, db.UseTicketParams{Sha256: sha256, Now: &now}),
			q.ClaimVersion(ctx, db.ClaimVersionParams{ID: string(v.ID), IssuedAt: v.IssuedAt, ExpiresAt: v.ExpiresAt, DueAt: &v.DueAt}),
		)
		return []broker.Event{event(c)}, err
	})
	return c, err
}

// TicketOf implements broker.Tickets.
func (s *Store) TicketOf(ctx context.Context, id broker.CredentialID) ([]byte, time.Time, error) {
	row, err := s.q.TicketOf(ctx, string(id))
	if err == nil && row.Sealed == nil {
		return nil, time.Time{}, broker.ErrNoSuch
	}
	return row.Sealed, row.ExpiresAt.UTC(), orNoSuch(err)
}

// FindTaskToken implements broker.TaskTokens.
func (s *Store) FindTaskToken(ctx context.Context, sha256 []byte) (broker.NewTaskToken, bool, error) {
	row, err := s.q.FindTaskToken(ctx, sha256)
	t := row.TaskToken
	return broker.NewTaskToken{
		ID: t.ID, SHA256: t.Sha256, Caller: t.Caller, TaskID: t.TaskID, CreatedAt: t.CreatedAt.UTC(), ExpiresAt: t.ExpiresAt.UTC(),
	}, row.Ended, orNoSuch(err)
}
