package console

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"maps"
	"math"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
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
	Next     build             // makes the next look of a live page; nil: what made this one
	Seen     *checkpointSeen   // what the browser is to remember; nil: it keeps what it has
	Sheets   map[string]sheet  // its lists, as CSV
	Status   int               // of the answer; 0: 200
	Data     any

	URL    *url.URL
	Caller broker.Caller
	Nonce  string
}

// Live is where the page's changes come from; empty: it does not change by itself.
func (v view) Live() string {
	if v.Pace == 0 {
		return ""
	}
	return linkTo(v.URL, "live", "1")
}

// CSV is where a list of the page is had as CSV.
func (v view) CSV(name string) string { return linkTo(v.URL, "csv", name) }

// linkTo is a page in another form: live, as CSV, or with proofs.
func linkTo(page *url.URL, form, value string) string {
	q := page.Query()
	for _, other := range []string{"live", "csv", "verify"} {
		q.Del(other)
	}
	q.Set(form, value)
	return page.Path + "?" + q.Encode()
}

// build reads what a page shows. It runs again for each look of a live page.
type build func(ctx context.Context, r *http.Request) (view, error)

// page shows what was built, follows it live, or gives one of its lists as CSV. What is read is on the record first, or is
// not shown.
func (c *console) page(b build) func(http.ResponseWriter, *http.Request, *session) {
	return func(w http.ResponseWriter, r *http.Request, s *session) {
		limiter := c.Limits.Searches
		if live(r) {
			limiter = c.Limits.LivePages
		}
		release, err := limiter.Acquire(s.caller)
		if err != nil {
			c.fail(w, r, s, err)
			return
		}
		defer release()
		v, err := c.look(r, b)
		list := r.URL.Query().Get("csv")
		if err == nil && list != "" {
			if v.Sheets[list] == nil {
				err = broker.Errorf(broker.CodeNotFound, "this page has no such list")
			} else {
				v.Asked["csv"] = list
			}
		}
		if err == nil {
			err = c.Recorder.AuditRead(r.Context(), s.caller, v.Asked)
		}
		if err == nil && list == "" && v.Seen != nil {
			err = c.setCookie(w, r, "seen", sealSeen, v.Seen, seenLife)
		}
		switch {
		case err != nil:
			c.fail(w, r, s, err)
		case list != "":
			writeCSV(w, list, v.Sheets[list]())
		case live(r) && v.Pace > 0:
			c.follow(w, r, v, b)
		case live(r):
			c.fail(w, r, s, broker.Errorf(broker.CodeNotFound, "this page does not change by itself"))
		default:
			c.render(w, r, s, cmp.Or(v.Status, http.StatusOK), v)
		}
	}
}

// lookLimit is the longest that a page may read, its waiting for a connection included.
const lookLimit = 20 * time.Second

// look makes a page once.
func (c *console) look(r *http.Request, b build) (view, error) {
	if name, leaked := bearsToken(r); leaked {
		return view{}, invalid(name, "looks like a token. Tokens are not looked up: to find who holds one, look for its fingerprint, or for the id "+
			"that it was made with. Treat this one as leaked, for it stands in this browser's history")
	}
	if err := onlyKnown(r); err != nil {
		return view{}, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), lookLimit)
	defer cancel()
	v, err := b(ctx, r)
	v.URL = r.URL
	return v, err
}

func (c *console) render(w http.ResponseWriter, r *http.Request, s *session, status int, v view) {
	v.URL = r.URL
	if s != nil {
		v.Caller, v.Nonce = s.caller, s.Nonce
	}
	html, err := c.drawn("page", v)
	if err != nil {
		c.Logger.ErrorContext(r.Context(), "console: a page cannot be drawn", "page", v.Template, "error", err)
		http.Error(w, "the page cannot be drawn", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(html) //nolint:gosec // html/template has escaped it, and what is written out is no markup
}

// drawn is a template with what it says. Characters that nobody sees, or that turn around the text beside them, are written
// out: otherwise a caller's words could look like ours.
func (c *console) drawn(template string, v view) ([]byte, error) {
	var buf bytes.Buffer
	err := c.pages.ExecuteTemplate(&buf, template, v)
	return []byte(audit.Visible(buf.String())), err
}

// statusHungUp shows in the log that the client went away before it was answered; nobody receives it.
const statusHungUp = 499

// fail shows an error in the words that are meant for callers; the cause is for the log.
func (c *console) fail(w http.ResponseWriter, r *http.Request, s *session, err error) {
	if r.Context().Err() != nil {
		w.WriteHeader(statusHungUp)
		return
	}
	e := broker.AsError(err)
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
	if e.Code.Status() >= http.StatusInternalServerError {
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
	return v, nil
}

func invalid(name, reason string) *broker.Error {
	return &broker.Error{Code: broker.CodeInvalidRequest, Message: "the request is not valid",
		Faults: []broker.Fault{{Pointer: "/query/" + name, Reason: reason}}}
}

// asked is what a page was asked for, as the record keeps it. A value that matched nothing may be a secret that somebody
// found and looks for: its hash is kept. What has a form of its own is none.
func asked(page string, known bool, fields map[string]string) map[string]string {
	m := maps.Clone(fields)
	if m == nil {
		m = map[string]string{}
	}
	for k, v := range m {
		if v != "" && !known && !slices.Contains([]string{"fingerprint", "since", "until", "at"}, k) {
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
