package broker_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/sandbox/aws/iampolicy"
)

const anyTask, anyAgent, anyTeam = "{{.TaskID}}", "{{.AgentID}}", "{{.Metadata.team}}"

func TestTemplatesAreHeldApart(t *testing.T) {
	t.Parallel()
	const good = ""
	for template, want := range map[broker.Template]struct{ wildcards, prefix string }{ // what the refusal says
		"":                                {good, good},
		"public/":                         {good, good},
		"b/*":                             {good, good},
		"*":                               {good, good},
		"tasks/" + anyTask:                {good, "runs into what stands for any text"},
		"tasks/" + anyTask + "/":          {good, good},
		"tasks/" + anyTask + ".d":         {good, "runs into what stands for any text"},
		"tasks/" + anyTask + "/a":         {good, good},
		"tasks/" + anyTask + "/*":         {good, good},
		"tasks/" + anyTask + "/o?.txt":    {good, good},
		"tasks/" + anyTask + "ä":          {good, good},
		anyTeam + "/" + anyTask + "/*":    {good, good},
		"*/" + anyTask + "/":              {good, good},
		"x-" + anyTask + "-y/*":           {good, good},
		"${aws:userid}/" + anyTask + "/*": {good, good},
		"{" + anyTask + "}":               {good, good},

		"tasks/" + anyTask + "*":        {"runs into what stands for any text", good}, // task a has task ab's; of a prefix it is a character
		"tasks/" + anyTask + "?":        {"runs into what stands for any text", good},
		"tasks/" + anyTask + "-*":       {"runs into what stands for any text", good}, // task a has task a-b's
		"tasks/" + anyTask + ".x:@_-*/": {"runs into what stands for any text", good},
		"*" + anyTask + "/":             {"a wildcard that runs into", good},
		"*-" + anyTask + "/x":           {"a wildcard that runs into", good},
		"?" + anyTask + "/":             {"a wildcard that runs into", good},
		"*/" + anyTask + "/*":           {"before and one after", good},
		anyTask + anyAgent + "/":        {"into each other", "into each other"},
		anyTask + "-" + anyAgent + "/":  {"into each other", "into each other"},
		anyTask + anyAgent + "*":        {"into each other", "into each other"}, // through the other placeholder

		"{{.Task}}/":                      {"placeholder that is not", "placeholder that is not"},
		"{{ .TaskID }}/":                  {"placeholder that is not", "placeholder that is not"},
		"{{.TaskID.x}}/":                  {"placeholder that is not", "placeholder that is not"},
		"{{.Metadata.}}/":                 {"placeholder that is not", "placeholder that is not"},
		"{{.Metadata.a/b}}/":              {"placeholder that is not", "placeholder that is not"},
		"{{.TaskID/":                      {"placeholder that is not", "placeholder that is not"},
		"TaskID}}/":                       {"placeholder that is not", "placeholder that is not"},
		"{{.Task{{.AgentID}}ID}}/":        {"placeholder that is not", "placeholder that is not"},
		"{{printf \"%s\" .TaskID}}/":      {"placeholder that is not", "placeholder that is not"},
		"{{.Metadata.team | js}}/":        {"placeholder that is not", "placeholder that is not"},
		"{{.TaskID}}{{end}}{{.No.At}}/":   {"placeholder that is not", "placeholder that is not"},
		anyTask + "/" + "{{.VendorID}}/x": {"placeholder that is not", "placeholder that is not"},
	} {
		for m, says := range map[broker.Match]string{broker.MatchWildcards: want.wildcards, broker.MatchPrefix: want.prefix} {
			err := template.CheckApart(m)
			if (err == nil) != (says == good) || err != nil && !strings.Contains(err.Error(), says) {
				t.Errorf("%q, match %d: %v, want %q", template, m, err, says)
			}
		}
	}
}

func TestTemplate(t *testing.T) {
	t.Parallel()
	const text broker.Template = `{"a":{"b":"{{.Name}}-{{.Id}}","c":"{{.Name}}"}}`
	if got := text.Names(); !slices.Equal(got, []string{"Name", "Id", "Name"}) {
		t.Errorf("names: %q", got)
	}
	known := func(names ...string) func(string) bool {
		return func(name string) bool { return slices.Contains(names, name) }
	}
	if !text.Check(known("Id", "Name")) || text.Check(known("Name")) || broker.Template("{{.Name}}{{").Check(known("Name")) {
		t.Error("the check takes something else than names that are known")
	}
	// A value that looks like a placeholder stays a value.
	got, err := text.Fill(func(name string) (string, error) { return "{{." + name + "}}é", nil })
	if want := `{"a":{"b":"{{.Name}}é-{{.Id}}é","c":"{{.Name}}é"}}`; err != nil || got != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
	failed, calls := errors.New("no such name"), 0
	if got, err := text.Fill(func(string) (string, error) { calls++; return "x", failed }); got != "" || !errors.Is(err, failed) || calls != 1 {
		t.Errorf("%q, %v after %d calls", got, err, calls)
	}
}

// A metadata value is free text to the broker; used in a template it must be an id, and the caller is told which.
func TestPlaceholders(t *testing.T) {
	t.Parallel()
	c := broker.Credential{TaskID: "t-1", AgentID: "a-1", Metadata: map[string]string{"team": "blue", "note": "a b"}}
	got, err := broker.Template(anyTask + " " + anyAgent + " " + anyTeam).Fill(c.Placeholder)
	if err != nil || got != "t-1 a-1 blue" {
		t.Errorf("%q, %v", got, err)
	}
	for name, pointer := range map[string]string{"Metadata.note": "/metadata/note", "Metadata.none": "/metadata/none", "Metadata.TaskID": "/metadata/TaskID"} {
		_, err := c.Placeholder(name)
		e := broker.AsError(err)
		if e.Code != broker.CodeInvalidRequest || len(e.Faults) != 1 || e.Faults[0].Pointer != pointer || strings.Contains(err.Error(), "a b") {
			t.Errorf("%s: %v %v", name, err, e.Faults)
		}
	}
	c.TaskID, c.AgentID = "a/b", "*"
	for _, name := range []string{"TaskID", "AgentID", "team", ""} {
		if value, err := c.Placeholder(name); value != "" || broker.AsError(err).Code != broker.CodeInvalidRequest {
			t.Errorf("%s: %q, %v", name, value, err)
		}
	}
}

// Whatever template passes: what it makes of one task is never allowed to another, whatever stands for the wildcards.
// All templates of up to five pieces are tried, against the matcher of the sandbox's AWS.
func TestTemplatesKeepTasksApart(t *testing.T) {
	t.Parallel()
	accepted, kinds := 0, map[string][]string{}
	everyTemplate([]string{anyTask, anyAgent, "*", "/", "-"}, func(text string) {
		if !strings.Contains(text, anyTask) || broker.Template(text).CheckApart(broker.MatchWildcards) != nil {
			return
		}
		accepted++
		kind, example := "wildcards before and after a placeholder", leak(t, text)
		if plain := leak(t, strings.ReplaceAll(text, "*", "/w/")); plain != "" {
			kind, example = "placeholders that run into each other", plain
		}
		if example != "" {
			kinds[kind] = append(kinds[kind], text+": "+example)
		}
	})
	if accepted < 100 {
		t.Errorf("only %d templates pass: this proves little", accepted)
	}
	for kind, examples := range kinds {
		t.Errorf("%d of %d templates that pass have %s, which lets one task to another's; such as\n\t%s",
			len(examples), accepted, kind, strings.Join(examples[:min(3, len(examples))], "\n\t"))
	}
}

// The same of prefixes, where a * is a character: no task's is the beginning of another's.
func TestPrefixesKeepTasksApart(t *testing.T) {
	t.Parallel()
	accepted := 0
	everyTemplate([]string{anyTask, anyAgent, "*", "/", "-"}, func(text string) {
		if !strings.Contains(text, anyTask) || broker.Template(text).CheckApart(broker.MatchPrefix) != nil {
			return
		}
		accepted++
		all := holders(text)
		for _, a := range all {
			for _, b := range all {
				if a.TaskID != b.TaskID && strings.HasPrefix(filled(t, text, a), filled(t, text, b)) {
					t.Fatalf("%q: task %s, agent %s gets what task %s, agent %s has", text, b.TaskID, b.AgentID, a.TaskID, a.AgentID)
				}
			}
		}
	})
	if accepted < 100 {
		t.Errorf("only %d prefixes pass: this proves little", accepted)
	}
}

// everyTemplate makes all texts of up to five pieces, each at most twice but for the slash.
func everyTemplate(pieces []string, try func(text string)) {
	var grow func(parts []string)
	grow = func(parts []string) {
		text := "b/" + strings.Join(parts, "")
		try(text)
		if len(parts) == 5 {
			return
		}
		for _, p := range pieces {
			if strings.Count(text, p) < 2 || p == "/" {
				grow(append(parts[:len(parts):len(parts)], p))
			}
		}
	}
	grow(nil)
}

// holders have ids that continue each other.
func holders(template string) (list []broker.Credential) {
	agents := []string{"b", "c", "bc", "b-c"}
	if !strings.Contains(template, anyAgent) {
		agents = agents[:1]
	}
	for _, task := range []string{"a", "ab", "a-b", "ca", "c-a"} {
		for _, agent := range agents {
			list = append(list, broker.Credential{TaskID: task, AgentID: agent})
		}
	}
	return list
}

func filled(t *testing.T, template string, c broker.Credential) string {
	t.Helper()
	text, err := broker.Template(template).Fill(c.Placeholder)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// leak finds an object that a template gives to one task and allows another.
func leak(t *testing.T, template string) string {
	t.Helper()
	all := holders(template)
	policies := make([]*iampolicy.Document, len(all))
	for i, c := range all {
		doc, err := iampolicy.Parse(fmt.Sprintf(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":%q}}`,
			"arn:aws:s3:::"+filled(t, template, c)))
		if err != nil {
			t.Fatal(err)
		}
		policies[i] = doc
	}
	for _, owner := range all {
		for _, object := range instances("arn:aws:s3:::" + filled(t, template, owner)) {
			for i, other := range all {
				if other.TaskID == owner.TaskID || policies[i].Evaluate(iampolicy.Request{Action: "s3:GetObject", Resource: object}) != iampolicy.Allowed {
					continue
				}
				return fmt.Sprintf("task %s, agent %s reads %s of task %s, agent %s", other.TaskID, other.AgentID, object, owner.TaskID, owner.AgentID)
			}
		}
	}
	return ""
}

// instances puts texts in place of wildcards.
func instances(pattern string) []string {
	before, after, found := strings.Cut(pattern, "*")
	if !found {
		return []string{pattern}
	}
	var all []string
	for _, rest := range instances(after) {
		for _, fill := range []string{"", "x", "/a/", "b/ab"} {
			all = append(all, before+fill+rest)
		}
	}
	return all
}

// FuzzTemplate holds any text to what must be true of all: what passes fills with the values and nothing else, and keeps
// two tasks apart.
func FuzzTemplate(f *testing.F) {
	for _, text := range []string{"", "tasks/" + anyTask + "/", anyTask, anyAgent + "/" + anyTask + "/" + anyTeam + "/x", "{{", "}}", "{{{.TaskID}}}", "{{.TaskID}}\x80", "é" + anyTask + "\x00"} {
		f.Add(text, "a", "ab")
		f.Add(text, "a.b", "a")
	}
	f.Fuzz(func(t *testing.T, text, one, other string) {
		template := broker.Template(text)
		if template.CheckApart(broker.MatchPrefix) != nil {
			return
		}
		texts := map[string]string{}
		for _, id := range []string{one, other} {
			c := broker.Credential{TaskID: id, AgentID: "agent", Metadata: map[string]string{"team": "blue"}}
			for _, name := range template.Names() {
				if key, ok := strings.CutPrefix(name, "Metadata."); ok {
					c.Metadata[key] = "blue"
				}
			}
			got, err := template.Fill(c.Placeholder)
			if uses := slices.Contains(template.Names(), "TaskID"); (err == nil) != (!uses || broker.ValidID(id)) {
				t.Fatalf("%q with %q: %v", text, id, err)
			}
			if err != nil {
				return
			}
			pairs := []string{anyTask, id, anyAgent, "agent"}
			for key, value := range c.Metadata {
				pairs = append(pairs, "{{.Metadata."+key+"}}", value)
			}
			if want := strings.NewReplacer(pairs...).Replace(text); got != want {
				t.Fatalf("%q with %q: %q, want %q", text, id, got, want)
			}
			texts[id] = got
		}
		if one != other && slices.Contains(template.Names(), "TaskID") && strings.HasPrefix(texts[one], texts[other]) {
			t.Fatalf("%q: task %q gets what task %q has", text, other, one)
		}
	})
}
