package gcp_test

import (
	"errors"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/gcp"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/gcp"
)

// What was asked and not answered may happen late: nobody gets an account while an unanswered call may still enable it,
// for it could land after that task's end, and revive its token.
func TestALateEnableMeetsNoTask(t *testing.T) {
	t.Parallel()
	for name, unanswered := range map[string]func(*rig, *testing.T, *gcp.Provider, broker.Credential){
		"by upkeep": func(r *rig, t *testing.T, p *gcp.Provider, _ broker.Credential) {
			if _, err := p.Keep(t.Context()); err == nil {
				t.Error("claims success")
			}
		},
		"by a mint": func(_ *rig, t *testing.T, p *gcp.Provider, c broker.Credential) {
			if _, err := p.Mint(t.Context(), c); !errors.Is(err, broker.ErrNotMinted) {
				t.Errorf("%v", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ledger := replicas(t, 1)[0]
			r := newRig(t, "slot", 1)
			p := r.provider(t, ledger)
			c, _ := r.issue(t, p, ledger, 10*time.Minute)
			r.end(t, p, ledger, c, broker.CauseRevoked)
			r.clock.To(c.Version.ExpiresAt.Add(skew))
			next := providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 10*time.Minute)
			r.Inject(sandbox.Fault{Method: "EnableServiceAccount", Kind: sandbox.Unavailable})
			asked := r.clock.Now()
			unanswered(r, t, p, next)
			for r.clock.Now().Sub(asked) < time.Minute { // a call's time limit is a minute at the most
				if enabled := r.Calls("EnableServiceAccount"); enabled != 1 {
					t.Errorf("%s later it is enabled again: %d calls", r.clock.Now().Sub(asked), enabled)
				}
				r.keep(t, p)
				other := providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 10*time.Minute)
				_, err := p.Mint(t.Context(), other)
				exhausted(t, err)
				r.clock.Advance(20 * time.Second)
			}
			r.clock.Advance(skew)
			r.keep(t, p)
			if a := r.state(t, ledger, r.emails[0]); a.State != broker.AccountAvailable || r.disabled(t, r.emails[0]) {
				t.Errorf("%+v", a)
			}
			r.issue(t, p, ledger, 10*time.Minute)
		})
	}
}

// Two that look at the same moment: one enables.
func TestOneWakes(t *testing.T) {
	t.Parallel()
	r := newRig(t, "slot", 1)
	ledger := replicas(t, 1)[0]
	p := r.provider(t, ledger)
	c, _ := r.issue(t, p, ledger, 10*time.Minute)
	r.end(t, p, ledger, c, broker.CauseRevoked)
	r.clock.To(c.Version.ExpiresAt.Add(skew))
	met := make(chan struct{})
	r.Inject(sandbox.Fault{Method: "EnableServiceAccount", Kind: sandbox.Hang, Met: met})
	hung := make(chan error, 1)
	ctx := providertest.ExpireAfter(t.Context(), met)
	go func() {
		_, err := p.Keep(ctx)
		hung <- err
	}()
	<-met
	r.keep(t, r.provider(t, ledger))
	if n := r.Calls("EnableServiceAccount"); n != 1 {
		t.Errorf("%d calls", n)
	}
	<-hung
}

// In the last moments of a rest nothing is disabled any more: it could land on the next holder.
func TestTheLastMomentOfARest(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "slot", 1)
	p := r.provider(t, ledger)
	c, m := r.issue(t, p, ledger, 10*time.Minute)
	r.end(t, p, ledger, c, broker.CauseRevoked)
	r.clock.To(c.Version.ExpiresAt.Add(skew - 10*time.Second))
	r.SetDisabled(r.emails[0], false)
	disables := r.Calls("DisableServiceAccount")
	r.keep(t, p)
	if done, err := p.Revoke(t.Context(), c); err != nil || done.Basis != "time_over" {
		t.Errorf("%+v, %v", done, err)
	}
	if n := r.Calls("DisableServiceAccount") - disables; n != 0 {
		t.Errorf("%d calls could meet the next holder", n)
	}
	if r.alive(t, c, m.Secret) {
		t.Error("it lives beyond its end")
	}
}

// A dead account that never wakes says nothing about when another is due back.
func TestExhaustedSaysWhenTheNextIsBackInSpiteOfADeadOne(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "slot", 2)
	p := r.provider(t, ledger)
	c, m := r.issue(t, p, ledger, 10*time.Minute)
	r.end(t, p, ledger, c, broker.CauseRevoked)
	long, _ := r.issue(t, p, ledger, time.Hour)
	r.clock.To(c.Version.ExpiresAt.Add(skew))
	r.Inject(sandbox.Fault{Method: "EnableServiceAccount", Kind: sandbox.Denied, Times: -1}) // it was deleted
	if _, err := p.Keep(t.Context()); err == nil {
		t.Error("claims success")
	}
	if a := r.state(t, ledger, m.Trace["service_account"]); a.State != broker.AccountWaking {
		t.Fatalf("%+v", a)
	}
	r.clock.To(long.Version.ExpiresAt.Add(-10 * time.Minute)) // nobody could look for long
	held := r.state(t, ledger, r.emails[1])
	if held.Holder == "" {
		held = r.state(t, ledger, r.emails[0])
	}
	asked := providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 10*time.Minute)
	if _, err := p.Mint(t.Context(), asked); err == nil || broker.AsError(err).Code != broker.CodeUpstreamRefused { // it is tried
		t.Errorf("%v", err)
	}
	asked = providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 10*time.Minute)
	_, err := p.Mint(t.Context(), asked)
	if e := exhausted(t, err); e.RetryAfter <= 30*time.Second || r.clock.Now().Add(e.RetryAfter).After(held.AliveUntil) {
		t.Errorf("%s", e.RetryAfter)
	}
}

// Google gave more than was asked for: nobody is handed it, and its account rests until the true end.
func TestATokenThatLivesTooLong(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	for _, mode := range []string{"impersonate", "slot"} {
		r := newRig(t, mode, 1, func(s *sandbox.Config, _ *gcp.Config) { s.Overlong = time.Hour })
		p := r.provider(t, ledger)
		c := providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 10*time.Minute)
		if _, err := p.Mint(t.Context(), c); err == nil || broker.AsError(err).Code != broker.CodeUpstreamError || errors.Is(err, broker.ErrNotMinted) {
			t.Fatalf("%s: %v", mode, err)
		}
		if mode == "impersonate" {
			continue // nobody has it, and nothing can end it
		}
		token := r.LastToken()
		c = providertest.Crash(t, ledger, c)
		if done, err := p.Revoke(t.Context(), c); err != nil || done.Result != broker.ResultDenied {
			t.Fatalf("%+v, %v", done, err)
		}
		for r.clock.Now().Before(c.Version.ExpiresAt.Add(time.Hour)) {
			if r.keep(t, p); r.Usable(token) {
				t.Fatalf("it works %s after its version's end", r.clock.Now().Sub(c.Version.ExpiresAt))
			}
			r.clock.Advance(5 * time.Minute)
		}
	}
}

// An account that was enabled a moment ago may not be usable everywhere yet, whoever enabled it.
func TestUsableAfter(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "slot", 1)
	p := r.provider(t, ledger)
	c, m := r.issue(t, p, ledger, 10*time.Minute)
	if c.Version.UsableAfter() != (time.Time{}) {
		t.Errorf("%v", m.Trace)
	}
	r.end(t, p, ledger, c, broker.CauseRevoked)
	r.clock.To(c.Version.ExpiresAt.Add(skew))
	r.keep(t, p)
	woken := r.clock.Now().UTC().Truncate(time.Second)
	r.clock.Advance(10 * time.Second)
	next, m := r.issue(t, p, ledger, 10*time.Minute)
	if !next.Version.UsableAfter().Equal(woken.Add(time.Minute)) {
		t.Errorf("woken %s: %v", woken, m.Trace)
	}
	r.end(t, p, ledger, next, broker.CauseRevoked)
	r.clock.To(next.Version.ExpiresAt.Add(skew))
	r.keep(t, p)
	r.clock.Advance(2 * time.Minute)
	if c, _ = r.issue(t, p, ledger, 10*time.Minute); !c.Version.UsableAfter().IsZero() {
		t.Errorf("%s, long after", c.Version.UsableAfter())
	}
}

// A key's deletion is believed when Google says that it did it; not found, right after the upload, is no proof.
func TestAKeyNotFoundWhenItIsDeleted(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	for _, own := range []bool{false, true} {
		for _, method := range []string{"DeleteServiceAccountKey", "ListServiceAccountKeys"} {
			var edits []edit
			if own {
				edits = append(edits, dedicated)
			}
			r := newRig(t, "key", 1, edits...)
			p := r.provider(t, ledger)
			if method == "ListServiceAccountKeys" {
				r.Hide(sandbox.Visibility{Calls: 1})
			} else {
				r.Inject(sandbox.Fault{Method: method, Kind: sandbox.NotSeen})
			}
			c, _ := r.issue(t, p, ledger, 30*time.Minute)
			c = providertest.Ask(t, ledger, c, broker.CauseRevoked)
			done, err := p.Revoke(t.Context(), c)
			if e := broker.AsError(err); e == nil || !e.Code.Retryable() || e.RetryAfter <= 0 {
				t.Errorf("dedicated %v, %s: %+v, %v", own, method, done, err)
			}
			if own && !r.disabled(t, r.emails[0]) {
				t.Error("it is not disabled meanwhile")
			}
			r.clock.Advance(skew)
			if _, err := p.Revoke(t.Context(), c); err != nil {
				t.Error(err)
			}
			if info, _ := r.Account(r.emails[0]); len(info.Keys) != 0 {
				t.Errorf("dedicated %v, %s: it stands", own, method)
			}
		}
	}
}

// Should Google show a key in another certificate, or with another end: what was minted is known by its id, and of what
// was lost nobody says that it is gone.
func TestAKeyThatGoogleShowsOtherwise(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "key", 1, func(s *sandbox.Config, _ *gcp.Config) { s.Recertify = true })
	p := r.provider(t, ledger)
	c, _ := r.issue(t, p, ledger, 30*time.Minute)
	c = providertest.Ask(t, ledger, c, broker.CauseRevoked)
	if _, err := p.Revoke(t.Context(), c); err != nil {
		t.Error(err)
	}
	if info, _ := r.Account(r.emails[0]); len(info.Keys) != 0 {
		t.Error("the key stands")
	}
	r.Inject(sandbox.Fault{Method: "UploadServiceAccountKey", Kind: sandbox.DropReply})
	c = providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 30*time.Minute)
	if _, err := p.Mint(t.Context(), c); err == nil {
		t.Fatal("nothing was lost")
	}
	c = providertest.Crash(t, ledger, c)
	r.clock.Advance(skew)
	if done, err := p.Revoke(t.Context(), c); err == nil {
		t.Errorf("says that it is gone: %+v", done)
	}

	r = newRig(t, "key", 1, func(s *sandbox.Config, _ *gcp.Config) { s.Overlong = time.Hour })
	p = r.provider(t, ledger)
	c = providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 30*time.Minute)
	if _, err := p.Mint(t.Context(), c); err == nil || errors.Is(err, broker.ErrNotMinted) {
		t.Fatalf("%v", err)
	}
	c = providertest.Crash(t, ledger, c)
	if _, err := p.Revoke(t.Context(), c); err != nil {
		t.Error(err)
	}
	if info, _ := r.Account(r.emails[0]); len(info.Keys) != 0 {
		t.Error("the key with another end stands")
	}
}

// A mint makes no call that it could do without.
func TestCallsOfAMint(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "slot", 1)
	p := r.provider(t, ledger)
	c, _ := r.issue(t, p, ledger, 10*time.Minute)
	next := providertest.Next(t, ledger, p, c, r.clock.Now())
	if _, err := p.Mint(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	for method, want := range map[string]int{"GenerateAccessToken": 2, "GetServiceAccount": 1, "EnableServiceAccount": 0, "DisableServiceAccount": 0} {
		if n := r.Calls(method); n != want {
			t.Errorf("%s: %d calls, want %d", method, n, want)
		}
	}
}
