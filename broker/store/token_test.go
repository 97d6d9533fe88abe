package store_test

import (
	"crypto/sha256"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
)

func token(caller string, role broker.Role, n int) (broker.Token, []byte) {
	sum := sha256.Sum256([]byte(caller + broker.NewTokenID()))
	return broker.Token{
		ID: broker.NewTokenID(), Caller: caller, Role: role,
		CreatedAt: start.Add(time.Duration(n) * time.Second), ExpiresAt: start.Add(time.Hour),
	}, sum[:]
}

func tokenEvent(kind broker.EventType) broker.Event {
	return broker.Event{ID: broker.NewEventID(), At: start, Type: kind, Caller: broker.Caller{Name: "operator"}}
}

func add(t testing.TB, s *store.Store, tk broker.Token, sum []byte) {
	t.Helper()
	if err := s.AddToken(t.Context(), tk, sum, tokenEvent(broker.EventTokenCreated)); err != nil {
		t.Fatal(err)
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	s := open(t, own(t))
	if list, err := s.Tokens(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("none yet: %v, %v", list, err)
	}
	one, oneSum := token("alice", broker.RoleOrchestrator, 0)
	two, twoSum := token("alice", broker.RoleOrchestrator, 1)
	three, threeSum := token("eve", broker.RoleAuditor, 2)
	add(t, s, one, oneSum)
	add(t, s, two, twoSum)
	add(t, s, three, threeSum)

	list, err := s.Tokens(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]broker.Token{three, two, one}, list); diff != "" {
		t.Errorf("newest first (-want +got): %s", diff)
	}
	found, err := s.FindToken(t.Context(), twoSum)
	if err != nil {
		t.Fatal(err)
	}
	if found.ID != two.ID || found.Caller != "alice" || found.Role != broker.RoleOrchestrator || !found.ExpiresAt.Equal(two.ExpiresAt) || !found.RevokedAt.IsZero() {
		t.Errorf("%+v", found)
	}
	if _, err := s.FindToken(t.Context(), make([]byte, 32)); !errors.Is(err, broker.ErrNoSuch) {
		t.Errorf("nobody's: %v", err)
	}

	// A revocation is for good, and the first one's time stands.
	revoke := func(at time.Time) {
		t.Helper()
		e := tokenEvent(broker.EventTokenRevoked)
		e.At = at
		if err := s.RevokeToken(t.Context(), two.ID, e); err != nil {
			t.Fatal(err)
		}
		found, err := s.FindToken(t.Context(), twoSum)
		if err != nil || !found.RevokedAt.Equal(start) {
			t.Errorf("%+v, %v", found, err)
		}
	}
	revoke(start)
	revoke(start.Add(time.Minute))
	if err := s.RevokeToken(t.Context(), "tok_nobody", tokenEvent(broker.EventTokenRevoked)); !errors.Is(err, broker.ErrNoSuch) {
		t.Errorf("nobody's: %v", err)
	}
	if found, err := s.FindToken(t.Context(), oneSum); err != nil || !found.RevokedAt.IsZero() {
		t.Errorf("another of the same caller's: %+v, %v", found, err)
	}
	if n := read[int](t, s.Pool(), "SELECT count(*) FROM events WHERE type LIKE 'token.%'"); n != 5 {
		t.Errorf("%d events of 5", n)
	}
}

// A caller has one role. What cannot be is not on the record either.
func TestTokenRefusals(t *testing.T) {
	t.Parallel()
	s := open(t, own(t))
	one, sum := token("alice", broker.RoleOrchestrator, 0)
	add(t, s, one, sum)
	other, otherSum := token("alice", broker.RoleOperator, 1)
	if err := s.AddToken(t.Context(), other, otherSum, tokenEvent(broker.EventTokenCreated)); !errors.Is(err, broker.ErrRoleTaken) {
		t.Errorf("a second role: %v", err)
	}
	ended, endedSum := token("bob", broker.RoleAuditor, 0)
	ended.ExpiresAt = ended.CreatedAt
	bad, badSum := token("bad name", broker.RoleAuditor, 0)
	short, _ := token("carol", broker.RoleAuditor, 0)
	again, _ := token("dave", broker.RoleAuditor, 0)
	for what, do := range map[string]func() error{
		"an end at its beginning": func() error { return s.AddToken(t.Context(), ended, endedSum, tokenEvent(broker.EventTokenCreated)) },
		"a name that is none":     func() error { return s.AddToken(t.Context(), bad, badSum, tokenEvent(broker.EventTokenCreated)) },
		"no hash": func() error {
			return s.AddToken(t.Context(), short, []byte("plain text"), tokenEvent(broker.EventTokenCreated))
		},
		"the same token": func() error { return s.AddToken(t.Context(), again, sum, tokenEvent(broker.EventTokenCreated)) },
		"an event that is broken": func() error {
			tk, sum := token("erin", broker.RoleAuditor, 0)
			return s.AddToken(t.Context(), tk, sum, broken(credential()))
		},
	} {
		if err := do(); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if list, err := s.Tokens(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	if n := read[int](t, s.Pool(), "SELECT count(*) FROM callers"); n != 1 {
		t.Errorf("%d callers", n)
	}
	if n := read[int](t, s.Pool(), "SELECT count(*) FROM events"); n != 1 {
		t.Errorf("%d events", n)
	}
}

// Many first tokens of one caller at once, of two roles: one role wins.
func TestTokensByMany(t *testing.T) {
	t.Parallel()
	s := open(t, own(t))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			tk, sum := token("alice", []broker.Role{broker.RoleOrchestrator, broker.RoleAuditor}[i%2], i)
			if err := s.AddToken(t.Context(), tk, sum, tokenEvent(broker.EventTokenCreated)); err != nil && !errors.Is(err, broker.ErrRoleTaken) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list, err := s.Tokens(t.Context())
	if err != nil || len(list) != 10 {
		t.Fatalf("%d tokens, %v", len(list), err)
	}
	for _, tk := range list {
		if tk.Role != list[0].Role {
			t.Errorf("alice is %s and %s", tk.Role, list[0].Role)
		}
	}
}
