package lifetest

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
	"github.com/taskpass/taskpass/providers/pool"
)

// rotated are the events of ended rotations: their outcomes.
func (p *pools) rotated() (outcomes []string) {
	for _, e := range p.events("") {
		if e.Type == string(broker.EventKeyRotated) {
			outcomes = append(outcomes, e.Trace["outcome"]+" "+e.Trace["moved"]+"/"+e.Trace["holders"])
		}
	}
	return outcomes
}

func (p *pools) wantRotated(want ...string) {
	p.t.Helper()
	if got := p.rotated(); fmt.Sprint(got) != fmt.Sprint(want) {
		p.t.Errorf("rotations ended %v, want %v", got, want)
	}
}

// Holders get the next version without asking, and the operator sees how many have it.
func TestRotation(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {MaxHolders: 4}})
	old := p.hand(1)["k00"]
	var held []client.IssuedCredential
	for i := range 4 {
		held = append(held, p.mustIssue(ask("p", fmt.Sprint("t", i), agent(fmt.Sprint("a", i)), taskToken)))
	}
	watched := make(chan reply, 1)
	go func() { watched <- p.by(held[0].TaskToken).watch(held[0].ID, 1, longest) }()
	fresh := p.value()
	got := p.as("ops").rotateKey("k00", fresh, time.Hour).want(t, http.StatusAccepted).key
	if got.State != client.Draining || got.Rotation.Holders != 4 || got.Rotation.Moved != 0 {
		t.Errorf("at first: %s, %+v", got.State, got.Rotation)
	}
	p.as("ops").rotateKey("k00", p.value(), time.Hour).want(t, broker.CodeConflict)
	p.settled()
	if w := (<-watched).want(t, http.StatusOK); w.state.Version != 2 {
		t.Errorf("the watch answers version %d", w.state.Version)
	}
	for i, c := range held {
		if k := p.stateOf("k00"); k.State != client.Draining || k.Rotation.Moved != i {
			t.Errorf("%d resolved: %s, %d moved", i, k.State, k.Rotation.Moved)
		}
		got := p.by(c.TaskToken).resolve(c.ID).want(t, http.StatusOK).resolved
		if valueOf(got.Secret) != fresh || got.Version != 2 {
			t.Errorf("resolved version %d with the new value %v", got.Version, valueOf(got.Secret) == fresh)
		}
		if got.ExpiresAt.After(c.ExpiresAt) {
			t.Errorf("the rotation makes its life longer: %s, was %s", got.ExpiresAt, c.ExpiresAt)
		}
	}
	if !p.works(old) {
		t.Error("the old value is dead before its holders moved")
	}
	p.looked()
	p.wantState("k00", client.Held)
	p.wantRotated("moved 4/4")
	if n := one[int](p.rig, "SELECT count(*)::int FROM rotations WHERE old_sealed IS NOT NULL"); n != 0 {
		t.Error("the old value is still kept")
	}
	for i := range held {
		if n := p.countEvents(fmt.Sprint("t", i), broker.EventRotated); n != 1 {
			t.Errorf("%d events of the holder's move", n)
		}
	}
	p.sound()
}

// Who does not move is not waited for beyond the deadline.
func TestRotationDeadline(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(1)
	c := p.mustIssue(ask("p", "t1"))
	fresh := p.value()
	p.as("ops").rotateKey("k00", fresh, 10*time.Minute).want(t, http.StatusAccepted)
	p.looked()
	p.clock.advance(8 * time.Minute)
	p.settled()
	p.wantRotated()
	p.clock.advance(2 * time.Minute)
	p.settled()
	p.wantRotated("deadline 0/1")
	if got := p.as("orch").resolve(c.ID).want(t, http.StatusOK).resolved; valueOf(got.Secret) != fresh {
		t.Error("it still gets the old value")
	}
	p.as("ops").changeKey("k00", client.Abort, "").want(t, broker.CodeConflict)
	p.sound()
}

// An abort goes back at every step, and holders that moved move back.
func TestRotationAborted(t *testing.T) {
	t.Parallel()
	for name, until := range map[string]func(p *pools, c client.IssuedCredential){
		"at once":             func(*pools, client.IssuedCredential) {},
		"when minted":         func(p *pools, _ client.IssuedCredential) { p.settled() },
		"when some have it":   func(p *pools, c client.IssuedCredential) { p.settled(); p.as("orch").resolve(c.ID) },
		"when some refreshed": func(p *pools, c client.IssuedCredential) { p.as("orch").refresh(c.ID, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPools(t, map[string]pool.Config{"p": {MaxHolders: 2}})
			old := p.hand(1)["k00"]
			c, lazy := p.mustIssue(ask("p", "t1")), p.mustIssue(ask("p", "t2", agent("b")))
			p.as("ops").rotateKey("k00", p.value(), time.Hour).want(t, http.StatusAccepted)
			until(p, c)
			k := p.as("ops").changeKey("k00", client.Abort, "").want(t, http.StatusOK).key
			if k.State == client.Draining || k.Rotation.ID != "" {
				t.Errorf("aborted, it is %s", k.State)
			}
			p.looked()
			p.looked()
			for _, h := range []client.IssuedCredential{c, lazy} {
				if got := p.as("orch").resolve(h.ID).want(t, http.StatusOK).resolved; valueOf(got.Secret) != old {
					t.Errorf("version %d does not have the value of before", got.Version)
				}
			}
			p.wantRotated()
			p.as("ops").changeKey("k00", client.Abort, "").want(t, broker.CodeConflict)
			fresh := p.value()
			p.as("ops").rotateKey("k00", fresh, time.Hour).want(t, http.StatusAccepted)
			p.looked()
			if got := p.as("orch").resolve(c.ID).want(t, http.StatusOK).resolved; valueOf(got.Secret) != fresh {
				t.Error("it cannot be rotated any more")
			}
			p.sound()
		})
	}
}

// A changed value at a reference is a rotation; a second change overtakes the first, and a change back takes it back.
func TestReferenceRotates(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := &pools{rig: r}
	c := r.mustIssue(ask("pool", "t1"))
	i := int(keyOf(c)[len("key-")] - '1')
	resolve := func(want string) {
		t.Helper()
		if got := r.as("orch").resolve(c.ID).want(t, http.StatusOK).resolved; valueOf(got.Secret) != want+"-of-"+keyOf(c) {
			t.Errorf("resolved %s", valueOf(got.Secret))
		}
	}
	p.looked()
	for _, step := range []string{"one", "two", "value", "three"} {
		r.writeKey(i, step)
		p.looked()
		if n := one[int](r, "SELECT count(*)::int FROM rotations WHERE ended_at IS NULL"); n != 1 {
			t.Errorf("%s: %d rotations are under way", step, n)
		}
		if step == "two" { // nobody has resolved meanwhile
			continue
		}
		resolve(step)
	}
	p.looked()
	if n := one[int](r, "SELECT count(*)::int FROM rotations WHERE ended_at IS NULL"); n != 0 {
		t.Errorf("%d rotations are under way", n)
	}
	if n := r.countEvents("", broker.EventKeyRotating); n != 4 {
		t.Errorf("%d rotations are on the record, want 4", n)
	}
	r.sound()
}

// A value that was read just before its key was rotated does not undo that.
func TestLateLookUndoesNothing(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(1)
	c := p.mustIssue(ask("p", "t1"))
	stale := p.stateOf("k00").Fingerprint
	p.as("ops").rotateKey("k00", p.value(), time.Hour).want(t, http.StatusAccepted)
	old := one[[]byte](p.rig, "SELECT old_fingerprint FROM rotations")
	if fmt.Sprintf("sha256:%x", old) != stale {
		t.Fatalf("another value was rotated")
	}
	if _, err := p.replicas[1].store.Converge(t.Context(), "keys", []broker.KeyChoice{{Name: "k00", Fingerprint: old}}, time.Hour, p.clock.Now()); err != nil {
		t.Fatal(err)
	}
	if n := one[int](p.rig, "SELECT count(*)::int FROM rotations WHERE ended_at IS NULL AND old_sealed IS NOT NULL"); n != 1 {
		t.Error("the rotation was undone")
	}
	// Nor is that value handed out to somebody new.
	later := broker.Credential{ID: broker.CredentialID(c.ID), AgentID: "x", Version: broker.Version{Number: 1, ExpiresAt: p.clock.Now().Add(time.Hour)}}
	p.as("orch").endTask("t1")
	p.settled()
	if n := one[int](p.rig, "SELECT count(*)::int FROM slots WHERE state = 'available'"); n != 1 {
		t.Fatal("the key is not free")
	}
	_, ok, _, err := p.replicas[0].store.Take(t.Context(), "keys", later, []broker.KeyChoice{{Name: "k00", Fingerprint: old}}, broker.Share{}, broker.Rest{}, p.clock.Now())
	if err != nil || ok {
		t.Errorf("the value of before was taken: %v, %v", ok, err)
	}
}

// A successor that could not be minted is tried again.
func TestSuccessorIsTriedAgain(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(1)
	c := p.mustIssue(ask("p", "t1"))
	fresh := p.value()
	p.as("ops").rotateKey("k00", fresh, time.Hour).want(t, http.StatusAccepted)
	p.exec("ALTER TABLE slots RENAME TO slots_away")
	for _, r := range p.replicas {
		_ = r.broker.Sweep(t.Context())
	}
	p.exec("ALTER TABLE slots_away RENAME TO slots")
	if n := one[int](p.rig, "SELECT count(*)::int FROM versions"); n < 2 {
		t.Fatal("nothing was tried")
	}
	p.looked()
	p.looked()
	if got := p.as("orch").resolve(c.ID).want(t, http.StatusOK).resolved; valueOf(got.Secret) != fresh {
		t.Errorf("version %d still has the old value", got.Version)
	}
	p.sound()
}

// The process dies at each step of a holder's move, and it is moved all the same.
func TestRotationResumes(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"after_reply", "after_outcome"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			var armed atomic.Bool
			p := newPools(t, map[string]pool.Config{"p": {}}, func(c *broker.Config) {
				c.Reached = func(at string) {
					if at == point && armed.CompareAndSwap(true, false) {
						runtime.Goexit() // nothing that comes after is done
					}
				}
			})
			p.hand(1)
			c := p.mustIssue(ask("p", "t1"))
			fresh := p.value()
			p.as("ops").rotateKey("k00", fresh, time.Hour).want(t, http.StatusAccepted)
			armed.Store(true)
			p.sweep()
			if armed.Load() {
				t.Fatal("it did not die")
			}
			for range 6 {
				p.looked()
			}
			if got := p.as("orch").resolve(c.ID).want(t, http.StatusOK).resolved; valueOf(got.Secret) != fresh {
				t.Errorf("version %d has the old value", got.Version)
			}
			p.looked()
			p.wantRotated("moved 1/1")
			p.sound()
		})
	}
}

// Holders that refresh, end or are revoked at the moment of a rotation.
func TestRotationRaces(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}}, func(c *broker.Config) {
		c.Limits = broker.Limits{PerTask: 1, PerAgent: 1, PerProfile: 12, PerCaller: 12} // full: a rotation is let through
	})
	values := p.hand(12)
	held := map[string]client.IssuedCredential{}
	for i := range 12 {
		c := p.mustIssue(ask("p", fmt.Sprint("t", i), agent(fmt.Sprint("a", i))))
		held[keyOf(c)] = c
	}
	fresh := map[string]string{}
	for k := range values {
		fresh[k] = p.value()
	}
	names := make([]string, 0, 12)
	for k := range values {
		names = append(names, k)
	}
	together(36, func(i int) {
		k := names[i%12]
		switch i / 12 {
		case 0:
			p.as("ops").rotateKey(k, fresh[k], time.Hour).want(t, http.StatusAccepted)
		case 1:
			switch i % 3 {
			case 0:
				p.as("orch").refresh(held[k].ID, 1).want(t, http.StatusCreated)
			case 1:
				p.as("orch").revoke(held[k].ID)
			}
		case 2:
			p.sweep()
		}
	})
	for range 3 {
		p.looked()
		for i, k := range names {
			if got := p.as("orch").resolve(held[k].ID); i%3 == 1 {
				got.want(t, broker.CodeCredentialEnded)
			} else if got.want(t, http.StatusOK); valueOf(got.resolved.Secret) != fresh[k] {
				t.Errorf("%s: version %d has the old value", k, got.resolved.Version)
			}
		}
	}
	if n := one[int](p.rig, "SELECT count(*)::int FROM rotations WHERE ended_at IS NULL"); n != 0 {
		t.Errorf("%d rotations are under way", n)
	}
	p.sound()
}

// Rotations under load: agents use what they resolved for as long as they are told, the vendor ends a value when its rotation
// says that all moved, and no call is ever refused.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	const keys = 4
	rounds := 1
	if os.Getenv("TASKPASS_LONG") != "" {
		rounds = 6
	}
	p := newPools(t, map[string]pool.Config{"p": {CheckEvery: time.Second}}, func(c *broker.Config) { c.UpstreamTimeout = time.Minute })
	values := p.hand(keys)
	held := make([]client.IssuedCredential, keys)
	for i := range held {
		held[i] = p.mustIssue(ask("p", fmt.Sprint("t", i), agent(fmt.Sprint("a", i)), lasting(maxTTL), taskToken))
	}
	p.run()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				p.clock.advance(time.Second)
			}
		}
	})
	var calls atomic.Int64
	for _, c := range held {
		wg.Go(func() {
			var secret string
			var until time.Time
			pace := time.NewTicker(5 * time.Millisecond)
			defer pace.Stop()
			for ctx.Err() == nil {
				if !p.clock.Now().Before(until) {
					got := p.by(c.TaskToken).resolve(c.ID)
					if got.status != http.StatusOK {
						t.Errorf("resolve: %d %s", got.status, got.code)
						return
					}
					secret, until = valueOf(got.resolved.Secret), p.clock.Now().Add(time.Duration(got.resolved.CacheForSeconds*float64(time.Second)))
				}
				if !p.works(secret) {
					t.Error("an agent holds only a dead key")
					return
				}
				calls.Add(1)
				<-pace.C
			}
		})
	}
	for range rounds {
		for k, old := range values {
			values[k] = p.value()
			p.as("ops").rotateKey(k, values[k], 24*time.Hour).want(t, http.StatusAccepted)
			eventually(t, "the rotation ends", func() bool { return p.stateOf(k).Rotation.ID == "" })
			p.kill(old)
		}
	}
	cancel()
	wg.Wait()
	for _, o := range p.rotated() {
		if o != "moved 1/1" {
			t.Errorf("a rotation ended %s", o)
		}
	}
	if n := len(p.rotated()); n != keys*rounds || calls.Load() < int64(keys*rounds) {
		t.Errorf("%d rotations, %d calls", n, calls.Load())
	}
}
