package broker_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/taskpass/taskpass/broker"
)

func utf16LE(text string) string {
	var b strings.Builder
	for _, u := range utf16.Encode([]rune(text)) {
		b.Write([]byte{byte(u), byte(u >> 8)})
	}
	return b.String()
}

// BadValues are texts of which no header or environment variable can carry the value, with what the reason mentions.
var badValues = map[string]struct{ text, want string }{
	"nothing":            {"", "empty"},
	"a newline":          {"\n", "empty"},
	"BOM":                {"\ufeffkey-CANARY\n", "byte order mark"},
	"two lines":          {"key-CANARY\nkey-CANARY\n", "more than one line"},
	"CR in the middle":   {"key-CANARY\rkey\n", "more than one line"},
	"first line empty":   {"\nkey-CANARY", "more than one line"},
	"two final newlines": {"key-CANARY\n\n", "ends in white space"},
	"final space":        {"key-CANARY \n", "ends in white space"},
	"final tab":          {"key-CANARY\t", "ends in white space"},
	"leading space":      {" key-CANARY", "begins with white space"},
	"NUL":                {"key\x00-CANARY\n", "NUL"},
	"tab":                {"key\t-CANARY\n", "control"},
	"escape":             {"key\x1b[0m-CANARY\n", "control"},
	"DEL":                {"key\x7f-CANARY\n", "control"},
	"UTF-16 LE":          {utf16LE("key-CANARY"), "UTF-16"},
	"UTF-16 BOM":         {"\xff\xfek\x00e\x00y\x00", "UTF-16"},
	"UTF-16 BE BOM":      {"\xfe\xff\x00k\x00e\x00y", "UTF-16"},
	"Latin-1":            {"k\xe9y\n", "not UTF-8"},
	"UTF-8 letter":       {"k\u00e9y-CANARY\n", "not ASCII"},
	"zero width space":   {"key\u200b-CANARY\n", "not ASCII"},
	"no-break space":     {"key-CANARY\u00a0\n", "not ASCII"},
	"line separator":     {"key\u2028-CANARY\n", "not ASCII"},
	"C1 control":         {"key\u0085-CANARY\n", "not ASCII"},
	"too long":           {strings.Repeat("x", broker.MaxSecretValue+1), "larger"},
}

// Every way in which a value cannot travel has a reason, which shows nothing of the value.
func TestCheckSecretValue(t *testing.T) {
	t.Parallel()
	for name, c := range badValues {
		s, err := broker.NewSecretValue(c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if !s.Empty() {
			t.Errorf("%s: a value all the same", name)
		}
	}
	for text, want := range map[string]string{
		"key": "key", "key\n": "key", "key\r\n": "key", "two words": "two words", "~!\"#$%{}`\\'": "~!\"#$%{}`\\'",
		strings.Repeat("x", broker.MaxSecretValue) + "\n": strings.Repeat("x", broker.MaxSecretValue),
	} {
		if s, err := broker.NewSecretValue(text); err != nil || s.Reveal() != want {
			t.Errorf("%.20q: %v", text, err)
		}
	}
	for _, text := range []string{"key\n", "key\r\n", "key "} { // by hand nothing is cut off
		if broker.CheckSecretValue(text) == nil {
			t.Errorf("%q passes as it is", text)
		}
	}
}

// A secret of the broker's own that travels in a header is refused too, and its reference is named.
func TestRefResolveValue(t *testing.T) {
	t.Parallel()
	for name, c := range badValues {
		if strings.TrimSpace(c.text) == "key-CANARY" {
			continue // white space around a reference's text is dropped
		}
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := broker.Ref("file:" + path).ResolveValue()
		if err == nil || !s.Empty() || strings.Contains(err.Error(), "CANARY") || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
