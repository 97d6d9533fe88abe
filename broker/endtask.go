package broker

import (
	"context"
	"errors"
	"time"
)

// taskBatch is how many versions of a task are ended at a time.
const taskBatch = 256

// taskPage is how many credentials a view of a task lists; the list of credentials has them all.
const taskPage = 500

// Task is a task and all that it holds. What the caller may not see does not exist for it.
func (b *Broker) Task(ctx context.Context, caller Caller, id string) (TaskView, error) {
	if err := caller.mayUse(useSee); err != nil {
		return TaskView{}, err
	}
	return b.viewTask(ctx, caller, id)
}

func (b *Broker) viewTask(ctx context.Context, caller Caller, id string) (TaskView, error) {
	name := caller.Name
	if caller.ReadsAll() {
		name = ""
	}
	tasks, err := b.Ledger.FindTasks(ctx, name, id)
	if err != nil {
		return TaskView{}, err
	}
	if len(tasks) == 0 {
		return TaskView{}, Errorf(CodeNotFound, "there is no such task")
	}
	view := TaskView{Task: tasks[0]}
	f := Filter{Caller: name, TaskID: id, Limit: taskPage}
	if view.Credentials, err = b.Ledger.Credentials(ctx, f); err != nil {
		return TaskView{}, err
	}
	if len(view.Credentials) == taskPage {
		f.Before, f.Limit = view.Credentials[taskPage-1].ID, 1
		older, err := b.Ledger.Credentials(ctx, f)
		if err != nil {
			return TaskView{}, err
		}
		view.HasMore = len(older) > 0
	}
	for _, t := range tasks {
		if t.EndedAt.IsZero() {
			continue
		}
		n, err := b.Ledger.TaskPending(ctx, t)
		if err != nil {
			return TaskView{}, err
		}
		view.Pending += n
	}
	return view, nil
}

// EndTask ends a task and all below it: nothing is issued for them any more, and all that they hold is ended. When it
// returns without error the end is durable; the view's Pending says what has not been achieved yet. Ending it again
// changes nothing.
func (b *Broker) EndTask(ctx context.Context, caller Caller, id, outcome string) (TaskView, error) {
	if err := caller.mayUse(useEnd); err != nil {
		return TaskView{}, err
	}
	if caller.Role == RoleAgent && caller.TaskID != id {
		return TaskView{}, Errorf(CodeNotFound, "there is no such task")
	}
	whose := []Task{{Caller: caller.Name, ID: id}}
	if caller.Role == RoleOperator {
		var err error
		if whose, err = b.Ledger.FindTasks(ctx, "", id); err != nil {
			return TaskView{}, err
		}
	}
	for _, t := range whose {
		t.Outcome = outcome
		now := b.now()
		ended, err := b.Ledger.EndTask(ctx, t, now.Add(b.mintTime()), func(t Task) Event {
			return Event{
				ID: NewEventID(), At: now, Type: EventTaskEnded, Caller: caller, TaskID: t.ID, ParentTask: t.Parent, Reason: outcome,
			}
		})
		if err != nil {
			return TaskView{}, err
		}
		b.Reached("after_task_ended")
		for _, e := range ended {
			if err := b.finishTask(context.WithoutCancel(ctx), caller, e); err != nil {
				b.Logger.ErrorContext(ctx, "task's end left to the sweeper", "task_id", e.ID, "error", err)
			}
		}
	}
	return b.viewTask(ctx, caller, id)
}

// finishTask begins the end of all that an ended task holds, and makes one attempt at each. What is being minted at this
// moment is refused by the ledger when it would become active.
func (b *Broker) finishTask(ctx context.Context, caller Caller, t Task) error {
	after := VersionID("")
	for {
		alive, err := b.Ledger.AliveOf(ctx, t, after, taskBatch)
		if err != nil {
			return err
		}
		if err := b.endVersions(ctx, caller, alive, CauseTaskEnded, ""); err != nil {
			return err
		}
		if len(alive) < taskBatch {
			return b.Ledger.TaskDone(ctx, t)
		}
		after = alive[len(alive)-1].Version.ID
	}
}

// sweepTasks carries out ends that a crash interrupted.
func (b *Broker) sweepTasks(ctx context.Context) error {
	tasks, err := b.Ledger.ClaimTasks(ctx, b.now(), sweepLease, sweepWorkers)
	for _, t := range tasks {
		err = errors.Join(err, b.finishTask(ctx, sweeper, t))
	}
	return err
}

// tidyEvery is how often what is of no more use is dropped from the ledger.
const tidyEvery = time.Minute
