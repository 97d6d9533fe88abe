package console

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
)

// tracePace is how seldom a trace's page looks: each version that it found costs a search.
const tracePace = 5

// traced is what a name leads to.
type traced struct {
	Asked, At    string
	Held         []holder
	More         bool
	AtOtherTimes bool
	Line         timeline
	Verdict      mark   // over all events; Kind is empty if nothing is to be said
	Archived     string // the month before which events are in files; empty: none are
	Proven       bool   // there is a tree, which proves events
	Events       string // all events that bear the name as it was given; empty where there may be none
}

// holder is a version as the trace's page shows it.
type holder struct {
	audit.Held
	Verdict verdict
	EndAt   time.Time // when its end was asked for; zero: it was not
	Story   []entry
}

// trace leads from a name in an upstream's log, or from a secret's fingerprint, to who held it, when and why, and whether it
// is dead: what the API's trace answers.
func (c *console) trace(ctx context.Context, r *http.Request) (view, error) {
	name, err := field(r, "q")
	if err != nil {
		return view{}, err
	}
	at, used, err := momentOf(r, "at")
	if err != nil {
		return view{}, err
	}
	t := traced{Asked: name, At: at, Proven: c.Tree != nil}
	v := view{Title: "Trace", Template: "trace", Data: t, Asked: asked("trace", false, nil)}
	if name == "" {
		return v, nil
	}
	q, err := audit.TraceOf(name)
	if err != nil {
		return view{}, invalid("q", err.Error())
	}
	q.At = used
	filter := "upstream_id"
	if q.Fingerprint != nil {
		name, filter = audit.Fingerprint(q.Fingerprint), "fingerprint"
	}
	found, err := c.Record.Trace(ctx, q, c.Clock())
	if err != nil {
		return view{}, err
	}
	for _, h := range found.Held {
		story, err := readEntries(h.Events)
		if err != nil {
			return view{}, err
		}
		t.Held = append(t.Held, holder{Held: h, Verdict: worded(h.Life), Story: story})
		if filter == "fingerprint" || slices.Contains(h.UpstreamIDs, name) || h.VersionID == name {
			t.Events = "/console/events?" + url.Values{filter: {name}}.Encode()
		}
	}
	if err := c.proveStories(ctx, &t); err != nil {
		return view{}, err
	}
	var drawn []span
	for i := range t.Held {
		t.Held[i].EndAt = askedAt(t.Held[i].Story)
		drawn = append(drawn, t.Held[i].span())
	}
	t.More, t.AtOtherTimes, t.Archived = found.More, found.AtOtherTimes, found.ArchivedBefore
	t.Line = draw(drawn, c.Clock(), used)
	v.Data, v.Sheets = t, map[string]sheet{"trace": traceSheet(t.Held)}
	v.Asked = asked("trace", len(t.Held) > 0, map[string]string{filter: name, "at": at})
	if len(t.Held) > 0 {
		v.Pace = tracePace
	}
	return v, nil
}

// askedAt is when the end of a version was asked for first, by its events, oldest first. One that is forged or unchecked tells
// nothing.
func askedAt(story []entry) time.Time {
	for _, e := range story {
		if e.Type == string(broker.EventRevokeAsked) && e.Mark.Kind != "not-verified" && e.Mark.Kind != "unchecked" {
			return e.At
		}
	}
	return time.Time{}
}

// proveStories marks the events of a trace.
func (c *console) proveStories(ctx context.Context, t *traced) error {
	if c.Tree == nil {
		return nil
	}
	var all []*entry
	for i := range t.Held {
		all = append(all, pointers(t.Held[i].Story)...)
	}
	if err := c.prove(ctx, all, false); err != nil {
		return err
	}
	if said := sum(all); said.Kind == "not-verified" || len(all) > maxProofs {
		t.Verdict = said
	}
	return nil
}

// Until is when it ended, or will.
func (h holder) Until() time.Time {
	switch {
	case h.Life.Since != nil && h.Life.Since.Before(h.ExpiresAt):
		return *h.Life.Since
	case h.Life.Until != nil:
		return *h.Life.Until
	}
	return h.ExpiresAt
}

// endless tells whether it may still work, and nobody knows until when.
func endless(l audit.Life) bool { return l.Alive == "maybe" && l.Until == nil }

func (h holder) span() span {
	s := span{
		Group: h.TaskID, Key: h.CredentialID, Number: h.Version, State: h.State, Verdict: h.Verdict,
		From: h.IssuedAt, To: h.Until(), Open: endless(h.Life), Planned: h.ExpiresAt, Asked: h.EndAt,
	}
	if h.State == string(broker.StateRevoked) && h.Life.Since != nil {
		s.Done = *h.Life.Since
	}
	return s
}
