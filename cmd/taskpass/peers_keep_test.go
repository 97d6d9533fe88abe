//go:build peers

package main

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
	awsprovider "github.com/taskpass/taskpass/providers/aws"
)

// rolePolicy is an inline policy as the owner reads it; empty: there is none.
func (p *peerRGW) rolePolicy(t *testing.T, role, name string) string {
	t.Helper()
	out, err := iam.NewFromConfig(p.owner().config()).GetRolePolicy(t.Context(), &iam.GetRolePolicyInput{RoleName: &role, PolicyName: &name})
	if e, ok := errors.AsType[*awshttp.ResponseError](err); ok && e.HTTPStatusCode() == http.StatusNotFound {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return *out.PolicyDocument
}

// findings are what the record says about a role as a whole.
func (p peers) findings(t *testing.T, kind broker.EventType, role string) (list []client.AuditEvent) {
	t.Helper()
	events, _ := p.events(t, client.ListAuditEventsParams{Type: new(string(kind)), Limit: new(1000)})
	for _, e := range events {
		if e.Upstream == peerARN(role) {
			list = append(list, e)
		}
	}
	return list
}

// together calls do for 0 to n-1, many at once.
func together(n int, do func(i int)) {
	var wg sync.WaitGroup
	turn := make(chan struct{}, 24)
	for i := range n {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			do(i)
		})
	}
	wg.Wait()
}

// Nearly as many sessions of a role are revoked as AWS has room for, and one is not. When they have ended, their entries
// go, with nobody asking for it.
func (p peers) crowdIsRevokedAndForgotten(t *testing.T) {
	t.Parallel()
	const (
		role  = "crowd"
		size  = 240
		ttl   = 20 // seconds; less would be too little on a busy machine
		space = 10_240
	)
	issue := func(i int, seconds int) *client.IssuedCredential {
		c, err := p.tryIssue(t, i%2, client.IssueRequest{TaskID: peerB, Profile: role, Scopes: []string{"read:content"}, TTLSeconds: seconds})
		if err != nil {
			t.Error(err)
		}
		return c
	}
	spared := issue(0, 900)
	crowd := make([]*client.IssuedCredential, size)
	together(size, func(i int) { crowd[i] = issue(i, ttl) })
	if t.Failed() {
		return
	}
	begun := time.Now()
	together(size, func(i int) {
		_, err := p.agent(crowd[i].Secret).get(t, peerKey(peerB))
		allowed(t, "reading before", err)
		if ended, err := p.revoke(t, i%2, crowd[i].ID); err != nil || ended.Revocation.Result != client.Denied {
			t.Errorf("revoking number %d: %+v, %v", i, ended, err)
		}
	})
	together(size, func(i int) {
		_, err := p.agent(crowd[i].Secret).get(t, peerKey(peerB))
		refused(t, "reading after it was revoked", err)
	})
	if t.Failed() {
		return
	}
	first, last := crowd[0].ExpiresAt, crowd[0].ExpiresAt
	for _, c := range crowd {
		if c.ExpiresAt.Before(first) {
			first = c.ExpiresAt
		}
		if c.ExpiresAt.After(last) {
			last = c.ExpiresAt
		}
	}
	if time.Now().After(first.Add(-time.Second)) {
		t.Fatal("they have ended by themselves meanwhile: this test shows nothing")
	}
	goesOn := func(when string) {
		t.Helper()
		_, err := p.agent(spared.Secret).get(t, peerKey(peerB))
		allowed(t, "reading with the one that was not revoked, "+when, err)
	}
	goesOn("when the others were")

	document := p.rolePolicy(t, role, awsprovider.PolicyName)
	ours, others := characters(document), characters(p.rolePolicy(t, role, "access"))
	t.Logf("%d were revoked and tried in %s; the deny policy has %d characters, the role's other one %d",
		size, time.Since(begun).Round(time.Millisecond), ours, others)
	if ours+others > space {
		t.Errorf("that is more than the %d that AWS takes", space)
	}
	alarms := len(p.findings(t, broker.EventUpstreamFilling, role))
	if full := float64(ours) >= 0.7*float64(space-others); alarms > 1 || full != (alarms == 1) {
		t.Errorf("that the policy is filling is on the record %d times", alarms)
	}

	// Clocks may differ, so entries stay for a minute more.
	for document != "" {
		waitForTick(t, time.Second, last.Add(2*time.Minute))
		now := time.Now()
		text := p.rolePolicy(t, role, awsprovider.PolicyName)
		if len(text) > len(document) {
			t.Errorf("the policy has grown: %s", text)
		}
		document = text
		for _, c := range crowd {
			if now.Before(c.ExpiresAt) && !strings.Contains(text, c.Trace["role_session_name"]) {
				t.Errorf("%s has gone before its end", c.ID)
			}
		}
	}
	t.Logf("the policy is gone %s after the last one's end", time.Since(last).Round(time.Second))
	goesOn("when they are forgotten")
	together(size, func(i int) {
		_, err := p.agent(crowd[i].Secret).get(t, peerKey(peerB))
		refused(t, "reading after its entry has gone", err)
	})
	if edits := p.findings(t, broker.EventUpstreamEdited, role); len(edits) > 0 {
		t.Errorf("the broker took its own writes for somebody else's: %+v", edits)
	}
}

// characters counts as IAM does.
func characters(document string) (n int) {
	for _, c := range document {
		if !unicode.IsSpace(c) {
			n++
		}
	}
	return n
}

// waitForTick waits for a while, unless it is too late already.
func waitForTick(t *testing.T, d time.Duration, deadline time.Time) {
	t.Helper()
	ctx, cancel := context.WithDeadline(t.Context(), deadline)
	defer cancel()
	select {
	case <-time.After(d):
	case <-ctx.Done():
		t.Fatal("out of time")
	}
}

// Whoever may write the role's policies can undo a denial, or refuse everybody. The broker sees it, sets it right and has
// it on the record, with nobody asking for it.
func (p peers) setsRightWhatOthersChange(t *testing.T) {
	t.Parallel()
	const role = "meddled"
	theirs := iam.NewFromConfig(p.owner().config())
	put := func(document string) {
		t.Helper()
		_, err := theirs.PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{
			RoleName: aws.String(role), PolicyName: aws.String(awsprovider.PolicyName), PolicyDocument: &document,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var ended, spared *client.IssuedCredential
	for _, c := range []**client.IssuedCredential{&ended, &spared} {
		*c = p.issueBy(t, 0, client.IssueRequest{TaskID: peerA, Profile: role, Scopes: []string{"read:content"}})
	}
	edits := 0
	setRight := func(what, ours string) {
		t.Helper()
		edits++
		eventually(t, what+" is set right", func() bool { return p.rolePolicy(t, role, awsprovider.PolicyName) == ours })
		found := p.findings(t, broker.EventUpstreamEdited, role)
		if len(found) != edits {
			t.Fatalf("%s: the record has %d of the %d changes: %+v", what, len(found), edits, found)
		}
		if e := found[edits-1]; e.Provider != "aws" || e.Trace["policy"] != awsprovider.PolicyName || e.Caller.Name != "taskpass" {
			t.Errorf("%s: got %+v", what, e)
		}
		_, err := p.agent(spared.Secret).get(t, peerKey(peerA))
		allowed(t, what+": reading with the one that was not revoked", err)
	}
	put(`{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":["*"],"Resource":["*"]}]}`)
	setRight("a denial of everybody where there was none", "")

	if _, err := p.revoke(t, 0, ended.ID); err != nil {
		t.Fatal(err)
	}
	ours := p.rolePolicy(t, role, awsprovider.PolicyName)
	stillRefused := func(what string) {
		t.Helper()
		_, err := p.agent(ended.Secret).get(t, peerKey(peerA))
		refused(t, what+": reading with the revoked one", err)
	}
	stillRefused("before")

	put(peerAccess)
	setRight("something else in its place", ours)
	stillRefused("something else in its place")

	_, err := theirs.DeleteRolePolicy(t.Context(), &iam.DeleteRolePolicyInput{
		RoleName: aws.String(role), PolicyName: aws.String(awsprovider.PolicyName),
	})
	if err != nil {
		t.Fatal(err)
	}
	setRight("its removal", ours)
	stillRefused("its removal")
}
