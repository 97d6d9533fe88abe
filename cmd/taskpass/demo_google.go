package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/taskpass/taskpass/openapi/client"
	"github.com/taskpass/taskpass/providers/sandbox"
)

// gcpSlot shows a service account that a task has to itself, and what its end does to the token.
func (s *story) gcpSlot(ctx context.Context) error {
	s.chapter("It asks for Google Cloud: a service account that the task has to itself, 15 minutes")
	issued, err := s.issue(ctx, client.IssueRequest{
		TaskID: demoTask, AgentID: demoAgent, Profile: "gcp-demo", Scopes: []string{"read:content"},
	})
	if err != nil {
		return err
	}
	account := issued.Trace["service_account"]
	s.say("issued %s: a token of %s, until %s", issued.ID, account, issued.ExpiresAt.Format(time.TimeOnly))
	agent := gcs{s.stack.Sandbox.GCPURL, issued.Secret.Env["GOOGLE_OAUTH_ACCESS_TOKEN"]}
	own, foreign := "tasks/"+demoTask+"/brief.txt", "tasks/"+otherTask+"/brief.txt"
	if err := agent.read(ctx, own); err != nil {
		return fmt.Errorf("reading its own object: %w", err)
	}
	s.say("reads  %-36s  yes", own)
	if err := agent.refused(ctx, foreign); err != nil {
		return fmt.Errorf("reading another task's object: %w", err)
	}
	s.say("reads  %-36s  refused: its access boundary", foreign)
	ended, status, err := s.revoke(ctx, issued.ID)
	if err != nil {
		return err
	}
	if status != http.StatusOK || ended.Revocation.Result != client.Denied {
		return fmt.Errorf("revoking answered %d with result %q", status, ended.Revocation.Result)
	}
	s.say("%s: %s, by %s", ended.Status, ended.Revocation.Result, ended.Revocation.Basis)
	if err := agent.refused(ctx, own); err != nil {
		return fmt.Errorf("reading after the revocation: %w", err)
	}
	s.say("reads  %-36s  refused", own)
	info, ok := s.stack.Sandbox.GCP.Account(account)
	if !ok || !info.Disabled || !slices.Contains(s.stack.Sandbox.GCPSlots, account) {
		return fmt.Errorf("the account %s is not disabled", account)
	}
	s.say("the account rests, disabled, until the token's own end: enabling it sooner would revive it")
	return nil
}

// gcs is Cloud Storage as an agent sees it with a token.
type gcs struct{ base, token string }

func (g gcs) get(ctx context.Context, object string) (status int, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, g.base+"/storage/v1/b/"+sandbox.Bucket+"/o/"+url.PathEscape(object)+"?alt=media", nil)
	if err != nil {
		return 0, err
	}
	r.Header.Set("Authorization", "Bearer "+g.token)
	reply, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err
	}
	defer reply.Body.Close()
	_, err = io.Copy(io.Discard, reply.Body)
	return reply.StatusCode, err
}

func (g gcs) read(ctx context.Context, object string) error {
	status, err := g.get(ctx, object)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("Cloud Storage answered %d", status)
	}
	return err
}

// refused is nil if Cloud Storage refuses the token.
func (g gcs) refused(ctx context.Context, object string) error {
	switch status, err := g.get(ctx, object); {
	case err != nil:
		return err
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return nil
	default:
		return fmt.Errorf("want a refusal, got %d", status)
	}
}
