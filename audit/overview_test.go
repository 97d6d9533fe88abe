package audit_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	l := audit.NewLog(s.Pool())
	since := time.Now().UTC().Truncate(time.Hour).Add(-3 * time.Hour)
	event := func(kind broker.EventType, code broker.Code, after time.Duration) broker.Event {
		return broker.Event{ID: broker.NewEventID(), At: since.Add(after), Type: kind, Code: code, Caller: broker.Caller{Name: "x"}}
	}
	err := s.Record(t.Context(),
		event(broker.EventRefused, broker.CodeForbidden, -time.Second), // too long ago
		event(broker.EventRefused, broker.CodeForbidden, 0),
		event(broker.EventRefused, broker.CodeForbidden, -time.Hour), // between two parts of the record that have what is asked for
		event(broker.EventRefused, broker.CodeForbidden, 59*time.Minute), event(broker.EventRefused, broker.CodeUnknownScope, 30*time.Minute),
		event(broker.EventRefused, broker.CodeForbidden, 2*time.Hour), event(broker.EventFailed, broker.CodeForbidden, 2*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for _, noted := range []bool{false, true} {
		if noted {
			settle(t, l, 7)
			noteAll(t, s, 1)
		}
		list, complete, err := l.Refusals(t.Context(), since, time.Hour)
		got := ""
		for _, r := range list {
			got += fmt.Sprintf("%v %s %d; ", r.From.Sub(since), r.Code, r.N)
		}
		if want := "0s forbidden 2; 0s unknown_scope 1; 2h0m0s forbidden 1; "; got != want || !complete || err != nil {
			t.Errorf("noted %v: %s, want %s, complete %v, %v", noted, got, want, complete, err)
		}
	}
}

// What an overview costs has a bound, and it is said when that was reached.
func TestRefusalsAreBounded(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	now := time.Now().UTC()
	var events []broker.Event
	for i := range audit.MaxRefusals + 5 + 1000 {
		at := now
		if i/1000 == 12 { // so that what is asked for is in two parts of the record, which have one bound
			at = now.Add(-time.Hour - time.Second)
		}
		events = append(events, broker.Event{ID: broker.NewEventID(), At: at, Type: broker.EventRefused, Code: broker.CodeForbidden, Caller: broker.Caller{Name: "x"}})
	}
	if err := s.Record(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
	l := audit.NewLog(s.Pool())
	settle(t, l, 1) // they are one transaction's
	noteAll(t, s, 1000)
	list, complete, err := l.Refusals(t.Context(), now.Add(-time.Hour), 24*time.Hour)
	if err != nil || complete || len(list) != 1 || list[0].N != audit.MaxRefusals+1 {
		t.Errorf("%v, complete %v, %v", list, complete, err)
	}
}
