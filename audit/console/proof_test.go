package console_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

func TestVerifiedMark(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issue("aws", "t", "read")
	v := r.enter("aud")
	if body := v.see("/console/tree"); !strings.Contains(body, "No checkpoint is signed yet") || strings.Contains(body, "✓") {
		t.Error("before the first checkpoint:", body)
	}
	if body := v.see("/console/task?id=t&verify=1"); strings.Contains(body, "✓") || !strings.Contains(body, "2 are not yet in the tree") {
		t.Error("before the first checkpoint:", body)
	}
	r.sign()
	first := v.see("/console/tree")
	if !strings.Contains(first, "newest events of the tree lead to the signed root.") || !strings.Contains(first, "This browser was shown no checkpoint before") {
		t.Error(first)
	}
	r.issue("aws", "t", "read")
	r.sign()
	second := v.see("/console/tree")
	if !strings.Contains(second, "It begins with the tree of ") || strings.Contains(second, "NOT VERIFIED") || strings.Count(second, "bigmark verified") != 2 {
		t.Error(second)
	}
	task := v.see("/console/task?id=t&verify=1")
	if !strings.Contains(task, "All 4 events are, byte for byte, in the tree") || strings.Count(task, `class="mark verified"`) != 4 {
		t.Error(task)
	}
	ids, _ := shown(task)
	event := v.see("/console/event?id=" + ids[0])
	if !strings.Contains(event, "✓ verified") || !strings.Contains(event, "taskpass.example/log") || !strings.Contains(event, "&#34;task_id&#34;: &#34;t&#34;") {
		t.Error(event)
	}
}

// What the database's owner does behind the broker's back is said plainly, on each page that shows it.
func TestNotVerified(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sql  string
		path string
		want string
	}{
		"an altered event, on its task's page": {`UPDATE events SET body = replace(body, 'agent-17', 'agent-99') WHERE task_id = 't'`, "/console/task?id=t&verify=1", "NOT VERIFIED"},
		"an altered event, in the tree":        {`UPDATE events SET body = replace(body, 'agent-17', 'agent-99') WHERE task_id = 't'`, "/console/tree", "NOT VERIFIED"},
		"an altered leaf":                      {`UPDATE tree_leaves SET hash = sha256('x') WHERE idx = (SELECT max(idx) FROM tree_leaves)`, "/console/tree", "NOT VERIFIED"},
		"a removed event, on its page":         {`DELETE FROM events WHERE task_id = 't'`, "/console/event?id={ID}", "The event is gone"},
		"a removed event, in the tree":         {`DELETE FROM events WHERE task_id = 't'`, "/console/tree", "newest events are not what was signed. The event is gone"},
		"a removed event, another month away":  {`DELETE FROM events WHERE task_id = 't';` + away(1), "/console/event?id={ID}", "The event is gone"},
		"a removed event and its leaf":         {`DELETE FROM events WHERE task_id = 't'; DELETE FROM tree_leaves WHERE idx = 1`, "/console/tree", "NOT VERIFIED"},
		"a shorter tree":                       {`DELETE FROM tree_checkpoints WHERE size > (SELECT min(size) FROM tree_checkpoints)`, "/console/tree", "events are missing"},
		"an inserted event": {`INSERT INTO events (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body)
			SELECT 'evt_forged', at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, replace(body, id, 'evt_forged')
			FROM events WHERE task_id = 't' LIMIT 1`, "/console/task?id=t&verify=1", "was put into the record behind the broker"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.issue("aws", "t", "read")
			r.sign()
			r.clock.Advance(10 * time.Minute)
			r.issue("aws", "u", "read")
			r.sign()
			v := r.enter("aud")
			v.see("/console/tree") // remembers
			ids, _ := shown(v.see("/console/task?id=t"))
			c.path = strings.Replace(c.path, "{ID}", ids[0], 1)
			if body := v.see(c.path); strings.Contains(body, "NOT VERIFIED") {
				t.Fatal("before anything was done:", body)
			}
			if _, err := r.admin.Exec(t.Context(), c.sql); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second look is held against the same as the first
				if body := v.see(c.path); !strings.Contains(body, "NOT VERIFIED") || !strings.Contains(body, c.want) {
					t.Errorf("no %q in %s", c.want, body)
				}
			}
		})
	}
}

// away says in the database that the month so many after this one was archived.
func away(months int) string {
	return fmt.Sprintf(`INSERT INTO tree_archives (month, from_idx, to_idx, events, size, sha256)
		SELECT to_char(at AT TIME ZONE 'UTC' + interval '%d months', 'YYYY-MM'), 0, 1, 1, 1, sha256('') FROM tree_leaves WHERE idx = 0`, months)
}

// An archived event is not a verified one: only its hash is here, and that it was archived is the word of whoever owns the
// database. (The tree's page once counted it as verified, and one that was removed as archived.)
func TestArchivedIsNotVerified(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issue("aws", "t", "read")
	c := r.sign()
	v := r.enter("aud")
	ids, _ := shown(v.see("/console/task?id=t"))
	first := "/console/event?id=" + ids[0]
	remove := func(where string) {
		if _, err := r.admin.Exec(t.Context(), "DELETE FROM events WHERE "+where); err != nil {
			t.Fatal(err)
		}
	}
	remove("id = '" + ids[0] + "'")
	if body := v.see("/console/task?id=t&verify=1"); !strings.Contains(body, "All 1 events are") || strings.Contains(body, "archived") {
		t.Error("of what is left of the task:", body)
	}
	if _, err := r.admin.Exec(t.Context(), away(0)); err != nil {
		t.Fatal(err)
	}
	if body := v.see(first); !strings.Contains(body, `class="bigmark archived"`) || !strings.Contains(body, "not here to be held against that hash") ||
		strings.Contains(body, "✓") || strings.Contains(body, "not yet in the tree") {
		t.Error(body)
	}
	body := v.see("/console/tree")
	for part, n := range map[string]int{
		fmt.Sprintf("Of the %d newest events of the tree, %d lead to the signed root. Of the other 1 only the hashes do", c.Size, c.Size-1): 1,
		`class="bigmark archived"`: 1, `class="mark archived"`: 1, `class="mark verified"`: int(c.Size) - 1, `class="bigmark verified"`: 0, "NOT VERIFIED": 0,
	} {
		if strings.Count(body, part) != n {
			t.Errorf("not %d times %s: %s", n, part, body)
		}
	}
	remove("true")
	if body := v.see("/console/tree"); !strings.Contains(body, "0 lead to the signed root.") || strings.Contains(body, `class="mark verified"`) {
		t.Error("all are archived:", body)
	}
}

// A tree that was rewritten from the beginning, with the log's own key, is another one than the browser was shown.
func TestRewrittenHistory(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issue("aws", "t", "read")
	r.sign()
	v := r.enter("aud")
	v.see("/console/tree")
	for _, sql := range []string{
		"UPDATE events SET body = replace(body, 'agent-17', 'agent-99')", "TRUNCATE tree_leaves, tree_tiles, tree_checkpoints",
	} {
		if _, err := r.admin.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	again := newSequencer(t, r)
	eventually(t, "the forged tree is signed", func() bool {
		r.clock.Advance(2 * time.Second)
		_, err := again.Round(t.Context())
		must(t, err)
		cp, err := r.tree.Checkpoint(t.Context())
		waiting, _, lagErr := r.tree.Lag(t.Context())
		must(t, lagErr)
		return err == nil && cp.Size > 0 && waiting == 0
	})
	body := v.see("/console/tree")
	if !strings.Contains(body, "does not begin with the one of") || !strings.Contains(body, "history was rewritten") {
		t.Error(body)
	}
}

func TestWithoutATree(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(s *setup) { s.console.Tree = nil })
	r.issue("aws", "t", "read")
	v := r.enter("aud")
	for _, path := range []string{"/console/tree", "/console/task?id=t&verify=1", "/"} {
		if body := v.see(path); strings.Contains(body, "✓") || path != "/console/task?id=t&verify=1" && !strings.Contains(body, "nothing proves the record") {
			t.Errorf("%s: %s", path, body)
		}
	}
	if p := v.get("/console/event?id=x"); p.status != broker.CodeNotFound.Status() {
		t.Errorf("an event: %d", p.status)
	}
}
