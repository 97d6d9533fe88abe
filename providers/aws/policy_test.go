package aws_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/sandbox/aws/iampolicy"
)

// ending is what every session policy ends in: no chaining, and nothing after the end.
const ending = `{"Effect":"Deny","Action":["iam:*","sts:*"],"Resource":"*"},` +
	`{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"%s":{"aws:CurrentTime":"2026-03-03T10:21:12Z"}}}]}`

func TestSessionPolicies(t *testing.T) {
	t.Parallel()
	one := func(actions, resources string, conditions ...string) aws.Statement {
		s := aws.Statement{Actions: strings.Fields(actions), Resources: strings.Fields(resources)}
		for _, c := range conditions {
			operator, rest, _ := strings.Cut(c, " ")
			key, values, _ := strings.Cut(rest, " ")
			if s.Conditions == nil {
				s.Conditions = map[string]map[string][]string{}
			}
			if s.Conditions[operator] == nil {
				s.Conditions[operator] = map[string][]string{}
			}
			s.Conditions[operator][key] = strings.Fields(values)
		}
		return s
	}
	const mine = "arn:aws:s3:::data/tasks/{{.TaskID}}/*"
	scopes := map[string]aws.Scope{
		"read":     {Statements: []aws.Statement{one("s3:GetObject", mine)}},
		"write":    {Statements: []aws.Statement{one("s3:PutObject s3:DeleteObject", mine)}},
		"shared":   {Statements: []aws.Statement{one("s3:GetObject", "arn:aws:s3:::data/shared/*")}},
		"again":    {Statements: []aws.Statement{one("s3:GetObject s3:GetObject", mine+" "+mine), one("s3:GetObject", mine)}},
		"list":     {Statements: []aws.Statement{one("s3:ListBucket", "arn:aws:s3:::data", "StringLike s3:prefix tasks/{{.TaskID}}/* tasks/{{.TaskID}}/")}},
		"list-all": {Statements: []aws.Statement{one("s3:ListBucket", "arn:aws:s3:::data")}},
		"agents":   {Statements: []aws.Statement{one("sqs:SendMessage", "arn:aws:sqs:eu-west-1:123456789012:{{.AgentID}}")}},
	}
	w := newWire(t)
	p := w.provider(t, func(c *aws.Config) { c.Scopes = scopes })
	for _, c := range []struct {
		scopes []string
		want   string // the Allow statements
	}{
		{[]string{"read"}, `{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::data/tasks/t-1/*"},`},
		{[]string{"again"}, `{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::data/tasks/t-1/*"},`},
		{[]string{"again", "read"}, `{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::data/tasks/t-1/*"},`},
		{[]string{"read", "write"}, `{"Effect":"Allow","Action":["s3:DeleteObject","s3:GetObject","s3:PutObject"],"Resource":"arn:aws:s3:::data/tasks/t-1/*"},`},
		{[]string{"read", "shared"}, `{"Effect":"Allow","Action":"s3:GetObject","Resource":["arn:aws:s3:::data/shared/*","arn:aws:s3:::data/tasks/t-1/*"]},`},
		{[]string{"shared", "write"}, `{"Effect":"Allow","Action":["s3:DeleteObject","s3:PutObject"],"Resource":"arn:aws:s3:::data/tasks/t-1/*"},` +
			`{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::data/shared/*"},`},
		{[]string{"agents"}, `{"Effect":"Allow","Action":"sqs:SendMessage","Resource":"arn:aws:sqs:eu-west-1:123456789012:a-1"},`},
		// Statements under different conditions are not one.
		{[]string{"list", "list-all"}, `{"Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::data",` +
			`"Condition":{"StringLike":{"s3:prefix":["tasks/t-1/*","tasks/t-1/"]}}},` +
			`{"Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::data"},`},
	} {
		for range 5 { // maps are walked in another order each time
			got := w.policy(t, p, w.request(c.scopes...))
			end := fmt.Sprintf(ending, "DateGreaterThanEquals") // at the end it is over
			if diff := cmp.Diff(`{"Version":"2012-10-17","Statement":[`+c.want+end, got); diff != "" {
				t.Errorf("%v: %s", c.scopes, diff)
				break
			}
			if _, err := iampolicy.Parse(got); err != nil {
				t.Errorf("%v: %v", c.scopes, err)
			}
		}
	}
}

// Joining statements must keep exactly what they allow, whatever they are.
func TestMergingKeepsTheMeaning(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	random := rand.New(rand.NewPCG(1, 2))
	some := func(from ...string) []string {
		random.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
		return from[:1+random.IntN(len(from))]
	}
	conditions := []map[string]map[string][]string{
		nil, {"StringEquals": {"s3:prefix": {"a"}}}, {"StringEquals": {"s3:prefix": {"b"}}}, {"StringLike": {"s3:prefix": {"a"}}},
	}
	for round := range 150 {
		scopes := map[string]aws.Scope{}
		var separate []*iampolicy.Document
		names := []string{"p", "q", "r"}[:1+random.IntN(3)]
		for _, name := range names {
			var s aws.Scope
			for range 1 + random.IntN(2) {
				st := aws.Statement{
					Actions: some("s3:GetObject", "s3:PutObject", "s3:Get*"), Resources: some("arn:aws:s3:::b/x", "arn:aws:s3:::b/y", "arn:aws:s3:::b/*"),
					Conditions: conditions[random.IntN(len(conditions))],
				}
				s.Statements = append(s.Statements, st)
				separate = append(separate, parse(t, alone(t, st)))
			}
			scopes[name] = s
		}
		p := w.provider(t, func(c *aws.Config) { c.Scopes = scopes })
		text := w.policy(t, p, w.request(names...))
		merged := parse(t, text)
		for _, action := range []string{"s3:GetObject", "s3:PutObject", "s3:GetObjectAcl", "s3:DeleteObject"} {
			for _, resource := range []string{"arn:aws:s3:::b/x", "arn:aws:s3:::b/y", "arn:aws:s3:::b/z", "arn:aws:s3:::c/x"} {
				for _, context := range []map[string]string{nil, {"s3:prefix": "a"}, {"s3:prefix": "b"}} {
					ask := iampolicy.Request{Action: action, Resource: resource, Context: context, Now: w.clock.Now()}
					want := slices.ContainsFunc(separate, func(d *iampolicy.Document) bool { return d.Evaluate(ask) == iampolicy.Allowed })
					if got := merged.Evaluate(ask) == iampolicy.Allowed; got != want {
						t.Fatalf("round %d: %+v allowed: %v, by the scopes: %v\n%s", round, ask, got, want, text)
					}
				}
			}
		}
	}
}

// alone is one statement as a policy of its own.
func alone(t *testing.T, s aws.Statement) string {
	t.Helper()
	text := func(list []string) string { return `["` + strings.Join(list, `","`) + `"]` }
	out := `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":` + text(s.Actions) + `,"Resource":` + text(s.Resources)
	for operator, keys := range s.Conditions {
		for key, values := range keys {
			out += `,"Condition":{"` + operator + `":{"` + key + `":` + text(values) + `}}`
		}
	}
	return out + "}}"
}

func parse(t testing.TB, text string) *iampolicy.Document {
	t.Helper()
	doc, err := iampolicy.Parse(text)
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return doc
}

// STS counts characters: 2,048 are taken, one more is not. The caller learns which scopes are too many together.
func TestPolicyTooLarge(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	long := func(n int) aws.Scope {
		return aws.Scope{Statements: []aws.Statement{{
			Actions: []string{"s3:GetObject"}, Resources: []string{"arn:aws:s3:::data/" + strings.Repeat("x", n) + "/{{.Metadata.pad}}/*"},
		}}}
	}
	managed := func(n, length int) aws.Scope {
		s := long(0)
		for i := range n {
			s.PolicyARNs = append(s.PolicyARNs, fmt.Sprintf("arn:aws:iam::aws:policy/%0*d", length-24, i))
		}
		return s
	}
	p := w.provider(t, func(c *aws.Config) {
		c.Scopes = map[string]aws.Scope{"half-a": long(900), "half-b": long(901), "exact": long(1700), "five": managed(5, 40), "ten": managed(10, 50)}
		six := managed(6, 30)
		c.Scopes["six"] = six
		c.Scopes["wordy"] = aws.Scope{Statements: long(1500).Statements, PolicyARNs: managed(5, 80).PolicyARNs}
	})
	try := func(pad int, scopes ...string) (url.Values, error) {
		c := w.request(scopes...)
		c.Metadata = map[string]string{"pad": strings.Repeat("p", pad)}
		w.calls()
		_, err := p.Mint(t.Context(), c)
		if asked := w.calls(); len(asked) > 0 {
			return asked[0], err
		}
		return nil, err
	}
	form, err := try(1, "exact")
	if err != nil {
		t.Fatal(err)
	}
	room := 2048 - len(form.Get("Policy"))
	if room < 1 || room > 126 {
		t.Fatalf("the test's policy leaves room for %d characters", room)
	}
	if form, err := try(1+room, "exact"); err != nil || len(form.Get("Policy")) != 2048 {
		t.Errorf("a policy of 2,048 characters: %v", err)
	}
	for _, scopes := range [][]string{{"half-a"}, {"half-b"}, {"ten"}, {"five"}} {
		if _, err := try(1, scopes...); err != nil {
			t.Errorf("%v: %v", scopes, err)
		}
	}
	for _, c := range []struct {
		why    string
		pad    int
		scopes []string
	}{
		{"one character too many", 2 + room, []string{"exact"}},
		{"too much together", 1, []string{"half-a", "half-b"}},
		{"eleven managed policies", 1, []string{"five", "six"}},
		{"the managed policies' names count too", 1, []string{"wordy"}},
	} {
		form, err := try(c.pad, c.scopes...)
		e := broker.AsError(err)
		if err == nil || !errors.Is(err, broker.ErrNotMinted) || e.Code != broker.CodeInvalidRequest || len(e.Faults) != len(c.scopes) || e.Faults[0].Pointer != "/scopes" {
			t.Errorf("%s: %v", c.why, err)
			continue
		}
		if form != nil {
			t.Errorf("%s: AWS was asked all the same", c.why)
		}
		for _, scope := range c.scopes {
			if !strings.Contains(e.Message, scope) {
				t.Errorf("%s: %q does not name %s", c.why, e.Message, scope)
			}
			if !slices.ContainsFunc(e.Faults, func(f broker.Fault) bool { return strings.HasPrefix(f.Reason, scope+" alone needs ") }) {
				t.Errorf("%s: no fault says what %s needs: %v", c.why, scope, e.Faults)
			}
		}
	}
}

// Every statement of every session policy is closed in by the two denials, and nothing but its scopes opens it.
func TestSessionPolicyIsClosed(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	c := w.request("read", "write")
	text := w.policy(t, w.provider(t), c)
	doc := parse(t, text)
	all := statements(t, text)
	for _, s := range all[:len(all)-2] {
		if s["Effect"] != "Allow" {
			t.Errorf("before the last two: %v", s)
		}
	}
	own := iampolicy.Request{Action: "s3:GetObject", Resource: "arn:aws:s3:::data/tasks/t-1/x", Now: w.clock.Now()}
	for _, ask := range []struct {
		action, resource string
		at               time.Time
		want             iampolicy.Outcome
	}{
		{own.Action, own.Resource, own.Now, iampolicy.Allowed},
		{own.Action, own.Resource, c.Version.ExpiresAt.Add(-time.Second), iampolicy.Allowed},
		{own.Action, own.Resource, c.Version.ExpiresAt, iampolicy.Denied},
		{own.Action, own.Resource, c.Version.ExpiresAt.Add(time.Hour), iampolicy.Denied},
		{"sts:AssumeRole", "arn:aws:iam::1:role/x", own.Now, iampolicy.Denied},
		{"sts:TagSession", "arn:aws:iam::1:role/x", own.Now, iampolicy.Denied},
		{"iam:DeleteRolePolicy", "arn:aws:iam::1:role/x", own.Now, iampolicy.Denied},
		{"s3:GetObject", "arn:aws:s3:::data/tasks/t-2/x", own.Now, iampolicy.Silent},
		{"s3:DeleteObject", own.Resource, own.Now, iampolicy.Silent},
		{"ec2:RunInstances", "arn:aws:ec2:eu-west-1:1:instance/*", own.Now, iampolicy.Silent},
	} {
		if got := doc.Evaluate(iampolicy.Request{Action: ask.action, Resource: ask.resource, Now: ask.at}); got != ask.want {
			t.Errorf("%s on %s at %s: %s, want %s", ask.action, ask.resource, ask.at, got, ask.want)
		}
	}
}
