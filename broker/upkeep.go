package broker

import (
	"context"
	"time"
)

// Keeper is a Provider that keeps something upstream in step with the ledger all the time: a list of refused sessions, an
// account that rests. Others may change it behind the broker's back, and parts of it become due with no request to do it.
type Keeper interface {
	Provider

	// Keeps names what is kept, as the ledger knows it; profiles that keep the same name it once. Empty: nothing.
	Keeps() string

	// Keep looks at what is upstream, sets right what is not as the ledger says, records what it found, and says when to
	// look again at the latest. Only one process does it at a time.
	Keep(ctx context.Context) (next time.Time, err error)
}

// Watcher is a Keeper that can learn of changes before it is due.
type Watcher interface {
	Keeper
	// Watch runs until ctx ends, and has what changes looked at.
	Watch(ctx context.Context)
}

// watch keeps one goroutine for each Watcher in force; it ends those that no profile has any more.
func (b *Broker) watch(ctx context.Context, wg *Group, running map[Watcher]context.CancelFunc) {
	set := b.enterCurrent()
	if set == nil {
		return
	}
	defer set.leave()
	inForce := map[Watcher]bool{}
	for _, p := range set.profiles {
		w, ok := p.Upstream.(Watcher)
		if !ok {
			continue
		}
		inForce[w] = true
		if running[w] == nil && set.enter() {
			watching, cancel := context.WithCancel(ctx)
			running[w] = cancel
			wg.Go(func() {
				defer set.leave()
				b.Runner.Loop(watching, "watch", w.Watch)
			})
		}
	}
	for w, cancel := range running {
		if !inForce[w] {
			cancel()
			delete(running, w)
		}
	}
}

// Upkeep is what a Keeper needs of storage: its own notes on what it keeps, and turns.
type Upkeep interface {
	// Locked runs fn while no other process runs one for the same upstream. It holds no transaction open.
	Locked(ctx context.Context, upstream string, fn func(context.Context) error) error

	// Notes are what was last saved about an upstream; nil for nothing.
	Notes(ctx context.Context, upstream string) ([]byte, error)

	// Save replaces the notes and writes the events, in one transaction.
	Save(ctx context.Context, upstream string, n Notes, events ...Event) error
}

// Notes are what a Keeper knows about an upstream.
type Notes struct {
	State      []byte    // JSON of the provider's own; never a secret
	Used, Room int64     // how full what it keeps is, in its own unit, for the metrics; Room 0: no bound is known
	LookBy     time.Time // look at it by then at the latest; zero: when it was due anyway
}

// Upkeeps schedules what Keepers do.
type Upkeeps interface {
	// ClaimUpkeep leases those of the upstreams that are due at now, or that the ledger does not know yet: no other
	// replica gets them before now+lease.
	ClaimUpkeep(ctx context.Context, upstreams []string, now time.Time, lease time.Duration) ([]string, error)

	// Kept makes an upstream due again at next, unless somebody asked for it to be sooner since it was leased until then.
	Kept(ctx context.Context, upstream string, leased, next time.Time) error
}

// upkeepRetry is how soon a failed look is repeated.
const upkeepRetry = 30 * time.Second

// NewFinding is an event about an upstream as a whole: what a Keeper found or did there.
func NewFinding(t EventType, at time.Time, provider, upstream string, trace map[string]string) Event {
	return Event{ID: NewEventID(), At: at.UTC(), Type: t, Caller: sweeper, Provider: provider, Upstream: upstream, Trace: trace}
}

// Sweeper is the broker itself as a caller: who acts when nobody asked.
func Sweeper() Caller { return sweeper }

// sweepUpkeep gives each Keeper that is due its turn.
func (b *Broker) sweepUpkeep(ctx context.Context) error {
	keepers := map[string][]Keeper{} // several profiles may keep the same: if one cannot, another may
	var names []string
	set := b.enterCurrent()
	if set == nil {
		return nil
	}
	defer set.leave()
	for _, p := range set.profiles.Sorted() {
		k, ok := p.Upstream.(Keeper)
		if !ok || k.Keeps() == "" {
			continue
		}
		if keepers[k.Keeps()] == nil {
			names = append(names, k.Keeps())
		}
		keepers[k.Keeps()] = append(keepers[k.Keeps()], k)
	}
	if len(names) == 0 {
		return nil
	}
	now := b.now()
	due, err := b.Ledger.ClaimUpkeep(ctx, names, now, sweepLease)
	if err != nil {
		return err
	}
	each(len(due), func(i int) {
		_ = b.Runner.Do(ctx, "upkeep", func() error { // on any failure the lease's end repeats it
			if !set.enter() { // replaced meanwhile: the providers in force do it
				return b.Ledger.Kept(ctx, due[i], now.Add(sweepLease), b.now())
			}
			defer set.leave()
			b.keep(ctx, keepers[due[i]], due[i], now.Add(sweepLease))
			return nil
		})
	})
	return nil
}

func (b *Broker) keep(ctx context.Context, keepers []Keeper, name string, leased time.Time) {
	var next time.Time
	var err error
	for _, k := range keepers {
		err = b.upstream(ctx, func(ctx context.Context) (err error) {
			next, err = k.Keep(ctx)
			return err
		})
		if err == nil {
			break
		}
	}
	if err != nil {
		next = b.now().Add(jitter(upkeepRetry))
		b.logUpkeep(ctx, name, err)
	}
	if err := b.Ledger.Kept(context.WithoutCancel(ctx), name, leased, next); err != nil {
		b.Logger.ErrorContext(ctx, "upkeep not recorded; it is repeated", "upstream", name, "error", err)
	}
}

// logUpkeep logs a failed look, with a line for each answer of the vendor's that it failed by: one look makes many calls.
func (b *Broker) logUpkeep(ctx context.Context, name string, err error) {
	answers := VendorAnswers(err)
	if len(answers) == 0 {
		b.Logger.WarnContext(ctx, "upkeep failed", "upstream", name, "error", err)
	}
	for _, a := range answers {
		b.Logger.WarnContext(ctx, "upkeep failed", "upstream", name, "error", err, VendorAttr(a))
	}
}
