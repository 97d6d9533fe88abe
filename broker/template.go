package broker

import (
	"errors"
	"regexp"
	"slices"
	"strings"
)

// Template is a text of the configuration with placeholders such as {{.TaskID}}. Values are put in their place and
// nothing else happens: there are no actions and no conditions, and a value is not read again.
//
// Each provider says which names it knows, and escapes values for where its text is used. For those of a task see
// CheckApart and Placeholder.
type Template string

var placeholder = regexp.MustCompile(`\{\{\.([A-Za-z0-9._:@-]+)\}\}`)

// split gives the names of the placeholders, and the texts around them: one more than there are names.
func (t Template) split() (texts, names []string) {
	end := 0
	for _, at := range placeholder.FindAllStringSubmatchIndex(string(t), -1) {
		texts, names = append(texts, string(t[end:at[0]])), append(names, string(t[at[2]:at[3]]))
		end = at[1]
	}
	return append(texts, string(t[end:])), names
}

// Without is the text without its placeholders.
func (t Template) Without() string {
	texts, _ := t.split()
	return strings.Join(texts, "")
}

// Names lists what the placeholders are called, as often as they stand there.
func (t Template) Names() []string {
	_, names := t.split()
	return names
}

// Check tells whether every {{ begins a placeholder of a known name. A lone }} is text: it ends many a JSON document.
func (t Template) Check(known func(name string) bool) bool {
	texts, names := t.split()
	return !slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(s, "{{") }) &&
		!slices.ContainsFunc(names, func(name string) bool { return !known(name) })
}

// Fill puts values in place of the placeholders, each as value gives it, so escaped. The first error ends it.
func (t Template) Fill(value func(name string) (string, error)) (string, error) {
	texts, names := t.split()
	var out strings.Builder
	out.WriteString(texts[0])
	for i, name := range names {
		v, err := value(name)
		if err != nil {
			return "", err
		}
		out.WriteString(v)
		out.WriteString(texts[i+1])
	}
	return out.String(), nil
}

// Match is how an upstream holds the names of its resources against a text.
type Match int

const (
	MatchWildcards Match = iota // "*" stands for any text and "?" for any character, as in policies of AWS
	MatchPrefix                 // a name matches that begins with the text
)

// CheckApart refuses what would let one task's values match another's resources: between a placeholder and whatever
// stands for other text there must be a character that no id has. `tasks/{{.TaskID}}*` would let task "a" into task "ab".
func (t Template) CheckApart(m Match) error {
	texts, names := t.split()
	if !t.Check(ofRequest) || slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(s, "}}") }) {
		return errors.New("has a placeholder that is not {{.Caller}}, {{.TaskID}}, {{.AgentID}} or {{.Metadata.key}}")
	}
	if len(names) == 0 {
		return nil
	}
	wild := "*?"
	if m == MatchPrefix {
		wild = ""
	}
	first, last := -1, -1 // where a * stands
	for i, text := range texts {
		followed, follows := i < len(names), i > 0
		if followed && follows && idText(text) {
			return errors.New("has placeholders that run into each other: put a / between")
		}
		if at := strings.LastIndexAny(text, wild); followed && at >= 0 && idText(text[at+1:]) {
			return errors.New("has a wildcard that runs into a placeholder: one id could match another's end; put a / between")
		}
		at := strings.IndexAny(text, wild)
		if m == MatchPrefix && !followed {
			at = len(text)
		}
		if follows && at >= 0 && idText(text[:at]) {
			return errors.New("has a placeholder that runs into what stands for any text: one id could match another's beginning; put a / between")
		}
		if m == MatchWildcards && strings.Contains(text, "*") {
			if first < 0 {
				first = i
			}
			last = i
		}
	}
	if first != last {
		return errors.New("has a wildcard before and one after a placeholder: one id could match another's rest")
	}
	return nil
}

// metadataName begins the names of placeholders for what a request brings along.
const metadataName = "Metadata."

func ofRequest(name string) bool {
	return name == "Caller" || name == "TaskID" || name == "AgentID" || len(name) > len(metadataName) && strings.HasPrefix(name, metadataName)
}

// Placeholder is what a placeholder of a name stands for. Callers' names, task and agent ids have a safe alphabet by
// contract; a metadata value must have it too once it is used here. So none can hold a wildcard, a slash, a quote, or the
// dollar sign of a policy's variable, and none needs an escape.
func (c Credential) Placeholder(name string) (string, error) {
	const form = "must be 1-128 of A-Z a-z 0-9 . _ : @ -, and not only dots"
	value := ""
	switch key, metadata := strings.CutPrefix(name, metadataName); {
	case name == "Caller":
		value = c.Caller
	case name == "TaskID":
		value = c.TaskID
	case name == "AgentID":
		value = c.AgentID
	case metadata:
		if value = c.Metadata[key]; !ValidID(value) {
			e := Errorf(CodeInvalidRequest, "metadata %s stands in what this profile grants: it %s", key, form)
			e.Faults = []Fault{{Pointer: "/metadata/" + key, Reason: "stands in what this profile grants and " + form}}
			return "", e
		}
	}
	if !ValidID(value) {
		return "", Errorf(CodeInvalidRequest, "an id has characters that nothing upstream may hold")
	}
	return value, nil
}
