package aws

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/taskpass/taskpass/broker"
)

var (
	placeholder = regexp.MustCompile(`\{\{\.(?:TaskID|AgentID|Metadata\.([A-Za-z0-9._:@-]+))\}\}`)
	idRun       = regexp.MustCompile(`^[A-Za-z0-9._:@-]*$`)
)

// checkTemplate refuses what would let one task's values match another's resources: between a placeholder and a wildcard
// there must stand a character that no id contains. `tasks/{{.TaskID}}*` would let task "a" into task "ab".
func checkTemplate(text string) error {
	rest := placeholder.ReplaceAllString(text, "")
	if strings.Contains(rest, "{{") || strings.Contains(rest, "}}") {
		return fmt.Errorf("has a placeholder that is not {{.TaskID}}, {{.AgentID}} or {{.Metadata.key}}")
	}
	end := -1
	for _, at := range placeholder.FindAllStringIndex(text, -1) {
		before, after := text[:at[0]], text[at[1]:]
		if end >= 0 && joins(text[end:at[0]]) {
			return fmt.Errorf("has placeholders that run into each other: put a / between")
		}
		end = at[1]
		if strings.Contains(before, "*") && strings.Contains(after, "*") {
			return fmt.Errorf("has a wildcard before and one after a placeholder: one id could match another's rest")
		}
		if i := strings.LastIndexAny(before, "*?"); i >= 0 && joins(before[i+1:]) {
			return fmt.Errorf("has a wildcard that runs into a placeholder: one id could match another's end; put a / between")
		}
		if i := strings.IndexAny(after, "*?"); i >= 0 && joins(after[:i]) {
			return fmt.Errorf("has a placeholder that runs into a wildcard: one id could match another's beginning; put a / between")
		}
	}
	return nil
}

// joins tells whether a text could be part of an id, placeholders in it included.
func joins(text string) bool { return idRun.MatchString(placeholder.ReplaceAllString(text, "")) }

// fill puts the credential's values in place of the placeholders. Task and agent ids have a safe alphabet by contract;
// a metadata value must have it too once it is used here, so no value can hold a wildcard, a slash, a quote, or the
// dollar sign of an IAM policy variable.
func fill(text string, c broker.Credential) (string, error) {
	var failed error
	out := placeholder.ReplaceAllStringFunc(text, func(found string) string {
		value := ""
		switch name := found[len("{{.") : len(found)-len("}}")]; name {
		case "TaskID":
			value = c.TaskID
		case "AgentID":
			value = c.AgentID
		default:
			key := strings.TrimPrefix(name, "Metadata.")
			value = c.Metadata[key]
			if !broker.ValidID(value) {
				failed = badMetadata(key)
				return ""
			}
		}
		if !broker.ValidID(value) {
			failed = broker.Errorf(broker.CodeInvalidRequest, "an id has characters that no policy may hold")
		}
		return value
	})
	return out, failed
}

func badMetadata(key string) error {
	e := broker.Errorf(broker.CodeInvalidRequest, "metadata %s is used in this profile's policy: it must be 1-128 of A-Z a-z 0-9 . _ : @ -", key)
	e.Faults = []broker.Fault{{Pointer: "/metadata/" + key, Reason: "is used in this profile's policy and must be 1-128 of A-Z a-z 0-9 . _ : @ -"}}
	return e
}
