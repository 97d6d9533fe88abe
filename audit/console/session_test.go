package console_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// pages are all pages that need a sign-in.
var pages = []string{"/", "/?window=week", "/console/events", "/console/events?task_id=t&verify=1", "/console/events?csv=events", "/console/credentials",
	"/console/credential?id=x", "/console/task?id=t", "/console/trace", "/console/trace?q=x", "/console/tree", "/console/event?id=x"}

func TestNothingIsShownWithoutASignIn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issue("aws", "t", "read")
	v := r.visitor()
	for _, path := range pages {
		p := v.get(path)
		want := "/console/signin"
		if path != "/" {
			want += "?next=" + url.QueryEscape(path)
		}
		if p.status != http.StatusSeeOther || p.header.Get("Location") != want || strings.Contains(p.body, "agent-17") {
			t.Errorf("%s: %d to %s", path, p.status, p.header.Get("Location"))
		}
		if p := v.do("GET", path, "", "Authorization", "Bearer "+r.tokens["aud"]); p.status != http.StatusSeeOther {
			t.Errorf("%s took a bearer token: %d", path, p.status)
		}
	}
	if p := v.get("/console/events?live=1"); p.status != http.StatusUnauthorized {
		t.Errorf("a live page: %d", p.status)
	}
	for _, path := range []string{"/console/nothing", "/console", "/console/static/none.js", "/console/static/..%2fdoc.go"} {
		if p := v.get(path); p.status != http.StatusNotFound {
			t.Errorf("%s: %d", path, p.status)
		}
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	v := r.enter("aud")
	for _, path := range append([]string{"/console/signin", "/console/nothing", "/console/static/console.css", "/console/static/console.js"}, pages...) {
		h := v.get(path).header
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
			"X-Content-Type-Options":  "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store", "X-Frame-Options": "DENY",
		} {
			if got := h.Values(name); len(got) != 1 || got[0] != want {
				t.Errorf("%s: %s is %q", path, name, got)
			}
		}
		if h.Get("X-Request-Id") == "" {
			t.Errorf("%s has no request id", path)
		}
	}
	if body := v.see("/"); strings.Contains(body, "style=") || strings.Contains(body, "onclick") || strings.Contains(body, "http://") || strings.Contains(body, "https://") {
		t.Error("the page has an inline style or handler, or something of elsewhere")
	}
}

func TestWhoMaySignIn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for name, token := range map[string]string{"auditor": r.tokens["aud"], "operator": " " + r.tokens["ops"] + "\n"} {
		if p := r.visitor().try(token, ""); p.status != http.StatusSeeOther {
			t.Errorf("%s: %d", name, p.status)
		}
	}
	for name, token := range map[string]string{
		"orchestrator": r.tokens["orch"], "nothing": "", "other text": "hello", "unknown": broker.NewToken(broker.PrefixCaller).Reveal(),
		"ticket": broker.NewToken(broker.PrefixTicket).Reveal(), "task": broker.NewToken(broker.PrefixTask).Reveal(), "long": strings.Repeat("x", 10_000),
	} {
		p := r.visitor().try(token, "")
		if p.status != http.StatusUnauthorized && p.status != http.StatusTooManyRequests || token != "" && strings.Contains(p.body, token) || hasSession(p) {
			t.Errorf("%s: %d", name, p.status)
		}
	}
	for _, token := range r.tokens {
		if strings.Contains(r.log.String(), token) {
			t.Error("the log holds a token")
		}
	}
}

func hasSession(p page) bool {
	for _, c := range (&http.Response{Header: p.header}).Cookies() {
		if strings.HasSuffix(c.Name, "taskpass-session") && c.MaxAge >= 0 {
			return true
		}
	}
	return false
}

func TestSessionCookie(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, c := range []struct {
		proto, name string
		secure      bool
	}{{"", "taskpass-session", false}, {"https", "__Host-taskpass-session", true}} {
		v := r.visitor()
		form := v.do("GET", "/console/signin", "", "X-Forwarded-Proto", c.proto)
		var cookies []string
		for _, k := range (&http.Response{Header: form.header}).Cookies() {
			cookies = append(cookies, k.Name+"="+k.Value)
		}
		p := v.do("POST", "/console/signin", url.Values{"token": {r.tokens["aud"]}, "nonce": {nonceField.FindStringSubmatch(form.body)[1]}}.Encode(),
			"X-Forwarded-Proto", c.proto, "Cookie", strings.Join(cookies, "; "))
		found := false
		for _, k := range (&http.Response{Header: p.header}).Cookies() {
			if k.Name != c.name {
				continue
			}
			found = true
			if !k.HttpOnly || k.SameSite != http.SameSiteStrictMode || k.Secure != c.secure || k.Path != "/" || k.Domain != "" || k.MaxAge != 12*3600 {
				t.Errorf("%+v", k)
			}
			if strings.Contains(k.Value, r.tokens["aud"]) {
				t.Error("the cookie bears the token")
			}
		}
		if !found {
			t.Errorf("%q: %d, no cookie %s in %v", c.proto, p.status, c.name, p.header)
		}
	}
}

// The session is in no process's memory: the other replica takes it too, for it has the same keys.
func TestSessionHoldsOnEveryReplica(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	v := r.enter("aud")
	first, _ := url.Parse(r.urls[0])
	second, _ := url.Parse(r.urls[1])
	v.http.Jar.SetCookies(second, v.http.Jar.Cookies(first))
	if body := v.see(r.urls[1] + "/"); !strings.Contains(body, "Overview") {
		t.Error(body)
	}
}

func TestSessionEnds(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*rig, *visitor){
		"after 12 hours": func(r *rig, _ *visitor) { r.clock.Advance(12*time.Hour + time.Second) },
		"with its token": func(r *rig, _ *visitor) {
			must(r.t, r.callers.Revoke(r.t.Context(), broker.Caller{Name: "t"}, r.ids["aud"]))
		},
		"when it is not ours":    func(r *rig, v *visitor) { v.setCookie("taskpass-session", "AAAA") },
		"when it is another one": func(r *rig, v *visitor) { v.setCookie("taskpass-session", v.cookie("taskpass-form")) },
		"by signing out": func(r *rig, v *visitor) {
			nonce := nonceField.FindStringSubmatch(v.see("/"))[1]
			if p := v.do("POST", "/console/signout", "nonce="+nonce); p.status != http.StatusSeeOther || p.header.Get("Location") != "/console/signin?ended" {
				t.Errorf("signing out: %d", p.status)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			v := r.enter("aud")
			v.see("/console/signin") // sets a form's cookie
			v.see("/")
			end(r, v)
			if p := v.get("/"); p.status != http.StatusSeeOther || p.header.Get("Location") != "/console/signin" {
				t.Errorf("then %d", p.status)
			}
		})
	}
}

func (v *visitor) cookie(name string) string {
	u, _ := url.Parse(v.r.urls[0])
	for _, c := range v.http.Jar.Cookies(u) {
		if c.Name == name {
			return c.Value
		}
	}
	v.r.t.Fatalf("no cookie %s", name)
	return ""
}

func (v *visitor) setCookie(name, value string) {
	u, _ := url.Parse(v.r.urls[0])
	v.http.Jar.SetCookies(u, []*http.Cookie{{Name: name, Value: value, Path: "/"}})
}

func TestForgedForms(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := url.Values{"token": {r.tokens["aud"]}}
	with := func(nonce string) string { return token.Encode() + "&nonce=" + url.QueryEscape(nonce) }

	v := r.visitor()
	if p := v.do("POST", "/console/signin", with("x")); p.status != http.StatusForbidden || hasSession(p) {
		t.Errorf("without a form's cookie: %d", p.status)
	}
	for name, headers := range map[string][]string{
		"another site":        {"Sec-Fetch-Site", "cross-site"},
		"a sibling":           {"Sec-Fetch-Site", "same-site"},
		"another origin":      {"Origin", "https://evil.example"},
		"no origin but a lie": {"Origin", "null"},
	} {
		if p := r.visitor().try(r.tokens["aud"], "", headers...); p.status != http.StatusForbidden || hasSession(p) {
			t.Errorf("from %s: %d", name, p.status)
		}
	}
	v = r.visitor()
	v.see("/console/signin")
	for _, nonce := range []string{"", "x", strings.Repeat("A", 26)} {
		if p := v.do("POST", "/console/signin", with(nonce)); p.status != http.StatusForbidden || hasSession(p) {
			t.Errorf("nonce %q: %d", nonce, p.status)
		}
	}
	nonce := nonceField.FindStringSubmatch(v.see("/console/signin"))[1]
	r.clock.Advance(2 * time.Hour)
	if p := v.do("POST", "/console/signin", with(nonce)); p.status != http.StatusForbidden {
		t.Errorf("an old form: %d", p.status)
	}
	in := r.enter("aud")
	for _, nonce := range []string{"", "x"} {
		if p := in.do("POST", "/console/signout", "nonce="+nonce); p.status != http.StatusForbidden {
			t.Errorf("signing out with nonce %q: %d", nonce, p.status)
		}
	}
	in.see("/")
	for _, method := range []string{"POST", "PUT", "DELETE"} {
		if p := in.do(method, "/console/events", ""); p.status == http.StatusOK {
			t.Errorf("%s is taken", method)
		}
	}
}

func TestNextIsOurs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for next, want := range map[string]string{
		"":                                       "/",
		"/":                                      "/",
		"/console/task?id=a&live=1":              "/console/task?id=a",
		"/console/events?type=credential.issued": "/console/events?type=credential.issued",
		"//evil.example/console/":                "/",
		"https://evil.example/console/x":         "/",
		"/\\evil.example/console/":               "/",
		"/console/\\evil":                        "/",
		"/v1/credentials":                        "/",
		"javascript:alert(1)":                    "/",
		"/console/signin":                        "/",
		"/console/../../x":                       "/",
		"/console/..":                            "/",
		"/console/../console/task?id=a":          "/",
		"/console/%2e%2e/%2e%2e/x":               "/",
		"/console/%2e%2e%2fx":                    "/",
		"/console//evil.example":                 "/",
		"/console/./task?id=a":                   "/",
		"/console/task/?id=a":                    "/",
		"/console/signout":                       "/",
		"/console/signin?next=/console/task":     "/",
		"%2f%2fevil.example/console/task":        "/",
		"//evil.example@/console/task?id=a":      "/console/task?id=a",
		"HTTPS:/console/task":                    "/",
		"/CONSOLE/task":                          "/",
		"\t/console/task":                        "/",
		"/console/static/console.js":             "/",
		"/console/nothing":                       "/",
		"/console/%74ask?id=a":                   "/console/task?id=a",
		"/console/task?id=a#b":                   "/console/task?id=a",
	} {
		if p := r.visitor().try(r.tokens["aud"], next); p.header.Get("Location") != want {
			t.Errorf("%q leads to %q", next, p.header.Get("Location"))
		}
	}
}

func TestGuessesAreSlowedDown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	v := r.visitor()
	refused := 0
	for range 15 {
		switch p := v.try(broker.NewToken(broker.PrefixCaller).Reveal(), ""); p.status {
		case http.StatusUnauthorized:
		case http.StatusTooManyRequests:
			refused++
		default:
			t.Fatalf("%d", p.status)
		}
	}
	if refused != 5 {
		t.Errorf("%d of 15 attempts were slowed down, want 5", refused)
	}
	if p := v.try(r.tokens["aud"], ""); p.status != http.StatusTooManyRequests || p.header.Get("Retry-After") != "1" {
		t.Errorf("the right one at once: %d, to wait %q s", p.status, p.header.Get("Retry-After"))
	}
	r.clock.Advance(time.Second)
	if p := v.try(r.tokens["aud"], ""); p.status != http.StatusSeeOther {
		t.Errorf("the right one later: %d", p.status)
	}
}
