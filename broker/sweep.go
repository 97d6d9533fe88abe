package broker

import (
	"context"
	"errors"
	"sync"
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
	var wg Group
	defer wg.Wait()
	var busy sync.Map // provider or other piece of work → struct{}: one goroutine each
	once := func(key, name string, work func() error) {
		if _, already := busy.LoadOrStore(key, struct{}{}); already {
			return
		}
		wg.Go(func() {
			defer busy.Delete(key)
			b.step(ctx, name, work)
		})
	}
	watching := map[Watcher]context.CancelFunc{}
	defer func() {
		for _, cancel := range watching {
			cancel()
		}
	}()
	var tidied time.Time
	for {
		b.step(ctx, "watch", func() error { b.watch(ctx, &wg, watching); return nil })
		b.step(ctx, "close replaced providers", func() error { b.closeRetired(); return nil })
		b.step(ctx, "end tasks", func() error { return b.sweepTasks(ctx) })
		if time.Since(tidied) > tidyEvery {
			tidied = time.Now()
			b.step(ctx, "tidy", func() error { return b.Ledger.Tidy(ctx, b.now()) })
		}
		once("", "upkeep", func() error { return b.sweepUpkeep(ctx) })
		b.step(ctx, "look for due work", func() error {
			providers, err := b.Ledger.DueProviders(ctx, b.now())
			for _, provider := range providers {
				once(provider, "sweep", func() error { return b.sweepProvider(ctx, provider) })
			}
			return err
		})
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// step does one part of the sweeper's work. That it fails, or panics, stops no other part (P11).
func (b *Broker) step(ctx context.Context, name string, work func() error) {
	if err := b.Runner.Do(ctx, name, work); err != nil && ctx.Err() == nil {
		b.Logger.ErrorContext(ctx, "due work failed; it is tried again", "work", name, "error", err)
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
		var wg Group
		for range min(sweepWorkers, len(leased)) {
			wg.Go(func() {
				for c := range work {
					// One bad version stops no other (P11): the worker goes on with the next one.
					err := b.Runner.Do(ctx, "sweep", func() error {
						b.Observer.Lag(provider, b.now().Sub(c.Version.DueAt))
						return b.settle(ctx, c)
					})
					if err != nil && !errors.Is(err, ErrMoved) {
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
