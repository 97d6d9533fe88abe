package broker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// wantCode fails unless err has the code.
func wantCode(t *testing.T, what string, err error, code broker.Code) {
	t.Helper()
	if e := broker.AsError(err); e == nil || e.Code != code {
		t.Errorf("%s: %v, want %s", what, err, code)
	}
}

// operations are the ways to have something minted. Each is called again with the same key after it failed.
var operations = map[string]func(ctx context.Context, h *house, known broker.Issued, ticket string) error{
	"issue": func(ctx context.Context, h *house, _ broker.Issued, _ string) error {
		_, err := h.Issue(ctx, orchestrator, ask("t"), "issue")
		return err
	},
	"batch": func(ctx context.Context, h *house, _ broker.Issued, _ string) error {
		_, err := h.IssueAll(ctx, orchestrator, requests(3), "batch")
		return err
	},
	"refresh": func(ctx context.Context, h *house, known broker.Issued, _ string) error {
		_, err := h.Refresh(ctx, orchestrator, known.ID, 0, "refresh")
		return err
	},
	"redeem": func(ctx context.Context, h *house, _ broker.Issued, ticket string) error {
		_, err := h.Redeem(ctx, broker.Caller{}, ticket)
		return err
	},
}

// A mint that takes so long that a sweeper abandons its version was not ended by anybody's wish: it may be tried again.
func TestAbandonedMintIsRetryable(t *testing.T) {
	t.Parallel()
	for name, call := range operations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			known, ticket := h.issue("t"), h.ticket("t")
			var once sync.Once
			h.vendor.behave(func(context.Context, broker.Credential, func()) error {
				var err error
				once.Do(func() {
					h.clock.Advance(2 * time.Minute) // far beyond upstream_timeout + 5 s
					err = h.Sweep(context.Background())
				})
				return err
			}, nil)
			err := call(t.Context(), h, known, ticket)
			wantCode(t, name, err, broker.CodeUnavailable)
			if e := broker.AsError(err); !e.Code.Retryable() || name == "redeem" && !strings.Contains(e.Message, "ticket is used up") {
				t.Errorf("%v", e)
			}
			h.vendor.behave(nil, nil)
			if err := h.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			again := call(t.Context(), h, known, ticket)
			if name == "redeem" {
				wantCode(t, "the ticket again", again, broker.CodeTicketRedeemed)
			} else if again != nil {
				t.Errorf("tried again: %v", again)
			}
		})
	}
}

// What somebody did ask to end is not tried again.
func TestRevokedWhileMintedIsNotRetryable(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.vendor.behave(func(ctx context.Context, c broker.Credential, _ func()) error {
		_, err := h.Revoke(ctx, orchestrator, c.ID, "")
		return err
	}, nil)
	_, err := h.Issue(t.Context(), orchestrator, ask("t"), "key")
	wantCode(t, "revoked while minted", err, broker.CodeCredentialEnded)

	h.vendor.behave(func(ctx context.Context, c broker.Credential, _ func()) error {
		_, err := h.EndTask(ctx, orchestrator, c.TaskID, "", "")
		return err
	}, nil)
	_, err = h.Issue(t.Context(), orchestrator, ask("t2"), "key2")
	wantCode(t, "its task ended while it was minted", err, broker.CodeCredentialEnded)
}

// An intent that took so long to record that it is due already asks the upstream for nothing.
func TestLateIntentMintsNothing(t *testing.T) {
	t.Parallel()
	var late *lateIntent
	h := newHouse(t, func(c *broker.Config) { late = &lateIntent{Ledger: c.Ledger}; c.Ledger = late })
	late.clock = h.clock
	_, err := h.Issue(t.Context(), orchestrator, ask("t"), "key")
	wantCode(t, "late", err, broker.CodeUnavailable)
	if living := h.vendor.living(); len(living) != 0 {
		t.Errorf("minted %v", living)
	}
	late.clock = nil
	if _, err := h.Issue(t.Context(), orchestrator, ask("t"), "key"); err != nil {
		t.Errorf("tried again: %v", err)
	}
}

// lateIntent takes two minutes to record an intent, while it has a clock.
type lateIntent struct {
	broker.Ledger
	clock *clock
}

func (l *lateIntent) Begin(ctx context.Context, in broker.Intent) error {
	if l.clock != nil {
		defer l.clock.Advance(2 * time.Minute)
	}
	return l.Ledger.Begin(ctx, in)
}

// lostAnswer commits activations and, while it is on, answers as if the connection was lost before it heard of that.
type lostAnswer struct {
	broker.Ledger
	on atomic.Bool
}

func (l *lostAnswer) Activate(ctx context.Context, c broker.Credential, sealed []byte, overlap time.Time, e broker.Event) error {
	err := l.Ledger.Activate(ctx, c, sealed, overlap, e)
	if err == nil && l.on.Load() {
		return errors.New("the connection was lost")
	}
	return err
}

// An activation that was committed, of which the broker did not hear, is abandoned: nobody asked for its end, so the same
// request may be tried again, whether or not what was abandoned has ended by then.
func TestUnheardActivationIsRetryable(t *testing.T) {
	t.Parallel()
	for name, call := range operations {
		for _, ends := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, ends: %v", name, ends), func(t *testing.T) {
				t.Parallel()
				var lost *lostAnswer
				h := newHouse(t, func(c *broker.Config) { lost = &lostAnswer{Ledger: c.Ledger}; c.Ledger = lost })
				known, ticket := h.issue("t"), h.ticket("t")
				lost.on.Store(true)
				if !ends {
					h.vendor.behave(nil, func(context.Context, broker.Credential) (broker.Revocation, error) {
						return broker.Revocation{}, errors.New("down")
					})
				}
				wantCode(t, name, call(t.Context(), h, known, ticket), broker.CodeUnavailable)
				lost.on.Store(false)
				if name == "redeem" {
					return
				}
				if r, err := h.Resolve(t.Context(), orchestrator, known.ID, 0); err != nil || r.Version.Number != 1 {
					t.Errorf("its holder resolves version %d: %v", r.Version.Number, err)
				}
				if err := call(t.Context(), h, known, ticket); err != nil {
					t.Errorf("tried again: %v", err)
				}
				if _, err := h.Revoke(t.Context(), orchestrator, known.ID, ""); err != nil {
					t.Fatal(err)
				}
				_, err := h.Refresh(t.Context(), orchestrator, known.ID, 0, "")
				wantCode(t, "refreshed after a revocation", err, broker.CodeCredentialEnded)
			})
		}
	}
}

// Under a lock of the whole table, which outlasts the time for minting, nothing is answered that forbids another try.
func TestLongTableLock(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	known, ticket := h.issue("t"), h.ticket("t")
	admin := h.admin()
	tx, err := admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	minting := make(chan struct{}, 16)
	locked := make(chan struct{})
	h.vendor.behave(func(context.Context, broker.Credential, func()) error {
		minting <- struct{}{}
		<-locked
		return nil
	}, nil)
	var wg sync.WaitGroup
	errs := map[string]*error{}
	for name, call := range operations {
		err := new(error)
		errs[name] = err
		wg.Go(func() { *err = call(t.Context(), h, known, ticket) })
	}
	for range len(operations) + 2 { // of the batch there are three
		<-minting
	}
	if _, err := tx.Exec(t.Context(), "LOCK TABLE versions IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	close(locked)
	h.clock.Advance(2 * time.Minute)
	wg.Go(func() {
		if err := h.Sweep(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("sweep: %v", err)
		}
	})
	h.until("the outcomes and the sweep wait for the lock", func() bool {
		var waiting int
		err := admin.QueryRow(t.Context(), "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'versions'::regclass").Scan(&waiting)
		return err == nil && waiting >= 2
	})
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	h.vendor.behave(nil, nil)
	for name, first := range errs {
		if *first == nil {
			continue
		}
		wantCode(t, name, *first, broker.CodeUnavailable)
		if name == "redeem" {
			continue
		}
		if err := operations[name](t.Context(), h, known, ticket); err != nil {
			t.Errorf("%s tried again: %v", name, err)
		}
	}
}

// ticket issues a ticket, and answers its value.
func (h *house) ticket(task string) string {
	h.t.Helper()
	r := ask(task)
	r.Ticket = true
	issued, err := h.Issue(h.t.Context(), orchestrator, r, "")
	if err != nil {
		h.t.Fatal(err)
	}
	return issued.Ticket.Reveal()
}

// until polls until ok, for at most a minute.
func (h *house) until(what string, ok func() bool) {
	h.t.Helper()
	limit := time.After(time.Minute)
	for tick := time.NewTicker(5 * time.Millisecond); !ok(); {
		select {
		case <-limit:
			h.t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}
