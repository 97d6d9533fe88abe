package upstreamlog

import (
	"crypto/sha256"
	"encoding/json"
	"io"
	"iter"
	"regexp"
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

// whole is a Stripe key in full; the log shows only the ends of one.
var whole = regexp.MustCompile(`^[a-z]{2,3}_(live|test)_[A-Za-z0-9]{16,}$`)

// Stripe reads lines of Stripe's request log, one JSON object each. Stripe documents no form of an export: the key is
// looked for in key_id, api_key_id, key_name, and in api_key and key, which may be a text or an object with id and name.
func Stripe(r io.Reader) iter.Seq2[Line, error] {
	return decode(r, func(s stripeLine) Line {
		path := s.Path
		if path == "" {
			path = s.URL
		}
		path, _, _ = strings.Cut(path, "?") // a query may hold anything
		l := Line{At: moment(s.Created, s.CreatedAt), What: strings.TrimSpace(s.Method + " " + path)}
		names := []string{s.KeyID, s.APIKeyID, s.KeyName}
		for _, raw := range []json.RawMessage{s.APIKey, s.Key} {
			var text string
			var object struct{ ID, Name string }
			if json.Unmarshal(raw, &text) == nil {
				names = append(names, text)
			} else if json.Unmarshal(raw, &object) == nil {
				names = append(names, object.ID, object.Name)
			}
		}
		for _, n := range present(names...) {
			if whole.MatchString(n) {
				sum := sha256.Sum256([]byte(n))
				l.Fingerprint = sum[:]
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
