package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

type demoCmd struct {
	Verbose bool `help:"Show the broker's log too."`
}

const (
	demoTask  = "research-loop-2847"
	otherTask = "research-loop-9999"
	demoAgent = "agent-17"
)

func (c *demoCmd) Run(e *env) (err error) {
	logger := slog.New(slog.DiscardHandler)
	if c.Verbose {
		logger = newLogger(e.stderr, "info")
	}
	temp, err := os.MkdirTemp("", "taskpass-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	dir := filepath.Join(temp, "data")
	if err := os.Chmod(temp, 0o711); err != nil { //nolint:gosec // PostgreSQL may run as another user and must pass through
		return err
	}
	s := &story{out: e.stdout, began: time.Now()}
	s.say("Starting a private PostgreSQL, *sandbox* vendors on loopback, and the broker.")
	stack, err := startStack(e.ctx, stackConfig{dataDir: dir, listen: "127.0.0.1:0", ephemeral: true, logger: logger})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stack.close()) }()
	return s.tell(e.ctx, stack)
}

// story plays the orchestrator, the agent and the auditor over HTTP, as they would, and stops at the first step that
// goes otherwise than it should.
type story struct {
	out   io.Writer
	began time.Time
	stack *stack
}

func (s *story) tell(ctx context.Context, stack *stack) error {
	s.stack = stack
	stack.Sandbox.SeedTask(demoTask)
	stack.Sandbox.SeedTask(otherTask)
	for _, chapter := range []func(context.Context) error{s.awsSession, s.gcpSlot, s.poolKey, s.stripeKey, s.rotation, s.refresh, s.ticket, s.refusal, s.endTask, s.auditTrail, s.proof} {
		if err := chapter(ctx); err != nil {
			return fmt.Errorf("the demo went wrong: %w", err)
		}
	}
	_, err := fmt.Fprintf(s.out, "\nAll as it should be, in %.1f s. `taskpass dev` keeps it running, to play with.\n", time.Since(s.began).Seconds())
	return err
}

func (s *story) awsSession(ctx context.Context) error {
	s.chapter("The orchestrator asks for an AWS session for task %s: read:content, 15 minutes", demoTask)
	issued, err := s.issue(ctx, client.IssueRequest{
		TaskID: demoTask, AgentID: demoAgent, Profile: "aws-demo", Scopes: []string{"read:content"}, TTLSeconds: 900,
	})
	if err != nil {
		return err
	}
	s.say("issued %s: access key %s, until %s", issued.ID, issued.Trace["access_key_id"], issued.ExpiresAt.Format(time.TimeOnly))

	s.chapter("The agent uses it against the *sandbox* AWS")
	agent := newS3(s.stack.Sandbox.AWSURL, issued.Secret)
	own, foreign := "tasks/"+demoTask+"/brief.txt", "tasks/"+otherTask+"/brief.txt"
	if err := agent.read(ctx, own); err != nil {
		return fmt.Errorf("reading its own object: %w", err)
	}
	s.say("reads  %-36s  yes", own)
	if err := expectDenied(agent.read(ctx, foreign)); err != nil {
		return fmt.Errorf("reading another task's object: %w", err)
	}
	s.say("reads  %-36s  refused: another task's", foreign)
	if err := expectDenied(agent.write(ctx, own)); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	s.say("writes %-36s  refused: outside its scopes", own)

	s.chapter("The orchestrator revokes it")
	ended, status, err := s.revoke(ctx, issued.ID)
	if err != nil {
		return err
	}
	if status != http.StatusOK || ended.Revocation.Result != client.Denied {
		return fmt.Errorf("revoking answered %d with result %q", status, ended.Revocation.Result)
	}
	s.say("%s: %s, by %s", ended.Status, ended.Revocation.Result, ended.Revocation.Basis)
	if err := expectDenied(agent.read(ctx, own)); err != nil {
		return fmt.Errorf("reading after the revocation: %w", err)
	}
	s.say("reads  %-36s  refused: it is dead, 15 minutes before STS's own end", own)
	return nil
}

func (s *story) poolKey(ctx context.Context) error {
	s.chapter("The same task gets a key of a pool: one holder a key")
	issued, err := s.issue(ctx, client.IssueRequest{
		TaskID: demoTask, AgentID: demoAgent, Profile: "pool-demo", Scopes: []string{"call:model"},
	})
	if err != nil {
		return err
	}
	if err := callModel(ctx, s.stack.Sandbox.ModelURL, issued.Secret.Env["MODEL_API_KEY"]); err != nil {
		return err
	}
	s.say("issued %s: %s; the *sandbox* model API answers it", issued.ID, issued.Trace["key"])
	s.say("a plain key outlives its credential, and the profile says so: self_expires=false, revoke=%s", issued.Revocation.Mode)
	return nil
}

func (s *story) refusal(ctx context.Context) error {
	s.chapter("It asks for too much")
	_, err := s.issue(ctx, client.IssueRequest{
		TaskID: demoTask, AgentID: demoAgent, Profile: "aws-demo", Scopes: []string{"read:content", "admin:everything"}, TTLSeconds: 7200,
	})
	problem, ok := errors.AsType[*problemError](err)
	if !ok || problem.Code != string(broker.CodeUnknownScope) {
		return fmt.Errorf("asking for too much: want a refusal, got %w", err)
	}
	for _, reason := range problem.Errors {
		s.say("refused: %s %s", reason.Pointer, reason.Reason)
	}
	return nil
}

func (s *story) auditTrail(ctx context.Context) error {
	s.chapter("The auditor asks what happened to task %s", demoTask)
	api, err := s.client("auditor")
	if err != nil {
		return err
	}
	answer, err := api.ListAuditEventsWithResponse(ctx, &client.ListAuditEventsParams{TaskID: new(demoTask), Limit: new(100)})
	if err != nil {
		return err
	}
	if answer.JSON200 == nil {
		return asProblem(answer.StatusCode(), answer.Body)
	}
	events := answer.JSON200.Events
	w := tabwriter.NewWriter(s.out, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "  TIME\tEVENT\tCALLER\tAGENT\tPROFILE\tSCOPES\tUPSTREAM ID\tSTATE")
	seen := map[string]int{}
	for i := len(events) - 1; i >= 0; i-- {
		e := events[i]
		seen[e.Type]++
		_, _ = fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.At.Format("15:04:05.000"), e.Type, e.Caller.Name, e.AgentID,
			e.Profile, strings.Join(e.Scopes, ","), strings.Join(e.UpstreamIds, ","), e.State)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for event, want := range map[broker.EventType]int{
		broker.EventIntended: 7, broker.EventIssued: 7, broker.EventRefreshed: 1, broker.EventRefused: 2,
		broker.EventTicketCreated: 1, broker.EventTicketRedeemed: 1, broker.EventTicketReused: 2,
		broker.EventTaskEnded: 1, broker.EventRevokeAsked: 8, broker.EventRevoked: 8,
	} {
		if seen[string(event)] != want {
			return fmt.Errorf("the record has %d events %s, want %d", seen[string(event)], event, want)
		}
	}
	return nil
}

func (s *story) chapter(format string, args ...any) {
	_, _ = fmt.Fprintf(s.out, "\n"+format+"\n", args...)
}

func (s *story) say(format string, args ...any) {
	_, _ = fmt.Fprintf(s.out, "  "+format+"\n", args...)
}
