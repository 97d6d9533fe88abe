//go:build peers

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

// STS gives no session of less than 15 minutes. A shorter one ends by its own policy: it works, and from expires_at on
// it does not, not even in what is left of that second.
func (p peers) endsOnTime(t *testing.T) {
	c := p.issueBy(t, 0, client.IssueRequest{TaskID: peerA, Scopes: []string{"read:content"}, TTLSeconds: 5})
	if formal := c.UpstreamExpiresAt.Sub(c.IssuedAt); formal < 14*time.Minute {
		t.Errorf("STS ends it after %s: this test shows nothing", formal)
	}
	agent := p.agent(c.Secret)
	worked, after := 0, 0
	tick, end := time.NewTicker(50*time.Millisecond), time.After(time.Until(c.ExpiresAt)) // so that one is sent at the very end
	defer tick.Stop()
	for after < 20 {
		sent := time.Now()
		if sent.After(c.ExpiresAt.Add(10 * time.Second)) {
			t.Fatal("out of time")
		}
		_, err := agent.get(t, peerKey(peerA))
		switch {
		case sent.After(c.ExpiresAt):
			after++
			if err == nil {
				t.Fatalf("still works %s after expires_at", sent.Sub(c.ExpiresAt))
			}
			refused(t, "reading after expires_at", err)
		case sent.Before(c.ExpiresAt.Add(-time.Second)): // policies know whole seconds
			worked++
			allowed(t, "reading before expires_at", err)
		}
		select {
		case <-tick.C:
		case <-end:
		}
	}
	if worked == 0 {
		t.Error("it never worked")
	}
	if time.Now().After(c.UpstreamExpiresAt) {
		t.Error("STS's own session has ended meanwhile: this test shows nothing")
	}
	eventually(t, "it is listed as expired", func() bool { return p.credential(t, c.ID).Status == client.Expired })
}

// A scope that allows everything still does not let a session make another, or change what holds it.
func (p peers) noWayOut(t *testing.T) {
	ways := map[string]func(context.Context, peerAgent) error{
		"sts:GetSessionToken": func(ctx context.Context, a peerAgent) error {
			_, err := sts.NewFromConfig(a.config()).GetSessionToken(ctx, &sts.GetSessionTokenInput{})
			return err
		},
		"iam:GetRole": func(ctx context.Context, a peerAgent) error {
			_, err := iam.NewFromConfig(a.config()).GetRole(ctx, &iam.GetRoleInput{RoleName: aws.String(peerRole)})
			return err
		},
		"iam:PutRolePolicy": func(ctx context.Context, a peerAgent) error {
			_, err := iam.NewFromConfig(a.config()).PutRolePolicy(ctx, &iam.PutRolePolicyInput{
				RoleName: aws.String(peerRole), PolicyName: aws.String("mine"), PolicyDocument: aws.String(peerAccess),
			})
			return err
		},
		"iam:DeleteRolePolicy": func(ctx context.Context, a peerAgent) error {
			_, err := iam.NewFromConfig(a.config()).DeleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{
				RoleName: aws.String(peerRole), PolicyName: aws.String("mine"),
			})
			return err
		},
	}
	bare, agent := p.bare(t), p.agent(p.issue(t, peerA, "do:anything").Secret)
	for _, key := range []string{peerKey(peerA), peerKey(peerB)} {
		_, err := agent.get(t, key)
		allowed(t, "reading "+key+", as its scope says", err)
	}
	for _, way := range []string{"sts:GetSessionToken", "iam:GetRole", "iam:PutRolePolicy", "iam:DeleteRolePolicy"} {
		refused(t, way, ways[way](t.Context(), agent))
		allowed(t, way+" without the broker's policy, by which we know what refused the other", ways[way](t.Context(), bare))
	}
	// Here it is the role's trust policy that refuses; see there.
	for _, role := range []string{peerRole, "trusts-others"} {
		_, err := sts.NewFromConfig(agent.config()).AssumeRole(t.Context(), &sts.AssumeRoleInput{
			RoleArn: aws.String(peerARN(role)), RoleSessionName: aws.String("chained"),
		})
		refused(t, "sts:AssumeRole of "+role, err)
	}
}

// hostile are values that would widen a resource, be another's name to IAM, or close a string and add to a policy.
var hostile = []string{"a/../*", "${aws:username}", `"},{"`, "*", peerB + "/*", "?oop-12", peerB + "\x00", ""}

// expectInvalid holds an answer to a request with a hostile value against the contract: it is refused, says where, and
// gives nothing.
func expectInvalid(t *testing.T, answer *client.IssueCredentialResponse, pointer, value string) {
	t.Helper()
	var problem client.Problem
	if err := json.Unmarshal(answer.Body, &problem); err != nil {
		t.Fatalf("%v: %q", err, answer.Body)
	}
	there := slices.ContainsFunc(problem.Errors, func(f client.Fault) bool { return f.Pointer == pointer })
	if answer.StatusCode() != http.StatusBadRequest || problem.Code != string(broker.CodeInvalidRequest) || problem.Retryable || !there {
		t.Errorf("%q as %s: got %d %s", value, pointer, answer.StatusCode(), answer.Body)
	}
	if len(value) > 1 && bytes.Contains(answer.Body, []byte(value)) {
		t.Errorf("%q as %s: the answer repeats it: %s", value, pointer, answer.Body)
	}
}

// No id can be such a value.
func (p peers) hostileIDs(t *testing.T) {
	fields := map[string]func(*client.IssueRequest, string){
		"/task_id":        func(r *client.IssueRequest, v string) { r.TaskID = v },
		"/agent_id":       func(r *client.IssueRequest, v string) { r.AgentID = v },
		"/parent_task_id": func(r *client.IssueRequest, v string) { r.ParentTaskID = v },
		"/profile":        func(r *client.IssueRequest, v string) { r.Profile = v },
		"/scopes/0":       func(r *client.IssueRequest, v string) { r.Scopes[0] = v },
	}
	for pointer, set := range fields {
		for _, value := range hostile {
			if value == "" && pointer == "/parent_task_id" { // it may be left out
				continue
			}
			r := client.IssueRequest{TaskID: peerA, AgentID: "agent", Profile: "research", Scopes: []string{"read:content"}}
			set(&r, value)
			answer, err := p.api(t, 0, "orchestrator").IssueCredentialWithResponse(t.Context(), nil, r)
			if err != nil {
				t.Fatal(err)
			}
			expectInvalid(t, answer, pointer, value)
		}
	}
}

// Metadata is the caller's own, whatever it says, until a policy has a place for it. There it must be an id.
func (p peers) hostileMetadata(t *testing.T) {
	for _, value := range hostile {
		metadata := map[string]string{"team": value}
		task := "of-team"
		answer, err := p.api(t, 0, "orchestrator").IssueCredentialWithResponse(t.Context(), nil, client.IssueRequest{
			TaskID: task, AgentID: "agent", Profile: "team", Scopes: []string{"read:team"}, Metadata: metadata,
		})
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsRune(value, 0) { // no text, for PostgreSQL, whatever it is used for
			expectInvalid(t, answer, "/metadata", value)
			continue
		}
		expectInvalid(t, answer, "/metadata/team", value)
		events, page := p.events(t, client.ListAuditEventsParams{TaskID: &task})
		for _, e := range events {
			if e.Type == string(broker.EventIssued) || len(e.UpstreamIds) > 0 {
				t.Errorf("%q: something was minted: %s", value, page)
			}
		}

		agent := p.agent(p.issueBy(t, 0, client.IssueRequest{TaskID: peerA, Scopes: []string{"read:content"}, Metadata: metadata}).Secret)
		_, err = agent.get(t, peerKey(peerA))
		allowed(t, "reading its own, where no policy has a place for the value", err)
		_, err = agent.get(t, peerKey(peerB))
		refused(t, "reading another's", err)
	}
	agent := p.agent(p.issueBy(t, 0, client.IssueRequest{
		TaskID: "of-team", Profile: "team", Scopes: []string{"read:team"}, Metadata: map[string]string{"team": peerA},
	}).Secret)
	_, err := agent.get(t, peerKey(peerA))
	allowed(t, "reading its team's", err)
	_, err = agent.get(t, peerKey(peerB))
	refused(t, "reading another team's", err)
}
