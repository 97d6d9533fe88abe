package store_test

import (
	"fmt"
	"testing"

	"github.com/taskpass/taskpass/broker"
)

func TestVersionsOf(t *testing.T) {
	t.Parallel()
	db := own(t)
	s, super := open(t, db), admin(t, db)
	var want []string // newest first
	var last broker.Credential
	for i := range 3 {
		c := credential()
		c.TaskID = "task-" + fmt.Sprint(i/2)
		last = put(t, super, c, broker.StateActive)
		if i < 2 {
			want = append([]string{string(last.ID) + " 1"}, want...)
		}
		if i == 1 {
			next := string(broker.NewVersionID())
			if _, err := super.Exec(t.Context(), `INSERT INTO versions (id, credential_id, number, provider, state, issued_at, expires_at, self_expires, upstream, due_at)
				SELECT $2, credential_id, 2, provider, 'issuing', issued_at, expires_at, self_expires, upstream, due_at FROM versions WHERE credential_id = $1`, last.ID, next); err != nil {
				t.Fatal(err)
			}
			want = append([]string{string(last.ID) + " 2"}, want...)
			one, err := s.VersionsOf(t.Context(), last.ID, 10)
			if err != nil || fmt.Sprint(numbered(one)) != fmt.Sprint([]string{string(last.ID) + " 2", string(last.ID) + " 1"}) || string(one[0].Version.ID) != next {
				t.Errorf("of one credential: %v, %v", numbered(one), err)
			}
		}
	}
	got, err := s.VersionsOfTask(t.Context(), "orchestrator", "task-0", 10)
	if err != nil || fmt.Sprint(numbered(got)) != fmt.Sprint(want) {
		t.Errorf("of a task: %v, want %v, %v", numbered(got), want, err)
	}
	if got, err = s.VersionsOfTask(t.Context(), "orchestrator", "task-0", 2); err != nil || fmt.Sprint(numbered(got)) != fmt.Sprint(want[:2]) {
		t.Errorf("the newest two: %v, %v", numbered(got), err)
	}
	if got, err = s.VersionsOf(t.Context(), "crd_none", 10); err != nil || len(got) > 0 {
		t.Errorf("of nothing: %v, %v", got, err)
	}
}

func numbered(list []broker.Credential) []string {
	var out []string
	for _, c := range list {
		out = append(out, fmt.Sprintf("%s %d", c.ID, c.Version.Number))
	}
	return out
}

func TestLiveBy(t *testing.T) {
	t.Parallel()
	db := own(t)
	s, super := open(t, db), admin(t, db)
	for _, state := range []broker.State{broker.StateActive, broker.StateStuck, broker.StateRevoked, broker.StateFailed} {
		put(t, super, credential(), state)
	}
	if _, err := super.Exec(t.Context(), `TRUNCATE live_counts; INSERT INTO live_counts (kind, key, live, most)
		VALUES ('agent', 'orch/b', 3, 9), ('agent', 'orch/a', 3, 9), ('agent', 'orch/c', 7, 9), ('agent', 'orch/d', 0, 9), ('profile', 'p', 1, 9)`); err != nil {
		t.Fatal(err)
	}
	for by, want := range map[string]string{"provider": "[{aws  2}]", "agent": "[{orch/c  7} {orch/a  3}]", "profile": "[{p  1}]", "caller": "[]"} {
		got, err := s.LiveBy(t.Context(), by, 2)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("by %s: %v, want %s, %v", by, got, want, err)
		}
	}
}
