//go:build peers

package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/broker/localpg"
	"github.com/taskpass/taskpass/cmd/taskpass/config"
	"github.com/taskpass/taskpass/openapi/client"
)

// peerYAML is a production configuration in all but its addresses. RGW obeys a role's policy at once, so the lag is none;
// it accepts a source identity and tags, though its policies take no notice of them.
const peerYAML = `
listen: $LISTEN
limits: {per_task: 1000}
database: {url: "file:$DIR/database_url", max_connections: 8}
seal: {keyset: "file:$DIR/keyset"}
log: {level: debug}
profiles:
  research: &research
    description: each task under its own prefix
    provider: aws
    ttl: {min: 1s, default: 15m, max: 1h}
    allow:
      - callers: [orchestrator]
    aws: &aws
      role_arn: $ROLE
      region: $REGION
      endpoint: $RGW
      access_key_id: "file:$DIR/access_key"
      secret_access_key: "file:$DIR/secret_key"
      source_identity: true
      tags: {"taskpass:task": "{{.TaskID}}", "taskpass:agent": "{{.AgentID}}"}
      revocation: {mode: deny, lag: 0s}
      scopes:
        "read:content":
          statements:
            - actions: ["s3:GetObject"]
              resources: ["arn:aws:s3:::$BUCKET/tasks/{{.TaskID}}/*"]
            - actions: ["s3:ListBucket"]
              resources: ["arn:aws:s3:::$BUCKET"]
              conditions: {StringLike: {"s3:prefix": ["tasks/{{.TaskID}}/*"]}}
        "write:content":
          statements:
            - actions: ["s3:PutObject"]
              resources: ["arn:aws:s3:::$BUCKET/tasks/{{.TaskID}}/*"]
        "do:anything": # as an operator might write it; the broker's own bans stand above it
          statements:
            - actions: ["*"]
              resources: ["*"]
`

// peerMoreYAML is what the two replicas offer beside that. A role that is looked at every second is set right within a
// test's time.
const peerMoreYAML = `  crowd:
    <<: *research
    aws: {<<: *aws, role_arn: "arn:aws:iam:::role/crowd", revocation: &watched {mode: deny, lag: 0s, check_every: 1s}}
  meddled:
    <<: *research
    aws: {<<: *aws, role_arn: "arn:aws:iam:::role/meddled", revocation: *watched}
  team:
    <<: *research
    aws:
      <<: *aws
      scopes:
        "read:team":
          statements:
            - actions: ["s3:GetObject"]
              resources: ["arn:aws:s3:::$BUCKET/tasks/{{.Metadata.team}}/*"]
  untrusted:
    <<: *research
    aws: {<<: *aws, role_arn: "arn:aws:iam:::role/trusts-others"}
  absent:
    <<: *research
    aws: {<<: *aws, role_arn: "arn:aws:iam:::role/nobody-made-it"}
  wrong-key:
    <<: *research
    aws: {<<: *aws, secret_access_key: "file:$DIR/wrong_key"}
`

// peerBroker is an installation as an operator sets it up: by the program's own commands, with any number of replicas.
type peerBroker struct {
	dir     string
	yaml    string      // of its configuration files
	role    string      // of the profile research
	nodes   []string    // the replicas' URLs
	detour  *peerDetour // of the second replica of two
	tokens  map[string]string
	log     peerLog // of all nodes
	secrets peerSecrets
}

// startPeerBroker is an installation with two replicas in this process.
func startPeerBroker(t *testing.T, rgw *peerRGW) *peerBroker {
	t.Helper()
	b := installPeerBroker(t, rgw, peerRole)
	b.yaml += peerMoreYAML
	b.detour = startPeerDetour(t, rgw.url)
	for _, endpoint := range []string{rgw.url, b.detour.url} {
		configFile := b.configure(t, fmt.Sprintf("node-%d", len(b.nodes)), "127.0.0.1:8080", endpoint) // it is given another listener
		b.command(t, "check-config", configFile)
		b.nodes = append(b.nodes, b.start(t, configFile))
	}
	return b
}

// installPeerBroker sets up all but the replicas. No two installations may have a role in common: each would set right
// what the other one writes.
func installPeerBroker(t *testing.T, rgw *peerRGW, role string) *peerBroker {
	t.Helper()
	b := &peerBroker{dir: t.TempDir(), yaml: peerYAML, role: role, tokens: map[string]string{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the nodes' log ends in\n%s", b.log.tail(40))
		}
	})
	adminURL, serviceURL := startPeerPostgres(t)
	for name, text := range map[string]string{
		"admin_url": adminURL, "database_url": serviceURL,
		"access_key": rgw.accessKey, "secret_key": rgw.secretKey, "wrong_key": strings.ToLower(rgw.secretKey),
	} {
		b.write(t, name, text)
	}
	b.secrets.add(rgw.secretKey)
	b.command(t, "migrate", "--database-url-file", b.file("admin_url"), "--service-login", "taskpass")
	b.command(t, "keyset", "create", b.file("keyset"))
	for _, role := range []string{"orchestrator", "auditor"} {
		token := b.command(t, "token", "create", "--role", role, "--name", role, "--database-url-file", b.file("database_url"))
		b.tokens[role] = strings.TrimSpace(token)
		b.secrets.add(b.tokens[role])
	}
	return b
}

func (b *peerBroker) file(name string) string { return filepath.Join(b.dir, name) }

func (b *peerBroker) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(b.file(name), []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// configure writes a replica's configuration, and gives its path.
func (b *peerBroker) configure(t *testing.T, name, listen, endpoint string) string {
	t.Helper()
	values := map[string]string{
		"DIR": b.dir, "LISTEN": listen, "ROLE": peerARN(b.role), "REGION": peerRegion,
		"RGW": endpoint, "BUCKET": peerBucket,
	}
	b.write(t, name+".yaml", os.Expand(b.yaml, func(name string) string { return values[name] }))
	return b.file(name + ".yaml")
}

// startPeerPostgres gives the URLs of the superuser and of the service's login.
func startPeerPostgres(t *testing.T) (admin, service string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "taskpass-pg-") // not t.TempDir: PostgreSQL may run as another user, who must get there
	if err != nil {
		t.Fatal(err)
	}
	server, err := localpg.Start(t.Context(), localpg.Config{Dir: dir, Ephemeral: true})
	if err != nil {
		_ = os.RemoveAll(dir)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	return server.URL("postgres", "postgres"), server.URL("taskpass", "postgres")
}

// command runs `taskpass args…` and gives what it printed.
func (b *peerBroker) command(t *testing.T, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), args, strings.NewReader(""), &stdout, &stderr); code != 0 {
		t.Fatalf("taskpass %s: exit code %d\n%s", strings.Join(args, " "), code, &stderr)
	}
	return stdout.String()
}

// start serves as `taskpass serve` does, but on a port that the kernel chooses, and gives the node's URL.
func (b *peerBroker) start(t *testing.T, configFile string) string {
	t.Helper()
	file, err := config.Load(configFile)
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNode(t.Context(), file, newLogger(&b.log, file.Log.Level), 0)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.store.Close()
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- n.serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("a node ended with %v", err)
		}
	})
	return "http://" + listener.Addr().String()
}

// api is the HTTP API of one node, as a caller of the role sees it.
func (b *peerBroker) api(t *testing.T, node int, role string) *client.ClientWithResponses {
	t.Helper()
	api, err := client.NewClientWithResponses(b.nodes[node], client.WithRequestEditorFn(
		func(_ context.Context, r *http.Request) error {
			r.Header.Set("Authorization", "Bearer "+b.tokens[role])
			return nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	return api
}

// issue asks node 0 for 15 minutes under the profile research.
func (b *peerBroker) issue(t *testing.T, task string, scopes ...string) *client.IssuedCredential {
	t.Helper()
	return b.issueBy(t, 0, client.IssueRequest{TaskID: task, Scopes: scopes})
}

func (b *peerBroker) issueBy(t *testing.T, node int, r client.IssueRequest) *client.IssuedCredential {
	t.Helper()
	c, err := b.tryIssue(t, node, r)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// tryIssue may be called by any goroutine. Without a profile it is research.
func (b *peerBroker) tryIssue(t *testing.T, node int, r client.IssueRequest) (*client.IssuedCredential, error) {
	t.Helper()
	r.AgentID, r.Profile = cmp.Or(r.AgentID, "agent-of-"+r.TaskID), cmp.Or(r.Profile, "research")
	answer, err := b.api(t, node, "orchestrator").IssueCredentialWithResponse(t.Context(), nil, r)
	if err != nil {
		return nil, err
	}
	c := answer.JSON201
	if c == nil {
		return nil, asProblem(answer.StatusCode(), answer.Body)
	}
	b.secrets.add(c.Secret.Env["AWS_SECRET_ACCESS_KEY"], c.Secret.Env["AWS_SESSION_TOKEN"])
	return c, nil
}

// revoke gives the credential's state, and an error unless all was achieved at once. Any goroutine may call it.
func (b *peerBroker) revoke(t *testing.T, node int, id string) (*client.Credential, error) {
	t.Helper()
	answer, err := b.api(t, node, "orchestrator").RevokeCredentialWithResponse(t.Context(), id, client.RevokeRequest{Reason: "the test ends it"})
	switch {
	case err != nil:
		return nil, err
	case answer.JSON200 != nil:
		return answer.JSON200, nil
	case answer.JSON202 != nil:
		return answer.JSON202, fmt.Errorf("still %s, last error %q", answer.JSON202.Status, answer.JSON202.Revocation.LastError)
	}
	return nil, asProblem(answer.StatusCode(), answer.Body)
}

func (b *peerBroker) credential(t *testing.T, id string) *client.Credential {
	t.Helper()
	answer, err := b.api(t, len(b.nodes)-1, "orchestrator").GetCredentialWithResponse(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if answer.JSON200 == nil {
		t.Fatal(asProblem(answer.StatusCode(), answer.Body))
	}
	return answer.JSON200
}

// events gives a page of the audit record, oldest first, and its text.
func (b *peerBroker) events(t *testing.T, q client.ListAuditEventsParams) ([]client.AuditEvent, []byte) {
	t.Helper()
	order := client.Oldest
	q.Order = &order
	answer, err := b.api(t, len(b.nodes)-1, "auditor").ListAuditEventsWithResponse(t.Context(), &q)
	if err != nil {
		t.Fatal(err)
	}
	if answer.JSON200 == nil {
		t.Fatal(asProblem(answer.StatusCode(), answer.Body))
	}
	return answer.JSON200.Events, answer.Body
}
