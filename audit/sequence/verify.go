package sequence

import (
	"context"
	"errors"
	"slices"

	"github.com/taskpass/taskpass/audit/tree"
)

// Verify walks through the whole record in the database and compares it with the checkpoints that are stored there and
// those that the auditor brings. Only the latter prove anything against who owns the database.
func (l *Log) Verify(ctx context.Context, brought []tree.Checkpoint, files ...*tree.Notes) (tree.Report, error) {
	stored, err := l.checkpoints(ctx)
	if err != nil {
		return tree.Report{}, err
	}
	notes, err := stored.notes()
	if err != nil {
		return tree.Report{}, err
	}
	var leaves int64
	if err := l.pool.QueryRow(ctx, "SELECT "+leafCount+" FROM tree_leaves").Scan(&leaves); err != nil {
		return tree.Report{}, err
	}
	files = append(slices.Clip(files), notes)
	known := slices.Clone(brought)
	for _, f := range files {
		known = append(known, f.Kept...)
	}
	if len(known) == 0 {
		return tree.Report{}, errors.New("there is no checkpoint that a known key has signed")
	}
	var newest tree.Checkpoint // that the tree can reach
	for _, c := range known {
		if c.Size <= leaves && c.Size > newest.Size {
			newest = c
		}
	}
	times, err := l.newTimes(ctx)
	if err != nil {
		return tree.Report{}, err
	}
	h, lines := tree.Header{Origin: l.keys.Origin()}, func(func(tree.Line, error) bool) {}
	if leaves > 0 {
		if newest.Size == 0 { // the record is shorter than all of them: what is left is read anyway
			newest = tree.Checkpoint{Origin: l.keys.Origin(), Size: leaves}
		}
		var w walk
		if h, w, err = l.export(ctx, newest, 0, 0); err != nil {
			return tree.Report{}, err
		}
		w.times = times
		lines = w.all
	}
	report, err := tree.Verify(h, lines, brought, files...)
	if err == nil {
		err = l.rest(ctx, newest.Size, leaves, times, &report)
	}
	if err == nil {
		err = times.finish()
	}
	report.Join(times.found.Faults...)
	report.More += times.found.More
	if err != nil {
		return report, err
	}
	altered, err := stored.altered()
	report.Join(altered.Faults...)
	report.More += altered.More
	return report, err
}
