package config_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/taskpass/taskpass/cmd/taskpass/config"
)

const canary = "sk_live_C4n4ryC4n4ry"

// pasted are the forms in which a secret may stand where it does not belong.
var pasted = []string{
	canary, canary + "\n", "-----BEGIN KEY-----\n" + canary + "\n-----END KEY-----\n", "postgres://u:" + canary + "@db/x",
	"{{" + canary + "}}", "{{.TaskID}}" + canary + "*", "/" + canary, canary + ":8080", "[" + canary, "file:" + canary, "*" + canary, "\"" + canary,
	"arn:aws:iam::1:user/" + canary, "9" + canary + "s", " " + canary,
}

// long plays all of the matrices here; else each scalar gets a part of them.
var long = os.Getenv("TASKPASS_LONG") != ""

// P7: whatever scalar a secret was pasted into, no fault shows it.
func TestCanaryInValues(t *testing.T) {
	t.Parallel()
	for _, path := range []string{example, full} {
		text := read(t, path)
		for at := range scalars(tree(t, text)) {
			for i, value := range pasted {
				if !long && (at+i)%len(pasted) != 0 { // each scalar gets one of them
					continue
				}
				root := tree(t, text)
				n := scalars(root)[at]
				n.Value, n.Tag, n.Style = value, "!!str", yaml.DoubleQuotedStyle
				changed, err := yaml.Dump(root)
				if err != nil {
					t.Fatal(err)
				}
				noCanary(t, fmt.Sprintf("%s: %q in line %d", path, value, n.Line), string(changed))
			}
		}
	}
}

// The same, for what somebody may type without minding YAML's own signs.
func TestCanaryInRawText(t *testing.T) {
	t.Parallel()
	for _, path := range []string{example, full} {
		lines := strings.Split(read(t, path), "\n")
		for at, n := range scalars(tree(t, strings.Join(lines, "\n"))) {
			line := lines[n.Line-1]
			before, after := line[:n.Column-1], line[n.Column-1:]
			length := len(n.Value)
			if strings.HasPrefix(after, `"`) {
				length += 2
			}
			for i, form := range []string{
				"%s", "*%s", "&%s x", "!%s x", "!!int %s", "!!binary %s", "!!%s", "%%%s", "@%s", "'%s", `"%s`, `"\%s"`, "{%s: 1}", "[%s]",
				"|\n%s", "%s: %[1]s", "- %s", "%s\n%[1]s", "%s\n---\n%[1]s: %[1]s", "<<: %s", "? %s", "`%s`", "%s\x01", "%s\xff", "\t%s",
			} {
				if !long && (at+i)%8 != 0 { // each scalar gets an eighth of them
					continue
				}
				changed := slices.Clone(lines)
				changed[n.Line-1] = before + fmt.Sprintf(form, canary) + after[length:]
				noCanary(t, fmt.Sprintf("%s: %q in line %d", path, form, n.Line), strings.Join(changed, "\n"))
			}
		}
	}
}

// A key that is no field is shown only if it looks like one.
func TestCanaryInFields(t *testing.T) {
	t.Parallel()
	text := read(t, full)
	for at := range fieldKeys(tree(t, text)) {
		root := tree(t, text)
		n := fieldKeys(root)[at]
		n.Value = canary
		changed, err := yaml.Dump(root)
		if err != nil {
			t.Fatal(err)
		}
		noCanary(t, fmt.Sprintf("the field in line %d", n.Line), string(changed))
	}
}

func noCanary(t *testing.T, what, text string) {
	t.Helper()
	_, err := config.Parse("taskpass.yaml", []byte(text))
	if err != nil && strings.Contains(strings.ToLower(err.Error()), "c4n4ry") {
		t.Errorf("%s: %v", what, err)
	}
}

func tree(t *testing.T, text string) *yaml.Node {
	t.Helper()
	var root yaml.Node
	if err := yaml.Load([]byte(text), &root); err != nil {
		t.Fatal(err)
	}
	return &root
}

// scalars lists the nodes that hold a value.
func scalars(n *yaml.Node) []*yaml.Node {
	if n.Kind == yaml.ScalarNode {
		return []*yaml.Node{n}
	}
	var list []*yaml.Node
	for i, c := range n.Content {
		if n.Kind != yaml.MappingNode || i%2 == 1 {
			list = append(list, scalars(c)...)
		}
	}
	return list
}

// fieldKeys lists the keys that name fields, not an operator's things.
func fieldKeys(n *yaml.Node) []*yaml.Node {
	var list []*yaml.Node
	for i, c := range n.Content {
		if n.Kind != yaml.MappingNode {
			list = append(list, fieldKeys(c)...)
			continue
		}
		if i%2 == 1 {
			continue
		}
		list = append(list, c)
		value := n.Content[i+1]
		switch c.Value {
		case "profiles", "scopes":
			for j := 1; j < len(value.Content) && value.Kind == yaml.MappingNode; j += 2 {
				list = append(list, fieldKeys(value.Content[j])...)
			}
		case "tags", "conditions":
		default:
			list = append(list, fieldKeys(value)...)
		}
	}
	return list
}
