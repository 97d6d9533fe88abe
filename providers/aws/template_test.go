package aws_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/sandbox/aws/iampolicy"
)

const anyTask, anyAgent, anyTeam = "{{.TaskID}}", "{{.AgentID}}", "{{.Metadata.team}}"

func withResource(resource string) aws.Config {
	return aws.Config{
		RoleARN: "arn:aws:iam::123456789012:role/agents", Region: "eu-west-1",
		Scopes: map[string]aws.Scope{"x": {Statements: []aws.Statement{{
			Actions: []string{"s3:GetObject"}, Resources: []string{resource},
		}}}},
	}
}

func TestTemplates(t *testing.T) {
	t.Parallel()
	const refused = "refused"
	for template, want := range map[string]string{
		"arn:aws:s3:::b/*":                       "",
		"*":                                      "",
		"arn:aws:s3:::b/tasks/" + anyTask:        "",
		"arn:aws:s3:::b/tasks/" + anyTask + "/*": "",
		"arn:aws:s3:::b/tasks/" + anyTask + "/out?.json":    "",
		"arn:aws:s3:::b/" + anyTeam + "/" + anyTask + "/*":  "",
		"arn:aws:s3:::b/" + anyAgent + "/" + anyTask + "/x": "",
		"arn:aws:s3:::*/" + anyTask:                         "",
		"arn:aws:s3:::b/x-" + anyTask + "-y/*":              "",
		"arn:aws:s3:::b/${aws:userid}/" + anyTask + "/*":    "",

		"arn:aws:s3:::b/tasks/" + anyTask + "*":             refused, // task a has task ab's
		"arn:aws:s3:::b/tasks/" + anyTask + "?":             refused,
		"arn:aws:s3:::b/tasks/" + anyTask + "-*":            refused, // task a has task a-b's
		"arn:aws:s3:::b/tasks/" + anyTask + ".x:@_-*":       refused,
		"arn:aws:s3:::b/*" + anyTask:                        refused,
		"arn:aws:s3:::b/*-" + anyTask + "/x":                refused,
		"arn:aws:s3:::b/?" + anyTask:                        refused,
		"arn:aws:s3:::b/*" + anyTask + "*":                  refused,
		"arn:aws:s3:::b/" + anyTask + anyAgent + "*":        refused, // through the other placeholder
		"arn:aws:s3:::b/" + anyTeam + "*":                   refused,
		"arn:aws:s3:::b/{{.Task}}/*":                        refused,
		"arn:aws:s3:::b/{{ .TaskID }}/*":                    refused,
		"arn:aws:s3:::b/{{.Metadata.}}/*":                   refused,
		"arn:aws:s3:::b/{{.Metadata.a/b}}/*":                refused,
		"arn:aws:s3:::b/{{.TaskID/*":                        refused,
		"arn:aws:s3:::b/TaskID}}/*":                         refused,
		"arn:aws:s3:::b/{{.Task{{.AgentID}}ID}}/*":          refused,
		"arn:aws:s3:::b/{{printf \"%s\" .TaskID}}/*":        refused,
		"arn:aws:s3:::b/{{.Metadata.team | js}}/*":          refused,
		"arn:aws:s3:::b/{{.TaskID}}{{end}}{{.Nothing.At}}/": refused,
	} {
		inCondition := withResource("*")
		inCondition.Scopes["x"].Statements[0].Conditions = map[string]map[string][]string{"StringLike": {"s3:prefix": {"ok", template}}}
		for at, c := range map[string]aws.Config{
			"scopes.x.statements[0].resources[0]":                    withResource(template),
			"scopes.x.statements[0].conditions.StringLike.s3:prefix": inCondition,
		} {
			faults := c.Check()
			if want == "" && len(faults) > 0 || want != "" && (len(faults) != 1 || faults[0].Pointer != at) {
				t.Errorf("%q: want %q at %s, got %v", template, want, at, faults)
			}
		}
		tags := withResource("*")
		tags.Tags = map[string]string{"Task": template}
		if faults := tags.Check(); want != "" && (len(faults) != 1 || faults[0].Pointer != "tags.Task") {
			t.Errorf("%q: want a fault at tags.Task, got %v", template, faults)
		}
	}
}

// Whatever template passes: what it makes of one task is never allowed to another, whatever stands for the wildcards.
// All templates of up to five pieces are tried.
func TestTemplatesKeepTasksApart(t *testing.T) {
	t.Parallel()
	pieces := []string{anyTask, anyAgent, "*", "/", "-"}
	accepted, kinds := 0, map[string][]string{}
	var try func(parts []string)
	try = func(parts []string) {
		template := "arn:aws:s3:::b/" + strings.Join(parts, "")
		if strings.Contains(template, anyTask) && len(withResource(template).Check()) == 0 {
			accepted++
			kind, example := "wildcards before and after a placeholder", leak(t, template)
			if plain := leak(t, strings.ReplaceAll(template, "*", "/w/")); plain != "" {
				kind, example = "placeholders that run into each other", plain
			}
			if example != "" {
				kinds[kind] = append(kinds[kind], template+": "+example)
			}
		}
		if len(parts) == 5 {
			return
		}
		for _, p := range pieces {
			if strings.Count(template, p) < 2 || p == "/" {
				try(append(parts[:len(parts):len(parts)], p))
			}
		}
	}
	try(nil)
	if accepted < 100 {
		t.Errorf("only %d templates pass: this proves little", accepted)
	}
	for kind, examples := range kinds {
		t.Errorf("%d of %d templates that pass have %s, which lets one task to another's; such as\n\t%s",
			len(examples), accepted, kind, strings.Join(examples[:min(3, len(examples))], "\n\t"))
	}
}

// leak finds an object that a template gives to one task and allows another.
func leak(t *testing.T, template string) string {
	t.Helper()
	tasks, agents := []string{"a", "ab", "a-b", "ca", "c-a"}, []string{"b", "c", "bc", "b-c"}
	if !strings.Contains(template, anyAgent) {
		agents = agents[:1]
	}
	type holder struct{ task, agent string }
	policies := map[holder]*iampolicy.Document{}
	for _, task := range tasks {
		for _, agent := range agents {
			resource := strings.NewReplacer(anyTask, task, anyAgent, agent).Replace(template)
			doc, err := iampolicy.Parse(fmt.Sprintf(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":%q}}`, resource))
			if err != nil {
				t.Fatal(err)
			}
			policies[holder{task, agent}] = doc
		}
	}
	for owner := range policies {
		for _, object := range instances(strings.NewReplacer(anyTask, owner.task, anyAgent, owner.agent).Replace(template)) {
			for other, doc := range policies {
				if other.task == owner.task || doc.Evaluate(iampolicy.Request{Action: "s3:GetObject", Resource: object}) != iampolicy.Allowed {
					continue
				}
				return fmt.Sprintf("task %s, agent %s reads %s of task %s, agent %s", other.task, other.agent, object, owner.task, owner.agent)
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

// The values of one request: no value may widen a resource, close a string or add a statement.
func FuzzValues(f *testing.F) {
	for _, v := range []string{
		"t-1", "", "*", "?", "a/../b", `"`, `","Resource":"*`, `\u002a`, `\"`, "${aws:username}", "$", "{{.AgentID}}", "a b", "a\x00", "ä",
		"a*", "\n", "%2F", "victim", "tim", "vic", "victimx", "A", ".", "..", ":", "@", "-", "_", strings.Repeat("a", 128), strings.Repeat("a", 129),
		`"}],"Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}],"x":[{"y":"`, "arn:aws:s3:::data/*", "REFTASK", "REFAGENT",
	} {
		f.Add(v, "a-1", "blue")
		f.Add("t-1", v, "blue")
		f.Add("t-1", "a-1", v)
		f.Add(v, v, v)
	}
	w := newWire(f)
	p := w.provider(f, func(c *aws.Config) {
		c.Scopes = map[string]aws.Scope{"x": {Statements: []aws.Statement{
			{Actions: []string{"s3:GetObject", "s3:PutObject"}, Resources: []string{
				"arn:aws:s3:::data/agents/" + anyAgent + "/*", "arn:aws:s3:::data/tasks/" + anyTask + "/*", "arn:aws:s3:::data/teams/" + anyTeam + "/*",
			}},
			{Actions: []string{"s3:ListBucket"}, Resources: []string{"arn:aws:s3:::data"},
				Conditions: map[string]map[string][]string{"StringLike": {"s3:prefix": {"tasks/" + anyTask + "/*"}}}},
		}}}
		c.Tags = map[string]string{"Task": anyTask, "Team": anyTeam}
	})
	request := func(task, agent, team string) broker.Credential {
		c := w.request("x")
		c.TaskID, c.AgentID, c.Metadata = task, agent, map[string]string{"team": team}
		return c
	}
	reference := w.policy(f, p, request("REFTASK", "REFAGENT", "REFTEAM"))
	now := w.clock.Now().Add(time.Minute)
	f.Fuzz(func(t *testing.T, task, agent, team string) {
		w.calls()
		_, err := p.Mint(t.Context(), request(task, agent, team))
		asked := w.calls()
		if valid := broker.ValidID(task) && broker.ValidID(agent) && broker.ValidID(team); valid != (err == nil) {
			t.Fatalf("valid: %v, yet %v", valid, err)
		}
		if err != nil {
			if broker.AsError(err).Code != broker.CodeInvalidRequest || !errors.Is(err, broker.ErrNotMinted) || len(asked) > 0 {
				t.Fatalf("%d calls upstream, %v", len(asked), err)
			}
			for _, value := range []string{task, agent, team} {
				if len(value) > 20 && strings.Contains(err.Error(), value) {
					t.Fatalf("the error repeats the value: %v", err)
				}
			}
			return
		}
		form := asked[0]
		if form.Get("Tags.member.1.Value") != task || form.Get("Tags.member.2.Value") != team {
			t.Fatalf("tags: %v", form)
		}
		got := form.Get("Policy")
		// The ids' alphabet needs no quoting, so the policy is the reference with the values put in, and nothing else.
		if want := strings.NewReplacer("REFTASK", task, "REFAGENT", agent, "REFTEAM", team).Replace(reference); got != want {
			t.Fatalf("got  %s\nwant %s", got, want)
		}
		doc, err := iampolicy.Parse(got)
		if err != nil {
			t.Fatalf("%v: %s", err, got)
		}
		reads := func(task string) bool {
			return doc.Evaluate(iampolicy.Request{Action: "s3:GetObject", Resource: "arn:aws:s3:::data/tasks/" + task + "/brief.txt", Now: now}) == iampolicy.Allowed
		}
		lists := func(task string) bool {
			return doc.Evaluate(iampolicy.Request{Action: "s3:ListBucket", Resource: "arn:aws:s3:::data", Now: now,
				Context: map[string]string{"s3:prefix": "tasks/" + task + "/"}}) == iampolicy.Allowed
		}
		if !reads(task) || !lists(task) {
			t.Fatalf("task %q cannot get at its own: %s", task, got)
		}
		for _, victim := range []string{"victim", task + "x", "x" + task, task[1:], task[:len(task)-1], strings.ToUpper(task), strings.ToLower(task), agent, team} {
			if victim != task && (reads(victim) || lists(victim)) {
				t.Fatalf("task %q gets at task %q's: %s", task, victim, got)
			}
		}
	})
}

// A metadata value is free text to the broker; used in a policy it must be an id, and the caller is told which.
func TestMetadataInPolicies(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	p := w.provider(t, func(c *aws.Config) {
		c.Scopes = withResource("arn:aws:s3:::data/" + anyTeam + "/*").Scopes
	})
	for _, metadata := range []map[string]string{nil, {"team": ""}, {"team": "a b"}, {"team": "*"}, {"Team": "blue"}} {
		c := w.request("x")
		c.Metadata = metadata
		_, err := p.Mint(t.Context(), c)
		e := broker.AsError(err)
		if !errors.Is(err, broker.ErrNotMinted) || e.Code != broker.CodeInvalidRequest || len(e.Faults) != 1 || e.Faults[0].Pointer != "/metadata/team" {
			t.Errorf("%v: %v %v", metadata, err, e.Faults)
		}
	}
	if n := len(w.calls()); n != 0 {
		t.Errorf("%d calls upstream", n)
	}
}

// statements decodes a policy for a test that looks at its parts.
func statements(t testing.TB, text string) []map[string]any {
	t.Helper()
	var doc struct{ Statement []map[string]any }
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return doc.Statement
}
