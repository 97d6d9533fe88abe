package resolve_test

import (
	"os"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/providertest"
)

// What no header or environment variable can carry is an error from every source, with the reference and the reason.
func TestUnusableValues(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	path := file(t, "key", "x")
	for name, c := range map[string]struct{ text, want string }{
		"BOM": {"\ufeffkey-canary\n", "byte order mark"}, "two lines": {"key-canary\nkey-canary\n", "more than one line"},
		"NUL": {"key\x00canary", "NUL"}, "control": {"key\x1bcanary", "control"}, "UTF-16": {"\xff\xfek\x00e\x00y\x00", "UTF-16"},
		"Latin-1": {"k\xe9y-canary", "UTF-8"}, "not ASCII": {"k\u00e9y-canary", "ASCII"}, "space": {"key-canary  ", "white space"},
		"first space": {"\tkey-canary", "white space"}, "newlines": {"key-canary\n\n", "newline"}, "nothing": {"\n", "empty"},
	} {
		providertest.WriteSecret(t, path, c.text)
		r.aws.Put(region, "a", c.text)
		r.gcp.Put(gcpName, []byte(c.text))
		r.vault.Put("a", map[string]any{"key": c.text})
		for _, ref := range []string{"file:" + path, "aws-sm:eu-west-1/a", "gcp-sm:" + gcpName, "vault:kv/a#key"} {
			value, _, err := r.Resolve(t.Context(), ref)
			if !value.Empty() {
				t.Errorf("%s: %s has a value", name, ref)
			}
			if ref != "file:"+path && strings.ToValidUTF8(c.text, "") != c.text { // JSON carries no such text
				continue
			}
			if e := wantCode(t, err, broker.CodeUpstreamRefused); !strings.HasPrefix(e.Message, ref) || !strings.Contains(e.Message, c.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if _, _, err := r.Resolve(t.Context(), "file:"+os.DevNull); err == nil {
		t.Error("a device has a value")
	}
}
