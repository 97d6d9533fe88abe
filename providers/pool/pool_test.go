package pool_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/providers/pool"
	"github.com/taskpass/taskpass/providers/providertest"
)

// takers mint at once, spread over two replicas, and answer who got which key.
func (r *rig) takers(t *testing.T, ledgers []*store.Store, n int) (byKey map[string]int, failures []error) {
	t.Helper()
	ps := make([]*pool.Provider, len(ledgers))
	for i, l := range ledgers {
		ps[i] = r.provider(t, l)
	}
	credentials := make([]broker.Credential, n)
	for i := range credentials {
		credentials[i] = providertest.Intend(t, ledgers[0], ps[0], r.credential(""), r.clock.Now(), time.Hour)
	}
	minted, errs := make([]broker.Minted, n), make([]error, n)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i, c := range credentials {
		wg.Go(func() {
			<-start
			minted[i], errs[i] = ps[i%len(ps)].Mint(t.Context(), c)
		})
	}
	close(start)
	wg.Wait()
	byKey = map[string]int{}
	for i, m := range minted {
		if errs[i] != nil {
			failures = append(failures, errs[i])
			continue
		}
		byKey[m.Secret.Fields["api_key"].Reveal()]++
	}
	return byKey, failures
}

// P8: a key has one holder, however many ask at once and wherever.
func TestOneHolderAKey(t *testing.T) {
	t.Parallel()
	const keys, takers = 10, 50
	r := newRig(t, keys)
	ledgers := replicas(t, 2)
	held, failures := r.takers(t, ledgers, takers)
	for value, n := range held {
		if n != 1 {
			t.Errorf("one key has %d holders", n)
		}
		if value == "" {
			t.Error("an empty key")
		}
	}
	if len(held)+len(failures) != takers || len(held) != keys {
		t.Errorf("%d keys were given out, %d takers failed; want %d and %d", len(held), len(failures), keys, takers-keys)
	}
	for _, err := range failures {
		if e := broker.AsError(err); e.Code != broker.CodePoolExhausted || !errors.Is(err, broker.ErrNotMinted) || e.RetryAfter <= 0 {
			t.Errorf("%v, try again after %s", err, e.RetryAfter)
		}
	}
	if n := len(r.holders(t, ledgers[0])); n != len(held) {
		t.Errorf("the ledger has %d holders", n)
	}
}

// While there are keys nobody is turned away, also when a pool is used for the first time by many at once.
func TestKeysForAll(t *testing.T) {
	t.Parallel()
	ledgers := replicas(t, 2)
	for range 4 {
		r := newRig(t, 24)
		if held, failures := r.takers(t, ledgers, 24); len(held) != 24 {
			t.Fatalf("24 keys, 24 takers: %d got one; %d failed, such as %v", len(held), len(failures), failures[0])
		}
	}
}

// An agent that comes again gets the key it had; another gets the one that has rested longest.
func TestWhichKey(t *testing.T) {
	t.Parallel()
	r := newRig(t, 4)
	ledger := replicas(t, 1)[0]
	p := r.provider(t, ledger)
	round := func(agent string) string {
		t.Helper()
		r.clock.Advance(time.Minute)
		c := r.take(t, p, ledger, agent, time.Hour)
		r.clock.Advance(time.Minute)
		r.end(t, p, ledger, c, broker.CauseTaskEnded)
		return key(c)
	}
	for i, agent := range []string{"a", "b", "c", "d"} { // never used keys come first, by name
		if got := round(agent); got != fmt.Sprintf("k%d", i) {
			t.Errorf("agent %s, the first time: %s", agent, got)
		}
	}
	for _, c := range []struct{ agent, want string }{
		{"c", "k2"}, {"a", "k0"}, {"c", "k2"}, // their own
		{"e", "k1"}, {"f", "k3"}, {"g", "k0"}, // the longest rested
		{"b", "k2"}, // its own is another's by now
		{"e", "k1"},
	} {
		if got := round(c.agent); got != c.want {
			t.Errorf("agent %s got %s, want %s", c.agent, got, c.want)
		}
	}
	// Of several that were its own, the last one: it is the one that the agent's caches know.
	first, second := r.take(t, p, ledger, "x", time.Hour), r.take(t, p, ledger, "x", time.Hour)
	r.clock.Advance(time.Minute)
	r.end(t, p, ledger, first, broker.CauseTaskEnded)
	r.clock.Advance(time.Minute)
	r.end(t, p, ledger, second, broker.CauseTaskEnded)
	if got := round("x"); got != key(second) {
		t.Errorf("agent x got %s; its last one was %s", got, key(second))
	}
	// Its own is held: it gets another.
	one := r.take(t, p, ledger, "x", time.Hour)
	if two := r.take(t, p, ledger, "x", time.Hour); key(one) == key(two) {
		t.Errorf("%s has two holders", key(one))
	}
}

func TestExhausted(t *testing.T) {
	t.Parallel()
	r := newRig(t, 3)
	ledger := replicas(t, 1)[0]
	p := r.provider(t, ledger)
	wait := func() time.Duration {
		t.Helper()
		c := providertest.Intend(t, ledger, p, r.credential(""), r.clock.Now(), time.Hour)
		_, err := p.Mint(t.Context(), c)
		e := broker.AsError(err)
		if err == nil || e.Code != broker.CodePoolExhausted || !errors.Is(err, broker.ErrNotMinted) {
			t.Fatalf("all keys are out: %v", err)
		}
		return e.RetryAfter
	}
	long := r.take(t, p, ledger, "a", time.Hour)
	r.take(t, p, ledger, "b", 10*time.Minute)
	short := r.take(t, p, ledger, "c", 4*time.Minute)
	if got := wait(); got != 4*time.Minute {
		t.Errorf("the first comes back in 4 min; told to wait %s", got)
	}
	r.clock.Advance(3 * time.Minute)
	if got := wait(); got != time.Minute {
		t.Errorf("the first comes back in 1 min; told to wait %s", got)
	}
	r.clock.Advance(2 * time.Minute) // it is late
	if got := wait(); got <= 0 || got > 5*time.Minute {
		t.Errorf("the first is overdue; told to wait %s", got)
	}
	r.end(t, p, ledger, short, broker.CauseExpired)
	if c := r.take(t, p, ledger, "d", 30*time.Minute); key(c) != key(short) {
		t.Errorf("got %s, only %s is free", key(c), key(short))
	}
	if got := wait(); got != 5*time.Minute {
		t.Errorf("the first comes back in 5 min; told to wait %s", got)
	}
	// A quarantined key is not due back at any time.
	long = providertest.Ask(t, ledger, long, broker.CauseRevoked)
	if _, err := p.Revoke(t.Context(), long); !errors.Is(err, broker.ErrNotRotated) {
		t.Fatal(err)
	}
	if got := wait(); got != 5*time.Minute {
		t.Errorf("the first comes back in 5 min; told to wait %s", got)
	}
}

func TestNobodyKnowsWhenAKeyComesBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	ledger := replicas(t, 1)[0]
	p := r.provider(t, ledger)
	c := providertest.Ask(t, ledger, r.take(t, p, ledger, "a", time.Hour), broker.CauseRevoked)
	if _, err := p.Revoke(t.Context(), c); !errors.Is(err, broker.ErrNotRotated) {
		t.Fatal(err)
	}
	_, err := p.Mint(t.Context(), providertest.Intend(t, ledger, p, r.credential(""), r.clock.Now(), time.Hour))
	if e := broker.AsError(err); err == nil || e.Code != broker.CodePoolExhausted || e.RetryAfter <= 0 {
		t.Errorf("%v, try again after %s", err, e.RetryAfter)
	}
}

// The same key under two names, or in two pools, is one key: held once, quarantined once.
func TestSameValueIsOneKey(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r, other := newRig(t, 2), newRig(t, 1)
	shared := r.values["k0"]
	r.write(t, "k1", shared)
	other.write(t, "k0", shared)
	p, q := r.provider(t, ledger), other.provider(t, ledger)
	refused := func(r *rig, p *pool.Provider, why string) {
		t.Helper()
		_, err := p.Mint(t.Context(), providertest.Intend(t, ledger, p, r.credential(""), r.clock.Now(), time.Hour))
		if e := broker.AsError(err); err == nil || e.Code != broker.CodePoolExhausted || !errors.Is(err, broker.ErrNotMinted) {
			t.Fatalf("%s: %v", why, err)
		}
	}
	c := r.take(t, p, ledger, "a", time.Hour)
	refused(r, p, "its other name")
	refused(other, q, "its other pool")
	r.end(t, p, ledger, c, broker.CauseExpired)
	d := other.take(t, q, ledger, "b", time.Hour)
	refused(r, p, "it is out of the other pool")
	d = providertest.Ask(t, ledger, d, broker.CauseRevoked)
	if _, err := q.Revoke(t.Context(), d); !errors.Is(err, broker.ErrNotRotated) {
		t.Fatal(err)
	}
	refused(r, p, "quarantined in the other pool")
	r.write(t, "k1", r.fresh())
	if c := r.take(t, p, ledger, "a", time.Hour); key(c) != "k1" {
		t.Errorf("got %s; only k1 has a value of its own", key(c))
	}
}

// Many at once want what is one key under many names.
func TestSameValueUnderRace(t *testing.T) {
	t.Parallel()
	r := newRig(t, 6)
	for i := range 6 {
		r.write(t, fmt.Sprintf("k%d", i), r.values["k0"])
	}
	held, failures := r.takers(t, replicas(t, 2), 20)
	if len(held) != 1 || len(failures) != 19 {
		t.Errorf("%d values given out, to %d takers", len(held), 20-len(failures))
	}
	for _, err := range failures {
		if e := broker.AsError(err); e.Code != broker.CodePoolExhausted {
			t.Errorf("%v", err)
		}
	}
}

// A revoked key rests until its value has changed at its source: then the revocation is done and the key is free.
func TestQuarantine(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	ledgers := replicas(t, 2)
	ledger, p, replica := ledgers[0], r.provider(t, ledgers[0]), r.provider(t, ledgers[1])
	exhausted := func(why string) {
		t.Helper()
		_, err := p.Mint(t.Context(), providertest.Intend(t, ledger, p, r.credential(""), r.clock.Now(), time.Hour))
		if e := broker.AsError(err); err == nil || e.Code != broker.CodePoolExhausted && e.Code != broker.CodeUpstreamRefused {
			t.Fatalf("%s: %v", why, err)
		}
	}
	open := func(why string, c broker.Credential) {
		t.Helper()
		for _, p := range []*pool.Provider{p, replica} {
			if done, err := p.Revoke(t.Context(), c); !errors.Is(err, broker.ErrNotRotated) || done.Result != broker.ResultNone {
				t.Fatalf("%s: %+v, %v", why, done, err)
			}
		}
	}
	c := providertest.Ask(t, ledger, r.take(t, p, ledger, "a", time.Hour), broker.CauseRevoked)
	open("unchanged", c)
	exhausted("quarantined")
	r.clock.Advance(48 * time.Hour)
	open("long after its end", c)
	exhausted("long after its end")

	value := r.values["k0"]
	if err := os.Remove(r.path("k0")); err != nil {
		t.Fatal(err)
	}
	open("its reference cannot be read: that proves nothing", c)
	exhausted("unreadable")
	r.write(t, "k0", value)
	open("the same value is back", c)

	r.replace(t, "k0")
	done, err := replica.Revoke(t.Context(), c)
	want := broker.Revocation{Result: broker.ResultDestroyed, EffectiveAt: r.clock.Now(), Basis: "key_replaced"}
	if diff := cmp.Diff(want, done); err != nil || diff != "" {
		t.Errorf("replaced: %v %s", err, diff)
	}
	providertest.Settle(t, ledger, c, done)
	if again := r.take(t, p, ledger, "b", time.Hour); key(again) != "k0" {
		t.Errorf("got %s", key(again))
	}
}

// A replaced key can be handed out before anybody asks again after the revocation that waits for it.
func TestReplacedKeyIsFree(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	ledger := replicas(t, 1)[0]
	p := r.provider(t, ledger)
	c := providertest.Ask(t, ledger, r.take(t, p, ledger, "a", time.Hour), broker.CauseRevoked)
	if _, err := p.Revoke(t.Context(), c); !errors.Is(err, broker.ErrNotRotated) {
		t.Fatal(err)
	}
	r.replace(t, "k0")
	next := r.take(t, p, ledger, "b", time.Hour)
	if done, err := p.Revoke(t.Context(), c); err != nil || done.Result == broker.ResultNone {
		t.Errorf("its key is another's, with another value: %+v, %v", done, err)
	}
	if r.holders(t, ledger)["k0"] != next.ID {
		t.Error("the end of the one took the key from the other")
	}
}

func TestNormalEnds(t *testing.T) {
	t.Parallel()
	for _, cause := range []broker.Cause{broker.CauseExpired, broker.CauseTaskEnded, broker.CauseReplaced, broker.CauseAbandoned} {
		r := newRig(t, 1)
		ledger := replicas(t, 1)[0]
		p := r.provider(t, ledger)
		c := r.take(t, p, ledger, "a", time.Hour)
		want := broker.Revocation{Result: broker.ResultReleased, EffectiveAt: r.clock.Now(), Basis: "returned"}
		if diff := cmp.Diff(want, r.end(t, p, ledger, c, cause)); diff != "" {
			t.Errorf("%s: %s", cause, diff)
		}
		if again := r.take(t, p, ledger, "b", time.Hour); key(again) != "k0" {
			t.Errorf("%s: got %s", cause, key(again))
		}
	}
}

// Nobody saw the key of a mint that the broker could not finish, so nobody needs to replace it.
func TestLostMintReleases(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	ledger := replicas(t, 1)[0]
	p := r.provider(t, ledger)
	c := providertest.Intend(t, ledger, p, r.credential("a"), r.clock.Now(), time.Hour)
	if _, err := p.Mint(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	c = providertest.Crash(t, ledger, c)
	if done, err := p.Revoke(t.Context(), c); err != nil || done.Result != broker.ResultReleased {
		t.Fatalf("%+v, %v", done, err)
	}
	if again := r.take(t, p, ledger, "b", time.Hour); key(again) != "k0" {
		t.Errorf("got %s", key(again))
	}
}

func TestUnreadableKeys(t *testing.T) {
	t.Parallel()
	r := newRig(t, 4)
	ledger := replicas(t, 1)[0]
	p := r.provider(t, ledger)
	if err := os.Remove(r.path("k0")); err != nil {
		t.Fatal(err)
	}
	r.write(t, "k1", "  \n ")
	r.write(t, "k2", strings.Repeat("x", 100_000))
	if c := r.take(t, p, ledger, "a", time.Hour); key(c) != "k3" {
		t.Errorf("got %s; only k3 can be read", key(c))
	}
	if err := os.Remove(r.path("k3")); err != nil {
		t.Fatal(err)
	}
	_, err := p.Mint(t.Context(), providertest.Intend(t, ledger, p, r.credential(""), r.clock.Now(), time.Hour))
	if e := broker.AsError(err); err == nil || e.Code != broker.CodeUpstreamRefused || !errors.Is(err, broker.ErrNotMinted) {
		t.Errorf("no key can be read: %v", err)
	}
	r.write(t, "k0", r.fresh())
	if c := r.take(t, p, ledger, "b", time.Hour); key(c) != "k0" {
		t.Errorf("got %s; k0 can be read again", key(c))
	}
}

// Keys come and go with the configuration; what is held stays held.
func TestPoolGrowsAndShrinks(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	ledger := replicas(t, 1)[0]
	p := r.provider(t, ledger)
	first := r.take(t, p, ledger, "a", time.Hour)
	r.add(t, "k1")
	p = r.provider(t, ledger) // as after a reload
	if c := r.take(t, p, ledger, "b", time.Hour); key(c) != "k1" {
		t.Errorf("got %s; k1 is new", key(c))
	}
	r.add(t, "k2")
	shrunk := r.config()
	shrunk.Keys = shrunk.Keys[2:]
	p = open(t, shrunk, ledger, r.clock.Now)
	r.end(t, p, ledger, first, broker.CauseExpired)
	if c := r.take(t, p, ledger, "a", time.Hour); key(c) != "k2" {
		t.Errorf("got %s, which is no longer configured", key(c))
	}
	// A key that is no longer configured cannot be seen to be replaced.
	gone := r.holders(t, ledger)["k1"]
	c, err := ledger.Credential(t.Context(), gone)
	if err != nil {
		t.Fatal(err)
	}
	c = providertest.Ask(t, ledger, c, broker.CauseRevoked)
	if done, err := p.Revoke(t.Context(), c); !errors.Is(err, broker.ErrNotRotated) {
		t.Errorf("%+v, %v", done, err)
	}
}

// A credential keeps its key from version to version, and gives it back with the last one.
func TestVersionsShareAKey(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	ledger := replicas(t, 1)[0]
	p := r.provider(t, ledger)
	one := r.take(t, p, ledger, "a", time.Hour)
	two := r.next(t, p, ledger, one)
	if key(one) != key(two) || string(one.Version.Fingerprint) != string(two.Version.Fingerprint) {
		t.Errorf("version 1 has %s, version 2 %s", key(one), key(two))
	}
	r.end(t, p, ledger, one, broker.CauseReplaced)
	if r.holders(t, ledger)[key(one)] != one.ID {
		t.Fatal("the key went back while version 2 uses it")
	}
	r.end(t, p, ledger, two, broker.CauseExpired)
	if holders := r.holders(t, ledger); len(holders) != 0 {
		t.Errorf("held after the last version's end: %v", holders)
	}
}

func (r *rig) next(t *testing.T, p *pool.Provider, ledger *store.Store, c broker.Credential) broker.Credential {
	t.Helper()
	c = providertest.Next(t, ledger, p, c, r.clock.Now())
	m, err := p.Mint(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return providertest.Activate(t, ledger, c, m)
}

// Two versions of one credential that end at the same moment, as when their task ends, give the key back between them.
func TestVersionsThatEndTogether(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	ledger := replicas(t, 1)[0]
	p := r.provider(t, ledger)
	one := r.take(t, p, ledger, "a", time.Hour)
	two := r.next(t, p, ledger, one)
	one, two = providertest.Ask(t, ledger, one, broker.CauseTaskEnded), providertest.Ask(t, ledger, two, broker.CauseTaskEnded)
	done := make([]broker.Revocation, 2)
	for i, c := range []broker.Credential{one, two} { // neither's end is recorded before the other's is asked for
		var err error
		if done[i], err = p.Revoke(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	providertest.Settle(t, ledger, one, done[0])
	providertest.Settle(t, ledger, two, done[1])
	if holders := r.holders(t, ledger); len(holders) != 0 {
		t.Errorf("nothing is alive, and the key is held for ever: %v", holders)
	}
}

// The key was replaced between two versions: the first one's is dead, the second one's is not.
func TestReplacedBetweenVersions(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	ledger := replicas(t, 1)[0]
	p := r.provider(t, ledger)
	one := r.take(t, p, ledger, "a", time.Hour)
	r.replace(t, key(one))
	two := r.next(t, p, ledger, one)
	if key(one) != key(two) || string(one.Version.Fingerprint) == string(two.Version.Fingerprint) {
		t.Fatalf("version 2 does not have the new value of %s", key(one))
	}
	one = providertest.Ask(t, ledger, one, broker.CauseRevoked)
	done, err := p.Revoke(t.Context(), one)
	if err != nil || done.Result != broker.ResultDestroyed {
		t.Errorf("version 1's value is gone from its source: %+v, %v", done, err)
	} else {
		providertest.Settle(t, ledger, one, done)
	}
	if r.holders(t, ledger)[key(two)] != two.ID {
		t.Error("version 2 lost its key")
	}
	two = providertest.Ask(t, ledger, two, broker.CauseRevoked)
	if done, err := p.Revoke(t.Context(), two); !errors.Is(err, broker.ErrNotRotated) {
		t.Errorf("version 2's value is in use: %+v, %v", done, err)
	}
}

// A key that is quarantined for one version is not given back by the end of another.
func TestQuarantineOutlivesOtherVersions(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	ledger := replicas(t, 1)[0]
	p := r.provider(t, ledger)
	one := r.take(t, p, ledger, "a", time.Hour)
	two := r.next(t, p, ledger, one)
	one = providertest.Ask(t, ledger, one, broker.CauseRevoked)
	if _, err := p.Revoke(t.Context(), one); !errors.Is(err, broker.ErrNotRotated) {
		t.Fatal(err)
	}
	r.end(t, p, ledger, two, broker.CauseExpired)
	if holders := r.holders(t, ledger); holders[key(one)] != one.ID {
		t.Errorf("the revoked key is free: %v", holders)
	}
	r.replace(t, key(one))
	done, err := p.Revoke(t.Context(), one)
	if err != nil || done.Result != broker.ResultDestroyed {
		t.Errorf("%+v, %v", done, err)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	good := pool.Config{Name: "p", Keys: []pool.Key{{Name: "k", Value: "env:K"}}, Scopes: []string{"b", "a"}}
	if faults := good.Check(); len(faults) > 0 {
		t.Errorf("%v", faults)
	}
	if diff := cmp.Diff([]string{"a", "b"}, good.ScopeNames()); diff != "" || good.Scopes[0] != "b" {
		t.Errorf("scopes: %s", diff)
	}
	if good.Capabilities().Disclosed {
		t.Error("accepts disclosure unasked")
	}
	good.Disclosed = "accept"
	if caps := good.Capabilities(); !caps.Disclosed || caps.Revoke != broker.RevokeNone || caps.SelfExpires {
		t.Errorf("%+v", caps)
	}
	const secret = "sk-C4n4ry-pasted"
	for name, c := range map[string]struct {
		edit func(*pool.Config)
		want string // pointer
	}{
		"no name":           {func(c *pool.Config) { c.Name = "" }, "name"},
		"bad name":          {func(c *pool.Config) { c.Name = secret + "/" }, "name"},
		"a key's own scope": {func(c *pool.Config) { c.Keys[0].Scopes = []string{"zzz"} }, "keys[0].scopes[0]"},
		"bad label":         {func(c *pool.Config) { c.Keys[0].Labels = map[string]string{"a b": "c"} }, "keys[0].labels"},
		"reuse":             {func(c *pool.Config) { c.Reuse = "maybe" }, "reuse"},
		"rest":              {func(c *pool.Config) { c.Rest = time.Millisecond }, "rest"},
		"deadline":          {func(c *pool.Config) { c.Deadline = time.Second }, "deadline"},
		"check every":       {func(c *pool.Config) { c.CheckEvery = -1 }, "check_every"},
		"holders":           {func(c *pool.Config) { c.MaxHolders = 5000 }, "max_holders"},
		"refusals":          {func(c *pool.Config) { c.MaxRefusals = -1 }, "max_refusals"},
		"select":            {func(c *pool.Config) { c.Select = map[string]string{"": "x"} }, "select"},
		"bad key name":      {func(c *pool.Config) { c.Keys[0].Name = "a b" + secret }, "keys[0].name"},
		"key name twice":    {func(c *pool.Config) { c.Keys = append(c.Keys, pool.Key{Name: "k", Value: "env:L"}) }, "keys[1].name"},
		"reference twice":   {func(c *pool.Config) { c.Keys = append(c.Keys, pool.Key{Name: "l", Value: "env:K"}) }, "keys[1].value"},
		"no reference":      {func(c *pool.Config) { c.Keys[0].Value = "" }, "keys[0].value"},
		"the secret itself": {func(c *pool.Config) { c.Keys[0].Value = secret }, "keys[0].value"},
		"relative path":     {func(c *pool.Config) { c.Keys[0].Value = "file:k" }, "keys[0].value"},
		"no scopes":         {func(c *pool.Config) { c.Scopes = nil }, "scopes"},
		"scope twice":       {func(c *pool.Config) { c.Scopes = []string{"a", "a"} }, "scopes[1]"},
		"disclosed":         {func(c *pool.Config) { c.Disclosed = "yes" }, "disclosed"},
	} {
		bad := good
		bad.Keys = append([]pool.Key(nil), good.Keys...)
		c.edit(&bad)
		faults := bad.Check()
		if len(faults) != 1 || faults[0].Pointer != c.want || strings.Contains(fmt.Sprint(faults), "C4n4ry") {
			t.Errorf("%s: %v", name, faults)
		}
	}
}
