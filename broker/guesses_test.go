package broker_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

func TestGuesses(t *testing.T) {
	t.Parallel()
	clock := &clock{now: time.Now()}
	g := broker.NewGuesses(clock.Now)
	const addr = "192.0.2.1"
	for n := range 10 {
		if wait := g.Wait(addr); wait != 0 {
			t.Fatalf("after %d wrong ones: wait %v", n, wait)
		}
		g.Wrong(addr)
	}
	for range 100 { // were under way together: they do not lock the address out for longer
		g.Wrong(addr)
	}
	if wait := g.Wait(addr); wait != time.Second {
		t.Errorf("the allowance is spent: wait %v", wait)
	}
	clock.Advance(time.Second - 1)
	if wait := g.Wait(addr); wait != 1 {
		t.Errorf("just before its time: wait %v", wait)
	}
	clock.Advance(1)
	if wait := g.Wait(addr); wait != 0 {
		t.Errorf("one a second: wait %v", wait)
	}
	g.Wrong(addr)
	if wait := g.Wait(addr); wait != time.Second {
		t.Errorf("and not two: wait %v", wait)
	}
	clock.Advance(10 * time.Second)
	for n := range 10 {
		if wait := g.Wait(addr); wait != 0 {
			t.Errorf("a whole allowance again, after %d wrong ones: wait %v", n, wait)
		}
		g.Wrong(addr)
	}
}

// Who has an IPv6 address has 2^64 of them: they once counted apart for tickets. A zone or the mapped form of IPv4 is no
// other address either.
func TestGuessesByNetwork(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ wrong, same, others string }{ // others is a format for a number
		{"2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:%x::1"},
		{"fe80::1%eth0", "fe80::2%eth1", "fe81:0:0:%x::1"},
		{"192.0.2.1", "::ffff:192.0.2.1", "198.51.100.%d"},
		{"", "", "198.51.100.%d"}, // what no connection told
	} {
		g := broker.NewGuesses(func() time.Time { return time.Time{}.AddDate(2000, 0, 0) })
		for range 10 {
			g.Wrong(c.wrong)
		}
		if g.Wait(c.wrong) == 0 || g.Wait(c.same) == 0 {
			t.Errorf("%s and %s: %v, %v; want one allowance", c.wrong, c.same, g.Wait(c.wrong), g.Wait(c.same))
		}
		free := 0
		for n := range 16 { // one may share the bucket by chance
			if g.Wait(fmt.Sprintf(c.others, 16+n)) == 0 {
				free++
			}
		}
		if free < 8 {
			t.Errorf("%s: %d of 16 others are free", c.wrong, free)
		}
	}
}
