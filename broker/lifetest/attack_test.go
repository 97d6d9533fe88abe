package lifetest

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

// Regressions: each of these is an order of steps that once broke a promise.

// waitingForLock returns when so many sessions of the service wait for a lock.
func (r *rig) waitingForLock(n int) {
	r.t.Helper()
	eventually(r.t, "sessions wait for a lock", func() bool {
		return one[int](r, `SELECT count(*)::int FROM pg_stat_activity
			WHERE datname = current_database() AND usename = $1 AND wait_event_type = 'Lock'`, login) >= n
	})
}

// lock holds rows until the returned function is called.
func (r *rig) lock(sql string, args ...any) (free func()) {
	r.t.Helper()
	conn, err := pgx.Connect(context.Background(), r.db.AdminURL)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := conn.Exec(context.Background(), "BEGIN"); err != nil {
		r.t.Fatal(err)
	}
	if _, err := conn.Exec(context.Background(), sql, args...); err != nil {
		r.t.Fatal(err)
	}
	return func() { _ = conn.Close(context.Background()) }
}

// async starts a call and returns how to wait for its reply.
func async(fn func() reply) func() reply {
	c := make(chan reply, 1)
	go func() { c <- fn() }()
	return func() reply { return <-c }
}

// A refresh that waits for another one must not bring a credential back that is revoked meanwhile.
func TestRevokedWhileRefreshesWait(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("aws", "t1"))
	held := r.front.on("AssumeRole", "", late, 1)
	first := async(func() reply { return r.as("orch").on(0).refresh(c.ID, 1) })
	<-held.arrived
	var second, third func() reply
	more(t, &r.replicas[1].store.waits, 2, func() {
		second = async(func() reply { return r.as("orch").on(1).refresh(c.ID, 1) })
		third = async(func() reply { return r.as("orch").on(1).refresh(c.ID, 0) })
	})
	done := r.as("ops").revoke(c.ID)
	if done.status != http.StatusOK && done.status != http.StatusAccepted {
		t.Fatalf("revoke answered %d %s", done.status, done.code)
	}
	held.letGo()
	for i, wait := range []func() reply{first, second, third} {
		got := wait()
		if got.code != broker.CodeCredentialEnded {
			t.Errorf("refresh %d of a credential that was revoked meanwhile answered %d %s", i, got.status, got.code)
		}
		if got.status == http.StatusCreated {
			r.wantAlive("after an acknowledged revocation", got.issued.Secret, "t1", false)
		}
	}
	r.settled()
	if s := r.as("orch").get(c.ID).state.Status; s == client.Active {
		t.Errorf("the credential is %s after its revocation was acknowledged", s)
	}
	if n := one[int](r, "SELECT count(*)::int FROM versions WHERE state = 'active'"); n != 0 {
		t.Errorf("%d versions are active", n)
	}
	r.sound()
}

// The same for a twin that waits with the same Idempotency-Key, and for a later retry.
func TestRevokedWhileATwinWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	held := r.front.on("AssumeRole", "", late, 1)
	first := async(func() reply { return r.as("orch").on(0).issue(ask("aws", "t1"), "key") })
	<-held.arrived
	var twin func() reply
	more(t, &r.replicas[1].store.waits, 1, func() {
		twin = async(func() reply { return r.as("orch").on(1).issue(ask("aws", "t1"), "key") })
	})
	id := r.as("ops").find(client.ListCredentialsParams{}).list[0].ID
	if done := r.as("ops").revoke(id); done.status != http.StatusOK && done.status != http.StatusAccepted {
		t.Fatalf("revoke answered %d %s", done.status, done.code)
	}
	held.letGo()
	first().want(t, broker.CodeCredentialEnded)
	twin().want(t, broker.CodeCredentialEnded)
	r.as("orch").issue(ask("aws", "t1"), "key").want(t, broker.CodeCredentialEnded)
	r.settled()
	if s := r.as("orch").get(id).state; s.Status == client.Active || s.Cause != "revoked" {
		t.Errorf("the credential is %s (%s) after an operator revoked it", s.Status, s.Cause)
	}
	asked := 0
	for _, e := range r.events("t1") {
		if e.Type == string(broker.EventRevokeAsked) && e.Caller.Name == "ops" {
			asked++
		}
	}
	if asked != 1 {
		t.Errorf("the record shows %d times that ops asked for the end", asked)
	}
	r.sound()
}

// A revocation that comes just when the version becomes active is not lost.
func TestRevokedAtTheMomentOfActivation(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	held := r.front.on("AssumeRole", "", late, 1)
	first := async(func() reply { return r.as("orch").on(0).issue(ask("aws", "t1")) })
	<-held.arrived
	id := r.as("ops").find(client.ListCredentialsParams{}).list[0].ID
	free := r.lock("SELECT FROM versions WHERE credential_id = $1 FOR UPDATE", id)
	held.letGo()
	r.waitingForLock(1) // the activation
	revoked := async(func() reply { return r.as("ops").on(1).revoke(id) })
	r.waitingForLock(2) // the wish to end it, behind the activation
	free()
	issued, done := first(), revoked()
	if done.status != http.StatusOK && done.status != http.StatusAccepted {
		t.Fatalf("revoke answered %d %s", done.status, done.code)
	}
	r.clock.advance(time.Minute)
	r.settled()
	if s := r.as("orch").get(id).state; s.Status != client.Revoked {
		t.Errorf("the credential is %s after its revocation was acknowledged with %d", s.Status, done.status)
	}
	if issued.status == http.StatusCreated {
		r.wantAlive("after its revocation", issued.issued.Secret, "t1", false)
	}
	r.sound()
}

// The same for the end of its task.
func TestTaskEndedAtTheMomentOfActivation(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	held := r.front.on("AssumeRole", "", late, 1)
	first := async(func() reply { return r.as("orch").on(0).issue(ask("aws", "t1")) })
	<-held.arrived
	// The activation has read that its task has not ended, and is held before it commits.
	r.exec(`CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NEW; END $$;
		CREATE TRIGGER wait_here BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.type = 'credential.issued') EXECUTE FUNCTION wait_here()`)
	free := r.lock("SELECT pg_advisory_xact_lock(42)")
	held.letGo()
	r.waitingForLock(1)
	ended := async(func() reply { return r.as("ops").on(1).endTask("t1") })
	r.waitingForLock(2) // the end, for the activation
	free()
	issued, done := first(), ended()
	if done.status != http.StatusOK && done.status != http.StatusAccepted {
		t.Fatalf("end answered %d %s", done.status, done.code)
	}
	r.clock.advance(time.Minute)
	r.settled()
	if n := one[int](r, "SELECT count(*)::int FROM versions WHERE state = 'active'"); n != 0 {
		t.Errorf("%d versions are active after the task's end was acknowledged", n)
	}
	if issued.status == http.StatusCreated {
		r.wantAlive("after its task's end", issued.issued.Secret, "t1", false)
	}
	r.sound()
}

// A ticket that is redeemed and revoked at the same time is one or the other, and nobody is told that the broker failed.
func TestRedeemedAndRevokedAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for range 15 {
		c := r.mustIssue(ask("aws", "t1", ticket))
		var redeemed, revoked reply
		together(2, func(i int) {
			if i == 0 {
				redeemed = r.as("orch").on(0).redeem(c.Ticket.Value)
			} else {
				revoked = r.as("orch").on(1).revoke(c.ID)
			}
		})
		if redeemed.status != http.StatusOK && redeemed.code != broker.CodeCredentialEnded {
			t.Errorf("the redemption answered %d %s", redeemed.status, redeemed.code)
		}
		if revoked.status != http.StatusOK && revoked.status != http.StatusAccepted {
			t.Errorf("the revocation answered %d %s", revoked.status, revoked.code)
		}
		r.settled()
		if s := r.as("orch").get(c.ID).state.Status; s != client.Failed && s != client.Revoked {
			t.Errorf("afterwards it is %s", s)
		}
		if redeemed.status == http.StatusOK {
			r.wantAlive("redeemed and revoked", redeemed.issued.Secret, "t1", false)
		}
	}
	r.sound()
}

// The same, in the one order of locks in which the two once waited for each other.
func TestRedemptionBehindARevocation(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("aws", "t1", ticket))
	free := r.lock("SELECT FROM versions WHERE credential_id = $1 FOR UPDATE", c.ID)
	revoked := async(func() reply { return r.as("orch").on(0).revoke(c.ID) })
	r.waitingForLock(1)
	redeemed := async(func() reply { return r.as("orch").on(1).redeem(c.Ticket.Value) })
	r.waitingForLock(2)
	free()
	revoked().want(t, http.StatusOK)
	redeemed().want(t, broker.CodeCredentialEnded)
	r.sound()
}

// A keyed refresh that failed at the vendor can be sent again with its key.
func TestKeyedRefreshAfterAFailure(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{refuse, lose} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			c := r.mustIssue(ask("aws", "t1"))
			r.front.on("AssumeRole", "", kind, 1)
			if got := r.as("orch").refresh(c.ID, 1, "key"); got.status == http.StatusCreated {
				t.Fatal("the refresh did not fail")
			}
			r.wantAlive("the old version after a failed refresh", c.Secret, "t1", true)
			before := one[int](r, "SELECT count(*)::int FROM events")
			got := r.as("orch").refresh(c.ID, 1, "key")
			if got.status != http.StatusCreated {
				t.Fatalf("the same refresh again answered %d %s, after %d events", got.status, got.code,
					one[int](r, "SELECT count(*)::int FROM events")-before)
			}
			r.wantAlive("the new version", got.issued.Secret, "t1", true)
			again := r.as("orch").refresh(c.ID, 1, "key").want(t, http.StatusCreated)
			if secretOf(again.issued.Secret) != secretOf(got.issued.Secret) {
				t.Error("the key answers another secret")
			}
			r.settled()
			r.sound()
		})
	}
}

// A repeated request for several never ends what it gave before.
func TestRepeatedBatchLeavesTheLivingAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	q := batch("aws", "aws")
	first := r.as("orch").issueAll("t1", q, "key").want(t, http.StatusCreated).several
	r.as("orch").revoke(first[1].ID).want(t, http.StatusOK)
	r.as("orch").issueAll("t1", q, "key").want(t, broker.CodeCredentialEnded)
	r.settled()
	if s := r.as("orch").get(first[0].ID).state; s.Status != client.Active {
		t.Errorf("the credential that nobody ended is %s (%s) after the request was repeated", s.Status, s.Cause)
	}
	r.wantAlive("what nobody ended", first[0].Secret, "t1", true)
	r.sound()
}

// A twin of a request for several that fails gets nothing that the failure takes back.
func TestTwinOfAFailingBatch(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	q := batch("aws", "pool", "none")
	held := r.front.on("AssumeRole", "none", fail, 1)
	first := async(func() reply { return r.as("orch").on(0).issueAll("t1", q, "key") })
	<-held.arrived
	eventually(t, "the others are minted", func() bool {
		return one[int](r, "SELECT count(*)::int FROM versions WHERE state = 'active'") == 2
	})
	var twin func() reply
	more(t, &r.replicas[1].store.waits, 1, func() {
		twin = async(func() reply { return r.as("orch").on(1).issueAll("t1", q, "key") })
	})
	held.letGo()
	first().want(t, broker.CodeUpstreamError)
	got := twin()
	r.settled()
	if got.status == http.StatusCreated {
		for _, c := range got.several {
			s := r.as("orch").get(c.ID).state
			if s.Status != client.Active {
				t.Errorf("the twin was answered 201 with %s of %s, which is %s (%s)", c.ID, c.Profile, s.Status, s.Cause)
			}
			if c.Provider == "aws" {
				r.wantAlive("what the twin was given of "+c.Profile, c.Secret, "t1", true)
			}
		}
	}
	r.sound()
}

// A key of a pool comes back when two versions of its credential end at once.
func TestPoolKeyOfTwoVersionsComesBack(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(r *rig, id string){
		"revoked when the keys were replaced": func(r *rig, id string) {
			for i := range keysOfPool {
				r.writeKey(i, "value-after-"+id)
			}
			r.as("orch").revoke(id)
		},
		"revoked, and then the keys were replaced": func(r *rig, id string) {
			r.as("orch").revoke(id)
			for i := range keysOfPool {
				r.writeKey(i, "value-after-"+id)
			}
			r.clock.advance(2 * time.Minute)
		},
		"task end": func(r *rig, _ string) { r.as("orch").endTask("t1") },
		"sweep": func(r *rig, _ string) {
			r.clock.advance(2 * ttl) // the sweepers were down for long: the overlap and the end are due at once
			r.settled()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			for range 5 {
				c := r.mustIssue(ask("pool", "t1"))
				r.as("orch").refresh(c.ID, 1).want(t, http.StatusCreated)
				end(r, c.ID)
				r.settled()
				if n := one[int](r, "SELECT count(*)::int FROM slots WHERE state <> 'available'"); n != 0 {
					t.Fatalf("%d keys are held by a credential that has ended", n)
				}
				r.exec("DELETE FROM tasks")
			}
			r.sound()
		})
	}
}

// Limits hold also when a refresh shares the commit.
func TestLimitBesideARefresh(t *testing.T) {
	t.Parallel()
	const most = 3
	r := newRig(t, func(c *broker.Config) {
		c.Limits = broker.Limits{PerTask: 100, PerAgent: 100, PerProfile: 100, PerCaller: most}
	})
	held := r.mustIssue(ask("none", "t0"))
	for range most - 1 {
		r.mustIssue(ask("none", "t0"))
	}
	// Both flushers of one replica wait, so that what comes next is collected into one commit.
	free := r.lock("SELECT FROM live_counts WHERE key = 'other' OR kind = 'caller' FOR UPDATE")
	var waits []func() reply
	for range 2 {
		waits = append(waits, async(func() reply { return r.as("orch").on(0).issue(ask("none", "t1")) }))
	}
	r.waitingForLock(2)
	var refreshed func() reply
	more(t, &r.replicas[0].store.intents, 11, func() {
		refreshed = async(func() reply { return r.as("orch").on(0).refresh(held.ID, 1) })
		for range 10 {
			waits = append(waits, async(func() reply { return r.as("orch").on(0).issue(ask("none", "t2")) }))
		}
	})
	free()
	refreshed().want(t, http.StatusCreated)
	for _, wait := range waits {
		wait().want(t, broker.CodeQuotaExceeded)
	}
	r.sound()
}

// A task's end ends all, however many there are and whatever the vendor does meanwhile.
func TestEndOfALargeTask(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *broker.Config) {
		c.Limits = broker.Limits{PerTask: 1000, PerAgent: 1000, PerProfile: 1000, PerCaller: 1000}
	})
	q := batch("none", "none", "none", "none", "none", "none", "none", "none", "none", "none", "none", "none", "none", "none", "none", "none")
	for range 17 { // 272 versions, more than are ended at a time
		r.as("orch").issueAll("t1", q).want(t, http.StatusCreated)
	}
	r.as("orch").endTask("t1")
	r.clock.advance(10 * time.Minute) // and any lease is over
	r.settled()
	if n := one[int](r, "SELECT count(*)::int FROM versions WHERE state = 'active'"); n != 0 {
		t.Errorf("%d versions of an ended task were never asked to end", n)
	}
}

// Every version that is stuck is shown as stuck, also one that a newer version has replaced.
func TestReplacedVersionThatIsStuckIsShown(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *broker.Config) { c.MaxAttempts = 1 })
	c := r.mustIssue(ask("aws", "t1", lasting(maxTTL)))
	r.as("orch").refresh(c.ID, 1).want(t, http.StatusCreated)
	r.front.on("PutRolePolicy", "", refuse, -1)
	r.clock.advance(overlap)
	r.settled()
	if n := one[int](r, "SELECT count(*)::int FROM versions WHERE state = 'stuck'"); n != 1 {
		t.Fatalf("%d versions are stuck", n)
	}
	stuck := client.Stuck
	if list := r.as("ops").find(client.ListCredentialsParams{Status: &stuck}).list; len(list) != 1 || list[0].Version != 1 {
		t.Errorf("status=stuck lists %d", len(list))
	}
	// And nothing more is said to be achieved than was.
	if got := r.as("orch").revoke(c.ID); got.status != http.StatusAccepted {
		t.Errorf("revoke answered %d (%s) while a version of it still works", got.status, got.state.Status)
	}
	if got := r.as("orch").endTask("t1"); got.status != http.StatusAccepted {
		t.Errorf("end answered %d while a version still works", got.status)
	}
}

// The task token of a request survives what its Idempotency-Key is for.
func TestRepeatedRequestBearsItsTaskToken(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for name, q := range map[string]client.IssueRequest{"inline": ask("aws", "t1", taskToken), "ticket": ask("aws", "t2", taskToken, ticket)} {
		first := r.mustIssue(q, name)
		again := r.mustIssue(q, name)
		if first.TaskToken == "" || again.TaskToken != first.TaskToken {
			t.Errorf("%s: the repeated request has not the same task token (has one: %v)", name, again.TaskToken != "")
		}
	}
	r.front.on("AssumeRole", "", refuse, 1)
	q := ask("aws", "t3", taskToken)
	r.as("orch").issue(q, "failed").want(t, broker.CodeUpstreamRefused)
	got := r.mustIssue(q, "failed")
	if got.TaskToken == "" {
		t.Error("after a failure: the repeated request has no task token")
	} else {
		r.by(got.TaskToken).resolve(got.ID).want(t, http.StatusOK)
	}
}

// Who asked for a ticket never gets the secret by asking for the ticket again.
func TestRepeatedTicketRequestNeverBearsTheSecret(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	q := ask("aws", "t1", ticket)
	first := r.mustIssue(q, "key")
	r.as("orch").redeem(first.Ticket.Value).want(t, http.StatusOK)
	if got := r.as("orch").issue(q, "key"); len(got.issued.Secret.Fields) > 0 {
		t.Errorf("after the redemption the key answers %d with the secret", got.status)
	}
	q = ask("aws", "t2", ticket)
	first = r.mustIssue(q, "key2")
	r.front.on("AssumeRole", "", refuse, 1)
	r.as("orch").redeem(first.Ticket.Value).want(t, broker.CodeUpstreamRefused)
	if got := r.as("orch").issue(q, "key2"); len(got.issued.Secret.Fields) > 0 {
		t.Errorf("after a redemption that failed the key answers %d with the secret", got.status)
	}
}
