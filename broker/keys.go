package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Bounds of a rotation's deadline.
const (
	minDeadline     = time.Minute
	maxDeadline     = 7 * 24 * time.Hour
	DefaultDeadline = time.Hour
)

// NewKey is a key that an operator hands in.
type NewKey struct {
	Pool, Name string
	Value      Secret
	VendorID   string
	Scopes     []string
	Labels     map[string]string
	Deadline   time.Duration // of a rotation; zero: DefaultDeadline
}

// PoolKeys lists a pool's keys: those that are configured and those that were handed in.
func (b *Broker) PoolKeys(ctx context.Context, caller Caller, pool string) ([]PoolKey, error) {
	if err := caller.mayUse(useKeys); err != nil {
		return nil, err
	}
	p, err := b.pool(pool)
	if err != nil {
		return nil, err
	}
	list, err := b.Ledger.PoolKeys(ctx, pool)
	if err != nil {
		return nil, err
	}
	for _, k := range p.Configured() {
		i := slices.IndexFunc(list, func(known PoolKey) bool { return known.Name == k.Name })
		if i < 0 {
			k.State = KeyAvailable
			list = append(list, k)
			continue
		}
		list[i].Scopes, list[i].Labels, list[i].VendorID = k.Scopes, k.Labels, k.VendorID
	}
	problems := p.Problems()
	for i, k := range list {
		list[i].Problem = problems[k.Name]
	}
	slices.SortFunc(list, func(a, b PoolKey) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// AddKey puts a key into a pool. Its value is sealed, and answered to nobody but its holders.
func (b *Broker) AddKey(ctx context.Context, caller Caller, k NewKey) (PoolKey, error) {
	p, err := b.checkKey(caller, k)
	if err != nil {
		return PoolKey{}, err
	}
	if slices.ContainsFunc(p.Configured(), func(c PoolKey) bool { return c.Name == k.Name }) {
		return PoolKey{}, Errorf(CodeConflict, "the configuration has a key of that name")
	}
	sealed, err := b.sealKey(k)
	if err != nil {
		return PoolKey{}, err
	}
	err = b.Ledger.AddKey(ctx, sealed, b.now(), b.keyEvent(EventKeyAdded, caller, k.Pool, k.Name, sealed.Fingerprint))
	if errors.Is(err, ErrKeyExists) {
		return PoolKey{}, Errorf(CodeConflict, "the pool has a key of that name; rotate it, or use another name")
	}
	if err != nil {
		return PoolKey{}, err
	}
	return b.poolKey(ctx, k.Pool, k.Name)
}

// RotateKey gives a key that was handed in another value. Its holders get a next version each and learn of it by watching or
// resolving; the old value is retired when all have it, or at the deadline. A key by reference is rotated at its source.
func (b *Broker) RotateKey(ctx context.Context, caller Caller, k NewKey) (PoolKey, error) {
	p, err := b.checkKey(caller, k)
	if err != nil {
		return PoolKey{}, err
	}
	if slices.ContainsFunc(p.Configured(), func(c PoolKey) bool { return c.Name == k.Name }) {
		return PoolKey{}, Errorf(CodeConflict, "the key is kept by reference: change its value at its source, and its holders move")
	}
	if k.Deadline == 0 {
		k.Deadline = DefaultDeadline
	}
	if k.Deadline < minDeadline || k.Deadline > maxDeadline {
		e := Errorf(CodeInvalidRequest, "the deadline is not between %s and %s", minDeadline, maxDeadline)
		e.Faults = []Fault{{"/deadline_seconds", "is not between 60 and 604800"}}
		return PoolKey{}, e
	}
	sealed, err := b.sealKey(k)
	if err != nil {
		return PoolKey{}, err
	}
	now := b.now()
	err = b.Ledger.RotateKey(ctx, sealed, now, now.Add(k.Deadline), b.keyEvent(EventKeyRotating, caller, k.Pool, k.Name, sealed.Fingerprint))
	switch {
	case errors.Is(err, ErrNoSuch):
		return PoolKey{}, Errorf(CodeNotFound, "the pool has no such key")
	case errors.Is(err, ErrRotating):
		return PoolKey{}, Errorf(CodeConflict, "the key is being rotated: wait, or abort that first")
	case err != nil:
		return PoolKey{}, err
	}
	return b.poolKey(ctx, k.Pool, k.Name)
}

// AbortRotation gives a key its value of before again. Holders that moved move back.
func (b *Broker) AbortRotation(ctx context.Context, caller Caller, pool, name string) (PoolKey, error) {
	if err := caller.mayUse(useKeep); err != nil {
		return PoolKey{}, err
	}
	err := b.Ledger.AbortRotation(ctx, pool, name, b.now(), b.keyEvent(EventKeyAborted, caller, pool, name, nil))
	if errors.Is(err, ErrNoRotation) {
		return PoolKey{}, Errorf(CodeConflict, "no rotation of this key can be aborted: none is under way, or its value is kept elsewhere")
	}
	if err != nil {
		return PoolKey{}, err
	}
	return b.poolKey(ctx, pool, name)
}

// SetKey puts a key into quarantine, takes it out of it (KeyAvailable), or retires it for good.
func (b *Broker) SetKey(ctx context.Context, caller Caller, pool, name string, state KeyState, why string) (PoolKey, error) {
	if err := caller.mayUse(useKeep); err != nil {
		return PoolKey{}, err
	}
	if _, err := b.poolKey(ctx, pool, name); err != nil {
		return PoolKey{}, err
	}
	event := map[KeyState]EventType{KeyQuarantined: EventKeyQuarantined, KeyAvailable: EventKeyFreed, KeyRetired: EventKeyRetired}[state]
	e := b.keyEvent(event, caller, pool, name, nil)
	e.Reason = why
	if err := b.Ledger.SetKey(ctx, pool, name, state, why, e); err != nil {
		if errors.Is(err, ErrMoved) {
			return PoolKey{}, Errorf(CodeConflict, "the key is retired")
		}
		return PoolKey{}, err
	}
	return b.poolKey(ctx, pool, name)
}

// poolKey finds one key; not_found.
func (b *Broker) poolKey(ctx context.Context, pool, name string) (PoolKey, error) {
	list, err := b.PoolKeys(ctx, Caller{Name: sweeper.Name, Role: RoleOperator}, pool)
	if err != nil {
		return PoolKey{}, err
	}
	for _, k := range list {
		if k.Name == name {
			return k, nil
		}
	}
	return PoolKey{}, Errorf(CodeNotFound, "the pool has no such key")
}

// UnusableKeys counts, by pool, the keys whose values this replica could not hand out when it last read them.
func (b *Broker) UnusableKeys() map[string]int {
	counts := map[string]int{}
	for _, p := range b.profiles.Load().profiles {
		if pooled, ok := p.Upstream.(Pooled); ok {
			counts[pooled.Pool()] = max(counts[pooled.Pool()], len(pooled.Problems()))
		}
	}
	return counts
}

// pool finds a provider of the pool; not_found.
func (b *Broker) pool(name string) (Pooled, error) {
	for _, p := range b.profiles.Load().profiles.Sorted() {
		if pooled, ok := p.Upstream.(Pooled); ok && pooled.Pool() == name {
			return pooled, nil
		}
	}
	return nil, Errorf(CodeNotFound, "there is no such pool")
}

func (b *Broker) checkKey(caller Caller, k NewKey) (Pooled, error) {
	if err := caller.mayUse(useKeep); err != nil {
		return nil, err
	}
	var faults []Fault
	if idOrEmpty(k.Name) == "" {
		faults = append(faults, Fault{"/name", "is not 1-128 of A-Z a-z 0-9 . _ : @ -, and not only dots"})
	}
	if err := CheckSecretValue(k.Value.Reveal()); err != nil {
		faults = append(faults, Fault{"/value", err.Error()})
	}
	for i, s := range k.Scopes {
		if s == "" || len(s) > 128 {
			faults = append(faults, Fault{fmt.Sprintf("/scopes/%d", i), "is not 1 to 128 characters"})
		}
	}
	for key, value := range k.Labels {
		if !ValidID(key) || !ValidID(value) {
			faults = append(faults, Fault{"/labels", "has a name or a value that is not 1-128 of A-Z a-z 0-9 . _ : @ -, and not only dots"})
		}
	}
	if k.VendorID != "" && !ValidID(k.VendorID) {
		faults = append(faults, Fault{"/vendor_id", "is not 1-128 of A-Z a-z 0-9 . _ : @ -, and not only dots"})
	}
	if len(faults) > 0 {
		return nil, &Error{Code: CodeInvalidRequest, Message: "the key is not valid", Faults: faults}
	}
	return b.pool(k.Pool)
}

func (b *Broker) sealKey(k NewKey) (SealedKey, error) {
	id := NewVersionID()
	plain := []byte(k.Value.Reveal())
	defer clear(plain)
	sealed, err := b.Sealer.Seal(plain, id)
	if err != nil {
		return SealedKey{}, err
	}
	sum := k.Value.Fingerprint()
	return SealedKey{
		Pool: k.Pool, Name: k.Name, ValueID: id, Sealed: sealed, VendorID: k.VendorID, Scopes: k.Scopes, Labels: k.Labels,
		Fingerprint: sum[:],
	}, nil
}

func (b *Broker) keyEvent(t EventType, caller Caller, pool, name string, fingerprint []byte) Event {
	return NewKeyEvent(t, caller, b.now(), pool, name, fingerprint)
}

// NewKeyEvent is an event about a key of a pool.
func NewKeyEvent(t EventType, caller Caller, at time.Time, pool, name string, fingerprint []byte) Event {
	return Event{
		ID: NewEventID(), At: at.UTC(), Type: t, Caller: caller, Provider: "pool", Upstream: "pool:" + pool,
		UpstreamIDs: []string{pool + "/" + name}, Trace: map[string]string{"pool": pool, "key": name}, Fingerprint: fingerprint,
	}
}
