package lifetest

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

func TestTaskToken(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mine := r.mustIssue(ask("aws", "t1", taskToken))
	second := r.mustIssue(ask("pool", "t1"))
	theirs := r.mustIssue(ask("aws", "t10"))
	foreign := r.as("other").issue(ask("aws", "t1")).want(t, http.StatusCreated).issued // the same id, another caller's task
	if !broker.WellFormed(broker.PrefixTask, mine.TaskToken) || second.TaskToken != "" {
		t.Fatal("a task token comes when asked for, and only then")
	}
	task := r.by(mine.TaskToken)

	task.resolve(mine.ID).want(t, http.StatusOK)
	task.resolve(second.ID).want(t, http.StatusOK)
	task.watch(mine.ID, 1, 0).want(t, http.StatusNotModified)
	if got := task.refresh(mine.ID, 1, "key").want(t, http.StatusCreated).issued; got.TaskToken != "" || got.Version != 2 {
		t.Errorf("refresh: version %d, a task token: %v", got.Version, got.TaskToken != "")
	}
	for _, id := range []string{theirs.ID, foreign.ID} {
		task.resolve(id).want(t, broker.CodeNotFound)
		task.refresh(id, 1).want(t, broker.CodeNotFound)
		task.watch(id, 0, 0).want(t, broker.CodeNotFound)
	}
	task.endTask("t10").want(t, broker.CodeNotFound)

	task.issue(ask("aws", "t1")).want(t, broker.CodeForbidden)
	task.issue(ask("aws", "t1", ticket)).want(t, broker.CodeForbidden)
	task.issueAll("t1", batch("aws")).want(t, broker.CodeForbidden)
	task.revoke(mine.ID).want(t, broker.CodeForbidden)
	task.history().want(t, broker.CodeForbidden)
	// It reads its own task, and nothing else: see openapi's TestATaskTokenReadsItsTask.
	list := task.find(client.ListCredentialsParams{}).want(t, http.StatusOK).list
	if len(list) == 0 || slices.ContainsFunc(list, func(c client.Credential) bool { return c.TaskID != "t1" || c.Caller != "orch" }) {
		t.Errorf("it lists %v", list)
	}
	task.get(mine.ID).want(t, http.StatusOK)
	task.get(theirs.ID).want(t, broker.CodeNotFound)
	task.get(foreign.ID).want(t, broker.CodeNotFound)
	task.lookTask("t1").want(t, http.StatusOK)
	task.lookTask("t10").want(t, broker.CodeNotFound)
	task.offers().want(t, http.StatusOK)
	if s := r.as("orch").get(theirs.ID).state.Status; s != client.Active {
		t.Errorf("another task's credential is %s", s)
	}

	task.endTask("t1").want(t, http.StatusOK)
	task.resolve(mine.ID).want(t, broker.CodeTokenRevoked)
	task.refresh(mine.ID, 1).want(t, broker.CodeTokenRevoked)
	task.watch(mine.ID, 0, 0).want(t, broker.CodeTokenRevoked)
	task.endTask("t1").want(t, broker.CodeTokenRevoked)
	r.wantAlive("its task ended itself", mine.Secret, "t1", false)
	if s := r.as("other").get(foreign.ID).state.Status; s != client.Active {
		t.Errorf("another caller's task of the same id: its credential is %s", s)
	}
	for _, e := range r.events("t1") {
		if e.Type == string(broker.EventResolved) && (e.Caller.Name != "orch" || e.Caller.Role != "agent") {
			t.Errorf("resolved by %+v", e.Caller)
		}
	}
	r.sound()
}

// A task token dies with the task above its task too, and at its own end.
func TestTaskTokenEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	child := r.mustIssue(ask("aws", "child", taskToken, under("parent")))
	r.as("orch").endTask("parent")
	r.by(child.TaskToken).resolve(child.ID).want(t, broker.CodeTokenRevoked)

	long := r.mustIssue(ask("aws", "t2", taskToken))
	r.clock.advance(maxLifetime - time.Minute)
	r.by(long.TaskToken).endTask("t3").want(t, broker.CodeNotFound)
	r.clock.advance(time.Minute)
	r.by(long.TaskToken).resolve(long.ID).want(t, broker.CodeTokenExpired)
	if n := one[int](r, "SELECT count(*)::int FROM task_tokens WHERE encode(sha256, 'escape') LIKE 'tpt_%'"); n != 0 {
		t.Error("a task token is kept as it is")
	}
	last := "x"
	if strings.HasSuffix(long.TaskToken, last) {
		last = "y"
	}
	r.by(long.TaskToken[:len(long.TaskToken)-1]+last).resolve(long.ID).want(t, broker.CodeUnauthenticated)
}

// The keys of a task's requests are not its orchestrator's.
func TestKeysOfATaskAreItsOwn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("aws", "t1", taskToken), "key")
	if got := r.by(c.TaskToken).refresh(c.ID, 1, "key").want(t, http.StatusCreated).issued; got.Version != 2 {
		t.Errorf("version %d", got.Version)
	}
	r.as("orch").refresh(c.ID, 2, "key").want(t, broker.CodeIdempotencyMismatch)
}
