package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/audit/upstreamlog"
)

// remembered is how many answers a join keeps: a file has many lines of few credentials.
const remembered = 4096

// join prints whose each line of an upstream's log is. Lines without any name are nobody's.
func join(e *env, lines iter.Seq2[upstreamlog.Line, error], trace tracer) error {
	out := bufio.NewWriter(e.stdout)
	asked := &answers{trace: trace, known: map[string]audit.Traced{}}
	ours, all := 0, 0
	for line, err := range lines {
		if err != nil {
			return errors.Join(err, out.Flush()) // what was read before stands
		}
		all++
		h, n, err := asked.holder(e.ctx, line)
		if err != nil {
			return errors.Join(fmt.Errorf("record %d: %w", all, err), out.Flush())
		}
		at, whose := "-", "unknown here"
		if !line.At.IsZero() {
			at = stampOf(line.At)
		}
		if n > 0 {
			ours++
			whose = fmt.Sprintf("task %s, agent %s, %s version %d (%s)", h.TaskID, h.AgentID, h.CredentialID, h.Version, h.State)
		}
		if n > 1 {
			whose += fmt.Sprintf(" or one of %d others", n-1)
		}
		if _, err := fmt.Fprintf(out, "%s  %s  → %s\n", at, plain(line.What), whose); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprintf(out, "%d of %d are of tasks here\n", ours, all)
	return out.Flush()
}

// answers remembers what was found for a name.
type answers struct {
	trace tracer
	known map[string]audit.Traced
}

// holder is who may have made the call, and of how many it could have been.
func (a *answers) holder(ctx context.Context, line upstreamlog.Line) (h audit.Held, n int, err error) {
	queries := make([]audit.TraceQuery, 0, len(line.Names)+1)
	for _, name := range line.Names {
		queries = append(queries, audit.TraceQuery{Name: name})
	}
	if line.Fingerprint != nil {
		queries = append(queries, audit.TraceQuery{Fingerprint: line.Fingerprint})
	}
	for _, q := range queries {
		t, err := a.ask(ctx, q, line.At)
		if err != nil {
			return h, 0, err
		}
		if len(t.Held) > 0 {
			return t.Held[0], len(t.Held), nil
		}
	}
	return h, 0, nil
}

// ask keeps names that one version bore; of one that many had, it matters when.
func (a *answers) ask(ctx context.Context, q audit.TraceQuery, at time.Time) (audit.Traced, error) {
	key := q.Name + "\x00" + hex.EncodeToString(q.Fingerprint)
	q.Limit = 2
	t, ok := a.known[key]
	if !ok {
		var err error
		if t, err = a.trace(ctx, q); err != nil {
			return t, err
		}
		for i := range t.Held {
			t.Held[i].Events = nil
		}
		if len(a.known) >= remembered {
			clear(a.known)
		}
		a.known[key] = t
	}
	if len(t.Held) < 2 || at.IsZero() {
		return t, nil
	}
	q.At, q.Limit = at, 10
	return a.trace(ctx, q)
}

// plain has nothing in it that a terminal would obey.
func plain(s string) string {
	q := fmt.Sprintf("%+q", s)
	return q[1 : len(q)-1]
}
