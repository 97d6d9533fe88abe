package broker

import (
	"context"
	"sync"
	"time"
)

// Flights lets those who ask the same question at the same time share one answer, so that a thousand requests with one
// token cost the database two reads. An answer is never older than the question: it comes from a call that began after Do
// was called. Nothing is kept once nobody waits. The zero value works; it is safe for concurrent use.
type Flights[K comparable, V any] struct {
	mu sync.Mutex
	by map[K]*flight[V] // the call that begins next, for each key of which one is under way
}

// flight is one call that is shared: that of the first who waits for it. done is closed after value and err are set.
type flight[V any] struct {
	ctx   context.Context
	limit time.Duration
	fn    func(context.Context) (V, error)

	done  chan struct{}
	value V
	err   error
}

// Do answers what fn answers for the key. fn runs with a context of its own that ends after the limit: it does not end
// when one of those who wait gives up. Who gives up gets the error of ctx.
func (f *Flights[K, V]) Do(ctx context.Context, key K, limit time.Duration, fn func(context.Context) (V, error)) (V, error) {
	f.mu.Lock()
	next, busy := f.by[key]
	if next == nil {
		next = &flight[V]{ctx: context.WithoutCancel(ctx), limit: limit, fn: fn, done: make(chan struct{})}
	}
	if !busy {
		if f.by == nil {
			f.by = map[K]*flight[V]{}
		}
		f.by[key] = nil // it begins now: whoever comes after this waits for the one after it
		go f.run(key, next)
	} else {
		f.by[key] = next
	}
	f.mu.Unlock()
	select {
	case <-next.done:
		return next.value, next.err
	case <-ctx.Done():
		return *new(V), ctx.Err()
	}
}

// run makes the calls for a key, one after the other, until nobody waits for another one.
func (f *Flights[K, V]) run(key K, now *flight[V]) {
	for now != nil {
		now.call()
		f.mu.Lock()
		if next := f.by[key]; next != nil {
			now, f.by[key] = next, nil
		} else {
			now = nil
			delete(f.by, key)
		}
		f.mu.Unlock()
	}
}

func (c *flight[V]) call() {
	defer close(c.done)
	ctx, cancel := context.WithTimeout(c.ctx, c.limit)
	defer cancel()
	c.err = Recovered(func() (err error) {
		c.value, err = c.fn(ctx)
		return err
	})
}
