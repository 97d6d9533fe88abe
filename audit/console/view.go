package console

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"maps"
	"net/http"
	"path"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
)

// view is a page before it is drawn.
type view struct {
	Title    string
	Template string            // also of its live part: NAME-live
	Asked    map[string]string // what the record says was read
	Pace     int               // of a live page: how many looks it lets pass for one of its own; 0: it is not live
	Data     any

	Live   string // where its changes come from
	Caller broker.Caller
	Nonce  string
	Path   string
}

// build reads what a page shows. It runs again for each look of a live page.
type build func(ctx context.Context, r *http.Request) (view, error)

// page shows what was built, or follows it live. What is read is on the record first, or is not shown.
func (c *console) page(b build) func(http.ResponseWriter, *http.Request, *session) {
	return func(w http.ResponseWriter, r *http.Request, s *session) {
		v, err := b(r.Context(), r)
		if err == nil {
			err = c.Recorder.AuditRead(r.Context(), s.caller, v.Asked)
		}
		switch {
		case err != nil:
			c.fail(w, r, s, err)
		case live(r) && v.Pace > 0:
			c.follow(w, r, v, b)
		case live(r):
			c.fail(w, r, s, broker.Errorf(broker.CodeNotFound, "this page does not change by itself"))
		default:
			if sn, ok := v.Data.(interface{ remember() (checkpointSeen, bool) }); ok {
				if newest, good := sn.remember(); good {
					err = c.setCookie(w, r, "seen", sealSeen, newest, seenLife)
				}
			}
			if err != nil {
				c.fail(w, r, s, err)
				return
			}
			c.render(w, r, s, http.StatusOK, v)
		}
	}
}

func (c *console) render(w http.ResponseWriter, r *http.Request, s *session, status int, v view) {
	v.Path = r.URL.Path
	if s != nil {
		v.Caller, v.Nonce = s.caller, s.Nonce
	}
	if v.Pace > 0 {
		q := r.URL.Query()
		q.Set("live", "1")
		v.Live = r.URL.Path + "?" + q.Encode()
	}
	var buf bytes.Buffer
	if err := c.pages.ExecuteTemplate(&buf, "page", v); err != nil {
		c.Logger.ErrorContext(r.Context(), "console: a page cannot be drawn", "page", v.Template, "error", err)
		http.Error(w, "the page cannot be drawn", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(buf.Bytes())
}

// fail shows an error in the words that are meant for callers; the cause is for the log.
func (c *console) fail(w http.ResponseWriter, r *http.Request, s *session, err error) {
	e := broker.AsError(err)
	if e.Code.Status() >= http.StatusInternalServerError && r.Context().Err() == nil {
		c.Logger.ErrorContext(r.Context(), "console", "code", e.Code, "error", err, "cause", e.Err)
	}
	c.render(w, r, s, e.Code.Status(), view{Title: "Not shown", Template: "fault", Data: e})
}

// live tells whether the changes of a page are asked for, and not the page.
func live(r *http.Request) bool { return r.URL.Query().Get("live") == "1" }

const maxField = 512 // of a filter, in bytes

// field is a parameter of the query. One that nothing can match is invalid_request.
func field(r *http.Request, name string) (string, error) {
	v := strings.TrimSpace(r.URL.Query().Get(name))
	if len(v) > maxField || !utf8.ValidString(v) || strings.ContainsFunc(v, unicode.IsControl) {
		return "", invalid(name, "is not at most 512 bytes of text without control characters")
	}
	if broker.IsToken(v) {
		return "", invalid(name, "looks like a token. Tokens are not looked up: to find who holds one, look for its fingerprint, or for the id that it was made with. Treat this one as leaked, for it stands in this browser's history")
	}
	return v, nil
}

func invalid(name, reason string) *broker.Error {
	return &broker.Error{Code: broker.CodeInvalidRequest, Message: "the request is not valid",
		Faults: []broker.Fault{{Pointer: "/query/" + name, Reason: reason}}}
}

// asked is what a page was asked for, as the record keeps it. A value that matched nothing may be a secret that somebody
// found and looks for: its hash is kept.
func asked(page string, known bool, fields map[string]string) map[string]string {
	m := maps.Clone(fields)
	if m == nil {
		m = map[string]string{}
	}
	for k, v := range m {
		if v != "" && !known {
			m[k] = audit.Hashed(v)
		}
	}
	m["console"] = page
	maps.DeleteFunc(m, func(_, v string) bool { return v == "" })
	return m
}

// asset is a file of ours, under a name that changes with it.
type asset struct {
	kind string
	body []byte
	sum  string
}

func readAssets() (map[string]asset, error) {
	kinds := map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
	list := map[string]asset{}
	entries, err := fs.ReadDir(static, "static")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		body, err := fs.ReadFile(static, "static/"+e.Name())
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(body)
		list[e.Name()] = asset{kinds[path.Ext(e.Name())], body, hex.EncodeToString(sum[:6])}
	}
	return list, nil
}

func (c *console) serveAsset(w http.ResponseWriter, r *http.Request) {
	a, ok := c.assets[r.PathValue("name")]
	if !ok {
		c.fail(w, r, nil, broker.Errorf(broker.CodeNotFound, "there is no such file"))
		return
	}
	w.Header().Set("Content-Type", a.kind)
	if r.URL.RawQuery == a.sum {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	_, _ = w.Write(a.body)
}

// words are what the templates can say.
func (c *console) words() map[string]any {
	return map[string]any{
		"asset":  func(name string) string { return "/console/static/" + name + "?" + c.assets[name].sum },
		"stamp":  stamp,
		"iso":    func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) },
		"join":   func(list []string) string { return strings.Join(list, ", ") },
		"split":  func(key string) []string { caller, rest, _ := strings.Cut(key, "/"); return []string{caller, rest} },
		"lapse":  lapse,
		"states": broker.States,
		"list":   func(items ...any) []any { return items },
	}
}

// stamp is a time as the pages show it: UTC, to the second.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05")
}

// lapse is a duration in few words.
func lapse(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < time.Hour:
		return strings.TrimSuffix(d.Round(time.Second).String(), "0s")
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}
