//go:build browser

package console_test

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/taskpass/taskpass/audit/console/browsertest"
	"github.com/taskpass/taskpass/broker"
)

// From a line of CloudTrail, a session's ARN and a time, to whose it was; its end is seen without a reload. Then the
// fingerprint of a secret that was found.
func TestBrowserTrace(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.issue("aws", "research-1", "read")
	r.issue("aws", "research-2", "read")
	b := browsertest.Open(t, r.urls[0])
	b.Look("light", 1280)
	b.Go("/console/trace")
	b.SignIn(r.tokens["aud"])
	b.Do(chromedp.SendKeys("#q", c.Trace["assumed_role_arn"], chromedp.ByQuery),
		chromedp.SendKeys("#at", r.clock.Now().Add(time.Minute).Format("2006-01-02 15:04")+"\r", chromedp.ByQuery),
		chromedp.WaitVisible("section.card", chromedp.ByQuery))
	b.Until(`document.querySelector(".livestate").textContent.startsWith("Live")`)
	card := b.Text("section.card")
	for _, want := range []string{c.ID, "research-1", "agent-17", "orch", "alive until", "credential.issued", "arn:aws:iam::"} {
		if !strings.Contains(card, want) {
			t.Errorf("the trace does not say %s: %s", want, card)
		}
	}
	if got := browsertest.Eval[string](b, `[document.querySelectorAll("section.card").length, document.querySelectorAll("line.used").length].join()`); got != "1,1" {
		t.Errorf("versions, and times that were asked about: %s", got)
	}
	b.Do(chromedp.Evaluate(`window.same = true`, nil))
	r.api("orch", "POST", "/v1/credentials/"+c.ID+"/revoke", `{"reason":"seen in a log"}`)
	r.clock.Advance(time.Second)
	b.Until(`window.same && document.querySelector("section.card .badge.dead") && document.querySelector("section.card").textContent.includes("role_policy_written")`)
	b.Shoot(filepath.Join(pictures, "trace-at.png"), 0)

	b.Go("/console/events")
	b.Do(chromedp.SendKeys("#fingerprint", r.fingerprint(c.ID, 1)+"\r", chromedp.ByQuery))
	b.Until(`location.search.includes("fingerprint=sha256") && document.querySelector("tbody tr")`)
	if got := browsertest.Eval[string](b, `[...document.querySelectorAll("tbody th .type")].map((e) => e.textContent).join(" ")`); got != "credential.revoked credential.revoke_requested credential.issued" {
		t.Errorf("the fingerprint leads to %s", got)
	}
}

// A new checkpoint comes to the page that is open, and its marks are worked out anew. What somebody is selecting, to copy
// it, stays until they are done.
func TestBrowserTreeGoesLive(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issue("aws", "research-1", "read")
	first := r.sign()
	b := browsertest.Open(t, r.urls[0])
	b.Look("light", 1280)
	b.Go("/console/tree")
	b.SignIn(r.tokens["aud"])
	b.Until(fmt.Sprintf(`document.querySelector(".live").textContent.includes("It begins with the tree of %d events")`, first.Size))
	b.Do(chromedp.Evaluate(`window.same = true; window.looks = 0;
		new EventSource(document.querySelector("[data-live]").dataset.live).addEventListener("page", () => window.looks++)`, nil))
	c := r.issue("aws", "research-2", "read")
	next := r.sign()
	b.Until(fmt.Sprintf(`window.same && document.querySelector(".live pre").textContent.includes("\n%d\n") && document.querySelector("tbody").textContent.includes(%q)`, next.Size, c.ID))
	b.Until(fmt.Sprintf(`document.querySelectorAll(".live .bigmark.verified").length === 2 && document.querySelector(".live").textContent.includes("It begins with the tree of %d events")`, next.Size))

	b.Do(chromedp.Evaluate(`getSelection().selectAllChildren(document.querySelector(".live pre"))`, nil))
	selected := browsertest.Eval[string](b, `getSelection().toString()`)
	r.issue("aws", "research-3", "read")
	last := r.sign()
	for range 5 {
		n := browsertest.Eval[int](b, "window.looks")
		r.clock.Advance(time.Second)
		b.Until(fmt.Sprintf("window.looks > %d", n))
	}
	if got := browsertest.Eval[string](b, `getSelection().toString()`); got != selected || got == "" {
		t.Errorf("what was selected is now %q", got)
	}
	b.Do(chromedp.Evaluate(`getSelection().removeAllRanges()`, nil))
	b.Until(fmt.Sprintf(`document.querySelector(".live pre").textContent.includes("\n%d\n")`, last.Size))
}

// What a caller or an owner of the database puts into names does nothing but be read: it runs nothing, turns nothing
// around, and makes no page wider than its window.
func TestBrowserHostileWords(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	long := strings.Repeat("W", 128)
	evil := `"><script>window.pwned=1</script><img src=x onerror="window.pwned=2"><style>*{display:none}</style>` + turned + strings.Repeat("W", 400)
	c := r.issue("aws", long, "read")
	must(t, r.store.Record(t.Context(), broker.Event{
		ID: broker.NewEventID(), At: r.clock.Now(), Type: broker.EventStuck, Caller: broker.Caller{Name: evil, Addr: evil}, TaskID: evil,
		AgentID: evil, Profile: evil, Credential: broker.CredentialID(c.ID), UpstreamIDs: []string{evil}, Reason: evil,
	}))
	if _, err := r.admin.Exec(t.Context(), `UPDATE credentials SET agent_id = $1, profile = $1, metadata = jsonb_build_object($1::text, $1::text)`, evil); err != nil {
		t.Fatal(err)
	}
	r.sign()
	b := browsertest.Open(t, r.urls[0])
	b.Go("/console/signin")
	b.SignIn(r.tokens["aud"])
	for name, path := range map[string]string{
		"events": "/console/events", "task": "/console/task?id=" + long, "task-evil": "/console/task?id=" + url.QueryEscape(evil[:200]), "credential": "/console/credential?id=" + c.ID,
		"credentials": "/console/credentials", "trace": "/console/trace?q=" + c.Trace["access_key_id"], "tree": "/console/tree",
	} {
		for _, width := range []int64{1280, 360} {
			b.Look("light", width)
			b.Go(path)
			for _, fault := range b.Faults() {
				t.Errorf("%s, %d px: %s", name, width, fault)
			}
			if got := browsertest.Eval[string](b, `[window.pwned, document.querySelectorAll("main script, main img, main style").length, /[\u200b\u202e]/.test(document.body.textContent)].join()`); got != ",0,false" {
				t.Errorf("%s: what ran, what it made, whether it turned something around: %s", name, got)
			}
			b.Do(chromedp.Evaluate(`document.querySelectorAll("details").forEach((d) => { d.open = true })`, nil))
			for _, fault := range b.Faults() {
				t.Errorf("%s, %d px, all unfolded: %s", name, width, fault)
			}
			b.Shoot(filepath.Join(pictures, fmt.Sprintf("hostile-%s-%d.png", name, width)), 2500)
		}
	}
}
