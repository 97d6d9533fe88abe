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

// A task gets the key that can do what it asks and least beside; what it can do beside is on the record.
func TestLeastKey(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {Scopes: []string{"read", "write", "admin"}}})
	for name, scopes := range map[string][]string{"a-all": nil, "b-rw": {"read", "write"}, "c-read": {"read"}, "d-write": {"write"}} {
		p.as("ops").addKey(client.NewPoolKey{Name: name, Value: p.value(), Scopes: scopes}).want(t, http.StatusCreated)
	}
	for i, c := range []struct {
		scopes    []string
		key, over string
	}{
		{[]string{"read"}, "c-read", ""},
		{[]string{"read"}, "b-rw", "write"},
		{[]string{"write"}, "d-write", ""},
		{[]string{"write", "read"}, "a-all", "admin"},
	} {
		got := p.mustIssue(ask("p", fmt.Sprint("t", i), scoped(c.scopes...), agent(fmt.Sprint("agent-", i))))
		if keyOf(got) != c.key || got.Trace["over_granted"] != c.over {
			t.Errorf("%v gets %s with %q beside, want %s with %q", c.scopes, keyOf(got), got.Trace["over_granted"], c.key, c.over)
		}
	}
	if e := p.events("t1"); e[len(e)-1].Trace["over_granted"] != "write" {
		t.Errorf("the record does not say so: %v", e[len(e)-1].Trace)
	}
	p.as("orch").issue(ask("p", "t9", scoped("admin"), agent("agent-9"))).want(t, broker.CodePoolExhausted)
	p.as("ops").changeKey("a-all", client.Retire, "").want(t, http.StatusOK)
	p.as("orch").issue(ask("p", "t9", scoped("admin"), agent("agent-9"))).want(t, broker.CodeUpstreamRefused)
	p.sound()
}

func TestLabelsSelect(t *testing.T) {
	t.Parallel()
	p := newPools(t, labelled(pool.Config{}, map[string]map[string]string{
		"any": nil, "eu": {"region": "eu"}, "eu-prod": {"region": "eu", "tier": "prod"},
	}))
	for name, labels := range map[string]map[string]string{
		"k1": {"region": "us"}, "k2": {"region": "eu"}, "k3": {"region": "eu", "tier": "prod", "x": "y"},
	} {
		p.as("ops").addKey(client.NewPoolKey{Name: name, Value: p.value(), Labels: labels}).want(t, http.StatusCreated)
	}
	if got := p.mustIssue(ask("eu-prod", "t1", agent("a"))); keyOf(got) != "k3" {
		t.Errorf("eu-prod gets %s", keyOf(got))
	}
	p.as("orch").issue(ask("eu-prod", "t2", agent("b"))).want(t, broker.CodePoolExhausted)
	if got := p.mustIssue(ask("eu", "t3", agent("c"))); keyOf(got) != "k2" {
		t.Errorf("eu gets %s", keyOf(got))
	}
	if got := p.mustIssue(ask("any", "t4", agent("d"))); keyOf(got) != "k1" {
		t.Errorf("any gets %s", keyOf(got))
	}
	p.sound()
}

// An agent gets its own key again; another one the key that was left alone for longest.
func TestOwnKeyAgain(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(3)
	own := map[string]string{}
	for i := range 3 {
		name := fmt.Sprint("agent-", i)
		got := p.mustIssue(ask("p", "t-"+name, agent(name)))
		own[name] = keyOf(got)
		p.clock.advance(time.Second)
	}
	for i := range 3 { // given back in this order
		p.as("orch").endTask(fmt.Sprint("t-agent-", i))
		p.settled()
		p.clock.advance(time.Second)
	}
	if got := p.mustIssue(ask("p", "t-1", agent("agent-2"))); keyOf(got) != own["agent-2"] {
		t.Errorf("agent-2 had %s and gets %s", own["agent-2"], keyOf(got))
	}
	if got := p.mustIssue(ask("p", "t-2", agent("stranger"))); keyOf(got) != own["agent-0"] {
		t.Errorf("a stranger gets %s, want the one that was left alone for longest, %s", keyOf(got), own["agent-0"])
	}
	p.sound()
}

func TestSeats(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {MaxHolders: 3}})
	p.hand(2)
	byKey := map[string]int{}
	for i := range 6 {
		byKey[keyOf(p.mustIssue(ask("p", fmt.Sprint("t", i), agent(fmt.Sprint("a", i)))))]++
	}
	if len(byKey) != 2 || byKey["k00"] != 3 || byKey["k01"] != 3 {
		t.Errorf("holders by key: %v", byKey)
	}
	p.as("orch").issue(ask("p", "t9", agent("a9"))).want(t, broker.CodePoolExhausted)
	p.wantState("k00", client.Held)
	p.as("orch").endTask("t0")
	p.settled()
	p.mustIssue(ask("p", "t9", agent("a9")))
	p.sound()
}

// Who finds none is told when the next one is due back: of those that would do.
func TestExhaustionSaysWhen(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {Rest: 10 * time.Minute, Scopes: []string{"read", "write"}}})
	p.as("ops").addKey(client.NewPoolKey{Name: "r", Value: p.value(), Scopes: []string{"read"}}).want(t, http.StatusCreated)
	p.as("ops").addKey(client.NewPoolKey{Name: "w", Value: p.value(), Scopes: []string{"write"}}).want(t, http.StatusCreated)
	after := func() time.Duration {
		t.Helper()
		got := p.as("orch").issue(ask("p", "t9", agent("late"))).want(t, broker.CodePoolExhausted)
		return time.Duration(got.problem.RetryAfterSeconds) * time.Second
	}
	p.mustIssue(ask("p", "t1", lasting(30*time.Minute)))
	p.mustIssue(ask("p", "t2", scoped("write"), lasting(2*time.Minute), agent("w"))) // of no use to who wants to read
	if d := after(); d != 30*time.Minute {
		t.Errorf("the reading key is held for 30 min; come back in %s", d)
	}
	p.clock.advance(20 * time.Minute)
	p.as("orch").endTask("t1")
	p.settled()
	if d := after(); d != 10*time.Minute {
		t.Errorf("it rests for 10 min; come back in %s", d)
	}
	p.wantState("r", client.Resting)
	p.clock.advance(10 * time.Minute)
	p.mustIssue(ask("p", "t9", agent("late")))
	p.sound()
}

// The same value under two names is one key.
func TestOneValueIsOneKey(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	value := p.value()
	for _, name := range []string{"a", "b"} {
		p.as("ops").addKey(client.NewPoolKey{Name: name, Value: value}).want(t, http.StatusCreated)
	}
	other := p.value()
	p.as("ops").addKey(client.NewPoolKey{Name: "c", Value: other}).want(t, http.StatusCreated)
	one := p.mustIssue(ask("p", "t1", agent("x")))
	two := p.mustIssue(ask("p", "t2", agent("y")))
	if valueOf(one.Secret) == valueOf(two.Secret) {
		t.Error("one key has two holders")
	}
	p.as("orch").issue(ask("p", "t3", agent("z"))).want(t, broker.CodePoolExhausted)
	p.sound()
}

// A key that is given a value which another holder has at another name is not shared: its holder gets another one.
func TestRotatedIntoAnothersValue(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	values := p.hand(3)
	one := p.mustIssue(ask("p", "t1", agent("x")))
	two := p.mustIssue(ask("p", "t2", agent("y")))
	p.as("ops").rotateKey(keyOf(one), values[keyOf(two)], time.Hour).want(t, http.StatusAccepted)
	p.looked()
	a := valueOf(p.as("orch").resolve(one.ID).want(t, http.StatusOK).resolved.Secret)
	b := valueOf(p.as("orch").resolve(two.ID).want(t, http.StatusOK).resolved.Secret)
	if a == b || b != values[keyOf(two)] {
		t.Error("one value has two holders")
	}
	p.sound()
}
