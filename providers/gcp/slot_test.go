package gcp_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/providers/gcp"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/gcp"
)

const skew = 2 * time.Minute // the default

func (r *rig) disabled(t testing.TB, email string) bool {
	t.Helper()
	info, ok := r.Account(email)
	if !ok {
		t.Fatalf("no account %s", email)
	}
	return info.Disabled
}

func (r *rig) keep(t testing.TB, p *gcp.Provider) time.Time {
	t.Helper()
	next, err := p.Keep(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// state is an account's as the ledger has it.
func (r *rig) state(t testing.TB, ledger *store.Store, email string) broker.Account {
	t.Helper()
	list, err := ledger.Accounts(t.Context(), []string{email})
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	return list[0]
}

// edits are the events about accounts that somebody else changed.
func (r *rig) edits(t testing.TB, ledger *store.Store) int {
	t.Helper()
	n := 0
	err := ledger.Pool().QueryRow(t.Context(), "SELECT count(*) FROM events WHERE type = 'upstream.edited' AND $1 = ANY (upstream_ids)", r.emails[0]).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A token of a task that has ended never works again, at no moment of its account's round, and whoever has the account.
func TestATokenOfAnEndedTaskNeverWorksAgain(t *testing.T) {
	t.Parallel()
	for cause, end := range map[broker.Cause]func(*rig, *testing.T, *gcp.Provider, *store.Store, broker.Credential){
		broker.CauseRevoked: func(r *rig, t *testing.T, p *gcp.Provider, l *store.Store, c broker.Credential) {
			if done := r.end(t, p, l, c, broker.CauseRevoked); done.Result != broker.ResultDenied || done.Basis != "account_disabled" {
				t.Errorf("%+v", done)
			}
		},
		broker.CauseTaskEnded: func(r *rig, t *testing.T, p *gcp.Provider, l *store.Store, c broker.Credential) {
			r.end(t, p, l, c, broker.CauseTaskEnded)
		},
		broker.CauseExpired: func(r *rig, t *testing.T, _ *gcp.Provider, l *store.Store, c broker.Credential) {
			r.clock.To(c.Version.ExpiresAt) // the sweeper records it and asks nobody
			expire(t, l, c)
		},
	} {
		for _, kept := range []bool{true, false} { // with upkeep, and without: then the next mint does it
			t.Run(string(cause), func(t *testing.T) {
				t.Parallel()
				ledger := replicas(t, 1)[0]
				r := newRig(t, "slot", 1)
				p := r.provider(t, ledger)
				first, m := r.issue(t, p, ledger, 10*time.Minute)
				dead, _ := r.token(t, m.Secret)
				end(r, t, p, ledger, first)
				checks := 0
				never := func() {
					t.Helper()
					checks++
					if r.Usable(dead) || r.reads(t, dead, "tasks/"+first.TaskID+"/brief.txt") {
						t.Errorf("%s after its issue, it works", r.clock.Now().Sub(first.Version.IssuedAt))
					}
				}
				var next broker.Credential
				for next.ID == "" {
					never()
					if kept {
						r.keep(t, p)
						never()
					}
					c := providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 10*time.Minute)
					m, err := p.Mint(t.Context(), c)
					if err == nil {
						next = providertest.Activate(t, ledger, c, m)
						if !r.alive(t, next, m.Secret) {
							t.Error("the next task's token does not work")
						}
						break
					}
					e := exhausted(t, err)
					if back := first.Version.ExpiresAt.Add(skew); !r.clock.Now().Add(e.RetryAfter).Equal(back) {
						t.Errorf("says it is back at %s; it is at %s", r.clock.Now().Add(e.RetryAfter), back)
					}
					r.clock.Advance(e.RetryAfter/2 + time.Second)
					if checks > 60 {
						t.Fatal("never given to anybody again")
					}
				}
				never()
				if rested := next.Version.IssuedAt.Sub(first.Version.ExpiresAt); rested < skew {
					t.Errorf("changed hands %s after the last token's end", rested)
				}
				r.end(t, p, ledger, next, broker.CauseRevoked)
				never()
			})
		}
	}
}

// expire records the end of a version whose time has come, as the sweeper does.
func expire(t testing.TB, ledger *store.Store, c broker.Credential) {
	t.Helper()
	v := &c.Version
	v.State, v.Cause, v.DueAt, v.EndedAt = broker.StateExpired, broker.CauseExpired, time.Time{}, v.ExpiresAt
	v.Revocation = broker.Revocation{Result: broker.ResultExpires, EffectiveAt: v.ExpiresAt, Basis: "self_expires"}
	e := broker.Event{ID: broker.NewEventID(), At: v.ExpiresAt, Type: broker.EventExpired, Credential: c.ID, State: v.State}
	if err := ledger.Move(t.Context(), c, []broker.State{broker.StateActive}, nil, e); err != nil {
		t.Fatal(err)
	}
}

func exhausted(t testing.TB, err error) *broker.Error {
	t.Helper()
	e, ok := errors.AsType[*broker.Error](err)
	if !ok || e.Code != broker.CodePoolExhausted || e.RetryAfter <= 0 || !errors.Is(err, broker.ErrNotMinted) {
		t.Fatalf("want pool_exhausted with a time, got %v", err)
	}
	return e
}

// The rest ends with the last token that was made on the account, not with the first.
func TestARefreshProlongsTheRest(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "slot", 1)
	p := r.provider(t, ledger)
	c, one := r.issue(t, p, ledger, 10*time.Minute)
	r.clock.Advance(5 * time.Minute)
	next := providertest.Next(t, ledger, p, c, r.clock.Now())
	two, err := p.Mint(t.Context(), next)
	if err != nil {
		t.Fatal(err)
	}
	next = providertest.Activate(t, ledger, next, two)
	if one.Trace["service_account"] != two.Trace["service_account"] {
		t.Errorf("moved from %s to %s", one.Trace["service_account"], two.Trace["service_account"])
	}
	c = providertest.Ask(t, ledger, c, broker.CauseReplaced)
	if done, err := p.Revoke(t.Context(), c); err != nil || done.Result != broker.ResultExpires || !done.EffectiveAt.Equal(c.Version.ExpiresAt) {
		t.Errorf("the end of one version cannot be told apart from its successor's: %+v, %v", done, err)
	}
	if !r.alive(t, next, two.Secret) {
		t.Error("the successor died")
	}
	r.end(t, p, ledger, next, broker.CauseRevoked)
	if a := r.state(t, ledger, r.emails[0]); a.State != broker.AccountResting || !a.AliveUntil.Equal(next.Version.ExpiresAt.Add(skew)) {
		t.Errorf("%+v", a)
	}
}

// A mint whose answer is lost counts as a token until its end.
func TestALostMintKeepsItsAccountResting(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "slot", 1)
	p := r.provider(t, ledger)
	r.Inject(sandbox.Fault{Method: "GenerateAccessToken", Kind: sandbox.DropReply})
	c := providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 10*time.Minute)
	if _, err := p.Mint(t.Context(), c); err == nil || errors.Is(err, broker.ErrNotMinted) {
		t.Fatalf("%v", err)
	}
	lost := r.LastToken()
	if !r.Usable(lost) {
		t.Fatal("nothing was lost")
	}
	c = providertest.Crash(t, ledger, c)
	if done, err := p.Revoke(t.Context(), c); err != nil || done.Result != broker.ResultDenied {
		t.Fatalf("%+v, %v", done, err)
	}
	if r.Usable(lost) {
		t.Error("the lost token works")
	}
	for range 12 {
		r.keep(t, p)
		if r.Usable(lost) {
			t.Errorf("revived %s after its issue", r.clock.Now().Sub(c.Version.IssuedAt))
		}
		r.clock.Advance(time.Minute)
	}
}

// What the upstream refused for sure is no reason to rest.
func TestARefusedMintGivesItsAccountBack(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "slot", 1)
	p := r.provider(t, ledger)
	r.Inject(sandbox.Fault{Method: "GenerateAccessToken", Kind: sandbox.Exhausted})
	c := providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 10*time.Minute)
	_, err := p.Mint(t.Context(), c)
	if e := broker.AsError(err); !errors.Is(err, broker.ErrNotMinted) || e.Code != broker.CodeUpstreamThrottled || e.RetryAfter != sandbox.RetryDelay {
		t.Fatalf("%v", err)
	}
	r.issue(t, p, ledger, 10*time.Minute)
}

func TestOneAccountOneHolder(t *testing.T) {
	t.Parallel()
	const accounts, replicasN, asking = 4, 3, 12
	r := newRig(t, "slot", accounts)
	stores := replicas(t, replicasN)
	var mu sync.Mutex
	holders, refused := map[string]int{}, 0
	var wg sync.WaitGroup
	for i := range asking {
		p := r.provider(t, stores[i%replicasN])
		c := providertest.Intend(t, stores[i%replicasN], p, r.credential(), r.clock.Now(), 10*time.Minute)
		wg.Go(func() {
			m, err := p.Mint(t.Context(), c)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				if e := broker.AsError(err); e.Code != broker.CodePoolExhausted {
					t.Error(err)
				}
				refused++
				return
			}
			holders[m.Trace["service_account"]]++
		})
	}
	wg.Wait()
	if len(holders) != accounts || refused != asking-accounts {
		t.Errorf("%v, %d refused", holders, refused)
	}
}

func TestAnAccountEnabledByHandIsNoticed(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "slot", 1)
	p := r.provider(t, ledger)
	c, m := r.issue(t, p, ledger, 10*time.Minute)
	r.end(t, p, ledger, c, broker.CauseRevoked)
	r.keep(t, p)
	if n := r.edits(t, ledger); n != 0 {
		t.Fatalf("%d edits reported before there was one", n)
	}
	r.SetDisabled(r.emails[0], false)
	if !r.alive(t, c, m.Secret) {
		t.Fatal("enabling revives no token: the stand-in is wrong")
	}
	if next := r.keep(t, p); next.After(r.clock.Now().Add(time.Minute)) {
		t.Errorf("looks again only at %s", next)
	}
	if r.alive(t, c, m.Secret) || !r.disabled(t, r.emails[0]) || r.edits(t, ledger) != 1 {
		t.Errorf("disabled %v, %d edits", r.disabled(t, r.emails[0]), r.edits(t, ledger))
	}
}

func TestAnAccountDisabledByHandIsReportedOnce(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "slot", 1)
	p := r.provider(t, ledger)
	c, _ := r.issue(t, p, ledger, 30*time.Minute)
	r.SetDisabled(r.emails[0], true)
	for range 3 {
		r.keep(t, p)
		r.clock.Advance(time.Minute)
	}
	if !r.disabled(t, r.emails[0]) || r.edits(t, ledger) != 1 {
		t.Errorf("disabled %v, %d edits", r.disabled(t, r.emails[0]), r.edits(t, ledger))
	}
	next := providertest.Next(t, ledger, p, c, r.clock.Now())
	if _, err := p.Mint(t.Context(), next); broker.AsError(err).Code != broker.CodeUpstreamRefused || !r.disabled(t, r.emails[0]) {
		t.Errorf("a refresh lifted the operator's brake: %v", err)
	}
}

// The attempt to disable failed, and the process that made it is gone: who keeps the accounts makes it good, and that is
// no edit by somebody else.
func TestUpkeepAfterACrash(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "slot", 1)
	p := r.provider(t, ledger)
	c, m := r.issue(t, p, ledger, 10*time.Minute)
	r.Inject(sandbox.Fault{Method: "DisableServiceAccount", Kind: sandbox.Unavailable})
	c = providertest.Ask(t, ledger, c, broker.CauseRevoked)
	if _, err := p.Revoke(t.Context(), c); err == nil {
		t.Fatal("claims success")
	}
	if !r.alive(t, c, m.Secret) {
		t.Fatal("it was disabled")
	}
	again := r.provider(t, replicas(t, 1)[0])
	r.keep(t, again)
	if r.alive(t, c, m.Secret) || r.edits(t, ledger) != 0 {
		t.Errorf("alive, or %d edits", r.edits(t, ledger))
	}
	// A crash while it is being enabled again.
	r.clock.To(c.Version.ExpiresAt.Add(skew))
	r.Inject(sandbox.Fault{Method: "EnableServiceAccount", Kind: sandbox.DropReply})
	if _, err := again.Keep(t.Context()); err == nil {
		t.Error("claims success")
	}
	if a := r.state(t, ledger, r.emails[0]); a.State != broker.AccountWaking {
		t.Errorf("%+v", a)
	}
	r.clock.Advance(skew) // what was not answered may happen until then
	r.keep(t, again)
	if a := r.state(t, ledger, r.emails[0]); a.State != broker.AccountAvailable || r.disabled(t, r.emails[0]) {
		t.Errorf("%+v", a)
	}
	r.issue(t, p, ledger, 10*time.Minute)
}

// Accounts that an operator made disabled, or that rested through, are enabled when they are taken, and asked again in
// the grace while Google does not show it everywhere.
func TestADisabledFreeAccountIsEnabled(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	grace := 5 * time.Second
	r := newRig(t, "slot", 1, func(_ *sandbox.Config, c *gcp.Config) { c.Grace = &grace })
	p := r.provider(t, ledger)
	r.SetDisabled(r.emails[0], true)
	c, m := r.issue(t, p, ledger, 10*time.Minute)
	if !r.alive(t, c, m.Secret) || m.Trace["usable_after"] == "" {
		t.Errorf("%v", m.Trace)
	}
	r.end(t, p, ledger, c, broker.CauseRevoked)
	r.clock.To(c.Version.ExpiresAt.Add(skew))
	r.Inject(sandbox.Fault{Method: "GenerateAccessToken", Kind: sandbox.Denied})
	if c, m = r.issue(t, p, ledger, 10*time.Minute); !r.alive(t, c, m.Secret) {
		t.Error("does not work")
	}
	if calls := r.Calls("GenerateAccessToken"); calls != 4 {
		t.Errorf("%d calls", calls)
	}
}

// An attempt to end a version that comes after its account went to the next task leaves that one alone.
func TestALateRevocationSparesTheNextHolder(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "slot", 1)
	p := r.provider(t, ledger)
	for _, rested := range []bool{false, true} {
		c, _ := r.issue(t, p, ledger, 10*time.Minute)
		c = providertest.Ask(t, ledger, c, broker.CauseRevoked)
		if rested {
			if _, err := p.Revoke(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		r.clock.To(c.Version.ExpiresAt.Add(skew))
		next, m := r.issue(t, p, ledger, 10*time.Minute)
		done, err := p.Revoke(t.Context(), c)
		if err != nil || done.Result != broker.ResultDenied || done.Basis != "time_over" {
			t.Errorf("%+v, %v", done, err)
		}
		if !r.alive(t, next, m.Secret) {
			t.Error("the next holder's token died")
		}
		r.end(t, p, ledger, next, broker.CauseRevoked)
		r.clock.To(next.Version.ExpiresAt.Add(skew))
	}
}

// Late work of a version that was ended gets no account.
func TestALateMintGetsNoAccount(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "slot", 1)
	p := r.provider(t, ledger)
	c := providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 10*time.Minute)
	late := c
	c = providertest.Crash(t, ledger, c)
	if done, err := p.Revoke(t.Context(), c); err != nil || done.Basis != "not_held" {
		t.Errorf("%+v, %v", done, err)
	}
	if _, err := p.Mint(t.Context(), late); !errors.Is(err, broker.ErrNotMinted) || len(r.Tokens()) != 0 {
		t.Errorf("%v, %d tokens", err, len(r.Tokens()))
	}
	if a := r.state(t, ledger, r.emails[0]); a.State != broker.AccountAvailable {
		t.Errorf("%+v", a)
	}
}
