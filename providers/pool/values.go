package pool

import (
	"context"
	"sync"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/pool/resolve"
)

// staleFor is how long a value is used after its store was last read: a store that is down stops nothing at once.
const staleFor = time.Hour

// values are the present values of references. What this machine has is read at each use, and counts by the rules of
// broker.SecretFiles; what a store has is kept for a while, so that a mint does not wait for each key's store.
type values struct {
	stores *resolve.Resolver
	keep   time.Duration
	clock  func() time.Time

	mu    sync.Mutex
	known map[string]knownValue
}

type knownValue struct {
	value broker.Secret
	at    time.Time
}

// read returns the present value. again is not zero while a file may still be being written: look again after that
// time.
func (v *values) read(ctx context.Context, ref string) (value broker.Secret, again time.Duration, err error) {
	if resolve.Local(ref) {
		return v.stores.Local(ref)
	}
	value, err = v.stored(ctx, ref)
	return value, 0, err
}

func (v *values) stored(ctx context.Context, ref string) (broker.Secret, error) {
	v.mu.Lock()
	known, ok := v.known[ref]
	v.mu.Unlock()
	now := v.clock()
	if ok && now.Sub(known.at) < v.keep {
		return known.value, nil
	}
	value, _, err := v.stores.Resolve(ctx, ref)
	if err != nil {
		if ok && now.Sub(known.at) < staleFor {
			return known.value, nil
		}
		return broker.Secret{}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.known == nil {
		v.known = map[string]knownValue{}
	}
	v.known[ref] = knownValue{value, now}
	return value, nil
}

// forget has a reference read anew.
func (v *values) forget(ref string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if known, ok := v.known[ref]; ok {
		known.at = known.at.Add(-v.keep)
		v.known[ref] = known
	}
}
