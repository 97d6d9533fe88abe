package sequence

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/audit/tree"
)

// sample is how far apart, in events, the stored checkpoints are that Verify uses: they only narrow a range down.
const sample = 4096

// Verify walks through the whole record in the database and holds it against the checkpoints that are stored there and
// those that the auditor brings. Only the latter prove anything against who owns the database.
func (l *Log) Verify(ctx context.Context, brought []tree.Checkpoint, files ...*tree.Notes) (tree.Report, error) {
	stored, unsigned, err := l.stored(ctx)
	if err != nil {
		return tree.Report{}, err
	}
	var leaves int64
	if err := l.pool.QueryRow(ctx, "SELECT "+leafCount+" FROM tree_leaves").Scan(&leaves); err != nil {
		return tree.Report{}, err
	}
	var newest tree.Checkpoint // that the tree can come to
	stored = append(stored, brought...)
	known := slices.Clone(stored)
	for _, f := range files {
		known = append(known, f.Kept...)
	}
	for _, c := range known {
		if c.Size <= leaves && c.Size > newest.Size {
			newest = c
		}
	}
	if len(known) == 0 {
		return tree.Report{}, errors.New("there is no checkpoint that a known key has signed")
	}
	h, lines := tree.Header{Origin: l.keys.Origin()}, func(func(tree.Line, error) bool) {}
	if leaves > 0 {
		if newest.Size == 0 { // the record is shorter than all of them: what is left is read all the same
			newest = tree.Checkpoint{Origin: l.keys.Origin(), Size: leaves}
		}
		if h, lines, err = l.export(ctx, newest, 0, 0); err != nil {
			return tree.Report{}, err
		}
	}
	report, err := tree.Verify(h, lines, stored, files...)
	if err == nil {
		err = l.rest(ctx, newest.Size, leaves, &report)
	}
	report.Faults = append(report.Faults, unsigned...)
	return report, err
}

// stored reads the newest checkpoint of every so many events, and says which of them do not open.
func (l *Log) stored(ctx context.Context) (list []tree.Checkpoint, unsigned []tree.Fault, err error) {
	// From one to the next below by the index: there may be a million between two.
	rows, err := l.pool.Query(ctx, `WITH RECURSIVE newest AS (
			(SELECT size, note FROM tree_checkpoints WHERE starts_with(note, $2 || E'\n') ORDER BY size DESC, id DESC LIMIT 1)
			UNION ALL
			SELECT c.size, c.note FROM newest n CROSS JOIN LATERAL (SELECT size, note FROM tree_checkpoints
				WHERE size < n.size / $1 * $1 AND starts_with(note, $2 || E'\n') ORDER BY size DESC, id DESC LIMIT 1) c)
		SELECT size, note FROM newest ORDER BY size`, int64(sample), l.keys.Origin())
	if err != nil {
		return nil, nil, err
	}
	var size int64
	var text string
	_, err = pgx.ForEachRow(rows, []any{&size, &text}, func() error {
		c, err := l.keys.Open([]byte(text))
		switch ours := err == nil && c.Size == size; { // else one note under many sizes would be as many
		case !ours && len(unsigned) < 100:
			unsigned = append(unsigned, tree.Fault{What: tree.Unsigned, Index: size - 1, Detail: "no known key has signed what is stored as a checkpoint for so many events"})
		case ours:
			list = append(list, c)
		}
		return nil
	})
	return list, unsigned, err
}
