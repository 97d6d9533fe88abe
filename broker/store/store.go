// Package store keeps the ledger in PostgreSQL. It holds what the broker asks of storage and nothing of what it means:
// which step follows which is the broker's and the constraints' business.
//
// State and audit event are written in one transaction (P4). The two writes of a mint go through a group committer:
// requests that wait at the same moment share a commit and one round trip. Errors of PostgreSQL are told apart by
// SQLSTATE and constraint name, never by text.
package store

//go:generate go run github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1 generate -f ../../sqlc.yaml

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/postgres"
	"github.com/taskpass/taskpass/broker/store/db"
)

// Config says which database and how much of it.
type Config struct {
	URL       broker.Secret    // postgres://…; it may contain a password
	From      string           // what an error calls the URL; see postgres.Config
	MaxConns  int32            // for issuing and everything else that changes something; zero: 16
	ReadConns int32            // for lists and searches, see Reading; zero: 4
	Logger    *slog.Logger     // nil: nothing is logged
	Clock     func() time.Time // the process's own clock; nil: time.Now
	Runner    *broker.Runner   // of its goroutines; nil: one with Logger
}

// Store is the ledger. It is safe for concurrent use; close it when done.
type Store struct {
	pool      *pgxpool.Pool
	separate  pools
	locking   postgres.Config // for the connections of Locked
	q         *db.Queries
	committer *committer
	watchers  *watchers
	locks     chan struct{} // bounds the connections that wait for, or hold, an advisory lock
	takes     *turns        // by pool and caller
	logger    *slog.Logger
	clock     *clock
}

// lockLimit is how long Locked waits for a lock that is held elsewhere.
const lockLimit = 30 * time.Second

// Open makes the pool. It asks nothing of the database yet: see Check.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	cfg.MaxConns, cfg.ReadConns = orDefault(cfg.MaxConns, 16), orDefault(cfg.ReadConns, 4)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Runner == nil {
		cfg.Runner = broker.NewRunner(cfg.Logger)
	}
	pool, err := postgres.Open(ctx, postgres.Config{URL: cfg.URL, From: cfg.From, MaxConns: cfg.MaxConns})
	if err != nil {
		return nil, err
	}
	separate, err := openSeparate(ctx, cfg)
	if err != nil {
		pool.Close()
		return nil, err
	}
	return &Store{pool: pool, separate: separate, q: db.New(pool), committer: newCommitter(pool, cfg.Runner),
		watchers: newWatchers(pool, cfg.Runner), logger: cfg.Logger,
		locking: postgres.Config{URL: cfg.URL, From: cfg.From, Name: "taskpass lock", Statement: lockLimit},
		locks:   make(chan struct{}, cfg.MaxConns), takes: &turns{}, clock: &clock{local: cfg.Clock}}, nil
}

func orDefault(n, usual int32) int32 {
	if n > 0 {
		return n
	}
	return usual
}

// Close finishes what was begun and closes the connections.
func (s *Store) Close() {
	s.committer.close()
	s.watchers.close()
	s.separate.close()
	s.pool.Close()
}

// Pool lends the connections to the packages that work on the same database.
func (s *Store) Pool() *pgxpool.Pool { return s.pool }

// checkLimit bounds Check: whoever asks whether a replica is ready does not wait for long.
const checkLimit = 4 * time.Second

// Check tells why the database cannot be worked with: out of reach, read only, not migrated to at least the given version,
// or reached by a role that could rewrite the record (P4). What it says by a postgres.Fault may be shown to anybody.
func (s *Store) Check(ctx context.Context, version int64) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	err := s.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		if err := postgres.CanWrite(ctx, conn.Conn()); err != nil {
			return err
		}
		return checkSchema(ctx, conn, version)
	})
	if _, known := errors.AsType[postgres.Fault](err); err != nil && !known {
		return fmt.Errorf("the database cannot be asked: %w", err)
	}
	return err
}

func checkSchema(ctx context.Context, conn *pgxpool.Conn, version int64) error {
	var at *int64
	var mayRewrite bool
	err := conn.QueryRow(ctx, `SELECT (SELECT max(version_id) FROM goose_db_version WHERE is_applied),
		has_any_column_privilege('events', 'UPDATE') OR has_table_privilege('events', 'DELETE')
			OR has_table_privilege('events', 'TRUNCATE')
			OR EXISTS (SELECT FROM unnest(ARRAY['tree_leaves', 'tree_tiles', 'tree_checkpoints', 'tree_archives']) AS t (name)
				WHERE CASE WHEN to_regclass(t.name) IS NOT NULL THEN has_any_column_privilege(t.name, 'UPDATE')
					OR has_table_privilege(t.name, 'DELETE') OR has_table_privilege(t.name, 'TRUNCATE') END)`).Scan(&at, &mayRewrite)
	const member = postgres.Fault("the database's role is not a member of taskpass_service: run `taskpass migrate --service-login NAME`")
	switch {
	case isCode(err, undefinedTable): // so it is also called if the schema may not be looked into
		var may bool
		if err := conn.QueryRow(ctx, "SELECT has_schema_privilege('public', 'USAGE')").Scan(&may); err == nil && !may {
			return member
		}
		return postgres.Fault("the database has no schema yet: run `taskpass migrate`")
	case isCode(err, insufficientPrivilege):
		return member
	case err != nil:
		return err
	case at == nil || *at < version:
		return postgres.Fault(fmt.Sprintf("the database's schema is older than this build (want version %d): run `taskpass migrate`", version))
	case mayRewrite:
		return postgres.Fault("the database's role may alter or delete audit events: connect as a login made by `taskpass migrate --service-login NAME`")
	}
	return nil
}

// EnsurePartitions makes the audit record's partitions for this month and the next three.
func (s *Store) EnsurePartitions(ctx context.Context) error {
	_, err := s.pool.Exec(ctx, "SELECT ensure_event_partitions(3)")
	return err
}

// inTx runs fn in one transaction and writes the events it returns there too.
func (s *Store) inTx(ctx context.Context, fn func(q *db.Queries) ([]broker.Event, error)) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		events, err := fn(s.q.WithTx(tx))
		if err != nil || len(events) == 0 {
			return err
		}
		var batch pgx.Batch
		if err := audit.Append(&batch, events); err != nil {
			return err
		}
		return tx.SendBatch(ctx, &batch).Close()
	})
}
