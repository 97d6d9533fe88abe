package store_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
)

func names(list []broker.Credential) []broker.CredentialID {
	var out []broker.CredentialID
	for _, c := range list {
		out = append(out, c.ID)
	}
	return out
}

// Filters narrow each other down; the newest comes first; pages follow each other without a gap.
func TestCredentials(t *testing.T) {
	t.Parallel()
	db := own(t)
	s, super := open(t, db), admin(t, db)
	states := broker.States()
	var all []broker.Credential // newest first
	for i := range 24 {
		c := credential()
		c.TaskID, c.AgentID = fmt.Sprintf("task-%d", i%3), fmt.Sprintf("agent-%d", i%4)
		c = put(t, super, c, states[i%len(states)])
		all = slices.Insert(all, 0, c)
	}
	if _, err := super.Exec(t.Context(), "UPDATE credentials SET caller = 'other', profile = 'p2' WHERE task_id = 'task-2'"); err != nil {
		t.Fatal(err)
	}
	for i := range all {
		if all[i].TaskID == "task-2" {
			all[i].Caller, all[i].Profile = "other", "p2"
		}
	}
	filters := []broker.Filter{
		{}, {Caller: "other"}, {Caller: "nobody"}, {Profile: "p2"}, {TaskID: "task-1"}, {AgentID: "agent-3"},
		{TaskID: "task-1", AgentID: "agent-3"}, {Caller: "other", TaskID: "task-1"}, {Caller: "orchestrator", Profile: "s3", TaskID: "task-0", AgentID: "agent-0"},
	}
	for _, state := range states {
		filters = append(filters, broker.Filter{State: state}, broker.Filter{State: state, AgentID: "agent-1"}, broker.Filter{State: state, Caller: "other"})
	}
	for _, f := range filters {
		var want []broker.CredentialID
		for _, c := range all {
			if (f.Caller == "" || c.Caller == f.Caller) && (f.Profile == "" || c.Profile == f.Profile) && (f.TaskID == "" || c.TaskID == f.TaskID) &&
				(f.AgentID == "" || c.AgentID == f.AgentID) && (f.State == "" || c.Version.State == f.State) {
				want = append(want, c.ID)
			}
		}
		f.Limit = 500
		got, err := s.Credentials(t.Context(), f)
		if err != nil {
			t.Fatalf("%+v: %v", f, err)
		}
		if page, next, err := s.CredentialPage(t.Context(), f); err != nil || next != "" || !slices.Equal(names(page), names(got)) {
			t.Errorf("%+v: one page has %d of %d, next %q, %v", f, len(page), len(got), next, err)
		}
		if diff := cmp.Diff(want, names(got)); diff != "" {
			t.Errorf("%+v (-want +got): %s", f, diff)
		}
		var paged []broker.CredentialID
		for f.Limit = 2; len(paged) <= len(all); {
			page, next, err := s.CredentialPage(t.Context(), f)
			if err != nil || len(page) > 2 {
				t.Fatalf("%+v: %d, %v", f, len(page), err)
			}
			paged = append(paged, names(page)...)
			if f.Before = next; next == "" {
				break
			}
		}
		if diff := cmp.Diff(want, paged); diff != "" {
			t.Errorf("%+v, by pages of 2 (-want +got): %s", f, diff)
		}
	}
	for limit, want := range map[int]int{-1: 1, 0: 1, 1: 1, 7: 7, 1_000_000: len(all)} {
		if got, err := s.Credentials(t.Context(), broker.Filter{Limit: limit}); err != nil || len(got) != want {
			t.Errorf("limit %d: %d, %v", limit, len(got), err)
		}
	}
}

// P12: what one page of a list costs is bounded, also for two common values that never meet; whoever follows next gets
// all. No next names another caller's credential. The largest page is followed by the next one.
func TestListsExamineABoundedNumber(t *testing.T) {
	t.Parallel()
	db := own(t)
	s, super := open(t, db), admin(t, db)
	for _, sql := range []string{
		`INSERT INTO credentials (id, caller, task_id, agent_id, profile, provider, requested, scopes, metadata, ttl_ms, created_at)
			SELECT 'crd_' || lpad(k::text, 26, '0'), 'caller-' || k % 2, 't', 'a', 'profile-' || CASE WHEN k < 10 THEN 9 ELSE k % 2 END,
				'aws', '{read}', '{read}', '{}', 1000, now() FROM generate_series(0, 24999) k`,
		`INSERT INTO versions (id, credential_id, number, provider, state, issued_at, expires_at, self_expires, upstream, upstream_ids, cause, ended_at)
			SELECT translate(lpad(k::text, 16, '0'), '0123456789', 'abcdefghij'), 'crd_' || lpad(k::text, 26, '0'), 1, 'aws',
				CASE WHEN k % 2 = 1 THEN 'failed' ELSE 'expired' END, now(), now() + interval '1 hour', true, 'x', '{}', CASE WHEN k % 2 = 1 THEN 'refused' ELSE 'expired' END, now()
			FROM generate_series(0, 24999) k`,
		"ANALYZE",
	} {
		if _, err := super.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		f           broker.Filter
		pages, want int
	}{
		{broker.Filter{Caller: "caller-0", Profile: "profile-1", Limit: 500}, 2, 0},
		{broker.Filter{Caller: "caller-0", Profile: "profile-9", Limit: 500}, 2, 5},
		{broker.Filter{TaskID: "t", Profile: "profile-9", Limit: 500}, 3, 10},
		{broker.Filter{AgentID: "a", Caller: "caller-1", State: broker.StateActive, Limit: 500}, 2, 0},
		{broker.Filter{State: broker.StateActive, Limit: 500}, 3, 0},
		{broker.Filter{State: broker.StateFailed, Profile: "profile-0", Limit: 500}, 2, 0},
		{broker.Filter{State: broker.StateFailed, Caller: "caller-0", Limit: 500}, 1, 0},
		{broker.Filter{Caller: "caller-1", Limit: 500}, 25, 12500},
		{broker.Filter{State: broker.StateFailed, Caller: "caller-1", Limit: 500}, 25, 12500},
	} {
		seen, pages := map[broker.CredentialID]bool{}, 0
		for f := c.f; pages < 100; {
			page, next, err := s.CredentialPage(t.Context(), f)
			if err != nil {
				t.Fatalf("%+v: %v", f, err)
			}
			for _, id := range names(page) {
				seen[id] = true
			}
			pages++
			if next != "" && f.Caller != "" && fmt.Sprintf("caller-%d", (next[len(next)-1]-'0')%2) != f.Caller {
				t.Errorf("%+v: the next page begins at %s, which is another caller's", c.f, next)
			}
			if f.Before = next; next == "" {
				break
			}
		}
		if pages != c.pages || len(seen) != c.want {
			t.Errorf("%+v: %d in %d pages, want %d in %d", c.f, len(seen), pages, c.want, c.pages)
		}
	}
}

// What a filter holds is data, whatever it looks like.
func TestFiltersAreData(t *testing.T) {
	t.Parallel()
	s := open(t, shared)
	c := begin(t, s, credential())
	for _, f := range []broker.Filter{
		{Caller: "' OR true --"}, {TaskID: "%"}, {AgentID: "_"}, {State: "active' OR 'a' = 'a"}, {Before: "' OR true --", Limit: 1}, {Profile: "s3'; DROP TABLE events; --"},
	} {
		if got, err := s.Credentials(t.Context(), f); err != nil || len(got) != 0 {
			t.Errorf("%+v: %d, %v", f, len(got), err)
		}
	}
	if events(t, s, c) != 1 {
		t.Error("the record has changed")
	}
}

// Trouble and slots are counted for the operator's gauges.
func TestTroubled(t *testing.T) {
	t.Parallel()
	db := own(t)
	s, super := open(t, db), admin(t, db)
	for i, state := range broker.States() {
		for range i + 1 {
			put(t, super, credential(), state)
		}
	}
	counts, err := s.Troubled(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, n := range counts {
		got[n.Of+" "+n.State] = n.N
	}
	want := map[string]int64{}
	for _, state := range []broker.State{broker.StateRevoking, broker.StateLost, broker.StateStuck} {
		want["aws "+string(state)] = int64(slices.Index(broker.States(), state) + 1)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if slots, err := s.Slots(t.Context()); err != nil || len(slots) != 0 {
		t.Errorf("%v, %v", slots, err)
	}
}
