// Package pgtest gives every test a PostgreSQL database of its own, a real one.
//
// A test binary starts one server, builds one template database in it (the caller
// migrates it, so that pgtest knows no schema) and copies that for each test:
//
//	func TestMain(m *testing.M) {
//		os.Exit(pgtest.Main(m, func(ctx context.Context, db pgtest.DB) error { return migrate(ctx, db.AdminURL) }))
//	}
//
//	func TestIssue(t *testing.T) {
//		t.Parallel()
//		db := pgtest.New(t)
//		pool := open(t, db.URL("taskpass_service"))
//
// With TASKPASS_TEST_DATABASE_URL set (a superuser's URL) that server is used
// instead. Roles, unlike databases, are shared by all that use one server.
package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/taskpass/taskpass/broker/localpg"
)

const limit = 2 * time.Minute // for one administrative statement on a busy machine

// DB is a database that one test has to itself, or the template.
type DB struct {
	Name     string
	AdminURL string // as superuser
	Password string // of every role; empty where the server asks for none
	url      func(user string) string
}

// URL names the database for a role. The server asks for no password, unless
// TASKPASS_TEST_DATABASE_URL brings a server that does.
func (db DB) URL(user string) string { return db.url(user) }

// cluster is the server behind the running test binary. There is one, because
// TestMain has no other way to hand anything to a test.
type cluster struct {
	url      func(user, database string) string
	admin    string // superuser's name
	password string
	template string
	strategy string     // of copying it: see chooseStrategy
	creating sync.Mutex // PostgreSQL refuses to copy a template twice at a time
}

var current *cluster

// Main starts the server, builds the template, runs the tests, stops the server and
// looks whether the tests left a goroutine behind. It returns the exit code for
// os.Exit. A nil template leaves the template empty.
func Main(m *testing.M, template func(ctx context.Context, db DB) error) int {
	code, err := run(m, template)
	if err == nil && code == 0 {
		err = goleak.Find()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		return max(code, 1)
	}
	return code
}

func run(m *testing.M, template func(ctx context.Context, db DB) error) (code int, err error) {
	if os.Getenv("GOGC") == "" { // tests allocate much and keep little: it saves a tenth of their CPU
		debug.SetGCPercent(400)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	c := &cluster{template: "template_taskpass_" + suffix()}
	if given := os.Getenv("TASKPASS_TEST_DATABASE_URL"); given != "" {
		if err := c.use(given); err != nil {
			return 1, err
		}
		defer func() { err = errors.Join(err, c.exec("DROP DATABASE IF EXISTS "+c.template+" WITH (FORCE)")) }()
	} else {
		dir, err := os.MkdirTemp(tempRoot(), "taskpass-test-")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		server, err := localpg.Start(ctx, localpg.Config{
			Dir: dir, Ephemeral: true, Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		})
		if err != nil {
			return 1, err
		}
		defer func() { err = errors.Join(err, server.Close()) }()
		c.url, c.admin = server.URL, "postgres"
	}
	if err := c.exec("CREATE DATABASE " + c.template); err != nil {
		return 1, err
	}
	if err := c.chooseStrategy(ctx); err != nil {
		return 1, err
	}
	if template != nil {
		if err := template(ctx, c.db(c.template)); err != nil {
			return 1, fmt.Errorf("build the template database: %w", err)
		}
	}
	current = c
	return m.Run(), nil
}

// New copies the template for t and drops the copy when t ends, with whatever
// sessions are still open in it.
func New(t testing.TB) DB {
	t.Helper()
	c := current
	if c == nil {
		t.Fatal("pgtest.New: this package's TestMain does not call pgtest.Main")
	}
	name := "test_" + suffix()
	c.creating.Lock()
	err := c.exec("CREATE DATABASE " + name + " TEMPLATE " + c.template + c.strategy)
	c.creating.Unlock()
	if err != nil {
		t.Fatalf("pgtest.New: %v", err)
	}
	t.Cleanup(func() {
		if err := c.exec("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			t.Errorf("pgtest: %v", err)
		}
	})
	return c.db(name)
}

func (c *cluster) db(name string) DB {
	return DB{
		Name: name, AdminURL: c.url(c.admin, name), Password: c.password,
		url: func(user string) string { return c.url(user, name) },
	}
}

// chooseStrategy has databases copied as files, with the template's cache of its catalogues: that takes a third of the CPU
// of a copy through WAL. PostgreSQL 14 knows no STRATEGY and always copies files.
func (c *cluster) chooseStrategy(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, c.url(c.admin, "postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var version int
	if err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int").Scan(&version); err != nil {
		return fmt.Errorf("ask for the server's version: %w", err)
	}
	if version >= 150_000 {
		c.strategy = " STRATEGY FILE_COPY"
	}
	return nil
}

// exec runs one statement that has no place in a transaction, as superuser.
func (c *cluster) exec(statement string) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.url(c.admin, "postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

// use takes a superuser's URL of a server. The password stays for other roles and
// databases: on a server for tests it may as well be everybody's.
func (c *cluster) use(given string) error {
	base, err := url.Parse(given)
	if err != nil || base.User.Username() == "" || !strings.HasPrefix(base.Scheme, "postgres") {
		return errors.New("TASKPASS_TEST_DATABASE_URL: want postgres://superuser[:password]@host/database")
	}
	asks := false
	c.admin = base.User.Username()
	c.password, asks = base.User.Password()
	c.url = func(user, database string) string {
		u := *base
		u.Path = "/" + database
		if u.User = url.User(user); asks {
			u.User = url.UserPassword(user, c.password)
		}
		return u.String()
	}
	return nil
}

// suffix makes names that many test binaries can use on one server.
func suffix() string { return strings.ToLower(rand.Text()[:12]) }

// roomInMemory is what a test binary's server may need at the most.
const roomInMemory = 1 << 30

// tempRoot is a file system in memory where there is one with room: a copy of the template is 8 MB of files, which on a
// busy disk takes half a second. "" is the usual place.
func tempRoot() string {
	const memory = "/dev/shm"
	var fs syscall.Statfs_t
	if os.Getenv("TMPDIR") == "" && syscall.Statfs(memory, &fs) == nil && fs.Bavail*uint64(fs.Bsize) > 2*roomInMemory { //nolint:gosec // a block's size is positive
		return memory
	}
	return ""
}
