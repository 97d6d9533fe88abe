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
	"github.com/taskpass/taskpass/broker/store/db"
)

// Config says which database and how much of it.
type Config struct {
	URL      broker.Secret  // postgres://…; it may bear a password
	MaxConns int32          // zero: 16
	Logger   *slog.Logger   // nil: nothing is logged
	Runner   *broker.Runner // of its goroutines; nil: one with Logger
}

// Store is the ledger. It is safe for concurrent use; close it when done.
type Store struct {
	pool      *pgxpool.Pool
	q         *db.Queries
	committer *committer
	watchers  *watchers
	locks     chan struct{} // bounds the connections that wait for, or hold, an advisory lock
	logger    *slog.Logger
}

// Open connects. It asks nothing of the database yet: see Check.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	pc, err := pgxpool.ParseConfig(cfg.URL.Reveal())
	if err != nil {
		return nil, errors.New("the database URL is not valid") // the parser's error may quote the password
	}
	pc.MaxConns = 16
	if cfg.MaxConns > 0 {
		pc.MaxConns = cfg.MaxConns
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Runner == nil {
		cfg.Runner = broker.NewRunner(cfg.Logger)
	}
	// A transaction that somebody forgot would hold back the audit tree; a statement that hangs would hold a request.
	setDefault(pc.ConnConfig.RuntimeParams, "application_name", "taskpass")
	setDefault(pc.ConnConfig.RuntimeParams, "idle_in_transaction_session_timeout", "10s")
	setDefault(pc.ConnConfig.RuntimeParams, "statement_timeout", "30s")
	setDefault(pc.ConnConfig.RuntimeParams, "timezone", "UTC")
	if pc.ConnConfig.ConnectTimeout == 0 {
		pc.ConnConfig.ConnectTimeout = 5 * time.Second
	}
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	return &Store{pool: pool, q: db.New(pool), committer: newCommitter(pool, cfg.Runner), watchers: newWatchers(pool, cfg.Runner), logger: cfg.Logger,
		locks: make(chan struct{}, pc.MaxConns)}, nil
}

func setDefault(m map[string]string, key, value string) {
	if m[key] == "" {
		m[key] = value
	}
}

// Close finishes what was begun and closes the connections.
func (s *Store) Close() {
	s.committer.close()
	s.watchers.close()
	s.pool.Close()
}

// Pool lends the connections to the packages that read the same database.
func (s *Store) Pool() *pgxpool.Pool { return s.pool }

// Check tells why the database cannot be worked with: out of reach, not migrated to at least the given version, read
// only, or reached by a role that could rewrite the record (P4).
func (s *Store) Check(ctx context.Context, version int64) error {
	var at *int64
	var readOnly, mayRewrite bool
	err := s.pool.QueryRow(ctx, `SELECT (SELECT max(version_id) FROM goose_db_version WHERE is_applied),
		pg_is_in_recovery(),
		has_any_column_privilege('events', 'UPDATE') OR has_table_privilege('events', 'DELETE')
			OR has_table_privilege('events', 'TRUNCATE')
			OR EXISTS (SELECT FROM unnest(ARRAY['tree_leaves', 'tree_tiles', 'tree_checkpoints', 'tree_archives']) AS t (name)
				WHERE CASE WHEN to_regclass(t.name) IS NOT NULL THEN has_any_column_privilege(t.name, 'UPDATE')
					OR has_table_privilege(t.name, 'DELETE') OR has_table_privilege(t.name, 'TRUNCATE') END)`).Scan(&at, &readOnly, &mayRewrite)
	switch {
	case isCode(err, undefinedTable):
		return errors.New("the database has no schema yet: run `taskpass migrate`")
	case isCode(err, insufficientPrivilege):
		return errors.New("the database's role is not a member of taskpass_service: run `taskpass migrate --service-login NAME`")
	case err != nil:
		return fmt.Errorf("the database cannot be asked: %w", err)
	case at == nil || *at < version:
		return fmt.Errorf("the database's schema is older than this build (want version %d): run `taskpass migrate`", version)
	case readOnly:
		return errors.New("the database is a read-only replica")
	case mayRewrite:
		return errors.New("the database's role may alter or delete audit events: connect as a login made by `taskpass migrate --service-login NAME`")
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
