package publish

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
)

// Destination takes one checkpoint. Taking the same one again does no harm.
type Destination interface {
	// Put returns once the checkpoint is durable there.
	Put(ctx context.Context, c tree.Checkpoint) error
}

// Config is how a destination is served. To, Name and Logger are required.
type Config struct {
	To     Destination
	Name   string // for the log and the metrics; it holds no secret
	Logger *slog.Logger

	Every time.Duration // at most one in this time; zero: each
	Retry time.Duration // before a failed one is tried again; zero: 2 s
	Limit time.Duration // for one try; zero: 20 s
}

// Queue serves one destination. It implements sequence.Publisher.
type Queue struct {
	Config
	mail chan tree.Checkpoint // holds the newest that waits

	mu   sync.Mutex
	done tree.Checkpoint // the last that was taken
}

// New makes a Queue. Run starts it.
func New(cfg Config) (*Queue, error) {
	if cfg.To == nil || cfg.Name == "" || cfg.Logger == nil {
		return nil, errors.New("publish: To, Name and Logger are required")
	}
	if cfg.Retry == 0 {
		cfg.Retry = 2 * time.Second
	}
	if cfg.Limit == 0 {
		cfg.Limit = 20 * time.Second
	}
	return &Queue{Config: cfg, mail: make(chan tree.Checkpoint, 1)}, nil
}

// Publish queues a checkpoint in the place of one that still waits. It does not block.
func (q *Queue) Publish(c tree.Checkpoint) {
	for {
		select {
		case q.mail <- c:
			return
		default:
		}
		select {
		case <-q.mail: // an older one
		default: // it was just taken
		}
	}
}

// Done is the last checkpoint that the destination took; Size 0: none yet.
func (q *Queue) Done() tree.Checkpoint {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.done
}

// Run works until ctx ends; what waits then is tried once more, within the limit for one try.
func (q *Queue) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			select {
			case c := <-q.mail:
				if err := q.try(context.WithoutCancel(ctx), c); err != nil {
					q.Logger.Warn("the last checkpoint is not published", "to", q.Name, "size", c.Size, "error", err, broker.VendorAttr(err))
				}
			default:
			}
			return
		case c := <-q.mail:
			wait := q.Every
			if err := q.try(ctx, c); err != nil {
				q.Logger.Warn("a checkpoint is not published: it will be tried again", "to", q.Name, "size", c.Size,
					"error", err, broker.VendorAttr(err))
				wait = q.Retry
			}
			if wait > 0 {
				pause(ctx, wait)
			}
		}
	}
}

// again puts back what was not taken, unless a newer one waits.
func (q *Queue) again(c tree.Checkpoint) {
	select {
	case q.mail <- c:
	default:
	}
}

// try hands a checkpoint over once. One that is not taken is put back, after a panic too.
func (q *Queue) try(ctx context.Context, c tree.Checkpoint) error {
	ctx, cancel := context.WithTimeout(ctx, q.Limit)
	defer cancel()
	taken := false
	defer func() {
		if !taken {
			q.again(c)
		}
	}()
	if err := q.To.Put(ctx, c); err != nil {
		return err
	}
	taken = true
	q.mu.Lock()
	defer q.mu.Unlock()
	q.done = c
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
