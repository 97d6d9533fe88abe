package lifetest

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
	"github.com/taskpass/taskpass/providers/pool"
)

// A 401 is never answered with the same secret.
func TestReport401(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(2)
	c := p.mustIssue(ask("p", "t1", taskToken))
	agent := p.by(c.TaskToken)
	p.kill(valueOf(c.Secret))
	got := agent.report(c.ID, 1, 401).wantAdvice(t, client.Refresh, "replaced")
	if got.Version != 2 {
		t.Errorf("version %d is to be resolved", got.Version)
	}
	next := agent.resolve(c.ID).want(t, http.StatusOK).resolved
	if valueOf(next.Secret) == valueOf(c.Secret) || !p.works(valueOf(next.Secret)) {
		t.Error("the next version has the same secret")
	}
	// The same report again, as after a lost answer, and one of an older version change nothing.
	if got := agent.report(c.ID, 1, 401).wantAdvice(t, client.Refresh, "newer_version"); got.Version != 2 {
		t.Errorf("version %d is to be resolved", got.Version)
	}
	if n := p.countEvents("t1", broker.EventReported); n != 1 {
		t.Errorf("%d reports are on the record", n)
	}
	agent.report(c.ID, 2, 200).want(t, http.StatusOK)
	p.sound()
}

// All of a holder's calls fail at the same moment and are reported at once: that is one refusal.
func TestReportsAtOnce(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(6)
	c := p.mustIssue(ask("p", "t1"))
	together(12, func(int) {
		got := p.as("orch").report(c.ID, 1, 401).want(t, http.StatusOK)
		if got.advice.Action != client.Refresh || got.advice.Version != 2 {
			t.Errorf("advised %+v", got.advice)
		}
	})
	if n := one[int](p.rig, "SELECT strikes FROM credentials"); n != 1 {
		t.Errorf("%d refusals are counted, want 1", n)
	}
	if n := one[int](p.rig, "SELECT max(strikes) FROM keys"); n != 1 {
		t.Errorf("%d refusals of the key are counted, want 1", n)
	}
	held := one[string](p.rig, "SELECT string_agg(name, ' ') FROM slots WHERE state = 'held'")
	if got := p.as("orch").get(c.ID).state; held != got.Trace["key"] {
		t.Errorf("it holds %q, its version has %q", held, got.Trace["key"])
	}
	p.sound()
}

// When every key is refused there is nothing to refresh to.
func TestAllKeysRefused(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(1)
	c := p.mustIssue(ask("p", "t1"))
	got := p.as("orch").report(c.ID, 1, 401).wantAdvice(t, client.Halt, string(broker.CodePoolExhausted))
	if got.RetryAfterSeconds <= 0 || got.Version != 0 {
		t.Errorf("advised %+v", got)
	}
	p.clock.advance(time.Minute) // its rest is over
	p.settled()
	p.as("orch").refresh(c.ID, 1).want(t, http.StatusCreated)
	p.sound()
}

// Three versions in a row: the circuit is open.
func TestCircuit(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(5)
	c, agent := p.mustIssue(ask("p", "t1")), p.as("orch")
	agent.report(c.ID, 1, 401).wantAdvice(t, client.Refresh, "replaced")
	agent.report(c.ID, 2, 401).wantAdvice(t, client.Refresh, "replaced")
	agent.report(c.ID, 3, 302).want(t, http.StatusOK) // it works again: the row is over
	agent.report(c.ID, 3, 401).wantAdvice(t, client.Refresh, "replaced")
	agent.report(c.ID, 4, 401).wantAdvice(t, client.Refresh, "replaced")
	agent.report(c.ID, 5, 401).wantAdvice(t, client.Halt, "refused_again")
	agent.resolve(c.ID).want(t, broker.CodeCircuitOpen)
	agent.refresh(c.ID, 5).want(t, broker.CodeCircuitOpen)
	agent.refresh(c.ID, 0, "key").want(t, broker.CodeCircuitOpen)
	agent.report(c.ID, 5, 401).wantAdvice(t, client.Halt, "refused_again")
	// A halted holder once closed its circuit by saying that all is well.
	agent.report(c.ID, 5, 200).wantAdvice(t, client.Halt, "refused_again")
	agent.report(c.ID, 4, 200).wantAdvice(t, client.Halt, "refused_again")
	agent.resolve(c.ID).want(t, broker.CodeCircuitOpen)
	agent.refresh(c.ID, 5).want(t, broker.CodeCircuitOpen)
	if n := one[int](p.rig, "SELECT max(number) FROM versions"); n != 5 {
		t.Errorf("a halted holder got version %d", n)
	}
	agent.revoke(c.ID)
	p.sound()
}

// A holder that was refused, and for which there is no other secret, ends no row by saying that the same one works after all:
// only the version after it can. It might else be refused for ever without being halted.
func TestRefusedVersionPardonsNothing(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(1)
	c, agent := p.mustIssue(ask("p", "t1")), p.as("orch")
	for refused, cause := range []string{string(broker.CodePoolExhausted), string(broker.CodePoolExhausted), "refused_again"} { // the key rests
		if refused > 0 {
			c = agent.refresh(c.ID, c.Version).want(t, http.StatusCreated).issued
		}
		agent.report(c.ID, c.Version, 401).wantAdvice(t, client.Halt, cause)
		agent.report(c.ID, c.Version, 200).want(t, http.StatusOK)
		if n := one[int](p.rig, "SELECT strikes FROM credentials"); n != refused+1 {
			t.Errorf("%d refusals are counted, want %d", n, refused+1)
		}
		p.clock.advance(time.Minute)
		p.settled()
	}
	agent.refresh(c.ID, c.Version).want(t, broker.CodeCircuitOpen)
	p.sound()
}

// A key that one holder after the other is refused with goes into quarantine, before its vendor locks it.
func TestKeyIsQuarantined(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	values := p.hand(1)
	for i := range 3 {
		task := fmt.Sprint("t", i)
		c := p.mustIssue(ask("p", task, agent(fmt.Sprint("a", i))))
		p.as("orch").report(c.ID, 1, 401).wantAdvice(t, client.Halt, string(broker.CodePoolExhausted))
		if k := p.stateOf("k00"); i < 2 && (k.Refusals != i+1 || k.State != client.Resting) {
			t.Errorf("after %d: %s, %d refusals", i+1, k.State, k.Refusals)
		}
		p.as("orch").endTask(task)
		p.clock.advance(time.Minute)
		p.settled()
	}
	p.wantState("k00", client.Quarantined)
	if n := p.countEvents("", broker.EventKeyQuarantined); n != 1 {
		t.Errorf("%d events of the quarantine", n)
	}
	p.clock.advance(maxTTL)
	p.as("orch").issue(ask("p", "t9", agent("a9"))).want(t, broker.CodePoolExhausted)
	fresh := p.value()
	p.as("ops").rotateKey("k00", fresh, time.Hour).want(t, http.StatusAccepted)
	if got := p.mustIssue(ask("p", "t9", agent("a9"))); valueOf(got.Secret) != fresh {
		t.Error("the refused value was handed out")
	}
	p.as("ops").changeKey("k00", client.Abort, "").want(t, http.StatusOK)
	p.wantState("k00", client.Quarantined)
	if values["k00"] == fresh {
		t.Error("not another value")
	}
	p.sound()
}

func TestSuccessPardonsTheKey(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(1)
	for i := range 6 {
		task := fmt.Sprint("t", i)
		c := p.mustIssue(ask("p", task, agent(fmt.Sprint("a", i))))
		if i%2 == 0 {
			p.as("orch").report(c.ID, 1, 200).want(t, http.StatusOK)
		}
		p.as("orch").report(c.ID, 1, 401).want(t, http.StatusOK)
		p.as("orch").endTask(task)
		p.clock.advance(time.Minute)
		p.settled()
	}
	p.wantState("k00", client.Resting)
	p.sound()
}

// A refusal of a value whose change nobody has noticed yet hides no rotation.
func TestRefusalHidesNoRotation(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := &pools{rig: r}
	for i := range keysOfPool {
		r.mustIssue(ask("pool", fmt.Sprint("t", i), agent(fmt.Sprint("a", i))))
	}
	p.looked()
	r.as("orch").endTask("t0")
	r.settled()
	key := one[string](r, "SELECT name FROM slots WHERE state = 'available'")
	r.writeKey(int(key[len("key-")]-'1'), "changed")
	c := r.mustIssue(ask("pool", "t8", agent("a8")))
	r.as("orch").report(c.ID, 1, 401).want(t, http.StatusOK)
	p.looked()
	if n := r.countEvents("", broker.EventKeyRotating); n != 1 {
		t.Errorf("%d rotations are on the record, want 1", n)
	}
	r.sound()
}

// What is no matter of the credential changes nothing.
func TestReportsOfOtherMatters(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(1)
	c, agent := p.mustIssue(ask("p", "t1")), p.as("orch")
	agent.report(c.ID, 1, 403).wantAdvice(t, client.Halt, "scope")
	agent.report(c.ID, 1, 404).wantAdvice(t, client.Halt, "request")
	for _, w := range []struct {
		status, after int
		cause         string
		want          float32
	}{{429, 0, "upstream_throttled", 5}, {429, 90, "upstream_throttled", 90}, {500, 0, "upstream_error", 2}, {503, 7, "upstream_error", 7}, {599, 1, "upstream_error", 2}} {
		if got := agent.report(c.ID, 1, w.status, w.after).wantAdvice(t, client.Retry, w.cause); got.RetryAfterSeconds != w.want {
			t.Errorf("%d: again in %v s, want %v", w.status, got.RetryAfterSeconds, w.want)
		}
	}
	if s := agent.get(c.ID).state; s.Version != 1 || p.countEvents("t1", broker.EventReported) != 0 {
		t.Errorf("it has version %d now", s.Version)
	}
	p.wantState("k00", client.Held)
	p.sound()
}

// Only a credential's holder is heard.
func TestReportsOfOthers(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(2)
	c := p.mustIssue(ask("p", "t1"))
	stranger := p.mustIssue(ask("p", "t2", agent("b"), taskToken))
	p.as("other").report(c.ID, 1, 401).want(t, broker.CodeNotFound)
	p.by(stranger.TaskToken).report(c.ID, 1, 401).want(t, broker.CodeNotFound)
	p.as("aud").report(c.ID, 1, 401).want(t, broker.CodeForbidden)
	p.as("ops").report(c.ID, 1, 401).want(t, broker.CodeForbidden)
	p.by("").report(c.ID, 1, 401).want(t, broker.CodeUnauthenticated)
	p.as("orch").report(string(broker.NewCredentialID()), 1, 401).want(t, broker.CodeNotFound)
	for _, bad := range [][2]int{{2, 401}, {0, 401}, {-1, 401}, {1 << 40, 401}, {1, 99}, {1, 600}, {1, -401}} {
		p.as("orch").report(c.ID, bad[0], bad[1]).want(t, broker.CodeInvalidRequest)
	}
	p.as("orch").report(c.ID, 1, 429, 86401).want(t, broker.CodeInvalidRequest)
	p.as("orch").report(c.ID, 1, 429, -1).want(t, broker.CodeInvalidRequest)
	if n := p.countEvents("t1", broker.EventReported); n != 0 {
		t.Errorf("%d reports were heard", n)
	}
	p.sound()
}

func TestReportsOfWhatEnded(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(3)
	orch := p.as("orch")
	revoked, ended, expired := p.mustIssue(ask("p", "t1", agent("a"))), p.mustIssue(ask("p", "t2", agent("b"))), p.mustIssue(ask("p", "t3", agent("c"), lasting(time.Minute)))
	orch.revoke(revoked.ID)
	orch.report(revoked.ID, 1, 401).wantAdvice(t, client.Halt, "revoked")
	orch.endTask("t2")
	orch.report(ended.ID, 1, 401).wantAdvice(t, client.Halt, "task_ended")
	p.clock.advance(time.Minute)
	orch.report(expired.ID, 1, 401).wantAdvice(t, client.Halt, "expired")
	p.settled()
	orch.report(expired.ID, 1, 401).wantAdvice(t, client.Halt, "expired")
	p.sound()
}

// A session that is refused is replaced by another one, also where there are no keys.
func TestReportOfASession(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c, orch := r.mustIssue(ask("aws", "t1")), r.as("orch")
	if got := orch.report(c.ID, 1, 401).wantAdvice(t, client.Refresh, "replaced"); got.Version != 2 {
		t.Errorf("version %d is to be resolved", got.Version)
	}
	next := orch.resolve(c.ID).want(t, http.StatusOK).resolved
	if secretOf(next.Secret) == secretOf(c.Secret) {
		t.Error("the same session")
	}
	r.wantAlive("the next session", next.Secret, "t1", true)
	orch.report(c.ID, 2, 401).wantAdvice(t, client.Refresh, "replaced")
	orch.report(c.ID, 3, 401).wantAdvice(t, client.Halt, "refused_again")
	orch.resolve(c.ID).want(t, broker.CodeCircuitOpen)
	// Others of the task are not its concern.
	r.mustIssue(ask("aws", "t1"))
	// The vendor refuses the mint: there is nothing to refresh to.
	d := r.mustIssue(ask("aws", "t2"))
	r.front.on("AssumeRole", "", refuse, 1)
	orch.report(d.ID, 1, 401).wantAdvice(t, client.Halt, string(broker.CodeUpstreamRefused))
	r.sound()
}

// What was cut off for others' sake is refreshed.
func TestReportOfACutOff(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("cutoff", "t1"))
	r.exec("UPDATE versions SET cause = 'cut_off'")
	r.as("orch").report(c.ID, 1, 401).wantAdvice(t, client.Refresh, "cut_off")
	if got := r.as("orch").refresh(c.ID, 1).want(t, http.StatusCreated).issued; got.Version != 2 {
		t.Errorf("version %d", got.Version)
	}
}
