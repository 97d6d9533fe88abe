package lifetest

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

// due is in how long the version of a credential is due, and how often it was tried.
func (r *rig) due(id string) (in time.Duration, attempts int, state string) {
	r.t.Helper()
	var at time.Time
	if err := r.admin.QueryRow(context.Background(),
		"SELECT COALESCE(due_at, 'epoch'), attempts, state FROM versions WHERE credential_id = $1 ORDER BY number DESC LIMIT 1", id).
		Scan(&at, &attempts, &state); err != nil {
		r.t.Fatal(err)
	}
	return at.Sub(r.clock.Now()), attempts, state
}

// Pauses double, jittered by half; after the bounded attempts it is stuck, which shows everywhere, and is retried slowly.
func TestBackoffAndStuck(t *testing.T) {
	t.Parallel()
	const backoff, most = 10 * time.Second, 4
	r := newRig(t, func(c *broker.Config) { c.Backoff, c.MaxAttempts = backoff, most })
	c := r.mustIssue(ask("aws", "t1", lasting(maxTTL)))
	r.front.on("PutRolePolicy", "", throttle, -1)
	r.as("orch").revoke(c.ID).want(t, http.StatusAccepted)
	for n := 1; n < most; n++ {
		in, attempts, state := r.due(c.ID)
		base := backoff << (n - 1)
		if attempts != n || state != "revoking" || in < base/2 || in > base*3/2 {
			t.Errorf("after attempt %d (%d on record): %s, again in %s, want %s ± half", n, attempts, state, in, base)
		}
		if s := r.as("orch").get(c.ID).state; s.Revocation.LastError != "upstream_throttled" || s.Revocation.Result != "" {
			t.Errorf("it shows result %q, last error %q", s.Revocation.Result, s.Revocation.LastError)
		}
		r.clock.advance(in - time.Millisecond)
		r.sweep() // the upkeep of the role's policies may try on its own account
		if left, attempts, _ := r.due(c.ID); attempts != n || left != time.Millisecond {
			t.Error("it was tried before its time")
		}
		r.clock.advance(time.Millisecond)
		r.sweep()
	}
	in, attempts, state := r.due(c.ID)
	if state != "stuck" || attempts != most {
		t.Fatalf("after %d attempts it is %s", attempts, state)
	}
	if in > 30*time.Minute {
		t.Errorf("a stuck version is tried again in %s", in)
	}
	stuck := client.Stuck
	if list := r.as("ops").find(client.ListCredentialsParams{Status: &stuck}).list; len(list) != 1 || list[0].ID != c.ID {
		t.Errorf("status=stuck lists %d", len(list))
	}
	for _, p := range r.replicas {
		response, err := r.http.Get(p.url + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if !strings.Contains(string(text), `taskpass_versions_in_trouble{provider="aws",state="stuck"} 1`) {
			t.Error("no metric shows it")
		}
	}
	if n := r.countEvents("t1", broker.EventStuck); n != 1 {
		t.Errorf("%d credential.stuck", n)
	}
	r.sound()
	r.front.heal()
	r.clock.advance(in)
	r.sweep()
	if s := r.as("orch").get(c.ID).state; s.Status != client.Revoked && s.Status != client.Expired {
		t.Errorf("after the vendor recovered it is %s", s.Status)
	}
	r.sound()
}

// What the vendor ends by itself is not shown as stuck for long after it has ended.
func TestStuckUntilItsEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *broker.Config) { c.MaxAttempts = 1 })
	c := r.mustIssue(ask("aws", "t1"))
	r.front.on("PutRolePolicy", "", throttle, -1)
	r.as("orch").revoke(c.ID).want(t, http.StatusAccepted)
	r.clock.advance(ttl + time.Minute)
	r.settled()
	if s := r.as("orch").get(c.ID).state; s.Status != client.Expired {
		t.Errorf("a minute after its own end it is %s, and an alarm", s.Status)
	}
}

// A vendor that hangs delays nobody else's work.
func TestSweepIsFair(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for range 20 { // more than are worked on at once
		c := r.mustIssue(ask("aws", "t1"))
		r.as("orch").refresh(c.ID, 1).want(t, http.StatusCreated)
	}
	var keys []string
	for range keysOfPool {
		keys = append(keys, r.mustIssue(ask("pool", "t2", lasting(time.Minute))).ID)
	}
	hung := r.front.on("PutRolePolicy", "", hold, -1)
	r.clock.advance(overlap) // aws has 20 overlaps to end, and all keys are due back
	stop := r.run()
	<-hung.arrived
	eventually(t, "the keys are back", func() bool {
		return one[int](r, "SELECT count(*)::int FROM slots WHERE state = 'available'") == len(keys)
	})
	if n := one[int](r, "SELECT count(*)::int FROM versions v JOIN credentials c ON c.id = v.credential_id WHERE c.profile = 'aws' AND v.state = 'revoked'"); n != 0 {
		t.Errorf("%d overlaps ended before the vendor answered", n)
	}
	hung.letGo()
	stop()
}

// Two replicas sweep at once: each piece of work is done once.
func TestTwoSweepersNeverDoTheSame(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const n = 60
	for i := range n {
		r.mustIssue(ask("none", "t1", lasting(time.Minute+time.Duration(i%3)*time.Second), ticketIf(i%2 == 0)))
	}
	r.clock.advance(ttl)
	together(8, func(i int) {
		if err := r.replicas[i%2].broker.Sweep(context.Background()); err != nil {
			t.Error(err)
		}
	})
	r.settled()
	if done := r.countEvents("t1", broker.EventExpired) + r.countEvents("t1", broker.EventTicketExpired); done != n {
		t.Errorf("%d ends on record for %d versions", done, n)
	}
	if left := one[int](r, "SELECT count(*)::int FROM versions WHERE due_at IS NOT NULL"); left != 0 {
		t.Errorf("%d are left", left)
	}
	r.sound()
}

func ticketIf(yes bool) func(*client.IssueRequest) {
	if yes {
		return ticket
	}
	return func(*client.IssueRequest) {}
}

// Work that a replica took and did not finish comes back with its lease's end, and not before.
func TestLeaseOfADeadReplica(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("aws", "t1"))
	r.as("orch").refresh(c.ID, 1).want(t, http.StatusCreated)
	r.clock.advance(overlap)
	const lease = 2 * time.Minute
	taken, err := r.replicas[0].store.Claim(t.Context(), "aws", r.clock.Now(), lease, 10) // and then the process dies
	if err != nil || len(taken) != 1 {
		t.Fatalf("claimed %d: %v", len(taken), err)
	}
	r.clock.advance(lease - time.Second)
	r.settled()
	r.wantAlive("leased", c.Secret, "t1", true)
	r.clock.advance(time.Second)
	r.settled()
	r.wantAlive("after the lease", c.Secret, "t1", false)
	r.sound()
}

// An intent whose process died is lost, is revoked, and a repeated request goes on with the same credential.
func TestAbandonedIntent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.mustIssue(ask("aws", "t1"), "key")
	r.mustIssue(ask("none", "t2"))
	// As if the process had died between the vendor's reply and the outcome.
	r.exec(`ALTER TABLE versions DISABLE TRIGGER versions_diagram;
		UPDATE versions SET state = 'issuing', sealed = NULL, fingerprint = NULL, trace = '{}', upstream_ids = '{}', due_at = issued_at + interval '6 seconds';
		ALTER TABLE versions ENABLE TRIGGER versions_diagram`)
	r.clock.advance(7 * time.Second)
	again := r.mustIssue(ask("aws", "t1"), "key")
	if again.Version != 2 {
		t.Errorf("the key answers version %d", again.Version)
	}
	r.settled()
	if s := one[string](r, "SELECT string_agg(state || ' ' || cause || ' ' || result, ', ' ORDER BY issued_at, state) FROM versions WHERE number = 1"); s != "revoked abandoned denied, revoking abandoned expires" &&
		s != "revoking abandoned expires, revoked abandoned denied" {
		t.Errorf("the abandoned are %s", s)
	}
	r.wantAlive("the next one", again.Secret, "t1", true)
	r.clock.advance(ttl)
	r.settled()
	if n := one[int](r, "SELECT count(*)::int FROM versions WHERE due_at IS NOT NULL"); n != 0 {
		t.Errorf("%d outlive their upper bound", n)
	}
}
