package store_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/postgres"
	"github.com/taskpass/taskpass/migrations"
)

// pooler puts PgBouncer in front of a database, with these lines in its configuration; connect_query is the database's.
// Without the program the test is skipped, except in CI.
func pooler(t *testing.T, db database, lines ...string) database {
	t.Helper()
	program, err := osexec.LookPath("pgbouncer")
	if err != nil {
		if program, err = osexec.LookPath("/usr/sbin/pgbouncer"); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal("pgbouncer is not installed: .ci/setup pooler")
			}
			t.Skip("pgbouncer is not installed: .ci/setup pooler")
		}
	}
	behind, err := url.Parse(db.service)
	if err != nil {
		t.Fatal(err)
	}
	host, port := behind.Hostname(), behind.Port()
	if socket := behind.Query().Get("host"); socket != "" {
		host, port = socket, behind.Query().Get("port")
	}
	password, _ := behind.User.Password()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().(*net.TCPAddr)
	free.Close()
	dir, err := os.MkdirTemp("", "taskpass-pooler-") // not t.TempDir: PgBouncer does not run as root
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o644), os.Chmod(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	users := write("users", fmt.Sprintf("%q %q\n", login, password))
	onConnect := ""
	lines = slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
		is := strings.HasPrefix(line, "connect_query=")
		if is {
			onConnect = line
		}
		return is
	})
	ini := write("ini", fmt.Sprintf("[databases]\n%s = host=%s port=%s %s\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port=%d\n"+
		"auth_type=trust\nauth_file=%s\nunix_socket_dir=\nlogfile=\npidfile=\n%s\n", db.name, host, port, onConnect, address.Port, users, strings.Join(lines, "\n")))
	args := []string{ini}
	if os.Geteuid() == 0 {
		args = []string{"-u", "postgres", ini}
	}
	cmd := osexec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	eventually(t, "PgBouncer listens", func() bool {
		c, err := net.DialTimeout("tcp", address.String(), time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	front := *behind
	front.Host, front.RawQuery = address.String(), "sslmode=disable"
	return database{db.name, db.admin, front.String()}
}

// Whatever shares a session among clients is refused before anything is set or locked in one, with the cause.
func TestPoolersThatShareSessionsAreRefused(t *testing.T) {
	t.Parallel()
	db := own(t)
	latest, err := migrations.Latest()
	if err != nil {
		t.Fatal(err)
	}
	const ignored = "ignore_startup_parameters=extra_float_digits,statement_timeout,idle_in_transaction_session_timeout,timezone,application_name"
	for what, c := range map[string]struct {
		lines []string
		want  string
	}{
		"transaction":         {[]string{"pool_mode=transaction", ignored}, "pool_mode=session"},
		"one session for all": {[]string{"pool_mode=transaction", "default_pool_size=1"}, "pool_mode=session"},
		"in turn":             {[]string{"pool_mode=transaction", "server_round_robin=1", "min_pool_size=5"}, "pool_mode=session"},
		"statement":           {[]string{"pool_mode=statement"}, "pool_mode=session"},
		"nothing is reset":    {[]string{"pool_mode=session", "server_reset_query="}, "server_reset_query"},
	} {
		t.Run(what, func(t *testing.T) {
			front := pooler(t, db, c.lines...)
			s := open(t, front)
			fault, ok := errors.AsType[postgres.Fault](s.Check(t.Context(), latest))
			if !ok || !strings.Contains(string(fault), c.want) || !strings.Contains(string(fault), "PgBouncer") {
				t.Errorf("%v", fault)
			}
			err := s.Locked(t.Context(), what, func(context.Context) error { return nil })
			if fault, ok := errors.AsType[postgres.Fault](err); !ok || !strings.Contains(string(fault), c.want) {
				t.Errorf("a lock: %v", err)
			}
			if err := migrations.Up(t.Context(), front.service); !strings.Contains(fmt.Sprint(postgres.Safe(err)), c.want) {
				t.Errorf("migrations: %v", err)
			}
			s.Close()
			super := admin(t, db)
			if n := read[int](t, super, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); n > 0 {
				t.Errorf("%d locks are left", n)
			}
			// Whoever uses PgBouncer next has none of our settings.
			cfg, err := pgx.ParseConfig(front.service)
			if err != nil {
				t.Fatal(err)
			}
			cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
			next, err := pgx.ConnectConfig(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer next.Close(context.WithoutCancel(t.Context()))
			if got := read[string](t, next, "SELECT current_setting('statement_timeout')"); got != "0" {
				t.Errorf("statement_timeout is %s for others", got)
			}
		})
	}
}

// With sessions of their own, replicas work through PgBouncer: notifications, locks, prepared statements and settings;
// and a lock does not outlive its process.
func TestPoolerWithSessions(t *testing.T) {
	t.Parallel()
	db := own(t)
	front := pooler(t, db, "pool_mode=session", "default_pool_size=40")
	s := open(t, front)
	latest, err := migrations.Latest()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context(), latest); err != nil {
		t.Fatal(err)
	}
	if got := read[string](t, s.Pool(), "SELECT current_setting('statement_timeout')"); got != "30s" {
		t.Errorf("statement_timeout: %s", got)
	}
	c := activate(t, s, begin(t, s, credential()))
	changes, done := open(t, front).Changes(c.ID)
	defer done()
	<-changes // the first: it listens
	move(t, s, c, broker.StateRevoking)
	select {
	case <-changes:
	case <-time.After(time.Minute):
		t.Error("no notification")
	}

	letGo := hold(t, s, "shared")
	defer letGo()
	dying, err := postgres.Connect(t.Context(), postgres.Config{URL: broker.NewSecret(front.service)})
	if err != nil {
		t.Fatal(err)
	}
	const mine = "SELECT pg_advisory_lock(hashtextextended('taskpass:dying', 0))"
	if _, err := dying.Exec(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	dying.PgConn().Conn().Close() // as after kill -9: nothing is said
	direct := open(t, db)
	if err := direct.Locked(t.Context(), "dying", func(context.Context) error { return nil }); err != nil {
		t.Errorf("the lock outlived its process: %v", err)
	}
}

// Of several hosts the one that can be written to is taken, though another answers first.
func TestTheHostThatCanBeWrittenToIsTaken(t *testing.T) {
	t.Parallel()
	db := own(t)
	const readOnly = "SET default_transaction_read_only = on"
	standby := pooler(t, db, "pool_mode=session", "connect_query='"+readOnly+"'", "server_reset_query=DEALLOCATE ALL; RESET ALL; "+readOnly)
	primary := pooler(t, db, "pool_mode=session", "default_pool_size=40")
	first, err := url.Parse(standby.service)
	if err != nil {
		t.Fatal(err)
	}
	second, err := url.Parse(primary.service)
	if err != nil {
		t.Fatal(err)
	}
	first.Host += "," + second.Host
	s := open(t, database{db.name, db.admin, first.String()})
	latest, err := migrations.Latest()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context(), latest); err != nil {
		t.Error(err)
	}
	activate(t, s, begin(t, s, credential()))
	if fault, ok := errors.AsType[postgres.Fault](open(t, standby).Check(t.Context(), latest)); !ok || !strings.Contains(string(fault), "read-only") {
		t.Errorf("the first alone: %v; this test shows nothing", fault)
	}
}
