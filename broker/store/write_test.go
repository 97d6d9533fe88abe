package store_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
)

func TestCredentialRoundTrip(t *testing.T) {
	t.Parallel()
	s := open(t, shared)
	want := begin(t, s, credential())
	same := func(when string) {
		t.Helper()
		got, err := s.Credential(t.Context(), want.ID)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got): %s", when, diff)
		}
	}
	same("begun")
	want = into(want, broker.StateActive)
	want.Version.UpstreamExpiresAt = start.Add(2 * time.Hour)
	if err := s.Activate(t.Context(), want, []byte("sealed"), start, event(broker.EventIssued, want)); err != nil {
		t.Fatal(err)
	}
	same("active")
	want = move(t, s, want, broker.StateRevoking)
	same("revoking")
	want = move(t, s, want, broker.StateStuck)
	same("stuck")
	want = move(t, s, want, broker.StateRevoked)
	same("revoked")
	if _, err := s.Credential(t.Context(), "crd_nobody"); !errors.Is(err, broker.ErrNoSuch) {
		t.Errorf("nobody's: %v", err)
	}
}

// P4: state and event commit together. What PostgreSQL refuses of an event takes the state with it.
func TestStateAndEventAreOne(t *testing.T) {
	t.Parallel()
	s := open(t, shared)

	c := credential()
	good := event(broker.EventIntended, c)
	if err := s.Begin(t.Context(), intent([]broker.Event{good, broken(c)}, c)); err == nil {
		t.Error("Begin with an event that cannot be written")
	}
	if _, err := s.Credential(t.Context(), c.ID); !errors.Is(err, broker.ErrNoSuch) || events(t, s, c) != 0 {
		t.Errorf("Begin left %v, %d events", err, events(t, s, c))
	}
	begin(t, s, c) // the same ids, for nothing of the first was written

	active := into(c, broker.StateActive)
	if err := s.Activate(t.Context(), active, []byte("sealed"), start, broken(c)); err == nil {
		t.Error("Activate with an event that cannot be written")
	}
	if got := state(t, s, c); got != broker.StateIssuing || events(t, s, c) != 1 {
		t.Errorf("Activate left %s, %d events", got, events(t, s, c))
	}
	failed := into(c, broker.StateFailed)
	if err := s.Move(t.Context(), failed, []broker.State{broker.StateIssuing}, nil, event(broker.EventFailed, c), broken(c)); err == nil {
		t.Error("Move with an event that cannot be written")
	}
	if got := state(t, s, c); got != broker.StateIssuing || events(t, s, c) != 1 {
		t.Errorf("Move left %s, %d events", got, events(t, s, c))
	}
	if err := s.Record(t.Context(), event(broker.EventRefused, c), broken(c)); err == nil || events(t, s, c) != 1 {
		t.Errorf("Record: %v, %d events", err, events(t, s, c))
	}

	// And the other way round: what is refused of a state takes its event with it.
	twice := c
	if err := s.Begin(t.Context(), intent([]broker.Event{event(broker.EventIntended, twice)}, twice)); err == nil || events(t, s, c) != 1 {
		t.Errorf("the same credential again: %v, %d events", err, events(t, s, c))
	}
	// One of several.
	list := []broker.Credential{credential(), credential(), c}
	err := s.Begin(t.Context(), intent([]broker.Event{event(broker.EventIntended, list[0]), event(broker.EventIntended, list[1])}, list...))
	if err == nil || state(t, s, list[0]) != "" || events(t, s, list[0])+events(t, s, list[1]) != 0 {
		t.Errorf("two new credentials and an old one: %v", err)
	}
}

// The events of one write share its transaction's number, in their order.
func TestEventsBearTheirTransaction(t *testing.T) {
	t.Parallel()
	s := open(t, shared)
	c := credential()
	kinds := []broker.EventType{broker.EventIntended, broker.EventRefused, broker.EventAuditRead}
	var list []broker.Event
	for _, k := range kinds {
		list = append(list, event(k, c))
	}
	if err := s.Record(t.Context(), list...); err != nil {
		t.Fatal(err)
	}
	if n := read[int](t, s.Pool(), "SELECT count(DISTINCT xid) FROM events WHERE credential_id = $1", string(c.ID)); n != 1 {
		t.Errorf("%d transactions", n)
	}
	got := read[[]string](t, s.Pool(), "SELECT array_agg(type ORDER BY seq) FROM events WHERE credential_id = $1", string(c.ID))
	if diff := cmp.Diff([]string{"credential.intended", "credential.refused", "audit.read"}, got); diff != "" {
		t.Error(diff)
	}
	if err := s.Record(t.Context()); err != nil {
		t.Errorf("no events: %v", err)
	}
}

// P11: of many writes that share a commit only the bad ones fail.
func TestBadWriteFailsAlone(t *testing.T) {
	t.Parallel()
	s := open(t, shared, func(c *store.Config) { c.MaxConns = 2 })
	const many = 120
	list, errs := make([]broker.Credential, many), make([]error, many)
	for i := range list {
		list[i] = credential()
	}
	bad := func(i int) bool { return i%40 == 7 }
	together(t, s, func(wg *sync.WaitGroup) {
		for i, c := range list {
			wg.Go(func() {
				e := event(broker.EventIntended, c)
				if bad(i) {
					e = broken(c)
				}
				errs[i] = s.Begin(t.Context(), intent([]broker.Event{e}, c))
			})
		}
	})
	for i, c := range list {
		written := state(t, s, c) == broker.StateIssuing && events(t, s, c) == 1
		if bad(i) && (errs[i] == nil || written) {
			t.Errorf("bad write %d: %v, written: %v", i, errs[i], written)
		}
		if !bad(i) && (errs[i] != nil || !written) {
			t.Errorf("write %d: %v, written: %v", i, errs[i], written)
		}
	}
}

// together starts writers while the store's connections are all lent out, so that their writes gather; then it gives the
// connections back and waits for all.
func together(t *testing.T, s *store.Store, start func(*sync.WaitGroup)) {
	t.Helper()
	var lent []*pgxpool.Conn
	for range s.Pool().Config().MaxConns {
		conn, err := s.Pool().Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		lent = append(lent, conn)
	}
	var wg sync.WaitGroup
	start(&wg)
	for _, conn := range lent {
		conn.Release()
	}
	wg.Wait()
}

// Writes that wait at the same moment share a commit.
func TestWritesShareCommits(t *testing.T) {
	t.Parallel()
	s := open(t, shared, func(c *store.Config) { c.MaxConns = 2 })
	const many = 200
	profile := "shares-" + string(broker.NewVersionID())
	together(t, s, func(wg *sync.WaitGroup) {
		var begun sync.WaitGroup
		begun.Add(many)
		for range many {
			wg.Go(func() {
				c := credential()
				c.Profile = profile
				begun.Done()
				if err := s.Begin(t.Context(), intent([]broker.Event{event(broker.EventIntended, c)}, c)); err != nil {
					t.Error(err)
				}
			})
		}
		begun.Wait()
	})
	rows := read[int](t, s.Pool(), "SELECT count(*) FROM events WHERE profile = $1", profile)
	commits := read[int](t, s.Pool(), "SELECT count(DISTINCT xid) FROM events WHERE profile = $1", profile)
	if rows != many || commits > many/4 {
		t.Errorf("%d writes in %d transactions", rows, commits)
	}
}

// A caller that goes away leaves the others' writes alone, and learns that its own may have been made.
func TestWriterWhoLeaves(t *testing.T) {
	t.Parallel()
	s := open(t, shared, func(c *store.Config) { c.MaxConns = 2 })
	ctx, leave := context.WithCancel(t.Context())
	leave()
	together(t, s, func(wg *sync.WaitGroup) {
		for i := range 40 {
			wg.Go(func() {
				c, ctx := credential(), ctx
				if i%2 == 0 {
					ctx = t.Context()
				}
				err := s.Begin(ctx, intent([]broker.Event{event(broker.EventIntended, c)}, c))
				if i%2 == 0 && err != nil || i%2 == 1 && err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("writer %d: %v", i, err)
				}
			})
		}
	})
}

// A connection that dies fails the writes that were on it, in doubt; the store goes on.
func TestConnectionDies(t *testing.T) {
	t.Parallel()
	db := own(t)
	s, super := open(t, db), admin(t, db)
	for range 3 {
		begin(t, s, credential())
		if _, err := super.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND usename = $2", db.name, login); err != nil {
			t.Fatal(err)
		}
		within(t, "writing again", func(ctx context.Context) {
			for ctx.Err() == nil {
				c := credential()
				if err := s.Begin(ctx, intent([]broker.Event{event(broker.EventIntended, c)}, c)); err == nil {
					return
				}
			}
		})
	}
}

// After Close nothing is written, and nobody waits for it.
func TestClosed(t *testing.T) {
	t.Parallel()
	s := open(t, shared)
	begin(t, s, credential())
	s.Close()
	within(t, "writing after Close", func(ctx context.Context) {
		for range 20 {
			if err := s.Record(ctx, event(broker.EventAuditRead, credential())); err == nil {
				t.Error("written after Close")
			}
		}
	})
}

// Close finishes what was begun.
func TestCloseFinishes(t *testing.T) {
	t.Parallel()
	s, caller := open(t, shared), "closes-"+string(broker.NewVersionID())
	errs := make(chan error, 60)
	var begun sync.WaitGroup
	begun.Add(cap(errs))
	for range cap(errs) {
		go func() {
			c := credential()
			c.Caller = caller
			begun.Done()
			errs <- s.Begin(t.Context(), intent([]broker.Event{event(broker.EventIntended, c)}, c))
		}()
	}
	begun.Wait()
	s.Close()
	acknowledged := 0
	for range cap(errs) {
		if <-errs == nil {
			acknowledged++
		}
	}
	if n := read[int](t, admin(t, shared), "SELECT count(*) FROM credentials WHERE caller = $1", caller); n < acknowledged {
		t.Errorf("%d writes were acknowledged, %d are there", acknowledged, n)
	}
}

// Limits are exact, however many begin at once on however many replicas.
func TestLimits(t *testing.T) {
	t.Parallel()
	replicas := []*store.Store{open(t, shared), open(t, shared)}
	task := credential()
	limits := broker.Limits{PerTask: 10, PerAgent: 1000, PerProfile: 1000, PerCaller: 1000}
	try := func(s *store.Store) (broker.Credential, error) {
		c := credential()
		c.TaskID, c.Profile, c.Caller = task.TaskID, task.TaskID, task.TaskID
		return c, s.Begin(t.Context(), broker.Intent{Credentials: []broker.Credential{c}, Events: []broker.Event{event(broker.EventIntended, c)}, Limits: limits})
	}
	var mu sync.Mutex
	var alive []broker.Credential
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			c, err := try(replicas[i%2])
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				alive = append(alive, c)
			} else if !errors.Is(err, broker.ErrOverLimit) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(alive) != 10 {
		t.Fatalf("%d are alive at once; the limit is 10", len(alive))
	}
	if _, err := try(replicas[0]); !errors.Is(err, broker.ErrOverLimit) {
		t.Errorf("the eleventh: %v", err)
	}
	move(t, replicas[1], alive[0], broker.StateFailed)
	if _, err := try(replicas[0]); err != nil {
		t.Errorf("one has ended, and its place is not free: %v", err)
	}
	if _, err := try(replicas[0]); !errors.Is(err, broker.ErrOverLimit) {
		t.Errorf("the eleventh: %v", err)
	}
}
