package broker_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// as is a caller with one of its tokens; an empty name is an address that has not authenticated.
func as(caller, token string) broker.Caller {
	if caller == "" {
		return broker.Caller{Addr: token}
	}
	return broker.Caller{Name: caller, Auth: "token:" + token}
}

// take acquires until it is refused, at most n times, and answers how many it got and the refusal.
func take(l *broker.Limiter, c broker.Caller, n int) (releases []func(), err error) {
	for range n {
		release, err := l.Acquire(c)
		if err != nil {
			return releases, err
		}
		releases = append(releases, release)
	}
	return releases, nil
}

func TestLimiterBounds(t *testing.T) {
	t.Parallel()
	l := broker.NewLimiter("watches", 5*time.Second, broker.Bounds{PerToken: 3, PerCaller: 8, Total: 100})
	for _, c := range []struct {
		by    broker.Caller
		want  int
		names string
	}{
		{as("a", "1"), 3, "the token has all of its share of open watches (3)"},
		{as("a", "2"), 3, "the token has all of its share of open watches (3)"},
		{as("a", "3"), 1, "the token has all of its share of open watches (1)"}, // two are free for the caller: a token has no more than that
		{as("a", "4"), 1, "the caller has all of its share of open watches (8)"},
		{as("a", "5"), 0, "the caller has all of its share of open watches (8)"},
		{as("b", "1"), 3, "the token has all of its share of open watches (3)"}, // another caller's token of the same name
	} {
		got, err := take(l, c.by, 50)
		e, _ := errors.AsType[*broker.Error](err)
		if e == nil || e.Code != broker.CodeRateLimited || e.RetryAfter != 5*time.Second || !e.Code.Retryable() {
			t.Fatalf("%+v: refused with %v", c.by, err)
		}
		if len(got) != c.want || !strings.HasPrefix(e.Message, c.names) {
			t.Errorf("%s %s: %d, then %q; want %d, then %q", c.by.Name, c.by.Auth, len(got), e.Message, c.want, c.names)
		}
	}
}

// P12: however many callers take what they can, whoever has none gets its first one, until everything is taken.
func TestLimiterIsFair(t *testing.T) {
	t.Parallel()
	l := broker.NewLimiter("exports", time.Second, broker.Bounds{PerToken: 100, PerCaller: 100, Total: 64})
	last, all := 64, 0
	for i := range 6 {
		got, _ := take(l, as(fmt.Sprint("c", i), "t"), 1000)
		if len(got) == 0 || len(got) > last || i == 0 && len(got) != 32 {
			t.Errorf("caller %d got %d, the one before %d", i, len(got), last)
		}
		last, all = len(got), all+len(got)
	}
	if l.Open() != all || all >= 64 {
		t.Errorf("%d are open of %d taken", l.Open(), all)
	}
}

func TestLimiterReleases(t *testing.T) {
	t.Parallel()
	l := broker.NewLimiter("requests", time.Second, broker.Bounds{PerToken: 2, PerCaller: 4, Total: 8})
	got, _ := take(l, as("a", "1"), 10)
	got[0]()
	got[0]() // once only
	if l.Open() != 1 {
		t.Errorf("%d are open, want 1", l.Open())
	}
	if _, err := l.Acquire(as("a", "1")); err != nil {
		t.Error(err)
	}
	l.Set(broker.Bounds{PerToken: 1, PerCaller: 1, Total: 8})
	if _, err := l.Acquire(as("a", "1")); err == nil {
		t.Error("the new bounds do not hold")
	}
	l.Set(broker.Bounds{PerToken: 50, PerCaller: 100, Total: 200})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for range 100 {
				if release, err := l.Acquire(as(fmt.Sprint("c", i%5), fmt.Sprint(i))); err == nil {
					release()
				}
			}
		})
	}
	wg.Wait()
	if l.Open() != 2 {
		t.Errorf("%d are open, want 2", l.Open())
	}
}

// Who has not authenticated is counted by network, and apart from every caller.
func TestLimiterByAddress(t *testing.T) {
	t.Parallel()
	l := broker.NewLimiter("requests", time.Second, broker.Bounds{PerToken: 1, PerCaller: 2, Total: 100})
	for _, c := range []struct {
		addr string
		ok   bool
	}{
		{"2001:db8:1:2::1", true}, {"2001:db8:1:2:ffff::9", false}, {"2001:db8:1:3::1", true},
		{"192.0.2.1", true}, {"::ffff:192.0.2.1", false}, {"192.0.2.2", true}, {"", true}, {"", false},
	} {
		if _, err := l.Acquire(as("", c.addr)); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.addr, err)
		}
	}
}
