package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/broker/localpg"
	"github.com/taskpass/taskpass/openapi"
)

// cluster is a PostgreSQL of its own that can become a standby: a server in recovery that takes no writes until promoted.
type cluster struct {
	t      *testing.T
	dir    string
	server *localpg.Server
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: filepath.Join(tempDir(t), "pg")}
	c.start()
	t.Cleanup(c.stop)
	return c
}

func (c *cluster) start() {
	c.t.Helper()
	var err error
	if c.server, err = localpg.Start(c.t.Context(), localpg.Config{Dir: c.dir}); err != nil { // not Ephemeral: its wal_level is too low
		c.t.Fatal(err)
	}
}

func (c *cluster) stop() {
	c.t.Helper()
	if err := c.server.Close(); err != nil {
		c.t.Error(err)
	}
}

// standBy starts the server anew, in recovery.
func (c *cluster) standBy() {
	c.t.Helper()
	c.stop()
	if err := os.WriteFile(filepath.Join(c.dir, "data", "standby.signal"), nil, 0o644); err != nil {
		c.t.Fatal(err)
	}
	c.start()
}

func (c *cluster) promote() {
	c.t.Helper()
	sql(c.t, c.server.URL("postgres", "postgres"), "SELECT pg_promote()")
}

// A failover to a real standby, before the start and while it serves: nothing is restarted.
func TestStandbyIsPromoted(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	i := install(t)
	admin, service := writeFile(t, i.dir, "own_admin", c.server.URL("postgres", "postgres")), writeFile(t, i.dir, "own_url", c.server.URL(cliLogin, "postgres"))
	must(t, "migrate", "--database-url-file", admin, "--service-login", cliLogin)
	orch := strings.TrimSpace(must(t, "token", "create", "--role", "orchestrator", "--name", "orch", "--database-url-file", service).stdout)
	i.configure(func(s *settings) { s.URLFile = service })
	c.standBy()

	s := start(t, "serve", "--config", i.config, "--wait-for-database", "5m")
	if reason := fmt.Sprint(s.awaitLine("waiting for PostgreSQL", 0)["reason"]); !strings.Contains(reason, "read-only replica (pg_is_in_recovery)") {
		t.Errorf("it waits because %s", reason)
	}
	c.promote()
	at := fmt.Sprintf("http://%s", s.awaitLine("serving", 0)["address"])
	issue := func() (one openapi.IssuedCredential) {
		t.Helper()
		if err := json.Unmarshal([]byte(mustCall(t, 201, "POST", at+"/v1/credentials", orch, fmt.Sprintf(serveRequest, ""))), &one); err != nil {
			t.Fatal(err)
		}
		return one
	}
	issued := issue()

	c.standBy() // the broker's sessions end, and the next ones are a standby's
	await(t, "it is not ready, and says why", func() bool {
		status, text, err := call(t, "GET", at+"/readyz", "", "")
		return err == nil && status == 503 && strings.Contains(text, "read-only replica (pg_is_in_recovery)")
	})
	for range 20 { // more than the pool has
		if text := mustCall(t, 503, "POST", at+"/v1/credentials", orch, fmt.Sprintf(serveRequest, "")); !strings.Contains(text, `"retryable":true`) {
			t.Errorf("a write: %s", text)
		}
	}
	mustCall(t, 200, "GET", at+"/v1/credentials/"+issued.ID, orch, "")
	c.promote()
	mustCall(t, 200, "GET", at+"/readyz", "", "")
	for range 20 {
		issue()
	}
	s.stop()
}
