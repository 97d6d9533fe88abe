package lifetest

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

func TestKey(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	orch := r.as("orch")
	q := ask("aws", "t1")
	q.Metadata = map[string]string{"a": "1", "b": "2"}
	first := r.mustIssue(q, "key")
	for i := range 4 {
		got := orch.on(i).issue(q, "key").want(t, http.StatusCreated).issued
		if got.ID != first.ID || secretOf(got.Secret) != secretOf(first.Secret) || got.Version != 1 || !got.ExpiresAt.Equal(first.ExpiresAt) {
			t.Errorf("replica %d answers %s version %d", i%2, got.ID, got.Version)
		}
	}
	if n := r.front.calls("AssumeRole"); n != 1 {
		t.Errorf("%d calls of the vendor", n)
	}
	for name, edit := range map[string]func(*client.IssueRequest){
		"task": func(q *client.IssueRequest) { q.TaskID = "t2" }, "agent": agent("agent-2"), "ttl": lasting(30 * time.Minute),
		"profile": func(q *client.IssueRequest) { q.Profile = "none" }, "delivery": ticket, "token": taskToken, "parent": under("t0"),
		"metadata": func(q *client.IssueRequest) { q.Metadata = map[string]string{"a": "1", "b": "3"} },
	} {
		other := q
		edit(&other)
		if got := orch.issue(other, "key"); got.code != broker.CodeIdempotencyMismatch {
			t.Errorf("another %s answers %d %s", name, got.status, got.code)
		}
	}
	orch.issueAll("t1", batch("aws", "pool"), "key").want(t, broker.CodeIdempotencyMismatch)
	orch.refresh(first.ID, 1, "key").want(t, broker.CodeIdempotencyMismatch)
	// Another caller's key of the same text is another key.
	if got := r.as("other").issue(q, "key").want(t, http.StatusCreated).issued; got.ID == first.ID {
		t.Error("two callers share a key")
	}
	// Without a key each request is one.
	if a, b := r.mustIssue(q), r.mustIssue(q); a.ID == b.ID {
		t.Error("without a key two requests are one")
	}
	orch.revoke(first.ID).want(t, http.StatusOK)
	orch.issue(q, "key").want(t, broker.CodeCredentialEnded)
	r.sound()
}

func TestTwins(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(c caller) (reply, []client.IssuedCredential){
		"inline": func(c caller) (reply, []client.IssuedCredential) {
			a := c.issue(ask("aws", "t1"), "key")
			return a, []client.IssuedCredential{a.issued}
		},
		"ticket": func(c caller) (reply, []client.IssuedCredential) {
			a := c.issue(ask("aws", "t1", ticket), "key")
			return a, []client.IssuedCredential{a.issued}
		},
		"batch": func(c caller) (reply, []client.IssuedCredential) {
			a := c.issueAll("t1", batch("aws", "pool", "none"), "key")
			return a, a.several
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(c *broker.Config) { c.UpstreamTimeout = time.Minute }) // a first mint that fails has its own tests
			var mu sync.Mutex
			answers := map[string]int{}
			together(20, func(i int) {
				a, list := call(r.as("orch").on(i))
				text := fmt.Sprint(a.status, a.code)
				for _, c := range list {
					text += fmt.Sprint(" ", c.ID, c.Version, secretOf(c.Secret), c.Ticket.Value)
				}
				mu.Lock()
				defer mu.Unlock()
				answers[text]++
				if a.status != http.StatusCreated {
					t.Errorf("%d %s", a.status, a.code)
				}
			})
			want := map[string]int{"inline": 1, "ticket": 0, "batch": 2}[name]
			if n := r.front.calls("AssumeRole"); n != want || len(answers) != 1 {
				t.Errorf("%d calls of the vendor, want %d; %d different answers", n, want, len(answers))
			}
			r.sound()
		})
	}
}

// After a failure the same key mints the next version of the same credential.
func TestKeyAfterAFailure(t *testing.T) {
	t.Parallel()
	for kind, code := range map[string]broker.Code{
		refuse: broker.CodeUpstreamRefused, lose: broker.CodeUpstreamError, hang: broker.CodeUpstreamTimeout,
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.hurry("aws")
			r.front.on("AssumeRole", "", kind, 1)
			r.as("orch").issue(ask("aws", "t1"), "key").want(t, code)
			id := one[string](r, "SELECT id FROM credentials")
			if kind == lose {
				r.settled()
			}
			got := r.mustIssue(ask("aws", "t1"), "key")
			if got.ID != id || got.Version != 2 {
				t.Errorf("the key answers %s version %d, want %s version 2", got.ID, got.Version, id)
			}
			again := r.mustIssue(ask("aws", "t1"), "key")
			if again.Version != 2 || secretOf(again.Secret) != secretOf(got.Secret) {
				t.Errorf("the key answers version %d then", again.Version)
			}
			r.settled()
			r.wantAlive("what the key got", got.Secret, "t1", true)
			if n := r.front.calls("AssumeRole"); n != 2 {
				t.Errorf("%d calls of the vendor", n)
			}
			r.sound()
		})
	}
}

func TestBatchKeyAfterAFailure(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	q := batch("aws", "pool", "none")
	r.front.on("AssumeRole", "none", refuse, 1)
	r.as("orch").issueAll("t1", q, "key").want(t, broker.CodeUpstreamRefused)
	got := r.as("orch").issueAll("t1", q, "key").want(t, http.StatusCreated).several
	again := r.as("orch").issueAll("t1", q, "key").want(t, http.StatusCreated).several
	r.settled()
	for i, c := range got {
		if s := r.as("orch").get(c.ID).state; s.Status != client.Active || c.Version != 2 || secretOf(again[i].Secret) != secretOf(c.Secret) {
			t.Errorf("the %s is version %d, %s", c.Profile, c.Version, s.Status)
		}
	}
	r.wantAlive("the first", got[0].Secret, "t1", true)
	if n := one[int](r, "SELECT count(*)::int FROM credentials"); n != 3 {
		t.Errorf("%d credentials for one key", n)
	}
	r.sound()
}

// A refresh that came to nothing changes nothing for the key of the issuance; one that succeeded is what the key answers.
func TestKeyAndRefresh(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	q := ask("aws", "t1")
	first := r.mustIssue(q, "key")
	for _, kind := range []string{refuse, lose} {
		r.front.on("AssumeRole", "", kind, 1)
		if got := r.as("orch").refresh(first.ID, 1); got.status == http.StatusCreated {
			t.Fatal("the refresh did not fail")
		}
		calls := r.front.calls("AssumeRole")
		if got := r.mustIssue(q, "key"); got.Version != 1 || secretOf(got.Secret) != secretOf(first.Secret) {
			t.Errorf("after a refresh with %s the key answers version %d", kind, got.Version)
		}
		if n := r.front.calls("AssumeRole") - calls; n != 0 {
			t.Errorf("after a refresh with %s the repeated request asked the vendor %d times", kind, n)
		}
	}
	r.settled()
	second := r.as("orch").refresh(first.ID, 1).want(t, http.StatusCreated).issued
	if got := r.mustIssue(q, "key"); secretOf(got.Secret) != secretOf(second.Secret) {
		t.Errorf("after a refresh the key answers version %d", got.Version)
	}
	r.sound()
}

func TestRefreshKey(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("aws", "t1"))
	calls := r.front.calls("AssumeRole")
	got := r.as("orch").refresh(c.ID, 0, "key").want(t, http.StatusCreated).issued
	for range 3 {
		again := r.as("orch").refresh(c.ID, 0, "key").want(t, http.StatusCreated).issued
		if again.Version != 2 || secretOf(again.Secret) != secretOf(got.Secret) {
			t.Errorf("the key answers version %d", again.Version)
		}
	}
	if n := r.front.calls("AssumeRole") - calls; n != 1 {
		t.Errorf("%d calls of the vendor", n)
	}
	r.as("orch").refresh(c.ID, 1, "key").want(t, broker.CodeIdempotencyMismatch)
	d := r.mustIssue(ask("aws", "t1"))
	r.as("orch").refresh(d.ID, 0, "key").want(t, broker.CodeIdempotencyMismatch)
	if got := r.as("orch").refresh(c.ID, 0, "other-key").want(t, http.StatusCreated).issued; got.Version != 3 {
		t.Errorf("another key: version %d", got.Version)
	}
	r.sound()
}

// A key is remembered for 24 hours; then it is a new one.
func TestKeyRunsOut(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	q := ask("none", "t1", lasting(maxTTL))
	first := r.mustIssue(q, "key")
	r.clock.advance(24*time.Hour - time.Second)
	r.settled()
	for _, p := range r.replicas {
		if err := p.store.Tidy(t.Context(), r.clock.Now()); err != nil {
			t.Fatal(err)
		}
	}
	r.as("orch").issue(q, "key").want(t, broker.CodeCredentialEnded)
	r.clock.advance(2 * time.Second)
	got := r.as("orch").issue(q, "key") // whether or not somebody has tidied up
	if got.status != http.StatusCreated || got.issued.ID == first.ID {
		t.Errorf("a key of the day before answers %d %s", got.status, got.code)
	}
	if err := r.replicas[0].store.Tidy(t.Context(), r.clock.Now()); err != nil {
		t.Fatal(err)
	}
	if got := r.as("orch").issue(q, "key"); got.status != http.StatusCreated || got.issued.ID == first.ID {
		t.Errorf("after tidying up it answers %d %s", got.status, got.code)
	}
	r.sound()
}

// A request that was refused leaves its key unused.
func TestKeyOfARefusal(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *broker.Config) { c.Limits = broker.Limits{PerTask: 1, PerAgent: 9, PerProfile: 9, PerCaller: 9} })
	bad := ask("aws", "t1")
	bad.Scopes = []string{"write"}
	r.as("orch").issue(bad, "key").want(t, broker.CodeUnknownScope)
	first := r.mustIssue(ask("aws", "t1"), "key")
	r.as("orch").issue(ask("aws", "t1"), "key2").want(t, broker.CodeQuotaExceeded)
	r.mustIssue(ask("aws", "t1"), "key") // what is there is answered, over the limit or not
	r.as("orch").revoke(first.ID).want(t, http.StatusOK)
	r.mustIssue(ask("aws", "t1"), "key2")
	r.sound()
}
