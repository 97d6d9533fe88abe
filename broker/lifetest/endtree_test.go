package lifetest

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/taskpass/taskpass/openapi/client"
)

// pendingOf is what an answer says of a task's end.
func pendingOf(t client.Task) int64 {
	if t.Pending == nil {
		return -1
	}
	return *t.Pending
}

// The end of a task is achieved when that of every task below it is: whatever the task itself holds.
func TestEndAnswersForTheWholeTree(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	orch := r.as("orch")
	r.mustIssue(ask("aws", "child", under("parent")))
	r.mustIssue(ask("aws", "grandchild", under("child")))
	r.mustIssue(ask("none", "grandchild", under("child"))) // nothing can end it before its time
	if n := pendingOf(orch.lookTask("child").want(t, http.StatusOK).task); n != -1 {
		t.Errorf("an open task has %d pending", n)
	}
	r.front.on("PutRolePolicy", "", throttle, 2)
	for range 2 {
		end := orch.endTask("parent").want(t, http.StatusAccepted).task
		if pendingOf(end) != 2 || len(end.Credentials) != 0 || end.HasMore {
			t.Errorf("%d pending, %d credentials, more: %v", pendingOf(end), len(end.Credentials), end.HasMore)
		}
	}
	if n := pendingOf(orch.lookTask("grandchild").want(t, http.StatusOK).task); n != 1 {
		t.Errorf("the grandchild has %d pending", n)
	}
	r.clock.advance(time.Minute)
	r.settled()
	end := orch.endTask("parent").want(t, http.StatusOK).task
	if pendingOf(end) != 0 {
		t.Errorf("200 with %d pending", pendingOf(end))
	}
	r.sound()
}

// One session that still works, older than a full page of credentials that have ended.
func TestEndLooksBeyondTheFirstPage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("aws", "t1"))
	const ended = 500
	r.exec(`INSERT INTO credentials (id, caller, task_id, agent_id, profile, provider, requested, scopes, metadata, ttl_ms, created_at)
		SELECT 'crd_v' || lpad(i::text, 25, '0'), 'orch', 't1', 'agent-1', 'pool', 'pool', '{read}', '{read}', '{}', 60000, now()
		FROM generate_series(1, $1::int) i`, ended)
	r.exec(`INSERT INTO versions (id, credential_id, number, provider, state, issued_at, expires_at, self_expires, upstream, cause, ended_at)
		SELECT translate(right(id, 16), '0123456789', 'abcdefghij'), id, 1, 'pool', 'expired', now(), now() + interval '1 minute', true,
			'pool', 'expired', now() FROM credentials WHERE id LIKE 'crd_v%'`)
	look := r.as("orch").lookTask("t1").want(t, http.StatusOK).task
	if len(look.Credentials) != 500 || !look.HasMore {
		t.Errorf("%d credentials, more: %v", len(look.Credentials), look.HasMore)
	}
	r.front.on("PutRolePolicy", "", throttle, 1)
	end := r.as("orch").endTask("t1").want(t, http.StatusAccepted).task
	if pendingOf(end) != 1 || !end.HasMore {
		t.Errorf("%d pending, more: %v", pendingOf(end), end.HasMore)
	}
	r.clock.advance(time.Minute)
	r.settled()
	r.as("orch").endTask("t1").want(t, http.StatusOK)
	r.wantAlive("the oldest", c.Secret, "t1", false)
	r.exec("DELETE FROM versions WHERE credential_id = 'crd_v' || lpad('1', 25, '0')")
	r.exec("DELETE FROM credentials WHERE id = 'crd_v' || lpad('1', 25, '0')")
	if look := r.as("orch").lookTask("t1").want(t, http.StatusOK).task; len(look.Credentials) != 500 || look.HasMore {
		t.Errorf("of exactly one page: %d credentials, more: %v", len(look.Credentials), look.HasMore)
	}
}

// However many callers use a task id, an operator reaches the task of each.
func TestOperatorEndsTheTaskOfAnyCaller(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const callers = 103
	r.exec(`INSERT INTO credentials (id, caller, task_id, agent_id, profile, provider, requested, scopes, metadata, ttl_ms, created_at)
		SELECT 'crd_v' || lpad(i::text, 25, '0'), 'caller-' || i, 't1', 'agent-1', 'pool', 'pool', '{read}', '{read}', '{}', 60000, now()
		FROM generate_series(1, $1::int) i`, callers)
	for i := range callers {
		r.as("ops").endTaskOf(fmt.Sprintf("caller-%d", i+1), "t1").want(t, http.StatusOK)
	}
	if n := one[int](r, "SELECT count(*)::int FROM tasks WHERE id = 't1' AND ended_at IS NOT NULL"); n != callers {
		t.Errorf("%d of %d callers' tasks have ended", n, callers)
	}
}

// A revocation is achieved when that of each version is: there may be nothing left to do for the current one while
// another works.
func TestRevocationAnswersForEveryVersion(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("aws", "t1"))
	r.as("orch").refresh(c.ID, 1).want(t, http.StatusCreated)
	r.front.on("PutRolePolicy", "", throttle, 2)
	r.as("orch").revoke(c.ID).want(t, http.StatusAccepted)
	// As a provider would answer that can end some versions early and others not: the current one dies at its time only.
	r.exec("UPDATE versions SET result = 'expires', effective_at = expires_at WHERE credential_id = $1 AND number = 2", c.ID)
	r.as("orch").revoke(c.ID).want(t, http.StatusAccepted)
	r.exec("UPDATE versions SET result = 'expires', effective_at = expires_at WHERE credential_id = $1", c.ID)
	r.as("orch").revoke(c.ID).want(t, http.StatusOK)
}
