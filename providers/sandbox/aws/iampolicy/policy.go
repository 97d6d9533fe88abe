// Package iampolicy reads AWS identity and session policies and says what one
// request gets from them.
//
// It decides the part of IAM that Taskpass relies on: Effect, Action and
// NotAction, Resource and NotResource, policy variables, and the condition
// operators listed in condition.go. What it does not understand fails closed: an
// unknown operator or condition key makes a Deny apply and an Allow not apply, so
// a policy can only be stricter here than on AWS. It refuses to know principals,
// permission boundaries, resource policies and service control policies.
//
// Source for the grammar and its evaluation: AWS IAM User Guide, "Grammar of the
// IAM JSON policy language", "IAM JSON policy elements reference" and "Policy
// evaluation logic".
package iampolicy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// ErrMalformed is in every error that Parse returns. The rest of its text is in
// AWS's words where AWS has some; a caller answers it as MalformedPolicyDocument.
var ErrMalformed = errors.New("malformed policy document")

// variablesSince is the policy language version that has policy variables; in the
// older one, which is also the default, "${aws:userid}" is plain text.
const variablesSince = "2012-10-17"

// Document is one parsed policy. The zero value has no statement and decides
// nothing. A Document does not change and may be used by many goroutines.
type Document struct {
	statements []statement
}

type statement struct {
	deny       bool
	actions    patterns
	resources  patterns
	conditions []condition
}

// patterns is an Action or Resource element, or the Not… form of one.
type patterns struct {
	negated bool
	any     []pattern
}

// Parse reads an identity or session policy. It is strict where AWS is strict, and
// also refuses a repeated JSON key, where the two readings could disagree.
func Parse(text string) (*Document, error) {
	if !json.Valid([]byte(text)) {
		return nil, malformed("The policy is not in the valid JSON format.")
	}
	top, err := object([]byte(text), "Version", "Id", "Statement")
	if err != nil {
		return nil, err
	}
	version := "2008-10-17"
	if raw, ok := top["Version"]; ok {
		if json.Unmarshal(raw, &version) != nil || version != "2008-10-17" && version != variablesSince {
			return nil, malformed("The policy must contain a valid version string")
		}
	}
	raws, err := list(top["Statement"])
	if err != nil || len(raws) == 0 {
		return nil, malformed("Syntax errors in policy.")
	}
	doc, sids := &Document{}, map[string]bool{}
	for _, raw := range raws {
		st, sid, err := parseStatement(raw, version == variablesSince)
		if err != nil {
			return nil, err
		}
		if sid != "" && sids[sid] {
			return nil, malformed("Statement IDs (SID) in a single policy must be unique.")
		}
		sids[sid] = true
		doc.statements = append(doc.statements, st)
	}
	return doc, nil
}

func parseStatement(raw json.RawMessage, variables bool) (st statement, sid string, err error) {
	fields, err := object(raw, "Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Condition",
		"Principal", "NotPrincipal")
	if err != nil {
		return st, "", err
	}
	if fields["Principal"] != nil || fields["NotPrincipal"] != nil {
		return st, "", malformed("Policy document should not specify a principal.")
	}
	if r, ok := fields["Sid"]; ok && (json.Unmarshal(r, &sid) != nil || !alphanumeric(sid)) {
		return st, "", malformed("Statement IDs (SID) must be alpha-numeric.")
	}
	var effect string
	if json.Unmarshal(fields["Effect"], &effect) != nil || effect != "Allow" && effect != "Deny" {
		return st, "", malformed("Syntax errors in policy.")
	}
	st.deny = effect == "Deny"
	// AWS has no variables in actions and ignores their case.
	if st.actions, err = element(fields, "Action", checkAction, patternMode{fold: true}); err != nil {
		return st, "", err
	}
	if st.resources, err = element(fields, "Resource", checkResource, patternMode{variables: variables}); err != nil {
		return st, "", err
	}
	st.conditions, err = parseConditions(fields["Condition"], variables)
	return st, sid, err
}

// element reads name or Not+name, exactly one of which must be there with at least
// one entry.
func element(fields map[string]json.RawMessage, name string, check func(string) error, mode patternMode) (patterns, error) {
	raw, negated := fields[name], false
	if not := fields["Not"+name]; not != nil {
		if raw != nil {
			return patterns{}, malformed("Syntax errors in policy.")
		}
		raw, negated = not, true
	}
	texts, err := stringList(raw)
	if err != nil {
		return patterns{}, err
	}
	if len(texts) == 0 {
		return patterns{}, malformed("Policy statement must contain %ss.", strings.ToLower(name))
	}
	p := patterns{negated: negated}
	for _, text := range texts {
		if err := check(text); err != nil {
			return patterns{}, err
		}
		p.any = append(p.any, compile(text, mode))
	}
	return p, nil
}

func checkAction(a string) error {
	if vendor, name, ok := strings.Cut(a, ":"); a == "*" || ok && vendor != "" && name != "" {
		return nil
	}
	return malformed("Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc.")
}

func checkResource(r string) error {
	if r == "*" || strings.HasPrefix(r, "arn:") && strings.Count(r, ":") >= 5 {
		return nil
	}
	return malformed("Resource %s must be in ARN format or \"*\".", r)
}

// object reads a JSON object that has only the allowed keys, each once, spelled
// exactly. With no allowed keys it takes any key.
func object(raw []byte, allowed ...string) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, malformed("Syntax errors in policy.")
	}
	fields := map[string]json.RawMessage{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, malformed("Syntax errors in policy.")
		}
		name, _ := key.(string)
		if fields[name] != nil || len(allowed) > 0 && !slices.Contains(allowed, name) {
			return nil, malformed("Syntax errors in policy.")
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, malformed("Syntax errors in policy.")
		}
		fields[name] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, malformed("Syntax errors in policy.")
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, malformed("The policy is not in the valid JSON format.")
	}
	return fields, nil
}

// list reads an array, or one value as an array of one; nothing is an empty list.
func list(raw json.RawMessage) ([]json.RawMessage, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	if raw[0] != '[' {
		return []json.RawMessage{raw}, nil
	}
	var out []json.RawMessage
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, malformed("Syntax errors in policy.")
	}
	return out, nil
}

func stringList(raw json.RawMessage) ([]string, error) {
	raws, err := list(raw)
	if err != nil {
		return nil, err
	}
	out := make([]string, len(raws))
	for i, r := range raws {
		// null would leave the string empty without an error.
		if r[0] != '"' || json.Unmarshal(r, &out[i]) != nil {
			return nil, malformed("Syntax errors in policy.")
		}
	}
	return out, nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}

func alphanumeric(s string) bool {
	for _, r := range s {
		if (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			return false
		}
	}
	return true
}
