package store_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
)

// hold takes the lock of an upstream and keeps it until let go.
func hold(t *testing.T, s *store.Store, upstream string) (letGo func() error) {
	t.Helper()
	has, free, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- s.Locked(context.WithoutCancel(t.Context()), upstream, func(context.Context) error {
			close(has)
			<-free
			return nil
		})
	}()
	select {
	case <-has:
	case err := <-done:
		t.Fatalf("not locked: %v", err)
	}
	return sync.OnceValue(func() error {
		close(free)
		return <-done
	})
}

// lockOf finds an upstream's lock in pg_locks, as the store names it.
const lockOf = `locktype = 'advisory' AND (classid::bigint << 32 | objid::bigint) = hashtextextended('taskpass:' || $1, 0)
	AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`

// waiting waits until somebody waits for an upstream's lock.
func waiting(t *testing.T, upstream string) {
	t.Helper()
	super := admin(t, shared)
	within(t, "waiting for a lock", func(ctx context.Context) {
		for ctx.Err() == nil {
			var n int
			err := super.QueryRow(ctx, "SELECT count(*) FROM pg_locks WHERE NOT granted AND "+lockOf, upstream).Scan(&n)
			if err != nil || n > 0 {
				return
			}
		}
	})
}

// One at a time for an upstream, across replicas; different upstreams do not wait for each other.
func TestLocked(t *testing.T) {
	t.Parallel()
	one, other := open(t, shared), open(t, shared)
	roleA, roleB := name("role-a"), name("role-b")
	letGo := hold(t, one, roleA)
	within(t, "another upstream", func(ctx context.Context) {
		if err := other.Locked(ctx, roleB, func(context.Context) error { return nil }); err != nil {
			t.Error(err)
		}
	})
	var free atomic.Bool
	done := make(chan error, 1)
	go func() {
		done <- other.Locked(t.Context(), roleA, func(context.Context) error {
			if !free.Load() {
				t.Error("two hold the same lock")
			}
			return nil
		})
	}()
	waiting(t, roleA)
	free.Store(true)
	if err := letGo(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}

	var inside, most atomic.Int64
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			err := []*store.Store{one, other}[i%2].Locked(t.Context(), roleA, func(context.Context) error {
				if n := inside.Add(1); n > most.Load() {
					most.Store(n)
				}
				inside.Add(-1)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d held the lock at once", most.Load())
	}
}

// The lock is free when its work fails, panics, or is given up while waiting.
func TestLockIsAlwaysFreed(t *testing.T) {
	t.Parallel()
	s, other, u := open(t, shared), open(t, shared), name("role")
	failure := errors.New("failed")
	if err := s.Locked(t.Context(), u, func(context.Context) error { return failure }); !errors.Is(err, failure) {
		t.Errorf("%v", err)
	}
	func() {
		defer func() { _ = recover() }()
		_ = s.Locked(t.Context(), u, func(context.Context) error { panic("planned") })
	}()
	letGo := hold(t, s, u)
	ctx, leave := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- other.Locked(ctx, u, func(context.Context) error {
			t.Error("locked twice")
			return nil
		})
	}()
	waiting(t, u)
	leave()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("gave up: %v", err)
	}
	if err := letGo(); err != nil {
		t.Error(err)
	}
	within(t, "locking again", func(ctx context.Context) {
		if err := other.Locked(ctx, u, func(context.Context) error { return nil }); err != nil {
			t.Error(err)
		}
	})
}

// A process that dies takes its lock with it.
func TestLockDiesWithItsConnection(t *testing.T) {
	t.Parallel()
	one, other, u := open(t, shared), open(t, shared), name("role")
	letGo := hold(t, one, u)
	done := make(chan error, 1)
	go func() { done <- other.Locked(t.Context(), u, func(context.Context) error { return nil }) }()
	waiting(t, u)
	_, err := admin(t, shared).Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE granted AND "+lockOf, u)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(2 * time.Minute):
		t.Error("the lock outlives its connection")
	}
	_ = letGo()
	// The store goes on with another connection.
	if err := one.Locked(t.Context(), u, func(context.Context) error { return nil }); err != nil {
		t.Error(err)
	}
}

// P10: no transaction is open while the lock is held.
func TestLockHoldsNoTransaction(t *testing.T) {
	t.Parallel()
	app := name("app")
	s := open(t, shared, func(c *store.Config) {
		u, err := url.Parse(c.URL.Reveal())
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		q.Set("application_name", app)
		u.RawQuery = q.Encode()
		c.URL = broker.NewSecret(u.String())
	})
	super := admin(t, shared)
	err := s.Locked(t.Context(), name("role"), func(context.Context) error {
		sessions := read[int](t, super, "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", app)
		open := read[int](t, super, "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND xact_start IS NOT NULL", app)
		if sessions == 0 || open != 0 {
			t.Errorf("%d transactions are open in %d sessions", open, sessions)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// P11: many upstreams that are locked at once, each by one who then reads the ledger, do not starve each other or
// anybody else of connections. Here each waits for all others before it reads.
func TestLocksStarveNobody(t *testing.T) {
	t.Parallel()
	s := open(t, shared, func(c *store.Config) { c.MaxConns = 4 })
	within(t, "8 upstreams' locks on 4 connections", func(ctx context.Context) {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				upstream := name(fmt.Sprintf("role-%d", i))
				err := s.Locked(ctx, upstream, func(ctx context.Context) error {
					for range 20 {
						if _, err := s.Denied(ctx, upstream, start); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					t.Errorf("%s: %v", upstream, err)
				}
			})
		}
		wg.Wait()
	})
}

// P11: one slow upstream's lock, for which many wait, holds up nobody who writes.
func TestWaitersHoldUpNoWrites(t *testing.T) {
	t.Parallel()
	s, other := open(t, shared, func(c *store.Config) { c.MaxConns = 4 }), open(t, shared)
	slow := name("slow")
	letGo := hold(t, other, slow)
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { _ = s.Locked(ctx, slow, func(context.Context) error { return nil }) })
	}
	waiting(t, slow)
	within(t, "a write while 8 wait for a lock on 4 connections", func(ctx context.Context) {
		c := credential()
		if err := s.Begin(ctx, intent([]broker.Event{event(broker.EventIntended, c)}, c)); err != nil {
			t.Error(err)
		}
	})
	leave()
	if err := letGo(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func TestDenied(t *testing.T) {
	t.Parallel()
	s, super := open(t, shared), admin(t, shared)
	u := name("role")
	var want []broker.VersionID
	for _, is := range broker.States() {
		c := credential()
		c.Version.Upstream = u
		c = put(t, super, c, is)
		if is == broker.StateRevoking || is == broker.StateStuck || is == broker.StateRevoked {
			want = append(want, c.Version.ID)
		}
	}
	slices.Sort(want)
	end := read[time.Time](t, super, "SELECT max(expires_at) FROM versions WHERE upstream = $1", u)
	first := read[time.Time](t, super, "SELECT min(expires_at) FROM versions WHERE upstream = $1", u)
	for _, c := range []struct {
		upstream string
		at       time.Time
		want     []broker.VersionID
	}{
		{u, first.Add(-time.Second), want}, {u, end, nil}, {name("role"), first.Add(-time.Second), nil},
	} {
		got, err := s.Denied(t.Context(), c.upstream, c.at)
		if err != nil {
			t.Fatal(err)
		}
		var ids []broker.VersionID
		for _, d := range got {
			ids = append(ids, d.ID)
			if !d.ExpiresAt.After(d.IssuedAt) {
				t.Errorf("%+v", d)
			}
		}
		if diff := cmp.Diff(c.want, ids); diff != "" {
			t.Errorf("%s at %s: %s", c.upstream, c.at, diff)
		}
	}
}
