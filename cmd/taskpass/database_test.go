package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/taskpass/taskpass/openapi"
)

// signalServer sends a signal to a PostgreSQL with all its processes.
func signalServer(t *testing.T, postmaster int, s syscall.Signal) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		t.Skip("there is no /proc to find the server's processes in")
	}
	pids := []int{postmaster} // first: it starts no more of them
	for _, name := range stats {
		text, _ := os.ReadFile(name) // it may be gone
		_, after, _ := strings.Cut(string(text), ") ")
		if words := strings.Fields(after); len(words) > 1 && words[1] == strconv.Itoa(postmaster) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			pids = append(pids, pid)
		}
	}
	if len(pids) < 3 {
		t.Fatalf("only %d processes of the server were found", len(pids))
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, s)
	}
}

// patient is a client that waits far longer than an answer may take on a machine that is busy, and far shorter than the
// connections of a hung server would take to be given up by themselves.
func patient(t *testing.T, method, url, token, body string) (status int, text string) {
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	r.Header.Set("Content-Type", "application/json")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	response, err := client.Do(r)
	if err != nil {
		t.Errorf("%s %s: %v", method, r.URL.Path, err)
		return 0, ""
	}
	defer response.Body.Close()
	all, err := io.ReadAll(response.Body)
	if err != nil {
		t.Error(err)
	}
	return response.StatusCode, string(all)
}

// PostgreSQL hangs: its processes are there, its sockets take connections, and nothing answers. Every request is answered,
// with 503 and that it may be tried again; also what was under way, or waits for a change. Then it goes on by itself.
func TestDatabaseHangs(t *testing.T) {
	t.Parallel()
	temp := tempDir(t)
	dir := filepath.Join(temp, "data")
	dev, r := startDev(t, dir, filepath.Join(temp, "ready.json"))
	orch, aud := r.Tokens["orchestrator"], r.Tokens["auditor"]
	var issued openapi.IssuedCredential
	if err := json.Unmarshal([]byte(mustCall(t, 201, "POST", r.BaseURL+"/v1/credentials", orch, devRequest)), &issued); err != nil {
		t.Fatal(err)
	}
	one := "/v1/credentials/" + issued.ID
	pid := postmaster(t, dir)
	resume := sync.OnceFunc(func() { signalServer(t, pid, syscall.SIGCONT) })
	t.Cleanup(resume)

	var before sync.WaitGroup // under way when it hangs
	var working atomic.Int32
	stop := make(chan struct{})
	for range 4 {
		before.Go(func() {
			for {
				status, text := patient(t, "POST", r.BaseURL+"/v1/credentials", orch, devRequest)
				switch {
				case status == 201:
					working.Add(1)
				case status != 503 && status != 504 || !strings.Contains(text, `"retryable":true`):
					t.Errorf("an issue under way: %d %s", status, text)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	before.Go(func() {
		if status, text := patient(t, "GET", r.BaseURL+one+"/watch?version=1&wait=60s", orch, ""); status != 503 {
			t.Errorf("a watch under way: %d %s", status, text)
		}
	})
	await(t, "they are under way", func() bool { return working.Load() > 8 })
	signalServer(t, pid, syscall.SIGSTOP)
	close(stop)

	var hung sync.WaitGroup
	for what, c := range map[string][4]string{
		"ready":   {"GET", "/readyz", "", ""},
		"issue":   {"POST", "/v1/credentials", orch, devRequest},
		"pool":    {"POST", "/v1/credentials", orch, strings.NewReplacer("aws-demo", "pool-demo", "read:content", "call:model").Replace(devRequest)},
		"list":    {"GET", "/v1/credentials?task_id=research-1", orch, ""},
		"one":     {"GET", one, orch, ""},
		"watch":   {"GET", one + "/watch?version=1&wait=5s", orch, ""},
		"resolve": {"POST", one + "/resolve", orch, "{}"},
		"refresh": {"POST", one + "/refresh", orch, "{}"},
		"revoke":  {"POST", one + "/revoke", orch, "{}"},
		"end":     {"POST", "/v1/tasks/research-1/end", orch, "{}"},
		"search":  {"GET", "/v1/audit/events", aud, ""},
		"tree":    {"GET", "/v1/audit/checkpoint", aud, ""},
	} {
		hung.Go(func() {
			status, text := patient(t, c[0], r.BaseURL+c[1], c[2], c[3])
			if status != 503 || !strings.Contains(text, `"code":"unavailable"`) || !strings.Contains(text, `"retryable":true`) {
				t.Errorf("%s: %d %s", what, status, text)
			}
		})
	}
	hung.Go(func() {
		if status, text := patient(t, "GET", r.BaseURL+"/metrics", "", ""); status != 200 || !strings.Contains(text, "taskpass_ledger_up 0") {
			t.Errorf("metrics: %d", status)
		}
	})
	hung.Wait()
	before.Wait()

	resume()
	await(t, "it is ready again", func() bool {
		status, _, err := call(t, "GET", r.BaseURL+"/readyz", "", "")
		return err == nil && status == 200
	})
	mustCall(t, 201, "POST", r.BaseURL+"/v1/credentials", orch, devRequest)
	dev.stop()
}

// A guard against full disks switches writing off, for new sessions: the replica is not ready and says why, writes may be
// tried again, and what can be read is read. When the guard is gone all works at once, though no session was ended.
func TestDatabaseIsReadOnly(t *testing.T) {
	t.Parallel()
	i := install(t)
	_, at := i.serve()
	admin := strings.TrimSpace(readFile(t, i.admin))
	u, err := url.Parse(admin)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	var issued openapi.IssuedCredential
	if err := json.Unmarshal([]byte(mustCall(t, 201, "POST", at+"/v1/credentials", i.tokens["orch"], fmt.Sprintf(serveRequest, ""))), &issued); err != nil {
		t.Fatal(err)
	}
	sql(t, admin, "ALTER DATABASE "+name+" SET default_transaction_read_only = on;"+
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
	await(t, "it is not ready, and says why", func() bool {
		status, text, err := call(t, "GET", at+"/readyz", "", "")
		return err == nil && status == 503 && strings.Contains(text, "read-only (default_transaction_read_only)")
	})
	if text := mustCall(t, 503, "POST", at+"/v1/credentials", i.tokens["orch"], fmt.Sprintf(serveRequest, "")); !strings.Contains(text, `"retryable":true`) {
		t.Errorf("a write: %s", text)
	}
	mustCall(t, 200, "GET", at+"/v1/credentials/"+issued.ID, i.tokens["orch"], "")
	sql(t, admin, "SET transaction_read_only = off; ALTER DATABASE "+name+" RESET default_transaction_read_only")
	mustCall(t, 200, "GET", at+"/readyz", "", "")
	for range 20 {
		mustCall(t, 201, "POST", at+"/v1/credentials", i.tokens["orch"], fmt.Sprintf(serveRequest, ""))
	}
}

// late is a PostgreSQL that comes up step by step: nobody listens, then it says that it is starting, then it works.
type late struct {
	t        *testing.T
	address  string
	behind   *url.URL
	working  atomic.Bool
	refused  atomic.Int32
	sessions sync.WaitGroup
}

func newLate(t *testing.T, databaseURL string) (l *late, front string) {
	t.Helper()
	behind, err := url.Parse(strings.TrimSpace(databaseURL))
	if err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l = &late{t: t, address: free.Addr().String(), behind: behind}
	free.Close()
	u := *behind
	u.Host, u.RawQuery = l.address, "sslmode=disable"
	return l, u.String()
}

func (l *late) listen() {
	l.t.Helper()
	listener, err := net.Listen("tcp", l.address)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { listener.Close(); l.sessions.Wait() })
	l.sessions.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			l.sessions.Go(func() { l.session(c) })
		}
	})
}

func (l *late) session(c net.Conn) {
	defer c.Close()
	if !l.working.Load() {
		b := pgproto3.NewBackend(c, c)
		if _, err := b.ReceiveStartupMessage(); err == nil {
			b.Send(&pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "57P03", Message: "the database system is starting up"})
			_ = b.Flush()
			l.refused.Add(1)
		}
		return
	}
	network, address := "tcp", l.behind.Host
	if dir := l.behind.Query().Get("host"); dir != "" {
		network, address = "unix", filepath.Join(dir, ".s.PGSQL."+l.behind.Query().Get("port"))
	}
	to, err := net.Dial(network, address)
	if err != nil {
		l.t.Error(err)
		return
	}
	defer to.Close()
	l.sessions.Go(func() { defer to.Close(); _, _ = io.Copy(to, c) })
	_, _ = io.Copy(c, to)
}

// serve waits for a PostgreSQL that is starting, and says so; and gives up in time, saying why.
func TestServeWaitsForPostgreSQL(t *testing.T) {
	t.Parallel()
	i := install(t)
	l, front := newLate(t, readFile(t, filepath.Join(i.dir, "service_url")))
	i.configure(func(s *settings) { s.URLFile = writeFile(t, i.dir, "late_url", front) })
	c := start(t, "serve", "--config", i.config, "--wait-for-database", "5m")
	if reason := fmt.Sprint(c.awaitLine("waiting for PostgreSQL", 0)["reason"]); !strings.Contains(reason, "connection refused") {
		t.Errorf("it waits because %s", reason)
	}
	c.signal(syscall.SIGHUP) // it does not end for it, and reloads later
	l.listen()
	if reason := fmt.Sprint(c.awaitLine("waiting for PostgreSQL", 1)["reason"]); !strings.Contains(reason, "starting up") {
		t.Errorf("it waits because %s", reason)
	}
	l.working.Store(true)
	mustCall(t, 200, "GET", fmt.Sprintf("http://%s/readyz", c.awaitLine("serving", 0)["address"]), "", "")
	c.awaitLine("reloaded", 0)
	c.stop()

	l.working.Store(false)
	mustFail(t, 1, []string{"waiting for PostgreSQL", "PostgreSQL was not there within 1s (--wait-for-database)", "starting up", "57P03"},
		"serve", "--config", i.config, "--wait-for-database", "1s")
	i.configure(func(s *settings) {
		s.URLFile = writeFile(t, i.dir, "nameless_url", "postgres://u:"+cliPassword+"@nowhere.invalid/d?sslmode=disable")
	})
	r := mustFail(t, 1, []string{"waiting for PostgreSQL", "was not there within 1s", "host name cannot be resolved"},
		"serve", "--config", i.config, "--wait-for-database", "1s")
	if strings.Contains(r.stderr, cliPassword) || strings.Contains(r.stderr, "nowhere.invalid") {
		t.Errorf("it repeats the URL: %s", r)
	}
}

// A file that holds something else than the URL is named by every command, with what is wrong; nothing of it is shown, and
// nothing is sent to the server that the environment names.
func TestDatabaseURLFileHoldsSomethingElse(t *testing.T) {
	elsewhere, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var heard atomic.Int32
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := elsewhere.Accept()
			if err != nil {
				return
			}
			heard.Add(1)
			c.Close()
		}
	})
	defer accepting.Wait()
	defer elsewhere.Close()
	host, port, _ := net.SplitHostPort(elsewhere.Addr().String())
	for name, value := range map[string]string{"PGHOST": host, "PGPORT": port, "PGUSER": "u", "PGSSLMODE": "disable"} {
		t.Setenv(name, value)
	}
	i := install(t)
	public := strings.TrimSpace(must(t, "audit", "key", "log.example/x", filepath.Join(i.dir, "key")).stdout)
	good := "postgres://taskpass:" + cliPassword + "@127.0.0.1:1/tp?sslmode=disable"
	for what, c := range map[string]struct{ text, fault string }{
		"bom": {"\ufeff" + good, "byte order mark"}, "quoted": {`"` + good + `"`, "in quotes"}, "env": {"DATABASE_URL=" + good, "NAME=value"},
		"user": {"host=127.0.0.1 port=1 user= password=" + cliPassword + " dbname=tp", "keyword=value"}, "password": {cliPassword, "is not a URL"},
		"host": {"postgres://taskpass:" + cliPassword + "@/tp", "names no host"}, "at": {"postgres://u:x@" + cliPassword + "@127.0.0.1:1/tp", "ambiguous"},
	} {
		file := writeFile(t, i.dir, "url_"+what, c.text+"\n")
		i.configure(func(s *settings) { s.URLFile = file })
		for _, args := range [][]string{
			{"migrate", "--database-url-file", file}, {"token", "list", "--database-url-file", file},
			{"token", "create", "--role", "auditor", "--name", "x", "--database-url-file", file}, {"token", "revoke", "tok_x", "--database-url-file", file},
			{"audit", "checkpoint", "--key", public, "--database-url-file", file},
			{"audit", "export", "--key", public, "--out", filepath.Join(i.dir, "out"), "--database-url-file", file},
			{"audit", "verify", "--key", public, "--database-url-file", file},
			{"audit", "archive", "--key", public, "--before", "2020-01", "--out", i.dir, "--database-url-file", file},
			{"audit", "trace", "x", "--database-url-file", file},
			{"serve", "--config", i.config},
		} {
			r := mustFail(t, 1, []string{file, c.fault}, args...)
			if strings.Contains(r.stdout+r.stderr, cliPassword) {
				t.Errorf("%s: the password is said: %s", what, r)
			}
		}
		r := mustFail(t, 1, []string{c.fault}, "token", "list", "--database-url", c.text)
		dev := mustFail(t, 1, []string{c.fault}, "dev", "--listen", "127.0.0.1:0", "--data-dir", filepath.Join(i.dir, "dev"), "--database-url", c.text)
		if text := fmt.Sprint(r, dev); strings.Contains(text, cliPassword) {
			t.Errorf("%s: the password is said: %s", what, text)
		}
	}
	if n := heard.Load(); n > 0 {
		t.Errorf("the server of the environment was asked %d times", n)
	}
}

// A URL in a place where something else belongs: what is said repeats no login.
func TestDatabaseURLInTheWrongPlace(t *testing.T) {
	t.Parallel()
	i := install(t)
	text := "postgres://taskpass:" + cliPassword + "@127.0.0.1:1/tp"
	files := 0
	withRef := func(ref string) string {
		files++
		name := writeFile(t, i.dir, fmt.Sprintf("wrong%d.yaml", files), strings.Replace(readFile(t, i.config), "file:"+filepath.Join(i.dir, "service_url"), ref, 1))
		if !strings.Contains(readFile(t, name), ref) {
			t.Fatal("the configuration has no such reference; this test shows nothing")
		}
		return name
	}
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{2, "unexpected argument", []string{"migrate", text}},
		{1, "got a database URL", []string{"migrate", "--database-url-file", text}},
		{1, "got a database URL", []string{"token", "list", "--database-url-file", strings.ToUpper(text)}},
		{1, "got a database URL", []string{"audit", "trace", "x", "--database-url-file=" + text}},
		{1, "no such file", []string{"serve", "--config", text}},
		{1, "no such file", []string{"check-config", text}},
		{1, "no such file", []string{"migrate", "--service-password-file", text, "--service-login", "x", "--database-url", text}},
		{1, "must be a reference", []string{"serve", "--config", withRef(text)}},
		{1, "takes the name of a variable", []string{"check-config", withRef("env:" + text)}},
		{1, "takes an absolute path", []string{"check-config", withRef("file:" + text)}},
		{1, "no such file", []string{"serve", "--config", withRef("file:///" + text)}},
	} {
		if r := mustFail(t, c.code, []string{c.want}, c.args...); strings.Contains(strings.ToLower(r.stdout+r.stderr), strings.ToLower(cliPassword)) {
			t.Errorf("%q: the password is repeated: %s", c.args[0], r)
		}
	}
}
