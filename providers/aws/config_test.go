package aws_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/aws"
)

// What a section may not say, and where it is told.
func TestConfigFaults(t *testing.T) {
	t.Parallel()
	const policy = "arn:aws:iam::123456789012:policy/taskpass-spill"
	eleven := make([]string, 11)
	for i := range eleven {
		eleven[i] = policy + strings.Repeat("x", i)
	}
	web := &aws.WebIdentity{RoleARN: "arn:aws:iam::123456789012:role/broker", TokenFile: "/var/run/token"}
	for name, c := range map[string]struct {
		edit func(*aws.Config)
		want []string // pointers
	}{
		"nothing wrong":            {func(*aws.Config) {}, nil},
		"all of it":                {func(c *aws.Config) { *c = all(*c) }, nil},
		"a user's ARN":             {func(c *aws.Config) { c.RoleARN = "arn:aws:iam::123456789012:user/agents" }, []string{"role_arn"}},
		"half a key":               {func(c *aws.Config) { c.SecretAccessKey = "" }, []string{"access_key_id"}},
		"key and profile":          {func(c *aws.Config) { c.ConfigProfile = "fleet" }, []string{"config_profile"}},
		"key and web identity":     {func(c *aws.Config) { c.WebIdentity = web }, []string{"web_identity"}},
		"profile and web identity": {func(c *aws.Config) { *c = keyless(*c); c.ConfigProfile, c.WebIdentity = "fleet", web }, []string{"web_identity"}},
		"web identity":             {func(c *aws.Config) { *c = keyless(*c); c.WebIdentity = web }, nil},
		"a token file beside": {func(c *aws.Config) {
			*c = keyless(*c)
			c.WebIdentity = &aws.WebIdentity{RoleARN: web.RoleARN, TokenFile: "token"}
		}, []string{"web_identity.token_file"}},
		"a web identity of a user":    {func(c *aws.Config) { *c = keyless(*c); c.WebIdentity = &aws.WebIdentity{RoleARN: "x", TokenFile: "/t"} }, []string{"web_identity.role_arn"}},
		"opting out in other words":   {func(c *aws.Config) { c.STSAndIAM = "true" }, []string{"sts_and_iam"}},
		"cutting off in other words":  {func(c *aws.Config) { c.Revocation.CutOff = "yes" }, []string{"revocation.cut_off"}},
		"a transitive tag that isn't": {func(c *aws.Config) { c.TransitiveTags = []string{"Team"} }, []string{"transitive_tags[0]"}},
		"no such mode":                {func(c *aws.Config) { c.Revocation.Mode = "delete" }, []string{"revocation.mode"}},
		"no such key":                 {func(c *aws.Config) { c.Revocation.By = "name" }, []string{"revocation.by"}},
		"by what sessions lack":       {func(c *aws.Config) { c.Revocation.By = "source_identity" }, []string{"revocation.by"}},
		"a lag of two hours":          {func(c *aws.Config) { c.Revocation.Lag = new(2 * time.Hour) }, []string{"revocation.lag"}},
		"a negative lag":              {func(c *aws.Config) { c.Revocation.Lag = new(-time.Second) }, []string{"revocation.lag"}},
		"a look each millisecond":     {func(c *aws.Config) { c.Revocation.CheckEvery = time.Millisecond }, []string{"revocation.check_every"}},
		"AWS's own policy":            {func(c *aws.Config) { c.Revocation.SpillPolicies = []string{"arn:aws:iam::aws:policy/ReadOnlyAccess"} }, []string{"revocation.spill_policies[0]"}},
		"a role to spill into":        {func(c *aws.Config) { c.Revocation.SpillPolicies = []string{policy, c.RoleARN} }, []string{"revocation.spill_policies[1]"}},
		"one policy twice":            {func(c *aws.Config) { c.Revocation.SpillPolicies = []string{policy, policy} }, []string{"revocation.spill_policies[1]"}},
		"eleven policies":             {func(c *aws.Config) { c.Revocation.SpillPolicies = eleven }, []string{"revocation.spill_policies"}},
		"no scopes":                   {func(c *aws.Config) { c.Scopes = nil }, []string{"scopes"}},
	} {
		cfg := config(t, "http://127.0.0.1:1")
		c.edit(&cfg)
		var got []string
		for _, f := range cfg.Check() {
			got = append(got, f.Pointer)
		}
		slices.Sort(got)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func keyless(c aws.Config) aws.Config {
	c.AccessKeyID, c.SecretAccessKey = "", ""
	return c
}

func all(c aws.Config) aws.Config {
	c.ExternalID, c.SourceIdentity, c.STSAndIAM = "ext", true, "accept"
	c.Tags, c.TransitiveTags = map[string]string{"Team": "{{.Metadata.team}}"}, []string{"Team"}
	c.Revocation = aws.Revocation{
		Mode: "deny", Lag: new(time.Duration(0)), By: "source_identity", CutOff: "accept", CheckEvery: time.Minute,
		SpillPolicies: []string{"arn:aws:iam::123456789012:policy/a", "arn:aws:iam::123456789012:policy/path/b"},
	}
	return c
}

// A hostile id or metadata value is refused before AWS is asked; an odd one that is allowed changes nothing but itself.
func TestHostileValues(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	p := w.provider(t, func(c *aws.Config) {
		c.Scopes["team"] = aws.Scope{Statements: []aws.Statement{{
			Actions: []string{"s3:GetObject"}, Resources: []string{"arn:aws:s3:::data/{{.Metadata.team}}/{{.AgentID}}/*"},
			Conditions: map[string]map[string][]string{"StringEquals": {"aws:PrincipalTag/Task": {"{{.TaskID}}"}}},
		}}}
		c.Tags = map[string]string{"Task": "{{.TaskID}}", "Team": "{{.Metadata.team}}"}
	})
	put := map[string]func(*broker.Credential, string){
		"task":     func(c *broker.Credential, v string) { c.TaskID = v },
		"agent":    func(c *broker.Credential, v string) { c.AgentID = v },
		"metadata": func(c *broker.Credential, v string) { c.Metadata = map[string]string{"team": v} },
	}
	for where, set := range put {
		for _, value := range []string{
			"a/../*", "${aws:username}", `"},{"`, `","Effect":"Allow","Action":"*","Resource":"*`, "*", "?", "a*", "${*}", "$", `\u002a`, "a b",
			"a\nb", "a\x00", "{{.AgentID}}", "%2a", "ａ", "", strings.Repeat("a", 129), "'", "<", "a,b", "arn:aws:s3:::data/*", ".", "..",
		} {
			c := w.request("read", "team")
			set(&c, value)
			_, err := p.Mint(t.Context(), c)
			if e := broker.AsError(err); !errors.Is(err, broker.ErrNotMinted) || e.Code != broker.CodeInvalidRequest {
				t.Errorf("%s %q: %v", where, value, err)
			}
			if n := len(w.calls()); n != 0 {
				t.Errorf("%s %q: AWS was asked", where, value)
			}
			if len(value) > 3 && strings.Contains(err.Error(), value) {
				t.Errorf("%s %q: the error repeats it: %v", where, value, err)
			}
		}
		harmless := w.request("read", "team")
		set(&harmless, "H4RMLESS")
		want := statements(t, w.policy(t, p, harmless))
		for _, value := range []string{"..a", ":", "@", "a:b", "arn:aws:s3", "AROA:x", strings.Repeat("z", 128), "-", "aws:username"} {
			c := w.request("read", "team")
			set(&c, value)
			got := statements(t, w.policy(t, p, c))
			if diff := cmp.Diff(inOrder(with(want, "H4RMLESS", value)), inOrder(got)); diff != "" {
				t.Errorf("%s %q: %s", where, value, diff)
			}
		}
	}
}

// with puts a value in place of another one, in every string of decoded statements.
func with(statements []map[string]any, old, value string) []map[string]any {
	var fill func(in any) any
	fill = func(in any) any {
		switch v := in.(type) {
		case string:
			return strings.ReplaceAll(v, old, value)
		case []any:
			out := make([]any, len(v))
			for i := range v {
				out[i] = fill(v[i])
			}
			return out
		case map[string]any:
			out := map[string]any{}
			for k := range v {
				out[k] = fill(v[k])
			}
			return out
		}
		return in
	}
	out := make([]map[string]any, len(statements))
	for i, s := range statements {
		out[i] = fill(s).(map[string]any)
	}
	return out
}

// inOrder sorts statements by their text: they are sorted by resources, which a value is part of.
func inOrder(list []map[string]any) []string {
	out := make([]string, len(list))
	for i, s := range list {
		text, _ := json.Marshal(s) // what was decoded encodes
		out[i] = string(text)
	}
	slices.Sort(out)
	return out
}
