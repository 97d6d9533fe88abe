package main

import (
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/taskpass/taskpass/openapi/client"
)

// googleStack is a whole installation in this process, whose sandbox can be reached into.
func googleStack(t *testing.T) *story {
	t.Helper()
	s, err := startStack(context.Background(), stackConfig{
		dataDir: filepath.Join(tempDir(t), "data"), listen: "127.0.0.1:0", ephemeral: true, logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	s.Sandbox.SeedTask(demoTask)
	s.Sandbox.SeedTask(otherTask)
	return &story{out: io.Discard, began: time.Now(), stack: s}
}

// Two tasks have tokens of one shared account: each reads its own objects and nobody else's, and a revocation says the
// truth, which is that nothing changes before the end.
func TestATokenOfOneTaskReadsNoOthers(t *testing.T) {
	t.Parallel()
	s := googleStack(t)
	for _, pair := range [][2]string{{demoTask, otherTask}, {otherTask, demoTask}} {
		issued, err := s.issue(t.Context(), client.IssueRequest{TaskID: pair[0], AgentID: demoAgent, Profile: "gcp-token", Scopes: []string{"read:content"}})
		if err != nil {
			t.Fatal(err)
		}
		agent := gcs{s.stack.Sandbox.GCPURL, issued.Secret.Env["CLOUDSDK_AUTH_ACCESS_TOKEN"]}
		if err := agent.read(t.Context(), "tasks/"+pair[0]+"/brief.txt"); err != nil {
			t.Error(err)
		}
		if err := agent.refused(t.Context(), "tasks/"+pair[1]+"/brief.txt"); err != nil {
			t.Error(err)
		}
		ended, _, err := s.revoke(t.Context(), issued.ID)
		if err != nil {
			t.Fatal(err)
		}
		if ended.Status != "revoking" || ended.Revocation.Result != client.Expires || !ended.Revocation.EffectiveAt.Equal(issued.ExpiresAt) {
			t.Errorf("%s: %+v", ended.Status, ended.Revocation)
		}
		if err := agent.read(t.Context(), "tasks/"+pair[0]+"/brief.txt"); err != nil {
			t.Errorf("it says that the token lives, and it is dead: %v", err)
		}
	}
}

// What Google may not know yet says so, in the answer and afterwards.
func TestUsableAfterIsAnswered(t *testing.T) {
	t.Parallel()
	s := googleStack(t)
	ask := client.IssueRequest{TaskID: demoTask, AgentID: demoAgent, Profile: "gcp-demo", Scopes: []string{"read:content"}}
	at, err := s.issue(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	if !at.UsableAfter.IsZero() {
		t.Errorf("an account that was there all the time: %s", at.UsableAfter)
	}
	for _, email := range s.stack.Sandbox.GCPSlots {
		if email != at.Trace["service_account"] {
			s.stack.Sandbox.GCP.SetDisabled(email, true) // it is enabled when it is taken
		}
	}
	before := time.Now()
	fresh, err := s.issue(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	if wait := fresh.UsableAfter.Sub(before); wait < 58*time.Second || wait > 70*time.Second {
		t.Errorf("usable after %s, trace %v", wait, fresh.Trace)
	}
	api, err := s.client("orchestrator")
	if err != nil {
		t.Fatal(err)
	}
	found, err := api.GetCredentialWithResponse(t.Context(), fresh.ID)
	if err != nil || found.JSON200 == nil || !found.JSON200.UsableAfter.Equal(fresh.UsableAfter) {
		t.Errorf("%v, %s", err, found.Body)
	}
}
