//go:build browser && screenshots

package main

import (
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/taskpass/taskpass/audit/console/browsertest"
	"github.com/taskpass/taskpass/openapi/client"
)

// maxPicture is how large a picture in docs/ may be, in bytes.
const maxPicture = 150 << 10

// TestScreenshots draws docs/images from an installation in which the demo was played.
func TestScreenshots(t *testing.T) {
	stack, err := startStack(t.Context(), stackConfig{
		dataDir: filepath.Join(tempDir(t), "data"), listen: "127.0.0.1:0", ephemeral: true, logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.close(); err != nil {
			t.Error(err)
		}
	})
	s := &story{out: io.Discard, began: time.Now()}
	if err := s.tell(t.Context(), stack); err != nil {
		t.Fatal(err)
	}
	// The demo ends all that its task held: another one has something alive.
	const task, agent = "nightly-report-12", "agent-4"
	first, err := s.issue(t.Context(), client.IssueRequest{TaskID: task, AgentID: agent, Profile: "aws-demo", Scopes: []string{"read:content"}, TTLSeconds: 900})
	if err != nil {
		t.Fatal(err)
	}
	api, err := s.client("orchestrator")
	if err != nil {
		t.Fatal(err)
	}
	answer, err := api.RefreshCredentialWithResponse(t.Context(), first.ID, nil, client.RefreshRequest{Version: first.Version})
	if err != nil || answer.JSON201 == nil {
		t.Fatal(err, answer.StatusCode())
	}
	second, err := s.issue(t.Context(), client.IssueRequest{TaskID: task, AgentID: agent, Profile: "gcp-demo", Scopes: []string{"read:content"}, TTLSeconds: 900})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.revoke(t.Context(), second.ID); err != nil {
		t.Fatal(err)
	}
	b := browsertest.Open(t, stack.BaseURL)
	b.Look("light", 1200)
	b.Go("/")
	b.SignIn(stack.Tokens["auditor"].Reveal())
	b.Go("/console/tree") // the next look has one to compare with
	for _, p := range []struct {
		name, path, scheme string
		height             float64
	}{
		{"console-overview", "/?window=hour", "light", 1500},
		{"console-task", "/console/task?id=" + task, "light", 820},
		{"console-trace", "/console/trace?q=" + first.Trace["access_key_id"], "light", 860},
		{"console-tree", "/console/tree", "light", 900},
		{"console-events", "/console/events?task_id=" + demoTask, "dark", 760},
	} {
		b.Look(p.scheme, 1200)
		b.Go(p.path)
		if p.name == "console-tree" {
			b.Until(`document.querySelectorAll(".bigmark.verified").length === 3`) // the live one too
		}
		if n := b.Shoot(filepath.Join("..", "..", "docs", "images", p.name+".png"), p.height); n > maxPicture {
			t.Errorf("%s has %d bytes, more than %d", p.name, n, maxPicture)
		}
	}
}
