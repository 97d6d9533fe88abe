package providertest

import (
	"context"
	"errors"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

var machineWord = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// holds checks what a Revoke answered against what it can do and against the upstream, and goes on to the moment from
// which the answer holds. seen tells whether anybody was given the secret. An empty secret is not looked for.
func (s Subject) holds(t testing.TB, c broker.Credential, secret broker.Bundle, done broker.Revocation, err error, seen bool) {
	t.Helper()
	if err != nil {
		t.Fatalf("Revoke: %v", err)
	}
	now, caps := s.Clock.Now(), s.Provider.Capabilities()
	if !machineWord.MatchString(done.Basis) || done.EffectiveAt.IsZero() {
		t.Errorf("a revocation without a reason or a time: %+v", done)
	}
	dead := true
	switch done.Result {
	case broker.ResultDestroyed:
		if caps.Revoke != broker.RevokeDestroy {
			t.Errorf("says %s, and can do %s", done.Result, caps.Revoke)
		}
	case broker.ResultDenied:
		if caps.Revoke == broker.RevokeNone {
			t.Errorf("says %s, and can do %s", done.Result, caps.Revoke)
		}
	case broker.ResultExpires:
		if !caps.SelfExpires || done.EffectiveAt.After(c.Version.ExpiresAt) {
			t.Errorf("says it dies by itself at %s; its end is %s", done.EffectiveAt, c.Version.ExpiresAt)
		}
	case broker.ResultReleased:
		// Honest for a key that goes back to its pool: when its holder is done with it, or before anybody saw it.
		if dead = false; !caps.Disclosed || seen && c.Version.Cause == broker.CauseRevoked {
			t.Errorf("says %s of a secret that somebody has seen and may still use", done.Result)
		}
		if s.knows(t, c.Version.ID) {
			t.Error("released, and still held")
		}
	default:
		t.Errorf("says %q", done.Result)
	}
	if done.Result != broker.ResultExpires && done.EffectiveAt.After(now.Add(caps.RevokeLag)) {
		t.Errorf("takes effect %s from now; the promise is %s", done.EffectiveAt.Sub(now), caps.RevokeLag)
	}
	s.Clock.To(done.EffectiveAt)
	if dead && secret.Primary != "" && s.Alive(t, c, secret) {
		t.Errorf("said to be %s by now, and it works", done.Result)
	}
}

// end asks for a credential's early end and holds the answer to the truth. What is disclosed is replaced.
func (s Subject) end(t testing.TB, c broker.Credential, secret broker.Bundle) broker.Credential {
	t.Helper()
	c = Ask(t, s.Ledger, c, broker.CauseRevoked)
	s.ended(t, c, secret)
	return c
}

// ended holds the answer to a Revoke to the truth.
func (s Subject) ended(t testing.TB, c broker.Credential, secret broker.Bundle) {
	t.Helper()
	done, err := s.Provider.Revoke(within(t), c)
	if s.awaitsReplacement(t, err) {
		return
	}
	s.holds(t, c, secret, done, err, true)
}

// awaitsReplacement tells whether err is the one failure that is no fault: a disclosed secret cannot be ended.
func (s Subject) awaitsReplacement(t testing.TB, err error) bool {
	t.Helper()
	if !errors.Is(err, broker.ErrNotRotated) {
		return false
	}
	if !s.Provider.Capabilities().Disclosed {
		t.Error("only a disclosed secret outlives its credential")
	}
	return true
}

func revokeEnds(t *testing.T, s Subject) {
	c, m := s.issue(t)
	// Of the same task and agent, minted at the same moment: nearer a sibling cannot be.
	sibling := s.Credential()
	sibling.TaskID, sibling.AgentID, sibling.Metadata = c.TaskID, c.AgentID, c.Metadata
	sibling, other := s.issueFor(t, Intend(t, s.Ledger, s.Provider, sibling, s.Clock.Now(), s.Provider.Capabilities().MaxTTL))
	stranger, third := s.issueFor(t, s.intend(t, s.Provider.Capabilities().MaxTTL))
	s.end(t, c, m.Secret)
	if !s.Alive(t, sibling, other.Secret) || !s.Alive(t, stranger, third.Secret) {
		t.Error("the end of one took another with it")
	}
}

func revokeAfterCrash(t *testing.T, s Subject) {
	c := s.intend(t, s.ttl())
	m, err := s.Provider.Mint(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	c = Crash(t, s.Ledger, c)
	done, err := s.Provider.Revoke(within(t), c)
	s.holds(t, c, m.Secret, done, err, false)
}

func revokeNeverMinted(t *testing.T, s Subject) {
	sibling, m := s.issueFor(t, s.intend(t, s.Provider.Capabilities().MaxTTL))
	c := Crash(t, s.Ledger, s.intend(t, s.ttl()))
	done, err := s.Provider.Revoke(within(t), c)
	s.holds(t, c, broker.Bundle{}, done, err, false)
	if s.knows(t, c.Version.ID) {
		t.Error("what was never minted is held upstream")
	}
	if !s.Alive(t, sibling, m.Secret) {
		t.Error("the end of nothing took something with it")
	}
}

func revokeTwice(t *testing.T, s Subject) {
	c, m := s.issue(t)
	c = s.end(t, c, m.Secret)
	for range 3 {
		s.ended(t, c, m.Secret)
	}
}

func revokeByMany(t *testing.T, s Subject) {
	c, m := s.issue(t)
	sibling, other := s.issueFor(t, s.intend(t, s.Provider.Capabilities().MaxTTL))
	c = Ask(t, s.Ledger, c, broker.CauseRevoked)
	var wg sync.WaitGroup
	answers, errs := make([]broker.Revocation, 16), make([]error, 16)
	for i := range answers {
		wg.Go(func() { answers[i], errs[i] = s.Provider.Revoke(within(t), c) })
	}
	wg.Wait()
	for i := range answers {
		if !s.awaitsReplacement(t, errs[i]) {
			s.holds(t, c, m.Secret, answers[i], errs[i], true)
		}
	}
	if !s.Alive(t, sibling, other.Secret) {
		t.Error("the sibling died")
	}
}

func revokeMany(t *testing.T, s Subject) {
	spared, living := s.issueFor(t, s.intend(t, s.Provider.Capabilities().MaxTTL))
	credentials, secrets := make([]broker.Credential, AtOnce-1), make([]broker.Minted, AtOnce-1)
	for i := range credentials {
		credentials[i], secrets[i] = s.issue(t)
	}
	answers, errs := make([]broker.Revocation, len(credentials)), make([]error, len(credentials))
	var wg sync.WaitGroup
	for i := range credentials {
		wg.Go(func() {
			if credentials[i], errs[i] = ask(t.Context(), s.Ledger, credentials[i], broker.CauseRevoked); errs[i] == nil {
				answers[i], errs[i] = s.Provider.Revoke(within(t), credentials[i])
			}
		})
	}
	wg.Wait()
	for i, c := range credentials {
		if !s.awaitsReplacement(t, errs[i]) {
			s.holds(t, c, secrets[i].Secret, answers[i], errs[i], true)
		}
	}
	if !s.Alive(t, spared, living.Secret) {
		t.Error("the one that was not revoked died")
	}
}

// revokeReplaced is for a version whose successor is in use: its end must leave that one alone.
func revokeReplaced(t *testing.T, s Subject) {
	c, m := s.issueFor(t, s.intend(t, s.Provider.Capabilities().MaxTTL))
	next, n := s.issueFor(t, Next(t, s.Ledger, s.Provider, c, s.Clock.Now()))
	if !s.Alive(t, c, m.Secret) || !s.Alive(t, next, n.Secret) {
		t.Fatal("two versions of one credential do not live side by side")
	}
	if !s.knows(t, next.Version.ID) {
		t.Errorf("the upstream knows of no version %s", next.Version.ID)
	}
	c = Ask(t, s.Ledger, c, broker.CauseReplaced)
	done, err := s.Provider.Revoke(within(t), c)
	if done.Result == broker.ResultExpires {
		return // it dies by itself, and so does the next one
	}
	s.holds(t, c, m.Secret, done, err, true)
	Settle(t, s.Ledger, c, done)
	if !s.Alive(t, next, n.Secret) || !s.knows(t, next.Version.ID) {
		t.Error("the end of one version took its successor with it")
	}
	next = Ask(t, s.Ledger, next, broker.CauseTaskEnded)
	done, err = s.Provider.Revoke(within(t), next)
	s.holds(t, next, n.Secret, done, err, true)
}

// revokeAtEnd is for a version whose time has come: nobody asked, the secret was seen.
func revokeAtEnd(t *testing.T, s Subject) {
	c, m := s.issue(t)
	s.Clock.To(c.Version.ExpiresAt)
	c = Ask(t, s.Ledger, c, broker.CauseExpired)
	done, err := s.Provider.Revoke(within(t), c)
	s.holds(t, c, m.Secret, done, err, true)
}

// revokeAfterEnd is for a version that was asked to end early, and whose attempts failed until long after its end.
func revokeAfterEnd(t *testing.T, s Subject) {
	c, m := s.issue(t)
	c = Ask(t, s.Ledger, c, broker.CauseRevoked)
	s.Clock.To(c.Version.ExpiresAt.Add(24 * time.Hour))
	s.ended(t, c, m.Secret)
}

func revokeDisclosed(t *testing.T, s Subject) {
	if caps := s.Provider.Capabilities(); !caps.Disclosed || caps.Revoke != broker.RevokeNone {
		t.Skip("its secrets do not outlive their credentials, or its upstream can be told")
	}
	c, m := s.issue(t)
	c = Ask(t, s.Ledger, c, broker.CauseRevoked)
	for range 2 {
		if _, err := s.Provider.Revoke(within(t), c); !errors.Is(err, broker.ErrNotRotated) {
			t.Fatalf("the agent can still use it, and Revoke says %v", err)
		}
	}
	if !s.Alive(t, c, m.Secret) {
		t.Fatal("the upstream ended it without an operator: the Subject is wrong")
	}
	s.Replace(t, m.Secret)
	done, err := s.Provider.Revoke(within(t), c)
	if err != nil || done.Result != broker.ResultDestroyed || !machineWord.MatchString(done.Basis) {
		t.Errorf("replaced at its source, and Revoke says %+v, %v", done, err)
	}
	if s.Alive(t, c, m.Secret) {
		t.Error("replaced, and it works: the Subject is wrong")
	}
}

func revokeCancelled(t *testing.T, s Subject) {
	c, m := s.issue(t)
	met := s.fault(t, Revoke, Hang)
	c = Ask(t, s.Ledger, c, broker.CauseRevoked)
	obeys(t, met, func(ctx context.Context) error {
		_, err := s.Provider.Revoke(ctx, c)
		return err
	})
	s.ended(t, c, m.Secret)
}

// revokeFails is for an upstream that does not do as it is told, or does not say so: that is an error ("forbidden" is
// never "gone"), and the next attempt succeeds.
func revokeFails(f Fault) func(*testing.T, Subject) {
	return func(t *testing.T, s Subject) {
		c, m := s.issue(t)
		s.fault(t, Revoke, f)
		c = Ask(t, s.Ledger, c, broker.CauseRevoked)
		_, err := s.Provider.Revoke(within(t), c)
		if err == nil {
			t.Errorf("claims success after a %s", f)
		}
		clean(t, err)
		if f == Throttle {
			isThrottled(t, err)
		}
		s.ended(t, c, m.Secret)
	}
}
