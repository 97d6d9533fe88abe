package openapi

import (
	"hash/maphash"
	"time"

	"golang.org/x/time/rate"
)

// guesses slows down who tries tickets: each address may be wrong ten times, and once a second after that. A ticket has
// 176 random bits, so this is for the log's sake. Addresses share a fixed number of buckets: memory is bounded, and a
// stranger in the same bucket is slowed down for as long as the guessing goes on.
type guesses struct {
	seed    maphash.Seed
	buckets [1024]*rate.Limiter
}

const (
	guessesAtOnce = 10
	guessEvery    = time.Second
)

func newGuesses() *guesses {
	g := &guesses{seed: maphash.MakeSeed()}
	for i := range g.buckets {
		g.buckets[i] = rate.NewLimiter(rate.Every(guessEvery), guessesAtOnce)
	}
	return g
}

func (g *guesses) of(addr string) *rate.Limiter {
	return g.buckets[maphash.String(g.seed, addr)%uint64(len(g.buckets))]
}

// blocked is how long the address has to wait before it may try again; zero: not at all.
func (g *guesses) blocked(addr string) time.Duration {
	if g.of(addr).Tokens() >= 1 {
		return 0
	}
	return guessEvery
}

// count notes a wrong ticket.
func (g *guesses) count(addr string) { g.of(addr).Allow() }
