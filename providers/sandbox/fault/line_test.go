package fault_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/providers/sandbox/fault"
)

func TestLine(t *testing.T) {
	t.Parallel()
	var l fault.Line[string]
	var got []string
	take := func(prefix string) {
		f, first, ok := l.Take(func(f string) bool { return strings.HasPrefix(f, prefix) })
		got = append(got, fmt.Sprintf("%s %t %t", f, first, ok))
	}
	take("")
	l.Add("a1", 0)
	l.Add("b1", 2)
	l.Add("b2", -1)
	for range 4 {
		take("b")
	}
	take("a")
	take("a")
	l.Add("a2", 1)
	l.Clear()
	take("")
	want := " false false, b1 true true, b1 false true, b2 true true, b2 false true, a1 true true,  false false,  false false"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
}
