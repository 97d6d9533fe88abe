package sequence

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/audit/tree"
)

// Publisher puts checkpoints where the database's owner cannot change them.
type Publisher interface {
	// Publish takes a checkpoint and does not wait.
	Publish(c tree.Checkpoint)
}

// Config is what a Sequencer works with. Pool, Signer and Logger are required.
type Config struct {
	Pool   *pgxpool.Pool
	Signer *tree.Signer
	Logger *slog.Logger

	Publish []Publisher
	// ReadBack are the places outside the database where this log was published. Nothing is signed before each of them
	// has been read, and what is signed extends what they have.
	ReadBack []Reader
	// Alarm is told why the tree is refused, each round until it has taken it. nil: only the log and the state say it.
	Alarm func(ctx context.Context, reason string) error
	Clock func() time.Time // nil: time.Now

	Every     time.Duration // a round, and about one checkpoint, half of it after the last at the earliest; zero: 1 s
	Heartbeat time.Duration // at least one checkpoint, even if nothing happens; zero: 50 s

	Reached func(ctx context.Context, point string) // kill points, for tests: in_round, before_commit, after_commit
}

// maxBatch is how many events one round puts into the tree. That many make what a round costs besides, above all its
// commit, small; their bodies are not kept, so they take 3 MB.
const maxBatch = 16384

// Sequencer puts events into the tree and signs checkpoints. Every replica has one; they take turns.
type Sequencer struct {
	Config
	keys *tree.Keys

	mu      sync.Mutex
	unread  []Reader          // places that nothing was heard of yet
	held    []tree.Checkpoint // the newest of each place, until they were held against the tree
	known   tree.Checkpoint   // the newest that this process has seen signed; Size 0: none
	refused string            // why the tree is not signed any more
	alarmed bool              // Alarm has taken it
}

// New makes a Sequencer. Run starts it.
func New(cfg Config) (*Sequencer, error) {
	if cfg.Pool == nil || cfg.Signer == nil || cfg.Logger == nil {
		return nil, errors.New("sequence: Pool, Signer and Logger are required")
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Every == 0 {
		cfg.Every = time.Second
	}
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = 50 * time.Second
	}
	if cfg.Reached == nil {
		cfg.Reached = func(context.Context, string) {}
	}
	return &Sequencer{Config: cfg, keys: cfg.Signer.Keys(), unread: cfg.ReadBack}, nil
}

// Run works until ctx ends. An error costs a round and nothing else; a refusal lasts until the process is started anew.
func (s *Sequencer) Run(ctx context.Context) {
	s.awaitPublished(ctx)
	tick := time.NewTicker(s.Every)
	defer tick.Stop()
	for {
		more, err := s.Round(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrRefused): // has been said
		case err != nil:
			s.Logger.Error("the audit tree's round failed: it will be tried again", "error", err)
		case more:
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ErrRefused says that the tree in the database does not extend what was signed.
var ErrRefused = errors.New("the audit tree was rewritten: nothing is signed any more")

// Refused tells why the tree is not signed any more; "" if it is.
func (s *Sequencer) Refused() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

// Round does what is due once, unless another process is at it, and tells whether there is more that waits.
func (s *Sequencer) Round(ctx context.Context) (more bool, err error) {
	if s.Refused() != "" {
		s.alarm(ctx)
		return false, ErrRefused
	}
	if err := s.readBack(ctx); err != nil {
		return false, err
	}
	s.mu.Lock()
	r := round{Sequencer: s, ctx: ctx, known: s.known, published: s.held}
	s.mu.Unlock()
	if err := pgx.BeginFunc(ctx, s.Pool, r.run); err != nil {
		if bad, ok := errors.AsType[*rewritten](err); ok {
			s.refuse(ctx, bad.reason)
			return false, ErrRefused
		}
		if errors.Is(err, errTree) { // nobody but this round writes to the tree: it does not heal by itself
			s.refuse(ctx, err.Error())
			return false, ErrRefused
		}
		return false, err
	}
	s.Reached(ctx, "after_commit")
	if r.known.Size > 0 {
		s.mu.Lock()
		if r.known.Size >= s.known.Size {
			s.known, s.held = r.known, nil
		}
		s.mu.Unlock()
	}
	if r.signed.Size > 0 {
		for _, p := range s.Publish {
			p.Publish(r.signed)
		}
	}
	return r.more, nil
}

func (s *Sequencer) refuse(ctx context.Context, reason string) {
	s.mu.Lock()
	first := s.refused == ""
	if first {
		s.refused = reason
	}
	s.mu.Unlock()
	if first {
		s.Logger.Error(ErrRefused.Error(), "reason", reason)
		s.alarm(ctx)
	}
}

// alarm tells Alarm what it has not taken yet: a database that is away for a moment must not keep it off the record.
func (s *Sequencer) alarm(ctx context.Context) {
	s.mu.Lock()
	reason, done := s.refused, s.alarmed || s.Alarm == nil
	s.mu.Unlock()
	if done {
		return
	}
	if err := s.Alarm(ctx, reason); err != nil {
		s.Logger.Error("that the audit tree was rewritten is not on the record: it will be tried again", "error", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alarmed = true
}
