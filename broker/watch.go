package broker

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	watchRead  = 5 * time.Second // limit of one read, and of the wait for the first one
	watchBatch = 256             // credentials in one read
)

// Watch waits until the credential has a newer version than seen, or is no longer active, and answers its state; after
// wait it answers that nothing has changed. It compares with the ledger's state, not with a stream of changes, so nothing
// is missed by who was not there.
//
// All watches of one process share their reads: one read of up to 256 credentials at a time, over one connection, when a
// watch begins, when a credential has changed and each LookEvery. A watch ends after wait. Only if the database has
// not answered at all by then does it go on, for up to five seconds from its beginning, and then answers unavailable. So
// does a watch under way once reads have failed for five seconds.
func (b *Broker) Watch(ctx context.Context, caller Caller, id CredentialID, seen int, wait time.Duration) (c Credential, changed bool, err error) {
	if err := caller.mayUse(useWatch); err != nil {
		return c, false, err
	}
	w := b.watches.join(id)
	defer b.watches.leave(w)
	end := time.NewTimer(wait)
	defer end.Stop()
	var broken time.Time // since when reads have failed; zero: the latest has not
	for known, over := false, false; ; {
		select {
		case <-ctx.Done():
			return c, false, nil
		case now := <-w.news:
			if errors.Is(now.err, ErrNoSuch) || now.err == nil && !caller.owns(*now.Credential) {
				return Credential{}, false, Errorf(CodeNotFound, "there is no such credential")
			}
			if err = now.err; err != nil {
				if broken.IsZero() {
					broken = time.Now()
				}
				if !known || time.Since(broken) >= watchRead {
					return c, false, err
				}
				continue // the next read may succeed
			}
			c, known, broken = *now.Credential, true, time.Time{}
			holds := c.Version.State == StateActive && c.Version.Cause != CauseCutOff || c.Version.State == StateIssuing
			if c.Version.Number > seen || !holds {
				return c, true, nil
			}
			if over {
				return c, false, nil
			}
		case <-end.C:
			if left := watchRead - wait; !known && !over && left > 0 {
				over = true
				end.Reset(left)
				continue
			}
			if !known {
				err = Errorf(CodeUnavailable, "the credential's state could not be read in time")
			}
			return c, false, err // an error here is the latest read's: whether something has changed is not known
		}
	}
}

// watches are the credentials that somebody watches in this process, and the one loop that reads them. The loop runs
// while there is a watch, and ends with the last.
type watches struct {
	ledger Versions
	every  time.Duration // between reads of what is watched; a notification may be lost with its connection
	runner *Runner

	mu    sync.Mutex
	by    map[CredentialID]map[*watch]struct{}
	due   map[CredentialID]struct{} // to be read next
	reads int                       // that have begun
	loop  bool                      // it runs
	heard bool                      // the ledger tells of changes
	wake  chan struct{}             // holds a signal when there is something to do
	stop  context.CancelFunc        // of the read under way; nil: there is none
}

// watch is one who waits. news holds the latest state that it has not looked at.
type watch struct {
	id    CredentialID
	after int // only reads that began later are news
	news  chan state
}

type state struct {
	*Credential
	err error
}

func newWatches(ledger Versions, every time.Duration, runner *Runner) *watches {
	return &watches{ledger: ledger, every: every, runner: runner, by: map[CredentialID]map[*watch]struct{}{}, due: map[CredentialID]struct{}{}, wake: make(chan struct{}, 1)}
}

func (h *watches) join(id CredentialID) *watch {
	h.mu.Lock()
	if !h.heard {
		h.heard = true
		h.mu.Unlock()
		h.ledger.OnChange(h.changed) // not below the lock: it has one of its own, below which it calls changed
		h.mu.Lock()
	}
	defer h.mu.Unlock()
	w := &watch{id: id, after: h.reads, news: make(chan state, 1)}
	if h.by[id] == nil {
		h.by[id] = map[*watch]struct{}{}
	}
	h.by[id][w] = struct{}{}
	h.due[id] = struct{}{}
	if !h.loop {
		h.loop = true
		go h.runner.Loop(context.Background(), "watches", h.run)
	}
	h.signal()
	return w
}

func (h *watches) leave(w *watch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if delete(h.by[w.id], w); len(h.by[w.id]) == 0 {
		delete(h.by, w.id)
		delete(h.due, w.id)
	}
	if len(h.by) == 0 {
		h.signal()
		if h.stop != nil {
			h.stop() // nobody is left for whom it is read
		}
	}
}

// changed has a credential read again if somebody watches it; all of them for an empty id.
func (h *watches) changed(id CredentialID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if id == "" {
		for id := range h.by {
			h.due[id] = struct{}{}
		}
	} else if h.by[id] != nil {
		h.due[id] = struct{}{}
	}
	h.signal()
}

func (h *watches) signal() {
	select {
	case h.wake <- struct{}{}:
	default: // there is one
	}
}

func (h *watches) run(context.Context) {
	tick := time.NewTicker(h.every)
	defer tick.Stop()
	for {
		ids, number, more := h.take()
		if !more {
			return
		}
		if len(ids) > 0 {
			h.look(ids, number)
			select {
			case <-tick.C:
				h.changed("")
			default:
			}
			continue
		}
		select {
		case <-h.wake:
		case <-tick.C:
			h.changed("")
		}
	}
}

// take gives what the next read is of, and its number; more is false when nobody watches any more and the loop ends.
func (h *watches) take() (ids []CredentialID, number int, more bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.by) == 0 {
		h.loop = false
		return nil, 0, false
	}
	for id := range h.due {
		if len(ids) == watchBatch {
			break
		}
		ids = append(ids, id)
		delete(h.due, id)
	}
	if len(ids) > 0 {
		h.reads++
	}
	return ids, h.reads, true
}

// look reads credentials and tells those who watched them when the read began.
func (h *watches) look(ids []CredentialID, number int) {
	list, err := h.safely(ids)
	found := make(map[CredentialID]state, len(list))
	for i := range list {
		found[list[i].ID] = state{Credential: &list[i]}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range ids {
		now, ok := found[id]
		if err != nil {
			now = state{err: err}
		} else if !ok {
			now = state{err: ErrNoSuch}
		}
		for w := range h.by[id] {
			if w.after >= number {
				continue // it came later, and is due again
			}
			select {
			case <-w.news: // it has not looked at the one before
			default:
			}
			w.news <- now
		}
	}
}

// safely reads within the limit. A panic of the ledger is an error, so that whoever watches is answered.
func (h *watches) safely(ids []CredentialID) (list []Credential, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), watchRead)
	defer cancel()
	h.mu.Lock()
	h.stop = cancel
	if len(h.by) == 0 {
		cancel()
	}
	h.mu.Unlock()
	err = h.runner.Do(ctx, "watches", func() (err error) {
		list, err = h.ledger.CredentialsByID(ctx, ids)
		return err
	})
	return list, err
}
