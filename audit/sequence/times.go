package sequence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/taskpass/taskpass/audit/tree"
)

// times checks the time ranges that the database keeps for runs of events (event_stretches) while the record is walked
// through. A search by time passes over the runs that these ranges rule out, so a range that was altered hides events.
type times struct {
	l      *Log
	ctx    context.Context
	levels []*ranges
	after  position    // up to where events were seen
	leaves int64       // number of the leaf after the last that was seen
	found  tree.Report // its faults
}

// ranges are the rows of one level, in order. They follow each other without a gap, except where a month was archived.
type ranges struct {
	level int
	page  []timeRange // read, and not passed yet
	read  position    // start of the last row that was read
	start position    // of the last row, when the check began
	limit position    // end of that row

	timeRange            // the row under way
	before     position  // where the row before it ends
	low, high  time.Time // of the events seen in it
	last       position  // the last of them
	from, to   int64     // their leaves
	unfinished bool      // it is not checked yet
}

// timeRange is one row: the events after a position, up to another one and including that, and their times.
type timeRange struct {
	after, end       position
	earliest, latest time.Time
}

// timed is one event, or the leaf of one that was archived.
type timed struct {
	position
	at      time.Time
	leaf    int64 // -1: none
	present bool  // the event itself is there
}

func (l *Log) newTimes(ctx context.Context) (*times, error) {
	t := &times{l: l, ctx: ctx, after: firstPosition}
	for level := range 2 {
		r := &ranges{level: level, read: firstPosition, before: firstPosition}
		err := firstInOrder(ctx, l.pool, []any{&r.start.xid, &r.start.seq, &r.limit.xid, &r.limit.seq},
			"SELECT after_xid, after_seq, xid, seq FROM event_stretches WHERE level = $1 ORDER BY after_xid DESC, after_seq DESC LIMIT 1", level)
		if errors.Is(err, pgx.ErrNoRows) {
			t.bad(0, 0, "no time ranges of level %d are stored: searches by time find nothing", level)
			continue
		}
		if err != nil {
			return nil, err
		}
		t.levels = append(t.levels, r)
	}
	return t, nil
}

func (t *times) bad(from, to int64, format string, args ...any) {
	t.found.Join(tree.Fault{What: tree.BadTimes, Index: from, To: to, Detail: fmt.Sprintf(format, args...)})
}

// window takes the events of a part of the record, and its leaves: those of archived events still have their times.
func (t *times) window(leaves []storedLeaf, events []storedEvent, after, end position) error {
	if t == nil {
		return nil
	}
	leaf, list := make(map[position]int64, len(leaves)), make([]timed, 0, len(events))
	for i := range leaves {
		leaf[leaves[i].position] = leaves[i].idx
	}
	there := make(map[position]bool, len(events))
	for i := range events {
		idx, known := leaf[events[i].position]
		if !known {
			idx = -1
		}
		there[events[i].position] = true
		list = append(list, timed{events[i].position, events[i].At, idx, true})
	}
	for i := range leaves {
		if l := &leaves[i]; !there[l.position] && l.compare(after) > 0 && l.compare(end) <= 0 {
			list = append(list, timed{l.position, l.at, l.idx, false})
		}
	}
	slices.SortStableFunc(list, func(a, b timed) int { return a.compare(b.position) })
	return t.take(list)
}

// take takes events in order. Those that were taken before are passed over.
func (t *times) take(list []timed) error {
	for _, e := range list {
		if e.compare(t.after) <= 0 {
			continue
		}
		t.after, t.leaves = e.position, max(t.leaves, e.leaf+1)
		for _, r := range t.levels {
			if err := t.place(r, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// place finds the row that an event belongs to.
func (t *times) place(r *ranges, e timed) error {
	for !r.unfinished || r.end.compare(e.position) < 0 {
		if more, err := t.next(r); err != nil || !more {
			return err // what comes after the last row is searched event by event
		}
	}
	if e.compare(r.timeRange.after) <= 0 {
		if there, err := t.present(e); err != nil || !there {
			return err
		}
		t.bad(max(e.leaf, t.leaves-1, 0), 0, "no time range of level %d covers the event at (%d, %d): searches by time may miss it", r.level, e.xid, e.seq)
		return nil
	}
	if r.last == firstPosition {
		r.low, r.high, r.from = e.at, e.at, max(e.leaf, t.leaves-1, 0)
	}
	if e.at.Before(r.low) {
		r.low = e.at
	}
	if e.at.After(r.high) {
		r.high = e.at
	}
	r.last, r.to = e.position, max(t.leaves, r.from+1)
	return nil
}

// present tells whether an event is on the record. The rows of a month leave with it, and it may just have been archived.
func (t *times) present(e timed) (there bool, err error) {
	if !e.present || t.found.More > 0 { // enough was said to need no second look
		return e.present, nil
	}
	err = t.l.pool.QueryRow(t.ctx, "SELECT EXISTS (SELECT FROM events WHERE xid = $1 AND seq = $2)", e.xid, e.seq).Scan(&there)
	return there, err
}

// next finishes the row under way and begins the next one, if there is one.
func (t *times) next(r *ranges) (more bool, err error) {
	t.check(r)
	if len(r.page) == 0 && r.read.compare(r.start) < 0 {
		if err := t.readPage(r); err != nil {
			return false, err
		}
	}
	if len(r.page) == 0 {
		return false, nil
	}
	r.timeRange, r.page = r.page[0], r.page[1:]
	r.last, r.from, r.to, r.unfinished = firstPosition, t.leaves, t.leaves+1, true
	return true, nil
}

// noEvents is the row that each level begins with. It makes no event hidden.
var noEvents = timeRange{position{0, -1}, position{0, 0}, farFuture, farPast}

// check compares a row with its events.
func (t *times) check(r *ranges) {
	if !r.unfinished {
		return
	}
	first := r.before == firstPosition
	switch {
	case first && r.timeRange == noEvents:
	case first:
		t.bad(r.from, r.to, "the first time range of level %d is missing", r.level)
	case r.timeRange.after.compare(r.before) < 0 || r.end.compare(r.timeRange.after) <= 0:
		t.bad(r.from, r.to, "a time range of level %d, from (%d, %d) on, does not follow the one before it", r.level, r.timeRange.after.xid, r.timeRange.after.seq)
	case r.last != r.end:
		t.bad(r.from, r.to, "a time range of level %d ends at (%d, %d), where no event is", r.level, r.end.xid, r.end.seq)
	case !r.earliest.Equal(r.low) || !r.latest.Equal(r.high):
		effect := "searches by time miss some of them"
		if !r.earliest.After(r.low) && !r.latest.Before(r.high) {
			effect = "it is wider than they are"
		}
		t.bad(r.from, r.to, "their time range of level %d is stored as %s to %s, and they are of %s to %s: %s", r.level,
			instant(r.earliest), instant(r.latest), instant(r.low), instant(r.high), effect)
	}
	r.before, r.unfinished = r.end, false
}

// finish takes what the walk did not reach, for times are noted whether or not a tree is kept, and checks the last rows.
func (t *times) finish() error {
	var limit position
	for _, r := range t.levels {
		if r.limit.compare(limit) > 0 {
			limit = r.limit
		}
	}
	for {
		list, err := collectInOrder(t.ctx, t.l.pool, func(row pgx.CollectableRow) (e timed, err error) {
			e.leaf, e.present = -1, true
			return e, row.Scan(&e.xid, &e.seq, &e.at)
		}, "SELECT xid, seq, "+finiteAt+" FROM events WHERE (xid, seq) > ($1, $2) AND (xid, seq) <= ($3, $4) ORDER BY xid, seq LIMIT $5",
			t.after.xid, t.after.seq, limit.xid, limit.seq, batch)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			break
		}
		if err := t.take(list); err != nil {
			return err
		}
	}
	for _, r := range t.levels {
		for more := true; more; {
			var err error
			if more, err = t.next(r); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *times) readPage(r *ranges) (err error) {
	r.page, err = collectInOrder(t.ctx, t.l.pool, func(row pgx.CollectableRow) (n timeRange, err error) {
		var earliest, latest pgtype.Timestamptz
		err = row.Scan(&n.after.xid, &n.after.seq, &n.end.xid, &n.end.seq, &earliest, &latest)
		n.earliest, n.latest = moment(earliest), moment(latest)
		return n, err
	}, `SELECT after_xid, after_seq, xid, seq, earliest, latest FROM event_stretches
		WHERE level = $1 AND (after_xid, after_seq) > ($2, $3) AND (after_xid, after_seq) <= ($4, $5)
		ORDER BY level, after_xid, after_seq LIMIT $6`, r.level, r.read.xid, r.read.seq, r.start.xid, r.start.seq, batch)
	if len(r.page) > 0 {
		r.read = r.page[len(r.page)-1].after
	} else {
		r.read = r.start // rows of months that are being archived
	}
	return err
}

// farPast and farFuture stand for PostgreSQL's infinities. No event has them.
var farPast, farFuture = time.Unix(-1<<50, 0).UTC(), time.Unix(1<<50, 0).UTC()

func moment(at pgtype.Timestamptz) time.Time {
	switch at.InfinityModifier {
	case pgtype.Infinity:
		return farFuture
	case pgtype.NegativeInfinity:
		return farPast
	default:
		return at.Time.UTC()
	}
}

func instant(at time.Time) string {
	switch {
	case at.Equal(farPast):
		return "-infinity"
	case at.Equal(farFuture):
		return "infinity"
	}
	return at.UTC().Format(time.RFC3339Nano)
}
