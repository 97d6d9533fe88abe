package broker_test

import (
	"sync"
	"testing"

	"github.com/taskpass/taskpass/broker"
)

func below(parent, task string) broker.Request {
	r := ask(task)
	r.ParentTaskID = parent
	return r
}

// A task that is known only as the parent of another one can be looked at, and ended with all below it, by whoever may do so.
func TestAParentThatHoldsNothing(t *testing.T) {
	t.Parallel()
	for _, as := range []broker.Caller{orchestrator, operator} {
		for _, owner := range []string{"", orchestrator.Name} {
			h := newHouse(t)
			h.exec("INSERT INTO callers (name, role) VALUES ($1, $2) ON CONFLICT DO NOTHING", orchestrator.Name, orchestrator.Role)
			child, err := h.Issue(t.Context(), orchestrator, below("parent", "child"), "")
			if err != nil {
				t.Fatal(err)
			}
			if view, err := h.Task(t.Context(), as, "parent", owner); err != nil || view.Caller != orchestrator.Name {
				t.Errorf("%s looks at %q's: %+v, %v", as.Role, owner, view, err)
			}
			if view, err := h.EndTask(t.Context(), as, "parent", owner, ""); err != nil || view.Pending != 0 {
				t.Errorf("%s ends %q's: %+v, %v", as.Role, owner, view, err)
			}
			h.wantState(child.ID, broker.StateRevoked)
		}
	}
}

// What is issued for a new task below another one, while the end of that one waits for the database, is ended with it: it
// was not there when the database began to look for what is below.
func TestATaskAddedWhileItsTreeEnds(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	if _, err := h.Issue(t.Context(), orchestrator, below("root", "first"), ""); err != nil {
		t.Fatal(err)
	}
	admin := h.admin()
	tx, err := admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT FROM tasks WHERE id = 'first' FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if view, err := h.EndTask(t.Context(), orchestrator, "root", "", ""); err != nil || view.Pending != 0 {
			t.Errorf("the end: %+v, %v", view, err)
		}
	})
	h.until("the end waits for the lock", func() bool {
		var waiting int
		err := admin.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").Scan(&waiting)
		return err == nil && waiting > 0
	})
	late, err := h.Issue(t.Context(), orchestrator, below("root", "late"), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	h.wantState(late.ID, broker.StateRevoked)
	h.wantEvents("late", "credential.intended by orch", "credential.issued by orch", "task.ended by orch", "credential.revoke_requested by orch", "credential.revoked by orch")
	if _, err := h.Issue(t.Context(), orchestrator, ask("late"), ""); err == nil {
		t.Error("the late task goes on")
	}
}

// A replica that died after the database had marked what it saw: the sweeper of another one finds the rest of the tree.
func TestAnEndedTreeIsLookedAtAgainAfterACrash(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	late, err := h.Issue(t.Context(), orchestrator, below("root", "late"), "")
	if err != nil {
		t.Fatal(err)
	}
	h.exec("INSERT INTO tasks (caller, id, created_at, ended_at, due_at) VALUES ($1, 'root', now(), now(), now())", orchestrator.Name)
	for range 2 { // first it is marked, which makes it due
		h.clock.Advance(h.wait())
		h.sweep()
	}
	h.wantState(late.ID, broker.StateRevoked)
}
