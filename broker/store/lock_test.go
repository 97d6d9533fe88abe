package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
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

// waiting waits until somebody waits for an advisory lock in this database.
func waiting(t *testing.T, db pgtest.DB) {
	t.Helper()
	super := admin(t, db)
	within(t, 20*time.Second, "waiting for a lock", func(ctx context.Context) {
		for ctx.Err() == nil {
			var n int
			if err := super.QueryRow(ctx, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&n); err != nil || n > 0 {
				return
			}
		}
	})
}

// One at a time for an upstream, across replicas; different upstreams do not wait for each other.
func TestLocked(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	one, other := open(t, db), open(t, db)
	letGo := hold(t, one, "role-a")
	within(t, 20*time.Second, "another upstream", func(ctx context.Context) {
		if err := other.Locked(ctx, "role-b", func(context.Context) error { return nil }); err != nil {
			t.Error(err)
		}
	})
	var free atomic.Bool
	done := make(chan error, 1)
	go func() {
		done <- other.Locked(t.Context(), "role-a", func(context.Context) error {
			if !free.Load() {
				t.Error("two hold the same lock")
			}
			return nil
		})
	}()
	waiting(t, db)
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
			err := []*store.Store{one, other}[i%2].Locked(t.Context(), "role-a", func(context.Context) error {
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
	db := pgtest.New(t)
	s, other := open(t, db), open(t, db)
	failure := errors.New("failed")
	if err := s.Locked(t.Context(), "u", func(context.Context) error { return failure }); !errors.Is(err, failure) {
		t.Errorf("%v", err)
	}
	func() {
		defer func() { _ = recover() }()
		_ = s.Locked(t.Context(), "u", func(context.Context) error { panic("planned") })
	}()
	letGo := hold(t, s, "u")
	ctx, leave := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- other.Locked(ctx, "u", func(context.Context) error {
			t.Error("locked twice")
			return nil
		})
	}()
	waiting(t, db)
	leave()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("gave up: %v", err)
	}
	if err := letGo(); err != nil {
		t.Error(err)
	}
	within(t, 20*time.Second, "locking again", func(ctx context.Context) {
		if err := other.Locked(ctx, "u", func(context.Context) error { return nil }); err != nil {
			t.Error(err)
		}
	})
}

// A process that dies takes its lock with it.
func TestLockDiesWithItsConnection(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	one, other := open(t, db), open(t, db)
	letGo := hold(t, one, "u")
	done := make(chan error, 1)
	go func() { done <- other.Locked(t.Context(), "u", func(context.Context) error { return nil }) }()
	waiting(t, db)
	_, err := admin(t, db).Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the lock outlives its connection")
	}
	_ = letGo()
	// The store goes on with another connection.
	if err := one.Locked(t.Context(), "u", func(context.Context) error { return nil }); err != nil {
		t.Error(err)
	}
}

// P10: no transaction is open while the lock is held.
func TestLockHoldsNoTransaction(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := open(t, db)
	super := admin(t, db)
	err := s.Locked(t.Context(), "u", func(context.Context) error {
		if n := read[int](t, super, "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND usename = $2 AND xact_start IS NOT NULL", db.Name, login); n != 0 {
			t.Errorf("%d transactions are open", n)
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
	s := open(t, pgtest.New(t), func(c *store.Config) { c.MaxConns = 4 })
	within(t, 5*time.Second, "8 upstreams' locks on 4 connections", func(ctx context.Context) {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				upstream := fmt.Sprintf("role-%d", i)
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
	db := pgtest.New(t)
	s, other := open(t, db, func(c *store.Config) { c.MaxConns = 4 }), open(t, db)
	letGo := hold(t, other, "slow")
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { _ = s.Locked(ctx, "slow", func(context.Context) error { return nil }) })
	}
	waiting(t, db)
	within(t, 5*time.Second, "a write while 8 wait for a lock on 4 connections", func(ctx context.Context) {
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
	db := pgtest.New(t)
	s, super := open(t, db), admin(t, db)
	var want []broker.VersionID
	for _, is := range broker.States() {
		c := put(t, super, credential(), is)
		if is == broker.StateRevoking || is == broker.StateStuck || is == broker.StateRevoked {
			want = append(want, c.Version.ID)
		}
	}
	slices.Sort(want)
	end := read[time.Time](t, super, "SELECT max(expires_at) FROM versions")
	first := read[time.Time](t, super, "SELECT min(expires_at) FROM versions")
	for _, c := range []struct {
		upstream string
		at       time.Time
		want     []broker.VersionID
	}{
		{"u", first.Add(-time.Second), want}, {"u", end, nil}, {"v", first.Add(-time.Second), nil},
	} {
		got, err := s.Denied(t.Context(), c.upstream, c.at)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			got = nil
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s at %s: %s", c.upstream, c.at, diff)
		}
	}
}
