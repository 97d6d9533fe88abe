package providertest

import (
	"errors"
	"testing"

	"github.com/taskpass/taskpass/broker"
)

// mintLies is for answers that are not what was asked for: none is handed out, what was made may be alive, and Revoke
// ends it.
func mintLies(t *testing.T, s Subject) {
	told := 0
	for _, l := range lies {
		if s.Lie == nil || !s.Lie(t, Mint, l) {
			continue
		}
		told++
		c := s.intend(t, s.ttl())
		m, err := s.Provider.Mint(within(t), c)
		if err == nil {
			err = broker.CheckMinted(m, c.Version, s.Provider.Capabilities(), s.Clock.Now())
		}
		if err == nil {
			t.Errorf("%s: handed out", l)
			continue
		}
		clean(t, err)
		if code := codeOf(t, err); code != broker.CodeUpstreamError || errors.Is(err, broker.ErrNotMinted) {
			t.Errorf("%s: %v, and surely nothing was made: %t; want %s, and doubt", l, err, errors.Is(err, broker.ErrNotMinted), broker.CodeUpstreamError)
		}
		c = Crash(t, s.Ledger, c)
		done, err := s.Provider.Revoke(within(t), c)
		s.holds(t, c, broker.Bundle{}, done, err, false)
	}
	if told == 0 {
		t.Skip("this upstream tells no lies")
	}
}

// revokeLies is for a success that the upstream never reported.
func revokeLies(t *testing.T, s Subject) {
	told := 0
	for _, l := range []Lie{LoginPage, EmptyAnswer} {
		c, m := s.issue(t)
		if s.Lie == nil || !s.Lie(t, Revoke, l) {
			continue
		}
		told++
		c = Ask(t, s.Ledger, c, broker.CauseRevoked)
		if done, err := s.Provider.Revoke(within(t), c); err == nil {
			t.Errorf("%s: says %+v", l, done)
		} else if clean(t, err); codeOf(t, err) != broker.CodeUpstreamError {
			t.Errorf("%s: %v; want %s", l, err, broker.CodeUpstreamError)
		}
		s.ended(t, c, m.Secret)
	}
	if told == 0 {
		t.Skip("this upstream tells no lies")
	}
}
