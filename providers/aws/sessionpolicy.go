package aws

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// policy is an IAM policy document: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html
type policy struct {
	Version   string
	Statement []statement
}

type statement struct {
	Effect    string
	Action    oneOrMany
	Resource  oneOrMany
	Condition map[string]map[string]oneOrMany `json:",omitempty"`
}

// oneOrMany is written as a string when it holds one: each character counts against the limit.
type oneOrMany []string

func (o oneOrMany) MarshalJSON() ([]byte, error) {
	if len(o) == 1 {
		return json.Marshal(o[0])
	}
	return json.Marshal([]string(o))
}

// sessionPolicy makes the policy that bounds one session: its scopes' statements, merged; no STS and no IAM, so that it
// cannot chain out of its scope; and nothing at all after its end, which may come before STS's own. It also returns the
// managed policies that the scopes name.
//
// STS measures the policy in characters: 2,048 at most.
func sessionPolicy(cfg Config, c broker.Credential) (document string, arns []string, err error) {
	var allow []statement
	for _, name := range c.Scopes {
		scope := cfg.Scopes[name]
		for _, fragment := range scope.Statements {
			s, err := fragment.resolve(c)
			if err != nil {
				return "", nil, err
			}
			allow = append(allow, s)
		}
		arns = append(arns, scope.PolicyARNs...)
	}
	p := policy{Version: "2012-10-17", Statement: merge(allow)}
	if cfg.STSAndIAM != "accept" {
		p.Statement = append(p.Statement, statement{Effect: "Deny", Action: oneOrMany{"iam:*", "sts:*"}, Resource: oneOrMany{"*"}})
	}
	p.Statement = append(p.Statement,
		// Whole seconds, rounded down, and from that second on: the session is never alive after ExpiresAt, and may end up
		// to a second before it.
		statement{Effect: "Deny", Action: oneOrMany{"*"}, Resource: oneOrMany{"*"}, Condition: map[string]map[string]oneOrMany{
			"DateGreaterThanEquals": {"aws:CurrentTime": {c.Version.ExpiresAt.UTC().Truncate(time.Second).Format(time.RFC3339)}},
		}})
	text, err := json.Marshal(p)
	if err != nil {
		return "", nil, err
	}
	slices.Sort(arns)
	arns = slices.Compact(arns)
	document = escaped(text)
	length := len(document)
	for _, a := range arns {
		length += len(a)
	}
	if length > maxPolicyLength || len(arns) > maxPolicyARNs {
		return "", nil, tooLarge(cfg, c, length, len(arns))
	}
	return document, arns, nil
}

// tooLarge says which scopes made a policy too long, the longest first.
func tooLarge(cfg Config, c broker.Credential, length, arns int) error {
	e := broker.Errorf(broker.CodeInvalidRequest,
		"the scopes %s together need a session policy of %d characters and %d managed policies; AWS takes %d and %d: ask for fewer scopes",
		strings.Join(c.Scopes, ", "), length, arns, maxPolicyLength, maxPolicyARNs)
	sizes := map[string]int{}
	for _, name := range c.Scopes {
		scope := cfg.Scopes[name]
		for _, a := range scope.PolicyARNs {
			sizes[name] += len(a)
		}
		for _, fragment := range scope.Statements {
			if s, err := fragment.resolve(c); err == nil {
				text, _ := json.Marshal(s) // strings and maps of strings always encode
				sizes[name] += len(escaped(text)) + 1
			}
		}
	}
	names := slices.Clone(c.Scopes)
	slices.SortStableFunc(names, func(a, b string) int { return sizes[b] - sizes[a] })
	for _, name := range names {
		e.Faults = append(e.Faults, broker.Fault{Pointer: "/scopes", Reason: fmt.Sprintf("%s alone needs %d of the %d characters and %d of the %d managed policies",
			name, sizes[name], maxPolicyLength, len(cfg.Scopes[name].PolicyARNs), maxPolicyARNs)})
	}
	return e
}

func (f Statement) resolve(c broker.Credential) (statement, error) {
	s := statement{Effect: "Allow", Action: slices.Clone(f.Actions)}
	for _, r := range f.Resources {
		filled, err := broker.Template(r).Fill(c.Placeholder)
		if err != nil {
			return s, err
		}
		s.Resource = append(s.Resource, filled)
	}
	for op, keys := range f.Conditions {
		for key, values := range keys {
			for _, v := range values {
				filled, err := broker.Template(v).Fill(c.Placeholder)
				if err != nil {
					return s, err
				}
				s.condition(op)[key] = append(s.condition(op)[key], filled)
			}
		}
	}
	return s, nil
}

func (s *statement) condition(op string) map[string]oneOrMany {
	if s.Condition == nil {
		s.Condition = map[string]map[string]oneOrMany{}
	}
	if s.Condition[op] == nil {
		s.Condition[op] = map[string]oneOrMany{}
	}
	return s.Condition[op]
}

// merge joins statements that differ in their actions only, then those that differ in their resources only. Both keep
// what is allowed exactly as it was; the order is fixed, so equal requests get equal policies.
func merge(list []statement) []statement {
	list = join(list, func(s statement) any { return []any{normal(s.Resource), s.Condition} },
		func(into *statement, s statement) { into.Action = append(into.Action, s.Action...) })
	list = join(list, func(s statement) any { return []any{normal(s.Action), s.Condition} },
		func(into *statement, s statement) { into.Resource = append(into.Resource, s.Resource...) })
	for i := range list {
		list[i].Action, list[i].Resource = normal(list[i].Action), normal(list[i].Resource)
	}
	slices.SortFunc(list, func(a, b statement) int {
		return strings.Compare(fmt.Sprint(a.Action, a.Resource), fmt.Sprint(b.Action, b.Resource))
	})
	return list
}

func join(list []statement, key func(statement) any, into func(*statement, statement)) []statement {
	at := map[string]int{}
	var out []statement
	for _, s := range list {
		text, _ := json.Marshal(key(s)) // strings and maps of strings always encode
		if i, ok := at[string(text)]; ok {
			into(&out[i], s)
			continue
		}
		at[string(text)] = len(out)
		out = append(out, s)
	}
	return out
}

func normal(list oneOrMany) oneOrMany { return slices.Compact(slices.Sorted(slices.Values(list))) }
