package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"text/template"

	"github.com/taskpass/taskpass/providers/sandbox"
)

type devCmd struct {
	Listen      string `default:"127.0.0.1:8080" help:"Address and port of the API."`
	DataDir     string `type:"path" help:"Where the private PostgreSQL and the keys live. Default: below the user's cache; /var/lib/taskpass-dev for root."`
	DatabaseURL string `env:"TASKPASS_DEV_DATABASE_URL" help:"Use this PostgreSQL, as a role that may create roles, and start none."`
	ReadyFile   string `type:"path" help:"Write addresses and tokens here, as JSON, once it serves."`
}

func (c *devCmd) Run(e *env) error {
	dir, err := c.dataDir()
	if err != nil {
		return err
	}
	stack, err := startStack(e.ctx, stackConfig{
		dataDir: dir, databaseURL: c.DatabaseURL, listen: c.Listen, logger: newLogger(e.stderr, "info"),
	})
	if err != nil {
		return err
	}
	if c.ReadyFile != "" {
		if err := writeReady(c.ReadyFile, stack); err != nil {
			return errors.Join(err, stack.close())
		}
		defer func() { _ = os.Remove(c.ReadyFile) }()
	}
	if err := devText.Execute(e.stdout, stack); err != nil {
		return errors.Join(err, stack.close())
	}
	select {
	case <-e.ctx.Done():
	case err = <-stack.served:
		stack.served <- err
	}
	return stack.close()
}

func (c *devCmd) dataDir() (string, error) {
	if c.DataDir != "" {
		return c.DataDir, nil
	}
	if os.Geteuid() == 0 {
		return "/var/lib/taskpass-dev", nil // PostgreSQL runs as another user, who cannot reach into /root
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("say where with --data-dir: %w", err)
	}
	return filepath.Join(cache, "taskpass-dev"), nil
}

// ready is what a script needs to know.
type ready struct {
	BaseURL     string            `json:"base_url"`
	DatabaseURL string            `json:"database_url"`
	Tokens      map[string]string `json:"tokens"`
	Sandbox     map[string]string `json:"sandbox"`
}

// writeReady writes the file whole or not at all, and only for its owner: it holds tokens.
func writeReady(path string, s *stack) error {
	r := ready{s.BaseURL, s.AdminURL, map[string]string{}, map[string]string{"aws": s.Sandbox.AWSURL, "model": s.Sandbox.ModelURL, "gcp": s.Sandbox.GCPURL, "stripe": s.Sandbox.StripeURL}}
	for role, token := range s.Tokens {
		r.Tokens[role] = token.Reveal()
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	part := path + ".part"
	if err := os.WriteFile(part, append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(part, path)
}

var devText = template.Must(template.New("dev").Parse(`
Taskpass serves at {{.BaseURL}}, with a private PostgreSQL and *sandbox* vendors (stand-ins on loopback).

  export TASKPASS={{.BaseURL}}
  export ORCHESTRATOR={{(index .Tokens "orchestrator").Reveal}}
  export AUDITOR={{(index .Tokens "auditor").Reveal}}
  export OPERATOR={{(index .Tokens "operator").Reveal}}

Issue an AWS session for one task (sandbox):

  curl -sS "$TASKPASS/v1/credentials" -H "Authorization: Bearer $ORCHESTRATOR" -H 'Content-Type: application/json' \
    -d '{"task_id":"research-1","agent_id":"agent-17","profile":"aws-demo","scopes":["read:content"],"ttl_seconds":900}'

A key of a pool:

  curl -sS "$TASKPASS/v1/credentials" -H "Authorization: Bearer $ORCHESTRATOR" -H 'Content-Type: application/json' \
    -d '{"task_id":"research-1","agent_id":"agent-17","profile":"pool-demo","scopes":["call:model"]}'

The smallest Stripe key that suffices:

  curl -sS "$TASKPASS/v1/credentials" -H "Authorization: Bearer $ORCHESTRATOR" -H 'Content-Type: application/json' \
    -d '{"task_id":"research-1","agent_id":"agent-17","profile":"stripe-demo","scopes":["customers:read"]}'

What the task holds; ending one (put its id); what the auditor sees:

  curl -sS "$TASKPASS/v1/credentials?task_id=research-1" -H "Authorization: Bearer $ORCHESTRATOR"
  curl -sS -X POST "$TASKPASS/v1/credentials/crd_…/revoke" -H "Authorization: Bearer $ORCHESTRATOR"
  curl -sS "$TASKPASS/v1/audit/events?task_id=research-1" -H "Authorization: Bearer $AUDITOR"

The auditor's console: open {{.BaseURL}}/ in a browser and sign in with the token of the auditor above. It is also in

  {{.TokenFile "auditor"}}

The sandbox's AWS is at {{.Sandbox.AWSURL}} (bucket {{.Bucket}}), its model API at {{.Sandbox.ModelURL}},
its Google Cloud at {{.Sandbox.GCPURL}}, its Stripe at {{.Sandbox.StripeURL}}. Ctrl-C ends it all.
`))

// Bucket is the sandbox's, for the text above.
func (*stack) Bucket() string { return sandbox.Bucket }

func listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%w (choose another address with --listen)", err)
	}
	return l, nil
}
