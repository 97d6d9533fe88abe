package broker

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// profileSet is one generation of profiles together with their opened providers. A reload retires it: calls that have
// begun finish, no new one begins, and the last one to leave closes the providers.
type profileSet struct {
	profiles Profiles

	mu      sync.Mutex
	users   int
	retired bool
	closed  bool
	closeBy time.Time // once retired: closed then even if a call does not return
}

// enter reserves the set for a call to one of its providers, until leave. It fails once the set is retired.
func (s *profileSet) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retired {
		return false
	}
	s.users++
	return true
}

func (s *profileSet) leave() {
	s.mu.Lock()
	s.users--
	last := s.retired && s.users == 0
	s.mu.Unlock()
	if last {
		_ = s.close()
	}
}

// retire lets no new call begin. The set closes when those under way have left, at once if there are none.
func (s *profileSet) retire(closeBy time.Time) {
	s.mu.Lock()
	s.retired, s.closeBy = true, closeBy
	idle := s.users == 0
	s.mu.Unlock()
	if idle {
		_ = s.close()
	}
}

// over reports whether the set is closed, after closing it if its time is up.
func (s *profileSet) over(now time.Time) bool {
	s.mu.Lock()
	due, closed := s.retired && !now.Before(s.closeBy), s.closed
	s.mu.Unlock()
	if due && !closed {
		_ = s.close()
	}
	return due || closed
}

// close closes each provider once, whoever still uses it.
func (s *profileSet) close() error {
	s.mu.Lock()
	done := s.closed
	s.retired, s.closed = true, true
	s.mu.Unlock()
	if done {
		return nil
	}
	return s.profiles.Close()
}

// Close closes the providers that keep something open. Profiles may share a provider.
func (ps Profiles) Close() error {
	var errs []error
	closed := map[io.Closer]bool{}
	for _, p := range ps {
		if c, ok := p.Upstream.(io.Closer); ok && !closed[c] {
			closed[c] = true
			errs = append(errs, Recovered(c.Close))
		}
	}
	return errors.Join(errs...)
}

// enterCurrent reserves the set in force; nil once the broker is closed.
func (b *Broker) enterCurrent() *profileSet {
	for {
		s := b.profiles.Load()
		if s.enter() {
			return s
		}
		if b.profiles.Load() == s { // retired without a successor
			return nil
		}
	}
}

// use finds a profile for calls to its provider, which stays open until done is called.
func (b *Broker) use(name string) (p Profile, done func(), ok bool) {
	s := b.enterCurrent()
	if s == nil {
		return Profile{}, func() {}, false
	}
	if p, ok = s.profiles[name]; !ok {
		s.leave()
		return Profile{}, func() {}, false
	}
	return p, s.leave, true
}

// SetProfiles replaces the profiles in force, all or none. It takes over the providers: the old ones are closed when the
// calls under way on them have returned, within the time that one call may take. On an error the old profiles stay in
// force, and the new ones remain the caller's to close.
func (b *Broker) SetProfiles(ps Profiles) error {
	full := make(Profiles, len(ps))
	for name, p := range ps {
		full[name] = p.withDefaults()
		caps := p.Upstream.Capabilities()
		if !caps.SelfExpires && caps.Revoke == RevokeNone && !caps.Disclosed {
			return fmt.Errorf("profile %s: its secrets neither expire by themselves nor can be revoked; "+
				"say `disclosed: accept` if agents may keep what they have seen", p.Name)
		}
	}
	b.replacing.Lock()
	defer b.replacing.Unlock()
	if b.closed {
		return errors.New("the broker is closed")
	}
	if old := b.profiles.Swap(&profileSet{profiles: full}); old != nil {
		old.retire(b.now().Add(b.UpstreamTimeout + abandonAfter))
		b.retired = append(b.retired, old)
	}
	return nil
}

// closeRetired closes replaced providers whose calls have not returned in time.
func (b *Broker) closeRetired() {
	b.replacing.Lock()
	defer b.replacing.Unlock()
	now := b.now()
	b.retired = slices.DeleteFunc(b.retired, func(s *profileSet) bool { return s.over(now) })
}

// Close closes every provider, those of replaced profiles too. Call it when Run has returned and no request is under way;
// what still calls a provider then fails.
func (b *Broker) Close() error {
	b.replacing.Lock()
	defer b.replacing.Unlock()
	b.closed = true
	errs := []error{b.profiles.Load().close()}
	for _, s := range b.retired {
		errs = append(errs, s.close())
	}
	b.retired = nil
	return errors.Join(errs...)
}
