package broker_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// looked counts the reads of what is watched, and can fail or hold them up.
type looked struct {
	broker.Ledger
	reads, asked atomic.Int64 // reads, and the ids in them
	mu           sync.Mutex
	before       func(ctx context.Context) error
}

func (l *looked) CredentialsByID(ctx context.Context, ids []broker.CredentialID) ([]broker.Credential, error) {
	l.reads.Add(1)
	l.asked.Add(int64(len(ids)))
	l.mu.Lock()
	before := l.before
	l.mu.Unlock()
	if before != nil {
		if err := before(ctx); err != nil {
			return nil, err
		}
	}
	return l.Ledger.CredentialsByID(ctx, ids)
}

func (l *looked) set(before func(context.Context) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.before = before
}

func newLooked(t *testing.T) (*house, *looked) {
	t.Helper()
	l := &looked{}
	h := newHouse(t, func(c *broker.Config) { l.Ledger, c.Ledger = c.Ledger, l })
	return h, l
}

// P12: however many watch a credential, a replica reads it once, and once more when it changes. At d138a73 each of them
// had a read of its own each time, over the connections that issuing needs.
func TestWatchersShareReads(t *testing.T) {
	t.Parallel()
	h, l := newLooked(t)
	const many = 3000
	id := h.issue("t").ID
	goOn := make(chan struct{})
	l.set(func(context.Context) error { <-goOn; return nil })
	var wg sync.WaitGroup
	var begun, told atomic.Int64
	for range many {
		wg.Go(func() {
			ctx := noticed{t.Context(), sync.OnceFunc(func() { begun.Add(1) })}
			c, changed, err := h.Watch(ctx, orchestrator, id, 1, 10*time.Minute)
			if err != nil || !changed || c.Version.State != broker.StateRevoked && c.Version.State != broker.StateRevoking {
				t.Errorf("%s, %v, %v", c.Version.State, changed, err)
			}
			told.Add(1)
		})
	}
	eventually(t, "all watch", func() bool { return begun.Load() == many })
	close(goOn)
	eventually(t, "it was read", func() bool { return l.reads.Load() >= 2 })
	if n := told.Load(); n > 0 {
		t.Fatalf("%d were told of a change before there was one", n)
	}
	before := l.reads.Load()
	if _, err := h.Revoke(t.Context(), orchestrator, id, ""); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	// One for each notification and one each five seconds; a busy machine may need a while.
	if n := l.reads.Load(); before > 50 || n > before+50 {
		t.Errorf("%d reads before the change, %d in all, for %d watches", before, n, many)
	}
	if l.asked.Load() != l.reads.Load() {
		t.Errorf("%d ids in %d reads of one credential", l.asked.Load(), l.reads.Load())
	}
}

// Watches of many credentials share reads too: 256 at a time.
func TestWatchesOfManyAreReadTogether(t *testing.T) {
	t.Parallel()
	h, l := newLooked(t)
	const many = 600
	goOn := make(chan struct{})
	l.set(func(context.Context) error { <-goOn; return nil })
	var wg sync.WaitGroup
	var begun atomic.Int64
	for range many { // unknown ones, each of its own
		id := broker.NewCredentialID()
		wg.Go(func() {
			ctx := noticed{t.Context(), sync.OnceFunc(func() { begun.Add(1) })}
			if _, _, err := h.Watch(ctx, orchestrator, id, 0, time.Minute); codeOf(err) != broker.CodeNotFound {
				t.Error(err)
			}
		})
	}
	eventually(t, "all watch", func() bool { return begun.Load() == many })
	close(goOn)
	wg.Wait()
	if reads, asked := l.reads.Load(), l.asked.Load(); asked < many || asked > 2*many || reads > many/10 {
		t.Errorf("%d reads of %d credentials", reads, asked)
	}
}

// A watch ends with its wait, whatever the database does; what could not be read is not said to be unchanged.
func TestWatchOfAHungDatabase(t *testing.T) {
	t.Parallel()
	h, l := newLooked(t)
	id := h.issue("t").ID
	l.set(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	var wg sync.WaitGroup
	for _, wait := range []time.Duration{0, time.Second} {
		wg.Go(func() {
			_, changed, err := h.Watch(t.Context(), orchestrator, id, 1, wait)
			if changed || err == nil || broker.AsError(err).Code.Status() != http.StatusServiceUnavailable {
				t.Errorf("after %s: %v, %v", wait, changed, err)
			}
		})
	}
	wg.Wait()
}

// The database answers once, then not, then it does again: the change that it tells of only then is not lost.
func TestWatchOutlivesAFailedRead(t *testing.T) {
	t.Parallel()
	h, l := newLooked(t)
	id := h.issue("t").ID
	known := make(chan struct{})
	failed := make(chan struct{}, 100)
	var once sync.Once
	l.set(func(context.Context) error {
		select {
		case <-known:
			failed <- struct{}{}
			return errors.New("the database is away")
		default:
			once.Do(func() { close(known) })
			return nil
		}
	})
	result := make(chan bool)
	go func() {
		c, changed, err := h.Watch(t.Context(), orchestrator, id, 1, time.Hour)
		result <- err == nil && changed && c.Version.Number == 1
	}()
	<-known
	if _, err := h.Revoke(t.Context(), orchestrator, id, ""); err != nil {
		t.Fatal(err)
	}
	<-failed
	l.set(nil)
	if !<-result {
		t.Error("the change was lost")
	}
}

// A watch that begins while a read is under way is answered by a later one, and a panic of the ledger ends no process.
func TestWatchIsNeverAnsweredByAnOlderRead(t *testing.T) {
	t.Parallel()
	h, l := newLooked(t)
	id := h.issue("t").ID
	read, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	stale := &stale{Ledger: l.Ledger, read: func() { once.Do(func() { close(read); <-goOn }) }}
	l.Ledger = stale
	first := make(chan error)
	go func() {
		_, _, err := h.Watch(t.Context(), orchestrator, id, 1, time.Minute)
		first <- err
	}()
	<-read // the state from before the change is in memory
	if _, err := h.Revoke(t.Context(), orchestrator, id, ""); err != nil {
		t.Fatal(err)
	}
	second, waits := make(chan bool), make(chan struct{})
	go func() {
		_, changed, err := h.Watch(noticed{t.Context(), sync.OnceFunc(func() { close(waits) })}, orchestrator, id, 1, 0)
		second <- changed && err == nil
	}()
	<-waits
	close(goOn)
	if !<-second {
		t.Error("it was answered that nothing has changed, by a read from before")
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
	l.set(func(context.Context) error { panic("C4n4ry") })
	if _, _, err := h.Watch(t.Context(), orchestrator, id, 1, 0); err == nil {
		t.Error("a panic is no error")
	}
}

// stale holds a read up after the database has answered it.
type stale struct {
	broker.Ledger
	read func()
}

func (s *stale) CredentialsByID(ctx context.Context, ids []broker.CredentialID) ([]broker.Credential, error) {
	list, err := s.Ledger.CredentialsByID(ctx, ids)
	s.read()
	return list, err
}

// noticed tells when somebody begins to wait with it.
type noticed struct {
	context.Context
	waits func()
}

func (n noticed) Done() <-chan struct{} {
	n.waits()
	return n.Context.Done()
}
