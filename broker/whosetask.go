package broker

import (
	"context"
	"fmt"
	"strings"
)

// namedOwners is how many callers a conflict names.
const namedOwners = 10

// whoseTask finds the one task of that id that the caller means. Task ids are their callers' own, so several callers may
// use the same one: owner then says whose, and may be empty where the caller sees no other's. CodeConflict if it is
// ambiguous; what the caller may not see does not exist for it.
func (b *Broker) whoseTask(ctx context.Context, caller Caller, id, owner string) (Task, error) {
	owner, ok := caller.ownerOf(id, owner)
	if !ok {
		return Task{}, noTask()
	}
	tasks, err := b.Ledger.FindTasks(ctx, owner, id)
	switch {
	case err != nil:
		return Task{}, err
	case len(tasks) == 0:
		return Task{}, noTask()
	case len(tasks) > 1:
		return Task{}, ambiguousTask(tasks)
	}
	return tasks[0], nil
}

// ownerOf is whose task of that id the caller can mean; empty: anybody's. Not ok: one that it may not see.
func (c Caller) ownerOf(id, owner string) (name string, ok bool) {
	if c.ReadsAll() {
		return owner, true
	}
	if owner != "" && owner != c.Name || c.Role == RoleAgent && id != c.TaskID {
		return "", false
	}
	return c.Name, true
}

func noTask() *Error { return Errorf(CodeNotFound, "there is no such task") }

// ambiguousTask names the callers, which only roles that see every caller's tasks reach.
func ambiguousTask(tasks []Task) *Error {
	names := make([]string, 0, namedOwners)
	for _, t := range tasks[:min(len(tasks), namedOwners)] {
		names = append(names, t.Caller)
	}
	list := strings.Join(names, ", ")
	if more := len(tasks) - len(names); more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	e := Errorf(CodeConflict, "several callers have a task of this id: add ?caller= with one of %s", list)
	e.Faults = []Fault{{Pointer: "/query/caller", Reason: "is required: the task id is used by " + list}}
	return e
}
