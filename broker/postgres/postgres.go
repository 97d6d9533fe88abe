// Package postgres opens every connection to the database: the store's, the migrations' and those of the commands.
//
// It decides which URLs are accepted, what every session is set to whatever the defaults of its role and database are,
// how long a wait may last, when a connection is given up, and what of an error may be shown. Nothing else of the
// program parses a database URL or connects; house_test.go checks it.
package postgres

import (
	"context"
	"database/sql"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/taskpass/taskpass/broker"
)

const (
	// DefaultStatement is how long PostgreSQL may work at one statement.
	DefaultStatement = 30 * time.Second
	// defaultWait is how long the client waits for one. A request makes several in a row, and has to be answered within
	// seconds when the server hangs.
	defaultWait = 8 * time.Second
	// Unlimited is the limit for work that takes as long as there is data: migrations and archiving.
	Unlimited = time.Hour

	grace          = 2 * time.Second // where nobody waits, the client gives up so much later than the server should have
	acquireLimit   = 4 * time.Second // for a free connection of a pool, a new one included
	connectTimeout = 4 * time.Second // for each host of the URL; connect_timeout in the URL takes its place
	pingTimeout    = 2 * time.Second // for a pooled connection that was idle
	closeTimeout   = 2 * time.Second
	resetEvery     = time.Second // a pool drops its idle connections this often at most
)

// Config says which database, for whom, and with which limits.
type Config struct {
	URL       broker.Secret // postgres://…; it may contain a password
	From      string        // what an error calls the URL: the file or variable that it was read from
	Name      string        // application_name, printable ASCII; "" is "taskpass". One in the URL takes its place
	Role      string        // the role to work as; "" is the login itself
	ReadOnly  bool          // the session refuses to write
	MaxConns  int32         // of a pool; zero: 16
	Statement time.Duration // for one statement, from 1 ms, and 2 s more until the client gives up; zero: 30 s, and 8 s in all
}

// Open makes a pool. It connects when a connection is asked for, so only a fault of the URL is an error here. Waiting
// for a connection and waiting for each statement are limited, whatever the context of a call says.
func Open(ctx context.Context, cfg Config) (*pgxpool.Pool, error) {
	cc, err := cfg.connConfig()
	if err != nil {
		return nil, err
	}
	// For the defaults of a pool: the connection is replaced. The URL leaves nothing to the environment.
	pc, err := pgxpool.ParseConfig("postgres://u@localhost:5432/d?sslmode=disable&target_session_attrs=any&connect_timeout=4")
	if err != nil {
		return nil, Fault("the PG* variables of the environment cannot be used")
	}
	pc.ConnConfig = cc
	pc.MaxConns = 16
	if cfg.MaxConns > 0 {
		pc.MaxConns = cfg.MaxConns
	}
	pc.PingTimeout = pingTimeout
	// What is read-only now may be writable in a second: the next user gets a new session, which sees the new state.
	pc.AfterRelease = func(c *pgx.Conn) bool { return cfg.ReadOnly || !readOnly(c) }
	pc.BeforeClose = func(c *pgx.Conn) { _ = c.PgConn().Conn().SetDeadline(time.Now().Add(closeTimeout)) }
	var pool atomic.Pointer[pgxpool.Pool]
	var last atomic.Int64
	cc.OnPgError = onError(func() {
		now, before := time.Now().UnixNano(), last.Load()
		if p := pool.Load(); p != nil && now-before > int64(resetEvery) && last.CompareAndSwap(before, now) {
			p.Reset()
		}
	})
	opened, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, Fault("the pool of database connections cannot be made")
	}
	pool.Store(opened)
	return opened, nil
}

// Connect opens one connection.
func Connect(ctx context.Context, cfg Config) (*pgx.Conn, error) {
	cc, err := cfg.connConfig()
	if err != nil {
		return nil, err
	}
	return pgx.ConnectConfig(ctx, cc)
}

// OpenDB is Open for what wants a database/sql handle.
func OpenDB(cfg Config) (*sql.DB, error) {
	cc, err := cfg.connConfig()
	if err != nil {
		return nil, err
	}
	return stdlib.OpenDB(*cc), nil
}

const (
	errStandby  = Fault("the database is a read-only replica (pg_is_in_recovery): the primary is elsewhere, or not promoted yet")
	errReadOnly = Fault("the database is read-only (default_transaction_read_only): its disk may be full, or somebody switched " +
		"writing off")
)

// CanWrite tells whether this session may write: nil, or the Fault that says why not. One that may not is closed, so that
// its pool replaces it.
func CanWrite(ctx context.Context, conn *pgx.Conn) error {
	var standby, off bool
	err := conn.QueryRow(ctx, "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::bool").Scan(&standby, &off)
	switch {
	case err != nil:
		return err
	case standby:
		err = errStandby
	case off:
		err = errReadOnly
	default:
		return nil
	}
	_ = conn.Close(ctx)
	return err
}

// readOnly tells what the server reported last (PostgreSQL 14 reports both). A proxy may not pass it on: what it hides is
// found by SQLSTATE 25006.
func readOnly(c *pgx.Conn) bool {
	return c.PgConn().ParameterStatus("in_hot_standby") == "on" ||
		c.PgConn().ParameterStatus("default_transaction_read_only") == "on"
}
