package console_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// traced is the trace's page for a name; at is when it was used, or empty.
func (v *visitor) traced(name, at string) string {
	v.r.t.Helper()
	return v.see("/console/trace?" + url.Values{"q": {name}, "at": {at}}.Encode())
}

// Whatever form a name has in the upstream's log, it leads to the one version; what is only like it leads nowhere.
func TestTrace(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.issue("aws", "traced", "read")
	other := r.issue("aws", "another", "read")
	next := r.refresh(c)
	fingerprint := r.fingerprint(c.ID, 2)
	v := r.enter("aud")
	for name, want := range map[string]int{
		c.Trace["access_key_id"]: 1, next.Trace["access_key_id"]: 2, next.Trace["role_session_name"]: 2, next.Trace["assumed_role_arn"]: 2,
		c.Trace["assumed_role_id"]: 1, fingerprint: 2, strings.ToUpper(fingerprint): 2,
	} {
		body := v.traced(name, "")
		head := fmt.Sprintf(`<a href="/console/credential?id=%s">%s</a>, version %d</h2>`, c.ID, c.ID, want)
		for _, say := range []string{head, "id=traced", "agent-17", ">orch</a>", "read <small>(asked for: read)", "alive</span> until", "arn:aws:iam::", "credential.intended", "/console/event?id=evt_"} {
			if !strings.Contains(body, say) {
				t.Errorf("%s: no %q in %s", name, say, body)
			}
		}
		if strings.Count(body, `<section class="card"`) != 1 || strings.Contains(body, other.ID) {
			t.Errorf("%s leads to more than one", name)
		}
	}
	if body := v.traced(c.ID, ""); strings.Count(body, `<section class="card"`) != 2 || strings.Contains(body, other.ID) {
		t.Errorf("a credential's id: %s", body)
	}
	for _, name := range []string{"ASIAUNKNOWN", "AROAOTHERROLE:" + c.Trace["role_session_name"], "arn:aws:sts::999999999999:assumed-role/other/" + c.Trace["role_session_name"],
		"crd_none", "sha256:" + strings.Repeat("0", 64)} {
		if body := v.traced(name, ""); !strings.Contains(body, "Unknown here") || strings.Contains(body, "agent-17") {
			t.Errorf("%s: %s", name, body)
		}
	}
	for query, reason := range map[string]string{"q=" + r.tokens["orch"]: "looks like a token", "q=sha256:0": "64 hexadecimal digits", "q=x&at=noon": "is not a time"} {
		if p := v.get("/console/trace?" + query); p.status != http.StatusBadRequest || !strings.Contains(p.body, reason) || strings.Contains(p.body, r.tokens["orch"]) {
			t.Errorf("%.10s: %d", query, p.status)
		}
	}
}

// A pool's key has one holder after the other: the time of the call tells which, and is drawn.
func TestTraceAtATime(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	before := r.clock.Now().Add(-time.Hour)
	used := r.clock.Now().Add(10 * time.Minute)
	for _, task := range []string{"first", "second"} {
		r.issue("pool", task, "call")
		r.clock.Advance(90 * time.Minute)
		must(t, r.broker.Sweep(t.Context())) // its time is over, and the key goes back
	}
	v := r.enter("aud")
	body := v.traced("models/key-1", "")
	if strings.Count(body, `<section class="card"`) != 2 || strings.Contains(body, `class="used"`) ||
		!strings.Contains(body, "the key went back to its pool and works until somebody replaces it") || !strings.Contains(body, "/console/events?upstream_id=models%2Fkey-1") {
		t.Errorf("without a time: %s", body)
	}
	body = v.traced("models/key-1", used.Format("2006-01-02 15:04:05")) // as the pages show times
	if strings.Count(body, `<section class="card"`) != 1 || !strings.Contains(body, "id=first") || !strings.Contains(body, `<line class="used"`) {
		t.Errorf("when the first task had it: %s", body)
	}
	if body := v.traced("models/key-1", before.Format(time.RFC3339)); !strings.Contains(body, "Not then.") || strings.Contains(body, "agent-17") {
		t.Errorf("before anybody had it: %s", body)
	}
}

// A ledger that was changed behind the record shows as such, and the record is believed.
func TestTraceShowsTampering(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.issue("aws", "t", "read")
	_, err := r.admin.Exec(t.Context(), "UPDATE credentials SET agent_id = 'innocent'; UPDATE versions SET expires_at = issued_at + interval '1 second'")
	must(t, err)
	r.clock.Advance(time.Minute)
	body := r.enter("aud").traced(c.Trace["access_key_id"], "")
	if !strings.Contains(body, "The ledger was changed behind the record.") || !strings.Contains(body, "agent_id=agent-17") ||
		strings.Contains(body, "agent_id=innocent") || strings.Contains(body, ">dead<") {
		t.Error(body)
	}
}

// While somebody looks at a trace, what it found is revoked: that is seen, and until when it may have worked.
func TestTraceIsLive(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.issue("aws", "t", "read")
	s := r.enter("aud").follow("/console/trace?live=1&q=" + c.Trace["access_key_id"])
	s.until(t, "it was alive", func(e sent) bool { return strings.Contains(e.data, "alive</span> until") })
	r.api("orch", "POST", "/v1/credentials/"+c.ID+"/revoke", `{"reason":"over"}`)
	r.clock.Advance(time.Second)
	s.until(t, "it was dead", func(e sent) bool {
		return strings.Contains(e.data, "dead</span> since") && strings.Contains(e.data, "credential.revoked") && strings.Contains(e.data, "“over”")
	})
}
