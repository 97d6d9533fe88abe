package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

// refresh shows two versions of one credential good at the same time.
func (s *story) refresh(ctx context.Context) error {
	s.chapter("A loop that runs longer: refresh, with an overlap")
	first, err := s.issue(ctx, client.IssueRequest{
		TaskID: demoTask, AgentID: demoAgent, Profile: "aws-demo", Scopes: []string{"read:content"}, TTLSeconds: 900,
	})
	if err != nil {
		return err
	}
	api, err := s.client("orchestrator")
	if err != nil {
		return err
	}
	answer, err := api.RefreshCredentialWithResponse(ctx, first.ID, nil, client.RefreshRequest{Version: first.Version})
	if err != nil {
		return err
	}
	if answer.JSON201 == nil {
		return asProblem(answer.StatusCode(), answer.Body)
	}
	second := answer.JSON201
	if second.ID != first.ID || second.Version != first.Version+1 {
		return fmt.Errorf("the refresh gave version %d of %s", second.Version, second.ID)
	}
	object := "tasks/" + demoTask + "/brief.txt"
	for _, issued := range []*client.IssuedCredential{first, second} {
		if err := newS3(s.stack.Sandbox.AWSURL, issued.Secret).read(ctx, object); err != nil {
			return fmt.Errorf("reading with version %d: %w", issued.Version, err)
		}
		s.say("version %d of %s reads: yes", issued.Version, issued.ID)
	}
	s.say("version 1 is ended in 10 minutes; version 2 is good until %s", second.ExpiresAt.Format(time.TimeOnly))
	return nil
}

// ticket shows a secret that its orchestrator never sees.
func (s *story) ticket(ctx context.Context) error {
	s.chapter("A ticket: the agent redeems it, once, and only then is the *sandbox* AWS asked")
	before := s.stack.Sandbox.AWS.AssumeRoleCalls()
	issued, err := s.issue(ctx, client.IssueRequest{
		TaskID: demoTask, AgentID: demoAgent, Profile: "aws-demo", Scopes: []string{"read:content"}, TTLSeconds: 900,
		Delivery: client.IssueRequestDeliveryTicket,
	})
	if err != nil {
		return err
	}
	if issued.Ticket.Value == "" || issued.Secret.Type != "" || s.stack.Sandbox.AWS.AssumeRoleCalls() != before {
		return errors.New("the ticket came with a secret, or the upstream was asked for it")
	}
	s.say("the orchestrator gets %s…, and AWS was not asked", issued.Ticket.Value[:8])
	redeemed, err := s.redeem(ctx, issued.Ticket.Value)
	if err != nil {
		return err
	}
	agent, object := newS3(s.stack.Sandbox.AWSURL, redeemed.Secret), "tasks/"+demoTask+"/brief.txt"
	if err := agent.read(ctx, object); err != nil {
		return fmt.Errorf("reading with the redeemed secret: %w", err)
	}
	s.say("the agent redeems it and reads: yes")
	for _, try := range []string{"second", "third"} {
		_, err := s.redeem(ctx, issued.Ticket.Value)
		problem, ok := errors.AsType[*problemError](err)
		if !ok || problem.Code != string(broker.CodeTicketRedeemed) {
			return fmt.Errorf("redeeming a %s time: want a refusal, got %w", try, orNobody(err))
		}
		s.say("a %s redemption: %d %s", try, problem.Status, problem.Code)
	}
	if err := expectDenied(agent.read(ctx, object)); err != nil {
		return fmt.Errorf("reading after the reuse: %w", err)
	}
	s.say("and, as this profile has it, what the first one got is dead")
	return nil
}

// endTask shows that a task's end ends all that it held, and that nothing is issued for it any more.
func (s *story) endTask(ctx context.Context) error {
	s.chapter("The task ends, and all that it held")
	last, err := s.issue(ctx, client.IssueRequest{
		TaskID: demoTask, AgentID: demoAgent, Profile: "aws-demo", Scopes: []string{"read:content"},
	})
	if err != nil {
		return err
	}
	api, err := s.client("orchestrator")
	if err != nil {
		return err
	}
	answer, err := api.EndTaskWithResponse(ctx, demoTask, nil, client.EndTaskRequest{Outcome: "succeeded"})
	if err != nil {
		return err
	}
	if answer.JSON200 == nil {
		return asProblem(answer.StatusCode(), answer.Body)
	}
	for _, c := range answer.JSON200.Credentials {
		s.say("%s  %-9s  %-8s %s", c.ID, c.Profile, c.Status, c.Revocation.Result)
		if c.Status != client.Revoked {
			return fmt.Errorf("%s is %s after its task's end", c.ID, c.Status)
		}
	}
	if err := expectDenied(newS3(s.stack.Sandbox.AWSURL, last.Secret).read(ctx, "tasks/"+demoTask+"/brief.txt")); err != nil {
		return fmt.Errorf("reading after the task's end: %w", err)
	}
	_, err = s.issue(ctx, client.IssueRequest{
		TaskID: demoTask, AgentID: demoAgent, Profile: "aws-demo", Scopes: []string{"read:content"},
	})
	problem, ok := errors.AsType[*problemError](err)
	if !ok || problem.Code != string(broker.CodeTaskEnded) {
		return fmt.Errorf("issuing after the task's end: want a refusal, got %w", orNobody(err))
	}
	s.say("another credential for it: %d %s", problem.Status, problem.Code)
	return nil
}

func (s *story) redeem(ctx context.Context, ticket string) (*client.IssuedCredential, error) {
	api, err := client.NewClientWithResponses(s.stack.BaseURL) // an agent has no token, only its ticket
	if err != nil {
		return nil, err
	}
	answer, err := api.RedeemTicketWithResponse(ctx, client.RedeemRequest{Ticket: ticket})
	if err != nil {
		return nil, err
	}
	if answer.JSON200 == nil {
		return nil, asProblem(answer.StatusCode(), answer.Body)
	}
	if answer.StatusCode() != http.StatusOK {
		return nil, fmt.Errorf("redeeming answered %d", answer.StatusCode())
	}
	return answer.JSON200, nil
}
