package upstreamlog

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"
)

// layouts are how times are written as text: RFC 3339 and ISO 8601 with and without colons, the basic form of CloudTrail's
// creationDate, and BigQuery's. One that names no zone is UTC.
var layouts = []string{
	time.RFC3339Nano, "2006-01-02T15:04:05.999999999Z0700", "2006-01-02T15:04:05.999999999", "20060102T150405Z0700",
	"2006-01-02 15:04:05.999999999 MST", "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999Z0700",
	"2006-01-02 15:04:05.999999999Z07", "2006-01-02 15:04:05.999999999", time.RFC1123, time.RFC1123Z,
}

// moment reads the first of the fields that is a time: a number, or a text of one, of seconds, milliseconds, microseconds
// or nanoseconds since 1970 by its size, with or without a fraction; a text in one of the layouts; or protobuf's seconds
// and nanos. Zero: none is. A field that is no time costs the time alone.
func (o object) moment(names ...string) time.Time {
	for _, name := range names {
		raw := o.raw(name)
		if raw == nil {
			continue
		}
		text := strings.TrimSpace(o.aside().text(name))
		if whole := o.aside().child(name); text == "" {
			text = whole.text("seconds")
		}
		if t := sinceEpoch(text); !t.IsZero() {
			return t
		}
		for _, layout := range layouts {
			if t, err := time.Parse(layout, text); err == nil && inRange(t) {
				return t.UTC()
			}
		}
	}
	return time.Time{}
}

// sinceEpoch goes by the size of a number: 1e11 s is the year 5138, and 1e11 ms is 1973.
func sinceEpoch(text string) (t time.Time) {
	var number json.Number
	if json.Unmarshal([]byte(text), &number) != nil {
		return t
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || !(f > 0 && f < 1e20) {
		return t
	}
	perSecond := int64(1)
	for f/float64(perSecond) >= 1e11 {
		perSecond *= 1000
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil { // a float has not all digits of nanoseconds
		t = time.Unix(n/perSecond, n%perSecond*(1e9/perSecond))
	} else if perSecond > 1e9 {
		return t
	} else {
		whole, rest := math.Modf(f / float64(perSecond))
		t = time.Unix(int64(whole), int64(math.Round(rest*1e6))*1000)
	}
	if !inRange(t) {
		return time.Time{}
	}
	return t.UTC()
}

// inRange is what the API takes as a time, and what is no default value such as 0001-01-01 or 1970-01-01.
func inRange(t time.Time) bool { return t.Unix() > 0 && t.UTC().Year() <= 9999 }
