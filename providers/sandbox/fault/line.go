package fault

import "sync"

// Line is where faults of a stand-in's own kind wait for the calls that they befall: a call takes the oldest that is for it.
// The zero value is ready.
type Line[F any] struct {
	mu      sync.Mutex
	waiting []waiting[F]
}

type waiting[F any] struct {
	fault F
	times int
	met   bool
}

// Add queues a fault for so many calls. Zero: one. Negative: all, until Clear.
func (l *Line[F]) Add(f F, times int) {
	if times == 0 {
		times = 1
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, waiting[F]{fault: f, times: times})
}

// Clear drops what is queued.
func (l *Line[F]) Clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = nil
}

// Take finds the fault that befalls a call, if any, and tells whether this is its first one.
func (l *Line[F]) Take(isFor func(F) bool) (f F, first, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.waiting {
		w := &l.waiting[i]
		if !isFor(w.fault) {
			continue
		}
		f, first = w.fault, !w.met
		w.met = true
		if w.times > 0 {
			if w.times--; w.times == 0 {
				l.waiting = append(l.waiting[:i:i], l.waiting[i+1:]...)
			}
		}
		return f, first, true
	}
	return f, false, false
}
