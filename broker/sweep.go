package broker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

const (
	sweepBatch   = 256             // versions leased at once from one provider
	sweepWorkers = 16              // of one provider, so that a dead one holds no other up (P11)
	sweepLease   = 2 * time.Minute // after a crash, due work is taken up again this much later at the most
)

// sweeper is who acts when nobody asked: the sweeper.
var sweeper = Caller{Name: "taskpass", Auth: "internal"}

// Run does due work until ctx ends, and returns when what it began is finished or given back. What is due is read from
// the ledger each time: there are no timers in memory, and start-up costs the same however much is alive (P10).
func (b *Broker) Run(ctx context.Context) {
	tick := time.NewTicker(b.SweepEvery)
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	var busy sync.Map // provider → struct{}: one goroutine each
	var keeping atomic.Bool
	watching := map[Watcher]context.CancelFunc{}
	defer func() {
		for _, cancel := range watching {
			cancel()
		}
	}()
	var tidied time.Time
	for {
		b.watch(ctx, &wg, watching)
		if err := b.sweepTasks(ctx); err != nil && ctx.Err() == nil {
			b.Logger.ErrorContext(ctx, "cannot end tasks", "error", err)
		}
		if time.Since(tidied) > tidyEvery {
			tidied = time.Now()
			if err := b.Ledger.Tidy(ctx, b.now()); err != nil && ctx.Err() == nil {
				b.Logger.ErrorContext(ctx, "cannot tidy", "error", err)
			}
		}
		if keeping.CompareAndSwap(false, true) {
			wg.Go(func() {
				defer keeping.Store(false)
				if err := b.sweepUpkeep(ctx); err != nil && ctx.Err() == nil {
					b.Logger.ErrorContext(ctx, "cannot look for upkeep", "error", err)
				}
			})
		}
		providers, err := b.Ledger.DueProviders(ctx, b.now())
		if err != nil && ctx.Err() == nil {
			b.Logger.ErrorContext(ctx, "cannot look for due work", "error", err)
		}
		for _, provider := range providers {
			if _, already := busy.LoadOrStore(provider, struct{}{}); already {
				continue
			}
			wg.Go(func() {
				defer busy.Delete(provider)
				if err := b.sweepProvider(ctx, provider); err != nil && ctx.Err() == nil {
					b.Logger.ErrorContext(ctx, "sweep failed", "provider", provider, "error", err)
				}
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Sweep does all that is due now, once.
func (b *Broker) Sweep(ctx context.Context) error {
	err := errors.Join(b.sweepTasks(ctx), b.sweepUpkeep(ctx))
	providers, dueErr := b.Ledger.DueProviders(ctx, b.now())
	err = errors.Join(err, dueErr)
	for _, provider := range providers {
		err = errors.Join(err, b.sweepProvider(ctx, provider))
	}
	return err
}

func (b *Broker) sweepProvider(ctx context.Context, provider string) error {
	for ctx.Err() == nil {
		leased, err := b.Ledger.Claim(ctx, provider, b.now(), sweepLease, sweepBatch)
		if err != nil || len(leased) == 0 {
			return err
		}
		until := b.now().Add(sweepLease - b.UpstreamTimeout)
		work := make(chan Credential)
		var wg sync.WaitGroup
		for range min(sweepWorkers, len(leased)) {
			wg.Go(func() {
				for c := range work {
					b.Observer.Lag(provider, b.now().Sub(c.Version.DueAt))
					if err := b.settle(ctx, c); err != nil && !errors.Is(err, ErrMoved) {
						b.Logger.ErrorContext(ctx, "due work not done", "version_id", c.Version.ID, "error", err)
					}
				}
			})
		}
		b.handOut(ctx, leased, work, until)
		close(work)
		wg.Wait()
		if len(leased) < sweepBatch {
			return nil
		}
	}
	return nil
}

// handOut gives leased versions to the workers, while there is time: the rest comes back with its lease's end.
func (b *Broker) handOut(ctx context.Context, leased []Credential, work chan<- Credential, until time.Time) {
	for _, c := range leased {
		if ctx.Err() != nil || b.now().After(until) {
			return
		}
		select {
		case work <- c:
		case <-ctx.Done():
			return
		}
	}
}

// settle takes a due version one step on. Each step is guarded by the state it starts from, so that of two replicas
// with the same version one does nothing.
func (b *Broker) settle(ctx context.Context, c Credential) error {
	ctx = context.WithoutCancel(ctx) // a step begun is finished; each has its own time limit
	now := b.now()
	v := &c.Version
	if v.State == StateIssuing && v.Unclaimed {
		return b.voidTicket(ctx, sweeper, c, CauseExpired)
	}
	if v.State == StateIssuing {
		v.State, v.DueAt = StateLost, now
		if v.Cause == CauseNone { // a caller's wish to end it stands
			v.Cause = CauseAbandoned
		}
		if err := b.Ledger.Move(ctx, c, []State{StateIssuing}, nil, eventOf(EventLost, sweeper, now, c)); err != nil {
			return err
		}
	}
	if v.SelfExpires && !now.Before(v.ExpiresAt) {
		return b.expire(ctx, c)
	}
	if v.State == StateActive && v.Succeed && v.Cause == CauseNone && now.Before(v.ExpiresAt) {
		return b.succeed(ctx, c)
	}
	switch v.State {
	case StateActive, StateLost:
		cause := v.Cause
		if cause == CauseNone {
			cause = CauseExpired
		}
		next, err := b.beginEnd(ctx, sweeper, c, cause)
		if err != nil {
			return err
		}
		c = next
	case StateRevoking, StateStuck:
	default:
		return nil
	}
	return b.end(ctx, sweeper, c)
}

// expire records the end of a version that the upstream ends by itself.
func (b *Broker) expire(ctx context.Context, c Credential) error {
	now := b.now()
	v := &c.Version
	from := []State{v.State}
	if v.Cause == CauseNone {
		v.Cause = CauseExpired
	}
	v.State, v.EndedAt, v.DueAt = StateExpired, now, time.Time{}
	v.Revocation = Revocation{ResultExpires, v.ExpiresAt, "self_expires"}
	return b.Ledger.Move(ctx, c, from, nil, eventOf(EventExpired, sweeper, now, c))
}
