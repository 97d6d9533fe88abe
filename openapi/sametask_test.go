package openapi_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi"
)

func (a *api) task(as, path string) openapi.Task {
	a.t.Helper()
	got := a.call(as, "GET", path, "")
	if got.status != http.StatusOK {
		a.t.Fatalf("%s: %d: %s", path, got.status, got.body)
	}
	var task openapi.Task
	strict(a.t, got.body, &task)
	return task
}

// Two callers use one task id for tasks of their own: nobody is shown, or ends, both as one.
func TestTheSameTaskOfTwoCallers(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	mine := a.issue("t").ID
	theirs := a.issued(a.call("other", "POST", "/v1/credentials", request("aws", "t", `"read"`))).ID

	for _, as := range []string{"aud", "ops"} {
		p := a.want(a.call(as, "GET", "/v1/tasks/t", ""), broker.CodeConflict)
		if !strings.Contains(p.Detail, "?caller=") || !strings.Contains(p.Detail, "orch, other") || p.Errors[0].Pointer != "/query/caller" {
			t.Errorf("%s: %+v", as, p)
		}
		for owner, id := range map[string]string{"orch": mine, "other": theirs} {
			if task := a.task(as, "/v1/tasks/t?caller="+owner); task.Caller != owner || len(task.Credentials) != 1 || task.Credentials[0].ID != id || task.Credentials[0].Caller != owner {
				t.Errorf("%s, of %s: %+v", as, owner, task)
			}
			if page := a.list(as, "task_id=t&caller="+owner); len(page.Credentials) != 1 || page.Credentials[0].ID != id {
				t.Errorf("%s lists of %s: %+v", as, owner, page)
			}
		}
		a.want(a.call(as, "GET", "/v1/tasks/t?caller=nobody", ""), broker.CodeNotFound)
	}
	// Who sees its own only needs no caller, learns of no other, and cannot name one.
	if task := a.task("orch", "/v1/tasks/t"); task.Caller != "orch" || len(task.Credentials) != 1 {
		t.Errorf("%+v", task)
	}
	a.task("orch", "/v1/tasks/t?caller=orch")
	a.want(a.call("orch", "GET", "/v1/tasks/t?caller=other", ""), broker.CodeNotFound)
	a.want(a.call("orch", "POST", "/v1/tasks/t/end?caller=other", "{}"), broker.CodeNotFound)
	if page := a.list("orch", "task_id=t&caller=other"); len(page.Credentials) != 0 {
		t.Errorf("another's credentials: %+v", page)
	}

	// An operator's end ends nothing until it says whose, and then one.
	a.want(a.call("ops", "POST", "/v1/tasks/t/end", "{}"), broker.CodeConflict)
	for _, owner := range []string{"orch", "other"} {
		if task := a.task("ops", "/v1/tasks/t?caller="+owner); task.Status != openapi.Open {
			t.Errorf("%s's task ended by a refused call", owner)
		}
	}
	if got := a.call("ops", "POST", "/v1/tasks/t/end?caller=other", `{"outcome":"stopped"}`); got.status != http.StatusOK || !strings.Contains(got.body, `"caller":"other"`) {
		t.Errorf("%d: %s", got.status, got.body)
	}
	if mine, other := a.task("aud", "/v1/tasks/t?caller=orch"), a.task("aud", "/v1/tasks/t?caller=other"); mine.Status != openapi.Open || mine.Credentials[0].Status != "active" ||
		other.Status != openapi.Ended || other.Credentials[0].Status != "revoked" {
		t.Errorf("after the end of other's: %+v and %+v", mine, other)
	}
	ended := a.audit("type=task.ended").Events
	if len(ended) != 1 || ended[0].Caller.Name != "ops" || ended[0].Trace["task_caller"] != "other" {
		t.Errorf("the record does not say whose task it was: %+v", ended)
	}
}

// A task's own token reads its task, that task's credentials and what its caller may ask for on its behalf: no other
// task, no other caller's task of the same id, and no secret.
func TestATaskTokenReadsItsTask(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	with := func(as, task string) openapi.IssuedCredential {
		return a.issued(a.call(as, "POST", "/v1/credentials", strings.Replace(request("aws", task, `"read"`), "{", `{"task_token":true,`, 1)))
	}
	first, other := with("orch", "t"), with("orch", "u")
	same := with("other", "t")
	a.tokens["agent"], a.tokens["theirs"] = first.TaskToken, same.TaskToken

	got := a.call("agent", "GET", "/v1/tasks/t", "")
	if got.status != http.StatusOK || strings.Contains(got.body, first.Secret.Fields["secret_access_key"]) || strings.Contains(got.body, "tpt_") {
		t.Fatalf("%d: %s", got.status, got.body)
	}
	if task := a.task("agent", "/v1/tasks/t?caller=orch"); task.Caller != "orch" || len(task.Credentials) != 1 || task.Credentials[0].ID != first.ID {
		t.Errorf("%+v", task)
	}
	if task := a.task("theirs", "/v1/tasks/t"); task.Caller != "other" || len(task.Credentials) != 1 || task.Credentials[0].ID != same.ID {
		t.Errorf("%+v", task)
	}
	for _, path := range []string{"/v1/tasks/u", "/v1/tasks/none", "/v1/tasks/t?caller=other", "/v1/credentials/" + other.ID, "/v1/credentials/" + same.ID} {
		a.want(a.call("agent", "GET", path, ""), broker.CodeNotFound)
	}
	if got := a.call("agent", "GET", "/v1/credentials/"+first.ID, ""); got.status != http.StatusOK || strings.Contains(got.body, first.Secret.Fields["session_token"]) {
		t.Errorf("its own credential: %d: %s", got.status, got.body)
	}
	for query, want := range map[string]int{"limit=10": 1, "task_id=t": 1, "task_id=u": 0, "caller=other": 0, "caller=orch": 1} {
		if page := a.list("agent", query); len(page.Credentials) != want {
			t.Errorf("%s: %+v", query, page.Credentials)
		}
	}
	for as, want := range map[string]string{"agent": "aws pool", "theirs": "aws pool theirs"} { // narrow is for tasks research-*
		var list openapi.ProfileList
		strict(t, a.call(as, "GET", "/v1/profiles", "").body, &list)
		var names []string
		for _, p := range list.Profiles {
			names = append(names, p.Name)
		}
		if strings.Join(names, " ") != want {
			t.Errorf("%s sees %q, want %q", as, names, want)
		}
	}
	for _, call := range [][2]string{{"POST", "/v1/credentials/" + first.ID + "/revoke"}, {"GET", "/v1/audit/events"}} {
		a.want(a.call("agent", call[0], call[1], map[string]string{"POST": "{}"}[call[0]]), broker.CodeForbidden)
	}
}
