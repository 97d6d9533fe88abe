package store

import (
	"context"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store/db"
)

// Denied implements broker.Denials.
func (s *Store) Denied(ctx context.Context, upstream string, at time.Time) ([]broker.VersionID, error) {
	ids, err := s.q.DeniedAt(ctx, db.DeniedAtParams{Upstream: upstream, At: at})
	list := make([]broker.VersionID, len(ids))
	for i, id := range ids {
		list[i] = broker.VersionID(id)
	}
	return list, err
}

// Locked implements broker.Denials by an advisory lock of the session, on a connection of its own: PostgreSQL frees it
// when the process dies, and no transaction stays open meanwhile (P10).
func (s *Store) Locked(ctx context.Context, upstream string, fn func(context.Context) error) error {
	select { // fn needs connections too: those that wait for locks must not take them all
	case s.locks <- struct{}{}:
		defer func() { <-s.locks }()
	case <-ctx.Done():
		return ctx.Err()
	}
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock(hashtextextended('taskpass:' || $1, 0))", upstream); err != nil {
		// The lock may have been granted all the same: only closing the session is sure to free it.
		_ = conn.Conn().Close(context.WithoutCancel(ctx))
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		if _, err := conn.Exec(ctx, "SELECT pg_advisory_unlock(hashtextextended('taskpass:' || $1, 0))", upstream); err != nil {
			_ = conn.Conn().Close(ctx)
		}
	}()
	return fn(ctx)
}
