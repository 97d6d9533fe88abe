package crashtest

import (
	"context"
	"fmt"
	"testing"

	"github.com/taskpass/taskpass/openapi/client"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/aws"
)

// The end of a credential and the coming of its next version are written by two transactions. Here a third one holds a
// row, so that they meet in the order that does harm, each time.

// hold locks rows until release is called.
func (r *rig) hold(sql string, args ...any) (release func()) {
	r.t.Helper()
	tx, err := r.admin.Begin(r.t.Context())
	if err == nil {
		_, err = tx.Exec(r.t.Context(), sql, args...)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return func() {
		if err := tx.Commit(r.t.Context()); err != nil {
			r.t.Error(err)
		}
	}
}

// awaitWaiting waits until so many statements wait for a lock.
func (r *rig) awaitWaiting(n int) {
	r.t.Helper()
	r.eventually("statements wait for the lock", func() bool {
		return r.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) >= n
	})
}

// aside makes a call while something else goes on.
func aside(call func() answer) <-chan answer {
	done := make(chan answer, 1)
	go func() { done <- call() }()
	return done
}

func (r *rig) issued(p *replica, task, key string) string {
	r.t.Helper()
	if a := p.issue(awsRequest(task), key); !a.ok() {
		r.t.Fatal(a)
	}
	return r.book.alive[len(r.book.alive)-1]
}

// concluded lets the sweeper finish, and the checker look.
func (r *rig) concluded(answers ...<-chan answer) {
	r.t.Helper()
	for _, a := range answers {
		r.t.Log("answered: ", <-a)
	}
	r.settle()
	r.mustHold()
}

// A refresh has read that its credential is active; a revocation is acknowledged; only then the next version's intent
// is written.
func TestRevokedBeforeTheNextVersionIsIntended(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.start("")
	id := r.issued(p, "task", "")
	release := r.hold("SELECT FROM credentials WHERE id = $1 FOR UPDATE", id)
	refreshed := aside(func() answer { return p.refresh(id, "") })
	r.awaitWaiting(1)
	if a := p.revoke(id); !a.ok() {
		t.Error(a)
	}
	release()
	r.concluded(refreshed)
}

// A revocation finds the next version being minted, and has to wait for its activation.
func TestRevokedWhileTheNextVersionBecomesActive(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.start("")
	id := r.issued(p, "task", "")
	release := r.hold("SELECT FROM credentials WHERE id = $1 FOR NO KEY UPDATE", id)
	refreshed := aside(func() answer { return p.refresh(id, "") })
	r.awaitWaiting(1)
	revoked := aside(func() answer { return p.revoke(id) })
	r.awaitWaiting(2)
	release()
	r.concluded(refreshed, revoked)
}

// A task ends while one of its credentials becomes active.
func TestTaskEndsWhileAVersionBecomesActive(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.start("")
	issued, release := r.heldActivation(func() answer { return p.issue(awsRequest("task"), "") })
	ended := aside(func() answer { return p.endTask("task") })
	r.awaitWaiting(2)
	release()
	r.concluded(issued, ended)
}

// A ticket's credential is revoked while the redeemer's secret becomes active.
func TestRevokedWhileARedeemedVersionBecomesActive(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.start("")
	body := awsRequest("task")
	body.Delivery = client.IssueRequestDeliveryTicket
	if a := p.issue(body, ""); !a.ok() {
		t.Fatal(a)
	}
	redeemed, release := r.heldActivation(func() answer { return p.redeem(r.book.takeTicket()) })
	revoked := aside(func() answer { return p.revoke(r.book.alive[0]) })
	r.awaitWaiting(2)
	release()
	r.concluded(redeemed, revoked)
}

// heldActivation makes a call that mints a first version, and holds the row that it makes active.
func (r *rig) heldActivation(call func() answer) (<-chan answer, func()) {
	r.t.Helper()
	answer := make(chan struct{})
	r.aws.Inject(sandbox.Fault{Action: "AssumeRole", Kind: sandbox.SlowReply, Until: answer})
	done := aside(call)
	r.eventually("a version is being minted", func() bool {
		return r.count("SELECT count(*) FROM versions WHERE state = 'issuing' AND NOT unclaimed") == 1
	})
	release := r.hold("SELECT FROM versions FOR NO KEY UPDATE")
	close(answer)
	r.awaitWaiting(1)
	return done, release
}

// Two versions share a pool's key and end at the same moment: the key comes back all the same.
func TestPoolKeyComesBackWhenItsVersionsEndTogether(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.start("")
	var ended []<-chan answer
	for i := range poolKeys {
		task := fmt.Sprint("task-", i)
		if a := p.issue(poolRequest(task), ""); !a.ok() {
			t.Fatal(a)
		}
		for range 2 {
			if a := p.refresh(r.book.alive[i], ""); !a.ok() {
				t.Fatal(a)
			}
		}
	}
	for i := range poolKeys {
		ended = append(ended, aside(func() answer { return p.endTask(fmt.Sprint("task-", i)) }))
	}
	r.concluded(ended...)
	if n := r.count("SELECT count(*) FROM slots WHERE state = 'available'"); n != poolKeys {
		t.Errorf("%d of %d keys came back", n, poolKeys)
	}
}

// A revoked credential's Idempotency-Key does not bring it back, though its newest version was never made.
func TestRevokedIsNotRevivedByItsKey(t *testing.T) {
	t.Parallel()
	t.Run("its refresh had failed", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		p := r.start("")
		id := r.issued(p, "task", "key")
		r.aws.Inject(sandbox.Fault{Action: "AssumeRole", Kind: sandbox.AccessDenied})
		if a := p.refresh(id, ""); a.code != "upstream_refused" {
			t.Fatal(a)
		}
		r.revokedAndRepeated(p, id)
	})
	t.Run("its refresh was killed", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		victim := r.start("after_refresh_intent")
		id := r.issued(victim, "task", "key")
		victim.refresh(id, "")
		victim.awaitKilled()
		r.revokedAndRepeated(r.start(""), id)
	})
	t.Run("its redemption was killed", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		victim := r.start("after_redeem")
		body := awsRequest("task")
		body.Delivery = client.IssueRequestDeliveryTicket
		if a := victim.issue(body, "key"); !a.ok() {
			t.Fatal(a)
		}
		victim.redeem(r.book.takeTicket())
		victim.awaitKilled()
		r.revokedAndRepeated(r.start(""), r.book.alive[0])
	})
}

func (r *rig) revokedAndRepeated(p *replica, id string) {
	r.t.Helper()
	if a := p.revoke(id); !a.ok() {
		r.t.Fatal(a)
	}
	r.settle()
	k := r.book.keys[0]
	if a, _ := p.issueAs(k.Body, k); a.code != "credential_ended" {
		r.t.Errorf("the key of a revoked credential is answered %s, want credential_ended", a)
	}
	r.settle()
	r.mustHold()
}
