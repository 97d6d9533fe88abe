package store_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
)

// Who is told of a change may panic: the listener starts again, and goes on telling.
func TestTheListenerOutlivesAPanic(t *testing.T) {
	t.Parallel()
	db := own(t)
	runner := broker.NewRunner(nil)
	s := open(t, db, func(c *store.Config) { c.Runner = runner })
	var calls atomic.Int32
	told := make(chan broker.CredentialID, 1)
	s.OnChange(func(id broker.CredentialID) {
		if calls.Add(1) == 1 {
			panic("C4n4ry")
		}
		if id != "" {
			select {
			case told <- id:
			default:
			}
		}
	})
	conn := admin(t, db)
	limit := time.After(time.Minute)
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		if _, err := conn.Exec(t.Context(), "SELECT pg_notify('taskpass_credentials', 'crd_x')"); err != nil {
			t.Fatal(err)
		}
		select {
		case id := <-told:
			if n := runner.Panics()["notify listener"]; id != "crd_x" || n != 1 {
				t.Errorf("told of %q after %d panics", id, n)
			}
			return
		case <-tick.C:
		case <-limit:
			t.Fatal("nobody is told any more")
		}
	}
}
