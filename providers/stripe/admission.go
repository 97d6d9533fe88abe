package stripe

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// probesAtOnce bounds how many calls try one key at a time: in test mode an account has 25 a second.
const probesAtOnce = 4

// checkBadEvery is how soon a key that is not as declared is tried again.
const checkBadEvery = time.Minute

// finding is what was found out about one value of a key. It never holds the value.
type finding struct {
	at      time.Time   // zero: not tried yet
	dead    bool        // Stripe does not accept it
	has     permissions // seen to be there
	lacks   permissions // seen to be missing
	short   []string    // declared, and seen to be missing
	surplus []string    // seen to be there, and not declared
}

// entry is a value's finding, which one caller at a time looks at or renews.
type entry struct {
	turn  chan struct{}
	found finding
}

// admissions remembers findings by the fingerprint of the value.
type admissions struct {
	mu sync.Mutex
	of map[string]*entry
}

// slot finds the finding of a value, and forgets those of values that are no key's any more.
func (a *admissions) slot(sum string, present []string) *entry {
	a.mu.Lock()
	defer a.mu.Unlock()
	for known := range a.of {
		if !slices.Contains(present, known) {
			delete(a.of, known)
		}
	}
	if a.of == nil {
		a.of = map[string]*entry{}
	}
	if a.of[sum] == nil {
		a.of[sum] = &entry{turn: make(chan struct{}, 1)}
	}
	return a.of[sum]
}

// forget has a value tried again before it is next handed out.
func (a *admissions) forget(sum string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.of, sum)
}

// peek is what is known of a value now.
func (a *admissions) peek(sum string) finding {
	a.mu.Lock()
	e := a.of[sum]
	a.mu.Unlock()
	if e == nil {
		return finding{}
	}
	select {
	case e.turn <- struct{}{}:
		defer func() { <-e.turn }()
		return e.found
	default: // it is being tried
		return finding{}
	}
}

// admit tries a key unless that was done lately, and answers what was found. One caller tries, the others wait for it.
func (p *pooled) admit(ctx context.Context, k poolKey) (finding, error) {
	e := p.admissions.slot(k.sum, p.sums())
	select {
	case e.turn <- struct{}{}:
	case <-ctx.Done():
		return finding{}, broker.Errorf(broker.CodeUpstreamTimeout, "the key could not be tried in time").Because(ctx.Err())
	}
	defer func() { <-e.turn }()
	if !p.fresh(e.found) {
		tried, err := p.probe(ctx, k)
		if err != nil {
			return finding{}, err
		}
		e.found = tried
		p.report(ctx, k, tried)
	}
	return e.found, nil
}

// fresh tells whether a finding still counts. What spoke against a key is soon looked at again: an operator may have set it
// right.
func (p *pooled) fresh(f finding) bool {
	every := p.cfg.Pool.CheckEvery
	if every == 0 {
		every = defaultCheck
	}
	if f.dead || len(f.short) > 0 || len(f.surplus) > 0 {
		every = min(every, checkBadEvery)
	}
	return !f.at.IsZero() && p.Clock().Sub(f.at) < every
}

// report tells the operator what is not as declared.
func (p *pooled) report(ctx context.Context, k poolKey, f finding) {
	switch {
	case f.dead:
		p.Logger.WarnContext(ctx, "Stripe does not accept a key of the pool", "pool", p.cfg.Pool.Name, "key", k.name)
	case len(f.short) > 0 || len(f.surplus) > 0:
		p.Logger.WarnContext(ctx, "a key of the pool is not as declared", "pool", p.cfg.Pool.Name, "key", k.name,
			"lacks", strings.Join(f.short, " "), "undeclared", strings.Join(f.surplus, " "))
	}
}

// trials lists what is tried on a key: what it is declared to have, as far as a call tells, and some of what it is not.
func (p *pooled) trials(k poolKey) []string {
	names := slices.Concat(k.declared.sorted(), telltales)
	writes := p.cfg.Pool.ProbeWrites == "accept"
	if writes {
		names = append(names, tellingWrites...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return slices.DeleteFunc(names, func(name string) bool {
		return probes[name] == "" || !writes && strings.HasSuffix(name, "_write")
	})
}

var errDead = errors.New("not accepted")

// probe tries a key.
func (p *pooled) probe(ctx context.Context, k poolKey) (finding, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	found := finding{has: permissions{}, lacks: permissions{}}
	var mu sync.Mutex
	var failed error
	turn := make(chan struct{}, probesAtOnce)
	var wg broker.Group
	for _, name := range p.trials(k) {
		turn <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-turn }()
			has, lacks, err := p.probeOne(ctx, k, name)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, errDead):
				found.dead = true
				cancel(err)
			case err != nil:
				if failed == nil { // those after it were called off
					failed = err
				}
				cancel(err)
			case has:
				found.has[name] = true
			case lacks:
				found.lacks[name] = true
			}
		})
	}
	wg.Wait()
	if found.dead {
		return finding{at: p.Clock(), dead: true}, nil
	}
	if failed == nil && ctx.Err() != nil {
		failed = broker.Errorf(broker.CodeUpstreamTimeout, "the key could not be tried in time").Because(ctx.Err())
	}
	if failed != nil {
		return finding{}, failed
	}
	found.at = p.Clock()
	for name := range k.declared {
		if found.lacks[name] {
			found.short = append(found.short, name)
		}
	}
	slices.Sort(found.short)
	found.surplus = implying(found.has.sorted()...).without(k.declared)
	return found, nil
}

// probeOne tries one permission: it is there, or missing, or the call does not tell.
func (p *pooled) probeOne(ctx context.Context, k poolKey, name string) (has, lacks bool, err error) {
	r := request{method: "GET", path: probes[name] + "?limit=1", key: k.value}
	write := strings.HasSuffix(name, "_write")
	if write {
		r.method, r.path, r.form = "POST", probes[name], "taskpass_probe=1"
	}
	if name == "balance_read" {
		r.path = probes[name]
	}
	_, f := p.client.do(ctx, r, &ignored{})
	switch {
	case f == nil:
		return true, false, nil
	case f.status == 401:
		return false, false, errDead
	case f.status == 403 && (f.permission == name || f.permission == "" && f.code == "more_permissions_required"):
		return false, true, nil
	case write && f.status == 400 && f.code == "parameter_unknown":
		return true, false, nil
	case f.refused() && f.status != 429:
		return false, false, nil // it may be for the account, or the call: that says nothing of the key
	}
	return false, false, f.meaning()
}
