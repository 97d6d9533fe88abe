package console_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// A new checkpoint appears on the page that is open, with marks worked out anew: the tree of before is the one that was
// shown just before.
func TestTreeIsLive(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issue("aws", "t", "read")
	first := r.sign()
	v := r.enter("aud")
	if body := v.see("/console/tree"); !strings.Contains(body, "This browser was shown no checkpoint before") || strings.Contains(body, "not yet in the tree</strong>") {
		t.Error(body)
	}
	s := v.follow("/console/tree?live=1")
	begins := func(size int64) func(sent) bool {
		return func(e sent) bool {
			return strings.Contains(e.data, fmt.Sprintf("It begins with the tree of %d events that this browser was shown", size)) &&
				strings.Count(e.data, "bigmark verified") == 2 && !strings.Contains(e.data, "NOT VERIFIED")
		}
	}
	s.until(t, "the page's own checkpoint was what it begins with", begins(first.Size))
	size := first.Size
	for range 2 {
		c := r.issue("aws", "t", "read")
		next := r.sign()
		s.until(t, "the new checkpoint was there", func(e sent) bool {
			return strings.Contains(e.data, fmt.Sprintf("<dd>%d</dd>", next.Size)) && strings.Contains(e.data, c.ID)
		})
		if next.Size <= size {
			t.Fatal("the tree did not grow")
		}
		s.until(t, "it was what the next look is held against", begins(next.Size))
		size = next.Size
	}
}

// Between two looks of one page history is rewritten, of which no page was ever loaded anew: it is seen, stays seen, and is
// not what the browser remembers. So it is by a stream that asks again with the id of the last event.
func TestTreeIsRewrittenWhileSomebodyLooks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issue("aws", "t", "read")
	r.sign()
	v := r.enter("aud")
	v.see("/console/tree")
	s := v.follow("/console/tree?live=1")
	r.issue("aws", "u", "read")
	grown := r.sign() // no page's cookie knows this one
	last := s.until(t, "the second checkpoint was held against itself", func(e sent) bool {
		return strings.Contains(e.data, fmt.Sprintf("begins with the tree of %d events", grown.Size))
	})
	if last.id == "" {
		t.Fatal("the browser is told nothing to remember")
	}
	for _, sql := range []string{"DELETE FROM tree_checkpoints WHERE size >= $1", "DELETE FROM tree_leaves WHERE idx >= $1 - 1"} {
		if _, err := r.admin.Exec(t.Context(), sql, grown.Size); err != nil {
			t.Fatal(err)
		}
	}
	missing := func(e sent) bool {
		return strings.Contains(e.data, fmt.Sprintf("This browser was shown a tree of %d events", grown.Size)) && strings.Contains(e.data, "events are missing") && e.id == ""
	}
	s.until(t, "it was seen", missing)
	s.until(t, "it was seen again", missing)
	s.close()
	s = v.follow("/console/tree?live=1", "Last-Event-ID", last.id)
	s.until(t, "it was seen by the next stream", missing)
	s.close()
	// What was not sealed here is no checkpoint: the cookie counts then.
	s = v.follow("/console/tree?live=1", "Last-Event-ID", "e30")
	s.until(t, "the cookie's was what counts", func(e sent) bool { return strings.Contains(e.data, "It begins with the tree of") })
}

// A stream is asked for anew each minute. What it begins with goes into the cookie, so that the next page that is loaded
// is held against that, and not against what was shown an hour before.
func TestALivePageRemembers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issue("aws", "t", "read")
	r.sign()
	v := r.enter("aud")
	v.see("/console/tree")
	r.issue("aws", "t", "read")
	grown := r.sign()
	s := v.follow("/console/tree?live=1")
	s.next(t)
	s.close()
	if body := v.see("/console/tree"); !strings.Contains(body, fmt.Sprintf("It begins with the tree of %d events", grown.Size)) {
		t.Error(body)
	}
	// The list as CSV shows no mark: it is not remembered.
	u, err := url.Parse(r.urls[0])
	must(t, err)
	before := fmt.Sprint(v.http.Jar.Cookies(u))
	r.issue("aws", "t", "read")
	r.sign()
	if p := v.get("/console/tree?csv=events"); p.status != http.StatusOK || fmt.Sprint(v.http.Jar.Cookies(u)) != before {
		t.Errorf("%d; a list was taken for a look at the marks", p.status)
	}
}
