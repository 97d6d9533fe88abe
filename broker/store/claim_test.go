package store_test

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
)

const lease = 2 * time.Minute

// name is one that no other test uses.
func name(kind string) string { return kind + "-" + string(broker.NewVersionID()) }

// due writes n active versions that are due one second after the other, the first at start.
func due(t testing.TB, s *store.Store, provider string, n int) []broker.Credential {
	t.Helper()
	list := make([]broker.Credential, n)
	var wg sync.WaitGroup
	for i := range list {
		list[i] = credential()
		list[i].Provider = provider
		list[i].Version.DueAt = start.Add(time.Duration(i) * time.Second)
		wg.Go(func() {
			c := list[i]
			if err := s.Begin(t.Context(), intent([]broker.Event{event(broker.EventIntended, c)}, c)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	return list
}

func claim(t testing.TB, s *store.Store, provider string, at time.Time, limit int) []broker.Credential {
	t.Helper()
	list, err := s.Claim(t.Context(), provider, at, lease, limit)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func ids(list []broker.Credential) []broker.VersionID {
	var out []broker.VersionID
	for _, c := range list {
		out = append(out, c.Version.ID)
	}
	return out
}

// What is claimed is leased: nobody else gets it until the lease ends, and then it is due again.
func TestClaimLeases(t *testing.T) {
	t.Parallel()
	provider := name("aws")
	s, other := open(t, shared), open(t, shared)
	list := due(t, s, provider, 4)
	due(t, s, provider+"-other", 2)
	at := start.Add(2 * time.Second) // the fourth is not due yet

	if got := claim(t, s, provider, start.Add(-time.Microsecond), 10); len(got) != 0 {
		t.Errorf("before anything is due: %v", ids(got))
	}
	got := claim(t, s, provider, at, 2)
	if diff := cmp.Diff(ids(list[:2]), ids(got)); diff != "" {
		t.Errorf("two of three, the oldest first: %s", diff)
	}
	for i, c := range got {
		if !c.Version.DueAt.Equal(list[i].Version.DueAt) {
			t.Errorf("answered as due at %s; it was at %s", c.Version.DueAt, list[i].Version.DueAt)
		}
	}
	if diff := cmp.Diff(ids(list[2:3]), ids(claim(t, other, provider, at, 10))); diff != "" {
		t.Errorf("another replica gets the rest: %s", diff)
	}
	if got := claim(t, s, provider, at, 10); len(got) != 0 {
		t.Errorf("all is leased: %v", ids(got))
	}
	// Whoever had the lease is gone.
	if got := claim(t, other, provider, at.Add(lease-time.Microsecond), 10); len(got) != 1 || got[0].Version.ID != list[3].Version.ID {
		t.Errorf("just before the lease ends: %v", ids(got))
	}
	again := ids(claim(t, other, provider, at.Add(lease), 10))
	slices.Sort(again)
	want := ids(list[:3])
	slices.Sort(want)
	if diff := cmp.Diff(want, again); diff != "" {
		t.Errorf("when the lease ends: %s", diff)
	}
}

// Many claims on two replicas share what is due; none gets what another has.
func TestClaimByMany(t *testing.T) {
	t.Parallel()
	provider := name("aws")
	replicas := []*store.Store{open(t, shared), open(t, shared)}
	list := due(t, replicas[0], provider, 200)
	at := start.Add(time.Hour)
	var mu sync.Mutex
	got := map[broker.VersionID]int{}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for {
				claimed, err := replicas[i%2].Claim(t.Context(), provider, at, lease, 7)
				if err != nil {
					t.Error(err)
				}
				if len(claimed) == 0 {
					return
				}
				mu.Lock()
				for _, c := range claimed {
					got[c.Version.ID]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for _, rest := range [][]broker.Credential{claim(t, replicas[0], provider, at, 500)} { // what was locked when the last ones looked
		for _, c := range rest {
			got[c.Version.ID]++
		}
	}
	for _, c := range list {
		if n := got[c.Version.ID]; n != 1 {
			t.Errorf("version %s was claimed %d times", c.Version.ID, n)
		}
	}
}

// A row that somebody is writing is passed over, not waited for.
func TestClaimSkipsWhatIsLocked(t *testing.T) {
	t.Parallel()
	provider := name("aws")
	s := open(t, shared)
	list := due(t, s, provider, 3)
	tx, err := admin(t, shared).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT FROM versions WHERE id = $1 FOR UPDATE", string(list[0].Version.ID)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ids(list[1:]), ids(claim(t, s, provider, start.Add(time.Minute), 10))); diff != "" {
		t.Error(diff)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ids(list[:1]), ids(claim(t, s, provider, start.Add(time.Minute), 10))); diff != "" {
		t.Error(diff)
	}
}

// Attempts to end a version are counted by the claim, so that one that kills its process is counted too.
func TestClaimCountsAttempts(t *testing.T) {
	t.Parallel()
	provider := name("aws")
	s := open(t, shared)
	c := credential()
	c.Provider = provider
	c = activate(t, s, begin(t, s, c))
	at := c.Version.DueAt
	for range 2 {
		at = at.Add(lease)
		if got := claim(t, s, provider, at, 1); len(got) != 1 || got[0].Version.Attempts != 0 {
			t.Errorf("an active version: %+v", got)
		}
	}
	c = move(t, s, c, broker.StateRevoking)
	for want := 2; want < 5; want++ {
		at = at.Add(lease)
		if got := claim(t, s, provider, at, 1); len(got) != 1 || got[0].Version.Attempts != want {
			t.Fatalf("attempt %d: %+v", want, got)
		}
	}
	c.Version.Attempts = 4
	next := into(c, broker.StateStuck)
	next.Version.Attempts = 4
	if err := s.Move(t.Context(), next, []broker.State{broker.StateRevoking}, nil, event(broker.EventStuck, next)); err != nil {
		t.Fatal(err)
	}
	if got := claim(t, s, provider, at.Add(lease), 1); len(got) != 1 || got[0].Version.Attempts != 5 {
		t.Errorf("a stuck version: %+v", got)
	}
	move(t, s, next, broker.StateRevoked)
	if got := claim(t, s, provider, at.Add(24*time.Hour), 1); len(got) != 0 {
		t.Errorf("an ended version: %+v", got)
	}
}

// P11: a row that cannot be read is passed over and logged; the others are claimed.
func TestClaimWithABadRow(t *testing.T) {
	t.Parallel()
	provider := name("aws")
	var log lockedBuffer
	s := open(t, shared, func(c *store.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	list := due(t, s, provider, 3)
	if _, err := admin(t, shared).Exec(t.Context(), `UPDATE versions SET trace = '{"a": {"b": 1}}' WHERE id = $1`, string(list[0].Version.ID)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ids(list[1:]), ids(claim(t, s, provider, start.Add(time.Minute), 10))); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(log.String(), string(list[0].Version.ID)) {
		t.Errorf("nobody is told of the bad row: %q", log.String())
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestDueProviders(t *testing.T) {
	t.Parallel()
	s := open(t, own(t))
	at := func(at time.Time) []string {
		t.Helper()
		list, err := s.DueProviders(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(list)
		return list
	}
	if got := at(start.Add(time.Hour)); len(got) != 0 {
		t.Errorf("an empty ledger: %q", got)
	}
	due(t, s, "pool", 3)
	due(t, s, "aws", 1)
	late := due(t, s, "gcp", 2)
	claim(t, s, "gcp", start, 1)
	for _, c := range []struct {
		at   time.Time
		want []string
	}{
		{start.Add(-time.Second), nil},
		{start, []string{"aws", "pool"}}, // gcp's first is leased, its second not due
		{start.Add(time.Second), []string{"aws", "gcp", "pool"}},
	} {
		if diff := cmp.Diff(c.want, at(c.at)); diff != "" {
			t.Errorf("at %s: %s", c.at, diff)
		}
	}
	move(t, s, late[1], broker.StateFailed)
	if diff := cmp.Diff([]string{"aws", "pool"}, at(start.Add(time.Second))); diff != "" {
		t.Error(diff)
	}
}
