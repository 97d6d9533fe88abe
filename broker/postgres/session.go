package postgres

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// pinned is what every session is set to after it was connected, so that no default of a role, a database or a server
// changes what Taskpass does. They are set by statement: PgBouncer refuses most of them as start-up parameters. What a
// version of PostgreSQL does not know is left out.
//
// Not pinned, on purpose: default_transaction_read_only, for it says that nothing is to be written (see CanWrite); and
// what only costs or saves time and memory, such as work_mem.
var pinned = [][2]string{
	// Statements see what was committed, and wait for a row instead of failing with 40001.
	{"default_transaction_isolation", "read committed"}, {"default_transaction_deferrable", "off"},
	// No other schema comes first, and temporary tables come last.
	{"search_path", "public, pg_temp"},
	// Limits; statement_timeout follows from Config. A wait for a lock ends with its statement, the pool keeps idle
	// sessions, and a forgotten transaction would hold back the audit tree.
	{"lock_timeout", "0"}, {"transaction_timeout", "0"}, {"idle_session_timeout", "0"},
	{"idle_in_transaction_session_timeout", "10s"},
	// The locks of a client whose machine vanished are free after a minute. A Unix socket ignores these.
	{"tcp_keepalives_idle", "30"}, {"tcp_keepalives_interval", "10"}, {"tcp_keepalives_count", "3"},
	// How values are written and read. Months of the record begin in UTC.
	{"client_encoding", "UTF8"}, {"DateStyle", "ISO, MDY"}, {"TimeZone", "UTC"}, {"IntervalStyle", "postgres"},
	{"bytea_output", "hex"}, {"extra_float_digits", "1"}, {"standard_conforming_strings", "on"},
	{"xmloption", "content"}, {"xmlbinary", "base64"},
	// What statements mean, and that they find all there is.
	{"transform_null_equals", "off"}, {"array_nulls", "on"}, {"row_security", "on"}, {"gin_fuzzy_search_limit", "0"},
	{"check_function_bodies", "on"},
	// Tables are PostgreSQL's own: others know no unique constraints or foreign keys.
	{"default_table_access_method", "heap"},
	// How statements are planned: the plans that the tests show.
	{"plan_cache_mode", "auto"}, {"constraint_exclusion", "partition"}, {"enable_partition_pruning", "on"},
	{"enable_seqscan", "on"}, {"enable_sort", "on"}, {"enable_indexscan", "on"}, {"enable_indexonlyscan", "on"},
	{"enable_bitmapscan", "on"}, {"enable_tidscan", "on"}, {"enable_nestloop", "on"}, {"enable_hashjoin", "on"},
	{"enable_mergejoin", "on"}, {"enable_hashagg", "on"}, {"enable_material", "on"}, {"enable_incremental_sort", "on"},
	{"enable_gathermerge", "on"}, {"enable_memoize", "on"}, {"enable_parallel_append", "on"}, {"enable_parallel_hash", "on"},
	{"from_collapse_limit", "8"}, {"join_collapse_limit", "8"}, {"geqo", "on"}, {"geqo_threshold", "12"},
}

// marker is a setting of our own. A new session does not have it; one that does is somebody's old one.
const marker = "taskpass.session"

// session prepares each new connection.
type session struct {
	settings string // the statement that sets everything

	probe func(ctx context.Context) (*pgconn.PgConn, error) // a second connection, with nothing set

	mu    sync.Mutex
	alone bool // the proxy was shown to leave each client a session of its own
}

// newSession builds the statement. All values are constants but name and role, which the caller has checked to be
// printable ASCII without quotes and backslashes.
func newSession(cfg Config, name string) *session {
	list := append([][2]string(nil), pinned...)
	list = append(list, [2]string{"application_name", name},
		[2]string{"statement_timeout", strconv.FormatInt(cfg.Statement.Milliseconds(), 10)}, [2]string{marker, "in use"})
	if cfg.ReadOnly {
		list = append(list, [2]string{"default_transaction_read_only", "on"})
	}
	if cfg.Role != "" {
		list = append(list, [2]string{"role", cfg.Role}) // last: the others are set by the login
	}
	rows := make([]string, len(list))
	for i, s := range list {
		rows[i] = fmt.Sprintf("(%d, '%s', '%s')", i, s[0], s[1])
	}
	// synchronous_commit may be made stronger or be chosen for replicas, but not be off. session_replication_role takes
	// a superuser to set, so it is set only where it is wrong: the connection then fails rather than pass over triggers.
	return &session{settings: "SELECT set_config(name, value, false) FROM (VALUES " + strings.Join(rows, ", ") +
		") AS s (n, name, value) WHERE name IN ('" + marker + "', 'role') OR current_setting(name, true) IS NOT NULL" +
		" UNION ALL SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'" +
		" UNION ALL SELECT set_config('session_replication_role', 'origin', false)" +
		" WHERE current_setting('session_replication_role') <> 'origin'"}
}

// prepare is pgconn's AfterConnect. Two round trips: nothing may be set before it is known to whom the session belongs.
func (s *session) prepare(ctx context.Context, conn *pgconn.PgConn) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	pid, old, err := backend(ctx, conn)
	if err != nil {
		return err
	}
	if old != "" {
		return errNotReset
	}
	if pid != conn.PID() { // PgBouncer and its kind make up the number that they tell their clients
		if err := s.proven(ctx, conn, pid); err != nil {
			return err
		}
	}
	_, err = conn.Exec(ctx, s.settings).ReadAll()
	return err
}

const (
	errPooled = Fault("a proxy such as PgBouncer is between Taskpass and PostgreSQL, and gives its sessions to several clients " +
		"in turn (pool_mode transaction or statement): Taskpass needs LISTEN, advisory locks and settings of its session. " +
		"Connect directly, or with pool_mode=session")
	errNotReset = Fault("a proxy such as PgBouncer passed on a session without resetting it: its locks and settings would " +
		"outlive their process. Set server_reset_query=DISCARD ALL in it")
)

// probes is how often two sessions are compared. A proxy that shares them is seen at the first comparison unless other
// clients are busy, and then it changes them under us.
const probes = 8

// proven shows once that a proxy leaves each of its clients a session of its own: at no time do two of them have the same
// one, and neither changes.
func (s *session) proven(ctx context.Context, conn *pgconn.PgConn, pid uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.alone {
		return nil
	}
	other, err := s.probe(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = other.Close(ctx) }()
	first, _, err := backend(ctx, other)
	if err != nil {
		return err
	}
	for range probes {
		for _, c := range []struct {
			conn *pgconn.PgConn
			pid  uint32
		}{{conn, pid}, {conn, pid}, {other, first}} { // twice in a row: a proxy may deal its sessions out in turn
			now, _, err := backend(ctx, c.conn)
			if err != nil {
				return err
			}
			if now != c.pid || first == pid {
				return errPooled
			}
		}
	}
	if err := s.reset(ctx, other, first); err != nil {
		return err
	}
	s.alone = true
	return nil
}

// reset shows that a session which its client has left is reset before the next one gets it. It marks one, leaves it, and
// looks for it among those that the proxy gives then. Another client may have got it meanwhile; what is left to see by
// then is that each later connection of ours comes without a marker.
func (s *session) reset(ctx context.Context, conn *pgconn.PgConn, pid uint32) error {
	if _, err := conn.Exec(ctx, "SELECT set_config('"+marker+"', 'left', false)").ReadAll(); err != nil {
		return err
	}
	_ = conn.Close(ctx)
	tick := time.NewTicker(20 * time.Millisecond) // it takes the proxy a moment to notice
	defer tick.Stop()
	for range probes {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		next, err := s.probe(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = next.Close(ctx) }() // kept until then, so that the next one is another
		switch now, old, err := backend(ctx, next); {
		case err != nil:
			return err
		case old != "":
			return errNotReset
		case now == pid:
			return nil
		}
	}
	return nil
}

// backend asks which process of the server works for this connection, and for our marker in its session.
func backend(ctx context.Context, conn *pgconn.PgConn) (pid uint32, mark string, err error) {
	results, err := conn.Exec(ctx, "SELECT pg_backend_pid(), current_setting('"+marker+"', true)").ReadAll()
	if err != nil {
		return 0, "", err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 2 {
		return 0, "", Fault("what answers is no PostgreSQL")
	}
	row := results[0].Rows[0]
	n, err := strconv.ParseUint(string(row[0]), 10, 32)
	return uint32(n), string(row[1]), err
}
