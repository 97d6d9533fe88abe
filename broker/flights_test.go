package broker_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// A thousand who ask while a call is under way share one that begins after they asked.
func TestFlightsShareCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var f broker.Flights[string, int64]
		var calls atomic.Int64
		goOn := make(chan struct{})
		ask := func() (int64, error) {
			return f.Do(t.Context(), "k", time.Minute, func(context.Context) (int64, error) {
				n := calls.Add(1)
				<-goOn
				return n, nil
			})
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if n, err := ask(); n != 1 || err != nil {
				t.Errorf("the first is answered by call %d: %v", n, err)
			}
		})
		synctest.Wait() // its call is under way
		for range 1000 {
			wg.Go(func() {
				if n, err := ask(); n != 2 || err != nil {
					t.Errorf("answered by call %d, not by the one that begins next: %v", n, err)
				}
			})
		}
		synctest.Wait() // all have asked
		other, err := f.Do(t.Context(), "other", time.Minute, func(context.Context) (int64, error) { return 7, nil })
		if other != 7 || err != nil {
			t.Errorf("another key waits for this one: %d, %v", other, err)
		}
		close(goOn)
		wg.Wait()
		if n := calls.Load(); n != 2 {
			t.Errorf("%d calls for 1001 questions", n)
		}
	})
}

func TestFlightsEnd(t *testing.T) {
	t.Parallel()
	var f broker.Flights[string, int]
	gone, leave := context.WithCancel(t.Context())
	begun, goOn := make(chan struct{}), make(chan struct{})
	left := make(chan error)
	go func() {
		_, err := f.Do(gone, "k", time.Minute, func(ctx context.Context) (int, error) {
			close(begun)
			<-goOn
			return 1, ctx.Err()
		})
		left <- err
	}()
	<-begun
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("who gives up gets %v", err)
	}
	stayed := make(chan error)
	go func() {
		n, err := f.Do(t.Context(), "k", time.Minute, func(ctx context.Context) (int, error) { return 2, ctx.Err() })
		if n != 2 {
			t.Errorf("answered %d", n)
		}
		stayed <- err
	}()
	close(goOn)
	if err := <-stayed; err != nil {
		t.Errorf("one who stays gets %v", err)
	}
	_, err := f.Do(t.Context(), "k", time.Nanosecond, func(ctx context.Context) (int, error) {
		<-ctx.Done()
		return 0, ctx.Err()
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("beyond the limit: %v", err)
	}
	_, err = f.Do(t.Context(), "k", time.Minute, func(context.Context) (int, error) { panic("C4n4ry") })
	if err == nil || strings.Contains(err.Error(), "C4n4ry") {
		t.Errorf("a panic: %v", err)
	}
}
