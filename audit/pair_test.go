package audit_test

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/taskpass/taskpass/audit"
)

// Two common values that never meet, and one that rarely does: every page is bounded, and no event is missed by following
// the cursor. At d138a73 such a page read all that has one of the values.
func TestPairsAreBounded(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	l := audit.NewLog(s.Pool())
	_, err := s.Pool().Exec(t.Context(), `INSERT INTO events (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body)
		SELECT 'evt_' || i, now() - (30000 - i) * interval '1 second', CASE WHEN i % 5000 = 1 THEN 'credential.stuck' ELSE 'credential.issued' END,
			'caller-' || i % 2, 'task-' || i / 1000, '', 'profile-' || i % 2, 'provider-' || (i + 1) % 2, '', ARRAY['v' || i, 'models/key-' || i % 2],
			format('{"id":"evt_%s"}', i)
		FROM generate_series(1, 30000) i`)
	if err != nil {
		t.Fatal(err)
	}
	since := time.Now().Add(-20_000 * time.Second)
	for name, c := range map[string]struct {
		q           audit.Query
		want, pages int // events, and pages at most
	}{
		"never":                {audit.Query{Caller: "caller-1", Provider: "provider-1"}, 0, 2},
		"never, by a name":     {audit.Query{Caller: "caller-1", UpstreamID: "models/key-0"}, 0, 2},
		"never, a third":       {audit.Query{Caller: "caller-1", Profile: "profile-1", Provider: "provider-1"}, 0, 2},
		"rarely":               {audit.Query{Caller: "caller-1", Type: "credential.stuck"}, 6, 1},
		"rarely, by a name":    {audit.Query{UpstreamID: "models/key-1", Type: "credential.stuck"}, 6, 1},
		"one of one":           {audit.Query{Caller: "caller-1", TaskID: "task-7"}, 500, 6},
		"always":               {audit.Query{Caller: "caller-1", Profile: "profile-1", Limit: 1000}, 15_000, 16},
		"never, since a while": {audit.Query{Caller: "caller-1", Provider: "provider-1", Since: since}, 0, 2},
		"nobody":               {audit.Query{Caller: "caller-1", AgentID: "nobody"}, 0, 1},
	} {
		for _, oldest := range []bool{false, true} {
			q := c.q
			q.OldestFirst = oldest
			if oldest {
				settle(t, l, 1000)
			}
			seen, pages := map[string]bool{}, 0
			for {
				p := find(t, l, q)
				pages++
				for _, body := range p.Events {
					var e struct{ ID string }
					if err := json.Unmarshal(body, &e); err != nil || seen[e.ID] {
						t.Fatalf("%s: %s again, %v", name, e.ID, err)
					}
					seen[e.ID] = true
				}
				if p.Partial && (p.Next == "" || len(p.Events) >= max(q.Limit, 100)) {
					t.Errorf("%s: a partial page with %d events and the cursor %q", name, len(p.Events), p.Next)
				}
				if q.Cursor = p.Next; p.Next == "" || oldest && !p.Partial && len(p.Events) < max(q.Limit, 100) {
					break
				}
			}
			if len(seen) != c.want || pages > c.pages {
				t.Errorf("%s, oldest first %v: %d events in %d pages, want %d in %d at most", name, oldest, len(seen), pages, c.want, c.pages)
			}
			if c.want == 0 && name != "nobody" && pages < 2 {
				t.Errorf("%s: all of it was read for one page", name)
			}
		}
		// An export goes on through pages that are empty.
		n := 0
		q := c.q
		q.Limit = 1000
		first, err := l.Find(t.Context(), q)
		if err == nil {
			err = l.Rest(t.Context(), q, first, func(p audit.Page) error { n += len(p.Events); return context.Cause(t.Context()) })
		}
		if err != nil || n != c.want {
			t.Errorf("%s: the export has %d events of %d, %v", name, n, c.want, err)
		}
	}
}
