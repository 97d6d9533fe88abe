package stripe

import (
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"time"
)

// Key is a restricted key as an operator makes it in the dashboard.
type Key struct {
	// Name is free text.
	Name string
	// Secret is rk_test_… or rk_live_…, as the account's mode is. Empty: a random one.
	Secret string
	// Permissions are as in customer_read. A write permission implies the read permission of the same resource.
	Permissions []string
	// OldWords lets the key be refused in the older form of Stripe's message, with no code.
	OldWords bool
}

type key struct {
	id, name, note, secret string
	permissions            []string
	oldWords               bool
	managed                bool // made through the preview
	created                time.Time
	expiresAt              time.Time // zero: never
	expiredAt              time.Time // when it was expired by a call; zero: it was not
	lag                    time.Duration
	uses                   int  // how many calls it may still be used for after that
	gone                   bool // rotated away: its id is no longer known
}

// has tells whether the key may do it; write implies read.
func (k *key) has(permission string) bool {
	resource, read := strings.CutSuffix(permission, "_read")
	return slices.Contains(k.permissions, permission) || read && slices.Contains(k.permissions, resource+"_write")
}

// over tells whether the key's status is expired, which is not the same as that it is refused.
func (k *key) over(now time.Time) bool {
	return !k.expiredAt.IsZero() || !k.expiresAt.IsZero() && !now.Before(k.expiresAt)
}

// refused counts a use of the key and tells whether it is refused.
func (k *key) refused(now time.Time) bool {
	if !k.expiresAt.IsZero() && !now.Before(k.expiresAt) {
		return true
	}
	if k.expiredAt.IsZero() {
		return false
	}
	if k.uses--; k.uses >= 0 {
		return false
	}
	return !now.Before(k.expiredAt.Add(k.lag))
}

// expire ends the key from now on, as slowly as the account does. Needs s.mu.
func (s *Server) expire(k *key) {
	if k.expiredAt.IsZero() {
		k.expiredAt, k.lag, k.uses = s.cfg.Now(), s.cfg.ExpireLag, s.cfg.ExpireUses
	}
}

// newKey needs s.mu.
func (s *Server) newKey(k *key) *key {
	if k.secret == "" {
		k.secret = "rk_test_" + random(48)
		if s.livemode {
			k.secret = "rk_live_" + random(48)
		}
	}
	k.id, k.created = "mk_"+random(20), s.cfg.Now()
	s.keys = append(s.keys, k)
	s.bySecret[sha256.Sum256([]byte(k.secret))] = k
	return k
}

// AddKey makes a restricted key and returns its secret.
func (s *Server) AddKey(k Key) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newKey(&key{name: k.Name, secret: k.Secret, permissions: slices.Clone(k.Permissions), oldWords: k.OldWords}).secret
}

var errNoKey = errors.New("sandbox stripe: no such key") // without its name: it may be a secret

// ExpireKey does what the dashboard's "Expire key" does, at once. A key is named by its id or its secret.
func (s *Server) ExpireKey(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.find(name)
	if k == nil {
		return errNoKey
	}
	k.expiredAt = s.cfg.Now()
	k.lag, k.uses = 0, 0
	return nil
}

// SetPermissions does what editing a key in the dashboard does.
func (s *Server) SetPermissions(name string, permissions ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.find(name)
	if k == nil {
		return errNoKey
	}
	k.permissions = slices.Clone(permissions)
	return nil
}

// SetExpireLag changes Config.ExpireLag and Config.ExpireUses for keys that are expired from now on.
func (s *Server) SetExpireLag(lag time.Duration, uses int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg.ExpireLag, s.cfg.ExpireUses = lag, uses
}

// find needs s.mu.
func (s *Server) find(name string) *key {
	for _, k := range s.keys {
		if k.id == name || k.secret == name {
			return k
		}
	}
	return nil
}

// KeyState is what a key is now.
type KeyState struct {
	ID, Name, Secret string
	Permissions      []string
	Expired          bool // its status; it may still be accepted for a while
	ExpiresAt        time.Time
	Managed          bool // made through the preview
}

// Keys lists the restricted keys in the order of their making.
func (s *Server) Keys() []KeyState {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	var list []KeyState
	for _, k := range s.keys {
		list = append(list, KeyState{k.id, k.name, k.secret, slices.Clone(k.permissions), k.over(now), k.expiresAt, k.managed})
	}
	return list
}
