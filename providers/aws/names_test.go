package aws_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/providers/aws"
)

// What STS and IAM would refuse at the first request is refused when the configuration is read, under its pointer.
func TestNamesThatAWSDoesNotTake(t *testing.T) {
	t.Parallel()
	role := func(arn, region string) func(*aws.Config) {
		return func(c *aws.Config) { c.RoleARN, c.Region = arn, region }
	}
	atAWS := func(arn string) func(*aws.Config) {
		return func(c *aws.Config) { c.RoleARN, c.Endpoint = arn, "" }
	}
	statement := func(s aws.Statement) func(*aws.Config) {
		return func(c *aws.Config) {
			if s.Actions == nil {
				s.Actions = []string{"s3:GetObject"}
			}
			if s.Resources == nil {
				s.Resources = []string{"*"}
			}
			c.Scopes = map[string]aws.Scope{"s": {Statements: []aws.Statement{s}}}
		}
	}
	action := func(a string) func(*aws.Config) { return statement(aws.Statement{Actions: []string{a}}) }
	resource := func(r string) func(*aws.Config) { return statement(aws.Statement{Resources: []string{r}}) }
	condition := func(op, key, value string) func(*aws.Config) {
		return statement(aws.Statement{Conditions: map[string]map[string][]string{op: {key: {value}}}})
	}
	tag := func(key, value string) func(*aws.Config) {
		return func(c *aws.Config) { c.Tags = map[string]string{key: value} }
	}
	managed := func(arn string) func(*aws.Config) {
		return func(c *aws.Config) {
			s := c.Scopes["read"]
			s.PolicyARNs = []string{arn}
			c.Scopes["read"] = s
		}
	}
	const id, s = "arn:aws:iam::123456789012:", "scopes.s.statements[0]."
	for name, c := range map[string]struct {
		edit func(*aws.Config)
		want string // pointer; empty: nothing is wrong
	}{
		"a partition that the SDK knows regions of": {role("arn:aws-eusc:iam::123456789012:role/service-role/team/r2", "eusc-de-east-1"), ""},
		"a partition of the future":                 {role("arn:aws-of-2040:iam::123456789012:role/r", "xx-new-1"), ""},
		"no region there":                           {role("arn:aws-eusc:iam::123456789012:role/r", ""), "region"},
		"no region where the SDK knows the first":   {role("arn:aws-cn:iam::123456789012:role/r", ""), ""},
		"a region of another partition":             {role("arn:aws:iam::123456789012:role/r", "cn-north-1"), "region"},
		"a region with white space":                 {role("arn:aws:iam::123456789012:role/r", "eu-west-1 "), "region"},
		"every role":                                {role(id+"role/*", ""), "role_arn"},
		"every role of a path":                      {role(id+"role/team/*", ""), "role_arn"},
		"a path of every team":                      {role(id+"role/*/r", ""), "role_arn"},
		"an empty path segment":                     {role(id+"role//r", ""), "role_arn"},
		"no name":                                   {role(id+"role/team/", ""), "role_arn"},
		"a role with white space":                   {role(id+"role/r ", ""), "role_arn"},
		"a role with a line break":                  {role(id+"role/r\n", ""), "role_arn"},
		"a role in another alphabet":                {role(id+"role/r\u2011x", ""), "role_arn"},
		"a name of 65 characters":                   {role(id+"role/"+strings.Repeat("r", 65), ""), "role_arn"},
		"a region in the ARN":                       {role("arn:aws:iam:eu-west-1:123456789012:role/r", ""), "role_arn"},
		"an account of 11 digits":                   {role("arn:aws:iam::12345678901:role/r", ""), "role_arn"},
		"an account with dashes":                    {role("arn:aws:iam::1234-5678-9012:role/r", ""), "role_arn"},
		"no account":                                {atAWS("arn:aws:iam:::role/r"), "role_arn"},
		"no account, as at Ceph's gateway":          {role("arn:aws:iam:::role/r", ""), ""},
		"a tenant, as at Ceph's gateway":            {role("arn:aws:iam::team_1:role/r", ""), ""},
		"a tenant at AWS":                           {atAWS("arn:aws:iam::team_1:role/r"), "role_arn"},
		"a managed policy of another account":       {managed("arn:aws:iam::210987654321:policy/p"), "scopes.read.policy_arns[0]"},
		"no partition":                              {role("arn::iam::123456789012:role/r", "eu-west-1"), "role_arn"},
		"an external id with white space":           {func(c *aws.Config) { c.ExternalID = "a b" }, "external_id"},
		"an external id of one character":           {func(c *aws.Config) { c.ExternalID = "a" }, "external_id"},
		"a role to write policies in no account":    {func(c *aws.Config) { c.Revocation.IAMRoleARN = "arn:aws:iam::1:role/w" }, "revocation.iam_role_arn"},
		"a spill policy of every name":              {func(c *aws.Config) { c.Revocation.SpillPolicies = []string{id + "policy/*"} }, "revocation.spill_policies[0]"},
		"a managed policy":                          {managed(id + "policy/team/p"), ""},
		"AWS's managed policy":                      {managed("arn:aws:iam::aws:policy/job-function/ViewOnlyAccess"), ""},
		"a managed policy of another partition":     {managed("arn:aws-cn:iam::aws:policy/ReadOnlyAccess"), "scopes.read.policy_arns[0]"},
		"a managed policy's name alone":             {managed("ReadOnlyAccess"), "scopes.read.policy_arns[0]"},

		"every action":                     {action("*"), ""},
		"a service's actions":              {action("docdb-elastic:*"), ""},
		"some actions":                     {action("s3:Get*"), ""},
		"white space in an action":         {action("s3: GetObject"), s + "actions[0]"},
		"white space after an action":      {action("s3:GetObject "), s + "actions[0]"},
		"a tab before an action":           {action("\ts3:GetObject"), s + "actions[0]"},
		"a hyphen that is none":            {action("docdb\u2011elastic:*"), s + "actions[0]"},
		"a colon that is none":             {action("s3\uff1aGetObject"), s + "actions[0]"},
		"two colons in an action":          {action("s3:Get:Object"), s + "actions[0]"},
		"an action without a name":         {action("s3:"), s + "actions[0]"},
		"a resource of five parts":         {resource("arn:aws:s3:b/x"), s + "resources[0]"},
		"no ARN":                           {resource("b/*"), s + "resources[0]"},
		"white space after a resource":     {resource("arn:aws:s3:::b/* "), s + "resources[0]"},
		"white space in an ARN":            {resource("arn:aws: s3:::b/*"), s + "resources[0]"},
		"a hyphen that is none, there":     {resource("arn:aws\u2011cn:s3:::b/*"), s + "resources[0]"},
		"a space in an object's name":      {resource("arn:aws:s3:::b/my files/{{.TaskID}}/*"), ""},
		"another alphabet":                 {resource("arn:aws:s3:::b/\u30c7\u30fc\u30bf/{{.TaskID}}/*"), ""},
		"an invisible character":           {resource("arn:aws:s3:::b/\u200b{{.TaskID}}/*"), s + "resources[0]"},
		"a space that does not break":      {resource("arn:aws:s3:::b/a\u00a0b/*"), s + "resources[0]"},
		"a metadata key with colons":       {resource("arn:aws:s3:::b/{{.Metadata.a:b}}/*"), ""},
		"an operator with a space":         {condition("String Like", "s3:prefix", "x"), s + "conditions.String Like"},
		"an operator for all, if it is":    {condition("ForAllValues:StringLikeIfExists", "aws:TagKeys", "x"), ""},
		"a key without a service":          {condition("StringLike", "prefix", "x"), s + "conditions.StringLike.prefix"},
		"a key with white space at an end": {condition("StringLike", "s3:prefix ", "x"), s + "conditions.StringLike.s3:prefix "},
		"a tag's key with a space":         {condition("StringLike", "aws:ResourceTag/my team", "x"), ""},
		"white space before a value":       {condition("StringLike", "s3:prefix", " x"), s + "conditions.StringLike.s3:prefix"},

		"a tag in another alphabet":    {tag("\u00c9quipe", "bl\u00e5 {{.TaskID}}"), ""},
		"a tag's key with a comma":     {tag("a,b", "x"), "tags.a,b"},
		"a tag's value with a comma":   {tag("a", "x,y"), "tags.a"},
		"a tag's value, a space after": {tag("a", "x "), "tags.a"},
		"a tag's value, two lines":     {tag("a", "x\ny"), "tags.a"},
		"256 characters of two bytes":  {tag("a", strings.Repeat("\u00e9", 256)), ""},
		"257 characters":               {tag("a", strings.Repeat("a", 257)), "tags.a"},
	} {
		cfg := config(t, "http://127.0.0.1:1")
		c.edit(&cfg)
		var got, want []string
		for _, f := range cfg.Check() {
			got = append(got, f.Pointer)
		}
		if c.want != "" {
			want = []string{c.want}
		}
		if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// STS takes nothing above U+00FF in a policy. Escaped, the resource is still the same one.
func TestPolicyIsASCII(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	const resource = "arn:aws:s3:::b/\u30c7\u30fc\u30bf/\U0001f600/"
	p := w.provider(t, func(c *aws.Config) {
		c.Scopes = map[string]aws.Scope{"read": {Statements: []aws.Statement{{Actions: []string{"s3:GetObject"}, Resources: []string{resource + "{{.TaskID}}/*"}}}}}
	})
	if _, err := p.Mint(t.Context(), w.request("read")); err != nil {
		t.Fatal(err)
	}
	text := w.last(t).Get("Policy")
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) || !strings.Contains(text, `\u30c7\u30fc\u30bf/\ud83d\ude00/`) {
		t.Errorf("not in ASCII: %s", text)
	}
	var policy struct{ Statement []struct{ Resource string } }
	if err := json.Unmarshal([]byte(text), &policy); err != nil || policy.Statement[0].Resource != resource+"t-1/*" {
		t.Errorf("%v: %+v", err, policy)
	}
}
