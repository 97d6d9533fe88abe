package aws_test

import (
	"encoding/json"
	"errors"
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

// What broker.Template refuses is refused wherever a placeholder may stand, and named.
func TestTemplatesAreChecked(t *testing.T) {
	t.Parallel()
	for template, good := range map[string]bool{
		"arn:aws:s3:::b/tasks/" + anyTask + "/*":           true,
		"arn:aws:s3:::b/" + anyTeam + "/" + anyAgent + "/": true,
		"arn:aws:s3:::b/tasks/" + anyTask + "*":            false, // task a has task ab's
		"arn:aws:s3:::b/{{.Task}}/*":                       false,
	} {
		inCondition := withResource("*")
		inCondition.Scopes["x"].Statements[0].Conditions = map[string]map[string][]string{"StringLike": {"s3:prefix": {"ok", template}}}
		inTag := withResource("*")
		inTag.Tags = map[string]string{"Task": template}
		for at, c := range map[string]aws.Config{
			"scopes.x.statements[0].resources[0]":                    withResource(template),
			"scopes.x.statements[0].conditions.StringLike.s3:prefix": inCondition,
			"tags.Task": inTag,
		} {
			good := good && (at != "tags.Task" || !strings.Contains(template, "*")) // STS takes no * in a tag
			if faults := c.Check(); good != (len(faults) == 0) || !good && (len(faults) != 1 || faults[0].Pointer != at) {
				t.Errorf("%q at %s: %v", template, at, faults)
			}
		}
	}
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

// Two callers with the same task id are told apart by {{.Caller}}, and a caller's name can no more widen a resource than an
// id can.
func TestCallersAreToldApart(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	p := w.provider(t, func(c *aws.Config) {
		c.Scopes = map[string]aws.Scope{"read": {Statements: []aws.Statement{{Actions: []string{"s3:GetObject"}, Resources: []string{"arn:aws:s3:::b/{{.Caller}}/{{.TaskID}}/*"}}}}}
		c.Tags = map[string]string{"Caller": "{{.Caller}}"}
	})
	for _, caller := range []string{"a", "b"} {
		c := w.request("read")
		c.Caller = caller
		if _, err := p.Mint(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		asked := w.last(t)
		if !strings.Contains(asked.Get("Policy"), `"arn:aws:s3:::b/`+caller+`/t-1/*"`) || asked.Get("Tags.member.1.Value") != caller {
			t.Errorf("%s: %v", caller, asked)
		}
	}
	for _, caller := range []string{"", "*", "a/../b", "${aws:username}", `a"`} {
		c := w.request("read")
		c.Caller = caller
		if _, err := p.Mint(t.Context(), c); err == nil || len(w.calls()) > 0 {
			t.Errorf("%q went upstream: %v", caller, err)
		}
	}
}
