package broker

import (
	"math/rand/v2"
	"sync"
	"time"
)

// Metered is a Provider whose upstream bounds the rate of calls. Providers that share a bound give it the same name:
// when the upstream says that it is too much, minting at all of them pauses.
type Metered interface{ Quota() string }

// Pauses of throttled upstreams.
const (
	pauseAtFirst = time.Second
	pauseAtMost  = time.Minute
)

// throttles holds minting back where an upstream said that it is too much. Each process learns it from its own upstream's
// answers; replicas share nothing else. Safe for concurrent use.
type throttles struct {
	mu sync.Mutex
	of map[string]pause
}

type pause struct {
	until time.Time
	last  time.Duration // how long the pause is; the next one is twice as long, if it comes before one call succeeded
}

// wait is how long the quota's upstream is left alone yet; zero: it may be asked.
func (t *throttles) wait(quota string, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(0, t.of[quota].until.Sub(now))
}

// learn takes in what became of a call that was begun at the given time. Calls that were under way together count once.
func (t *throttles) learn(quota string, begun, now time.Time, e *Error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, paused := t.of[quota]
	switch {
	case e == nil || e.Code != CodeUpstreamThrottled:
		if paused && e == nil && !begun.Before(p.until) {
			delete(t.of, quota)
		}
	case begun.Before(p.until):
	default:
		p.last = min(max(2*p.last, e.RetryAfter, pauseAtFirst), pauseAtMost)
		p.until = now.Add(p.last + rand.N(p.last/2).Truncate(time.Millisecond)) // so that replicas don't come back together
		if t.of == nil {
			t.of = map[string]pause{}
		}
		t.of[quota] = p
	}
}

// paused is the error for a mint that is not tried; nil: try.
func (b *Broker) paused(p Provider) error {
	m, ok := p.(Metered)
	if !ok {
		return nil
	}
	wait := b.throttles.wait(m.Quota(), b.now())
	if wait == 0 {
		return nil
	}
	e := Errorf(CodeUpstreamThrottled, "the upstream said that it is asked too often, and is left alone for a while")
	e.RetryAfter = wait
	return e
}

func (b *Broker) learnPace(p Provider, begun time.Time, err error) {
	m, ok := p.(Metered)
	if !ok {
		return
	}
	var e *Error
	if err != nil {
		e = upstreamError(err)
	}
	b.throttles.learn(m.Quota(), begun, b.now(), e)
}
