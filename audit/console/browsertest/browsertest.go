//go:build browser

// Package browsertest opens the console in a real browser, for tests and for the pictures in docs/: Chromium without a
// window, in a profile of its own. It decides what is wrong with a page that a browser has drawn.
package browsertest

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// Browser is one tab.
type Browser struct {
	t      testing.TB
	ctx    context.Context
	origin string

	mu    sync.Mutex
	wrong []string // what the browser complained of, and requests to elsewhere
}

// Limit is the longest that one step takes, on a busy machine.
const Limit = 2 * time.Minute

// Open starts a browser for the console at that origin.
func Open(t testing.TB, origin string) *Browser {
	t.Helper()
	path := find()
	if path == "" {
		t.Fatal("Chromium is not installed: .ci/setup browser")
	}
	dir, err := os.MkdirTemp("", "taskpass-browser-") // not t.TempDir: its helpers may outlive it by a moment, and write
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	allocator, stop := chromedp.NewExecAllocator(context.Background(), chromedp.ExecPath(path), chromedp.UserDataDir(dir),
		chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true), chromedp.WSURLReadTimeout(Limit))
	ctx, _ := chromedp.NewContext(allocator)
	b := &Browser{t: t, ctx: ctx, origin: origin}
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // it may be gone already
		stop()
		chromedp.FromContext(ctx).Allocator.Wait()
		b.Complain()
	})
	chromedp.ListenTarget(ctx, b.heard)
	b.Do(log.Enable(), network.Enable(), runtime.Enable())
	return b
}

func find() string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// heard notes what no page of ours may do: break its own policy, fail in its script, ask anybody else.
func (b *Browser) heard(e any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := e.(type) {
	case *log.EventEntryAdded:
		// An answer that is an error is the test's business.
		if e.Entry.Level != log.LevelInfo && e.Entry.Level != log.LevelVerbose && e.Entry.Source != log.SourceNetwork {
			b.wrong = append(b.wrong, fmt.Sprintf("%s: %s", e.Entry.Source, e.Entry.Text))
		}
	case *runtime.EventExceptionThrown:
		b.wrong = append(b.wrong, "the script failed: "+e.ExceptionDetails.Error())
	case *network.EventRequestWillBeSent:
		if u := e.Request.URL; !strings.HasPrefix(u, b.origin+"/") && !strings.HasPrefix(u, "data:") && u != "about:blank" {
			b.wrong = append(b.wrong, "a request to "+u)
		}
	}
}

// Complain tells the test what was heard so far.
func (b *Browser) Complain() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, w := range b.wrong {
		b.t.Error("the browser: " + w)
	}
	b.wrong = nil
}

// Do takes steps, each of which must succeed.
func (b *Browser) Do(steps ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx); err != nil { // starts it, for as long as the tab's context is
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.ctx, Limit)
	defer cancel()
	if err := chromedp.Run(ctx, steps...); err != nil {
		var html string
		_ = chromedp.Run(b.ctx, chromedp.OuterHTML("html", &html, chromedp.ByQuery))
		b.t.Fatalf("%v; the page is %.3000s", err, html)
	}
}

// Go opens a page of the console.
func (b *Browser) Go(path string) {
	b.t.Helper()
	b.Do(chromedp.Navigate(b.origin+path), chromedp.WaitVisible("main h1", chromedp.ByQuery))
}

// SignIn fills in the form that is open, and waits for the page behind it.
func (b *Browser) SignIn(token string) {
	b.t.Helper()
	b.Do(chromedp.WaitVisible("#token", chromedp.ByQuery), chromedp.SendKeys("#token", token+"\r", chromedp.ByQuery),
		chromedp.WaitVisible("form.who", chromedp.ByQuery))
}

// Text is what a page's element says.
func (b *Browser) Text(selector string) (text string) {
	b.t.Helper()
	b.Do(chromedp.Text(selector, &text, chromedp.ByQuery))
	return text
}

// Eval is the value of an expression in the page.
func Eval[T any](b *Browser, expression string) (value T) {
	b.t.Helper()
	b.Do(chromedp.Evaluate(expression, &value))
	return value
}

// Until waits for an expression to be true. A page that is just being left has no answer; the next one has.
func (b *Browser) Until(expression string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, Limit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var is bool
		err := chromedp.Run(ctx, chromedp.Evaluate("Boolean("+expression+")", &is))
		if err == nil && is {
			return
		}
		select {
		case <-ctx.Done():
			b.t.Fatalf("it is never true that %s (%v); the page says %.2000s", expression, err, b.Text("body"))
		case <-tick.C:
		}
	}
}

// Look sets the colour scheme ("light" or "dark") and the width in CSS pixels.
func (b *Browser) Look(scheme string, width int64) {
	b.t.Helper()
	b.Do(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
	}), emulation.SetDeviceMetricsOverride(width, 800, 1, false))
}

// Script switches scripts on or off, from the next page on.
func (b *Browser) Script(on bool) {
	b.t.Helper()
	b.Do(emulation.SetScriptExecutionDisabled(!on))
}

// Shoot writes a picture of the page, down to that height in CSS pixels, and gives its size in bytes. 0: all of it.
func (b *Browser) Shoot(file string, height float64) int {
	b.t.Helper()
	var png []byte
	b.Do(chromedp.ActionFunc(func(ctx context.Context) error {
		_, _, _, _, _, content, err := page.GetLayoutMetrics().Do(ctx)
		if err != nil {
			return err
		}
		if height == 0 || height > content.Height {
			height = content.Height
		}
		png, err = page.CaptureScreenshot().WithCaptureBeyondViewport(true).
			WithClip(&page.Viewport{Width: content.Width, Height: height, Scale: 1}).Do(ctx)
		return err
	}))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { //nolint:gosec // pictures are for everybody
		b.t.Fatal(err)
	}
	if err := os.WriteFile(file, png, 0o644); err != nil { //nolint:gosec // as said
		b.t.Fatal(err)
	}
	return len(png)
}

//go:embed faults.js
var faults string

// Faults lists what keeps somebody from using the page that is open: what has no name, headings out of order, tables without
// captions, text that is too faint by its computed colours, a page that is wider than the window.
func (b *Browser) Faults() []string {
	b.t.Helper()
	return Eval[[]string](b, faults)
}
