package providertest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

func mintRefused(t *testing.T, s Subject) {
	s.fault(t, Mint, Refuse)
	c := s.intend(t, s.ttl())
	_, err := s.Provider.Mint(within(t), c)
	madeNothing(t, err)
	if code := codeOf(t, err); code.Retryable() {
		t.Errorf("%s: a refusal is no invitation to try again", code)
	}
	if s.knows(t, c.Version.ID) {
		t.Error("the upstream holds what it refused")
	}
}

func mintThrottled(t *testing.T, s Subject) {
	s.fault(t, Mint, Throttle)
	before := s.Calls()
	c := s.intend(t, s.ttl())
	_, err := s.Provider.Mint(within(t), c)
	madeNothing(t, err)
	isThrottled(t, err)
	if n := s.Calls() - before; n != 1 {
		t.Errorf("%d calls upstream: a retried mint is a second secret under one name", n)
	}
}

func mintUnreachable(t *testing.T, s Subject) {
	if s.Unreachable == nil {
		t.Skip("this upstream is not reached over a network")
	}
	_, err := s.Unreachable.Mint(within(t), s.intend(t, s.ttl()))
	madeNothing(t, err)
	if code := codeOf(t, err); !code.Retryable() {
		t.Errorf("%s: it may be reached later", code)
	}
}

// mintLost is for what leaves a mint in doubt: it must stay in doubt, and Revoke must end whatever there is.
func mintLost(f Fault) func(*testing.T, Subject) {
	return func(t *testing.T, s Subject) {
		s.issue(t) // so that a connection is open, and one that is kept alive is not taken for a reason to retry
		met := s.fault(t, Mint, f)
		c := s.intend(t, s.ttl())
		ctx := within(t)
		if f == Hang {
			ctx = ExpireAfter(ctx, met)
		}
		calls := s.calls()
		_, err := s.Provider.Mint(ctx, c)
		if err == nil {
			t.Fatal("the mint succeeded without an answer")
		}
		clean(t, err)
		if errors.Is(err, broker.ErrNotMinted) {
			t.Errorf("says that nothing was minted, and cannot know: %v", err)
		}
		if code := codeOf(t, err); !code.Retryable() {
			t.Errorf("%s: who asks again may be served", code)
		} else if f == Hang && s.Unreachable != nil && code != broker.CodeUpstreamTimeout {
			t.Errorf("%s: want %s", code, broker.CodeUpstreamTimeout)
		}
		if n := s.calls() - calls; s.Calls != nil && n != 1 {
			t.Errorf("%d calls upstream: a retried mint is a second secret under one name", n)
		}
		if f == LoseReply && !s.knows(t, c.Version.ID) {
			t.Error("LoseReply did not let the upstream do the work")
		}
		c = Crash(t, s.Ledger, c)
		done, err := s.Provider.Revoke(within(t), c)
		var secret broker.Bundle
		if f == LoseReply {
			secret = s.Lost(t)
		}
		s.holds(t, c, secret, done, err, false)
	}
}

func mintCancelled(t *testing.T, s Subject) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	calls := s.calls()
	_, err := s.Provider.Mint(ctx, s.intend(t, s.ttl()))
	if err == nil {
		t.Error("minted for a caller who had gone")
	}
	clean(t, err)
	if n := s.calls() - calls; n != 0 {
		t.Errorf("%d calls upstream for a caller who had gone", n)
	}
	met := s.fault(t, Mint, Hang)
	c := s.intend(t, s.ttl())
	obeys(t, met, func(ctx context.Context) error {
		_, err := s.Provider.Mint(ctx, c)
		return err
	})
}

// obeys holds a call that hangs from a moment on to its context.
func obeys(t *testing.T, met <-chan struct{}, call func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- call(ctx) }()
	go func() {
		select {
		case <-met:
			cancel()
		case <-ctx.Done():
		}
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-done:
		if err == nil {
			t.Error("succeeded without an answer")
		}
		clean(t, err)
	case <-timer.C:
		t.Fatalf("still busy %s after its context ended", patience)
	}
}

func (s Subject) calls() int {
	if s.Calls == nil {
		return 0
	}
	return s.Calls()
}

func madeNothing(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		t.Fatal("the mint succeeded")
	}
	clean(t, err)
	if !errors.Is(err, broker.ErrNotMinted) {
		t.Errorf("surely nothing was minted, and it does not say so: %v", err)
	}
}

func isThrottled(t testing.TB, err error) {
	t.Helper()
	if code := codeOf(t, err); code != broker.CodeUpstreamThrottled {
		t.Errorf("%s: want %s", code, broker.CodeUpstreamThrottled)
	}
	if e := broker.AsError(err); e.RetryAfter <= 0 {
		t.Error("does not say when to ask again")
	}
}

// codeOf is what the caller is told: a provider's failures are *broker.Error.
func codeOf(t testing.TB, err error) broker.Code {
	t.Helper()
	e, ok := errors.AsType[*broker.Error](err)
	if !ok {
		t.Fatalf("no *broker.Error in %T: %v", err, err)
	}
	if e.Message == "" || e.Code.Status() < 400 {
		t.Errorf("an error without words: %+v", e)
	}
	return e.Code
}

// clean holds an error to P7: not the error, nor any of its causes, shows what the upstream said, under any verb.
func clean(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for _, verb := range []string{"%s", "%v", "%+v", "%#v"} {
		if text := fmt.Sprintf(verb, err); strings.Contains(text, "C4n4ry") {
			t.Errorf("%T under %s shows the upstream's words: %s", err, verb, text)
		}
	}
	switch e := err.(type) { //nolint:errorlint // walks the tree by hand
	case interface{ Unwrap() error }:
		clean(t, e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, cause := range e.Unwrap() {
			clean(t, cause)
		}
	}
}
