package console

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// sessionLife is how long a sign-in lasts at most. It ends earlier with its token.
const sessionLife = 12 * time.Hour

// What each cookie is sealed for. No version bears such an id, so neither opens as the other, nor as a secret.
const (
	sealSession broker.VersionID = "console-session"
	sealForm    broker.VersionID = "console-form"
	sealSeen    broker.VersionID = "console-seen"
)

// session is what the cookie holds, sealed. It names the token and does not bear it.
type session struct {
	SHA256 []byte    `json:"h"`
	Ends   time.Time `json:"e"`
	Nonce  string    `json:"n"` // stands in the session's forms: a page of another origin cannot know it

	caller broker.Caller // by the ledger, just now
}

// formLife is how long a sign-in form may be left open.
const formLife = time.Hour

// form is the cookie that belongs to a sign-in form.
type form struct {
	Ends  time.Time `json:"e"`
	Nonce string    `json:"n"`
}

// secure tells whether the client came by TLS. A proxy's word is enough: who lies about it harms only his own cookie.
func secure(r *http.Request) bool {
	return r.TLS != nil || strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https")
}

func cookieName(r *http.Request, name string) string {
	if secure(r) {
		return "__Host-taskpass-" + name // a browser takes it only as it is set here
	}
	return "taskpass-" + name
}

// setCookie seals a value into a cookie; a nil value drops it.
func (c *console) setCookie(w http.ResponseWriter, r *http.Request, name string, id broker.VersionID, value any, life time.Duration) error {
	cookie := &http.Cookie{ //nolint:gosec // Secure wherever TLS is; on loopback there is none
		Name: cookieName(r, name), Path: "/", HttpOnly: true, Secure: secure(r), SameSite: http.SameSiteStrictMode,
		MaxAge: int(life.Seconds()),
	}
	if value == nil {
		cookie.MaxAge = -1
	} else {
		var err error
		if cookie.Value, err = c.seal(id, value); err != nil {
			return err
		}
	}
	http.SetCookie(w, cookie)
	return nil
}

// seal makes a value into text that only we can have made, and only for this.
func (c *console) seal(id broker.VersionID, value any) (string, error) {
	plain, err := json.Marshal(value)
	if err != nil {
		return "", err
	}
	sealed, err := c.Sealer.Seal(plain, id)
	return base64.RawURLEncoding.EncodeToString(sealed), err
}

// open is the way back; false for what was not sealed here for this.
func (c *console) open(id broker.VersionID, text string, into any) bool {
	sealed, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return false
	}
	plain, err := c.Sealer.Open(sealed, id)
	return err == nil && json.Unmarshal(plain, into) == nil
}

// cookie opens a sealed cookie; false where there is none that was sealed here for this.
func (c *console) cookie(r *http.Request, name string, id broker.VersionID, into any) bool {
	cookie, err := r.Cookie(cookieName(r, name))
	return err == nil && c.open(id, cookie.Value, into)
}

var errNoSession = errors.New("nobody is signed in")

// session finds out who looks. The token is looked up each time: errNoSession once it was revoked or has expired.
func (c *console) session(ctx context.Context, r *http.Request) (*session, error) {
	var s session
	if !c.cookie(r, "session", sealSession, &s) || !c.Clock().Before(s.Ends) {
		return nil, errNoSession
	}
	caller, err := c.Callers.Holder(ctx, s.SHA256)
	if err != nil {
		if broker.AsError(err).Code.Status() == http.StatusUnauthorized {
			return nil, errNoSession
		}
		return nil, err
	}
	if !caller.ReadsAll() {
		return nil, errNoSession
	}
	s.caller = caller
	return &s, nil
}

// client is who asks, as far as the connection tells.
func client(w http.ResponseWriter, r *http.Request, caller broker.Caller) broker.Caller {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err == nil {
		caller.Addr = host
	}
	caller.RequestID = w.Header().Get("X-Request-Id")
	return caller
}

// signedIn lets through who is signed in, and sends everybody else to the form.
func (c *console) signedIn(next func(http.ResponseWriter, *http.Request, *session)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s, err := c.session(r.Context(), r)
		switch {
		case errors.Is(err, errNoSession) && live(r):
			c.fail(w, r, nil, broker.Errorf(broker.CodeUnauthenticated, "nobody is signed in"))
		case errors.Is(err, errNoSession):
			to := signInPath
			if _, leaked := bearsToken(r); !leaked && r.URL.RequestURI() != "/" {
				to += "?next=" + url.QueryEscape(r.URL.RequestURI())
			}
			http.Redirect(w, r, to, http.StatusSeeOther)
		case err != nil:
			c.fail(w, r, nil, err)
		default:
			s.caller = client(w, r, s.caller)
			next(w, r, s)
		}
	}
}

// bearsToken tells whether somebody put a token where something is looked for, and under which name.
func bearsToken(r *http.Request) (name string, found bool) {
	for name, values := range r.URL.Query() {
		if broker.IsToken(name) {
			return "", true
		}
		if slices.ContainsFunc(values, func(v string) bool { return broker.IsToken(strings.TrimSpace(v)) }) {
			return name, true
		}
	}
	return "", false
}

// signInForm is what the form shows.
type signInForm struct {
	Nonce, Next, Fault string
	Ended              bool // it was shown after a sign-out
}

func (c *console) showSignIn(w http.ResponseWriter, r *http.Request) {
	if err := onlyKnown(r); err != nil {
		c.fail(w, r, nil, err)
		return
	}
	c.signInPage(w, r, http.StatusOK, signInForm{Next: r.URL.Query().Get("next"), Ended: r.URL.Query().Has("ended")})
}

func (c *console) signInPage(w http.ResponseWriter, r *http.Request, status int, f signInForm) {
	f.Nonce, f.Next = rand.Text(), local(f.Next)
	if err := c.setCookie(w, r, "form", sealForm, form{c.Clock().Add(formLife), f.Nonce}, formLife); err != nil {
		c.fail(w, r, nil, err)
		return
	}
	c.render(w, r, nil, status, view{Title: "Sign in", Template: "signin", Data: f})
}

// local is a page of this console, with the query that it was asked with, or "/": a form leads nowhere else.
func local(next string) string {
	u, err := url.Parse(next)
	if err != nil || u.IsAbs() || u.Host != "" || u.Opaque != "" || parameters[u.Path] == nil || u.Path == signInPath {
		return "/"
	}
	q := u.Query()
	q.Del("live")
	return (&url.URL{Path: u.Path, RawQuery: q.Encode()}).String()
}

func (c *console) signIn(w http.ResponseWriter, r *http.Request) {
	var f form
	known := c.cookie(r, "form", sealForm, &f) && c.Clock().Before(f.Ends)
	if err := r.ParseForm(); err != nil {
		c.fail(w, r, nil, broker.Errorf(broker.CodeInvalidRequest, "the form cannot be read"))
		return
	}
	again := signInForm{Next: r.PostForm.Get("next")}
	if !known || !same(f.Nonce, r.PostForm.Get("nonce")) {
		again.Fault = "The form was too old, or not from here. Try again."
		c.signInPage(w, r, http.StatusForbidden, again)
		return
	}
	addr := client(w, r, broker.Caller{}).Addr
	if wait := c.guesses.Wait(addr); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
		again.Fault = "There were too many attempts from your address. Wait a few seconds."
		c.signInPage(w, r, http.StatusTooManyRequests, again)
		return
	}
	token := strings.TrimSpace(r.PostForm.Get("token"))
	caller, err := c.Callers.Authenticate(r.Context(), token)
	if err == nil && !caller.ReadsAll() {
		err = broker.Errorf(broker.CodeForbidden, "the console is for auditors and operators")
	}
	if err != nil {
		e := broker.AsError(err)
		if e.Code.Status() >= http.StatusInternalServerError {
			c.fail(w, r, nil, err)
			return
		}
		c.guesses.Wrong(addr)
		c.Logger.WarnContext(r.Context(), "console: sign-in refused", "code", e.Code, "addr", addr)
		again.Fault = "That token does not open the console: it must be an auditor's or an operator's, and still be good."
		c.signInPage(w, r, http.StatusUnauthorized, again)
		return
	}
	c.begin(w, r, client(w, r, caller), token, local(again.Next))
}

// begin puts the sign-in on the record and gives the session.
func (c *console) begin(w http.ResponseWriter, r *http.Request, caller broker.Caller, token, next string) {
	if err := c.Recorder.AuditRead(r.Context(), caller, map[string]string{"console": "signin"}); err != nil {
		c.fail(w, r, nil, err)
		return
	}
	s := session{SHA256: broker.HashToken(token), Ends: c.Clock().Add(sessionLife), Nonce: rand.Text()}
	if err := errors.Join(c.setCookie(w, r, "session", sealSession, s, sessionLife), c.setCookie(w, r, "form", sealForm, nil, 0)); err != nil {
		c.fail(w, r, nil, err)
		return
	}
	http.Redirect(w, r, next, http.StatusSeeOther)
}

func (c *console) signOut(w http.ResponseWriter, r *http.Request) {
	s, err := c.session(r.Context(), r)
	if err == nil && (r.ParseForm() != nil || !same(s.Nonce, r.PostForm.Get("nonce"))) {
		c.fail(w, r, s, broker.Errorf(broker.CodeForbidden, "the form was not from here"))
		return
	}
	if err := c.setCookie(w, r, "session", sealSession, nil, 0); err != nil {
		c.fail(w, r, nil, err)
		return
	}
	http.Redirect(w, r, signInPath+"?ended", http.StatusSeeOther)
}

func same(a, b string) bool { return a != "" && subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
