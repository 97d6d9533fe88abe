package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/audit/upstreamlog"
)

// remembered is how many answers a join keeps: a file has many lines of few credentials.
const remembered = 4096

// join prints whose each line of an upstream's log is. It fails, after the last line, if any of them was not understood:
// that all are known to be somebody's or nobody's must not be read from a file that was read in part.
func join(e *env, lines iter.Seq2[upstreamlog.Line, error], trace tracer) error {
	out := bufio.NewWriter(e.stdout)
	asked := &answers{trace: trace, known: map[string]audit.Traced{}}
	var n counts
	for line, err := range lines {
		if err != nil {
			return errors.Join(err, out.Flush()) // what was read before stands
		}
		n.all++
		w, err := asked.whose(e.ctx, line)
		if err != nil {
			return errors.Join(fmt.Errorf("record %d: %w", n.all, err), out.Flush())
		}
		n.add(line, w)
		at, what := "-", cmp.Or(plain(line.What), "-")
		if !line.At.IsZero() {
			at = stampOf(line.At)
		}
		if _, err := fmt.Fprintf(out, "%s  %s  → %s\n", at, what, audit.VisibleLine(w.words(line))); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprint(out, n)
	if err := out.Flush(); err != nil || n.unread == 0 {
		return err
	}
	return fmt.Errorf("%d of %d records were not understood: whose they are is not known", n.unread, n.all)
}

// counts are of a file's lines.
type counts struct {
	all, ours, weaker, unread int
	archived                  string // the month before which events are in files
}

func (n *counts) add(line upstreamlog.Line, w whose) {
	n.archived = cmp.Or(n.archived, w.archived)
	switch {
	case w.unread(line) != "":
		n.unread++
	case len(w.held) > 0 && w.by != "":
		n.weaker++
		fallthrough
	case len(w.held) > 0:
		n.ours++
	}
}

func (n counts) String() string {
	text := fmt.Sprintf("%d of %d are of tasks here", n.ours, n.all)
	if n.weaker > 0 {
		text += fmt.Sprintf(", %d of them by a weaker name only", n.weaker)
	}
	if n.unread > 0 {
		text += fmt.Sprintf("; %d were not understood", n.unread)
	}
	text += "\n"
	if n.archived != "" {
		text += fmt.Sprintf("events of months before %s are in files\n", n.archived)
	}
	return text
}

// whose is what a line's names lead to.
type whose struct {
	held     []audit.Held // who may have made the call
	ever     bool         // somebody had the name, then or at another time
	more     bool         // others had it by then, who were not looked at
	by       string       // which name led there, and which surer one of the line did not; "": the surest did
	archived string       // the month before which events are in files; empty: none are
}

// unread is why nobody knows whose a line is; empty: it is known, or that it is nobody's here.
func (w whose) unread(line upstreamlog.Line) string {
	if line.NotUnderstood != "" {
		return line.NotUnderstood
	}
	if len(w.held) > 0 {
		return ""
	}
	return strings.Join(line.Unread, ", ")
}

func (w whose) words(line upstreamlog.Line) string {
	at := line.At
	switch unread := w.unread(line); {
	case unread != "":
		return "not understood: " + unread
	case len(line.Names) == 0 && line.Fingerprint == nil:
		return "names no credential"
	case len(w.held) == 0 && w.more:
		return "not among the newest here that had it by then"
	case len(w.held) == 0 && w.ever:
		return "nobody here had it then"
	case len(w.held) == 0 && w.archived != "":
		return "unknown here in what is not archived"
	case len(w.held) == 0:
		return "unknown here"
	}
	h := w.held[0]
	text := fmt.Sprintf("task %s, agent %s, %s version %d (%s)", h.TaskID, h.AgentID, h.CredentialID, h.Version, h.State)
	switch others := len(w.held) - 1; {
	case others > 0 && w.more:
		text += fmt.Sprintf(" or one of at least %d others", others)
	case others > 0:
		text += fmt.Sprintf(" or one of %d others", others)
	case !at.IsZero() && !h.Usable(at):
		text += ", outside its time" // a dead session that is tried again is still the task's
	}
	return text + w.by
}

// sure are the names that say whose a call is, whatever a record's other fields are.
var sure = []string{"secret", "new key", "key"}

// answers remembers what was found for a name.
type answers struct {
	trace tracer
	known map[string]audit.Traced
}

// whose goes by the surest name that leads to somebody. Where that is not the surest of the line, it says so: strangers may
// call a session of their own as they like, and our source identity stays on a session that another role made of ours.
func (a *answers) whose(ctx context.Context, line upstreamlog.Line) (w whose, err error) {
	asked := questions(line)
	missed := "is unknown here"
	for _, q := range asked {
		if err := a.ask(ctx, q.TraceQuery, line.At, &w); err != nil {
			return w, err
		}
		surest := asked[0].is
		switch {
		case len(w.held) > 0 && q.is != surest:
			w.by = fmt.Sprintf(", by its %s only: its %s %s", q.is, surest, missed)
			return w, nil
		case len(w.held) > 0 && len(line.Unread) > 0 && !slices.Contains(sure, q.is):
			w.by = fmt.Sprintf(", by its %s only: %s", q.is, strings.Join(line.Unread, ", "))
			return w, nil
		case len(w.held) > 0:
			return w, nil
		case w.ever && q.is == surest:
			missed = "was nobody's here then"
		}
	}
	return w, nil
}

// question is what is asked of a name.
type question struct {
	is string
	audit.TraceQuery
}

// questions are the line's, the surest first.
func questions(line upstreamlog.Line) (list []question) {
	if line.Fingerprint != nil {
		list = append(list, question{"secret", audit.TraceQuery{Fingerprint: line.Fingerprint}})
	}
	for _, n := range line.Names {
		list = append(list, question{n.Is, audit.TraceQuery{Name: n.Text}})
	}
	return list
}

// nameable is what may be a name here: the API's bounds. A line may bear anything its caller chose, such as a reason in
// any script, and none of that keeps the rest of the file from being read.
var nameable = regexp.MustCompile("^[ -~]{1,512}$")

// ask keeps names that one version bore; of one that many had, it matters when.
func (a *answers) ask(ctx context.Context, q audit.TraceQuery, at time.Time, w *whose) error {
	if q.Fingerprint == nil && !nameable.MatchString(q.Name) {
		return nil
	}
	key := q.Name + "\x00" + hex.EncodeToString(q.Fingerprint)
	q.Limit = 2
	t, ok := a.known[key]
	if !ok {
		var err error
		if t, err = a.trace(ctx, q); err != nil {
			return err
		}
		for i := range t.Held {
			t.Held[i].Events = nil
		}
		if len(a.known) >= remembered {
			clear(a.known)
		}
		a.known[key] = t
	}
	w.held, w.ever, w.archived = t.Held, w.ever || len(t.Held) > 0, t.ArchivedBefore
	if len(t.Held) < 2 || at.IsZero() {
		return nil
	}
	q.At, q.Limit = at, 10
	then, err := a.trace(ctx, q)
	w.held, w.more = then.Held, then.More || w.more && len(then.Held) == 0
	return err
}

// plain has nothing in it that a terminal would obey.
func plain(s string) string {
	q := fmt.Sprintf("%+q", s)
	return q[1 : len(q)-1]
}
