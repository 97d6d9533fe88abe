// Package policy decides who may ask for what. It is pure: no I/O, no clock.
//
// Deny by default: what no rule of a profile allows is refused. A refusal gives every reason at once, so that whoever
// reads it can mend the request in one go; it never narrows a request silently (P6).
package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Policy implements broker.Policy by the rules that stand in each profile.
type Policy struct{}

// Decide implements broker.Policy.
func (Policy) Decide(caller broker.Caller, p broker.Profile, r broker.Request) (broker.Grant, error) {
	var no refusal
	scopes := slices.Compact(slices.Sorted(slices.Values(r.Scopes)))
	known := slices.DeleteFunc(slices.Clone(scopes), func(s string) bool { return !slices.Contains(p.Scopes, s) })
	for i, s := range r.Scopes {
		if !slices.Contains(p.Scopes, s) {
			no.add(broker.CodeUnknownScope, fmt.Sprintf("/scopes/%d", i), "names no scope of this profile")
		}
	}
	ttl := r.TTL
	if ttl == 0 {
		ttl = p.DefaultTTL
	}
	maxTTL := allowed(&no, caller, p, r, known)
	switch {
	case ttl < p.MinTTL:
		no.add(broker.CodeTTLOutOfRange, "/ttl_seconds", fmt.Sprintf("%s is below this profile's %s", seconds(ttl), seconds(p.MinTTL)))
	case ttl > min(p.MaxTTL, maxTTL):
		no.add(broker.CodeTTLOutOfRange, "/ttl_seconds", fmt.Sprintf("%s exceeds this profile's %s for you", seconds(ttl), seconds(min(p.MaxTTL, maxTTL))))
	}
	if err := no.err(); err != nil {
		return broker.Grant{}, err
	}
	return broker.Grant{Scopes: scopes, TTL: ttl}, nil
}

// allowed asks the rules. One rule must let the caller, the task and the agent in; the scopes may come from several that
// do. It returns the longest TTL among the rules that matched.
func allowed(no *refusal, caller broker.Caller, p broker.Profile, r broker.Request, scopes []string) time.Duration {
	mine := slices.DeleteFunc(slices.Clone(p.Allow), func(rule broker.Rule) bool { return !matches(rule.Callers, caller.Name) })
	if len(mine) == 0 {
		no.add(broker.CodeForbidden, "/profile", "no rule of this profile lets you ask")
		return p.MaxTTL
	}
	fits := slices.DeleteFunc(slices.Clone(mine), func(rule broker.Rule) bool {
		return !matchesOrAny(rule.Tasks, r.TaskID) || !matchesOrAny(rule.Agents, r.AgentID)
	})
	if len(fits) == 0 {
		reasonForIDs(no, mine, r)
		return p.MaxTTL
	}
	var longest time.Duration
	for _, rule := range fits {
		longest = max(longest, ruleTTL(rule, p))
	}
	for _, s := range scopes {
		i := slices.Index(r.Scopes, s)
		covering := slices.DeleteFunc(slices.Clone(fits), func(rule broker.Rule) bool { return !covers(rule, s) })
		if len(covering) == 0 {
			no.add(broker.CodeScopeNotAllowed, fmt.Sprintf("/scopes/%d", i), "no rule of this profile allows you this scope for this task and agent")
			continue
		}
		// A scope is allowed for as long as the most generous rule that covers it says.
		var most time.Duration
		for _, rule := range covering {
			most = max(most, ruleTTL(rule, p))
		}
		longest = min(longest, most)
	}
	return longest
}

func ruleTTL(rule broker.Rule, p broker.Profile) time.Duration {
	if rule.MaxTTL == 0 {
		return p.MaxTTL
	}
	return rule.MaxTTL
}

// reasonForIDs tells which of the ids no rule takes.
func reasonForIDs(no *refusal, rules []broker.Rule, r broker.Request) {
	if !slices.ContainsFunc(rules, func(rule broker.Rule) bool { return matchesOrAny(rule.Tasks, r.TaskID) }) {
		no.add(broker.CodeTaskNotAllowed, "/task_id", "no rule of this profile allows you this task")
	}
	if !slices.ContainsFunc(rules, func(rule broker.Rule) bool { return matchesOrAny(rule.Agents, r.AgentID) }) {
		no.add(broker.CodeForbidden, "/agent_id", "no rule of this profile allows you this agent")
	}
	if len(no.faults) == 0 {
		no.add(broker.CodeTaskNotAllowed, "/task_id", "no one rule of this profile allows you this task with this agent")
	}
}

// Visible implements broker.Policy. For a task's own token only rules that take its task count.
func (Policy) Visible(caller broker.Caller, p broker.Profile) ([]string, bool) {
	var scopes []string
	for _, s := range p.Scopes {
		if slices.ContainsFunc(p.Allow, func(rule broker.Rule) bool {
			return matches(rule.Callers, caller.Name) && covers(rule, s) &&
				(caller.Role != broker.RoleAgent || matchesOrAny(rule.Tasks, caller.TaskID))
		}) {
			scopes = append(scopes, s)
		}
	}
	return scopes, len(scopes) > 0
}

func covers(rule broker.Rule, scope string) bool {
	return len(rule.Scopes) == 0 || slices.Contains(rule.Scopes, scope)
}

func matchesOrAny(patterns []string, id string) bool {
	return len(patterns) == 0 || matches(patterns, id)
}

// matches compares an id with patterns: whole, or by what stands before a trailing "*".
func matches(patterns []string, id string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if prefix, ok := strings.CutSuffix(p, "*"); ok {
			return strings.HasPrefix(id, prefix)
		}
		return p == id
	})
}

func seconds(d time.Duration) string { return fmt.Sprintf("%g s", d.Seconds()) }

// refusal collects reasons. Its code is the gravest: what nobody could be granted before what this caller could not.
type refusal struct {
	code   broker.Code
	faults []broker.Fault
}

var gravity = []broker.Code{
	broker.CodeForbidden, broker.CodeUnknownScope, broker.CodeTaskNotAllowed, broker.CodeScopeNotAllowed, broker.CodeTTLOutOfRange,
}

func (r *refusal) add(code broker.Code, pointer, reason string) {
	r.faults = append(r.faults, broker.Fault{Pointer: pointer, Reason: reason})
	if r.code == "" || slices.Index(gravity, code) < slices.Index(gravity, r.code) {
		r.code = code
	}
}

func (r *refusal) err() error {
	if len(r.faults) == 0 {
		return nil
	}
	reasons := make([]string, len(r.faults))
	for i, f := range r.faults {
		reasons[i] = strings.TrimPrefix(f.Pointer, "/") + " " + f.Reason
	}
	return &broker.Error{Code: r.code, Message: strings.Join(reasons, "; "), Faults: r.faults}
}
