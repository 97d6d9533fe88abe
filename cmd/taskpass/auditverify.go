package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/migrations"
)

type auditVerifyCmd struct {
	database
	trusted
	Events         []string `type:"existingfile" help:"Exports. Without any, the record in the database is verified."`
	Archive        []string `type:"existingfile" help:"The files of archived months: they are verified too, and must have what the others are said to have moved there."`
	AcceptArchived bool     `help:"Be content with the hashes of archived events whose files are not given. Whoever owns the database can call a removed event archived."`
	Checkpoint     []string `type:"existingfile" help:"A checkpoint that you have, or a file of many: what the publisher to a file wrote."`
	Previous       []string `type:"existingfile" help:"Earlier ones: they narrow down where a record was rewritten."`
}

func (c *auditVerifyCmd) Run(e *env) error {
	keys, err := c.keys()
	if err != nil {
		return err
	}
	brought, err := readNotes(keys, append(c.Checkpoint, c.Previous...), e.stderr)
	if err != nil {
		return err
	}
	var errs []error
	var reports []tree.Report
	judge := func(what string, report tree.Report, err error) {
		reports = append(reports, report)
		errs = append(errs, verdict(e.stdout, what, report, err))
	}
	if len(c.Events) == 0 {
		pool, err := c.open(e.ctx, "")
		if err != nil {
			return err
		}
		defer pool.Close()
		report, err := sequence.NewLog(pool, keys).Verify(e.ctx, nil, brought...)
		judge("the database", report, err)
		errs = append(errs, guarded(e.ctx, e.stdout, pool))
	}
	for _, name := range append(c.Events, c.Archive...) {
		report, err := verifyFile(name, keys, brought)
		judge(name, report, err)
	}
	if missing := tree.Missing(reports); len(missing) > 0 && !c.AcceptArchived {
		errs = append(errs, fmt.Errorf("%w: events %d to %d are said to be archived, and no file that you gave with --archive has them",
			errNotVerified, missing[0].From, missing[0].To-1))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if len(brought) == 0 {
		_, _ = fmt.Fprintln(e.stdout, "No checkpoint of your own was given: this shows that the record is the one that its key signed last,\n"+
			"and not that nothing was cut off or rewritten since.")
	}
	_, err = fmt.Fprintln(e.stdout, "verified")
	return err
}

// guarded prints what guards the database otherwise than the migrations make it, and is an error unless nothing does.
func guarded(ctx context.Context, w io.Writer, db migrations.Beginner) error {
	guards, err := migrations.Compare(ctx, db)
	for _, c := range guards.Changed {
		_, _ = fmt.Fprintln(w, audit.VisibleLine("guard: "+c))
	}
	for _, c := range guards.Unsure { // no fault: whether it was changed cannot be known here
		_, _ = fmt.Fprintln(w, audit.VisibleLine("guard, not compared: "+c))
	}
	switch {
	case err != nil:
		return fmt.Errorf("the database's guards: %w: %w", errNotVerified, err)
	case len(guards.Changed) > 0:
		return fmt.Errorf("the database's guards: %w: %s", errNotVerified, guards.Changed[0])
	}
	return nil
}

func verifyFile(name string, keys *tree.Keys, brought []*tree.Notes) (tree.Report, error) {
	f, err := os.Open(name)
	if err != nil {
		return tree.Report{}, err
	}
	defer f.Close()
	h, lines, err := tree.Read(f)
	if errors.Is(err, tree.ErrForm) { // its first line: another file than an export, rather than a changed one
		err = fmt.Errorf("%w; what verify reads is made by `taskpass audit export`", err)
	}
	if err != nil {
		return tree.Report{}, err
	}
	var own []tree.Checkpoint
	if h.Checkpoint != "" {
		c, err := keys.Open([]byte(h.Checkpoint))
		if err != nil {
			return tree.Report{}, fmt.Errorf("the export brings %w", err)
		}
		own = append(own, c)
	}
	return tree.Verify(h, lines, own, brought...)
}

// readNotes reads files of notes. What does not open among others is said: a crash may leave half a note.
func readNotes(keys *tree.Keys, files []string, warn io.Writer) (all []*tree.Notes, err error) {
	for _, name := range files {
		found, err := keys.ReadNotes(func() (io.ReadCloser, error) { return os.Open(name) })
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if len(found.Kept) == 0 {
			return nil, fmt.Errorf("%s: no checkpoint in it is signed by a key that you gave", name)
		}
		if found.Broken > 0 {
			_, _ = fmt.Fprintf(warn, "%s: %d pieces in it are no checkpoints signed by a key that you gave\n", name, found.Broken)
		}
		all = append(all, found)
	}
	return all, nil
}

var errNotVerified = errors.New("NOT VERIFIED")

// eventsOf names the events that an export has.
func eventsOf(h tree.Header) string {
	if h.From == h.To {
		return "no events"
	}
	return fmt.Sprintf("events %d to %d", h.From, h.To-1)
}

// verdict prints a report, and is an error unless everything was held against a checkpoint and nothing is wrong.
func verdict(w io.Writer, what string, r tree.Report, err error) error {
	for _, f := range r.Faults {
		_, _ = fmt.Fprintln(w, audit.VisibleLine(f.String())) // an event's id may be anything
	}
	if r.More > 0 {
		_, _ = fmt.Fprintf(w, "and %d more\n", r.More)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %w", what, errNotVerified, err)
	}
	_, _ = fmt.Fprintf(w, "%s: %s of a tree of %d; %d read, %d archived elsewhere; proven up to %d by %d checkpoints\n",
		what, eventsOf(r.Header), r.Header.Size, r.Events, r.Away, r.Proven, len(r.Signed))
	if r.Beyond > 0 {
		_, _ = fmt.Fprintf(w, "%d checkpoints are about other parts of the tree\n", r.Beyond)
	}
	switch first, bad := r.First(); {
	case bad:
		return fmt.Errorf("%s: %w: %s", what, errNotVerified, first)
	case !r.OK():
		return fmt.Errorf("%s: %w: no checkpoint covers its end", what, errNotVerified)
	}
	return nil
}
