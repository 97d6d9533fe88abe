package config_test

import (
	"strings"
	"testing"

	"github.com/taskpass/taskpass/cmd/taskpass/config"
)

// withEnv is the full example with other fixed variables in its first profile.
func withEnv(t *testing.T, lines ...string) string {
	t.Helper()
	text := read(t, full)
	const there = "      AWS_RETRY_MODE: standard\n"
	if !strings.Contains(text, there) {
		t.Fatal("testdata/full.yaml has no env")
	}
	return strings.Replace(text, there, "      "+strings.Join(lines, "\n      ")+"\n", 1)
}

// A profile's fixed variables have names of the environment's form, replace none of the provider's own, and hold no secret.
func TestFixedVariables(t *testing.T) {
	t.Parallel()
	f := parse(t, withEnv(t, "AWS_ENDPOINT_URL_S3: https://s3.example", "_x1: 'a b'"))
	if env := f.Profiles["aws-a"].Env; len(env) != 2 || env["AWS_ENDPOINT_URL_S3"] != "https://s3.example" || env["_x1"] != "a b" {
		t.Errorf("%v", env)
	}
	for line, want := range map[string]string{
		"AWS_REGION: eu-west-1": "env.AWS_REGION: belongs to the provider", "AWS_DEFAULT_REGION: x": "belongs to the provider",
		"AWS_SESSION_TOKEN: x": "belongs to the provider", "AWS_ENDPOINT_URL: http://x": "belongs to the provider",
		"1X: C4n4ry": "env: has a name", "'A B': C4n4ry": "env: has a name", "'A=B': C4n4ry": "env: has a name", "'': C4n4ry": "env: has a name",
		"X: ' C4n4ry'": "env.X: begins with white space", "X: ''": "env.X: is empty", `X: "C4n4ry\0"`: "NUL", `X: "C4n4ry\nB"`: "more than one line",
		"X: " + strings.Repeat("C4n4ry", 200): "longer than 1024 bytes",
		"X: file:/run/C4n4ry":                 "looks like a secret", "X: env:C4n4ry": "looks like a secret", "X: sk-C4n4ry0123456789abcdef": "looks like a secret",
		"X: AKIAC4N4RY0123456789": "looks like a secret", "X: postgres://u:C4n4ry@h/d": "looks like a secret",
	} {
		_, err := config.Parse("taskpass.yaml", []byte(withEnv(t, line)))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "C4n4ry") {
			t.Errorf("%.40s: %v, want %s", line, err, want)
		}
	}
}

// Names of only dots could not be put into a URL's path: of a profile, a pool, a key and a caller.
func TestNamesOfOnlyDots(t *testing.T) {
	t.Parallel()
	for from, to := range map[string]string{
		"aws-a:": "'..':", "callers: [alice, ": "callers: ['..', ", "tasks: [task-*]": "tasks: ['.']", "agents: [agent-1]": "agents: ['...']",
	} {
		text := strings.Replace(read(t, full), from, to, 1)
		if _, err := config.Parse("taskpass.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), "only dots") {
			t.Errorf("%s: %v", to, err)
		}
	}
	text := read(t, example)
	for _, from := range []string{"      name: search-api", "- name: "} {
		i := strings.Index(text, from)
		if i < 0 {
			t.Fatalf("the example has no %q", from)
		}
		end := i + strings.Index(text[i:], "\n")
		changed := text[:i] + from[:strings.Index(from, "name:")] + "name: '..'" + text[end:]
		if _, err := config.Parse("taskpass.yaml", []byte(changed)); err == nil || !strings.Contains(err.Error(), "only dots") {
			t.Errorf("%q: %v", from, err)
		}
	}
	parse(t, strings.Replace(read(t, full), "tasks: [task-*]", "tasks: ['..*', '*']", 1))
}
