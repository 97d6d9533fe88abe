package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/providers/providertest"
)

// asCommand makes the test binary the command itself: a child of the tests that is a real process.
const asCommand = "TASKPASS_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	for _, entry := range os.Environ() { // or `check-config` and `serve` would warn of this machine's own
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "AWS_") || strings.HasPrefix(name, "GOOGLE_") || strings.HasSuffix(strings.ToUpper(name), "_PROXY") {
			_ = os.Unsetenv(name)
		}
	}
	os.Exit(pgtest.Main(m, nil)) // empty databases: `migrate` is under test too
}

// result is what a command said and how it ended.
type result struct {
	code           int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\nstdout:\n%s\nstderr:\n%s", r.code, r.stdout, r.stderr)
}

// do runs a command in this process.
func do(t *testing.T, args ...string) result {
	t.Helper()
	return doWith(t, "", args...)
}

// doWith is do with that on standard input.
func doWith(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	code := run(ctx, args, strings.NewReader(stdin), &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}

// must is a command that has to succeed.
func must(t *testing.T, args ...string) result {
	t.Helper()
	r := do(t, args...)
	if r.code != 0 {
		t.Fatalf("taskpass %q: %s", args, r)
	}
	return r
}

// mustFail is a command that has to fail with that code and to say each of the words.
func mustFail(t *testing.T, code int, words []string, args ...string) result {
	t.Helper()
	r := do(t, args...)
	if r.code != code {
		t.Errorf("taskpass %q: want exit code %d: %s", args, code, r)
	}
	for _, word := range words {
		if !strings.Contains(r.stderr, word) {
			t.Errorf("taskpass %q does not say %q: %s", args, word, r)
		}
	}
	return r
}

// tempDir is one that PostgreSQL's user can pass through, should we be root.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "taskpass-cmd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func writeFile(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	providertest.WriteSecret(t, path, text)
	return path
}

// await polls until ok.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit := time.After(2 * time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-limit:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

// child is the command as a process of its own.
type child struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    output // both of its outputs
	exited chan struct{}
	err    error
}

// output collects what a process writes, whole lines first come first served.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func start(t *testing.T, args ...string) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.Command(os.Args[0], args...), exited: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), asCommand+"=1")
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.out
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.exited)
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.exited
		if t.Failed() {
			text := c.out.String()
			t.Logf("taskpass %q said:\n%s", args, text[max(0, len(text)-4000):])
		}
	})
	return c
}

func (c *child) gone() bool {
	select {
	case <-c.exited:
		return true
	default:
		return false
	}
}

func (c *child) signal(s syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

// stop asks the process to end and wants a clean end.
func (c *child) stop() {
	c.t.Helper()
	c.signal(syscall.SIGTERM)
	await(c.t, "it ends", c.gone)
	if c.err != nil {
		c.t.Errorf("it ended with %v", c.err)
	}
}

// awaitLine waits for a line of its log with that message, after the given number of others like it, and returns it.
func (c *child) awaitLine(message string, after int) (line map[string]any) {
	c.t.Helper()
	await(c.t, "the log says "+message, func() bool {
		n := 0
		for s := bufio.NewScanner(strings.NewReader(c.out.String())); s.Scan(); {
			var l map[string]any
			if json.Unmarshal(s.Bytes(), &l) == nil && l["msg"] == message {
				if n++; n > after {
					line = l
					return true
				}
			}
		}
		if c.gone() {
			c.t.Fatalf("it ended: %v", c.err)
		}
		return false
	})
	return line
}

// call is one HTTP request, answered whole. A connection of its own, so that nothing is sent twice by itself.
func call(t *testing.T, method, url, token, body string) (status int, text string, err error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Minute}
	response, err := client.Do(r)
	if err != nil {
		return 0, "", err
	}
	all, err := io.ReadAll(response.Body)
	return response.StatusCode, string(all), errors.Join(err, response.Body.Close())
}

func mustCall(t *testing.T, want int, method, url, token, body string) string {
	t.Helper()
	status, text, err := call(t, method, url, token, body)
	if err != nil || status != want {
		t.Fatalf("%s %s: %d, %v: %s", method, url, status, err, text)
	}
	return text
}

// sql runs a statement as the database's superuser.
func sql(t *testing.T, url, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}
