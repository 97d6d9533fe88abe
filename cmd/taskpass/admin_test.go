package main

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/auth"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/broker/seal"
	"github.com/taskpass/taskpass/broker/store"
)

const (
	cliLogin    = "taskpass_cli"
	cliPassword = "s3cr3t-CANARY-password"
)

func TestUsage(t *testing.T) {
	t.Parallel()
	help := must(t, "--help")
	for _, command := range []string{"demo", "dev", "serve", "migrate", "token", "pool", "audit", "keyset", "check-config", "healthcheck", "promises"} {
		if !strings.Contains(help.stdout, command) {
			t.Errorf("--help leaves out %s:\n%s", command, help.stdout)
		}
	}
	for _, args := range [][]string{{}, {"nonsense"}, {"serve"}, {"token"}, {"token", "create"}, {"check-config"}, {"demo", "--nonsense"}} {
		if r := do(t, args...); r.code != 2 || !strings.Contains(r.stderr, "taskpass: ") {
			t.Errorf("taskpass %q: %s", args, r)
		}
	}
}

func TestCheckConfig(t *testing.T) {
	t.Parallel()
	good := must(t, "check-config", "../../docs/examples/taskpass.yaml")
	if !strings.HasSuffix(strings.TrimSpace(good.stdout), "taskpass.yaml: good, with 2 profiles") || good.stderr != "" {
		t.Error(good)
	}
	if one := must(t, "check-config", install(t).config); !strings.HasSuffix(one.stdout, ": good, with 1 profile\n") {
		t.Error(one)
	}
	dir := t.TempDir()
	bad := writeFile(t, dir, "bad.yaml", "listen: nowhere\ndatabase: {url: \"postgres://u:"+cliPassword+"@h/d\"}\nseal: {keyset: \"file:/k\"}\nprofiles: {}\nnonsense: 1\n")
	r := mustFail(t, 1, []string{"bad.yaml:1: listen: ", "bad.yaml:2: database.url: ", "bad.yaml:4: profiles: ", "bad.yaml:5: "}, "check-config", bad)
	if strings.Contains(r.stderr+r.stdout, "CANARY") {
		t.Errorf("a pasted secret is repeated: %s", r)
	}
	mustFail(t, 1, []string{"none.yaml"}, "check-config", filepath.Join(dir, "none.yaml"))
	mustFail(t, 1, nil, "check-config", dir)
	mustFail(t, 1, nil, "check-config", writeFile(t, dir, "empty.yaml", ""))
}

func TestKeysetCreate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keyset")
	if r := must(t, "keyset", "create", path); r.stdout+r.stderr != "" {
		t.Errorf("it says something: %s", r)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := seal.New(broker.NewSecret(string(before))); err != nil {
		t.Errorf("it is no keyset: %v", err)
	}
	r := mustFail(t, 1, []string{path}, "keyset", "create", path)
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("it was written over: %s", r)
	}
	other := filepath.Join(t.TempDir(), "keyset")
	must(t, "keyset", "create", other)
	if text, _ := os.ReadFile(other); string(text) == string(before) {
		t.Error("two keysets are the same")
	}
	mustFail(t, 1, nil, "keyset", "create", filepath.Join(t.TempDir(), "none", "keyset"))
}

// migrated is a database of this build's schema, by the command, and the files with its two URLs.
func migrated(t *testing.T) (dir, admin, service string) {
	t.Helper()
	dir = t.TempDir()
	db := pgtest.New(t)
	admin = writeFile(t, dir, "admin_url", db.AdminURL+"\n")
	must(t, "migrate", "--database-url-file", admin, "--service-login", cliLogin)
	return dir, admin, writeFile(t, dir, "service_url", db.URL(cliLogin)+"\n")
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	dir := t.TempDir()
	file, password := writeFile(t, dir, "url", db.AdminURL+"\n"), writeFile(t, dir, "password", cliPassword+"\n")
	form := regexp.MustCompile(`\AThe schema is at version \d+\.\n\z`)
	// By any number at once, and again: one does the work.
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			r := do(t, "migrate", "--database-url-file", file, "--service-login", cliLogin+"_m", "--service-password-file", password)
			if r.code != 0 || !form.MatchString(r.stdout) || strings.Contains(r.stdout+r.stderr, "CANARY") {
				t.Errorf("at once with others: %s", r)
			}
		})
	}
	wg.Wait()
	again := must(t, "migrate", "--database-url", db.AdminURL)
	if !form.MatchString(again.stdout) {
		t.Error(again)
	}
	// The login has the service's rights and no more.
	service := writeFile(t, dir, "service_url", db.URL(cliLogin+"_m"))
	must(t, "token", "list", "--database-url-file", service)
	mustFail(t, 1, nil, "migrate", "--database-url-file", service)
}

func TestMigrateFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mustFail(t, 1, []string{"--database-url-file", "TASKPASS_DATABASE_URL"}, "migrate")
	mustFail(t, 1, []string{"none"}, "migrate", "--database-url-file", filepath.Join(dir, "none"))
	for _, bad := range []string{
		"postgres://u:" + cliPassword + "@127.0.0.1:1/x?sslmode=disable", "postgres://u:" + cliPassword + "@[bad/x", "nonsense " + cliPassword,
		"postgres://u:" + cliPassword + "@127.0.0.1:1/x?sslmode=" + cliPassword, "host=/nowhere password=" + cliPassword,
	} {
		for _, args := range [][]string{{"migrate"}, {"token", "list"}, {"token", "revoke", "tok_x"}} {
			r := mustFail(t, 1, nil, append(args, "--database-url", bad)...)
			if strings.Contains(r.stdout+r.stderr, cliPassword) {
				t.Errorf("the password is said: %s", r)
			}
		}
	}
	db := pgtest.New(t)
	mustFail(t, 1, nil, "migrate", "--database-url", db.AdminURL, "--service-login", "x", "--service-password-file", filepath.Join(dir, "none"))
}

func TestDatabaseURLFromTheEnvironment(t *testing.T) {
	db := pgtest.New(t)
	t.Setenv("TASKPASS_DATABASE_URL", db.AdminURL)
	must(t, "migrate")
	must(t, "token", "list")
}

var tokenForm = regexp.MustCompile(`\Atpc_[0-9A-Za-z]{36}\n\z`)

func TestTokenCommands(t *testing.T) {
	t.Parallel()
	_, _, file := migrated(t)
	with := func(args ...string) []string { return append(args, "--database-url-file", file) }
	made := must(t, with("token", "create", "--role", "orchestrator", "--name", "orch")...)
	if !tokenForm.MatchString(made.stdout) {
		t.Errorf("stdout is not just the token: %s", made)
	}
	secret := strings.TrimSpace(made.stdout)
	if !broker.WellFormed(broker.PrefixCaller, secret) || strings.Contains(made.stderr, secret) {
		t.Error(made)
	}
	id := regexp.MustCompile(`tok_[0-9a-v]{26}`).FindString(made.stderr)
	if id == "" || !strings.Contains(made.stderr, "orch (orchestrator)") {
		t.Fatalf("stderr does not say which it is: %s", made)
	}
	must(t, with("token", "create", "--role", "auditor", "--name", "aud", "--ttl", "1h")...)

	list := must(t, with("token", "list")...).stdout
	if strings.Contains(list, secret) || strings.Contains(list, secret[4:20]) || strings.Count(list, "\n") != 3 || !regexp.MustCompile(id+` +orch +orchestrator +\S+Z +-\n`).MatchString(list) {
		t.Errorf("the list:\n%s", list)
	}
	if r := must(t, with("token", "revoke", id)...); r.stdout != "" {
		t.Error(r)
	}
	must(t, with("token", "revoke", id)...) // again: nothing changes
	if list := must(t, with("token", "list")...).stdout; !regexp.MustCompile(id + ` +orch +orchestrator +\S+Z +\S+Z\n`).MatchString(list) {
		t.Errorf("after the revocation:\n%s", list)
	}
	mustFail(t, 1, []string{"no token of that id"}, with("token", "revoke", "tok_x")...)
	mustFail(t, 1, []string{"a caller has one"}, with("token", "create", "--role", "operator", "--name", "orch")...)
	mustFail(t, 1, nil, with("token", "create", "--role", "operator", "--name", "a/b")...)
	mustFail(t, 1, nil, with("token", "create", "--role", "operator", "--name", "x", "--ttl", "9601h")...)
	mustFail(t, 2, []string{"--role"}, with("token", "create", "--role", "root", "--name", "x")...)
	mustFail(t, 2, nil, with("token", "create", "--role", "operator", "--name", "x", "--ttl", "-1")...)
}

// A token lives as long as was asked for, by the database's clock, wherever it is made.
func TestTokenCreateTakesTheDatabasesClock(t *testing.T) {
	t.Parallel()
	_, _, file := migrated(t)
	url, _, err := database{DatabaseURLFile: file}.url()
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []time.Duration{-12 * time.Hour, 12 * time.Hour} {
		callers, s, err := openTokens(t.Context(), store.Config{URL: url, Clock: func() time.Time { return time.Now().Add(off) }})
		if err != nil {
			t.Fatal(err)
		}
		secret, made, err := callers.Create(t.Context(), operatorHere(), "orch", broker.RoleOrchestrator, 6*time.Hour)
		if left := time.Until(made.ExpiresAt); err != nil || left < 5*time.Hour || left > 6*time.Hour {
			t.Errorf("a clock that is %s off: a token for 6 h ends in %s, %v", off, left, err)
		}
		if _, err := auth.New(s, nil).Authenticate(t.Context(), secret.Reveal()); err != nil {
			t.Errorf("a clock that is %s off: %v", off, err)
		}
		s.Close()
	}
}

// A refusal of these commands says all that is wrong, as the API does.
func TestTokenCreateSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	_, _, file := migrated(t)
	mustFail(t, 1, []string{"name", "is not 1-128 of"}, "token", "create", "--role", "operator", "--name", "a/b", "--database-url-file", file)
	mustFail(t, 1, []string{"ttl", "is not between"}, "token", "create", "--role", "operator", "--name", "x", "--ttl", "9601h", "--database-url-file", file)
}

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	status := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
	defer server.Close()
	if r := must(t, "healthcheck", "--url", server.URL+"/readyz"); r.stdout+r.stderr != "" {
		t.Error(r)
	}
	status = http.StatusServiceUnavailable
	mustFail(t, 1, []string{"503"}, "healthcheck", "--url", server.URL+"/readyz")
	server.Close()
	mustFail(t, 1, nil, "healthcheck", "--url", server.URL+"/readyz")
	mustFail(t, 1, nil, "healthcheck", "--url", "http://["+url.QueryEscape("bad"))
}

func TestPromises(t *testing.T) {
	t.Parallel()
	table := must(t, "promises").stdout
	for _, words := range []string{"| `aws` |", "| `pool` |", "`denied`", "yes, broker or no broker", "no: it goes back to its pool"} {
		if !strings.Contains(table, words) {
			t.Errorf("no %q in\n%s", words, table)
		}
	}
	dir := t.TempDir()
	file := writeFile(t, dir, "README.md", "before\n"+promisesBegin+"old\n"+promisesEnd+"after\n")
	for range 2 {
		must(t, "promises", "--write", file)
		if text, err := os.ReadFile(file); err != nil || string(text) != "before\n"+promisesBegin+table+promisesEnd+"after\n" {
			t.Errorf("written: %s (%v)", text, err)
		}
	}
	mustFail(t, 1, []string{"no marks"}, "promises", "--write", writeFile(t, dir, "other.md", "nothing\n"))
}
