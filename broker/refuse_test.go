package broker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/broker"
)

// several asks for one credential of each profile, for one task and agent.
func several(task string, profiles ...string) []broker.Request {
	rs := make([]broker.Request, len(profiles))
	for i, p := range profiles {
		rs[i] = ask(task)
		rs[i].Profile = p
	}
	return rs
}

// refusals shows what is on record of a task's refusals: one line for each event, with its reasons.
func (h *house) refusals(task string) []string {
	h.t.Helper()
	var list []string
	for _, e := range h.events(task) {
		if e.Type == string(broker.EventRefused) {
			line := e.Profile + " " + e.Code
			for _, r := range e.Reasons {
				line += fmt.Sprintf("; %s %s", r.Pointer, r.Reason)
			}
			list = append(list, line)
		}
	}
	return list
}

// A batch over its quota is answered with every credential that is over a limit and every limit that it exceeds, and
// each is on record.
func TestBatchQuotaNamesAll(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limits       broker.Limits
		before, asks []string
		faults       []string
		refusals     []string
	}{
		"a profile's, not the first one": {
			broker.Limits{PerTask: 9, PerAgent: 9, PerProfile: 2, PerCaller: 9}, []string{"q"}, []string{"p", "q", "q"},
			[]string{"/credentials/1/profile 1 of this profile's 2", "/credentials/2/profile 1 of this profile's 2"},
			[]string{"q quota_exceeded; /credentials/1/profile", "q quota_exceeded; /credentials/2/profile"},
		},
		"two profiles'": {
			broker.Limits{PerTask: 9, PerAgent: 9, PerProfile: 1, PerCaller: 9}, []string{"p", "q"}, []string{"p", "q"},
			[]string{"/credentials/0/profile 1 of this profile's 1", "/credentials/1/profile 1 of this profile's 1"},
			[]string{"p quota_exceeded; /credentials/0/profile", "q quota_exceeded; /credentials/1/profile"},
		},
		"every limit, with nothing alive": {
			broker.Limits{PerTask: 1, PerAgent: 1, PerProfile: 1, PerCaller: 1}, nil, []string{"p", "q", "q"},
			[]string{
				"/credentials/0 0 of this task's 1", "/credentials/0 0 of this agent's 1", "/credentials/0 0 of this caller's 1",
				"/credentials/1 0 of this task's 1", "/credentials/2/profile 0 of this profile's 1",
			},
			[]string{"p quota_exceeded; /credentials/0", "q quota_exceeded; /credentials/1", "q quota_exceeded; /credentials/2"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, func(b *broker.Config) {
				b.Limits = c.limits
				b.Profiles["q"] = profile("q", "vendor", b.Profiles["p"].Upstream)
			})
			for _, p := range c.before {
				if _, err := h.IssueAll(t.Context(), orchestrator, several("t", p), ""); err != nil {
					t.Fatal(err)
				}
			}
			_, err := h.IssueAll(t.Context(), orchestrator, several("t", c.asks...), "")
			wantCode(t, "the batch", err, broker.CodeQuotaExceeded)
			e := broker.AsError(err)
			for _, want := range c.faults {
				pointer, reason, _ := strings.Cut(want, " ")
				if !slices.ContainsFunc(e.Faults, func(f broker.Fault) bool {
					return f.Pointer == pointer && strings.Contains(f.Reason, reason)
				}) || !strings.Contains(e.Message, reason) {
					t.Errorf("not named: %s, in %q and %v", want, e.Message, e.Faults)
				}
			}
			if e.RetryAfter <= 0 {
				t.Error("it does not say when to try again")
			}
			got := h.refusals("t")
			if len(got) != len(c.refusals) {
				t.Errorf("on record: %q, want %q", got, c.refusals)
			}
			for _, want := range c.refusals {
				if !slices.ContainsFunc(got, func(line string) bool { return strings.HasPrefix(line, want) }) {
					t.Errorf("not on record: %q, but %q", want, got)
				}
			}
		})
	}
}

// What the policy, or an ended task, says no to is named and recorded for each credential of a batch too.
func TestBatchRefusalNamesAll(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	rs := several("t", "p", "nothing", "p")
	rs[2].Scopes = []string{"fly"}
	_, err := h.IssueAll(t.Context(), orchestrator, rs, "")
	wantCode(t, "two faults", err, broker.CodeUnknownProfile)
	for _, pointer := range []string{"/credentials/1/profile", "/credentials/2/scopes/0"} {
		if !slices.ContainsFunc(broker.AsError(err).Faults, func(f broker.Fault) bool { return f.Pointer == pointer }) {
			t.Errorf("%s is not named: %v", pointer, broker.AsError(err).Faults)
		}
	}
	got := h.refusals("t")
	if len(got) != 2 || !strings.Contains(strings.Join(got, "\n"), "unknown_scope") || !strings.Contains(strings.Join(got, "\n"), "unknown_profile") {
		t.Errorf("on record: %q", got)
	}
	if _, err := h.EndTask(t.Context(), orchestrator, "t", "", ""); err != nil {
		t.Fatal(err)
	}
	_, err = h.IssueAll(t.Context(), orchestrator, several("t", "p", "p"), "")
	wantCode(t, "an ended task", err, broker.CodeTaskEnded)
	if got := h.refusals("t"); len(got) != 4 {
		t.Errorf("on record: %q", got)
	}
}
