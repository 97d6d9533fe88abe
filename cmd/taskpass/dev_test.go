package main

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/taskpass/taskpass/openapi"
)

// startDev runs `dev` and waits for its ready file.
func startDev(t *testing.T, dir, readyFile string) (*child, ready) {
	t.Helper()
	if err := os.Remove(readyFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	c := start(t, "dev", "--listen", "127.0.0.1:0", "--data-dir", dir, "--ready-file", readyFile)
	var r ready
	await(t, "the ready file is there", func() bool {
		if c.gone() {
			t.Fatalf("dev ended: %v\n%s", c.err, c.out.String())
		}
		text, err := os.ReadFile(readyFile)
		return err == nil && json.Unmarshal(text, &r) == nil // it appears whole
	})
	return c, r
}

func postmaster(t *testing.T, dir string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "postgres", "data", "postmaster.pid"))
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

func lives(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

const devRequest = `{"task_id":"research-1","agent_id":"agent-17","profile":"aws-demo","scopes":["read:content"],"ttl_seconds":900}`

// dev from the first start, through a kill that nothing can be caught of, to a clean end.
func TestDev(t *testing.T) {
	t.Parallel()
	temp := tempDir(t)
	dir, readyFile := filepath.Join(temp, "data"), filepath.Join(temp, "ready.json")
	dev, r := startDev(t, dir, readyFile)
	info, err := os.Stat(readyFile)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the ready file has mode %v (%v): it holds tokens", info.Mode(), err)
	}
	for _, role := range []string{"orchestrator", "auditor", "operator"} {
		mustCall(t, 200, "GET", r.BaseURL+"/v1/profiles", r.Tokens[role], "")
		if !strings.Contains(dev.out.String(), r.Tokens[role]) {
			t.Errorf("stdout does not show the token of the %s", role)
		}
	}
	if r.Sandbox["aws"] == "" || r.Sandbox["model"] == "" || r.DatabaseURL == "" || !strings.Contains(dev.out.String(), "*sandbox*") {
		t.Errorf("ready file: %+v", r)
	}
	// The console is there, and the auditor's token is where dev says.
	tokenFile := filepath.Join(dir, "keys", "token_auditor")
	if token, err := os.ReadFile(tokenFile); err != nil || strings.TrimSpace(string(token)) != r.Tokens["auditor"] || !strings.Contains(dev.out.String(), tokenFile) {
		t.Errorf("the auditor's token is not in %s, or dev does not say so: %v", tokenFile, err)
	}
	if page := mustCall(t, 200, "GET", r.BaseURL+"/console/signin", "", ""); !strings.Contains(page, "Sign in") {
		t.Errorf("the console: %s", page)
	}
	var issued openapi.IssuedCredential
	if err := json.Unmarshal([]byte(mustCall(t, 201, "POST", r.BaseURL+"/v1/credentials", r.Tokens["orchestrator"], devRequest)), &issued); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"keys", filepath.Join("keys", "keyset"), filepath.Join("keys", "database_url"), filepath.Join("keys", "token_auditor")} {
		if info, err := os.Stat(filepath.Join(dir, path)); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v (%v)", path, info.Mode(), err)
		}
	}
	// The log tells no secret, though stdout does.
	for line := range strings.Lines(dev.out.String()) {
		if strings.HasPrefix(line, "{") && (strings.Contains(line, r.Tokens["orchestrator"]) || strings.Contains(line, issued.Secret.Fields["session_token"])) {
			t.Errorf("the log holds a secret: %s", line)
		}
	}
	second := start(t, "dev", "--listen", "127.0.0.1:0", "--data-dir", dir)
	await(t, "a second one in the same directory gives up", second.gone)
	if second.err == nil || !strings.Contains(second.out.String(), "in use") {
		t.Errorf("it ended with %v:\n%s", second.err, second.out.String())
	}
	mustCall(t, 200, "GET", r.BaseURL+"/readyz", "", "")

	pid := postmaster(t, dir)
	dev.signal(syscall.SIGKILL)
	await(t, "it is dead", dev.gone)
	await(t, "PostgreSQL dies with it", func() bool { return !lives(pid) })

	again, r2 := startDev(t, dir, readyFile)
	state := mustCall(t, 200, "GET", r2.BaseURL+"/v1/credentials/"+issued.ID, r2.Tokens["operator"], "")
	if !strings.Contains(state, `"task_id":"research-1"`) {
		t.Errorf("what was issued before the kill: %s", state)
	}
	mustCall(t, 201, "POST", r2.BaseURL+"/v1/credentials", r2.Tokens["orchestrator"], devRequest)
	mustCall(t, 200, "GET", r2.BaseURL+"/v1/profiles", r.Tokens["orchestrator"], "") // the tokens of before are still good
	pid = postmaster(t, dir)
	again.stop()
	if lives(pid) {
		t.Error("PostgreSQL outlived it")
	}
	if _, err := os.Stat(readyFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the ready file outlived it: %v", err)
	}
}

func TestDevCannotListen(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := filepath.Join(tempDir(t), "data")
	mustFail(t, 1, []string{"--listen"}, "dev", "--listen", l.Addr().String(), "--data-dir", dir)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it left something behind: %v", err)
	}
}

// The demo plays to its end, in the words of somebody who sees it for the first time, and shows no secret.
func TestDemo(t *testing.T) {
	t.Parallel()
	r := must(t, "demo")
	if !strings.Contains(r.stdout, "All as it should be, in ") || r.stderr != "" {
		t.Error(r)
	}
	for _, words := range []string{"*sandbox*", "refused: another task's", "refused: outside its scopes", "refused: it lacks customer_write", "revoked: denied", "names no scope", "credential.refused", "dev-orchestrator"} {
		if !strings.Contains(r.stdout, words) {
			t.Errorf("no %q in\n%s", words, r.stdout)
		}
	}
	for _, secret := range []string{`tp[ctx]_[0-9A-Za-z]{36}`, `sk-sandbox-[0-9a-f]{40}`, `ya29\.[-._0-9A-Za-z]{20}`, `rk_test_[0-9a-z]{40}`, `IQoJ[0-9A-Za-z+/]{100}`} {
		if found := regexp.MustCompile(secret).FindString(r.stdout + r.stderr); found != "" {
			t.Errorf("it shows %.12s…", found)
		}
	}
}

func TestDemoVerbose(t *testing.T) {
	if testing.Short() {
		t.Skip("the demo once more")
	}
	t.Parallel()
	r := must(t, "demo", "--verbose")
	if !strings.Contains(r.stderr, `"msg":"request"`) {
		t.Error(r)
	}
	for _, secret := range []string{`tp[ctx]_[0-9A-Za-z]{36}`, `sk-sandbox-[0-9a-f]{40}`, `ya29\.[-._0-9A-Za-z]{20}`, `rk_test_[0-9a-z]{40}`, `IQoJ[0-9A-Za-z+/]{100}`} {
		if found := regexp.MustCompile(secret).FindString(r.stderr); found != "" {
			t.Errorf("the log shows %.12s…", found)
		}
	}
}
