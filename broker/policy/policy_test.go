package policy_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/policy"
)

func caller(name string) broker.Caller {
	return broker.Caller{Name: name, Role: broker.RoleOrchestrator}
}

func offer(rules ...broker.Rule) broker.Profile {
	return broker.Profile{
		Name: "p", Scopes: []string{"read", "write", "list"}, MinTTL: time.Minute, DefaultTTL: time.Hour, MaxTTL: 2 * time.Hour,
		Allow: rules,
	}
}

func ask(scopes ...string) broker.Request {
	return broker.Request{TaskID: "research-1", AgentID: "agent-1", Profile: "p", Scopes: scopes}
}

func TestDecide(t *testing.T) {
	t.Parallel()
	anyone := broker.Rule{Callers: []string{"*"}}
	with := func(r broker.Request, change func(*broker.Request)) broker.Request { change(&r); return r }
	for what, c := range map[string]struct {
		rules  []broker.Rule
		ask    broker.Request
		scopes []string
		ttl    time.Duration
		code   broker.Code
		faults []string // "pointer reason"
	}{
		"default TTL": {[]broker.Rule{anyone}, ask("read"), []string{"read"}, time.Hour, "", nil},
		"sorted, each once": {[]broker.Rule{anyone}, ask("write", "list", "write"), []string{"list", "write"},
			time.Hour, "", nil},
		"at the bounds": {[]broker.Rule{anyone}, with(ask("read"), func(r *broker.Request) { r.TTL = 2 * time.Hour }),
			[]string{"read"}, 2 * time.Hour, "", nil},
		"too long": {[]broker.Rule{anyone}, with(ask("read"), func(r *broker.Request) { r.TTL = 2*time.Hour + time.Second }), nil, 0,
			broker.CodeTTLOutOfRange, []string{"/ttl_seconds 7201 s exceeds this profile's 7200 s for you"}},
		"too short": {[]broker.Rule{anyone}, with(ask("read"), func(r *broker.Request) { r.TTL = time.Second }), nil, 0,
			broker.CodeTTLOutOfRange, []string{"/ttl_seconds 1 s is below this profile's 60 s"}},
		"no rule": {nil, ask("read"), nil, 0, broker.CodeForbidden, []string{"/profile no rule of this profile lets you ask"}},
		"an empty rule": {[]broker.Rule{{}}, ask("read"), nil, 0, broker.CodeForbidden,
			[]string{"/profile no rule of this profile lets you ask"}},
		"another's rule": {[]broker.Rule{{Callers: []string{"Orch", "orc", "orch2", "o*h"}}}, ask("read"), nil, 0, broker.CodeForbidden,
			[]string{"/profile no rule of this profile lets you ask"}},
		"prefixes": {[]broker.Rule{{Callers: []string{"or*"}, Tasks: []string{"research-*"}, Agents: []string{"agent-1*"}}},
			ask("read"), []string{"read"}, time.Hour, "", nil},
		"another task": {[]broker.Rule{{Callers: []string{"*"}, Tasks: []string{"billing-*"}}}, ask("read"), nil, 0,
			broker.CodeTaskNotAllowed, []string{"/task_id no rule of this profile allows you this task"}},
		"another agent": {[]broker.Rule{{Callers: []string{"*"}, Agents: []string{"agent-2"}}}, ask("read"), nil, 0,
			broker.CodeForbidden, []string{"/agent_id no rule of this profile allows you this agent"}},
		"both, never together": {[]broker.Rule{
			{Callers: []string{"*"}, Tasks: []string{"research-1"}, Agents: []string{"agent-2"}},
			{Callers: []string{"*"}, Tasks: []string{"research-2"}, Agents: []string{"agent-1"}},
		}, ask("read"), nil, 0, broker.CodeTaskNotAllowed,
			[]string{"/task_id no one rule of this profile allows you this task with this agent"}},
		"scopes of two rules": {[]broker.Rule{
			{Callers: []string{"*"}, Scopes: []string{"read"}}, {Callers: []string{"orch"}, Scopes: []string{"write"}},
		}, ask("read", "write"), []string{"read", "write"}, time.Hour, "", nil},
		"a scope that no rule covers": {[]broker.Rule{{Callers: []string{"*"}, Scopes: []string{"read"}}}, ask("read", "write"), nil, 0,
			broker.CodeScopeNotAllowed, []string{"/scopes/1 no rule of this profile allows you this scope for this task and agent"}},
		"a scope that only another task's rule covers": {[]broker.Rule{
			{Callers: []string{"*"}, Scopes: []string{"read"}}, {Callers: []string{"*"}, Tasks: []string{"x"}, Scopes: []string{"write"}},
		}, ask("write"), nil, 0, broker.CodeScopeNotAllowed,
			[]string{"/scopes/0 no rule of this profile allows you this scope for this task and agent"}},
		"the shortest of the scopes' TTLs": {[]broker.Rule{
			{Callers: []string{"*"}, Scopes: []string{"read"}}, {Callers: []string{"*"}, Scopes: []string{"write"}, MaxTTL: 30 * time.Minute},
		}, with(ask("read", "write"), func(r *broker.Request) { r.TTL = time.Hour }), nil, 0, broker.CodeTTLOutOfRange,
			[]string{"/ttl_seconds 3600 s exceeds this profile's 1800 s for you"}},
		"the longest of a scope's TTLs": {[]broker.Rule{
			{Callers: []string{"*"}, MaxTTL: time.Minute}, {Callers: []string{"*"}, Scopes: []string{"write"}, MaxTTL: 90 * time.Minute},
		}, with(ask("write"), func(r *broker.Request) { r.TTL = 90 * time.Minute }), []string{"write"}, 90 * time.Minute, "", nil},
		"a rule's TTL beyond the profile's": {[]broker.Rule{{Callers: []string{"*"}, MaxTTL: 100 * time.Hour}},
			with(ask("read"), func(r *broker.Request) { r.TTL = 3 * time.Hour }), nil, 0, broker.CodeTTLOutOfRange,
			[]string{"/ttl_seconds 10800 s exceeds this profile's 7200 s for you"}},
		"everything": {[]broker.Rule{{Callers: []string{"*"}, Scopes: []string{"read"}}},
			with(ask("own", "write", "read", "own"), func(r *broker.Request) { r.TTL = 5 * time.Hour }), nil, 0, broker.CodeUnknownScope,
			[]string{
				"/scopes/0 names no scope of this profile", "/scopes/3 names no scope of this profile",
				"/scopes/1 no rule of this profile allows you this scope for this task and agent",
				"/ttl_seconds 18000 s exceeds this profile's 7200 s for you",
			}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			grant, err := policy.Policy{}.Decide(caller("orch"), offer(c.rules...), c.ask)
			if c.code == "" {
				if err != nil || !slices.Equal(grant.Scopes, c.scopes) || grant.TTL != c.ttl {
					t.Errorf("granted %v, %v", grant, err)
				}
				return
			}
			e, ok := errors.AsType[*broker.Error](err)
			if !ok || e.Code != c.code || len(grant.Scopes) > 0 {
				t.Fatalf("granted %v, %v", grant, err)
			}
			var faults []string
			for _, f := range e.Faults {
				faults = append(faults, f.Pointer+" "+f.Reason)
				if !strings.Contains(e.Message, f.Reason) {
					t.Errorf("the message leaves out: %s", f.Reason)
				}
			}
			if diff := cmp.Diff(c.faults, faults); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestVisible(t *testing.T) {
	t.Parallel()
	p := offer(
		broker.Rule{Callers: []string{"a"}, Scopes: []string{"write"}, Tasks: []string{"x"}},
		broker.Rule{Callers: []string{"a*"}, Scopes: []string{"read"}},
		broker.Rule{Callers: []string{"all"}},
	)
	for name, want := range map[string][]string{"a": {"read", "write"}, "ab": {"read"}, "all": {"read", "write", "list"}, "b": nil} {
		got, ok := policy.Policy{}.Visible(caller(name), p)
		if !slices.Equal(got, want) || ok != (want != nil) {
			t.Errorf("%s sees %v, %v", name, got, ok)
		}
	}
}

// The properties below hold for whatever rules and requests come; the oracle says them in its own way.

var (
	scopePool   = []string{"read", "write", "list", "own"} // "own" is in few profiles
	namePool    = []string{"a", "ab", "abc", "b"}
	patternPool = []string{"a", "ab", "a*", "ab*", "b*", "*", "c", "abc*"}
)

type world struct {
	caller  broker.Caller
	profile broker.Profile
	request broker.Request
}

func some(r *rand.Rand, from []string, least int) []string {
	var list []string
	for range least + r.IntN(3) {
		list = append(list, from[r.IntN(len(from))])
	}
	return list
}

func draw(a, b uint64) world {
	r := rand.New(rand.NewPCG(a, b))
	minutes := func(least, n int) time.Duration { return time.Duration(least+r.IntN(n)) * time.Minute }
	w := world{
		caller: caller(namePool[r.IntN(4)]),
		profile: broker.Profile{
			Name: "p", Scopes: slices.Compact(slices.Sorted(slices.Values(some(r, scopePool, 3)))),
			MinTTL: minutes(0, 4), DefaultTTL: minutes(2, 4), MaxTTL: minutes(4, 4),
		},
		request: broker.Request{
			TaskID: namePool[r.IntN(4)], AgentID: namePool[r.IntN(4)], Profile: "p", Scopes: some(r, scopePool, 1), TTL: minutes(0, 8),
		},
	}
	for range r.IntN(4) {
		rule := broker.Rule{Callers: some(r, patternPool, 0), Tasks: some(r, patternPool, 0), Agents: some(r, patternPool, 0)}
		if r.IntN(2) == 0 {
			rule.Scopes, rule.MaxTTL = some(r, scopePool, 1), minutes(0, 8)
		}
		w.profile.Allow = append(w.profile.Allow, rule)
	}
	return w
}

func like(patterns []string, id string) bool {
	for _, p := range patterns {
		form := regexp.QuoteMeta(strings.TrimSuffix(p, "*"))
		if strings.HasSuffix(p, "*") {
			form += ".*"
		}
		if regexp.MustCompile(`\A` + form + `\z`).MatchString(id) {
			return true
		}
	}
	return false
}

// permits tells whether one rule lets this scope go to this caller, task and agent for that long.
func (w world) permits(rule broker.Rule, scope string, ttl time.Duration) bool {
	return like(rule.Callers, w.caller.Name) &&
		(len(rule.Tasks) == 0 || like(rule.Tasks, w.request.TaskID)) &&
		(len(rule.Agents) == 0 || like(rule.Agents, w.request.AgentID)) &&
		(len(rule.Scopes) == 0 || slices.Contains(rule.Scopes, scope)) &&
		(rule.MaxTTL == 0 || ttl <= rule.MaxTTL)
}

// granted is the whole policy in one sentence: every scope is the profile's, and some rule permits it for that long.
func (w world) granted() bool {
	ttl := w.request.TTL
	if ttl == 0 {
		ttl = w.profile.DefaultTTL
	}
	if ttl < w.profile.MinTTL || ttl > w.profile.MaxTTL {
		return false
	}
	for _, s := range w.request.Scopes {
		if !slices.Contains(w.profile.Scopes, s) ||
			!slices.ContainsFunc(w.profile.Allow, func(r broker.Rule) bool { return w.permits(r, s, ttl) }) {
			return false
		}
	}
	return true
}

func holds(t *testing.T, w world) {
	t.Helper()
	before := fmt.Sprintf("%+v", w)
	grant, err := policy.Policy{}.Decide(w.caller, w.profile, w.request)
	if after := fmt.Sprintf("%+v", w); after != before {
		t.Errorf("it changed its input:\n%s\n%s", before, after)
	}
	if want := w.granted(); want != (err == nil) {
		t.Errorf("granted: %v (%v), want %v, of %s", err == nil, err, want, before)
		return
	}
	if err != nil {
		refused(t, w, err)
		return
	}
	if want := slices.Compact(slices.Sorted(slices.Values(w.request.Scopes))); !slices.Equal(grant.Scopes, want) {
		t.Errorf("granted %v of %s", grant.Scopes, before) // all that was asked or an error, never less, never more
	}
	if grant.TTL != w.request.TTL && (w.request.TTL != 0 || grant.TTL != w.profile.DefaultTTL) {
		t.Errorf("granted %s of %s", grant.TTL, before)
	}
	visible, _ := policy.Policy{}.Visible(w.caller, w.profile)
	for _, s := range grant.Scopes {
		if !slices.Contains(visible, s) {
			t.Errorf("granted %s, which is not visible: %s", s, before)
		}
	}
}

// refused wants all reasons, each with a place, under a code that one of them stands for.
func refused(t *testing.T, w world, err error) {
	t.Helper()
	e, ok := errors.AsType[*broker.Error](err)
	if !ok || len(e.Faults) == 0 || e.Code.Status() < 403 || e.Code.Status() > 422 {
		t.Errorf("refused with %v", err)
		return
	}
	at := map[string]bool{}
	for _, f := range e.Faults {
		if f.Pointer == "" || f.Reason == "" || at[f.Pointer] && !strings.HasPrefix(f.Pointer, "/scopes/") {
			t.Errorf("reasons: %+v", e.Faults)
		}
		at[f.Pointer] = true
	}
	want := func(pointer string, because bool) {
		if because && !at[pointer] {
			t.Errorf("%s is not among the reasons %+v of %+v", pointer, e.Faults, w)
		}
	}
	unknown := false
	for i, s := range w.request.Scopes {
		foreign := !slices.Contains(w.profile.Scopes, s)
		unknown = unknown || foreign
		want(fmt.Sprintf("/scopes/%d", i), foreign)
	}
	ttl := w.request.TTL
	if ttl == 0 {
		ttl = w.profile.DefaultTTL
	}
	want("/ttl_seconds", ttl < w.profile.MinTTL || ttl > w.profile.MaxTTL)
	mine := slices.ContainsFunc(w.profile.Allow, func(r broker.Rule) bool { return like(r.Callers, w.caller.Name) })
	want("/profile", !mine)
	// Somebody who may not ask at all is told so, whatever else is wrong.
	if !mine && e.Code != broker.CodeForbidden || mine && unknown && e.Code != broker.CodeUnknownScope && e.Code != broker.CodeForbidden {
		t.Errorf("the code is %s, of %+v", e.Code, w)
	}
}

func TestPolicyHolds(t *testing.T) {
	t.Parallel()
	n := uint64(20_000)
	if testing.Short() {
		n /= 10
	}
	granted := uint64(0)
	for i := range n {
		w := draw(i, 1)
		holds(t, w)
		if w.granted() {
			granted++
		}
		// Deny by default, and no rule taken away grants more.
		w.profile.Allow = w.profile.Allow[:max(0, len(w.profile.Allow)-1)]
		holds(t, w)
		w.profile.Allow = nil
		if _, err := (policy.Policy{}).Decide(w.caller, w.profile, w.request); err == nil {
			t.Errorf("granted without a rule: %+v", w)
		}
		if t.Failed() {
			return
		}
	}
	if granted < n/40 {
		t.Errorf("only %d of the drawn requests are good: the test is worth little", granted)
	}
}

func FuzzPolicyHolds(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) { holds(t, draw(a, b)) })
}
