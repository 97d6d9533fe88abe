package lifetest

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

func TestResolve(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	orch := r.as("orch")
	c := r.mustIssue(ask("aws", "t1", taskToken))
	for who, by := range map[string]caller{"the issuer": orch, "the task": r.by(c.TaskToken)} {
		got := by.resolve(c.ID).want(t, http.StatusOK)
		if secretOf(got.resolved.Secret) != secretOf(c.Secret) || got.resolved.Version != 1 || !got.resolved.ExpiresAt.Equal(c.ExpiresAt) {
			t.Errorf("%s gets version %d until %s", who, got.resolved.Version, got.resolved.ExpiresAt)
		}
		if got.header.Get("ETag") != `"1"` || got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: ETag %s, Cache-Control %s", who, got.header.Get("ETag"), got.header.Get("Cache-Control"))
		}
	}
	r.as("other").resolve(c.ID).want(t, broker.CodeNotFound)
	r.as("aud").resolve(c.ID).want(t, broker.CodeForbidden)
	r.as("ops").resolve(c.ID).want(t, broker.CodeForbidden)
	r.by("").resolve(c.ID).want(t, broker.CodeUnauthenticated)
	if n := r.countEvents("t1", broker.EventResolved); n != 2 {
		t.Errorf("%d credential.resolved for two secrets", n)
	}

	for _, etag := range []string{`"1"`, `W/"1"`, "1"} {
		got := orch.resolve(c.ID, etag).want(t, http.StatusNotModified)
		if got.header.Get("ETag") != `"1"` {
			t.Errorf("304 with ETag %s", got.header.Get("ETag"))
		}
	}
	if n := r.countEvents("t1", broker.EventResolved); n != 2 {
		t.Errorf("a 304 was put on record")
	}
	second := orch.refresh(c.ID, 1).want(t, http.StatusCreated).issued
	if got := orch.resolve(c.ID, `"1"`).want(t, http.StatusOK); secretOf(got.resolved.Secret) != secretOf(second.Secret) || got.header.Get("ETag") != `"2"` {
		t.Errorf("after a refresh: version %d, ETag %s", got.resolved.Version, got.header.Get("ETag"))
	}
	orch.revoke(c.ID).want(t, http.StatusOK)
	orch.resolve(c.ID).want(t, broker.CodeCredentialEnded)
	orch.resolve(c.ID, `"2"`).want(t, broker.CodeCredentialEnded)
	r.sound()
}

func TestCacheForSeconds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("none", "t1"))
	for _, w := range []struct {
		left  time.Duration
		cache float64
	}{{time.Hour, 60}, {11 * time.Minute, 60}, {10 * time.Minute, 60}, {5 * time.Minute, 30}, {100 * time.Second, 10}, {5 * time.Second, 0.5}} {
		r.clock.advance(c.ExpiresAt.Add(-w.left).Sub(r.clock.Now()))
		if got := r.as("orch").resolve(c.ID).want(t, http.StatusOK).resolved.CacheForSeconds; got != w.cache {
			t.Errorf("%s before the end: keep for %g s, want %g", w.left, got, w.cache)
		}
	}
	r.clock.advance(5 * time.Second)
	r.as("orch").resolve(c.ID).want(t, broker.CodeCredentialEnded) // nobody has swept
}

func TestResolveWhatWaitsForItsTicket(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("aws", "t1", ticket))
	if got := r.as("orch").resolve(c.ID); got.code != broker.CodeConflict {
		t.Errorf("answers %s: it has not ended, it has not begun", got.code)
	}
}

// A watcher hears of a change from the ledger: the rig's own looks (LookEvery) come far too late for it.
func TestWatch(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(r *rig, id string)
		want   client.Status
		number int
	}{
		"refreshed": {func(r *rig, id string) { r.as("orch").on(1).refresh(id, 1).want(r.t, 201) }, client.Active, 2},
		"revoked":   {func(r *rig, id string) { r.as("ops").on(1).revoke(id).want(r.t, 200) }, client.Revoked, 1},
		"task end":  {func(r *rig, _ string) { r.as("ops").on(1).endTask("t1").want(r.t, 200) }, client.Revoked, 1},
		"expired": {func(r *rig, _ string) {
			r.clock.advance(ttl)
			_ = r.replicas[1].broker.Sweep(context.Background())
		}, client.Expired, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			issued := r.mustIssue(ask("aws", "t1", taskToken))
			waits := []func() reply{}
			for _, by := range []caller{r.as("orch"), r.by(issued.TaskToken), r.as("aud"), r.as("ops")} {
				waits = append(waits, async(func() reply { return by.on(0).watch(issued.ID, 1, longest) }))
			}
			eventually(t, "they watch", func() bool { return r.replicas[0].limits.Watches.Open() == 4 })
			c.change(r, issued.ID)
			for _, wait := range waits {
				got := wait().want(t, http.StatusOK)
				// A watcher may see the end while it is under way.
				if s := got.state.Status; s != c.want && (s != client.Revoking || c.want != client.Revoked) || got.state.Version != c.number {
					t.Errorf("told of version %d, %s", got.state.Version, got.state.Status)
				}
			}
			// A watch that begins later is answered too, though nothing changes any more.
			r.as("orch").watch(issued.ID, 1, longest).want(t, http.StatusOK)
		})
	}
}

func TestWatchWithoutAChange(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("aws", "t1"))
	start := time.Now()
	r.as("orch").watch(c.ID, 1, time.Second).want(t, http.StatusNotModified)
	if took := time.Since(start); took < 900*time.Millisecond {
		t.Errorf("waited %s for a second", took)
	}
	r.as("orch").watch(c.ID, 1, 0).want(t, http.StatusNotModified)
	r.as("orch").watch(c.ID, 0, longest).want(t, http.StatusOK)
	r.as("other").watch(c.ID, 1, 0).want(t, broker.CodeNotFound)
	r.by("").watch(c.ID, 1, 0).want(t, broker.CodeUnauthenticated)
	// A refresh that failed is no change.
	wait := async(func() reply { return r.as("orch").watch(c.ID, 1, 2*time.Second) })
	r.front.on("AssumeRole", "", refuse, 1)
	r.as("orch").refresh(c.ID, 1).want(t, broker.CodeUpstreamRefused)
	wait().want(t, http.StatusNotModified)
}

// A watcher whose listening connection is killed hears of the change when there is a new one, and so do the next ones.
func TestWatchWithoutItsConnection(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("aws", "t1"))
	listening := `SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'`
	eventually(t, "both listen", func() bool { return one[int](r, listening) == 2 })
	var wait func() reply
	watching := func(version int) {
		wait = async(func() reply { return r.as("orch").on(0).watch(c.ID, version, longest) })
		eventually(t, "it watches", func() bool { return r.replicas[0].limits.Watches.Open() == 1 })
	}
	watching(1)
	r.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'`)
	r.as("orch").on(1).refresh(c.ID, 1).want(t, http.StatusCreated)
	wait().want(t, http.StatusOK)
	eventually(t, "both listen again", func() bool { return one[int](r, listening) == 2 })
	watching(2)
	r.as("orch").on(1).refresh(c.ID, 2).want(t, http.StatusCreated)
	wait().want(t, http.StatusOK)
}
