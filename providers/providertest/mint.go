package providertest

import (
	"bytes"
	"crypto/sha256"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

func capabilities(t *testing.T, s Subject) {
	caps := s.Provider.Capabilities()
	if caps.MinTTL <= 0 || caps.MinTTL > caps.MaxTTL {
		t.Errorf("takes lives of %s to %s", caps.MinTTL, caps.MaxTTL)
	}
	switch caps.Revoke {
	case broker.RevokeDeny, broker.RevokeDestroy:
	case broker.RevokeNone:
		if caps.RevokeLag != 0 {
			t.Errorf("revokes nothing, with a lag of %s", caps.RevokeLag)
		}
		if !caps.SelfExpires && !caps.Disclosed {
			t.Error("its secrets never end, and nobody accepted that")
		}
	default:
		t.Errorf("unknown revoke mode %q", caps.Revoke)
	}
	if caps.RevokeLag < 0 {
		t.Errorf("a lag of %s", caps.RevokeLag)
	}
	if s.Unreachable != nil && s.Unreachable.Capabilities() != caps {
		t.Errorf("without an upstream it promises %+v, with one %+v", s.Unreachable.Capabilities(), caps)
	}
	s.issue(t)
	if again := s.Provider.Capabilities(); again != caps {
		t.Errorf("promises %+v after a mint, %+v before", again, caps)
	}
	if s.Calls != nil {
		if before := s.Calls(); s.Provider.Capabilities() != caps || s.Calls() != before {
			t.Error("Capabilities asks the upstream")
		}
	}
}

func upstreamNamed(t *testing.T, s Subject) {
	c := s.intend(t, s.ttl())
	name := s.Provider.Upstream(c)
	if name == "" {
		t.Fatal("the upstream has no name")
	}
	c, _ = s.issueFor(t, c)
	if again := s.Provider.Upstream(c); again != name {
		t.Errorf("the upstream was called %q, after the mint %q", name, again)
	}
}

var envName = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)

func mintWorks(t *testing.T, s Subject) {
	c, m := s.issue(t)
	if !s.Alive(t, c, m.Secret) {
		t.Error("a fresh secret does not work")
	}
	if !s.knows(t, c.Version.ID) {
		t.Errorf("the upstream knows of no version %s, only of %v", c.Version.ID, s.Known(t))
	}
	primary := m.Secret.Fields[m.Secret.Primary]
	if m.Secret.Type == "" || primary.Empty() || slices.Contains(s.Public, m.Secret.Primary) {
		t.Errorf("a bundle of type %q, whose primary field %q is not a secret", m.Secret.Type, m.Secret.Primary)
	}
	if want := sha256.Sum256([]byte(primary.Reveal())); !bytes.Equal(m.Secret.Fingerprint(), want[:]) {
		t.Error("the fingerprint is not the SHA-256 of the primary field")
	}
	if len(m.Secret.Env) == 0 {
		t.Error("the bundle sets no environment variable")
	}
	for name, value := range m.Secret.Env {
		if !envName.MatchString(name) || value.Empty() {
			t.Errorf("environment variable %q", name)
		}
	}
	if len(m.UpstreamIDs) == 0 || slices.Contains(m.UpstreamIDs, "") {
		t.Errorf("upstream ids %q: an auditor has nothing to look for", m.UpstreamIDs)
	}
	if end := m.UpstreamExpiresAt; s.Provider.Capabilities().SelfExpires && !end.After(s.Clock.Now()) {
		t.Errorf("expires by itself, at %s", end)
	}
}

// Upstreams that count in whole seconds are wrong by one most easily at a whole second.
func mintObeysExpiresAt(t *testing.T, s Subject) {
	s.obeysExpiresAt(t)
	s.Clock.To(s.Clock.Now().Truncate(time.Second).Add(time.Second))
	s.obeysExpiresAt(t)
}

func (s Subject) obeysExpiresAt(t *testing.T) {
	t.Helper()
	c, m := s.issue(t)
	s.Clock.To(c.Version.ExpiresAt.Add(-2 * time.Second))
	if !s.Alive(t, c, m.Secret) {
		t.Error("dead before its time")
	}
	s.Clock.To(c.Version.ExpiresAt)
	if s.Provider.Capabilities().SelfExpires {
		// The sweeper records the end of such a version from this very moment on, and asks nobody.
		if s.Alive(t, c, m.Secret) {
			t.Errorf("alive at %s, when it is recorded as expired", c.Version.ExpiresAt.Format(time.RFC3339Nano))
		}
		return
	}
	c = Ask(t, s.Ledger, c, broker.CauseExpired)
	done, err := s.Provider.Revoke(within(t), c)
	s.holds(t, c, m.Secret, done, err, true)
}

func mintTakesBounds(t *testing.T, s Subject) {
	caps := s.Provider.Capabilities()
	for _, ttl := range []time.Duration{caps.MinTTL, caps.MaxTTL} {
		c, m := s.issueFor(t, s.intend(t, ttl))
		if !s.Alive(t, c, m.Secret) {
			t.Errorf("a secret for %s does not work", ttl)
		}
	}
}

func mintsDiffer(t *testing.T, s Subject) {
	var wg sync.WaitGroup
	minted := make([]broker.Minted, AtOnce)
	errs := make([]error, AtOnce)
	credentials := make([]broker.Credential, AtOnce)
	for i := range AtOnce {
		credentials[i] = s.intend(t, s.ttl())
	}
	for i := range AtOnce {
		wg.Go(func() { minted[i], errs[i] = s.Provider.Mint(t.Context(), credentials[i]) })
	}
	wg.Wait()
	secrets, ids := map[string]int{}, map[string]int{}
	for i, m := range minted {
		if errs[i] != nil {
			t.Fatalf("mint %d of %d at once: %v", i, AtOnce, errs[i])
		}
		if !s.Alive(t, credentials[i], m.Secret) {
			t.Errorf("secret %d of %d does not work", i, AtOnce)
		}
		secrets[m.Secret.Fields[m.Secret.Primary].Reveal()]++
		ids[strings.Join(m.UpstreamIDs, " ")]++
	}
	if len(secrets) != AtOnce || len(ids) != AtOnce {
		t.Errorf("%d mints made %d secrets, with %d upstream ids", AtOnce, len(secrets), len(ids))
	}
	known := s.Known(t)
	for _, c := range credentials {
		if !slices.Contains(known, c.Version.ID) {
			t.Errorf("the upstream knows of no version %s", c.Version.ID)
		}
	}
}

func mintKeepsSecrets(t *testing.T, s Subject) {
	_, m := s.issue(t)
	public := map[string]bool{}
	for _, name := range s.Public {
		if m.Secret.Fields[name].Empty() {
			t.Errorf("the bundle has no field %q", name)
		}
		public[m.Secret.Fields[name].Reveal()] = true
	}
	for name, secret := range m.Secret.Fields {
		value := secret.Reveal()
		if public[value] {
			continue
		}
		for _, seen := range slices.Concat(m.UpstreamIDs, slices.Collect(maps.Keys(m.Trace)), slices.Collect(maps.Values(m.Trace))) {
			if strings.Contains(seen, value) {
				t.Errorf("the secret field %s stands in the record", name)
			}
		}
	}
}
