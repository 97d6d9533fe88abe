package broker

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Bounds are how many of one thing may be open at the same time in one process. All three are at least 1.
type Bounds struct {
	PerToken  int // by one token; of a task's token this is one agent
	PerCaller int // by all tokens of one caller, those of its tasks included
	Total     int // by all callers
}

// Limiter bounds how many of one thing, such as watches, are open at the same time, and divides them fairly. It never
// makes anybody wait: what exceeds a bound is refused at once. It is safe for concurrent use.
//
// Besides the configured bounds, a caller may not have more open than are still free for the others, nor a token more
// than are still free for its caller. So one caller can take at most half of the total, two a third each, and whoever
// has none open gets the first one until everything is taken.
type Limiter struct {
	what  string        // in the plural, for messages: "watches"
	pause time.Duration // when a refused client should try again

	mu      sync.Mutex
	bounds  Bounds
	total   int
	callers map[string]int // only those that have something open, so memory is bounded by Total
	tokens  map[string]int
	refused map[Bound]uint64 // since the start, by the bound that was reached
}

// Bound says which of a limiter's bounds refused a client.
type Bound string

// The bounds, from the narrowest to the widest.
const (
	BoundToken  Bound = "token"
	BoundCaller Bound = "caller"
	BoundTotal  Bound = "total"
)

// Use is what a limiter has counted.
type Use struct {
	Open    int              // now, by all callers
	Total   int              // how many may be
	Refused map[Bound]uint64 // since the start; it has all bounds
}

// NewLimiter makes a limiter of what is named, in the plural. A refused client is told to try again after the pause.
func NewLimiter(what string, pause time.Duration, b Bounds) *Limiter {
	return &Limiter{
		what: what, pause: pause, bounds: b, callers: map[string]int{}, tokens: map[string]int{},
		refused: map[Bound]uint64{BoundToken: 0, BoundCaller: 0, BoundTotal: 0},
	}
}

// Set replaces the bounds. What is open stays open.
func (l *Limiter) Set(b Bounds) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bounds = b
}

// Open is how many are open now.
func (l *Limiter) Open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}

// Use is what the limiter has counted until now.
func (l *Limiter) Use() Use {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Use{Open: l.total, Total: l.bounds.Total, Refused: maps.Clone(l.refused)}
}

// Acquire counts one more for the caller, or refuses with rate_limited. release must be called when it is over; calling
// it again does nothing. A caller that is not authenticated is counted by its network address, and by Auth if it is set.
func (l *Limiter) Acquire(c Caller) (release func(), err error) {
	caller, token := c.Name, c.Auth
	if caller == "" {
		caller = "address " + network(c.Addr) // no caller's name has a space
	}
	token = caller + " " + token
	l.mu.Lock()
	defer l.mu.Unlock()
	ofCaller, ofToken, b := l.callers[caller], l.tokens[token], l.bounds
	switch {
	case l.total >= b.Total:
		return nil, l.refuse(BoundTotal, "the broker is at its limit of open %s (%d): try again later", l.total)
	case ofCaller >= min(b.PerCaller, b.Total-l.total):
		return nil, l.refuse(BoundCaller, "the caller has all of its share of open %s (%d): let some end, or open fewer at the same time", ofCaller)
	case ofToken >= min(b.PerToken, b.PerCaller-ofCaller):
		return nil, l.refuse(BoundToken, "the token has all of its share of open %s (%d): let some end, or open fewer at the same time", ofToken)
	}
	l.total++
	l.callers[caller]++
	l.tokens[token]++
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.total--
		decrease(l.callers, caller)
		decrease(l.tokens, token)
	}), nil
}

// refuse needs the lock.
func (l *Limiter) refuse(by Bound, format string, open int) error {
	l.refused[by]++
	e := Errorf(CodeRateLimited, "%s", fmt.Sprintf(format, l.what, open))
	e.RetryAfter = l.pause
	return e
}

func decrease(counts map[string]int, key string) {
	if counts[key]--; counts[key] == 0 {
		delete(counts, key)
	}
}

// Concurrency bounds everything that a client can keep open, or that is dear, in one process. Every route of the API and
// of the console belongs to one of these; docs/operating.md has the table.
type Concurrency struct {
	Requests  *Limiter // calls that are none of the others; a ticket's redemption is counted by address
	Watches   *Limiter // credentials that are being watched
	Searches  *Limiter // lists, searches, proofs and pages of the console that are being read
	Exports   *Limiter // streams of the audit record
	LivePages *Limiter // pages of the console that are being followed
	Lookups   *Limiter // requests whose token is being looked up, by token and address
}

// ConcurrencyBounds are the bounds of each limiter. Zero values are filled in from DefaultConcurrency.
type ConcurrencyBounds struct {
	Requests, Watches, Searches, Exports, LivePages, Lookups Bounds
}

// DefaultConcurrency is made for one orchestrator of a thousand agents, and several tenants of that size. An idle watch
// takes some 30 KB with its connection; searches share few database connections, so more of them would only wait.
var DefaultConcurrency = ConcurrencyBounds{
	Requests:  Bounds{PerToken: 512, PerCaller: 1024, Total: 4096},
	Watches:   Bounds{PerToken: 512, PerCaller: 2048, Total: 8192},
	Searches:  Bounds{PerToken: 4, PerCaller: 8, Total: 32},
	Exports:   Bounds{PerToken: 2, PerCaller: 4, Total: 8},
	LivePages: Bounds{PerToken: 16, PerCaller: 32, Total: 64},
	Lookups:   Bounds{PerToken: 1024, PerCaller: 8192, Total: 16384},
}

// NewConcurrency makes the limiters.
func NewConcurrency(b ConcurrencyBounds) *Concurrency {
	c := &Concurrency{
		Requests:  NewLimiter("requests", time.Second, Bounds{}),
		Watches:   NewLimiter("watches", 5*time.Second, Bounds{}),
		Searches:  NewLimiter("searches and lists", time.Second, Bounds{}),
		Exports:   NewLimiter("exports", 5*time.Second, Bounds{}),
		LivePages: NewLimiter("live pages", 10*time.Second, Bounds{}),
		Lookups:   NewLimiter("requests that are being authenticated", time.Second, Bounds{}),
	}
	c.Set(b)
	return c
}

// Limiters are all of them, by their names in the configuration.
func (c *Concurrency) Limiters() map[string]*Limiter {
	return map[string]*Limiter{
		"requests": c.Requests, "watches": c.Watches, "searches": c.Searches, "exports": c.Exports,
		"live_pages": c.LivePages, "authentications": c.Lookups,
	}
}

// Set replaces all bounds.
func (c *Concurrency) Set(b ConcurrencyBounds) {
	d := DefaultConcurrency
	for _, one := range []struct {
		limiter    *Limiter
		set, usual Bounds
	}{
		{c.Requests, b.Requests, d.Requests}, {c.Watches, b.Watches, d.Watches}, {c.Searches, b.Searches, d.Searches},
		{c.Exports, b.Exports, d.Exports}, {c.LivePages, b.LivePages, d.LivePages}, {c.Lookups, b.Lookups, d.Lookups},
	} {
		orDefault(&one.set.PerToken, one.usual.PerToken)
		orDefault(&one.set.PerCaller, one.usual.PerCaller)
		orDefault(&one.set.Total, one.usual.Total)
		one.limiter.Set(one.set)
	}
}

// network is the part of an address that belongs to one customer: of IPv6 the /64.
func network(addr string) string {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return strings.ToValidUTF8(addr, "")
	}
	ip = ip.Unmap().WithZone("")
	if prefix, err := ip.Prefix(64); err == nil && ip.Is6() {
		return prefix.String()
	}
	return ip.String()
}
