package lifetest

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

func TestSeveralAreAllOrNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	got := r.as("orch").issueAll("t1", batch("aws", "pool", "none")).want(t, http.StatusCreated).several
	if len(got) != 3 {
		t.Fatalf("%d credentials", len(got))
	}
	for i, profile := range []string{"aws", "pool", "none"} {
		if got[i].Profile != profile || got[i].TaskID != "t1" || got[i].Status != client.Active || len(got[i].Secret.Fields) == 0 {
			t.Errorf("credential %d is %s of %s, %s", i, got[i].Profile, got[i].TaskID, got[i].Status)
		}
	}
	// The third fails at the vendor.
	r.front.on("AssumeRole", "none", refuse, 1)
	a := r.as("orch").issueAll("t2", batch("aws", "pool", "none")).want(t, broker.CodeUpstreamRefused)
	if !strings.Contains(a.problem.Detail, "credentials[2]") {
		t.Errorf("it does not say which: %s", a.problem.Detail)
	}
	if len(a.problem.Errors) == 0 || !strings.HasPrefix(a.problem.Errors[0].Pointer, "/credentials/2") {
		t.Errorf("no pointer says which: %+v", a.problem.Errors)
	}
	r.settled()
	for _, c := range r.as("orch").lookTask("t2").task.Credentials {
		if c.Status != client.Revoked && c.Status != client.Failed {
			t.Errorf("of a request that failed, the %s is %s", c.Profile, c.Status)
		}
	}
	for _, s := range r.vendor.Sessions() {
		if s.Role == "deny" && s.Name == one[string](r, "SELECT v.id FROM versions v JOIN credentials c ON c.id = credential_id WHERE task_id = 't2' AND profile = 'aws'") &&
			!strings.Contains(r.vendor.RolePolicies("deny")["taskpass-revoked"], s.Name) {
			t.Error("the session that was made is not denied upstream")
		}
	}
	if n := one[int](r, "SELECT count(*)::int FROM slots WHERE state = 'held'"); n != 1 {
		t.Errorf("%d keys are held, want the first task's", n)
	}
	// The third is refused by policy: nothing is asked at all.
	calls := r.front.calls("AssumeRole")
	q := batch("aws", "pool", "none")
	q.Credentials[2].Scopes = []string{"write"}
	a = r.as("orch").issueAll("t3", q).want(t, broker.CodeUnknownScope)
	if len(a.problem.Errors) != 1 || a.problem.Errors[0].Pointer != "/credentials/2/scopes/0" {
		t.Errorf("pointers %+v", a.problem.Errors)
	}
	q = batch("aws", "pool", "nothing")
	a = r.as("orch").issueAll("t3", q).want(t, broker.CodeUnknownProfile)
	if len(a.problem.Errors) != 1 || a.problem.Errors[0].Pointer != "/credentials/2/profile" {
		t.Errorf("pointers %+v", a.problem.Errors)
	}
	if n := r.front.calls("AssumeRole") - calls; n != 0 {
		t.Errorf("the vendor was asked %d times", n)
	}
	r.sound()
}

// What the first two got stops working, at the vendor, when the third's reply is lost.
func TestSeveralWithALostReply(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.front.on("AssumeRole", "none", lose, 1)
	if got := r.as("orch").issueAll("t1", batch("aws", "aws", "none")); got.status == http.StatusCreated {
		t.Fatal("answered 201")
	}
	r.settled()
	policy := r.vendor.RolePolicies("deny")["taskpass-revoked"]
	for _, s := range r.vendor.Sessions() {
		if s.Role == "deny" && !strings.Contains(policy, s.Name) {
			t.Errorf("session %s is not denied", s.Name)
		}
	}
	if s := one[string](r, "SELECT v.state || ' ' || v.result FROM versions v JOIN credentials c ON c.id = credential_id WHERE profile = 'none'"); s != "revoking expires" {
		t.Errorf("what was lost and cannot be revoked is %s", s)
	}
	r.clock.advance(ttl + time.Second)
	r.settled()
	if n := one[int](r, "SELECT count(*)::int FROM versions WHERE due_at IS NOT NULL"); n != 0 {
		t.Errorf("%d versions outlive their upper bound", n)
	}
	r.sound()
}

func TestTaskEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	orch := r.as("orch")
	first := r.mustIssue(ask("aws", "t1"))
	second := orch.refresh(first.ID, 1).want(t, http.StatusCreated).issued // overlapping
	r.mustIssue(ask("pool", "t1"))
	r.mustIssue(ask("none", "t1"))
	waiting := r.mustIssue(ask("aws", "t1", ticket))
	bystander := r.mustIssue(ask("aws", "t11"))
	look := orch.lookTask("t1").want(t, http.StatusOK).task
	if look.Status != client.Open || len(look.Credentials) != 4 || look.TaskID != "t1" {
		t.Errorf("the task is %s with %d credentials", look.Status, len(look.Credentials))
	}
	r.as("other").lookTask("t1").want(t, broker.CodeNotFound)
	r.as("aud").lookTask("t1").want(t, http.StatusOK)
	r.as("aud").endTask("t1").want(t, broker.CodeForbidden)

	end := orch.endTask("t1").want(t, http.StatusOK).task
	if end.Status != client.Ended || end.Outcome != "done" || end.EndedAt.IsZero() {
		t.Errorf("ended: %s %q %s", end.Status, end.Outcome, end.EndedAt)
	}
	r.wantAlive("the current version", second.Secret, "t1", false)
	r.wantAlive("the overlapping version", first.Secret, "t1", false)
	r.wantAlive("another task's", bystander.Secret, "t11", true)
	orch.redeem(waiting.Ticket.Value).want(t, broker.CodeCredentialEnded)
	events := len(r.events("t1"))
	again := orch.endTask("t1").want(t, http.StatusOK).task
	if !again.EndedAt.Equal(end.EndedAt) || len(r.events("t1")) != events {
		t.Errorf("ending again changed the end or wrote %d events", len(r.events("t1"))-events)
	}
	if n := r.countEvents("t1", broker.EventTaskEnded); n != 1 {
		t.Errorf("%d task.ended", n)
	}
	for _, got := range []reply{
		orch.issue(ask("aws", "t1")), orch.issue(ask("pool", "t1", ticket), "key"), orch.issueAll("t1", batch("aws", "pool")),
	} {
		got.want(t, broker.CodeTaskEnded)
	}
	orch.refresh(first.ID, 0).want(t, broker.CodeCredentialEnded)
	// The same id is another caller's own.
	r.as("other").issue(ask("aws", "t1")).want(t, http.StatusCreated)
	if n := one[int](r, "SELECT count(*)::int FROM slots WHERE state = 'held'"); n != 0 {
		t.Errorf("%d keys are held", n)
	}
	r.sound()
}

// A task may be ended before anything is issued for it; then nothing ever is.
func TestEndOfAnUnknownTask(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.as("ops").endTask("t1").want(t, broker.CodeNotFound)
	r.as("orch").lookTask("t1").want(t, broker.CodeNotFound)
	r.as("orch").endTask("t1").want(t, http.StatusOK)
	r.as("orch").issue(ask("aws", "t1")).want(t, broker.CodeTaskEnded)
	r.as("orch").issue(ask("aws", "t1", under("t0"))).want(t, broker.CodeTaskEnded)
}

func TestChildTasks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	orch := r.as("orch")
	parent := r.mustIssue(ask("aws", "parent"))
	child := r.mustIssue(ask("aws", "child", under("parent")))
	grandchild := r.mustIssue(ask("pool", "grandchild", under("child")))
	great := r.mustIssue(ask("aws", "great", under("grandchild")))
	stranger := r.mustIssue(ask("aws", "stranger"))
	orch.issue(ask("aws", "child", under("stranger"))).want(t, broker.CodeConflict)
	orch.issue(ask("aws", "child", under("child"))).want(t, broker.CodeInvalidRequest)
	orch.issue(ask("aws", "child")).want(t, http.StatusCreated) // it keeps its parent
	if got := orch.lookTask("child").task; got.ParentTaskID != "parent" {
		t.Errorf("the child's parent is %q", got.ParentTaskID)
	}
	// A child's end leaves its parent alone.
	orch.endTask("great").want(t, http.StatusOK)
	r.wantAlive("an ended task's", great.Secret, "great", false)
	r.wantAlive("one above it", child.Secret, "child", true)

	orch.endTask("parent").want(t, http.StatusOK)
	r.wantAlive("the parent's", parent.Secret, "parent", false)
	r.wantAlive("the child's", child.Secret, "child", false)
	r.wantAlive("a stranger's", stranger.Secret, "stranger", true)
	if s := orch.get(grandchild.ID).state; s.Status != client.Revoked || s.Cause != "task_ended" {
		t.Errorf("the grandchild's is %s (%s)", s.Status, s.Cause)
	}
	for _, task := range []string{"child", "grandchild"} {
		if got := orch.lookTask(task).task; got.Status != client.Ended {
			t.Errorf("%s is %s", task, got.Status)
		}
		if n := r.countEvents(task, broker.EventTaskEnded); n != 1 {
			t.Errorf("%d task.ended of %s", n, task)
		}
		orch.issue(ask("aws", task)).want(t, broker.CodeTaskEnded)
	}
	orch.issue(ask("aws", "new", under("parent"))).want(t, broker.CodeTaskEnded)
	orch.issue(ask("aws", "newer", under("grandchild"))).want(t, broker.CodeTaskEnded)
	orch.issue(ask("aws", "newest", under("new"))).want(t, broker.CodeTaskEnded)
	// Another caller's tasks of these names are not related to ours.
	r.as("other").issue(ask("aws", "child", under("stranger"))).want(t, http.StatusCreated)
	r.sound()
}

// An issuance that hangs at the vendor while its task ends comes to nothing, and what it minted is denied.
func TestTaskEndsWhileAnIssuanceHangs(t *testing.T) {
	t.Parallel()
	for _, profile := range []string{"aws", "strict"} {
		r := newRig(t)
		held := r.front.on("AssumeRole", "", late, 1)
		q := ask(profile, "child", under("t1"))
		var issuing func() reply
		if profile == "strict" {
			q = ask(profile, "child", under("t1"), ticket)
			value := r.mustIssue(q).Ticket.Value
			issuing = async(func() reply { return r.as("orch").on(0).redeem(value) })
		} else {
			issuing = async(func() reply { return r.as("orch").on(0).issue(q, "key") })
		}
		<-held.arrived
		got := r.as("orch").on(1).endTask("t1")
		if got.status != http.StatusOK && got.status != http.StatusAccepted {
			t.Fatalf("end answered %d %s", got.status, got.code)
		}
		held.letGo()
		issuing().want(t, broker.CodeCredentialEnded)
		r.settled()
		sessions := r.vendor.Sessions()
		if len(sessions) != 1 || !strings.Contains(r.vendor.RolePolicies("deny")["taskpass-revoked"], sessions[0].Name) {
			t.Errorf("%d sessions; denied: %s", len(sessions), r.vendor.RolePolicies("deny")["taskpass-revoked"])
		}
		if got := r.as("orch").issue(q, "key"); got.code != broker.CodeTaskEnded && got.code != broker.CodeCredentialEnded {
			t.Errorf("a retry after the end answers %d %s", got.status, got.code)
		}
		r.sound()
	}
}

func TestWhoEndsATask(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mine, theirs := r.mustIssue(ask("aws", "t1")), r.as("other").issue(ask("aws", "t1")).issued
	r.as("orch").endTask("t1").want(t, http.StatusOK)
	r.wantAlive("mine", mine.Secret, "t1", false)
	r.wantAlive("another caller's of the same task id", theirs.Secret, "t1", true)
	r.as("ops").endTask("t1").want(t, broker.CodeConflict) // of which caller?
	r.wantAlive("nobody said whose", theirs.Secret, "t1", true)
	r.as("ops").endTaskOf("other", "t1").want(t, http.StatusOK)
	r.wantAlive("after the operator's end", theirs.Secret, "t1", false)
	for _, e := range r.events("t1") {
		if e.Type == string(broker.EventTaskEnded) && e.Caller.Name != "orch" && e.Caller.Name != "ops" {
			t.Errorf("ended by %s", e.Caller.Name)
		}
	}
	r.sound()
}

// An end that cannot be carried out now is durable, is answered with 202, and is carried out later.
func TestTaskEndWithADeadVendor(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("aws", "t1"))
	r.front.on("PutRolePolicy", "", throttle, 1)
	r.as("orch").endTask("t1").want(t, http.StatusAccepted)
	r.as("orch").endTask("t1").want(t, http.StatusAccepted)
	r.clock.advance(time.Minute)
	r.settled()
	r.as("orch").endTask("t1").want(t, http.StatusOK)
	r.wantAlive("it", c.Secret, "t1", false)
	r.sound()
}

// A request that is refused because its parent has ended leaves the task as it was.
func TestRefusedChildIsLeftAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("aws", "child", taskToken))
	waiting := r.mustIssue(ask("aws", "child", ticket))
	r.as("orch").endTask("parent").want(t, http.StatusOK)
	r.as("orch").issue(ask("aws", "child", under("parent"))).want(t, broker.CodeTaskEnded)
	if got := r.as("orch").lookTask("child").task; got.ParentTaskID != "" || got.Status != client.Open {
		t.Errorf("a refused request put the task under %q; it is %s", got.ParentTaskID, got.Status)
	}
	r.by(c.TaskToken).resolve(c.ID).want(t, http.StatusOK)
	r.as("orch").refresh(c.ID, 1).want(t, http.StatusCreated)
	r.as("orch").redeem(waiting.Ticket.Value).want(t, http.StatusOK)
	r.mustIssue(ask("aws", "child"))
	r.sound()
}
