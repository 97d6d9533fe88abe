package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/seal"
	"github.com/taskpass/taskpass/cmd/taskpass/config"
)

// compose is what the tests look at in docker-compose.yml.
type compose struct {
	Services map[string]struct{ Secrets, Volumes []string }
	Secrets  map[string]struct{ File string }
	Volumes  map[string]any
}

const exampleYAML = "../../docs/examples/taskpass.yaml"

// byHand are what no script can make: see docs/operating.md.
var byHand = []string{"search_key_1", "search_key_2"}

// What the broker of docker-compose.yml is configured with is what it is given: each secret is written by the script, and
// handed to it; the checkpoints' directory is a volume of its own that the database has no part in. Once the example got
// an audit section that compose had no key for, and its broker could not start.
func TestComposeHasWhatTheExampleNames(t *testing.T) {
	t.Parallel()
	var file compose
	if err := yaml.Unmarshal([]byte(readFile(t, "../../docker-compose.yml")), &file); err != nil {
		t.Fatal(err)
	}
	dir := composeSecrets(t)
	given := file.Services["broker"]
	for _, name := range regexp.MustCompile(`(?m)^[^#\n]*file:/run/secrets/(\w+)`).FindAllStringSubmatch(readFile(t, exampleYAML), -1) {
		secret := name[1]
		if slices.Contains(byHand, secret) {
			continue
		}
		if at := file.Secrets[secret].File; !slices.Contains(given.Secrets, secret) || at != "./secrets/"+secret {
			t.Errorf("the broker is not given %s, or from elsewhere: %q", secret, at)
		}
	}
	for name, s := range file.Secrets {
		if info, err := os.Stat(filepath.Join(dir, s.File)); err != nil || info.Size() == 0 {
			t.Errorf("the secret %s is not written: %v", name, err)
		}
	}
	example, err := config.Load(exampleYAML)
	if err != nil {
		t.Fatal(err)
	}
	checkpoints := filepath.Dir(example.Audit.Publish[0].File)
	for name, s := range file.Services {
		has := slices.Contains(s.Volumes, "checkpoints:"+checkpoints)
		if any := strings.Contains(strings.Join(s.Volumes, " "), "checkpoints"); has != (name == "broker") || any != has {
			t.Errorf("%s has the volumes %q", name, s.Volumes)
		}
	}
	if _, ok := file.Volumes["checkpoints"]; !ok || !strings.Contains(readFile(t, "../../Dockerfile"), "--chown=65532:65532 /out/state "+checkpoints+"\n") {
		t.Errorf("%s is no volume that the image's user may write to", checkpoints)
	}
}

// composeSecrets runs the script where it changes nothing of ours.
func composeSecrets(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, ".ci"), 0o700); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(dir, ".ci", "compose-secrets")
	if err := os.WriteFile(script, []byte(readFile(t, "../../.ci/compose-secrets")), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "bash", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}

// The keys that the script makes without this program are those that it takes, and a second run changes none.
func TestComposeSecretsAreKeys(t *testing.T) {
	t.Parallel()
	dir := composeSecrets(t)
	example, err := config.Load(exampleYAML)
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, "secrets", "audit_key")
	if public := must(t, "audit", "public", key).stdout; !strings.HasPrefix(public, example.Audit.Name+"+") {
		t.Errorf("the audit key is %s", public)
	}
	if _, err := seal.New(broker.NewSecret(readFile(t, filepath.Join(dir, "secrets", "keyset")))); err != nil {
		t.Error(err)
	}
	before := readFile(t, key)
	if out, err := exec.CommandContext(t.Context(), "bash", filepath.Join(dir, ".ci", "compose-secrets")).CombinedOutput(); err != nil || len(out) > 0 || readFile(t, key) != before {
		t.Errorf("again: %s, %v", out, err)
	}
}
