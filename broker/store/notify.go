package store

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/broker"
)

// channel is PostgreSQL's notification channel for credentials that changed in a way that their holders should know.
const channel = "taskpass_credentials"

// reconnectPause is how long after a failure the listener tries again; meanwhile watchers look by themselves.
const reconnectPause = time.Second

// watchers wakes who waits for a credential to change, whichever replica changed it. One connection listens for all. It
// gives hints only: the table is the truth.
type watchers struct {
	pool *pgxpool.Pool
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu sync.Mutex
	by map[broker.CredentialID]map[chan struct{}]struct{}
}

func newWatchers(pool *pgxpool.Pool, runner *broker.Runner) *watchers {
	w := &watchers{pool: pool, by: map[broker.CredentialID]map[chan struct{}]struct{}{}}
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	w.wg.Go(func() { runner.Loop(ctx, "notify listener", w.run) })
	return w
}

func (w *watchers) run(ctx context.Context) {
	for ctx.Err() == nil {
		_ = w.listen(ctx) // whatever it was, it is tried again
		w.wakeAll()
		select {
		case <-ctx.Done():
		case <-time.After(reconnectPause):
		}
	}
}

func (w *watchers) close() {
	w.stop()
	w.wg.Wait()
}

func (w *watchers) listen(ctx context.Context) error {
	conn, err := w.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	own := conn.Hijack() // a connection that listens is of no other use
	defer func() { _ = own.Close(context.WithoutCancel(ctx)) }()
	if _, err := own.Exec(ctx, "LISTEN "+channel); err != nil {
		return err
	}
	w.wakeAll() // what happened before is not told
	for {
		n, err := own.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		w.wake(broker.CredentialID(n.Payload))
	}
}

func (w *watchers) wake(id broker.CredentialID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.by[id] {
		select {
		case c <- struct{}{}:
		default: // it has a hint that it has not yet looked at
		}
	}
}

func (w *watchers) wakeAll() {
	w.mu.Lock()
	ids := make([]broker.CredentialID, 0, len(w.by))
	for id := range w.by {
		ids = append(ids, id)
	}
	w.mu.Unlock()
	for _, id := range ids {
		w.wake(id)
	}
}

// Changes implements broker.Versions.
func (s *Store) Changes(id broker.CredentialID) (<-chan struct{}, func()) {
	w, c := s.watchers, make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by[id] == nil {
		w.by[id] = map[chan struct{}]struct{}{}
	}
	w.by[id][c] = struct{}{}
	return c, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.by[id], c)
		if len(w.by[id]) == 0 {
			delete(w.by, id)
		}
	}
}
