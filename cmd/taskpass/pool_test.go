package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/openapi"
)

const poolYAML = `
  pool-test:
    provider: pool
    ttl: {default: 15m, min: 1s, max: 1h}
    allow: [{callers: [orch]}]
    pool:
      name: models
      scopes: [call]
      disclosed: accept
`

// An operator's whole work with a pool, by the commands. A value comes from standard input and is shown by none.
func TestPoolCommands(t *testing.T) {
	t.Parallel()
	i := install(t)
	// A key whose file no header can carry is passed over, and named.
	unusable := writeFile(t, i.dir, "bom", "\ufeffsk-cli-CANARY\n")
	i.configure(func(s *settings) {
		s.More = poolYAML + "      check_every: 1s\n      keys: [{name: bom, value: \"file:" + unusable + "\"}]\n"
	})
	service := filepath.Join(i.dir, "service_url")
	ops := writeFile(t, i.dir, "ops", must(t, "token", "create", "--role", "operator", "--name", "ops", "--database-url-file", service).stdout)
	orch, aud := writeFile(t, i.dir, "orch", i.tokens["orch"]), writeFile(t, i.dir, "aud", i.tokens["aud"])
	_, url := i.serve()
	var said strings.Builder
	with := func(code int, stdin, token, want string, args ...string) {
		t.Helper()
		r := doWith(t, stdin, append([]string{"pool"}, append(args, "--url", url, "--token-file", token)...)...)
		said.WriteString(r.String())
		if r.code != code || !strings.Contains(r.stdout+r.stderr, want) {
			t.Errorf("pool %q: want %d and %q: %s", args, code, want, r)
		}
	}
	const one, two = "sk-cli-CANARY-one", "sk-cli-CANARY-two"
	with(0, one+"\n", ops, "models/k is available.", "add", "models", "k", "--scope", "call", "--label", "tier=prod", "--vendor-id", "key_1")
	with(1, one, ops, "conflict", "add", "models", "k")
	with(1, "", ops, "standard input has no value", "add", "models", "l")
	with(1, strings.Repeat("x", 64<<10+1), ops, "larger", "add", "models", "l")
	with(1, "\ufeff"+one, ops, "byte order mark", "add", "models", "l")
	with(1, one+"\n"+two+"\n", ops, "more than one line", "add", "models", "l")
	with(1, one+" \n", ops, "white space", "rotate", "models", "l")
	with(1, one, ops, "/name", "add", "models", "a b")
	with(1, one, aud, "forbidden", "add", "models", "l")
	with(1, "", orch, "forbidden", "list", "models")
	with(1, "", ops, "not_found", "list", "none")
	request := `{"task_id":"t","agent_id":"a","profile":"pool-test","scopes":["call"]}`
	var issued openapi.IssuedCredential
	if err := json.Unmarshal([]byte(mustCall(t, 201, "POST", url+"/v1/credentials", i.tokens["orch"], request)), &issued); err != nil {
		t.Fatal(err)
	}
	if issued.Secret.Fields["api_key"] != one {
		t.Error("the holder does not have what was handed in")
	}
	with(0, two, ops, "models/k is draining.", "rotate", "models", "k", "--deadline", "2h")
	with(0, "", aud, "0 of 1 until", "list", "models")
	with(0, "", ops, "models/k is held.", "abort", "models", "k")
	with(1, "", ops, "conflict", "abort", "models", "k")
	with(0, "", ops, "models/k is quarantined.", "quarantine", "models", "k", "--reason", "seen in a log")
	with(0, "", aud, "seen in a log", "list", "models")
	with(0, "", ops, "models/k is held.", "free", "models", "k")
	with(1, "", aud, "forbidden", "retire", "models", "k")
	with(0, "", ops, "models/k is retired.", "retire", "models", "k", "--reason", "old")
	with(2, "", ops, "taskpass: ", "add", "models", "k", one)
	with(1, "", filepath.Join(i.dir, "none"), "none", "list", "models")
	if strings.Contains(strings.ReplaceAll(said.String(), "unexpected argument "+one, ""), "CANARY") {
		t.Error("a value is shown")
	}
	await(t, "the unusable key to be counted", func() bool {
		return strings.Contains(mustCall(t, 200, "GET", url+"/metrics", "", ""), `taskpass_pool_keys_unusable{pool="models"} 1`)
	})
	with(0, "", aud, "begins with a byte order mark", "list", "models")
	trail := mustCall(t, 200, "GET", url+"/v1/audit/events?upstream_id=models/k", i.tokens["aud"], "")
	for _, event := range []string{"key.added", "key.rotating", "key.rotation_aborted", "key.quarantined", "key.freed", "key.retired"} {
		if !strings.Contains(trail, fmt.Sprintf("%q", event)) {
			t.Errorf("no event %s", event)
		}
	}
	if os.Getenv("TASKPASS_TOKEN") == "" {
		if r := do(t, "pool", "list", "models", "--url", url); r.code != 1 || !strings.Contains(r.stderr, "say who asks") {
			t.Error(r)
		}
	}
}
