package console

import (
	"hash/maphash"
	"net/netip"
	"time"

	"golang.org/x/time/rate"
)

// guesses slows down who tries tokens: each address may be wrong ten times, and once in five seconds after that. A token
// has 176 random bits, so this is for the log's sake. Addresses share a fixed number of buckets, so memory is bounded;
// of IPv6 one /64 is one address.
type guesses struct {
	clock   func() time.Time
	seed    maphash.Seed
	buckets [1024]*rate.Limiter
}

const (
	guessesAtOnce = 10
	guessEvery    = 5 * time.Second
)

func newGuesses(clock func() time.Time) *guesses {
	g := &guesses{clock: clock, seed: maphash.MakeSeed()}
	for i := range g.buckets {
		g.buckets[i] = rate.NewLimiter(rate.Every(guessEvery), guessesAtOnce)
	}
	return g
}

func (g *guesses) of(addr string) *rate.Limiter {
	if ip, err := netip.ParseAddr(addr); err == nil && ip.Unmap().Is6() {
		if net, err := ip.WithZone("").Prefix(64); err == nil {
			addr = net.String()
		}
	}
	return g.buckets[maphash.String(g.seed, addr)%uint64(len(g.buckets))]
}

// blocked tells whether the address has to wait before it may try again.
func (g *guesses) blocked(addr string) bool { return g.of(addr).TokensAt(g.clock()) < 1 }

// count notes a wrong token.
func (g *guesses) count(addr string) { g.of(addr).AllowN(g.clock(), 1) }
