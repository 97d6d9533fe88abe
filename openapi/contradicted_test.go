package openapi_test

import (
	"slices"
	"testing"
	"time"

	"github.com/taskpass/taskpass/openapi"
)

// Whoever may write the ledger, as the service's login may, could have a live key called dead, or blame somebody else: the
// record is believed, the contradiction is told, and nothing is claimed of the end.
func TestTraceBelievesTheRecord(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		revoked bool
		sql     string // $1 is the credential
		fields  []string
		alive   openapi.AuditHeldLifeAlive
	}{
		"an end that has passed":     {false, "UPDATE versions SET expires_at = issued_at + interval '1 second' WHERE credential_id = $1", []string{"expires_at"}, openapi.Maybe},
		"an end that is to come":     {false, "UPDATE versions SET expires_at = expires_at + interval '1 day' WHERE credential_id = $1", []string{"expires_at"}, openapi.Maybe},
		"an earlier revocation":      {true, "UPDATE versions SET effective_at = effective_at - interval '1 hour' WHERE credential_id = $1", []string{"revocation"}, openapi.Maybe},
		"another basis":              {true, "UPDATE versions SET basis = 'key_deleted' WHERE credential_id = $1", []string{"revocation"}, openapi.Maybe},
		"a revocation that was none": {false, "UPDATE versions SET state = 'revoked', cause = 'revoked', result = 'denied', effective_at = issued_at, due_at = NULL, ended_at = now(), sealed = NULL WHERE credential_id = $1", []string{"revocation"}, openapi.Maybe},
		"a revocation taken back":    {true, "UPDATE versions SET state = 'active', result = '', effective_at = NULL, basis = '', cause = '', due_at = now(), ended_at = NULL, sealed = '\\x01' WHERE credential_id = $1", []string{"state"}, openapi.Maybe},
		"somebody else": {false, "UPDATE credentials SET agent_id = 'innocent', task_id = 'other', caller = 'nobody', scopes = '{nothing}', requested = '{nothing}' WHERE id = $1",
			[]string{"task_id", "agent_id", "scopes", "requested_scopes", "caller"}, openapi.Yes},
		"another secret": {false, "UPDATE versions SET fingerprint = '\\x01' WHERE credential_id = $1", []string{"fingerprint"}, openapi.Yes},
		"no row":         {false, "DELETE FROM versions WHERE credential_id = $1", []string{"version"}, openapi.Maybe},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			a := newAPI(t)
			issued := a.issue("t")
			if c.revoked {
				a.call("orch", "POST", "/v1/credentials/"+issued.ID+"/revoke", `{"reason":"over"}`)
				a.clock.Advance(time.Minute)
			}
			name := issued.Trace["access_key_id"]
			honest := a.trace("upstream_id", name).Held[0]
			admin := a.admin()
			// The triggers are off: whoever owns the database can do that too.
			for _, sql := range []string{"SET session_replication_role = replica"} {
				if _, err := admin.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
			}
			if done, err := admin.Exec(t.Context(), c.sql, issued.ID); err != nil || done.RowsAffected() != 1 {
				t.Fatal(done, err)
			}
			found := a.traced("upstream_id", name)
			if len(found.Held) != 1 {
				t.Fatalf("%d versions", len(found.Held))
			}
			h := found.Held[0]
			var fields []string
			for _, d := range h.Contradictions {
				fields = append(fields, d.Field)
				if !slices.ContainsFunc(h.Events, func(e openapi.AuditEvent) bool { return e.ID == d.EventID }) {
					t.Errorf("%s is not of its events", d.EventID)
				}
			}
			if !slices.Equal(fields, c.fields) || h.Life.Alive != c.alive || c.alive == openapi.Maybe && (h.Life.How != "contradicted" || h.Life.EventID != "") {
				t.Errorf("%+v, contradicted in %v", h.Life, fields)
			}
			if h.TaskID != "t" || h.AgentID != honest.AgentID || h.Caller != "orch" || !slices.Equal(h.Scopes, honest.Scopes) ||
				!slices.Equal(h.RequestedScopes, honest.RequestedScopes) || h.Fingerprint != honest.Fingerprint {
				t.Errorf("the ledger was believed: %+v", h)
			}
		})
	}
}

// A name that somebody has, though not at that time, is not unknown.
func TestTraceAtAnotherTime(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	c := a.issue("t")
	for at, want := range map[time.Time]bool{c.IssuedAt.Add(-time.Hour): true, c.ExpiresAt.Add(time.Hour): true, c.IssuedAt: false} {
		found := a.trace("upstream_id", c.Trace["access_key_id"], "at", at.Format(time.RFC3339Nano))
		if found.AtOtherTimes != want || want != (len(found.Held) == 0) {
			t.Errorf("at %s: %+v", at, found)
		}
	}
	if found := a.trace("upstream_id", "ASIANOBODY", "at", c.IssuedAt.Format(time.RFC3339Nano)); found.AtOtherTimes {
		t.Error("a name that nobody had")
	}
}
