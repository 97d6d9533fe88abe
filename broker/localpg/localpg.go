// Package localpg runs a private PostgreSQL for a first run and for tests.
//
// It finds the server programs on the machine, makes a database cluster in a
// directory of its own and starts one server that listens on a Unix socket and
// nowhere else. It downloads nothing, and it knows nothing of Taskpass's schema.
// It is no way to run production: there are no backups and no passwords. Whoever
// may enter the socket's directory (mode 0700) is trusted as any role.
//
// A directory holds:
//
//	lock          flock(2), held by the owner and by every process of its server
//	data          the cluster; data.new while initdb works
//	run           the socket
//	postgres.log  what the server says; never a statement, never a value
//
// It needs Unix: Linux, where no server outlives its owner, or macOS, where a
// server left by a killed owner is stopped by the next Start.
package localpg

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	startLimit = 2 * time.Minute       // initdb, crash recovery and all
	pollEvery  = 20 * time.Millisecond // for the lock and for the server to be ready
	port       = "5432"                // names the socket file, opens no port
	// maxSocketDir leaves room for "/.s.PGSQL.5432" in macOS's 103 bytes (Linux has 107).
	maxSocketDir = 103 - len("/.s.PGSQL."+port)
)

// Config says where a server lives and how it behaves.
type Config struct {
	// Dir holds everything; required. It is created with mode 0700, and must be
	// empty or Taskpass's own. For root it cannot be below /root: PostgreSQL
	// refuses to run as root and another user must be able to get there.
	Dir string
	// Superuser is the role that initdb creates; "postgres" when empty.
	Superuser string
	// Ephemeral trades durability for speed: for data that a test throws away.
	Ephemeral bool
	// BinDir is where initdb and postgres are. When empty, $TASKPASS_PG_BIN or,
	// without that, PATH and the usual places of Debian and Homebrew are searched.
	BinDir string
	// Logger is told of starts, stops and an unexpected end; silent when nil.
	Logger *slog.Logger
}

// Server is a running PostgreSQL. Its methods may be called concurrently.
type Server struct {
	dir, bin  string
	socketDir string
	tempDir   string // the socket's directory when Dir is too long for one; else empty
	account   *account
	lock      *os.File
	log       *slog.Logger

	cmd     *exec.Cmd
	exited  chan struct{} // closed after waitErr is set
	waitErr error

	closing atomic.Bool
	once    sync.Once
	endErr  error
}

// Start brings the server of cfg.Dir up and returns when it accepts connections.
// ctx bounds the start only: the server runs until Close, or until this process dies.
//
// It fails with ErrNotInstalled when the machine has no PostgreSQL and with
// ErrInUse when another process, or another Server of this one, has the directory.
func Start(ctx context.Context, cfg Config) (_ *Server, err error) {
	if cfg.Dir == "" {
		return nil, errors.New("localpg: Config.Dir is empty")
	}
	if cfg.Superuser == "" {
		cfg.Superuser = "postgres"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	began := time.Now()

	s := &Server{log: cfg.Logger, exited: make(chan struct{})}
	if s.bin, err = find(ctx, cfg.BinDir, clusterVersion(cfg.Dir)); err != nil {
		return nil, err
	}
	if s.account, err = serverAccount(cfg.Dir); err != nil {
		return nil, err
	}
	if s.dir, err = prepareDir(cfg.Dir, s.account); err != nil {
		return nil, err
	}
	if s.lock, err = takeLock(ctx, s.dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	if err := s.makeSocketDir(); err != nil {
		return nil, err
	}
	logFile, err := os.OpenFile(filepath.Join(s.dir, "postgres.log"),
		os.O_RDWR|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("localpg: %w", err)
	}
	defer logFile.Close()
	if err := s.initCluster(ctx, cfg.Superuser, logFile); err != nil {
		return nil, err
	}
	if err := s.run(ctx, cfg, logFile); err != nil {
		return nil, err
	}
	s.log.Info("private PostgreSQL started", "dir", s.dir, "programs", s.bin, "took", time.Since(began))
	return s, nil
}

// URL names a database of this server for a role, in the form pgx and libpq read.
// Neither needs to exist yet.
func (s *Server) URL(user, database string) string {
	u := url.URL{Scheme: "postgres", User: url.User(user), Path: "/" + database}
	// The port is spelled out because PGPORT would replace it.
	query := url.Values{"host": {s.socketDir}, "port": {port}, "sslmode": {"disable"}}.Encode()
	u.RawQuery = strings.ReplaceAll(query, "+", "%20") // pgx and libpq read a + as a +
	return u.String()
}

// Close shuts the server down, ending open sessions, and waits until it is gone.
// It reports a server that had died before, or that had to be killed. Closing again
// returns the same answer.
func (s *Server) Close() error {
	s.once.Do(func() { s.endErr = s.stop() })
	return s.endErr
}

func (s *Server) stop() error {
	defer s.release()
	select {
	case <-s.exited:
		return fmt.Errorf("localpg: PostgreSQL had stopped by itself, see %s: %w",
			filepath.Join(s.dir, "postgres.log"), cmp.Or(s.waitErr, errors.New("no error")))
	default:
	}
	s.closing.Store(true)
	// PostgreSQL's "fast" shutdown, then "immediate", then no choice.
	for _, try := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGINT, 30 * time.Second}, {syscall.SIGQUIT, 10 * time.Second}, {syscall.SIGKILL, 10 * time.Second}} {
		if err := s.cmd.Process.Signal(try.signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("localpg: stop: %w", err)
		}
		select {
		case <-s.exited:
			if s.waitErr != nil {
				return fmt.Errorf("localpg: stop with %v: %w", try.signal, s.waitErr)
			}
			s.log.Info("private PostgreSQL stopped", "dir", s.dir)
			return nil
		case <-time.After(try.wait):
			s.log.Warn("PostgreSQL does not stop", "dir", s.dir, "signal", try.signal, "waited", try.wait)
		}
	}
	return fmt.Errorf("localpg: PostgreSQL in %s does not die", s.dir)
}

// initCluster runs initdb unless data exists. It works in data.new, so that a crash
// leaves either a whole cluster or none.
func (s *Server) initCluster(ctx context.Context, superuser string, logFile *os.File) error {
	data, fresh := filepath.Join(s.dir, "data"), filepath.Join(s.dir, "data.new")
	if _, err := os.Stat(data); err == nil {
		return nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("localpg: %w", err)
	}
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("localpg: %w", err)
	}
	cmd, offset := s.command(ctx, logFile, "initdb", "-D", fresh, "-U", superuser,
		"--no-sync", "--locale=C", "-E", "UTF8", "--auth=trust")
	runtime.LockOSThread() // see own
	err := cmd.Run()
	runtime.UnlockOSThread()
	if err != nil {
		return failure(ctx, "initdb", err, logFile, offset)
	}
	if err := os.Rename(fresh, data); err != nil {
		return fmt.Errorf("localpg: %w", err)
	}
	return nil
}

// run starts the server and waits until it takes connections.
func (s *Server) run(ctx context.Context, cfg Config, logFile *os.File) error {
	dropStalePID(filepath.Join(s.dir, "data"))
	since := time.Now().Unix() - 1 // PostgreSQL notes its start in whole seconds
	args := []string{"-D", filepath.Join(s.dir, "data"), "-k", s.socketDir, "-p", port}
	settings := []string{
		"listen_addresses=", "unix_socket_permissions=0700", "max_connections=200", "timezone=UTC",
		// A failing statement, or the detail of its error, may hold what must not reach a file.
		"log_min_messages=log", "log_min_error_statement=panic",
	}
	if cfg.Ephemeral {
		settings = append(settings, "fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=64MB",
			"wal_level=minimal", "max_wal_senders=0", "jit=off")
	}
	for _, setting := range settings {
		args = append(args, "-c", setting)
	}
	// Not ctx: it ends with the start, the server does not.
	cmd, offset := s.command(context.WithoutCancel(ctx), logFile, "postgres", args...)
	if err := s.own(cmd); err != nil {
		return failure(ctx, "postgres", err, logFile, offset)
	}
	if err := s.waitReady(ctx, since); err != nil {
		err = failure(ctx, "postgres", err, logFile, offset)
		s.closing.Store(true)
		_ = s.cmd.Process.Signal(syscall.SIGQUIT) // it may be gone, which is as good
		<-s.exited
		return err
	}
	return nil
}

// own starts cmd from a goroutine that keeps its thread until cmd has ended: Linux
// sends the parent-death signal when the *thread* that forked dies, and Go ends
// threads when it likes.
func (s *Server) own(cmd *exec.Cmd) error {
	s.cmd = cmd
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		s.waitErr = cmd.Wait()
		if !s.closing.Load() {
			s.log.Error("private PostgreSQL ended unexpectedly", "dir", s.dir, "error", s.waitErr)
		}
		close(s.exited)
	}()
	return <-started
}

// waitReady asks as pg_ctl does: the server writes into postmaster.pid that it takes connections. No PG* variable of the
// environment has a say in that, as it would in a connection.
func (s *Server) waitReady(ctx context.Context, since int64) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !s.ready(since) {
		select {
		case <-s.exited:
			s.closing.Store(true)
			return fmt.Errorf("it ended during start-up: %w", s.waitErr)
		case <-ctx.Done():
			return errors.New("it was not ready in time")
		case <-tick.C:
		}
	}
	return nil
}

// ready reads the lines of postmaster.pid with the process, its start (seconds since 1970) and its status. A file that a
// killed server left may name the same process: ids come round in a restarted container.
func (s *Server) ready(since int64) bool {
	text, _ := os.ReadFile(filepath.Join(s.dir, "data", "postmaster.pid")) // there is none at first
	lines := strings.Split(string(text), "\n")
	if len(lines) < 8 || lines[0] != strconv.Itoa(s.cmd.Process.Pid) {
		return false
	}
	if started, err := strconv.ParseInt(lines[2], 10, 64); err != nil || started < since {
		return false
	}
	status := strings.TrimSpace(lines[7])
	return status == "ready" || status == "standby"
}

// command prepares one of PostgreSQL's programs: as the server's user, in a process
// group of its own (a Ctrl-C in the terminal is the owner's affair), holding the
// lock, and with none of our environment, which may carry secrets. The second
// result is where in the log its words will begin.
func (s *Server) command(ctx context.Context, logFile *os.File, name string, args ...string) (*exec.Cmd, int64) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"LC_ALL=C", "PATH=" + s.bin + ":/usr/bin:/bin"}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{s.lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if s.account != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: s.account.uid, Gid: s.account.gid}
	}
	dieWithParent(cmd.SysProcAttr)
	offset, _ := logFile.Seek(0, io.SeekEnd) // at worst the excerpt is longer
	return cmd, offset
}

// failure tells what a program said last, which is what a person needs.
func failure(ctx context.Context, program string, err error, logFile *os.File, offset int64) error {
	if ctx.Err() != nil {
		err = fmt.Errorf("%w (%w)", err, ctx.Err())
	}
	words, _ := io.ReadAll(io.NewSectionReader(logFile, offset, 1<<20))
	lines := strings.Split(string(bytes.TrimSpace(words)), "\n")
	lines = lines[max(0, len(lines)-12):]
	return fmt.Errorf("localpg: %s: %w; its last words, from %s:\n%s",
		program, err, logFile.Name(), strings.Join(lines, "\n"))
}
