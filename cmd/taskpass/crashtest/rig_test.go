package crashtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"text/template"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/auth"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/broker/seal"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/openapi/client"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/aws"
)

const (
	bucket   = "crash-bucket"
	roleName = "crash-role"
	roleARN  = "arn:aws:iam::123456789012:role/" + roleName
	object   = "x" // in each task's folder

	poolKeys = 6

	// patience bounds every wait for something that must happen, and callLimit every call: far above what a busy machine
	// needs, so that only a fault meets them.
	patience  = 4 * time.Minute
	callLimit = 3 * time.Minute
)

// rig is an installation without a broker: a database, an upstream that lives in the test's own process and so survives
// every kill, keys, and what the clients remember. Replicas are started on it and die.
type rig struct {
	t        *testing.T
	db       pgtest.DB
	admin    *pgxpool.Pool // superuser
	aws      *sandbox.Server
	awsURL   string // the upstream itself
	dir      string
	token    string // the orchestrator's
	http     *http.Client
	book     book
	turn     atomic.Int64 // of all load's calls
	settings settings
	public   string // the key that auditors are given; empty: nothing is signed
}

// settings are what tests change of a configuration, before a replica is started.
type settings struct {
	AWS          string // endpoint; a proxy's, perhaps
	DatabaseURL  string // the service's
	Overlap      string
	ShutdownTime string
	UpstreamTime string  // a repeated request waits that long for one whose replica died
	Google       *google // nil: no profiles of it
	Audit        string  // the section of that name; empty: none
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, db: pgtest.New(t), dir: t.TempDir(), http: &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true}, // so that net/http sends nothing twice by itself
	}}
	const brokerKey, brokerSecret = "AKIACRASHTESTBROKER0", "a-secret-of-the-crash-test"
	upstream, err := sandbox.New(sandbox.Config{
		AccessKeyID: brokerKey, SecretAccessKey: brokerSecret,
		Roles: []sandbox.Role{{Name: roleName, MaxSessionDuration: 12 * time.Hour,
			Policy: `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}`}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.aws = upstream
	r.aws.CreateBucket(bucket)
	server := httptest.NewServer(r.aws)
	t.Cleanup(func() { r.aws.Close(); server.Close() })
	r.awsURL = server.URL
	r.settings = settings{AWS: server.URL, DatabaseURL: r.db.URL(login), Overlap: "10m", ShutdownTime: "2m", UpstreamTime: "60s"}

	if r.admin, err = pgxpool.New(t.Context(), r.db.AdminURL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.admin.Close)
	keyset, err := seal.NewKeyset()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"aws_id": brokerKey, "aws_key": brokerSecret, "keyset": keyset.Reveal()}
	for i := range poolKeys {
		files[fmt.Sprintf("pool_%d", i)] = "sk-crash-" + broker.NewToken("key_").Reveal()
	}
	for name, value := range files {
		r.write(name, value)
	}
	r.makeToken()
	return r
}

func (r *rig) write(name, text string) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	providertest.WriteSecret(r.t, path, text)
	return path
}

func (r *rig) makeToken() {
	r.t.Helper()
	s, err := store.Open(r.t.Context(), store.Config{URL: broker.NewSecret(r.db.URL(login)), MaxConns: 2})
	if err != nil {
		r.t.Fatal(err)
	}
	defer s.Close()
	token, _, err := auth.New(s, nil).Create(r.t.Context(), broker.Caller{Name: "test", Auth: "database"}, "orch", broker.RoleOrchestrator, time.Hour)
	if err != nil {
		r.t.Fatal(err)
	}
	r.token = token.Reveal()
}

var configText = template.Must(template.New("").Parse(`
listen: {{.Listen}}
database: {url: "file:{{.Dir}}/{{.Name}}.url"}
seal: {keyset: "file:{{.Dir}}/keyset"}
upstream_timeout: {{.UpstreamTime}}
shutdown_timeout: {{.ShutdownTime}}
{{.Audit}}
profiles:
  aws-crash:
    provider: aws
    ttl: {default: 30m, min: 1s, max: 1h}
    overlap: {{.Overlap}}
    allow: [{callers: ["*"]}]
    aws:
      role_arn: "` + roleARN + `"
      region: us-east-1
      endpoint: {{.AWS}}
      access_key_id: "file:{{.Dir}}/aws_id"
      secret_access_key: "file:{{.Dir}}/aws_key"
      revocation: {mode: deny, lag: 0s}
      scopes:
        read:
          statements:
            - actions: ["s3:GetObject"]
              resources: ["arn:aws:s3:::` + bucket + `/tasks/{{"{{.TaskID}}"}}/*"]
  pool-crash:
    provider: pool
    ttl: {default: 30m, min: 1s, max: 1h}
    overlap: {{.Overlap}}
    allow: [{callers: ["*"]}]
    pool:
      name: crash
      share_percent: 100 # shares have tests of their own
      scopes: [use]
      disclosed: accept
      keys:
{{- range .Pool}}
        - {name: key-{{.}}, value: "file:{{$.Dir}}/pool_{{.}}"}
{{- end}}
{{- with .Google}}
{{- range $name, $mode := .Profiles}}
  {{$name}}:
    provider: gcp
    ttl: {default: 1m, max: 1h}
    allow: [{callers: ["*"]}]
    gcp:
      {{$mode}}
      token_file: "file:{{$.Dir}}/gcp_token"
      endpoints: {credentials: "{{$.Google.RPC}}", admin: "{{$.Google.RPC}}", sts: "{{$.Google.URL}}", token: "{{$.Google.URL}}/token"}
      scopes: {read: {}}
{{- end}}
{{- end}}
`))

// replica is one `taskpass serve`.
type replica struct {
	rig    *rig
	url    string
	cmd    *exec.Cmd
	log    *lockedBuffer
	exited chan struct{} // closed after err is set
	err    error
	api    *client.ClientWithResponses
}

// start runs a replica and waits until it is ready; killAt is a kill point or empty.
func (r *rig) start(killAt string) *replica {
	r.t.Helper()
	for {
		p := r.launch(killAt)
		if p.awaitReady() {
			return p
		}
		if !strings.Contains(p.log.tail(3000), "address already in use") { // somebody took the port that was free
			r.t.Fatalf("the replica ended: %v\n%s", p.err, p.log.tail(3000))
		}
	}
}

func (r *rig) launch(killAt string) *replica {
	r.t.Helper()
	listen := freeAddress(r.t)
	name := strings.ReplaceAll(listen, ":", "_")
	var text bytes.Buffer
	err := configText.Execute(&text, map[string]any{
		"Listen": listen, "Dir": r.dir, "Name": name, "Pool": []int{0, 1, 2, 3, 4, 5}[:poolKeys],
		"AWS": r.settings.AWS, "Overlap": r.settings.Overlap, "ShutdownTime": r.settings.ShutdownTime, "UpstreamTime": r.settings.UpstreamTime, "Google": r.settings.Google, "Audit": r.settings.Audit,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.write(name+".url", r.settings.DatabaseURL)
	p := &replica{rig: r, url: "http://" + listen, log: &lockedBuffer{}, exited: make(chan struct{})}
	p.cmd = exec.Command(binary, "serve", "--config", r.write(name+".yaml", text.String()))
	p.cmd.Env = append(os.Environ(), "TASKPASS_KILL_AT="+killAt)
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	r.t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.exited
		if r.t.Failed() {
			r.t.Logf("log of %s (kill at %q):\n%s", p.url, killAt, p.log.tail(6000))
		}
	})
	p.api, err = client.NewClientWithResponses(p.url, client.WithHTTPClient(r.http),
		client.WithRequestEditorFn(func(_ context.Context, q *http.Request) error {
			if !strings.HasSuffix(q.URL.Path, "/redeem") { // an agent has no token, only its ticket
				q.Header.Set("Authorization", "Bearer "+r.token)
			}
			return nil
		}))
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

// awaitReady tells whether the replica is ready; false: it has ended.
func (p *replica) awaitReady() bool {
	p.rig.t.Helper()
	p.rig.eventually("the replica is ready", func() bool {
		if p.dead() {
			return true
		}
		answer, err := p.rig.http.Get(p.url + "/readyz")
		if err != nil {
			return false
		}
		_ = answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
	return !p.dead()
}

func (p *replica) dead() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// awaitKilled waits until the replica has killed itself.
func (p *replica) awaitKilled() {
	p.rig.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.rig.t.Fatal("the replica never reached its kill point")
	}
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || status.Signal() != syscall.SIGKILL {
		p.rig.t.Fatalf("the replica ended by itself: %v", p.err)
	}
}

// stop ends the replica as an operator would.
func (p *replica) stop() {
	p.rig.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.rig.t.Fatal(err)
	}
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.rig.t.Fatal("the replica does not stop")
	}
	if p.err != nil {
		p.rig.t.Fatalf("the replica ended with %v", p.err)
	}
}

func deadlocked(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "40P01"
}

func (r *rig) exec(sql string, args ...any) int64 {
	r.t.Helper()
	tag, err := r.admin.Exec(r.t.Context(), sql, args...)
	for deadlocked(err) { // a running broker is at the same rows, in another order
		tag, err = r.admin.Exec(r.t.Context(), sql, args...)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return tag.RowsAffected()
}

func (r *rig) count(sql string, args ...any) (n int) {
	r.t.Helper()
	if err := r.admin.QueryRow(r.t.Context(), sql, args...).Scan(&n); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// hurry makes what a crash left behind due now, in place of waiting for leases and time limits to pass. Tickets that wait
// to be redeemed are not left behind.
func (r *rig) hurry() {
	r.t.Helper()
	r.exec(`UPDATE versions SET due_at = now() WHERE due_at > now() AND state IN ('issuing', 'lost', 'revoking') AND NOT unclaimed`)
	r.exec(`UPDATE tasks SET due_at = now() WHERE due_at > now()`)
}

// settle waits until the sweeper of some replica has nothing more to do. No request may be under way.
func (r *rig) settle() {
	r.t.Helper()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for {
		r.hurry()
		n := r.count(`SELECT (SELECT count(*) FROM versions WHERE state IN ('issuing', 'lost', 'revoking') AND NOT unclaimed)
			+ (SELECT count(*) FROM tasks WHERE due_at IS NOT NULL)`)
		if n == 0 {
			return
		}
		select {
		case <-limit:
			r.t.Fatalf("%d pieces of work are never done", n)
		case <-tick.C:
		}
	}
}

func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	tick := time.NewTicker(15 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for !ok() {
		select {
		case <-limit:
			r.t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

// works tries an AWS secret on its task's object, as an agent would: allowed, refused (a definite 403), or an error.
func (r *rig) works(ctx context.Context, g grant) (bool, error) {
	api := s3.New(s3.Options{
		Region: "us-east-1", BaseEndpoint: &r.awsURL, UsePathStyle: true, Retryer: aws.NopRetryer{},
		Credentials: credentials.NewStaticCredentialsProvider(
			g.Fields["access_key_id"], g.Fields["secret_access_key"], g.Fields["session_token"]),
	})
	r.aws.PutObject(bucket, "tasks/"+g.Task+"/"+object, []byte("the task's own"))
	out, err := api.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(bucket), Key: aws.String("tasks/" + g.Task + "/" + object)})
	if err == nil {
		return true, out.Body.Close()
	}
	if e, ok := errors.AsType[*awshttp.ResponseError](err); ok && e.HTTPStatusCode() == http.StatusForbidden {
		return false, nil
	}
	return false, err
}

// problemOf reads a coded answer; an error says in which way it is not one.
func problemOf(response *http.Response, body []byte) (client.Problem, error) {
	var p client.Problem
	if err := json.Unmarshal(body, &p); err != nil {
		return p, fmt.Errorf("%d answered with no problem but %.200q", response.StatusCode, body)
	}
	if kind := response.Header.Get("Content-Type"); !strings.HasPrefix(kind, "application/problem+json") {
		return p, fmt.Errorf("%d %s has the content type %q", response.StatusCode, p.Code, kind)
	}
	code := broker.Code(p.Code)
	switch {
	case p.Status != response.StatusCode || code.Status() != p.Status:
		return p, fmt.Errorf("answered %d with status %d and code %q", response.StatusCode, p.Status, p.Code)
	case p.Retryable != code.Retryable() || p.Detail == "" || p.RequestID == "":
		return p, fmt.Errorf("a problem that is not whole: %+v", p)
	}
	return p, nil
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// lockedBuffer is a process's log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.b.Bytes()
	return string(b[max(0, len(b)-n):])
}
