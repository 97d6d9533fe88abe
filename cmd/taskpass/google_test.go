package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
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

// What Google's own log says of a call leads to the task: by the account's email and the time, where one task had it then;
// by the version's id, which the broker's calls bear as their reason and anybody's may: that is said; never by an email that several had at that time.
func TestGooglesLogLeadsToTheTask(t *testing.T) {
	t.Parallel()
	s := googleStack(t)
	var issued []*client.IssuedCredential
	for _, ask := range []client.IssueRequest{
		{TaskID: demoTask, AgentID: demoAgent, Profile: "gcp-demo", Scopes: []string{"read:content"}},
		{TaskID: demoTask, AgentID: demoAgent, Profile: "gcp-token", Scopes: []string{"read:content"}},
		{TaskID: otherTask, AgentID: demoAgent, Profile: "gcp-token", Scopes: []string{"read:content"}},
	} {
		one, err := s.issue(t.Context(), ask)
		if err != nil {
			t.Fatal(err)
		}
		issued = append(issued, one)
	}
	entry := func(at time.Time, rest string) string {
		return fmt.Sprintf(`{"timestamp":%q,"protoPayload":{"serviceName":"storage.googleapis.com","methodName":"storage.objects.get",%s}}`, at.UTC().Format(time.RFC3339Nano), rest)
	}
	by := func(c *client.IssuedCredential) string {
		return fmt.Sprintf(`"authenticationInfo":{"principalEmail":%q}`, c.Trace["service_account"])
	}
	now := time.Now()
	file := writeFile(t, t.TempDir(), "audit.json", "["+strings.Join([]string{
		entry(now, by(issued[0])),
		entry(now.Add(-time.Hour), by(issued[0])), // before anybody had it
		entry(now, fmt.Sprintf(`"authenticationInfo":{"principalEmail":"broker@x.iam.gserviceaccount.com"},"requestMetadata":{"requestAttributes":{"reason":%q}}`, issued[2].Trace["request_reason"])),
		entry(now, by(issued[1])),
		entry(now.Add(-time.Hour), by(issued[1])),
	}, ",\n")+"]")
	token := writeFile(t, t.TempDir(), "token", s.stack.Tokens["auditor"].Reveal())
	r := must(t, "audit", "trace", "--cloud-audit", file, "--url", s.stack.BaseURL, "--token-file", token)
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	want := []string{
		"task " + demoTask + ", agent " + demoAgent + ", " + issued[0].ID + " version 1 (active)", issued[0].ID + " version 1 (active), outside its time",
		"task " + otherTask + ", agent " + demoAgent + ", " + issued[2].ID + " version 1 (active), by its reason only: its account is unknown here", " or one of 1 others", "nobody here had it then",
		"4 of 5 are of tasks here, 1 of them by a weaker name only",
	}
	if len(lines) != len(want) {
		t.Fatal(r.stdout)
	}
	for i := range want {
		if !strings.HasSuffix(lines[i], want[i]) {
			t.Errorf("line %d is %q, want …%q", i+1, lines[i], want[i])
		}
	}
}
