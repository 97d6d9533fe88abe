package resolve

import (
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/taskpass/taskpass/broker"
)

const (
	lookTimeout  = 10 * time.Second // for one reference, so that one hanging store's pass ends
	patience     = 3                // failures of a store in a row after which a pass goes no further
	defaultEvery = time.Minute
)

// Watch calls changed for a reference whenever its value is another than the one that this Watch saw last; the first time
// that it can be read counts, so nothing is missed that happened before. It looks at files as soon as the system tells of
// a change in their directory, again when what was being written counts, and at everything about each `every`; zero is
// a minute. What cannot be read now has not changed: it is looked at again.
//
// changed is told which reference, and resolves it itself; it is never called twice at once, and is waited for. Watch
// returns when ctx has ended, and leaves no goroutine behind. A reference whose form Check refuses is left out.
func (r *Resolver) Watch(ctx context.Context, refs []string, every time.Duration, changed func(ref string)) {
	if every <= 0 {
		every = defaultEvery
	}
	var telling sync.Mutex
	tell := func(ref string) {
		telling.Lock()
		defer telling.Unlock()
		if ctx.Err() == nil {
			changed(ref)
		}
	}
	stores := map[string]*rounds{} // one a store: a dead one holds no other up
	for _, ref := range refs {
		if r.Check(ref) != nil {
			continue
		}
		kind, _, _ := strings.Cut(ref, ":")
		if kind == "env" {
			kind = "file"
		}
		if stores[kind] == nil {
			stores[kind] = &rounds{resolver: r, seen: map[string][sha256.Size]byte{}, tell: tell}
		}
		stores[kind].refs = append(stores[kind].refs, ref)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	running := broker.Group{Panicked: stop} // a panic ends the others too: the caller starts the whole Watch again
	for kind, s := range stores {
		running.Go(func() {
			if kind == "file" {
				s.watchFiles(ctx, every)
				return
			}
			for s.pass(ctx); wait(ctx, every); {
				s.pass(ctx)
			}
		})
	}
	running.Wait()
}

// wait is false when ctx has ended.
func wait(ctx context.Context, every time.Duration) bool {
	timer := time.NewTimer(jittered(every))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// jittered is within a fifth of d, so that replicas do not ask a store together.
func jittered(d time.Duration) time.Duration {
	return d - d/5 + rand.N(max(1, 2*d/5))
}

// rounds looks at the references of one store, one after the other.
type rounds struct {
	resolver *Resolver
	refs     []string
	next     int                          // where a pass begins: behind where the last one gave up
	seen     map[string][sha256.Size]byte // fingerprints, never values
	again    time.Duration                // of the last pass: when a file that is being written may count; zero: none is
	tell     func(ref string)
}

// pass looks at each reference once. It gives up when the store fails again and again: it is down.
func (s *rounds) pass(ctx context.Context) {
	failures := 0
	s.again = 0
	for range s.refs {
		ref := s.refs[s.next%len(s.refs)]
		s.next = (s.next + 1) % len(s.refs)
		if ctx.Err() != nil {
			return
		}
		if down := s.look(ctx, ref); !down {
			failures = 0
		} else if failures++; failures == patience {
			return
		}
	}
}

// look tells of a changed value. down: the store itself failed, and not only this reference.
func (s *rounds) look(ctx context.Context, ref string) (down bool) {
	within, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	value, again, err := s.resolver.present(within, ref)
	if again > 0 && (s.again == 0 || again < s.again) {
		s.again = again
	}
	if err != nil {
		switch broker.AsError(err).Code {
		case broker.CodeUpstreamThrottled, broker.CodeUpstreamError, broker.CodeUpstreamTimeout:
			return true
		}
		return false
	}
	sum := value.Fingerprint()
	if before, known := s.seen[ref]; known && before == sum {
		return false
	}
	s.seen[ref] = sum
	s.tell(ref)
	return false
}

// present is the value that counts now; again is as Local's.
func (r *Resolver) present(ctx context.Context, ref string) (value broker.Secret, again time.Duration, err error) {
	if Local(ref) {
		return r.Local(ref)
	}
	value, _, err = r.Resolve(ctx, ref)
	return value, 0, err
}
