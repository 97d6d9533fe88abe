package lifetest

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

func TestRefresh(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	orch := r.as("orch")
	first := r.mustIssue(ask("aws", "t1"))
	r.clock.advance(10 * time.Minute)
	now := r.clock.Now()
	second := orch.refresh(first.ID, 1).want(t, http.StatusCreated).issued
	if second.ID != first.ID || second.Version != 2 || second.Status != client.Active {
		t.Errorf("refreshed: %s version %d %s", second.ID, second.Version, second.Status)
	}
	if !second.IssuedAt.Equal(now) || !second.ExpiresAt.Equal(now.Add(ttl)) {
		t.Errorf("issued %s, expires %s, now %s", second.IssuedAt, second.ExpiresAt, now)
	}
	if secretOf(second.Secret) == secretOf(first.Secret) || second.TaskToken != "" {
		t.Error("not a fresh secret alone")
	}
	if got := orch.get(first.ID).state; got.Version != 2 || got.Status != client.Active {
		t.Errorf("the credential is %d %s", got.Version, got.Status)
	}
	r.wantAlive("the new version", second.Secret, "t1", true)
	r.clock.advance(overlap - time.Second)
	r.settled()
	r.wantAlive("the old version within the overlap", first.Secret, "t1", true)
	r.clock.advance(time.Second)
	r.settled()
	r.wantAlive("the old version after the overlap", first.Secret, "t1", false)
	r.wantAlive("the new version", second.Secret, "t1", true)
	if s := one[string](r, "SELECT state || ' ' || cause || ' ' || result FROM versions WHERE number = 1"); s != "revoked replaced denied" {
		t.Errorf("the old version is %s", s)
	}
	if n := r.countEvents("t1", broker.EventRefreshed); n != 1 {
		t.Errorf("%d credential.refreshed", n)
	}
	r.sound()
}

// The old version ends at its own end if that comes first.
func TestOverlapEndsWithTheOldVersion(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.mustIssue(ask("aws", "t1", lasting(2*time.Minute)))
	r.clock.advance(time.Minute)
	second := r.as("orch").refresh(first.ID, 1).want(t, http.StatusCreated).issued
	r.clock.advance(59 * time.Second)
	r.wantAlive("the old version", first.Secret, "t1", true)
	r.clock.advance(2 * time.Second) // the vendor ends it: nobody swept
	r.wantAlive("the old version after its end", first.Secret, "t1", false)
	r.wantAlive("the new version", second.Secret, "t1", true)
	r.settled()
	r.sound()
}

// With a vendor that can end nothing early, the old version is on record as dying at its own end.
func TestRefreshWhereNothingCanBeRevoked(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.mustIssue(ask("none", "t1"))
	r.as("orch").refresh(first.ID, 1).want(t, http.StatusCreated)
	r.clock.advance(overlap)
	r.settled()
	if s := one[string](r, "SELECT state || ' ' || cause || ' ' || result FROM versions WHERE number = 1"); s != "revoking replaced expires" {
		t.Errorf("after the overlap the old version is %s", s)
	}
	r.wantAlive("the old version", first.Secret, "t1", true)
	r.clock.advance(ttl - overlap + time.Second)
	r.settled()
	if s := one[string](r, "SELECT state || ' ' || cause FROM versions WHERE number = 1"); s != "expired replaced" {
		t.Errorf("after its end the old version is %s", s)
	}
	r.wantAlive("the old version", first.Secret, "t1", false)
	r.sound()
}

func TestRefreshByVersion(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	orch := r.as("orch")
	first := r.mustIssue(ask("aws", "t1"))
	second := orch.refresh(first.ID, 1).want(t, http.StatusCreated).issued
	calls := r.front.calls("AssumeRole")
	for range 3 {
		if got := orch.refresh(first.ID, 1).want(t, http.StatusCreated).issued; got.Version != 2 || secretOf(got.Secret) != secretOf(second.Secret) {
			t.Errorf("who has version 1 gets version %d", got.Version)
		}
	}
	if n := r.front.calls("AssumeRole") - calls; n != 0 {
		t.Errorf("%d calls of the vendor for a successor that was there", n)
	}
	if got := orch.refresh(first.ID, 0).want(t, http.StatusCreated).issued; got.Version != 3 {
		t.Errorf("without a version: %d, want 3", got.Version)
	}
	if got := orch.refresh(first.ID, 3).want(t, http.StatusCreated).issued; got.Version != 4 {
		t.Errorf("who has version 3 gets %d", got.Version)
	}
	if got := orch.refresh(first.ID, 1).want(t, http.StatusCreated).issued; got.Version != 4 {
		t.Errorf("who has version 1 gets %d, want the current one", got.Version)
	}
	r.sound()
}

func TestConcurrentRefreshes(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"", "key"} {
		r := newRig(t)
		first := r.mustIssue(ask("aws", "t1"))
		calls := r.front.calls("AssumeRole")
		var mu sync.Mutex
		got := map[string]int{}
		together(20, func(i int) {
			a := r.as("orch").on(i).refresh(first.ID, 1, key)
			mu.Lock()
			defer mu.Unlock()
			if a.status != http.StatusCreated || a.issued.Version != 2 {
				t.Errorf("refresh %d: %d %s version %d", i, a.status, a.code, a.issued.Version)
			}
			got[secretOf(a.issued.Secret)]++
		})
		if n := r.front.calls("AssumeRole") - calls; n != 1 || len(got) != 1 {
			t.Errorf("key %q: %d calls of the vendor, %d different secrets", key, n, len(got))
		}
		r.sound()
	}
}

// Twenty that refresh at once while the vendor refuses the first attempt all get the next one.
func TestConcurrentRefreshesWithAFailure(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.mustIssue(ask("aws", "t1"))
	r.front.on("AssumeRole", "", refuse, 1)
	var mu sync.Mutex
	secrets, failed := map[string]int{}, 0
	together(20, func(i int) {
		a := r.as("orch").on(i).refresh(first.ID, 1)
		mu.Lock()
		defer mu.Unlock()
		if a.status == http.StatusCreated {
			secrets[secretOf(a.issued.Secret)]++
		} else if a.code == broker.CodeUpstreamRefused {
			failed++
		} else {
			t.Errorf("%d %s", a.status, a.code)
		}
	})
	if failed != 1 || len(secrets) != 1 {
		t.Errorf("%d failed, %d different secrets", failed, len(secrets))
	}
	r.sound()
}

func TestNoVersionOutlivesTheHardEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	start := r.clock.Now()
	c := r.mustIssue(ask("aws", "t1", lasting(maxTTL)))
	end := start.Add(maxLifetime)
	var last client.IssuedCredential
	for range 8 {
		r.clock.advance(29 * time.Minute)
		last = r.as("orch").refresh(c.ID, 0).want(t, http.StatusCreated).issued
		if last.ExpiresAt.After(end) {
			t.Fatalf("version %d expires %s after the hard end", last.Version, last.ExpiresAt.Sub(end))
		}
	}
	if !last.ExpiresAt.Equal(end) {
		t.Errorf("the last version ends %s before the hard end", end.Sub(last.ExpiresAt))
	}
	r.clock.advance(end.Sub(r.clock.Now()) - 30*time.Second) // less is left than the profile's shortest TTL
	r.as("orch").refresh(c.ID, 0).want(t, broker.CodeCredentialEnded)
	r.wantAlive("the last version", last.Secret, "t1", true)
	r.clock.advance(31 * time.Second)
	r.wantAlive("the last version after the hard end", last.Secret, "t1", false)
	r.as("orch").refresh(c.ID, 0).want(t, broker.CodeCredentialEnded)
	r.settled()
	r.as("orch").refresh(c.ID, 0).want(t, broker.CodeCredentialEnded)
	r.sound()
}

func TestRefreshAfter(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, c := range []struct{ ttl, after time.Duration }{
		{time.Minute, 30 * time.Second},
		{8 * time.Minute, 4 * time.Minute},
		{10 * time.Minute, 5 * time.Minute},
		{30 * time.Minute, 25 * time.Minute},
		{time.Hour, 54 * time.Minute},
		{2 * time.Hour, 108 * time.Minute},
	} {
		got := r.mustIssue(ask("none", "t1", lasting(c.ttl)))
		if after := got.RefreshAfter.Sub(got.IssuedAt); after != c.after {
			t.Errorf("of %s: refresh after %s, want %s", c.ttl, after, c.after)
		}
	}
}

// What has expired is not brought back by being refreshed, whether or not somebody has swept.
func TestExpiredIsNotRefreshed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("aws", "t1"))
	r.clock.advance(ttl)
	r.as("orch").refresh(c.ID, 0).want(t, broker.CodeCredentialEnded)
	r.settled()
	r.as("orch").refresh(c.ID, 0).want(t, broker.CodeCredentialEnded)
}

func TestRefreshIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	orch := r.as("orch")
	revoked, ended := r.mustIssue(ask("aws", "t1")), r.mustIssue(ask("none", "t2"))
	orch.revoke(revoked.ID).want(t, http.StatusOK)
	orch.endTask("t2").want(t, http.StatusOK)
	calls := r.front.calls("AssumeRole")
	orch.refresh(revoked.ID, 1).want(t, broker.CodeCredentialEnded)
	orch.refresh(ended.ID, 1).want(t, broker.CodeCredentialEnded)
	living := r.mustIssue(ask("pool", "t3"))
	r.as("other").refresh(living.ID, 1).want(t, broker.CodeNotFound)
	r.as("aud").refresh(living.ID, 1).want(t, broker.CodeForbidden)
	r.as("ops").refresh(living.ID, 1).want(t, broker.CodeForbidden)
	r.by("").refresh(living.ID, 1).want(t, broker.CodeUnauthenticated)
	if n := r.front.calls("AssumeRole") - calls; n != 0 {
		t.Errorf("the vendor was asked %d times", n)
	}
	waiting := r.mustIssue(ask("aws", "t3", ticket))
	if got := orch.refresh(waiting.ID, 1); got.code != broker.CodeConflict {
		t.Errorf("refreshing what waits for its ticket answers %s", got.code)
	}
}

func TestRefreshKeepsThePoolsKey(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.mustIssue(ask("pool", "t1"))
	r.mustIssue(ask("pool", "t2", agent("agent-2")))
	second := r.as("orch").refresh(first.ID, 1).want(t, http.StatusCreated).issued
	if secretOf(second.Secret) != secretOf(first.Secret) {
		t.Error("the refresh changed the key")
	}
	if n := one[int](r, "SELECT count(*)::int FROM slots WHERE state = 'held'"); n != 2 {
		t.Errorf("%d keys are held by 2 credentials", n)
	}
	r.clock.advance(overlap)
	r.settled()
	if n := one[int](r, "SELECT count(*)::int FROM slots WHERE state = 'held'"); n != 2 {
		t.Errorf("after the overlap %d keys are held by 2 credentials", n)
	}
	r.as("orch").endTask("t1").want(t, http.StatusOK)
	if n := one[int](r, "SELECT count(*)::int FROM slots WHERE state = 'held'"); n != 1 {
		t.Errorf("%d keys are held by 1 credential", n)
	}
	r.sound()
}

func TestFailedRefreshLeavesTheOldVersion(t *testing.T) {
	t.Parallel()
	for kind, code := range map[string]broker.Code{
		refuse: broker.CodeUpstreamRefused, throttle: broker.CodeUpstreamThrottled,
		lose: broker.CodeUpstreamError, hang: broker.CodeUpstreamTimeout,
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			orch := r.as("orch")
			r.hurry("aws")
			first := r.mustIssue(ask("aws", "t1"))
			r.front.on("AssumeRole", "", kind, 1)
			orch.refresh(first.ID, 1).want(t, code)
			got := orch.get(first.ID).state
			if got.Version != 1 || got.Status != client.Active || !got.ExpiresAt.Equal(first.ExpiresAt) {
				t.Errorf("after the failure: version %d %s, expires %s", got.Version, got.Status, got.ExpiresAt)
			}
			r.wantAlive("the old version", first.Secret, "t1", true)
			if got := orch.resolve(first.ID).want(t, http.StatusOK).resolved; got.Version != 1 {
				t.Errorf("resolve gives version %d", got.Version)
			}
			r.settled()
			second := orch.refresh(first.ID, 1).want(t, http.StatusCreated).issued
			if second.Version != 3 {
				t.Errorf("the next one is version %d", second.Version)
			}
			r.wantAlive("the new version", second.Secret, "t1", true)
			// A session that nobody was given is denied too.
			denied := r.vendor.RolePolicies("deny")["taskpass-revoked"]
			lost := one[int](r, "SELECT count(*)::int FROM versions WHERE number = 2 AND state = 'revoked'")
			if wantLost := kind == lose || kind == hang; (lost == 1) != wantLost || (denied != "") != wantLost {
				t.Errorf("%d lost versions were revoked; the policy is %q", lost, denied)
			}
			r.sound()
		})
	}
}
