package console

import (
	"fmt"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Measures of the drawing, in its own units.
const (
	lineLeft, lineRight = 190, 960 // where time begins and ends
	rowHeight           = 26
	headHeight          = 30
	maxDrawn            = 40 // versions
)

// timeline is versions drawn over time.
type timeline struct {
	Bars   []bar
	Ticks  []tick
	Now    float64 // x; 0: outside of what is drawn
	NowAt  time.Time
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
	Label, Title        string
	Kind                string // of the verdict
	Y                   int
	X, Width            float64 // of its life
	RestX, Rest         float64 // of what it did not live to; 0: none
	OverlapX, Overlap   float64 // with the version before it
	Asked, Done         float64 // x of the marks; 0: none
	First               bool    // of its credential
	Credential, Profile string
}

// draw lays versions out, the oldest at the top; of a long history the newest.
func draw(list []version, now time.Time) timeline {
	t := timeline{Hidden: max(len(list)-maxDrawn, 0)}
	if list = list[:min(len(list), maxDrawn)]; len(list) == 0 {
		return t
	}
	from, to := list[0].Version.IssuedAt, list[0].Version.ExpiresAt
	for _, v := range list {
		for _, at := range []time.Time{v.Version.IssuedAt, v.Version.ExpiresAt, v.Until(), v.Version.EndedAt} {
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
	span := max(to.Sub(from), time.Second)
	if lead := now.Sub(to); lead > 0 && lead < span/3 {
		to, span = now, now.Sub(from)
	}
	x := func(at time.Time) float64 {
		return lineLeft + float64(min(max(at.Sub(from), 0), span))/float64(span)*(lineRight-lineLeft)
	}
	if !now.Before(from) && !now.After(to) {
		// To a third of a unit: a live page is drawn anew only when something moved visibly.
		t.Now, t.NowAt = float64(int(x(now)*3))/3, now
	}
	for i := range list {
		t.Bars = append(t.Bars, barOf(list[len(list)-1-i], i, x))
	}
	for i := range t.Bars {
		t.Bars[i].First = i == 0 || t.Bars[i].Credential != t.Bars[i-1].Credential
	}
	t.Height = headHeight + rowHeight*len(list) + 10
	layout := "15:04:05"
	if span > 20*time.Hour {
		layout = "Jan 2 15:04"
	}
	for i := range 5 {
		at := from.Add(span * time.Duration(i) / 4)
		t.Ticks = append(t.Ticks, tick{x(at), at.UTC().Format(layout), i == 4})
	}
	return t
}

func barOf(v version, row int, x func(time.Time) float64) bar {
	begin, end := x(v.Version.IssuedAt), x(v.Until())
	b := bar{
		Label: fmt.Sprintf("version %d", v.Version.Number), Kind: v.Verdict.Kind, Y: headHeight + rowHeight*row,
		X: begin, Width: max(end-begin, 2), Credential: string(v.ID), Profile: v.Profile,
		Title: fmt.Sprintf("%s, version %d, %s. %s", v.Profile, v.Version.Number, v.Version.State, v.Verdict.Words),
	}
	if v.Version.State == broker.StateFailed {
		b.Width = 2
	}
	if rest := x(v.Version.ExpiresAt) - b.X - b.Width; rest > 1 && v.Version.State != broker.StateFailed {
		b.RestX, b.Rest = b.X+b.Width, rest
	}
	if v.Overlaps > 0 {
		b.OverlapX, b.Overlap = begin, max(x(v.Version.IssuedAt.Add(v.Overlaps))-begin, 2)
	}
	if !v.Asked.IsZero() {
		b.Asked = x(v.Asked)
	}
	if v.Version.State == broker.StateRevoked {
		b.Done = x(v.Version.EndedAt)
	}
	return b
}

// Rows is where the rows end.
func (t timeline) Rows() int { return t.Height - 8 }

// Mid is the middle of the bar, for its text.
func (b bar) Mid() int { return b.Y + 16 }

// Mark is a small triangle that points down at the bar.
func (b bar) Mark() string {
	return fmt.Sprintf("%.1f,%d %.1f,%d %.1f,%d", b.Asked-4, b.Y, b.Asked+4, b.Y, b.Asked, b.Y+7)
}
