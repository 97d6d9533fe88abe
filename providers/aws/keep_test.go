package aws_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/aws"
)

// held is a session that was minted, with its secret.
type held struct {
	broker.Credential
	secret broker.Bundle
}

// hold issues n sessions.
func (r *rig) sessions(t *testing.T, p *aws.Provider, ledger *store.Store, n int, ttl time.Duration) []held {
	t.Helper()
	list := make([]held, n)
	for i := range list {
		c, m := r.issue(t, p, ledger, ttl)
		list[i] = held{c, m.Secret}
	}
	return list
}

// end revokes a session and records what was achieved, as the broker does.
func (r *rig) end(t *testing.T, p *aws.Provider, ledger *store.Store, h held) broker.Revocation {
	t.Helper()
	c := providertest.Ask(t, ledger, h.Credential, broker.CauseRevoked)
	done, err := p.Revoke(t.Context(), c)
	if err != nil || done.Result != broker.ResultDenied {
		t.Fatalf("%+v, %v", done, err)
	}
	providertest.Settle(t, ledger, c, done)
	return done
}

// dead checks that AWS refuses each of these now.
func (r *rig) dead(t *testing.T, why string, list ...held) {
	t.Helper()
	n := 0
	for _, h := range list {
		if r.alive(t, h.Credential, h.secret) {
			n++
		}
	}
	if n > 0 {
		t.Errorf("%s: %d of %d that were said to be denied are alive", why, n, len(list))
	}
}

// live checks that AWS serves each of these now.
func (r *rig) live(t *testing.T, why string, list ...held) {
	t.Helper()
	for _, h := range list {
		if !r.alive(t, h.Credential, h.secret) {
			t.Errorf("%s: %s is dead", why, h.Version.ID)
		}
	}
}

// keep is one look at the role's policies.
func keep(t *testing.T, p *aws.Provider) time.Time {
	t.Helper()
	next, err := p.Keep(t.Context())
	if err != nil {
		t.Fatalf("Keep: %v", err)
	}
	return next
}

// looked is a look in the broker's way: claimed before, and recorded afterwards.
func (r *rig) looked(t *testing.T, p *aws.Provider, ledger *store.Store) {
	t.Helper()
	const lease = time.Minute
	leased := r.clock.Now().Add(lease)
	_, err := ledger.ClaimUpkeep(t.Context(), []string{p.Keeps()}, r.clock.Now(), lease)
	must(t, err)
	must(t, ledger.Kept(t.Context(), p.Keeps(), leased, keep(t, p)))
}

// soon checks that the role is looked at again in just the time after which a write is read back.
func (r *rig) soon(t *testing.T, ledger *store.Store) {
	t.Helper()
	if _, _, due := r.upkeep(t, ledger); due.Sub(r.clock.Now().Add(15*time.Second)).Abs() > time.Second {
		t.Errorf("after a write it is looked at in %s", due.Sub(r.clock.Now()))
	}
}

// events counts what is on record about the rig's role.
func (r *rig) events(t *testing.T, ledger *store.Store, kind broker.EventType) int {
	t.Helper()
	var n int
	err := ledger.Pool().QueryRow(t.Context(), `SELECT count(*) FROM events WHERE type = $1 AND body LIKE '%' || $2 || '%'`,
		string(kind), r.config.RoleARN).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// upkeep is the role's row.
func (r *rig) upkeep(t *testing.T, ledger *store.Store) (used, room int64, due time.Time) {
	t.Helper()
	err := ledger.Pool().QueryRow(t.Context(), `SELECT used, room, CASE WHEN isfinite(due_at) THEN due_at ELSE 'epoch' END FROM upkeep WHERE upstream = $1`, r.config.RoleARN).Scan(&used, &room, &due)
	if err != nil {
		t.Fatal(err)
	}
	return used, room, due
}

// other is a policy of exactly n characters.
func other(n int) string {
	const frame = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::%s"}]}`
	return fmt.Sprintf(frame, strings.Repeat("x", n-len(frame)+2))
}

// How many characters a deny policy by user id has beside its entries, and for each: what room means in these tests.
const (
	frameSize = len(`{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"StringLike":{"aws:userid":[]}}}]}`)
	entrySize = len(`"*:xxxxxxxxxxxxxxxx",`)
)

// crowd has another inline policy of the role leave room for n denials, and not for another.
func (r *rig) crowd(t *testing.T, n int) {
	t.Helper()
	if err := r.SetRolePolicy(r.role, "operators-own", other(10_240-frameSize-n*entrySize-entrySize/2)); err != nil {
		t.Fatal(err)
	}
}

const spillDocument = `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"StringEquals":{"aws:userid":"nobody"}}}]}`

// spill makes managed policies that the profile names, and attaches those that are to be.
func spill(t *testing.T, attached ...bool) (edit func(*aws.Config), make func(*rig)) {
	t.Helper()
	var arns []string
	for i := range attached {
		arns = append(arns, fmt.Sprintf("arn:aws:iam::123456789012:policy/taskpass-spill-%d", i+1))
	}
	edit = func(c *aws.Config) { c.Revocation.SpillPolicies = arns }
	return edit, func(r *rig) {
		for i, a := range arns {
			if err := r.AddManagedPolicy(a, spillDocument); err != nil {
				t.Fatal(err)
			}
			if !attached[i] {
				continue
			}
			if err := r.AttachRolePolicy(r.role, a); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// current is a managed policy's document that is in force.
func (r *rig) current(arn string) string {
	for _, v := range r.PolicyVersions(arn) {
		if v.Default {
			return v.Document
		}
	}
	return ""
}

// Expired entries go without anybody's revocation, and Keep says when it is to be called for that.
func TestKeepDropsWhatHasExpired(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	start := r.clock.Now()
	if next := keep(t, p); !next.Equal(start.Add(5 * time.Minute)) {
		t.Errorf("with nothing to keep the next look is at %s", next.Sub(start))
	}
	if n := r.calls("PutRolePolicy") + r.calls("DeleteRolePolicy"); n != 0 {
		t.Errorf("%d writes for nothing", n)
	}
	short, long := r.asked(t, p, ledger, 2, 2*time.Minute), r.asked(t, p, ledger, 2, 20*time.Minute)
	all := slices.Concat(short, long)
	r.revokeAll(t, all[:1], func(int) *aws.Provider { return p })
	r.holdsAll(t, all)
	next := keep(t, p)
	if want := short[0].Version.ExpiresAt.Add(time.Minute); next.Sub(want).Abs() > time.Second {
		t.Errorf("the next look is at +%s; the first entry is of no use from +%s on", next.Sub(start), want.Sub(start))
	}
	r.clock.To(next.Add(time.Second))
	keep(t, p)
	r.holdsAll(t, long)
	r.clock.To(long[1].Version.ExpiresAt.Add(time.Minute + time.Second))
	keep(t, p)
	if policy, ok := r.RolePolicies(r.role)[aws.PolicyName]; ok {
		t.Errorf("what denies nothing is left: %s", policy)
	}
	if n := r.events(t, ledger, broker.EventUpstreamEdited); n != 0 {
		t.Errorf("%d edits by others are on record; there was none", n)
	}
}

// What others do to the policies is set right, and on the record once.
func TestForeignEditsAreRepaired(t *testing.T) {
	t.Parallel()
	const foreign = `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"StringEquals":{"aws:userid":"AROAOTHER:x"}}}]}`
	edit, prepare := spill(t, true)
	for name, change := range map[string]struct {
		do   func(t *testing.T, r *rig)
		want int
	}{
		"nothing":  {func(*testing.T, *rig) {}, 0},
		"replaced": {func(t *testing.T, r *rig) { must(t, r.SetRolePolicy(r.role, aws.PolicyName, foreign)) }, 1},
		"deleted":  {func(t *testing.T, r *rig) { must(t, r.SetRolePolicy(r.role, aws.PolicyName, "")) }, 1},
		"written in other words": {func(t *testing.T, r *rig) {
			text := strings.Replace(r.denied(), `"Effect":"Deny","Action":"*",`, ` "Action" : "*" , "Effect" : "Deny",`+"\n", 1)
			must(t, r.SetRolePolicy(r.role, aws.PolicyName, text))
		}, 0},
		"managed replaced": {func(t *testing.T, r *rig) {
			_, err := r.AddPolicyVersion(r.config.Revocation.SpillPolicies[0], foreign, true)
			must(t, err)
		}, 1},
		"managed put back": {func(t *testing.T, r *rig) {
			must(t, r.SetDefaultPolicyVersion(r.config.Revocation.SpillPolicies[0], "v1"))
		}, 1},
		"managed version that is not in force": {func(t *testing.T, r *rig) {
			_, err := r.AddPolicyVersion(r.config.Revocation.SpillPolicies[0], foreign, false)
			must(t, err)
		}, 0},
		"both": {func(t *testing.T, r *rig) {
			must(t, r.SetRolePolicy(r.role, aws.PolicyName, foreign))
			must(t, r.SetDefaultPolicyVersion(r.config.Revocation.SpillPolicies[0], "v1"))
		}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, edit)
			prepare(r)
			ledger := replicas(t, 1)[0]
			p := r.replica(t, ledger)
			r.crowd(t, 2)
			list := r.sessions(t, p, ledger, 4, time.Hour)
			for _, h := range list[:3] { // two in the inline policy, one in the managed one
				r.end(t, p, ledger, h)
			}
			r.dead(t, "before", list[:3]...)
			r.clock.Advance(6 * time.Minute) // IAM's reads are true by now
			keep(t, p)
			writes := r.calls("PutRolePolicy") + r.calls("CreatePolicyVersion")
			change.do(t, r)
			keep(t, p)
			r.dead(t, "after", list[:3]...)
			r.live(t, "after", list[3])
			if n := r.events(t, ledger, broker.EventUpstreamEdited); n != change.want {
				t.Errorf("%d edits on record; want %d", n, change.want)
			}
			if n := r.calls("PutRolePolicy") + r.calls("CreatePolicyVersion") - writes; n != change.want {
				t.Errorf("%d writes; want %d", n, change.want)
			}
			r.clock.Advance(6 * time.Minute)
			keep(t, p)
			if n := r.events(t, ledger, broker.EventUpstreamEdited); n != change.want {
				t.Errorf("a look later %d edits are on record; want %d", n, change.want)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// IAM's reads may be behind its writes. Neither that nor our own lost answers and crashes are somebody else's edits.
func TestOwnWritesAreNobodysEdits(t *testing.T) {
	t.Parallel()
	for name, trouble := range map[string]func(t *testing.T, r *rig, p *aws.Provider, c broker.Credential){
		"stale read": func(t *testing.T, r *rig, p *aws.Provider, c broker.Credential) {
			_, err := p.Revoke(t.Context(), c)
			must(t, err)
			r.Inject(sandbox.Fault{Action: "GetRolePolicy", Kind: sandbox.StaleRead})
		},
		"lost answer": func(t *testing.T, r *rig, p *aws.Provider, c broker.Credential) {
			r.lose("PutRolePolicy")
			if _, err := p.Revoke(t.Context(), c); err == nil {
				t.Error("it claims to know")
			}
		},
		"crash before the write": func(t *testing.T, r *rig, p *aws.Provider, c broker.Credential) {
			ctx, crash := context.WithCancel(t.Context())
			arrived := r.front.hold("PutRolePolicy")
			go func() { <-arrived; crash() }()
			if _, err := p.Revoke(ctx, c); err == nil {
				t.Error("it claims to know")
			}
			r.open()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			ledger := replicas(t, 1)[0]
			p := r.replica(t, ledger)
			list := r.sessions(t, p, ledger, 2, time.Hour)
			r.end(t, p, ledger, list[0])
			r.clock.Advance(6 * time.Minute)
			r.looked(t, p, ledger)
			c := providertest.Ask(t, ledger, list[1].Credential, broker.CauseRevoked)
			trouble(t, r, p, c)
			r.soon(t, ledger)
			r.clock.Advance(15 * time.Second)
			keep(t, r.replica(t, ledger)) // whichever replica
			keep(t, p)
			r.dead(t, "healed", list...)
			if n := r.events(t, ledger, broker.EventUpstreamEdited); n != 0 {
				t.Errorf("%d edits on record", n)
			}
		})
	}
}

// A write that AWS was slow with comes after a newer one and undoes it: the next look finds it.
func TestLateWriteIsUndone(t *testing.T) {
	t.Parallel()
	edit, prepare := spill(t, true)
	for action, crowded := range map[string]bool{"PutRolePolicy": false, "CreatePolicyVersion": true} {
		t.Run(action, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, edit)
			prepare(r)
			ledger := replicas(t, 1)[0]
			p := r.replica(t, ledger)
			if crowded {
				r.crowd(t, 1)
			}
			list := r.sessions(t, p, ledger, 4, time.Hour)
			r.end(t, p, ledger, list[0])
			r.looked(t, p, ledger)
			late := r.Hold(action)
			first := providertest.Ask(t, ledger, list[1].Credential, broker.CauseRevoked)
			if _, err := p.Revoke(providertest.ExpireAfter(t.Context(), late.Arrived()), first); err == nil {
				t.Fatal("it claims to know")
			}
			r.end(t, p, ledger, list[2]) // writes all three
			r.dead(t, "before", list[:3]...)
			late.Release()
			if alive := r.alive(t, list[2].Credential, list[2].secret); !alive {
				t.Fatal("the late write undid nothing: this proves nothing")
			}
			r.soon(t, ledger)
			r.clock.Advance(15 * time.Second)
			keep(t, p)
			r.dead(t, "after", list[:3]...)
			r.live(t, "after", list[3])
			if n := r.events(t, ledger, broker.EventUpstreamEdited); n != 0 {
				t.Errorf("%d edits on record", n)
			}
		})
	}
}
