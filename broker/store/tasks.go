package store

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store/db"
)

// AddTask implements broker.Tasks.
func (s *Store) AddTask(ctx context.Context, t broker.Task) error {
	if err := s.q.AddTask(ctx, db.AddTaskParams{Caller: t.Caller, ID: t.ID, ParentID: t.Parent, CreatedAt: s.Now()}); err != nil {
		return err
	}
	row, err := s.q.ParentOf(ctx, db.ParentOfParams{Caller: t.Caller, ID: t.ID})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return broker.ErrTaskEnded
	case err == nil && row.EndedAt == nil && value(row.ParentID) != t.Parent:
		return broker.ErrMoved
	}
	return err
}

// FindTasks implements broker.Tasks.
func (s *Store) FindTasks(ctx context.Context, caller, id string) ([]broker.Task, error) {
	rows, err := s.q.FindTasks(ctx, db.FindTasksParams{ID: id, Caller: caller})
	list := make([]broker.Task, len(rows))
	for i, r := range rows {
		list[i] = broker.Task{Caller: r.Caller, ID: id, Parent: r.ParentID, EndedAt: orZero(r.EndedAt), Outcome: r.Outcome}
	}
	return list, err
}

// EndTask implements broker.Tasks.
func (s *Store) EndTask(ctx context.Context, t broker.Task, due time.Time, event func(broker.Task) broker.Event) ([]broker.Task, error) {
	var ended []broker.Task
	err := s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
		ended = nil
		now := s.Now().UTC()
		rows, err := q.EndTask(ctx, db.EndTaskParams{Caller: t.Caller, ID: t.ID, Outcome: t.Outcome, Now: now, DueAt: due})
		events := make([]broker.Event, len(rows))
		for i, r := range rows {
			e := broker.Task{Caller: t.Caller, ID: r.ID, Parent: value(r.ParentID), EndedAt: now, Outcome: t.Outcome}
			ended, events[i] = append(ended, e), event(e)
		}
		return events, err
	})
	return ended, err
}

// AliveOf implements broker.Tasks.
func (s *Store) AliveOf(ctx context.Context, t broker.Task, after broker.VersionID, limit int) ([]broker.Credential, error) {
	rows, err := s.q.AliveOfTask(ctx, db.AliveOfTaskParams{
		Caller: t.Caller, TaskID: t.ID, After: string(after), MaxRows: int32(limit), //nolint:gosec // a small constant
	})
	list := make([]broker.Credential, len(rows))
	for i, row := range rows {
		c, rowErr := toCredential(row.Credential, row.Version)
		list[i], err = c, errors.Join(err, rowErr)
	}
	return list, err
}

// TaskPending implements broker.Tasks.
func (s *Store) TaskPending(ctx context.Context, t broker.Task) (int64, error) {
	return s.q.TaskPending(ctx, db.TaskPendingParams{ID: t.ID, Caller: t.Caller})
}

// ClaimTasks implements broker.Tasks.
func (s *Store) ClaimTasks(ctx context.Context, now time.Time, lease time.Duration, limit int) ([]broker.Task, error) {
	rows, err := s.q.ClaimTasks(ctx, db.ClaimTasksParams{
		Now: &now, LeaseUntil: new(now.Add(lease)), MaxRows: int32(limit), //nolint:gosec // a small constant
	})
	list := make([]broker.Task, len(rows))
	for i, r := range rows {
		list[i] = broker.Task{Caller: r.Caller, ID: r.ID, Parent: value(r.ParentID), EndedAt: orZero(r.EndedAt), Outcome: r.Outcome}
	}
	return list, err
}

// TaskDone implements broker.Tasks.
func (s *Store) TaskDone(ctx context.Context, t broker.Task) error {
	return s.q.TaskDone(ctx, db.TaskDoneParams{Caller: t.Caller, ID: t.ID})
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
