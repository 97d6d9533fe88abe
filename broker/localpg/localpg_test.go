package localpg_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/taskpass/taskpass/broker/localpg"
)

// helperDir makes this binary the owner of a server that waits to be killed.
const helperDir = "LOCALPG_TEST_HELPER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperDir); dir != "" {
		server, err := localpg.Start(context.Background(), config(dir))
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println(server.URL("postgres", "postgres"))
		select {}
	}
	goleak.VerifyTestMain(m)
}

func TestColdStart(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(tempDir(t), "not", "there yet")
	server := start(t, config(dir))
	if got := query(t, server, "SELECT 'x' || current_setting('max_connections') || current_setting('server_encoding')"); got != "x200UTF8" {
		t.Errorf("got %q", got)
	}
	if got := query(t, server, "SELECT 'x' || current_setting('listen_addresses')"); got != "x" {
		t.Errorf("the server listens on %q", got)
	}
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("the directory's mode is %v", info.Mode())
	}
	for range 2 {
		if err := server.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if conn, err := pgx.Connect(t.Context(), server.URL("postgres", "postgres")); err == nil {
		conn.Close(t.Context())
		t.Error("the server answers after Close")
	}
}

// Variables that would name another server, or change or break a connection, neither fail nor delay a start.
func TestTheEnvironmentHasNoSay(t *testing.T) {
	for name, value := range map[string]string{
		"PGOPTIONS": "-c no.such=x -c nonsense=1", "PGTZ": "No/Where", "PGSERVICE": "none", "PGTARGETSESSIONATTRS": "read-only",
		"PGCONNECT_TIMEOUT": "x", "PGREQUIREAUTH": "scram-sha-256", "PGCHANNELBINDING": "require", "PGPORT": "1", "PGHOST": "none.invalid",
	} {
		t.Setenv(name, value)
	}
	if err := start(t, config(tempDir(t))).Close(); err != nil {
		t.Error(err)
	}
}

func TestWarmStartKeepsData(t *testing.T) {
	t.Parallel()
	cfg := config(tempDir(t))
	cfg.Superuser = "admin"
	for i := range 3 {
		server, err := localpg.Start(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := pgx.Connect(t.Context(), server.URL("admin", "postgres"))
		if err != nil {
			t.Fatal(err)
		}
		var rows int
		err = conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_class WHERE relname LIKE 'run_%'").Scan(&rows)
		if err != nil || rows != i {
			t.Fatalf("start %d: %d tables, %v", i, rows, err)
		}
		if _, err := conn.Exec(t.Context(), fmt.Sprintf("CREATE TABLE run_%d ()", i)); err != nil {
			t.Fatal(err)
		}
		if err := server.Close(); err != nil { // with the session open
			t.Fatal(err)
		}
		conn.Close(t.Context())
	}
}

func TestSecondStartIsRefused(t *testing.T) {
	t.Parallel()
	cfg := config(tempDir(t))
	server := start(t, cfg)
	if _, err := localpg.Start(t.Context(), cfg); !errors.Is(err, localpg.ErrInUse) {
		t.Fatalf("got %v, want ErrInUse", err)
	}
	if got := query(t, server, "SELECT 'alive'"); got != "alive" {
		t.Errorf("the first server was disturbed: %q", got)
	}
}

// Of many that start a new directory at once, one has it and nothing is half made.
func TestFirstStartRace(t *testing.T) {
	t.Parallel()
	cfg := config(tempDir(t))
	var wg sync.WaitGroup
	servers := make(chan *localpg.Server, 4)
	for range cap(servers) {
		wg.Go(func() {
			server, err := localpg.Start(t.Context(), cfg)
			switch {
			case err == nil:
				servers <- server
			case !errors.Is(err, localpg.ErrInUse):
				t.Errorf("got %v, want ErrInUse", err)
			}
		})
	}
	wg.Wait()
	if len(servers) != 1 {
		t.Errorf("%d servers on one directory", len(servers))
	}
	for range len(servers) {
		if err := (<-servers).Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestKilledOwnerLeavesNoServer(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	owner := exec.Command(os.Args[0])
	owner.Env = append(os.Environ(), helperDir+"="+dir)
	owner.Stderr = os.Stderr
	stdout, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	url, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || !strings.HasPrefix(url, "postgres://") {
		t.Fatalf("helper said %q, %v", url, err)
	}
	conn, err := pgx.Connect(t.Context(), strings.TrimSpace(url))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), "CREATE TABLE kept AS SELECT 'kept'::text AS word"); err != nil {
		t.Fatal(err)
	}
	if _, err := localpg.Start(t.Context(), config(dir)); !errors.Is(err, localpg.ErrInUse) {
		t.Errorf("while the owner lives: got %v, want ErrInUse", err)
	}
	postmaster := readPostmasterPID(t, dir)

	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	if runtime.GOOS == "linux" {
		eventually(t, "the server ends", func() bool { return !running(postmaster) })
	}
	server := start(t, config(dir))
	if got := query(t, server, "SELECT word FROM kept"); got != "kept" {
		t.Errorf("got %q", got)
	}
}

// A postmaster.pid may name a process that has nothing to do with PostgreSQL.
func TestStalePIDFile(t *testing.T) {
	t.Parallel()
	cfg := config(tempDir(t))
	if err := start(t, cfg).Close(); err != nil {
		t.Fatal(err)
	}
	stranger := exec.Command("sleep", "600")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.Process.Kill(); _ = stranger.Wait() }()
	data := filepath.Join(cfg.Dir, "data")
	stale := fmt.Sprintf("%d\n%s\n1700000000\n5432\n%s\n\n  0 0\nready   \n", stranger.Process.Pid, data, filepath.Join(cfg.Dir, "run"))
	if err := os.WriteFile(filepath.Join(data, "postmaster.pid"), []byte(stale), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, cfg)
}

// What initdb left when it was killed is swept away.
func TestHalfInitialised(t *testing.T) {
	t.Parallel()
	cfg := config(tempDir(t))
	for _, name := range []string{"lock", "data.new/PG_VERSION"} {
		path := filepath.Join(cfg.Dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("15\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, "lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, cfg)
}

func TestLongDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(tempDir(t), strings.Repeat("long/", 30))
	server := start(t, config(dir))
	if got := query(t, server, "SELECT 'there'"); got != "there" {
		t.Errorf("got %q", got)
	}
}

func TestNotInstalled(t *testing.T) {
	t.Parallel()
	empty := tempDir(t)
	_, err := localpg.Start(t.Context(), localpg.Config{Dir: filepath.Join(empty, "db"), BinDir: empty})
	if !errors.Is(err, localpg.ErrNotInstalled) {
		t.Fatalf("got %v, want ErrNotInstalled", err)
	}
	for _, way := range []string{"apt-get install postgresql", "brew install postgresql@16", "--database-url", "docker compose up"} {
		if !strings.Contains(err.Error(), way) {
			t.Errorf("%q does not name %q", err, way)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%q is more than a line", err)
	}
	if entries, _ := os.ReadDir(empty); len(entries) > 0 {
		t.Errorf("it left %v", entries)
	}
}

func TestForeignDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	if err := os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := localpg.Start(t.Context(), config(dir)); err == nil || !strings.Contains(err.Error(), "holds other files") {
		t.Errorf("got %v", err)
	}
}

func TestFailureTellsWhy(t *testing.T) {
	t.Parallel()
	cfg := config(tempDir(t))
	if err := start(t, cfg).Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, "data", "PG_VERSION"), []byte("7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := localpg.Start(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "incompatible") {
		t.Errorf("the error does not hold PostgreSQL's words: %v", err)
	}
}

func TestUnreachableDirectoryAsRoot(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root changes user")
	}
	closed := filepath.Join(tempDir(t), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := localpg.Start(t.Context(), config(filepath.Join(closed, "db")))
	if err == nil || !strings.Contains(err.Error(), "may not enter "+closed) {
		t.Errorf("got %v", err)
	}
}

func TestCancelledStart(t *testing.T) {
	t.Parallel()
	cfg := config(tempDir(t))
	const soon = 50 * time.Millisecond // no start is as fast
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if _, err := localpg.Start(ctx, cfg); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want DeadlineExceeded", err)
	}
	start(t, cfg)
}

func TestDeadServerIsReported(t *testing.T) {
	t.Parallel()
	cfg := config(tempDir(t))
	server, err := localpg.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	pid := readPostmasterPID(t, cfg.Dir)
	process, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server is gone", func() bool { return !running(pid) })
	if err := server.Close(); err == nil {
		t.Error("Close said nothing of a server that had died")
	}
	start(t, cfg)
}

func config(dir string) localpg.Config {
	return localpg.Config{Dir: dir, Ephemeral: true}
}

func start(t *testing.T, cfg localpg.Config) *localpg.Server {
	t.Helper()
	server, err := localpg.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return server
}

func query(t *testing.T, server *localpg.Server, statement string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), server.URL("postgres", "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var answer string
	if err := conn.QueryRow(t.Context(), statement).Scan(&answer); err != nil {
		t.Fatal(err)
	}
	return answer
}

// tempDir is t.TempDir for a server that runs as another user: that one's parent is
// closed to all but us.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "localpg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func readPostmasterPID(t *testing.T, dir string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// running sees through zombies, which answer to kill(pid, 0) until they are reaped.
func running(pid int) bool {
	if runtime.GOOS != "linux" {
		process, err := os.FindProcess(pid)
		return err == nil && process.Signal(nil) == nil
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && len(cmdline) > 0
}

func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	limit := time.After(2 * time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !happened() {
		select {
		case <-limit:
			t.Fatalf("never happened: %s", what)
		case <-tick.C:
		}
	}
}
