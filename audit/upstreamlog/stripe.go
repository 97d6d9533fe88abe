package upstreamlog

import (
	"encoding/json"
	"io"
	"iter"
	"strings"
	"time"
)

type stripeLine struct {
	Created   json.RawMessage `json:"created"`
	CreatedAt json.RawMessage `json:"created_at"`
	Method    string          `json:"method"`
	Path      string          `json:"path"`
	URL       string          `json:"url"`
	RequestID string          `json:"request_id"`
	KeyID     string          `json:"key_id"`
	APIKeyID  string          `json:"api_key_id"`
	KeyName   string          `json:"key_name"`
	APIKey    json.RawMessage `json:"api_key"`
	Key       json.RawMessage `json:"key"`
}

// Stripe reads lines of Stripe's request log, one JSON object each. Stripe documents no form of an export: the key is
// looked for in key_id, api_key_id, key_name, and in api_key and key, which may be a text or an object with id and name.
// Names come last: keys of an account may share one.
func Stripe(r io.Reader) iter.Seq2[Line, error] {
	return decode(r, "Stripe's: one JSON object a line, with created, method, path and the key", func(s stripeLine) Line {
		path := s.Path
		if path == "" {
			path = s.URL
		}
		path, _, _ = strings.Cut(path, "?") // a query may hold anything
		l := Line{At: moment(s.Created, s.CreatedAt), What: strings.TrimSpace(s.Method + " " + path)}
		ids, called := []Name{{"key", s.KeyID}, {"key", s.APIKeyID}}, []Name{{"key's name", s.KeyName}}
		for _, raw := range []json.RawMessage{s.APIKey, s.Key} {
			var text string
			var object struct{ ID, Name string }
			if json.Unmarshal(raw, &text) == nil {
				ids = append(ids, Name{"key", text})
			} else if json.Unmarshal(raw, &object) == nil {
				ids, called = append(ids, Name{"key", object.ID}), append(called, Name{"key's name", object.Name})
			}
		}
		for _, n := range present(append(ids, called...)...) {
			if sum := Secret(n.Text); sum != nil {
				l.Fingerprint = sum
				continue
			}
			l.Names = append(l.Names, n)
		}
		return l
	})
}

// moment reads seconds since 1970 or an RFC 3339 time.
func moment(values ...json.RawMessage) time.Time {
	for _, v := range values {
		var seconds int64
		var t time.Time
		if json.Unmarshal(v, &seconds) == nil && seconds > 0 {
			return time.Unix(seconds, 0).UTC()
		}
		if json.Unmarshal(v, &t) == nil && !t.IsZero() {
			return t
		}
	}
	return time.Time{}
}
