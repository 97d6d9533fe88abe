package lifetest

import (
	"cmp"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
	"github.com/taskpass/taskpass/providers/pool"
)

// shared is a pool of n keys that orch and other both use.
func shared(t *testing.T, n int, c pool.Config) *pools {
	t.Helper()
	c.SharePercent = cmp.Or(c.SharePercent, broker.DefaultSharePercent)
	p := newPools(t, map[string]pool.Config{"p": c})
	p.hand(n)
	return p
}

// out counts the keys that nobody but their holder can have now.
func (p *pools) out() int {
	p.t.Helper()
	n := 0
	for _, k := range p.as("aud").poolKeys("keys").want(p.t, http.StatusOK).keys {
		if k.State != client.Available {
			n++
		}
	}
	return n
}

// Whoever issues and revokes each free key quarantines its share and no more; the others' keys are theirs.
func TestShareOfAPoolByRevoking(t *testing.T) {
	t.Parallel()
	p := shared(t, 12, pool.Config{})
	for i := range 12 {
		got := p.as("orch").on(i).issue(ask("p", fmt.Sprint("t", i)))
		if i >= 3 {
			if got.want(t, broker.CodeQuotaExceeded); got.status != http.StatusTooManyRequests || got.problem.RetryAfterSeconds <= 0 {
				t.Errorf("the answer beyond the share: %d, %+v", got.status, got.problem)
			}
			continue
		}
		p.as("orch").revoke(got.want(t, http.StatusCreated).issued.ID).want(t, http.StatusAccepted)
	}
	if n := p.out(); n != 3 {
		t.Errorf("%d of 12 keys are quarantined, want a quarter", n)
	}
	p.clock.advance(time.Hour)
	p.as("orch").issue(ask("p", "later")).want(t, broker.CodeQuotaExceeded)
	for i := range 3 {
		p.as("other").on(i).issue(ask("p", fmt.Sprint("o", i))).want(t, http.StatusCreated)
	}
	p.as("other").issue(ask("p", "o3")).want(t, broker.CodeQuotaExceeded)
	// A replaced key is out of the share: it may be had again.
	for _, k := range p.as("aud").poolKeys("keys").want(t, http.StatusOK).keys {
		if k.State == client.Quarantined {
			p.as("ops").rotateKey(k.Name, p.value(), time.Hour).want(t, http.StatusAccepted)
			break
		}
	}
	p.as("orch").issue(ask("p", "again")).want(t, http.StatusCreated)
	p.as("orch").issue(ask("p", "once more")).want(t, broker.CodeInvalidRequest)
	p.as("orch").issue(ask("p", "once-more")).want(t, broker.CodeQuotaExceeded)
	p.sound()
}

// Two callers take all that they get on two replicas at once: each gets its share, to the key.
func TestShareOnTwoReplicas(t *testing.T) {
	t.Parallel()
	p := shared(t, 16, pool.Config{})
	var got [2]atomic.Int32
	together(48, func(i int) {
		name := []string{"orch", "other"}[i%2]
		switch r := p.as(name).on(i / 2).issue(ask("p", fmt.Sprint("t", i), agent(fmt.Sprint("a", i)))); {
		case r.status == http.StatusCreated:
			got[i%2].Add(1)
		case r.code != broker.CodeQuotaExceeded:
			t.Errorf("%s is answered %d %s", name, r.status, r.code)
		}
	})
	if got[0].Load() != 4 || got[1].Load() != 4 {
		t.Errorf("orch got %d, other %d of 16 keys, want 4 each", got[0].Load(), got[1].Load())
	}
	p.sound()
}

// False reports of a 401 rest a share of the keys, however often they are made; and a revocation of all that was had
// quarantines no more, though each version had a key that was somebody else's for the taking when its rest was over.
func TestShareOfAPoolByReports(t *testing.T) {
	t.Parallel()
	p := shared(t, 8, pool.Config{})
	most := 0
	var ids []string
	for round := range 6 {
		for i := range 4 {
			r := p.as("orch").on(i).issue(ask("p", fmt.Sprintf("t-%d-%d", round, i), agent(fmt.Sprintf("a-%d-%d", round, i))))
			if r.status != http.StatusCreated {
				r.want(t, broker.CodeQuotaExceeded)
				continue
			}
			ids = append(ids, r.issued.ID)
			for version := 1; version <= 3; version++ {
				if a := p.as("orch").on(i).report(r.issued.ID, version, 401).want(t, http.StatusOK).advice; a.Action != client.Refresh {
					if a.Action != client.Halt {
						t.Errorf("advised %+v", a)
					}
					break
				}
			}
		}
		most = max(most, p.out())
		p.clock.advance(61 * time.Second) // the rests are over
	}
	if len(ids) == 0 || most > 2 {
		t.Errorf("%d credentials were had, and up to %d keys were out at once, want 2", len(ids), most)
	}
	for _, id := range ids {
		p.as("orch").revoke(id)
	}
	if n := p.out(); n > 2 {
		t.Errorf("%d keys are out after all were revoked, want 2 at the most", n)
	}
	for i := range 2 {
		p.as("other").issue(ask("p", fmt.Sprint("o", i))).want(t, http.StatusCreated)
	}
	p.sound()
}

// The few keys that have a rare scope are not one caller's, nor is a seat at a key that is its already denied.
func TestShareOfRareKeys(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {Scopes: []string{"read", "admin"}, SharePercent: 50, MaxHolders: 2}})
	for i := range 8 {
		scopes := []string{"read"}
		if i < 2 {
			scopes = []string{"read", "admin"}
		}
		p.as("ops").addKey(client.NewPoolKey{Name: fmt.Sprint("k", i), Value: p.value(), Scopes: scopes}).want(t, http.StatusCreated)
	}
	first := p.mustIssue(ask("p", "t1", scoped("admin")))
	second := p.mustIssue(ask("p", "t2", scoped("admin")))
	if keyOf(first) != keyOf(second) {
		t.Errorf("one caller has %s and %s, of two keys with that scope", keyOf(first), keyOf(second))
	}
	p.as("orch").issue(ask("p", "t3", scoped("admin"))).want(t, broker.CodeQuotaExceeded)
	if got := p.as("other").issue(ask("p", "t4", scoped("admin"))).want(t, http.StatusCreated).issued; keyOf(got) == keyOf(first) {
		t.Errorf("other gets %s, whose seats are taken", keyOf(got))
	}
	p.sound()
}

// A pool that one caller uses has no share, nor has one that each caller may use wholly: what is taken is taken.
func TestNoShare(t *testing.T) {
	t.Parallel()
	for name, percent := range map[string]int{"one caller": 0, "all of it for each": 100} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPools(t, map[string]pool.Config{"p": {SharePercent: percent}})
			p.hand(4)
			for i := range 4 {
				p.as("orch").revoke(p.mustIssue(ask("p", fmt.Sprint("t", i))).ID).want(t, http.StatusAccepted)
			}
			p.as("orch").issue(ask("p", "t5")).want(t, broker.CodePoolExhausted)
			p.sound()
		})
	}
}

// What no header can carry is refused by hand, with the reason and without the value.
func TestValuesByHand(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {}})
	p.hand(1)
	for _, value := range []string{"\ufeffkey-C4n4ry", "key-C4n4ry\n", " key-C4n4ry", "key\n-C4n4ry", "key\x00-C4n4ry", "k\u00e9y-C4n4ry", "key\t-C4n4ry"} {
		for _, r := range []reply{
			p.as("ops").addKey(client.NewPoolKey{Name: "x", Value: value}), p.as("ops").rotateKey("k00", value, time.Hour),
		} {
			r.want(t, broker.CodeInvalidRequest)
			if len(r.problem.Errors) != 1 || r.problem.Errors[0].Pointer != "/value" {
				t.Errorf("%q: %+v", value, r.problem)
			}
		}
	}
	p.sound()
}
