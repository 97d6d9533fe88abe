//go:build peers

package main

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
	awsprovider "github.com/taskpass/taskpass/providers/aws"
)

func (p peers) revokeEndsOneSession(t *testing.T) {
	var siblings []*client.IssuedCredential
	for range 3 {
		siblings = append(siblings, p.issue(t, peerA, "read:content"))
	}
	for i, c := range siblings {
		_, err := p.agent(c.Secret).get(t, peerKey(peerA))
		allowed(t, "reading before", err)
		ended, err := p.revoke(t, i%2, c.ID)
		if err != nil {
			t.Fatal(err)
		}
		if ended.Status != client.Revoked || ended.Revocation.Result != client.Denied || ended.Revocation.LagSeconds != 0 ||
			ended.Revocation.EffectiveAt.After(time.Now()) || ended.EndedAt.IsZero() {
			t.Errorf("got %+v", ended)
		}
		for j, sibling := range siblings {
			_, err := p.agent(sibling.Secret).get(t, peerKey(peerA))
			if j <= i {
				refused(t, "reading after it was revoked", err)
			} else {
				allowed(t, "reading after a sibling was revoked", err)
			}
		}
		again, err := p.revoke(t, (i+1)%2, c.ID)
		if err != nil || !again.EndedAt.Equal(ended.EndedAt) {
			t.Errorf("asked again: %+v, %v", again, err)
		}
		events, _ := p.events(t, client.ListAuditEventsParams{UpstreamID: new(c.Secret.Env["AWS_ACCESS_KEY_ID"])})
		var types []string
		for _, e := range events {
			types = append(types, e.Type)
		}
		want := []string{string(broker.EventIssued), string(broker.EventRevokeAsked), string(broker.EventRevoked)}
		if diff := cmp.Diff(want, types); diff != "" {
			t.Error(diff)
		}
	}
	// What the operator gave the role is as it was.
	_, err := p.bare(t).get(t, peerKey(peerB))
	allowed(t, "a session that is not the broker's", err)
}

// PutRolePolicy overwrites. While one replica's request is on its way, with what the database said before, another one
// must not write: the late one would undo it.
func (p peers) replicasTakeTurns(t *testing.T) {
	var both []*client.IssuedCredential
	for range 2 {
		both = append(both, p.issue(t, peerA, "read:content"))
	}
	gate := p.detour.hold("Action=PutRolePolicy")
	open := sync.OnceFunc(func() { close(gate.open) })
	defer open()
	answers := make([]chan error, 2)
	revoke := func(node int) {
		answers[node] = make(chan error, 1)
		go func() {
			_, err := p.revoke(t, node, both[node].ID)
			answers[node] <- err
		}()
	}
	revoke(1) // it is the one that takes the detour
	select {
	case <-gate.closed:
	case err := <-answers[1]:
		t.Fatalf("revoked without a word to AWS: %v", err)
	}
	revoke(0)
	select {
	case err := <-answers[0]:
		t.Errorf("it did not wait for the other replica's write: %v", err)
		answers[0] <- err
	case <-time.After(10 * peerDelay): // several times what it takes
	}
	open()
	for node := range both {
		if err := <-answers[node]; err != nil {
			t.Errorf("revoking by replica %d: %v", node, err)
		}
	}
	for _, c := range both {
		_, err := p.agent(c.Secret).get(t, peerKey(peerA))
		refused(t, "reading with "+c.ID, err)
	}
}

// Without turns entries would be lost, for good or until the next write. So each session is tried from the answer to its
// revocation to the last one's.
func (p peers) replicasRevokeAtOnce(t *testing.T) {
	const revocations = 20
	var all []*client.IssuedCredential
	for i := range revocations + 1 {
		all = append(all, p.issueBy(t, i%2, client.IssueRequest{TaskID: peerA, Scopes: []string{"read:content"}}))
	}
	spared := all[revocations]
	var everyone, answered sync.WaitGroup
	answered.Add(revocations)
	over := make(chan struct{})
	go func() { answered.Wait(); close(over) }()
	for i, c := range all[:revocations] {
		everyone.Go(func() {
			<-time.After(time.Duration(i) * peerDelay / 5) // all at once would share a write or two
			ended, err := p.revoke(t, i%2, c.ID)
			answered.Done()
			if err != nil || ended.Status != client.Revoked {
				t.Errorf("revoking number %d: %+v, %v", i, ended, err)
				return
			}
			for last := false; !last; {
				select {
				case <-over:
					last = true // and once more
				default:
				}
				_, err := p.agent(c.Secret).get(t, peerKey(peerA))
				refused(t, "reading with "+c.ID, err)
			}
		})
	}
	everyone.Wait()
	_, err := p.agent(spared.Secret).get(t, peerKey(peerA))
	allowed(t, "reading with the one that was not revoked", err)

	document := p.rolePolicy(t, peerRole, awsprovider.PolicyName)
	for _, c := range all {
		if listed := strings.Contains(document, c.Trace["role_session_name"]); listed != (c != spared) {
			t.Errorf("%s stands in the role's policy: %v", c.ID, listed)
		}
	}
}
