package gcp_test

import (
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/gcp"
	"github.com/taskpass/taskpass/providers/providertest"
)

// P12: one caller holds and rests no more than its share of accounts that several callers may use, however many requests
// it sends at once to however many replicas. What it has ended counts until nothing made for it works.
func TestOneCallerTakesAShareOfTheAccounts(t *testing.T) {
	t.Parallel()
	const accounts, share = 8, 2
	ledgers := replicas(t, 2)
	r := newRig(t, "slot", accounts)
	var providers []*gcp.Provider
	for _, l := range ledgers {
		p, err := gcp.New(t.Context(), r.config, gcp.Deps{Accounts: l, Shared: true, Clock: r.clock.Now, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		providers = append(providers, p)
	}
	intend := func(caller string) broker.Credential {
		c := r.credential()
		c.Caller = caller
		return providertest.Intend(t, ledgers[0], providers[0], c, r.clock.Now(), 10*time.Minute)
	}
	// take sends many requests at once, and returns the credentials that were issued.
	take := func(caller string, many int) (got []broker.Credential) {
		t.Helper()
		var mu sync.Mutex
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for i := range many {
			c := intend(caller)
			wg.Go(func() {
				<-begin
				m, err := providers[i%2].Mint(t.Context(), c)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					got = append(got, providertest.Activate(t, ledgers[0], c, m))
				} else if e := broker.AsError(err); e.Code != broker.CodeQuotaExceeded || !errors.Is(err, broker.ErrNotMinted) || e.RetryAfter <= 0 {
					t.Errorf("%s: %v, to be tried again after %s", caller, err, e.RetryAfter)
				}
			})
		}
		close(begin)
		wg.Wait()
		return got
	}
	if bob := take("bob", 24); len(bob) != share {
		t.Errorf("the first caller got %d, want %d", len(bob), share)
	}
	eve := take("eve", 24) // by now each replica has its connections
	if len(eve) != share {
		t.Fatalf("one caller got %d of %d accounts, want %d", len(eve), accounts, share)
	}
	for _, c := range eve {
		r.end(t, providers[0], ledgers[0], c, broker.CauseRevoked)
	}
	if more := take("eve", 4); len(more) != 0 {
		t.Errorf("it got %d more while those that it ended rest", len(more))
	}
	if ann := take("ann", 4); len(ann) != share {
		t.Errorf("another caller got %d, want %d", len(ann), share)
	}
	r.clock.To(eve[0].Version.ExpiresAt.Add(skew))
	if again := take("eve", 4); len(again) != share {
		t.Errorf("after the rest it got %d, want %d", len(again), share)
	}
}
