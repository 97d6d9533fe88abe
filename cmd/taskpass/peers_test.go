//go:build peers

package main

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

// The tasks of the tests. One id begins with the other: whoever matches prefixes carelessly mixes them up.
const (
	peerA = "loop-1"
	peerB = "loop-12"
)

// TestPeersRGW puts the whole service, its HTTP API in front and PostgreSQL behind, before an S3, STS and IAM server
// that is not ours. What a credential can do is what that server answers to the vendor's own SDK.
func TestPeersRGW(t *testing.T) {
	rgw := startPeerRGW(t)
	rgw.furnish(t, peerA, peerB)
	p := peers{rgw, startPeerBroker(t, rgw)}
	t.Run("ReadScope", p.readScope)
	t.Run("WriteScope", p.writeScope)
	t.Run("ScopesTogether", p.scopesTogether)
	t.Run("AuditFindsTheTask", p.auditFindsTheTask)
	t.Run("RevokeEndsOneSession", p.revokeEndsOneSession)
	t.Run("EndsOnTime", p.endsOnTime)
	t.Run("NoWayOut", p.noWayOut)
	t.Run("HostileIDs", p.hostileIDs)
	t.Run("HostileMetadata", p.hostileMetadata)
	t.Run("ReplicasTakeTurns", p.replicasTakeTurns)
	t.Run("ReplicasRevokeAtOnce", p.replicasRevokeAtOnce)
	t.Run("RoleRefuses", p.roleRefuses)
	t.Run("Publishes", p.publishes)
	t.Run("Meanwhile", func(t *testing.T) { // they wait for what becomes due, side by side
		t.Run("CrowdIsRevokedAndForgotten", p.crowdIsRevokedAndForgotten)
		t.Run("SetsRightWhatOthersChange", p.setsRightWhatOthersChange)
		binary := buildPeerBinary(t)
		t.Run("KilledAlone", func(t *testing.T) { p.killedAlone(t, binary) })
		t.Run("KilledBesideAnother", func(t *testing.T) { p.killedBesideAnother(t, binary) })
	})
	t.Run("KeepsSecrets", p.keepsSecrets) // the last: it looks at what all others left
}

type peers struct {
	*peerRGW
	*peerBroker
}

func allowed(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

func refused(t *testing.T, what string, err error) {
	t.Helper()
	if err := expectDenied(err); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// eventually waits until something holds that others bring about.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	const within = 3 * time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatalf("not in %s: %s", within, what)
		case <-tick.C:
		}
	}
}

func (p peers) readScope(t *testing.T) {
	agent := p.agent(p.issue(t, peerA, "read:content").Secret)
	text, err := agent.get(t, peerKey(peerA))
	allowed(t, "reading its own", err)
	if text != "of "+peerA {
		t.Errorf("read %q", text)
	}
	keys, err := agent.list(t, aws.String("tasks/"+peerA+"/"))
	allowed(t, "listing its own", err)
	if diff := cmp.Diff([]string{peerKey(peerA)}, keys); diff != "" {
		t.Error(diff)
	}

	for _, key := range []string{peerKey(peerB), "index.txt"} {
		_, err = agent.get(t, key)
		refused(t, "reading "+key, err)
	}
	for _, prefix := range []*string{nil, new(""), new("tasks/"), new("tasks/" + peerA), new("tasks/" + peerB + "/")} {
		_, err = agent.list(t, prefix)
		refused(t, "listing "+aws.ToString(prefix), err)
	}
	for _, key := range []string{peerKey(peerA), "tasks/" + peerA + "/new.txt", peerKey(peerB)} {
		refused(t, "writing "+key, agent.put(t, key, "overwritten"))
	}
	_, err = agent.s3().DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: aws.String(peerBucket), Key: aws.String(peerKey(peerA))})
	refused(t, "deleting its own", err)
	_, err = agent.s3().ListBuckets(t.Context(), &s3.ListBucketsInput{})
	refused(t, "listing buckets", err)
	_, err = agent.s3().CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("another")})
	refused(t, "making a bucket", err)
	_, err = agent.s3().PutBucketPolicy(t.Context(), &s3.PutBucketPolicyInput{Bucket: aws.String(peerBucket), Policy: aws.String(peerAccess)})
	refused(t, "giving itself a bucket policy", err)
}

func (p peers) writeScope(t *testing.T) {
	agent := p.agent(p.issue(t, peerA, "write:content").Secret)
	own := "tasks/" + peerA + "/result.txt"
	allowed(t, "writing its own", agent.put(t, own, "done"))
	if text, err := p.owner().get(t, own); err != nil || text != "done" {
		t.Errorf("the owner reads %q, %v", text, err)
	}
	for _, key := range []string{peerKey(peerB), "tasks/" + peerB + "/new.txt", "tasks/" + peerA, "tasks/new.txt", "index.txt"} {
		refused(t, "writing "+key, agent.put(t, key, "overwritten"))
	}
	_, err := agent.get(t, own)
	refused(t, "reading what it wrote", err)
	_, err = agent.list(t, aws.String("tasks/"+peerA+"/"))
	refused(t, "listing its own", err)
	if text, err := p.owner().get(t, peerKey(peerB)); err != nil || text != "of "+peerB {
		t.Errorf("the other task's object is now %q, %v", text, err)
	}
}

// Two scopes allow what each allows, and no path between them: what may be written here may not be read there.
func (p peers) scopesTogether(t *testing.T) {
	agent := p.agent(p.issue(t, peerA, "read:content", "write:content").Secret)
	_, err := agent.get(t, peerKey(peerA))
	allowed(t, "reading its own", err)
	allowed(t, "writing its own", agent.put(t, "tasks/"+peerA+"/both.txt", "done"))
	_, err = agent.get(t, peerKey(peerB))
	refused(t, "reading another's", err)
	_, err = agent.s3().CopyObject(t.Context(), &s3.CopyObjectInput{
		Bucket: aws.String(peerBucket), Key: aws.String("tasks/" + peerA + "/stolen.txt"), CopySource: aws.String(peerBucket + "/" + peerKey(peerB)),
	})
	refused(t, "copying another's to its own", err)
}

// What stands in the upstream's log, an access key id or a session's name, leads to the task, and to no other.
func (p peers) auditFindsTheTask(t *testing.T) {
	a, b := p.issue(t, peerA, "read:content"), p.issue(t, peerB, "read:content")
	if a.ID == b.ID || a.Secret.Env["AWS_ACCESS_KEY_ID"] == b.Secret.Env["AWS_ACCESS_KEY_ID"] {
		t.Fatal("two tasks hold the same credential")
	}
	text, err := p.agent(b.Secret).get(t, peerKey(peerB))
	if err != nil || text != "of "+peerB {
		t.Errorf("the second task reads its own: %q, %v", text, err)
	}
	_, err = p.agent(b.Secret).get(t, peerKey(peerA))
	refused(t, "the second task reads the first's", err)

	for _, c := range []*client.IssuedCredential{a, b} {
		session := c.Trace["role_session_name"]
		// The Arn is RGW's own answer: so it is under this name that its log knows the session.
		if want := "arn:aws:sts:::assumed-role/" + peerRole + "/" + session; c.Trace["assumed_role_arn"] != want {
			t.Errorf("got %q, want %q", c.Trace["assumed_role_arn"], want)
		}
		for _, upstreamID := range []string{c.Secret.Env["AWS_ACCESS_KEY_ID"], session} {
			events, _ := p.events(t, client.ListAuditEventsParams{UpstreamID: &upstreamID})
			issued := slices.IndexFunc(events, func(e client.AuditEvent) bool { return e.Type == string(broker.EventIssued) })
			if issued < 0 {
				t.Fatalf("no %s under %s: %+v", broker.EventIssued, upstreamID, events)
			}
			for _, e := range events {
				if e.TaskID != c.TaskID || e.AgentID != c.AgentID || e.CredentialID != c.ID || e.VersionID != session {
					t.Errorf("under %s stands %+v", upstreamID, e)
				}
			}
			e := events[issued]
			if !slices.Contains(e.UpstreamIds, c.Secret.Env["AWS_ACCESS_KEY_ID"]) || e.Upstream != peerARN(peerRole) ||
				!slices.Equal(e.Scopes, c.Scopes) || e.Caller.Name != "orchestrator" || !e.ExpiresAt.Equal(c.ExpiresAt) {
				t.Errorf("got %+v", e)
			}
		}
	}
}

// What RGW says about a request that it refuses stays between it and the broker.
func (p peers) roleRefuses(t *testing.T) {
	theirs := p.errorBody(t)
	for profile, word := range map[string]string{"untrusted": "trust policy", "absent": "role", "wrong-key": ""} {
		task := "refused-" + profile
		answer, err := p.api(t, 0, "orchestrator").IssueCredentialWithResponse(t.Context(), nil, client.IssueRequest{
			TaskID: task, AgentID: "agent", Profile: profile, Scopes: []string{"read:content"},
		})
		if err != nil {
			t.Fatal(err)
		}
		problem, ok := errors.AsType[*problemError](asProblem(answer.StatusCode(), answer.Body))
		if !ok || answer.StatusCode() != http.StatusBadGateway || problem.Code != string(broker.CodeUpstreamRefused) || problem.Retryable {
			t.Errorf("%s: got %d %s", profile, answer.StatusCode(), answer.Body)
			continue
		}
		if !strings.Contains(problem.Detail, word) {
			t.Errorf("%s: the detail does not tell of the %s: %s", profile, word, problem.Detail)
		}
		events, page := p.events(t, client.ListAuditEventsParams{TaskID: &task})
		if len(events) != 2 || events[0].Type != string(broker.EventIntended) || events[1].Type != string(broker.EventFailed) ||
			events[1].Code != problem.Code || events[1].State != string(client.Failed) || len(events[1].UpstreamIds) > 0 {
			t.Errorf("%s: got %s", profile, page)
		}
		if state := p.credential(t, events[0].CredentialID); state.Status != client.Failed {
			t.Errorf("%s: got %+v", profile, state)
		}
		for _, found := range theirs.FindAllString(string(answer.Body)+string(page), -1) {
			t.Errorf("%s: %q is RGW's: %s\n%s", profile, found, answer.Body, page)
		}
	}
	if found := theirs.FindString(p.log.String()); strings.HasPrefix(found, "<") {
		t.Errorf("%q is in the nodes' log", found)
	}
}

// errorBody gives an expression for what marks RGW's own error text, and checks it against one.
func (p peers) errorBody(t *testing.T) *regexp.Regexp {
	t.Helper()
	answer, err := (&http.Client{Timeout: 10 * time.Second}).Get(p.url + "/" + peerBucket)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	var e struct{ Code, RequestId, HostId string }
	if err := xml.Unmarshal(text, &e); err != nil || e.HostId == "" {
		t.Fatalf("%v: %s", err, text)
	}
	theirs := regexp.MustCompile(`</?(?:Error|Code|Message)>|AccessDenied|NoSuchEntity|SignatureDoesNotMatch|tx[0-9a-f]{21}-|` + regexp.QuoteMeta(e.HostId))
	if got := len(theirs.FindAllString(string(text), -1)); got < 6 {
		t.Fatalf("found only %d marks in %s", got, text)
	}
	return theirs
}

// No secret that was handed out, or that the broker itself has, stands in a log or on the record.
func (p peers) keepsSecrets(t *testing.T) {
	if n := p.secrets.in(p.log.String()); n > 0 || p.log.String() == "" {
		t.Errorf("the nodes' log holds %d secrets", n)
	}
	q, total := client.ListAuditEventsParams{Limit: new(1000)}, 0
	for more := true; more; {
		answer, err := p.api(t, 1, "auditor").ListAuditEventsWithResponse(t.Context(), &q)
		if err != nil || answer.JSON200 == nil {
			t.Fatalf("%v: %s", err, answer.Body)
		}
		if n := p.secrets.in(string(answer.Body)); n > 0 {
			t.Errorf("a page of the record holds %d secrets", n)
		}
		total += len(answer.JSON200.Events)
		q.Cursor = &answer.JSON200.NextCursor
		more = *q.Cursor != ""
	}
	if total < 100 {
		t.Errorf("the record has only %d events", total)
	}
	answer, err := p.api(t, 0, "auditor").ListCredentialsWithResponse(t.Context(), &client.ListCredentialsParams{Limit: new(500)})
	if err != nil || answer.JSON200 == nil {
		t.Fatalf("%v: %s", err, answer.Body)
	}
	if n := p.secrets.in(string(answer.Body)); n > 0 || len(answer.JSON200.Credentials) < 30 {
		t.Errorf("the list of %d credentials holds %d secrets", len(answer.JSON200.Credentials), n)
	}
}
