package broker

import (
	"hash/maphash"
	"sync"
	"time"
)

// Guesses slows down who tries tickets or tokens: each address may be wrong ten times, and once a second after that. They
// have 176 random bits, so this is for the log's sake, and each process counts for itself.
//
// Addresses share a fixed number of buckets, so memory is bounded, and a stranger in the same bucket is slowed down for as
// long as the guessing goes on. Of IPv6 one /64 is one address: that is what one customer has. Safe for concurrent use.
type Guesses struct {
	clock func() time.Time
	seed  maphash.Seed // nobody can choose an address that shares another's bucket

	mu   sync.Mutex
	full [1024]time.Time // when the bucket's allowance is whole again
}

const (
	guessesAtOnce = 10
	guessEvery    = time.Second
)

// NewGuesses makes a counter with all allowances whole.
func NewGuesses(clock func() time.Time) *Guesses {
	return &Guesses{clock: clock, seed: maphash.MakeSeed()}
}

// Wait is how long an address has to wait before it may try again; zero: not at all.
func (g *Guesses) Wait(addr string) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(0, g.full[g.bucket(addr)].Add(-(guessesAtOnce-1)*guessEvery).Sub(g.clock()))
}

// Wrong counts a guess. Those that were under way when the allowance was spent make no wait longer.
func (g *Guesses) Wrong(addr string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now, full := g.clock(), &g.full[g.bucket(addr)]
	if full.Before(now) {
		*full = now
	}
	if next := full.Add(guessEvery); !next.After(now.Add(guessesAtOnce * guessEvery)) {
		*full = next
	}
}

func (g *Guesses) bucket(addr string) uint64 {
	return maphash.String(g.seed, network(addr)) % uint64(len(g.full))
}
