package store

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/broker"
)

// channel is PostgreSQL's notification channel for credentials that changed in a way that their holders should know.
const channel = "taskpass_credentials"

// reconnectPause is how long after a failure the listener tries again; meanwhile watchers look by themselves.
const reconnectPause = time.Second

// listenPing is how often the connection that listens is asked whether it still lives: one that the network dropped
// would be silent for ever.
const listenPing = 15 * time.Second

// watchers wakes who waits for a credential to change, whichever replica changed it. One connection listens for all. It
// gives hints only: the table is the truth.
type watchers struct {
	pool *pgxpool.Pool
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu   sync.Mutex
	by   map[broker.CredentialID]map[chan struct{}]struct{}
	each []func(broker.CredentialID) // are called with every id, and an empty one for all
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
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reconnectPause)
		defer cancel()
		_ = own.Close(ctx)
	}()
	if _, err := own.Exec(ctx, "LISTEN "+channel); err != nil {
		return err
	}
	w.wakeAll() // what happened before is not told
	for {
		wait, cancel := context.WithTimeout(ctx, listenPing)
		n, err := own.WaitForNotification(wait)
		cancel()
		switch {
		case err == nil:
			w.wake(broker.CredentialID(n.Payload))
		case ctx.Err() != nil || !pgconn.Timeout(err):
			return err
		default:
			if err := own.Ping(ctx); err != nil {
				return err
			}
		}
	}
}

func (w *watchers) wake(id broker.CredentialID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	hint(w.by[id])
	for _, fn := range w.each {
		fn(id)
	}
}

func (w *watchers) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, waiting := range w.by {
		hint(waiting)
	}
	for _, fn := range w.each {
		fn("")
	}
}

func hint(waiting map[chan struct{}]struct{}) {
	for c := range waiting {
		select {
		case c <- struct{}{}:
		default: // it has a hint that it has not yet looked at
		}
	}
}

// OnChange implements broker.Versions.
func (s *Store) OnChange(fn func(broker.CredentialID)) {
	s.watchers.mu.Lock()
	defer s.watchers.mu.Unlock()
	s.watchers.each = append(s.watchers.each, fn)
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
