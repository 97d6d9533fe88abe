package console

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
)

// window is how far back refusals are shown, and in which steps.
type window struct {
	Name, Title string
	Width       time.Duration
	Steps       int
	Layout      string
}

var windows = []window{
	{"hour", "last hour", 2 * time.Minute, 30, "15:04"},
	{"day", "last 24 hours", time.Hour, 24, "15:04"},
	{"week", "last 7 days", 6 * time.Hour, 28, "Jan 2 15:04"},
	{"month", "last 30 days", 24 * time.Hour, 30, "Jan 2"},
}

const maxCounts = 12 // rows of each small table

// alive is what may be alive now, by one thing.
type alive struct {
	Title, By string
	Counts    []broker.Count
	More      bool // only the largest counts are shown
}

// summary is the first page.
type summary struct {
	Alive      []alive
	Pools      []broker.Count
	Troubled   []broker.Count
	Stuck      []version
	MoreStuck  bool // only the newest are shown
	Windows    []window
	Window     string
	Chart      chart
	Signed     bool // there is a tree
	Checkpoint tree.Checkpoint
	LagEvents  int64
	Lag        time.Duration
	Refused    string
}

// overview shows what is alive, what is in trouble, and what was refused.
func (c *console) overview(ctx context.Context, r *http.Request) (view, error) {
	name, err := field(r, "window")
	if err != nil {
		return view{}, err
	}
	s := summary{Windows: windows, Window: "day", Refused: c.Refused(), Signed: c.Tree != nil}
	span := windows[1]
	for _, w := range windows {
		if w.Name == name {
			s.Window, span = name, w
		}
	}
	for _, by := range []string{"provider", "profile", "agent"} {
		counts, err := c.Counts.LiveBy(ctx, by, maxCounts+1)
		if err != nil {
			return view{}, err
		}
		s.Alive = append(s.Alive, alive{"by " + by, by, counts[:min(len(counts), maxCounts)], len(counts) > maxCounts})
	}
	if s.Pools, err = c.Counts.Slots(ctx); err != nil {
		return view{}, err
	}
	if s.Troubled, err = c.Counts.Troubled(ctx); err != nil {
		return view{}, err
	}
	stuck, err := c.Ledger.Credentials(ctx, broker.Filter{State: broker.StateStuck, Limit: maxCounts + 1})
	if err != nil {
		return view{}, err
	}
	if s.MoreStuck = len(stuck) > maxCounts; s.MoreStuck {
		stuck = stuck[:maxCounts]
	}
	now := c.Clock()
	for _, cr := range stuck {
		s.Stuck = append(s.Stuck, versionOf(cr, now))
	}
	if s.Chart, err = c.refusals(ctx, span, now); err != nil {
		return view{}, err
	}
	if c.Tree != nil {
		if s.Checkpoint, s.LagEvents, s.Lag, err = c.newest(ctx); err != nil {
			return view{}, err
		}
	}
	return view{Title: "Overview", Template: "overview", Data: s, Pace: 5, Sheets: s.sheets(), Asked: asked("overview", true, nil)}, nil
}

// sheets are the overview's lists.
func (s summary) sheets() map[string]sheet {
	list := map[string]sheet{
		"revocations": countSheet(s.Troubled, "provider", "state", "versions"),
		"stuck":       credentialSheet(s.Stuck),
		"pools":       countSheet(s.Pools, "pool", "state", "keys"),
		"refusals":    s.Chart.sheet,
	}
	for _, a := range s.Alive {
		list["alive-by-"+a.By] = countSheet(a.Counts, a.By, "alive")
	}
	return list
}

// chart is refusals over time, as bars.
type chart struct {
	Title    string
	Steps    []audit.Refused // what the columns are drawn from
	Columns  []column
	Codes    []broker.Count // how many of each code, over the whole time
	Total    int64
	Most     int64
	Complete bool
	Bound    int // how many are counted at most
}

// column is one step of time.
type column struct {
	X, Y, Width, Height float64
	From                time.Time
	Label               string // of every few
	N                   int64
}

func (ch chart) sheet() [][]string {
	rows := [][]string{{"from", "code", "refusals"}}
	for _, r := range ch.Steps {
		rows = append(rows, []string{audit.Stamp(r.From), string(r.Code), strconv.FormatInt(r.N, 10)})
	}
	return rows
}

// Measures of the chart, in its own units.
const (
	chartWidth, chartHeight = 960.0, 140.0
)

func (c *console) refusals(ctx context.Context, w window, now time.Time) (chart, error) {
	since := now.UTC().Truncate(w.Width).Add(-time.Duration(w.Steps-1) * w.Width)
	list, complete, err := c.Record.Refusals(ctx, since, w.Width)
	if err != nil {
		return chart{}, err
	}
	ch := chart{Title: w.Title, Steps: list, Complete: complete, Bound: audit.MaxRefusals, Columns: make([]column, w.Steps)}
	codes := map[broker.Code]int64{}
	for _, r := range list {
		if i := int(r.From.Sub(since) / w.Width); i >= 0 && i < w.Steps {
			ch.Columns[i].N += r.N
			ch.Most = max(ch.Most, ch.Columns[i].N)
		}
		codes[r.Code] += r.N
		ch.Total += r.N
	}
	for _, code := range broker.Codes() {
		if codes[code] > 0 {
			ch.Codes = append(ch.Codes, broker.Count{Of: string(code), N: codes[code]})
		}
	}
	ch.Total = min(ch.Total, audit.MaxRefusals)
	step := chartWidth / float64(w.Steps)
	for i := range ch.Columns {
		col := &ch.Columns[i]
		col.From = since.Add(time.Duration(i) * w.Width)
		col.X, col.Width = float64(i)*step+1, step-2
		if col.N > 0 {
			col.Height = max(float64(col.N)/float64(ch.Most)*(chartHeight-20), 3)
		}
		col.Y = chartHeight - col.Height
		if i%(w.Steps/4) == 0 {
			col.Label = col.From.Format(w.Layout)
		}
	}
	return ch, nil
}
