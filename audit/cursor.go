package audit

import (
	"encoding/base64"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/taskpass/taskpass/broker"
)

// position is a place in the record's order: its transaction's id, and the event's number. A cursor is one, written down.
type position struct {
	xid uint64
	seq int64
}

// begin is before every event and end after every event.
var begin, end = position{0, math.MinInt64}, position{math.MaxUint64, math.MaxInt64}

func (p position) less(o position) bool { return p.xid < o.xid || p.xid == o.xid && p.seq < o.seq }

func (p position) cursor() string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d.%d", p.xid, p.seq))
}

func parseCursor(s string) (p position, err error) {
	text, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		left, right, _ := strings.Cut(string(text), ".")
		var e2 error
		p.xid, err = strconv.ParseUint(left, 10, 64)
		if p.seq, e2 = strconv.ParseInt(right, 10, 64); err == nil {
			err = e2
		}
	}
	if err != nil {
		return p, &broker.Error{Code: broker.CodeInvalidRequest, Message: "the request is not valid",
			Faults: []broker.Fault{{Pointer: "/query/cursor", Reason: "is not a cursor that this API gave"}}}
	}
	return p, nil
}

// span is a part of the record's order: what stands between two places.
type span struct{ after, before position }

// ahead leaves of spans, which are given oldest first, what the cursor has not passed, in the order of the reading.
func (q Query) ahead(list []span) ([]span, error) {
	if !q.OldestFirst {
		slices.Reverse(list)
	}
	if q.Cursor != "" {
		passed, err := parseCursor(q.Cursor)
		if err != nil {
			return nil, err
		}
		for i, s := range list {
			if q.OldestFirst && s.after.less(passed) {
				list[i].after = passed
			} else if !q.OldestFirst && passed.less(s.before) {
				list[i].before = passed
			}
		}
		list = slices.DeleteFunc(list, func(s span) bool { return !s.after.less(s.before) })
	}
	if many := len(list); many > maxSpans {
		joined, far := &list[maxSpans-1], list[many-1]
		if list = list[:maxSpans]; q.OldestFirst {
			joined.before = far.before
		} else {
			joined.after = far.after
		}
	}
	return list, nil
}
