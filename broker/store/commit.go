package store

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store/db"
)

const (
	flushers     = 2   // one sends while the other collects
	maxGroup     = 128 // writes that share one commit
	flushTimeout = 10 * time.Second
)

// write is a state change and its events: they commit together or not at all.
type write struct {
	statements []statement
	counts     []count
	notify     []broker.CredentialID // whose watchers to wake
	events     []broker.Event
	after      []statement // sent after the events of the whole group
	done       chan error  // buffered: the committer never waits for a caller that has gone
}

type statement struct {
	sql  string
	args []any
}

// commit writes the statements that queries sends, and the events, as one write of the group committer.
func (s *Store) commit(ctx context.Context, w *write, queries func(*db.Queries) error) error {
	if queries != nil {
		if err := queries(db.New(capture{w})); err != nil {
			return err
		}
	}
	return s.committer.commit(ctx, w)
}

// capture stands in for a connection: it keeps the statements that generated queries would send, so that the committer
// can send many of them together and the queries stay typed.
type capture struct{ *write }

func (c capture) Exec(_ context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	c.statements = append(c.statements, statement{sql, args})
	return pgconn.CommandTag{}, nil
}

func (c capture) Query(context.Context, string, ...any) (pgx.Rows, error) { return nil, errOnlyExec }

func (c capture) QueryRow(context.Context, string, ...any) pgx.Row { return nil }

var errOnlyExec = errors.New("store: only statements without an answer can share a commit")

// committer collects the writes that wait at the same moment into one transaction and one round trip, and answers each
// after the commit. A write that PostgreSQL refuses spoils its group's transaction, so the group is then sent again one
// by one: only the bad one fails (P11).
type committer struct {
	pool  *pgxpool.Pool
	run   *broker.Runner
	queue chan *write
	stop  context.CancelFunc
	ctx   context.Context
	wg    sync.WaitGroup
	ended chan struct{} // closed when nobody sends any more
	once  sync.Once
}

var errClosed = errors.New("the ledger is closed")

func newCommitter(pool *pgxpool.Pool, run *broker.Runner) *committer {
	c := &committer{pool: pool, run: run, queue: make(chan *write, maxGroup), ended: make(chan struct{})}
	c.ctx, c.stop = context.WithCancel(context.Background())
	for range flushers {
		c.wg.Go(func() { run.Loop(c.ctx, "group committer", func(context.Context) { c.work() }) })
	}
	return c
}

func (c *committer) close() {
	c.stop()
	c.wg.Wait()
	c.once.Do(func() { close(c.ended) })
}

// commit queues a write and waits for its commit. When it returns an error that is not PostgreSQL's, the write may have
// been committed all the same: the callers' steps are guarded so that this does no harm.
func (c *committer) commit(ctx context.Context, w *write) error {
	w.done = make(chan error, 1)
	select {
	case c.queue <- w:
	case <-ctx.Done():
		return ctx.Err()
	case <-c.ctx.Done():
		return errClosed
	}
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-c.ended: // it may have been sent just before
		select {
		case err := <-w.done:
			return err
		default:
			return errClosed
		}
	}
}

func (c *committer) work() {
	group := make([]*write, 0, maxGroup)
	for {
		group = group[:0]
		select {
		case w := <-c.queue:
			group = append(group, w)
		case <-c.ctx.Done():
			if len(c.queue) == 0 {
				return
			}
		}
		for len(group) < maxGroup && len(c.queue) > 0 {
			select {
			case w := <-c.queue:
				group = append(group, w)
			default: // the other flusher took it
			}
		}
		c.flush(group)
	}
}

func (c *committer) flush(group []*write) {
	if len(group) == 0 {
		return
	}
	err := c.try(group)
	var refused *pgconn.PgError
	var panicked *broker.PanicError
	if len(group) > 1 && (errors.As(err, &refused) || errors.As(err, &panicked)) {
		for _, w := range group {
			w.done <- c.try([]*write{w})
		}
		return
	}
	for _, w := range group {
		w.done <- err
	}
}

// try sends a group. A write that makes it panic fails like one that PostgreSQL refuses.
func (c *committer) try(group []*write) error {
	return c.run.Do(c.ctx, "group committer", func() error { return c.send(group) })
}

// send is one round trip: a batch without explicit transaction control is one implicit transaction.
func (c *committer) send(group []*write) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), flushTimeout)
	defer cancel()
	var batch pgx.Batch
	var events []broker.Event
	var after []statement
	var totals counts
	for _, w := range group {
		for _, s := range w.statements {
			batch.Queue(s.sql, s.args...)
		}
		for _, id := range w.notify {
			batch.Queue("SELECT pg_notify($1, $2)", channel, string(id))
		}
		totals.add(w.counts)
		events, after = append(events, w.events...), append(after, w.after...)
	}
	if err := audit.Append(&batch, events); err != nil {
		return err
	}
	for _, s := range after {
		batch.Queue(s.sql, s.args...)
	}
	totals.queue(&batch) // last, for their rows are those that other groups wait for
	return c.pool.SendBatch(ctx, &batch).Close()
}
