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

// Task is a task and all that it holds; owner is the caller that it belongs to, see whoseTask. What the caller may not
// see does not exist for it.
func (b *Broker) Task(ctx context.Context, caller Caller, id, owner string) (TaskView, error) {
	if err := caller.mayUse(useSee); err != nil {
		return TaskView{}, err
	}
	return b.viewTask(ctx, caller, id, owner)
}

func (b *Broker) viewTask(ctx context.Context, caller Caller, id, owner string) (TaskView, error) {
	t, err := b.whoseTask(ctx, caller, id, owner)
	if err != nil {
		return TaskView{}, err
	}
	view := TaskView{Task: t}
	f := Filter{Caller: t.Caller, TaskID: id, Limit: taskPage}
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
	if !t.EndedAt.IsZero() {
		if view.Pending, err = b.Ledger.TaskPending(ctx, t); err != nil {
			return TaskView{}, err
		}
	}
	return view, nil
}

// EndTask ends a task and all below it: nothing is issued for them any more, and all that they hold is ended. When it
// returns without error the end is durable; the view's Pending says what has not been achieved yet. Ending it again
// changes nothing. owner is the caller that the task belongs to, see whoseTask. An orchestrator may end a task before it
// issues for it.
func (b *Broker) EndTask(ctx context.Context, caller Caller, id, owner, outcome string) (TaskView, error) {
	if err := caller.mayUse(useEnd); err != nil {
		return TaskView{}, err
	}
	name, ok := caller.ownerOf(id, owner)
	if !ok {
		return TaskView{}, noTask()
	}
	t := Task{Caller: name, ID: id}
	if caller.ReadsAll() {
		var err error
		if t, err = b.whoseTask(ctx, caller, id, owner); err != nil {
			return TaskView{}, err
		}
	}
	t.Outcome = outcome
	ended, err := b.markEnded(ctx, caller, t)
	if err != nil {
		return TaskView{}, err
	}
	b.Reached("after_task_ended")
	for _, e := range ended {
		if err := b.finishTask(context.WithoutCancel(ctx), caller, e); err != nil {
			b.Logger.ErrorContext(ctx, "task's end left to the sweeper", "task_id", e.ID, "error", err)
		}
	}
	return b.viewTask(ctx, caller, id, t.Caller)
}

// markEnded marks a task and all below it as ended, and answers those that were not yet. It marks twice: the first time
// does not see a task that was added below, and issued for, while the database was carrying it out. Once that is committed
// nothing is issued below any more, so the second time sees all.
func (b *Broker) markEnded(ctx context.Context, caller Caller, t Task) (ended []Task, err error) {
	for range 2 {
		now := b.now()
		marked, err := b.Ledger.EndTask(ctx, t, now.Add(b.mintTime()), func(e Task) Event {
			return endedEvent(caller, now, t.Caller, e, t.Outcome)
		})
		if err != nil {
			return nil, err // what is marked is due: the sweeper goes on with it
		}
		ended = append(ended, marked...)
	}
	return ended, nil
}

// endedEvent is the event of a task's end. Where somebody else than its owner ends it, the trace says whose task it was.
func endedEvent(caller Caller, at time.Time, owner string, t Task, outcome string) Event {
	e := Event{
		ID: NewEventID(), At: at, Type: EventTaskEnded, Caller: caller, TaskID: t.ID, ParentTask: t.Parent, Reason: outcome,
	}
	if caller.Name != owner {
		e.Trace = map[string]string{TraceTaskCaller: owner}
	}
	return e
}

// TraceTaskCaller names, in the trace of a task's event, the caller that the task belongs to.
const TraceTaskCaller = "task_caller"

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
		err = errors.Join(err, b.Runner.Do(ctx, "end tasks", func() error {
			if _, err := b.markEnded(ctx, sweeper, t); err != nil { // those below that are marked now are due themselves
				return err
			}
			return b.finishTask(ctx, sweeper, t)
		}))
	}
	return err
}

// tidyEvery is how often what is of no more use is dropped from the ledger.
const tidyEvery = time.Minute
