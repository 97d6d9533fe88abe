package store

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store/db"
)

// AddToken implements broker.Tokens.
func (s *Store) AddToken(ctx context.Context, t broker.Token, sha256 []byte, e broker.Event) error {
	return s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
		role, err := q.AddCaller(ctx, db.AddCallerParams{Name: t.Caller, Role: string(t.Role)})
		if err != nil {
			return nil, err
		}
		if role != string(t.Role) {
			return nil, broker.ErrRoleTaken
		}
		return []broker.Event{e}, q.AddToken(ctx, db.AddTokenParams{
			ID: t.ID, Caller: t.Caller, Sha256: sha256, CreatedAt: t.CreatedAt, ExpiresAt: t.ExpiresAt,
		})
	})
}

// FindToken implements broker.Tokens.
func (s *Store) FindToken(ctx context.Context, sha256 []byte) (broker.Token, error) {
	row, err := s.q.FindToken(ctx, sha256)
	if errors.Is(err, pgx.ErrNoRows) {
		return broker.Token{}, broker.ErrNoSuch
	}
	return broker.Token{
		ID: row.ID, Caller: row.Caller, Role: broker.Role(row.Role), ExpiresAt: row.ExpiresAt, RevokedAt: orZero(row.RevokedAt),
	}, err
}

// RevokeToken implements broker.Tokens.
func (s *Store) RevokeToken(ctx context.Context, id string, e broker.Event) error {
	return s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
		caller, err := q.RevokeToken(ctx, db.RevokeTokenParams{ID: id, Now: &e.At})
		if errors.Is(err, pgx.ErrNoRows) {
			return nil, broker.ErrNoSuch
		}
		e.Trace = map[string]string{"token_id": id, "caller": caller}
		return []broker.Event{e}, err
	})
}

// Tokens implements broker.Tokens.
func (s *Store) Tokens(ctx context.Context) ([]broker.Token, error) {
	rows, err := s.q.ListTokens(ctx)
	list := make([]broker.Token, 0, len(rows))
	for _, r := range rows {
		list = append(list, broker.Token{
			ID: r.ID, Caller: r.Caller, Role: broker.Role(r.Role),
			CreatedAt: r.CreatedAt.UTC(), ExpiresAt: r.ExpiresAt.UTC(), RevokedAt: orZero(r.RevokedAt),
		})
	}
	return list, err
}
