package broker

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
)

// KeyProblems remembers why values of a pool's keys could not be handed out when they were last read, by the keys'
// names. No problem shows anything of a value. It is safe for concurrent use.
type KeyProblems struct {
	Logger *slog.Logger // nil: nothing is logged

	mu    sync.Mutex
	known map[string]string
}

// Set replaces them, and logs what has changed, with the answer of a store that caused it: once, however often the keys
// are read.
func (p *KeyProblems) Set(ctx context.Context, pool string, causes map[string]error) {
	now := map[string]string{}
	for name, err := range causes {
		now[name] = err.Error()
		if e, ok := errors.AsType[*Error](err); ok {
			now[name] = e.Message
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.known
	if p.known = now; p.Logger == nil {
		return
	}
	for name, problem := range now {
		if before[name] != problem {
			p.Logger.WarnContext(ctx, "a key of a pool is passed over", "pool", pool, "key", name, "problem", problem, VendorAttr(causes[name]))
		}
	}
	for name := range before {
		if _, still := now[name]; !still {
			p.Logger.InfoContext(ctx, "a key of a pool can be handed out again", "pool", pool, "key", name)
		}
	}
}

// Known is a copy of them.
func (p *KeyProblems) Known() map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.known)
}
