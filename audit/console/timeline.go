package console

import (
	"fmt"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Measures of the drawing, in its own units.
const (
	lineLeft, lineRight = 215, 960 // where time begins and ends
	rowHeight           = 26
	headHeight          = 30
	maxDrawn            = 40 // versions
	groupRunes          = 17 // that fit beside the label
)

// span is one version as it is drawn.
type span struct {
	Group   string // what stands once before all of it, such as the profile
	Key     string // of what belongs together: the credential
	Number  int
	State   string
	Verdict verdict
	From    time.Time
	To      time.Time     // when it ended, or will
	Open    bool          // it may still work, and nobody knows until when: To is not its end
	Planned time.Time     // when it would have ended by itself
	Overlap time.Duration // with the version before it
	Asked   time.Time     // when its end was asked for; zero: it was not
	Done    time.Time     // when it was revoked; zero: it was not
}

// timeline is versions drawn over time.
type timeline struct {
	Bars   []bar
	Ticks  []tick
	Now    float64 // x; 0: outside of what is drawn
	Used   float64 // x of the time that was asked about; 0: none
	Bottom int     // where the rows end
	Height int
	Hidden int // versions that are not drawn
}

// tick is a line with its time.
type tick struct {
	X    float64
	Text string
	End  bool // the text stands before the line
}

// bar is one version.
type bar struct {
	Group, Label, Title string
	Kind                string // of the verdict
	Y                   int
	X, Width            float64 // of its life
	RestX, Rest         float64 // of what it did not live to; 0: none
	OverlapX, Overlap   float64 // with the version before it
	Asked, Done         float64 // x of the marks; 0: none
	First               bool    // of its credential
}

// draw lays spans out, the last at the top; of a long list the first ones. used is the time that is asked about; zero: none.
func draw(list []span, now, used time.Time) timeline {
	t := timeline{Hidden: max(len(list)-maxDrawn, 0)}
	if list = list[:min(len(list), maxDrawn)]; len(list) == 0 {
		return t
	}
	from, to := reach(list, used)
	length := max(to.Sub(from), time.Second)
	if lead := now.Sub(to); lead > 0 && lead < length/3 {
		to, length = now, now.Sub(from)
	}
	x := func(at time.Time) float64 {
		return lineLeft + float64(min(max(at.Sub(from), 0), length))/float64(length)*(lineRight-lineLeft)
	}
	if !now.Before(from) && !now.After(to) {
		// To a third of a unit: a live page is drawn anew only when something moved visibly.
		t.Now = float64(int(x(now)*3)) / 3
	}
	for i := range list {
		s := list[len(list)-1-i]
		if s.Open {
			s.To = to
		}
		b := barOf(s, i, x)
		b.First = i == 0 || s.Key != list[len(list)-i].Key
		t.Bars = append(t.Bars, b)
	}
	t.Bottom = headHeight + rowHeight*len(list) + 2
	t.Height = t.Bottom + 8
	if !used.IsZero() {
		t.Used, t.Height = x(used), t.Bottom+18 // its name stands below
	}
	layout := "15:04:05"
	if length > 20*time.Hour {
		layout = "Jan 2 15:04"
	}
	for i := range 5 {
		at := from.Add(length * time.Duration(i) / 4)
		t.Ticks = append(t.Ticks, tick{x(at), at.UTC().Format(layout), i == 4})
	}
	return t
}

// reach is the time from the first to the last that is drawn.
func reach(list []span, used time.Time) (from, to time.Time) {
	from, to = list[0].From, list[0].Planned
	for _, s := range list {
		for _, at := range []time.Time{s.From, s.To, s.Planned, s.Done, used} {
			if at.IsZero() {
				continue
			}
			if at.Before(from) {
				from = at
			}
			if at.After(to) {
				to = at
			}
		}
	}
	return from, to
}

func barOf(s span, row int, x func(time.Time) float64) bar {
	begin, end := x(s.From), x(s.To)
	b := bar{
		Group: short(s.Group, groupRunes), Label: fmt.Sprintf("version %d", s.Number), Kind: s.Verdict.Kind, Y: headHeight + rowHeight*row,
		X: begin, Width: max(end-begin, 2),
		Title: fmt.Sprintf("%s, %s version %d, %s: %s", s.Group, s.Key, s.Number, s.State, s.Verdict),
	}
	if s.State == string(broker.StateFailed) {
		b.Width = 2
	} else if rest := x(s.Planned) - b.X - b.Width; rest > 1 {
		b.RestX, b.Rest = b.X+b.Width, rest
	}
	if s.Overlap > 0 {
		b.OverlapX, b.Overlap = begin, max(x(s.From.Add(s.Overlap))-begin, 2)
	}
	if !s.Asked.IsZero() {
		b.Asked = x(s.Asked)
	}
	if !s.Done.IsZero() {
		b.Done = x(s.Done)
	}
	return b
}

// short is at most n characters of a text.
func short(text string, n int) string {
	if runes := []rune(text); len(runes) > n {
		return string(runes[:n-1]) + "…"
	}
	return text
}

// Mid is the middle of the bar, for its text.
func (b bar) Mid() int { return b.Y + 16 }

// Mark is a small triangle that points down at the bar.
func (b bar) Mark() string {
	return fmt.Sprintf("%.1f,%d %.1f,%d %.1f,%d", b.Asked-4, b.Y, b.Asked+4, b.Y, b.Asked, b.Y+7)
}
