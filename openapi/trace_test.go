package openapi_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/audit/audittest"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi"
)

// trace is the answer where the ledger and the record agree.
func (a *api) trace(query ...string) openapi.AuditTrace {
	a.t.Helper()
	t := a.traced(query...)
	for _, h := range t.Held {
		if len(h.Contradictions) > 0 {
			a.t.Errorf("%v: %s is said to be contradicted: %+v", query, h.VersionID, h.Contradictions)
		}
	}
	return t
}

func (a *api) traced(query ...string) openapi.AuditTrace {
	a.t.Helper()
	v := url.Values{}
	for i := 0; i+1 < len(query); i += 2 {
		v.Set(query[i], query[i+1])
	}
	got := a.call("aud", "GET", "/v1/audit/trace?"+v.Encode(), "")
	if got.status != http.StatusOK {
		a.t.Fatalf("%v: answered %d: %s", query, got.status, got.body)
	}
	var t openapi.AuditTrace
	strict(a.t, got.body, &t)
	return t
}

// Whatever form a name has in AWS's log, it leads to the one task; what is like it leads nowhere.
func TestTraceOfASession(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.issue("another")
	c := a.issue("t")
	token := c.Secret.Fields["session_token"]
	sum := sha256.Sum256([]byte(token))
	names := map[string]string{"fingerprint": "sha256:" + hex.EncodeToString(sum[:]), "the credential": c.ID}
	for _, key := range []string{"access_key_id", "role_session_name", "source_identity", "assumed_role_id", "assumed_role_arn"} {
		if c.Trace[key] == "" {
			t.Fatalf("the sandbox tells no %s: %v", key, c.Trace)
		}
		names[key] = c.Trace[key]
	}
	for what, name := range names {
		parameter := "upstream_id"
		if what == "fingerprint" {
			parameter = what
		}
		found := a.trace(parameter, name)
		if len(found.Held) != 1 || found.More {
			t.Errorf("%s %s: %d versions", what, name, len(found.Held))
			continue
		}
		h := found.Held[0]
		if h.CredentialID != c.ID || h.TaskID != "t" || h.AgentID != "agent-17" || h.Caller != "orch" || h.Profile != "aws" || h.Version != 1 ||
			strings.Join(h.Scopes, " ") != "read" || h.Life.Alive != openapi.Yes || h.Life.How != "active" || !h.Life.Until.Equal(c.ExpiresAt) ||
			len(h.Events) != 2 || h.Events[1].Type != "credential.issued" || h.Life.EventID != h.Events[1].ID {
			t.Errorf("%s: %+v", what, h)
		}
	}
	for _, name := range []string{
		"ASIANOBODY", "AROAOTHERROLE:" + c.Trace["role_session_name"], "arn:aws:sts::999999999999:assumed-role/other/" + c.Trace["role_session_name"],
		c.Trace["role_session_name"][:15], "%", c.Trace["role_arn"], "' OR true --",
	} {
		if found := a.trace("upstream_id", name); len(found.Held) != 0 {
			t.Errorf("%s: %+v", name, found.Held)
		}
	}
	if got := a.call("aud", "GET", "/v1/audit/trace?upstream_id=x", "").body; strings.TrimSpace(got) != `{"held":[]}` {
		t.Errorf("nothing is %s", got)
	}

	// It is denied: dead when the lag is over, and not before.
	a.call("orch", "POST", "/v1/credentials/"+c.ID+"/revoke", `{"reason":"over"}`)
	h := a.trace("upstream_id", c.Trace["access_key_id"]).Held[0]
	if h.Life.Alive != openapi.Maybe || h.Life.Until.IsZero() || h.Cause != "revoked" || h.Reason != "over" || h.Events[len(h.Events)-1].Type != "credential.revoked" {
		t.Errorf("within the lag: %+v", h)
	}
	a.clock.Advance(time.Minute)
	h = a.trace("upstream_id", c.Trace["access_key_id"]).Held[0]
	if h.Life.Alive != openapi.No || h.Life.Since.IsZero() || h.Life.How == "" || h.Life.EventID != h.Events[len(h.Events)-1].ID {
		t.Errorf("after it: %+v", h.Life)
	}
}

// archive takes the part of the record that a credential's events are in away, as `taskpass audit archive` does.
func (a *api) archive(credential string) {
	a.t.Helper()
	var part string
	if err := a.admin().QueryRow(a.t.Context(), "SELECT DISTINCT tableoid::regclass::text FROM events WHERE credential_id = $1", credential).Scan(&part); err != nil {
		a.t.Fatal(err)
	}
	for _, statement := range []string{
		"ALTER TABLE events DETACH PARTITION " + part,
		"INSERT INTO tree_archives (month, from_idx, to_idx, events, size, sha256) VALUES ('2025-11', 0, 1, 1, 1, sha256('')), ('2025-12', 1, 2, 1, 2, sha256(''))",
	} {
		a.exec(statement)
	}
}

// When its events are in a file, a credential that works is not said to be unknown; what is, is said to be unknown only in
// what is not archived.
func TestTraceOfWhatIsArchived(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	c := a.issue("t")
	sum := sha256.Sum256([]byte(c.Secret.Fields["session_token"]))
	if found := a.trace("upstream_id", "ASIANOBODY"); found.ArchivedBefore != "" {
		t.Errorf("nothing is archived, and it says before %s", found.ArchivedBefore)
	}
	a.archive(c.ID)
	for parameter, names := range map[string][]string{
		"upstream_id": {c.ID, c.Trace["access_key_id"], c.Trace["role_session_name"], c.Trace["assumed_role_id"], c.Trace["assumed_role_arn"]},
		"fingerprint": {"sha256:" + hex.EncodeToString(sum[:])},
	} {
		for _, name := range names {
			found := a.trace(parameter, name)
			if len(found.Held) != 1 || found.Held[0].CredentialID != c.ID || found.Held[0].Life.Alive != openapi.Yes || len(found.Held[0].Events) != 0 || found.ArchivedBefore != "2026-01" {
				t.Errorf("%s: %+v", name, found)
			}
		}
	}
	if got := a.call("aud", "GET", "/v1/audit/trace?upstream_id=x", "").body; strings.TrimSpace(got) != `{"archived_before":"2026-01","held":[]}` {
		t.Errorf("nothing is %s", got)
	}
}

// A pool's key has one holder after the other: the time of the call tells which.
func TestTraceOfAPoolKey(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.tokens["aud"], a.tokens["orch"] = a.token("aud", broker.RoleAuditor, 24*time.Hour), a.token("orch", broker.RoleOrchestrator, 24*time.Hour)
	a.want(a.call("aud", "GET", "/v1/audit/trace", ""), broker.CodeInvalidRequest)
	var tasks []openapi.IssuedCredential
	var times []time.Time
	for _, task := range []string{"t1", "t2", "t3", "t4"} {
		c := a.issued(a.call("orch", "POST", "/v1/credentials", request("pool", task, `"call"`)))
		tasks, times = append(tasks, c), append(times, a.clock.Now().Add(30*time.Minute))
		a.clock.Advance(90 * time.Minute)
		a.sweep()
	}
	byKey := map[string][]string{}
	for i, c := range tasks {
		name := "models/" + c.Trace["key"]
		byKey[name] = append([]string{c.TaskID}, byKey[name]...)
		found := a.trace("upstream_id", name, "at", times[i].UTC().Format(time.RFC3339Nano))
		if len(found.Held) == 0 || found.Held[0].TaskID != c.TaskID {
			t.Errorf("%s at %s: %+v", name, times[i], found)
		}
		if h := found.Held[0]; h.Life.Alive != openapi.Maybe || h.Life.How != "released" {
			t.Errorf("a key that was seen and went back is %+v", h.Life)
		}
	}
	for name, want := range byKey {
		var got []string
		for _, h := range a.trace("upstream_id", name).Held {
			got = append(got, h.TaskID)
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
		if len(want) > 1 {
			if found := a.trace("upstream_id", name, "limit", "1"); len(found.Held) != 1 || !found.More {
				t.Errorf("%s, one of %d: %+v", name, len(want), found)
			}
		}
		if before := a.trace("upstream_id", name, "at", "2020-01-01T00:00:00Z"); len(before.Held) != 0 {
			t.Errorf("before all: %+v", before.Held)
		}
	}
}

// Each state says no more than is known; the clock alone ends what ends by itself.
func TestTraceOfEachState(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.tokens["aud"] = a.token("aud", broker.RoleAuditor, 24*time.Hour)
	c := a.issue("t")
	name, admin := c.Trace["access_key_id"], a.admin()
	if _, err := admin.Exec(t.Context(), "ALTER TABLE versions DISABLE TRIGGER ALL"); err != nil {
		t.Fatal(err)
	}
	for _, s := range []struct{ set, before, after string }{ // as it is within its time, and after it
		{"state = 'active'", "yes active", "no self_expires"},
		{"state = 'active', self_expires = false", "yes active", "maybe overdue"},
		{"state = 'issuing'", "maybe being_minted", "no self_expires"},
		{"state = 'issuing', unclaimed = true", "no not_yet_made", "no not_yet_made"},
		{"state = 'lost', cause = 'abandoned', self_expires = false", "maybe lost", "maybe lost"},
		{"state = 'lost', cause = 'abandoned'", "maybe lost", "no self_expires"},
		{"state = 'revoking', cause = 'revoked', self_expires = false", "maybe being_revoked", "maybe being_revoked"},
		{"state = 'revoking', cause = 'revoked', result = 'expires', effective_at = expires_at", "maybe expires", "no expires"},
		{"state = 'stuck', cause = 'revoked', self_expires = false", "maybe stuck", "maybe stuck"},
		{"state = 'failed', due_at = NULL, ended_at = now(), sealed = NULL", "no never_made", "no never_made"},
		{"state = 'revoked', cause = 'revoked', result = 'destroyed', basis = 'gone', effective_at = issued_at, due_at = NULL, ended_at = now(), sealed = NULL", "no gone", "no gone"},
		{"state = 'revoked', cause = 'revoked', result = 'released', effective_at = issued_at, due_at = NULL, ended_at = now(), sealed = NULL", "maybe released", "maybe released"},
		{"state = 'expired', cause = 'expired', due_at = NULL, ended_at = now(), sealed = NULL", "maybe overdue", "no self_expires"},
		{"state = 'expired', cause = 'expired', self_expires = false, due_at = NULL, ended_at = now(), sealed = NULL", "maybe overdue", "maybe overdue"},
	} {
		tx, err := admin.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		const back = `UPDATE versions SET state = 'active', self_expires = true, unclaimed = false, cause = '', result = '', basis = '', effective_at = NULL, due_at = expires_at, ended_at = NULL, sealed = '\x01'`
		_, err = tx.Exec(t.Context(), back)
		if err == nil {
			_, err = tx.Exec(t.Context(), "UPDATE versions SET "+s.set)
		}
		if err == nil {
			_, err = tx.Exec(t.Context(), audittest.BearOut)
		}
		if err != nil {
			t.Fatalf("%s: %v", s.set, err)
		}
		if err := tx.Commit(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
		life := func() string { l := a.trace("upstream_id", name).Held[0].Life; return string(l.Alive) + " " + l.How }
		if got := life(); got != s.before {
			t.Errorf("%s, in time: %s, want %s", s.set, got, s.before)
		}
		a.clock.Advance(2 * time.Hour)
		if got := life(); got != s.after {
			t.Errorf("%s, after it: %s, want %s", s.set, got, s.after)
		}
		a.clock.Advance(-2 * time.Hour)
	}
}

func TestTraceIsRecorded(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	c := a.issue("t")
	a.trace("upstream_id", c.Trace["access_key_id"], "at", "2026-01-01T00:00:00Z")
	a.trace("upstream_id", c.Trace["access_key_id"])
	a.trace("upstream_id", "sk-C4n4ry-somebodys-secret")
	a.want(a.call("orch", "GET", "/v1/audit/trace?upstream_id=x", ""), broker.CodeForbidden)
	a.want(a.call("aud", "GET", "/v1/audit/trace?upstream_id=x&fingerprint=sha256:"+strings.Repeat("0", 64), ""), broker.CodeInvalidRequest)
	a.want(a.call("aud", "GET", "/v1/audit/trace?fingerprint=sha256:0", ""), broker.CodeInvalidRequest)
	reads := a.audit("type=audit.read").Events
	if len(reads) != 3 || reads[1].Trace["upstream_id"] != c.Trace["access_key_id"] || reads[1].Trace["trace"] != "versions" {
		t.Errorf("%+v", reads)
	}
	if got := a.call("aud", "GET", "/v1/audit/events?type=audit.read", "").body; strings.Contains(got, "C4n4ry") {
		t.Error("what nobody knows is on the record as it was asked: it may be a secret")
	}
	a.exec("REVOKE INSERT ON events FROM taskpass_service")
	got := a.call("aud", "GET", "/v1/audit/trace?upstream_id="+c.Trace["access_key_id"], "")
	a.want(got, broker.CodeUnavailable)
	if strings.Contains(got.body, "crd_") {
		t.Error("it was read all the same")
	}
}
