package aws_test

import (
	"context"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/aws"
)

// A process may die, or an answer may be lost, at any of its calls: the next look, by whichever replica, heals it, and
// takes nothing for somebody else's.
func TestCrashAtAnyCall(t *testing.T) {
	t.Parallel()
	for _, action := range []string{
		"GetRole", "ListRolePolicies", "GetRolePolicy", "ListAttachedRolePolicies", "PutRolePolicy",
		"ListPolicyVersions", "GetPolicyVersion", "DeletePolicyVersion", "CreatePolicyVersion",
	} {
		for _, kind := range []string{"before", "after"} {
			t.Run(kind+" "+action, func(t *testing.T) {
				t.Parallel()
				edit, prepare := spill(t, true)
				r := newRig(t, edit)
				prepare(r)
				ledgers := replicas(t, 2)
				ledger := ledgers[0]
				p, q := r.replica(t, ledger), r.replica(t, ledgers[1])
				r.crowd(t, 1)
				short := r.sessions(t, p, ledger, 1, 10*time.Minute)[0]
				list := r.sessions(t, p, ledger, 9, time.Hour)
				r.end(t, p, ledger, short) // fills the inline policy
				for _, h := range list[:6] {
					r.end(t, p, ledger, h)
				}
				r.clock.Advance(12 * time.Minute) // which has room again
				for _, h := range list[6:8] {
					providertest.Ask(t, ledger, h.Credential, broker.CauseRevoked)
				}
				called := r.calls(action)
				if kind == "after" {
					r.lose(action)
					if _, err := p.Keep(t.Context()); err == nil {
						t.Error("it claims to know")
					}
				} else {
					ctx, crash := context.WithCancel(t.Context())
					arrived := r.front.hold(action)
					go func() { <-arrived; crash() }()
					if _, err := p.Keep(ctx); err == nil {
						t.Error("it claims to know")
					}
					r.open()
				}
				if r.calls(action) == called {
					t.Fatal("it was never called: this proves nothing")
				}
				r.dead(t, "after the crash", list[:6]...)
				keep(t, q)
				r.dead(t, "after the look", list[:8]...)
				r.live(t, "after the look", list[8])
				r.placedOnce(t, idsOf(list[:8], func(h held) broker.VersionID { return h.Version.ID }))
				keep(t, p)
				if n := r.events(t, ledger, broker.EventUpstreamEdited); n != 0 {
					t.Errorf("%d edits on record", n)
				}
			})
		}
	}
}

// A role that was deleted and made anew has another id, with which its sessions' aws:userid begins.
func TestRoleMadeAnew(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	before := r.sessions(t, p, ledger, 1, time.Hour)[0]
	r.end(t, p, ledger, before)
	anew, err := sandbox.New(sandbox.Config{
		AccessKeyID: keyID, SecretAccessKey: key, Now: r.clock.Now, MaxSkew: -1,
		Roles: []sandbox.Role{{Name: r.role, MaxSessionDuration: 12 * time.Hour, Policy: rolePolicy}},
	})
	must(t, err)
	t.Cleanup(anew.Close)
	r.front.mu.Lock()
	r.Server, r.front.server = anew, anew
	r.front.mu.Unlock()
	keep(t, p)
	if ids := entries(t, r.denied()); len(ids) != 1 || ids[0] != string(before.Version.ID) {
		t.Errorf("%s", r.denied())
	}
	after := r.sessions(t, p, ledger, 2, time.Hour)
	r.end(t, p, ledger, after[0])
	r.dead(t, "a session of the new role", after[0])
	r.live(t, "its sibling", after[1])
}

// Two replicas look and revoke at the same moment: nobody is lost.
func TestLookingWhileRevoking(t *testing.T) {
	t.Parallel()
	edit, prepare := spill(t, true)
	r := newRig(t, edit)
	prepare(r)
	ledgers := replicas(t, 2)
	p, q := r.replica(t, ledgers[0]), r.replica(t, ledgers[1])
	r.crowd(t, 4)
	list := r.asked(t, p, ledgers[0], 12, time.Hour)
	done := make(chan error, 3)
	for range cap(done) {
		go func() { _, err := q.Keep(t.Context()); done <- err }()
	}
	for _, c := range list {
		if _, err := p.Revoke(t.Context(), c); err != nil {
			t.Error(err)
		}
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	r.placedOnce(t, idsOf(list, idOf))
	if n := r.events(t, ledgers[0], broker.EventUpstreamEdited); n != 0 {
		t.Errorf("%d edits on record", n)
	}
}
