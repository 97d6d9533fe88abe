package store

import (
	"context"
	"errors"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/broker/store/db"
)

// turns lets one at a time of this process go on under a name. The others wait here, where they hold no connection:
// however many requests one caller sends, at most one connection of a replica waits for the caller's lock.
type turns struct {
	mu    sync.Mutex
	names map[string]*turn
}

type turn struct {
	free chan struct{} // holds a token while nobody has the turn
	n    int           // who has it, or waits
}

// wait returns when it is the caller's turn, or ctx has ended. done gives the turn to the next.
func (t *turns) wait(ctx context.Context, name string) (done func(), err error) {
	t.mu.Lock()
	if t.names == nil {
		t.names = map[string]*turn{}
	}
	at := t.names[name]
	if at == nil {
		at = &turn{free: make(chan struct{}, 1)}
		at.free <- struct{}{}
		t.names[name] = at
	}
	at.n++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if at.n--; at.n == 0 {
			delete(t.names, name)
		}
	}
	select {
	case <-at.free:
		return func() { at.free <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// oneAtATime sends one query behind the lock of a share, when it is this process's turn for it.
func (s *Store) oneAtATime(ctx context.Context, share string, send func(*db.Queries) error) error {
	done, err := s.takes.wait(ctx, share)
	if err != nil {
		return err
	}
	defer done()
	return send(db.New(behindLock{s.pool, "share:" + share}))
}

// behindLock sends one query behind an advisory lock, in one round trip that is one implicit transaction: the query's
// snapshot is taken when the lock is held, and the server lets go of the lock whatever becomes of this process.
type behindLock struct {
	pool *pgxpool.Pool
	lock string
}

func (b behindLock) Exec(context.Context, string, ...any) (pgconn.CommandTag, error) {
	return pgconn.CommandTag{}, errOnlyRow
}

func (b behindLock) Query(context.Context, string, ...any) (pgx.Rows, error) { return nil, errOnlyRow }

var errOnlyRow = errors.New("store: only a statement that answers one row is sent behind a lock")

func (b behindLock) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	var batch pgx.Batch
	batch.Queue("SELECT pg_advisory_xact_lock(hashtextextended('taskpass:' || $1, 0))", b.lock)
	batch.Queue(sql, args...)
	return lockedRow{b.pool.SendBatch(ctx, &batch)}
}

// lockedRow is the second answer of the batch.
type lockedRow struct{ pgx.BatchResults }

func (r lockedRow) Scan(to ...any) error {
	_, err := r.Exec()
	if err == nil {
		err = r.QueryRow().Scan(to...)
	}
	if closed := r.Close(); err == nil { // the commit
		err = closed
	}
	return err
}
