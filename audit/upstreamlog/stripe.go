package upstreamlog

import (
	"io"
	"iter"
	"strings"
)

var requestLog = vendor{
	form:  "Stripe's: one JSON object a line, with created, method, path and the key",
	lists: []string{"data"},
	own:   []string{"method", "path", "url"},
	outer: [][]string{{"data"}},
	line:  requestLine,
	other: func(o object) (why string, known bool) {
		return "a Stripe event does not say which key made the request", o.text("object") == "event"
	},
}

// Stripe reads lines of Stripe's request log, one JSON object each. Stripe documents no form of an export: the key is
// looked for in key_id, api_key_id, key_name, and in api_key and key, which may be a text or an object with id and name.
// Names come last: keys of an account may share one.
func Stripe(r io.Reader) iter.Seq2[Line, error] { return requestLog.lines(r) }

func requestLine(o object) (l Line) {
	call := o.aside()
	path := call.text("path")
	if path == "" {
		path = call.text("url")
	}
	path, _, _ = strings.Cut(path, "?") // a query may hold anything
	l = Line{At: call.moment("created", "created_at"), What: what(call.text("method"), path)}
	ids, called := []Name{{"key", o.text("key_id")}, {"key", o.text("api_key_id")}}, []Name{{"key's name", o.text("key_name")}}
	for _, field := range []string{"api_key", "key"} {
		if raw := o.raw(field); kind(raw) == "an object" {
			key := o.child(field)
			ids, called = append(ids, Name{"key", key.text("id")}), append(called, Name{"key's name", key.text("name")})
		} else {
			ids = append(ids, Name{"key", o.text(field)})
		}
	}
	for _, n := range append(ids, called...) {
		if sum := Secret(n.Text); sum != nil {
			l.Fingerprint = sum
		}
	}
	l.Names = present(append(ids, called...)...)
	return l
}
