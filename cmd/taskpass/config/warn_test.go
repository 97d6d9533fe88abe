package config_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/cmd/taskpass/config"
)

const warnYAML = `database: {url: "file:/run/url"}
seal: {keyset: "file:/run/keyset"}
profiles:
  p:
    provider: aws
    ttl: {default: 15m, max: 1h}
    allow: [%s]
    aws:
      role_arn: arn:aws:iam::123456789012:role/r
      access_key_id: file:/run/id
      secret_access_key: file:/run/key
      tags: {%s}
      scopes:
        read:
          statements:
            - actions: ["s3:GetObject"]
              resources: ["arn:aws:s3:::b/%s/*"]
`

// Several callers under one task id get each other's resources unless the profile tells them apart.
func TestWarnsOfCallersThatShareResources(t *testing.T) {
	clearEnvironment(t)
	const resource, tags = "profiles.p.aws.scopes.read.statements[0].resources[0]", "profiles.p.aws.tags"
	for name, c := range map[string]struct {
		allow, tags, path string
		want              []string
	}{
		"one caller":                      {`{callers: [a]}`, `t: "{{.TaskID}}"`, "{{.TaskID}}", nil},
		"one caller by two rules":         {`{callers: [a], tasks: [x-*]}, {callers: [a]}`, ``, "{{.TaskID}}", nil},
		"any caller":                      {`{callers: ["*"]}`, ``, "{{.TaskID}}", []string{resource}},
		"any caller of a kind":            {`{callers: ["team-*"], tasks: [x]}`, ``, "{{.TaskID}}", []string{resource}},
		"two callers":                     {`{callers: [a, b]}`, `t: "{{.TaskID}}"`, "{{.TaskID}}", []string{resource, tags}},
		"by their own rules":              {`{callers: [a]}, {callers: [b]}`, ``, "{{.TaskID}}", []string{resource}},
		"told apart":                      {`{callers: [a, b]}`, `t: "{{.TaskID}}", c: "{{.Caller}}"`, "{{.Caller}}/{{.TaskID}}", nil},
		"with tasks of their own":         {`{callers: [a], tasks: [a-*]}, {callers: [b], tasks: [b-*, c]}`, ``, "{{.TaskID}}", nil},
		"with tasks that meet":            {`{callers: [a], tasks: [a-*]}, {callers: [b], tasks: [a-b-*]}`, ``, "{{.TaskID}}", []string{resource}},
		"with one task that meets":        {`{callers: [a], tasks: [a-*]}, {callers: [b], tasks: [b, a-1]}`, ``, "{{.TaskID}}", []string{resource}},
		"agents, with tasks of their own": {`{callers: [a], tasks: [a-*]}, {callers: [b], tasks: [b-*]}`, ``, "{{.AgentID}}", []string{resource}},
		"with agents of their own":        {`{callers: [a], agents: [a-*]}, {callers: [b], agents: [b-*]}`, ``, "{{.AgentID}}", nil},
		"the same for all by design":      {`{callers: ["*"]}`, ``, "public", nil},
	} {
		f, err := config.Parse("x.yaml", fmt.Appendf(nil, warnYAML, c.allow, c.tags, c.path))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got []string
		for _, w := range f.Warnings() {
			got = append(got, w.Path)
			if w.Line == 0 || !strings.Contains(w.Reason, "{{.Caller}}") {
				t.Errorf("%s: %s", name, w)
			}
		}
		if strings.Join(got, " ") != strings.Join(order(got, c.want), " ") || len(got) != len(c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// order puts what is wanted in the order of what there is, where both have it.
func order(got, want []string) []string {
	var out []string
	for _, g := range got {
		for _, w := range want {
			if g == w {
				out = append(out, w)
			}
		}
	}
	return out
}

func clearEnvironment(t *testing.T) {
	t.Helper()
	for _, name := range []string{"AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CA_BUNDLE",
		"GOOGLE_APPLICATION_CREDENTIALS", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
		t.Setenv(name, "")
	}
}

// What the environment changes, and what it does not though it is set, is named once, without a value.
func TestWarnsOfTheEnvironment(t *testing.T) {
	clearEnvironment(t)
	t.Setenv("AWS_PROFILE", "C4n4ry")
	t.Setenv("AWS_ENDPOINT_URL_STS", "http://C4n4ry")
	t.Setenv("HTTPS_PROXY", "http://user:C4n4ry@127.0.0.1:1")
	t.Setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "C4n4ry")
	text := fmt.Sprintf(warnYAML, `{callers: [a]}`, ``, "{{.TaskID}}") + `  q:
    provider: aws
    ttl: {default: 15m, max: 1h}
    allow: [{callers: [a]}]
    aws: &chain {role_arn: "arn:aws:iam::123456789012:role/s", scopes: {read: {statements: [{actions: ["s3:GetObject"], resources: ["*"]}]}}}
  q2:
    provider: aws
    ttl: {default: 15m, max: 1h}
    allow: [{callers: [a]}]
    aws: *chain
  g:
    provider: gcp
    ttl: {default: 10m, max: 1h}
    allow: [{callers: [a]}]
    gcp: {mode: impersonate, service_account: a@p.iam.gserviceaccount.com, scopes: {read: {}}}
`
	f, err := config.Parse("x.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, w := range f.Warnings() {
		all = append(all, w.String())
	}
	got := strings.Join(all, "\n")
	for _, want := range []string{
		"profiles.p.aws: is not affected by variables of this process's environment, though they are set: AWS_ENDPOINT_URL_STS, AWS_PROFILE\n",
		"profiles.q.aws: depends on variables of this process's environment: AWS_PROFILE (1 more have the same)",
		"profiles.q.aws: is not affected by variables of this process's environment, though they are set: AWS_ENDPOINT_URL_STS (1 more have the same)",
		"profiles.g.gcp: depends on variables of this process's environment: GOOGLE_CLOUD_QUOTA_PROJECT",
		"HTTPS_PROXY",
	} {
		if !strings.Contains(got+"\n", want) {
			t.Errorf("it does not say %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "C4n4ry") {
		t.Errorf("a value is shown: %s", got)
	}
}

// A file with what AWS would refuse is refused at the line where it stands.
func TestWhatAWSRefusesIsFoundAtItsLine(t *testing.T) {
	t.Parallel()
	good := fmt.Sprintf(warnYAML, `{callers: [a]}`, ``, "{{.TaskID}}")
	for name, c := range map[string]struct {
		old, with, want string
	}{
		"role/*":                     {"role/r", "role/*", "x.yaml:9: profiles.p.aws.role_arn: "},
		"an account of 4 digits":     {"123456789012", "1234", "x.yaml:9: profiles.p.aws.role_arn: "},
		"no region in aws-eusc":      {"arn:aws:iam", "arn:aws-eusc:iam", "x.yaml:8: profiles.p.aws.region: "},
		"white space in an action":   {"s3:GetObject", "s3: GetObject", "x.yaml:16: profiles.p.aws.scopes.read.statements[0].actions[0]: "},
		"a hyphen that is none":      {"s3:GetObject", "docdb\u2011elastic:*", "x.yaml:16: profiles.p.aws.scopes.read.statements[0].actions[0]: "},
		"a resource with three dots": {"arn:aws:s3:::b", "arn:aws:s3:b", "x.yaml:17: profiles.p.aws.scopes.read.statements[0].resources[0]: "},
		"an invisible character":     {"b/{{", "b/\u200b{{", "x.yaml:17: profiles.p.aws.scopes.read.statements[0].resources[0]: "},
	} {
		_, err := config.Parse("x.yaml", []byte(strings.Replace(good, c.old, c.with, 1)))
		if err == nil || !strings.HasPrefix(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if _, err := config.Parse("x.yaml", []byte(strings.Replace(good, "b/{{", "b/\u30c7\u30fc\u30bf/{{", 1))); err != nil {
		t.Errorf("another alphabet is escaped: %v", err)
	}
	if _, err := config.Parse("x.yaml", []byte(strings.Replace(good, "arn:aws:iam::123456789012:role/r", "arn:aws-eusc:iam::123456789012:role/service-role/team/r2\n      region: eusc-de-east-1", 1))); err != nil {
		t.Errorf("aws-eusc: %v", err)
	}
}

// A bucket's region is one of AWS's, or whatever a server that is not AWS calls it, in visible characters.
func TestTheRegionOfABucket(t *testing.T) {
	t.Parallel()
	for publish, good := range map[string]bool{
		`{s3: "s3://b", region: eusc-de-east-1}`: true, `{s3: "s3://b"}`: true, `{s3: "s3://b", region: garage, endpoint: "https://s3.example"}`: true,
		`{s3: "s3://b", region: garage}`: false, `{s3: "s3://b", region: " eu-west-1"}`: false,
		`{s3: "s3://b", region: "gar age", endpoint: "https://s3.example"}`:                 false,
		`{s3: "s3://b", region: us-gov-west-1, fips: true, endpoint: "https://s3.example"}`: false,
		`{file: /a, fips: true}`: false,
	} {
		text := "audit: {name: a/b, key: \"file:/k\", publish: [" + publish + "]}\n" + fmt.Sprintf(warnYAML, `{callers: [a]}`, ``, "{{.TaskID}}")
		if _, err := config.Parse("x.yaml", []byte(text)); (err == nil) != good {
			t.Errorf("%s: %v", publish, err)
		}
	}
}
