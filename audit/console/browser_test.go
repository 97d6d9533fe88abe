//go:build browser

package console_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/taskpass/taskpass/audit/console/browsertest"
	"github.com/taskpass/taskpass/broker"
)

// pictures is where the tests leave what the browser showed; git ignores it.
const pictures = "screenshots"

// An auditor's round: sign in, filter, open a task, trace an access key id, see a new event arrive.
func TestBrowser(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.issue("aws", "research-1", "read")
	r.issue("pool", "research-2", "call")
	r.sign()
	b := browsertest.Open(t, r.urls[0])
	b.Look("light", 1280)

	b.Go("/console/events?profile=aws")
	b.SignIn(r.tokens["aud"])
	if got := browsertest.Eval[string](b, "location.pathname + location.search"); got != "/console/events?profile=aws" {
		t.Fatalf("signing in leads to %s", got)
	}
	b.Go("/console/events")
	b.Do(chromedp.SendKeys("#task_id", "research-1\r", chromedp.ByQuery))
	b.Until(`location.search.includes("task_id=research-1") && document.querySelector("tbody tr")`)
	b.Until(`document.querySelector(".livestate").textContent.startsWith("Live")`)
	if got := browsertest.Eval[string](b, `[...document.querySelectorAll("tbody tr td:nth-child(3)")].map((e) => e.textContent).join(" ")`); got != "research-1 research-1" {
		t.Errorf("the filter shows the tasks %q", got)
	}
	b.Do(chromedp.Click("tbody tr td:nth-child(3) a", chromedp.ByQuery))
	b.Until(`location.pathname === "/console/task" && document.querySelectorAll("svg.timeline rect.life").length === 1`)
	if got := b.Text("h1"); got != "Task research-1" {
		t.Errorf("the task's page is called %q", got)
	}
	b.Go("/")
	b.Do(chromedp.SendKeys("#q", c.Trace["access_key_id"]+"\r", chromedp.ByQuery), chromedp.WaitVisible("section.card", chromedp.ByQuery))
	b.Until(`location.pathname === "/console/trace"`)
	if card := b.Text("section.card"); !strings.Contains(card, "research-1") || !strings.Contains(card, "agent-17") || !strings.Contains(card, "orch") || !strings.Contains(card, "alive until") {
		t.Errorf("the trace says %s", card)
	}

	b.Go("/console/events?agent_id=agent-17")
	b.Until(`document.querySelector(".livestate").textContent.startsWith("Live")`)
	// It is the same page throughout; what somebody unfolded stays so, and the focus stays where it was.
	b.Do(chromedp.Evaluate(`window.same = true; document.querySelector("tbody details").open = true;
		document.querySelector("tbody tr:nth-child(2) td:nth-child(3) a").focus()`, nil)) // the row above has the same link
	kept := browsertest.Eval[string](b, `document.querySelector("tbody details[open]").dataset.key + document.activeElement.closest("tr").id + document.activeElement.href`)
	next := r.issue("aws", "research-3", "read")
	b.Until(fmt.Sprintf(`[...document.querySelectorAll("tbody tr.fresh")].some((e) => e.textContent.includes(%q))`, next.ID))
	if got := browsertest.Eval[string](b, `window.same && document.querySelector("tbody details[open]").dataset.key + document.activeElement.closest("tr").id + document.activeElement.href`); got != kept {
		t.Errorf("after the new event came: %s, before %s", got, kept)
	}
	b.Shoot(filepath.Join(pictures, "live.png"), 1000)

	// Paused, nothing changes; live again, it does.
	b.Do(chromedp.Click(".livebar button", chromedp.ByQuery))
	paused := r.issue("aws", "research-4", "read")
	b.Until(`document.querySelector(".livestate").textContent === "Paused."`)
	if body := b.Text("tbody"); strings.Contains(body, paused.ID) {
		t.Error("it changes while it is paused")
	}
	b.Do(chromedp.Click(".livebar button", chromedp.ByQuery))
	b.Until(fmt.Sprintf(`document.querySelector("tbody").textContent.includes(%q)`, paused.ID))

	// A token that was revoked ends the page that is open.
	must(t, r.callers.Revoke(t.Context(), broker.Caller{Name: "t"}, r.ids["aud"]))
	b.Until(`location.pathname === "/console/signin"`)
}

// All works without a script, but for what comes by itself.
func TestBrowserWithoutScripts(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issue("aws", "research-1", "read")
	b := browsertest.Open(t, r.urls[0])
	b.Script(false)
	b.Go("/console/events")
	b.SignIn(r.tokens["aud"])
	b.Do(chromedp.SendKeys("#task_id", "research-1\r", chromedp.ByQuery), chromedp.WaitVisible(`input[value="research-1"]`, chromedp.ByQuery),
		chromedp.WaitVisible("tbody tr", chromedp.ByQuery))
	b.Do(chromedp.Click("tbody tr td:nth-child(3) a", chromedp.ByQuery), chromedp.WaitVisible("svg.timeline", chromedp.ByQuery))
	b.Do(chromedp.Click(".who button", chromedp.ByQuery), chromedp.WaitVisible("#token", chromedp.ByQuery))
	if got := b.Text("main"); !strings.Contains(got, "You are signed out.") {
		t.Error(got)
	}
}

// Each page in both colour schemes, wide and narrow: names, headings, tables, contrast by the computed colours, width.
func TestBrowserFaults(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.issue("aws", "research-1", "read")
	r.clock.Advance(30 * time.Minute)
	c = r.refresh(c)
	key := r.issue("pool", "research-1", "call")
	r.clock.Advance(5 * time.Minute)
	r.api("orch", "POST", "/v1/credentials/"+key.ID+"/revoke", `{"reason":"seen in a log"}`)
	dead := r.issue("aws", "research-1", "read")
	r.clock.Advance(5 * time.Minute)
	r.api("orch", "POST", "/v1/credentials/"+dead.ID+"/revoke", `{}`)
	r.api("orch", "POST", "/v1/credentials", `{"task_id":"t3","agent_id":"agent-17","profile":"aws","scopes":["none"]}`)
	r.sign()
	b := browsertest.Open(t, r.urls[0])
	list := []struct{ name, path string }{
		{"overview", "/"}, {"events", "/console/events"}, {"events-verified", "/console/events?agent_id=agent-17&verify=1"}, {"events-none", "/console/events?task_id=none"},
		{"task", "/console/task?id=research-1"}, {"credential", "/console/credential?id=" + c.ID}, {"credentials", "/console/credentials"},
		{"trace", "/console/trace?q=" + c.Trace["access_key_id"]}, {"trace-unknown", "/console/trace?q=ASIAUNKNOWN"}, {"tree", "/console/tree"},
		{"nothing", "/console/task?id=none"}, {"fault", "/console/events?limit=x"},
	}
	look := func(name, path string) {
		for _, l := range []struct {
			scheme string
			width  int64
		}{{"light", 1280}, {"dark", 1280}, {"light", 360}, {"dark", 360}} {
			b.Look(l.scheme, l.width)
			b.Go(path)
			for _, fault := range b.Faults() {
				t.Errorf("%s, %s, %d px: %s", name, l.scheme, l.width, fault)
			}
			b.Shoot(filepath.Join(pictures, fmt.Sprintf("%s-%s-%d.png", name, l.scheme, l.width)), 0)
		}
	}
	look("signin", "/console/signin")
	b.Go("/console/signin")
	b.SignIn(r.tokens["aud"])
	for _, p := range list {
		look(p.name, p.path)
	}
	// The rows of a page that was altered behind the broker's back.
	if _, err := r.admin.Exec(t.Context(), `UPDATE events SET body = replace(body, 'agent-17', 'agent-99') WHERE credential_id = $1`, dead.ID); err != nil {
		t.Fatal(err)
	}
	look("altered", "/console/task?id=research-1&verify=1")
}

// The checks above are worth what they find.
func TestFaultsAreFound(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	b := browsertest.Open(t, r.urls[0])
	b.Look("light", 360)
	for spoil, want := range map[string]string{
		`document.querySelector("label").remove()`:                                                             "a field without a label",
		`document.querySelector("button").textContent = ""`:                                                    "a control without a name",
		`document.querySelector("h1").outerHTML = "<h3>x</h3>"`:                                                "a heading skips a level",
		`document.styleSheets[0].insertRule("label { color: #999 !important }")`:                               "text too faint",
		`document.styleSheets[0].insertRule("input { border-color: #eee !important }")`:                        "a shape too faint",
		`document.styleSheets[0].insertRule("h1 { width: 500px }")`:                                            "the page is wider than the window",
		`document.querySelector("main").insertAdjacentHTML("beforeend", "<table><tr><th>x</th></tr></table>")`: "a table without a caption",
	} {
		b.Go("/console/signin")
		if before := b.Faults(); len(before) > 0 {
			t.Fatal(before)
		}
		b.Do(chromedp.Evaluate(spoil, nil))
		if got := strings.Join(b.Faults(), "\n"); !strings.Contains(got, want) {
			t.Errorf("%s: found %q, want %s", spoil, got, want)
		}
	}
}

// Whoever has no mouse gets everywhere, and sees where they are.
func TestBrowserKeyboard(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issue("aws", "research-1", "read")
	b := browsertest.Open(t, r.urls[0])
	b.Look("light", 1280)
	b.Go("/")
	b.SignIn(r.tokens["aud"])
	b.Go("/console/events?task_id=research-1")
	b.Do(chromedp.KeyEvent(kb.Tab))
	if got := browsertest.Eval[string](b, `document.activeElement.className + document.activeElement.getBoundingClientRect().left`); got != "skip0" {
		t.Errorf("first comes %q, and not the link that skips to the content", got)
	}
	b.Do(chromedp.KeyEvent(kb.Enter))
	b.Until(`document.activeElement.id === "main"`)
	reached := map[string]bool{}
	for range 40 {
		b.Do(chromedp.KeyEvent(kb.Tab))
		where := browsertest.Eval[[]string](b, `(() => { const e = document.activeElement, s = getComputedStyle(e);
			return [e.tagName.toLowerCase() + (e.id ? "#" + e.id : ""), s.outlineStyle, s.outlineWidth] })()`)
		reached[where[0]] = true
		if where[0] != "body" && (where[1] == "none" || where[2] == "0px") {
			t.Errorf("nobody sees that the focus is on %s", where[0])
		}
	}
	for _, want := range []string{"input#task_id", "select#type", "input#upstream_id", "input#until", "button", "div", "a", "summary"} {
		if !reached[want] {
			t.Errorf("the keyboard does not reach %s, only %v", want, reached)
		}
	}
}
