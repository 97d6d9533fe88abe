package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"text/template"
	"time"

	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg"
	"github.com/taskpass/taskpass/cmd/taskpass/config"
	"github.com/taskpass/taskpass/migrations"
	"github.com/taskpass/taskpass/providers/sandbox"
)

// stack is a whole installation in one process, for `demo` and `dev`: a private PostgreSQL, sandboxed vendors, and the
// same node that `serve` runs, from a configuration of the same form.
type stack struct {
	BaseURL  string
	AdminURL string // of the database, as its superuser
	Tokens   map[string]broker.Secret
	Sandbox  *sandbox.Sandbox

	dataDir  string
	postgres *localpg.Server // nil: somebody else's
	node     *node
	stop     context.CancelFunc
	served   chan error
}

type stackConfig struct {
	dataDir     string
	databaseURL string // empty: a private PostgreSQL in dataDir
	listen      string
	ephemeral   bool
	logger      *slog.Logger
}

const (
	serviceLogin = "taskpass_dev"
	stackLog     = "taskpass.localhost/log" // the name of the audit log
)

func startStack(ctx context.Context, cfg stackConfig) (s *stack, err error) {
	s = &stack{AdminURL: cfg.databaseURL, dataDir: cfg.dataDir, Tokens: map[string]broker.Secret{}, served: make(chan error, 2)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	listener, err := listen(cfg.listen)
	if err != nil {
		return s, err
	}
	defer func() {
		if s.stop == nil { // it does not serve: nobody else closes it
			_ = listener.Close()
		}
	}()
	// PostgreSQL may run as another user, who must be able to pass through; the keys have a directory of their own.
	if err := os.MkdirAll(cfg.dataDir, 0o711); err != nil { //nolint:gosec // as said
		return s, err
	}
	if os.Geteuid() == 0 { // it may be a script's 0700 directory
		if err := os.Chmod(cfg.dataDir, 0o711); err != nil { //nolint:gosec // as said
			return s, err
		}
	}
	if cfg.databaseURL == "" {
		s.postgres, err = localpg.Start(ctx, localpg.Config{
			Dir: filepath.Join(cfg.dataDir, "postgres"), Ephemeral: cfg.ephemeral, Logger: cfg.logger,
		})
		if err != nil {
			return s, err
		}
		s.AdminURL = s.postgres.URL("postgres", "postgres")
	}
	if s.Sandbox, err = sandbox.Start(sandbox.Config{}); err != nil {
		return s, err
	}
	file, err := s.configure(ctx, cfg)
	if err != nil {
		return s, err
	}
	if s.node, err = newNode(ctx, file, cfg.logger, time.Minute); err != nil {
		return s, err
	}
	if err := s.makeTokens(ctx); err != nil {
		return s, err
	}
	s.serve(ctx, listener)
	return s, nil
}

// configure migrates the database and writes what a production installation would be given: keys in files, and a
// configuration that refers to them.
func (s *stack) configure(ctx context.Context, cfg stackConfig) (*config.File, error) {
	keys := filepath.Join(cfg.dataDir, "keys")
	if err := os.MkdirAll(keys, 0o700); err != nil {
		return nil, err
	}
	password := broker.NewToken("dev_")
	if err := migrations.Up(ctx, s.AdminURL, migrations.Login{Name: serviceLogin, Password: password}); err != nil {
		return nil, err
	}
	serviceURL, err := as(s.AdminURL, serviceLogin, password.Reveal())
	if err != nil {
		return nil, err
	}
	files := map[string]string{
		"database_url": serviceURL, "aws_id": s.Sandbox.BrokerAccessKeyID, "aws_key": s.Sandbox.BrokerSecretAccessKey,
		"gcp_token": s.Sandbox.GCPBrokerToken,
	}
	for i, key := range s.Sandbox.ModelKeys[:sandbox.PoolKeys] {
		files[fmt.Sprintf("model_%d", i+1)] = key
	}
	for name, key := range s.Sandbox.StripeKeys {
		files["stripe_"+name] = key
	}
	written := time.Now().Add(-broker.FileSettles) // they are whole: nobody has to look twice
	for name, value := range files {
		file := filepath.Join(keys, name)
		if err := os.WriteFile(file, []byte(value+"\n"), 0o600); err != nil {
			return nil, err
		}
		if err := os.Chtimes(file, time.Time{}, written); err != nil {
			return nil, err
		}
	}
	if err := writeKeyset(filepath.Join(keys, "keyset")); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if _, err := writeAuditKey(stackLog, filepath.Join(keys, "audit_key")); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	var text bytes.Buffer
	err = stackYAML.Execute(&text, map[string]any{
		"Keys": keys, "AWS": s.Sandbox.AWSURL, "Role": sandbox.RoleARN, "Bucket": sandbox.Bucket, "Region": sandbox.Region,
		"Log": stackLog, "Checkpoints": filepath.Join(cfg.dataDir, "checkpoints"),
		"GCP": s.Sandbox.GCPURL, "GCPRPC": s.Sandbox.GCPRPC, "Shared": s.Sandbox.GCPShared, "Slots": s.Sandbox.GCPSlots,
		"Stripe": s.Sandbox.StripeURL, "StripePermissions": sandbox.StripePermissions,
	})
	if err != nil {
		return nil, err
	}
	return config.Parse("the sandbox's configuration", text.Bytes())
}

// auditKeys are what an auditor of this installation is given.
func (s *stack) auditKeys() (*tree.Keys, error) {
	private, err := broker.Ref("file:" + filepath.Join(s.dataDir, "keys", "audit_key")).Resolve()
	if err != nil {
		return nil, err
	}
	public, err := tree.Public(private)
	if err != nil {
		return nil, err
	}
	return tree.ParseKeys(public)
}

// as is the same database, entered as another user.
func as(adminURL, name, password string) (string, error) {
	u, err := url.Parse(adminURL)
	if err != nil {
		return "", errors.New("the database URL is not valid")
	}
	u.User = url.UserPassword(name, password)
	return u.String(), nil
}

func (s *stack) makeTokens(ctx context.Context) error {
	for _, role := range []broker.Role{broker.RoleOrchestrator, broker.RoleAuditor, broker.RoleOperator} {
		token, _, err := s.node.callers.Create(ctx, operatorHere(), "dev-"+string(role), role, 30*24*time.Hour)
		if err != nil {
			return err
		}
		s.Tokens[string(role)] = token
		if err := os.WriteFile(s.TokenFile(string(role)), []byte(token.Reveal()+"\n"), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// TokenFile is where the token of a role is, for its owner alone.
func (s *stack) TokenFile(role string) string { return filepath.Join(s.dataDir, "keys", "token_"+role) }

func (s *stack) serve(ctx context.Context, listener net.Listener) {
	ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.BaseURL = "http://" + listener.Addr().String()
	go func() { s.served <- s.node.serve(ctx, listener) }()
}

// close ends everything in the order of its dependence.
func (s *stack) close() error {
	var errs []error
	switch {
	case s.stop != nil:
		s.stop()
		errs = append(errs, <-s.served)
	case s.node != nil:
		s.node.close()
	}
	if s.Sandbox != nil {
		errs = append(errs, s.Sandbox.Close())
	}
	if s.postgres != nil {
		errs = append(errs, s.postgres.Close())
	}
	return errors.Join(errs...)
}

// The sandbox obeys at once, so the lag is none; AWS takes up to minutes.
var stackYAML = template.Must(template.New("config").Parse(`
database: {url: "file:{{.Keys}}/database_url"}
seal: {keyset: "file:{{.Keys}}/keyset"}
audit:
  name: {{.Log}}
  key: "file:{{.Keys}}/audit_key"
  publish: [{file: "{{.Checkpoints}}", every: 1s}]
limits: {per_task: 100000, per_agent: 100000, per_profile: 1000000, per_caller: 1000000} # room to measure with
profiles:
  aws-demo:
    description: "sandbox: objects of one task in one bucket"
    provider: aws
    ttl: {default: 15m, min: 1s, max: 1h}
    ticket: {on_reuse: revoke}
    allow:
      - callers: ["*"]
    aws:
      role_arn: "{{.Role}}"
      region: {{.Region}}
      endpoint: {{.AWS}}
      access_key_id: "file:{{.Keys}}/aws_id"
      secret_access_key: "file:{{.Keys}}/aws_key"
      source_identity: true
      tags: {"taskpass:task": "{{"{{.TaskID}}"}}"}
      revocation: {mode: deny, lag: 0s}
      scopes:
        read:content:
          statements:
            - actions: ["s3:GetObject"]
              resources: ["arn:aws:s3:::{{.Bucket}}/tasks/{{"{{.TaskID}}"}}/*"]
            - actions: ["s3:ListBucket"]
              resources: ["arn:aws:s3:::{{.Bucket}}"]
              conditions: {StringLike: {"s3:prefix": ["tasks/{{"{{.TaskID}}"}}/*"]}}
        write:content:
          statements:
            - actions: ["s3:PutObject"]
              resources: ["arn:aws:s3:::{{.Bucket}}/tasks/{{"{{.TaskID}}"}}/*"]
  gcp-demo:
    description: "sandbox: objects of one task in one bucket, by a service account that the task has to itself"
    provider: gcp
    ttl: {default: 15m, min: 1m, max: 1h}
    allow:
      - callers: ["*"]
    gcp:
      mode: slot
      accounts: [{{range .Slots}}"{{.}}", {{end}}]
      share_percent: 100 # one developer plays all callers
      token_file: "file:{{.Keys}}/gcp_token"
      endpoints: &google {credentials: "{{.GCPRPC}}", admin: "{{.GCPRPC}}", sts: "{{.GCP}}", token: "{{.GCP}}/token"}
      scopes: &objects
        read:content:
          boundary:
            - {bucket: {{.Bucket}}, roles: [roles/storage.objectViewer], prefix: "tasks/{{"{{.TaskID}}"}}/"}
  gcp-token:
    description: "sandbox: objects of one task in one bucket, by a token of a shared service account"
    provider: gcp
    ttl: {default: 10m, min: 1m, max: 1h}
    allow:
      - callers: ["*"]
    gcp:
      mode: impersonate
      service_account: "{{.Shared}}"
      token_file: "file:{{.Keys}}/gcp_token"
      endpoints: *google
      scopes: *objects
  fleet-demo:
    description: "sandbox: a key of a model API that several agents share; operators hand it in"
    provider: pool
    ttl: {default: 15m, min: 1s, max: 1h}
    allow:
      - callers: ["*"]
    pool:
      name: fleet
      share_percent: 100 # one developer plays all callers
      env: MODEL_API_KEY
      scopes: ["call:model"]
      disclosed: accept
      max_holders: 10
      check_every: 1s
  pool-demo:
    description: "sandbox: three plain keys of a model API"
    provider: pool
    ttl: {default: 15m, min: 1s, max: 1h}
    allow:
      - callers: ["*"]
    pool:
      name: demo
      share_percent: 100
      env: MODEL_API_KEY
      scopes: ["call:model"]
      disclosed: accept
      keys:
        - {name: key-1, value: "file:{{.Keys}}/model_1"}
        - {name: key-2, value: "file:{{.Keys}}/model_2"}
        - {name: key-3, value: "file:{{.Keys}}/model_3"}
  stripe-demo:
    description: "sandbox: restricted keys of one Stripe account, the smallest that suffices"
    provider: stripe
    ttl: {default: 15m, min: 1s, max: 1h}
    allow:
      - callers: ["*"]
    stripe:
      mode: pool
      endpoint: "{{.Stripe}}"
      pool:
        name: demo
        share_percent: 100
        disclosed: accept
        keys:
{{- range $name, $permissions := .StripePermissions}}
          - {name: "{{$name}}", value: "file:{{$.Keys}}/stripe_{{$name}}", permissions: [{{range $i, $p := $permissions}}{{if $i}}, {{end}}{{$p}}{{end}}]}
{{- end}}
      scopes:
        customers:read: {permissions: [customer_read]}
        customers:write: {permissions: [customer_write]}
        invoices:read: {permissions: [invoice_read]}
`))
