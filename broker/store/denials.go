package store

import (
	"context"
	"errors"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/postgres"
	"github.com/taskpass/taskpass/broker/store/db"
)

// Denied implements broker.Denials.
func (s *Store) Denied(ctx context.Context, upstream string, at time.Time) ([]broker.Denial, error) {
	rows, err := s.q.DeniedAt(ctx, db.DeniedAtParams{Upstream: upstream, At: at})
	list := make([]broker.Denial, len(rows))
	for i, r := range rows {
		list[i] = broker.Denial{ID: broker.VersionID(r.ID), IssuedAt: r.IssuedAt, ExpiresAt: r.ExpiresAt, Done: r.Done, SourceIdentity: r.BySource}
	}
	return list, err
}

// CutOff implements broker.Denials.
func (s *Store) CutOff(ctx context.Context, upstream string, n broker.Notes, issuedBefore, now time.Time, e broker.Event) error {
	return s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
		return []broker.Event{e}, errors.Join(
			q.SaveUpkeep(ctx, saveUpkeep(upstream, n)),
			q.CutOff(ctx, db.CutOffParams{Upstream: upstream, Now: &now, IssuedBefore: issuedBefore}))
	})
}

// Locked implements broker.Upkeep by an advisory lock of the session, on a connection of its own: the pool's are for the
// work that is done meanwhile, no transaction stays open (P10), and PostgreSQL frees the lock with the connection,
// whatever became of the process. As many locks may be waited for or held at once as the pool has connections.
func (s *Store) Locked(ctx context.Context, upstream string, fn func(context.Context) error) error {
	select {
	case s.locks <- struct{}{}:
		defer func() { <-s.locks }()
	case <-ctx.Done():
		return ctx.Err()
	}
	conn, err := postgres.Connect(ctx, s.locking)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		_ = conn.Close(ctx)
	}()
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock(hashtextextended('taskpass:' || $1, 0))", upstream); err != nil {
		return err
	}
	return fn(ctx)
}
