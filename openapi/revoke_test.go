package openapi_test

import (
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/providertest"
	sandboxaws "github.com/taskpass/taskpass/providers/sandbox/aws"
)

func TestRevoke(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for what, text := range map[string]string{"no body": "", "empty object": "{}", "reason": `{"reason":"over ü \u2028"}`} {
		id := a.issue("t").ID
		path := "/v1/credentials/" + id + "/revoke"
		got := a.call("orch", "POST", path, text)
		c := a.credential(got, http.StatusOK)
		if c.Status != "revoked" || c.Cause != "revoked" || c.Revocation.Result != "denied" || c.Revocation.Basis == "" || c.EndedAt.IsZero() {
			t.Errorf("%s: %+v", what, c)
		}
		// The vendor may obey late, and the answer says until when.
		if lag := c.Revocation.EffectiveAt.Sub(c.EndedAt); lag < 30*time.Second || lag > 31*time.Second {
			t.Errorf("%s: effective %s after", what, lag)
		}
		if want := map[bool]string{true: "over ü \u2028"}[what == "reason"]; c.Reason != want {
			t.Errorf("%s: reason %q", what, c.Reason)
		}
		// Idempotent: the same answer, and nothing more on the record.
		again := a.credential(a.call("ops", "POST", path, `{"reason":"other"}`), http.StatusOK)
		if diff := cmp.Diff(c, again); diff != "" {
			t.Errorf("%s, again: %s", what, diff)
		}
		if diff := cmp.Diff(c, a.credential(a.call("orch", "GET", "/v1/credentials/"+id, ""), http.StatusOK)); diff != "" {
			t.Errorf("%s: answered (-) and read (+): %s", what, diff)
		}
		if n := len(a.audit("credential_id=" + id).Events); n != 4 {
			t.Errorf("%s: %d events", what, n)
		}
	}
}

func TestRevokeRefuses(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for what, text := range map[string]string{
		"unknown field": `{"reasons":"x"}`, "type": `{"reason":5}`, "long": `{"reason":"` + strings.Repeat("x", 513) + `"}`, "broken": `{"reason":`,
		"garbage": `{} x`, "list": `[]`, "NUL": `{"reason":"a\u0000b"}`, "null": `{"reason":null}`,
	} {
		id := a.issue("t").ID
		got := a.call("orch", "POST", "/v1/credentials/"+id+"/revoke", text)
		if p, wrong := wellFormed(got); len(wrong) > 0 || p.Code != "invalid_request" {
			t.Errorf("%s: %d %.200s %v", what, got.status, got.body, wrong)
		}
		if c := a.credential(a.call("orch", "GET", "/v1/credentials/"+id, ""), http.StatusOK); c.Status != "active" {
			t.Errorf("%s: it is %s after a request that was refused", what, c.Status)
		}
	}
	a.want(a.call("orch", "POST", "/v1/credentials/"+string(broker.NewCredentialID())+"/revoke", ""), broker.CodeNotFound)
}

// 202: durable, and still being achieved.
func TestRevokeWhileAWSIsDown(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	id := a.issue("t").ID
	a.sandbox.AWS.Inject(sandboxaws.Fault{Action: "PutRolePolicy", Kind: sandboxaws.ServerError, Times: -1})
	path := "/v1/credentials/" + id + "/revoke"
	c := a.credential(a.call("orch", "POST", path, ""), http.StatusAccepted)
	if c.Status != "revoking" || c.Revocation.Result != "" || c.Revocation.LastError != "upstream_error" || !c.EndedAt.IsZero() {
		t.Errorf("answered %+v", c)
	}
	again := a.credential(a.call("orch", "POST", path, ""), http.StatusAccepted)
	if diff := cmp.Diff(c, again); diff != "" {
		t.Errorf("again: %s", diff)
	}
	a.sandbox.AWS.ClearFaults()
	a.clock.Advance(time.Minute)
	a.sweep()
	if c = a.credential(a.call("orch", "POST", path, ""), http.StatusOK); c.Status != "revoked" || c.Revocation.Result != "denied" || c.Revocation.LastError != "" {
		t.Errorf("in the end: %+v", c)
	}
	if policy := a.sandbox.AWS.RolePolicies("taskpass-demo")["taskpass-revoked"]; !strings.Contains(policy, a.versionID(id)) {
		t.Errorf("the role's policy does not name it: %s", policy)
	}
}

func (a *api) versionID(credential string) string {
	a.t.Helper()
	var id string
	if err := a.store.Pool().QueryRow(a.t.Context(), "SELECT id FROM versions WHERE credential_id = $1", credential).Scan(&id); err != nil {
		a.t.Fatal(err)
	}
	return id
}

// A pool's key that an agent has seen is not claimed to be dead until its value was replaced.
func TestRevokePoolKey(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	issued := a.issued(a.call("orch", "POST", "/v1/credentials", request("pool", "t", `"call"`)))
	path := "/v1/credentials/" + issued.ID + "/revoke"
	c := a.credential(a.call("orch", "POST", path, ""), http.StatusAccepted)
	if c.Status != "stuck" || c.Revocation.Result != "" {
		t.Errorf("answered %+v", c)
	}
	key := issued.Trace["key"]
	providertest.WriteSecret(t, filepath.Join(a.dir, key), "sk-replaced")
	a.clock.Advance(2 * time.Minute)
	a.sweep()
	if c = a.credential(a.call("orch", "POST", path, ""), http.StatusOK); c.Status != "revoked" || c.Revocation.Result != "destroyed" || c.Revocation.Basis != "key_replaced" {
		t.Errorf("after the key was replaced: %+v", c)
	}
}

func TestRevokeAtOnceByMany(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	id := a.issue("t").ID
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			got := a.call("orch", "POST", "/v1/credentials/"+id+"/revoke", "")
			if got.status != http.StatusOK && got.status != http.StatusAccepted || strings.Contains(got.body, `"status":"active"`) {
				t.Errorf("answered %d: %s", got.status, got.body)
			}
		})
	}
	wg.Wait()
	if n := len(a.audit("credential_id=" + id).Events); n != 4 {
		t.Errorf("%d events", n)
	}
}

// What has ended by itself says so.
func TestRevokeAfterItsEnd(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	id := a.issued(a.call("orch", "POST", "/v1/credentials", body(map[string]string{"ttl_seconds": "60"}))).ID
	a.clock.Advance(61 * time.Second)
	a.sweep()
	c := a.credential(a.call("orch", "POST", "/v1/credentials/"+id+"/revoke", ""), http.StatusOK)
	if c.Status != "expired" || c.Cause != "expired" || c.Revocation.Result != "expires" {
		t.Errorf("answered %+v", c)
	}
}
