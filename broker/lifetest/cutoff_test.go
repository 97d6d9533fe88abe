package lifetest

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

// fill ends nearly as many sessions of the role as its inline policy can hold, and lets them grow old enough for a cut-off.
func (r *rig) fill(profile string) {
	r.t.Helper()
	// Somebody else's policy leaves room for few: 10,240 characters hold about 477 entries of 21.
	crowd := `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"s3:ListBucket","Resource":"arn:aws:s3:::` +
		strings.Repeat("x", 420*21) + `"}]}`
	if err := r.vendor.SetRolePolicy(profile, "crowd", crowd); err != nil {
		r.t.Fatal(err)
	}
	const room = 50
	together(8, func(i int) {
		for n := i; n < room; n += 8 {
			r.as("orch").on(i).issue(ask(profile, "filler")).want(r.t, http.StatusCreated)
		}
	})
	r.as("orch").endTask("filler")
	r.settled()
	r.clock.advance(time.Minute)
	r.settled()
	r.clock.advance(5 * time.Minute)
}

// When the deny policies are full and the operator has accepted it, every older session of the role is cut off: what was
// revoked is really dead, the tasks that live are told to refresh, and their next versions work.
func TestCutOff(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *broker.Config) {
		c.Limits = broker.Limits{PerTask: 1000, PerAgent: 1000, PerProfile: 1000, PerCaller: 1000}
	})
	orch := r.as("orch")
	survivor, doomed := r.mustIssue(ask("cutoff", "t1")), r.mustIssue(ask("cutoff", "t2"))
	ended, quiet := r.mustIssue(ask("cutoff", "t3")), r.mustIssue(ask("cutoff", "t4"))
	elsewhere := r.mustIssue(ask("aws", "t1"))
	r.fill("cutoff")
	for range 20 { // by now one of them does not fit
		c := r.mustIssue(ask("cutoff", "more"))
		r.clock.advance(10 * time.Second)
		orch.revoke(c.ID).want(t, http.StatusOK)
		r.wantAlive("revoked", c.Secret, "more", false)
	}
	if n := r.countEvents("", broker.EventUpstreamCutOff); n != 1 {
		t.Fatalf("%d upstream.cut_off", n)
	}
	r.settled()
	for what, c := range map[string]client.IssuedCredential{"survivor": survivor, "doomed": doomed, "ended": ended, "quiet": quiet} {
		r.wantAlive(what, c.Secret, c.TaskID, false)
		s := orch.get(c.ID).state
		if s.Status != client.Revoked || s.Revocation.Result != "denied" || s.Cause != "cut_off" {
			t.Errorf("%s: %s (%s), %+v", what, s.Status, s.Cause, s.Revocation)
		}
		orch.resolve(c.ID).want(t, broker.CodeCredentialEnded)
		if w := orch.watch(c.ID, 1, 0).want(t, http.StatusOK).state; w.Cause != "cut_off" {
			t.Errorf("%s: its watcher is told %s", what, w.Cause)
		}
	}
	r.wantAlive("another role's", elsewhere.Secret, "t1", true)

	next := orch.refresh(survivor.ID, 1).want(t, http.StatusCreated).issued
	if next.Version != 2 || next.Status != client.Active {
		t.Errorf("the next is version %d, %s", next.Version, next.Status)
	}
	r.wantAlive("the survivor's next", next.Secret, "t1", true)
	if got := orch.resolve(survivor.ID).want(t, http.StatusOK).resolved; got.Version != 2 {
		t.Errorf("resolve gives version %d", got.Version)
	}

	orch.revoke(doomed.ID).want(t, http.StatusOK) // nothing of it lives: that it may be refreshed is over all the same
	orch.refresh(doomed.ID, 1).want(t, broker.CodeCredentialEnded)
	orch.endTask("t3").want(t, http.StatusOK)
	if code := orch.refresh(ended.ID, 1).code; code != broker.CodeTaskEnded && code != broker.CodeCredentialEnded {
		t.Errorf("its task has ended, and a refresh says %s", code)
	}
	r.clock.advance(2 * time.Hour)
	orch.refresh(quiet.ID, 1).want(t, broker.CodeCredentialEnded) // its time is over too
	r.settled()
	r.clock.advance(10 * time.Minute)
	r.settled()
	if p := r.vendor.RolePolicies("cutoff"); len(p) != 1 || p["crowd"] == "" {
		t.Errorf("everything has expired, and the role still has %v", slices.Sorted(maps.Keys(p)))
	}
	r.sound()
}
