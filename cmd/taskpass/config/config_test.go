package config_test

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v4"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/cmd/taskpass/config"
	"github.com/taskpass/taskpass/providers/pool"
)

const (
	example = "../../../docs/examples/taskpass.yaml"
	full    = "testdata/full.yaml"
)

var sameFile = cmpopts.IgnoreUnexported(config.File{})

func read(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func parse(t testing.TB, text string) *config.File {
	t.Helper()
	f, err := config.Parse("taskpass.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestExampleIsAccepted(t *testing.T) {
	t.Parallel()
	f, err := config.Load(example)
	if err != nil {
		t.Fatal(err)
	}
	if f.Listen != "0.0.0.0:8080" || f.Database.URL != "file:/run/secrets/database_url" || f.Seal.Keyset != "file:/run/secrets/keyset" {
		t.Errorf("got listen %s, database %s, keyset %s", f.Listen, f.Database.URL, f.Seal.Keyset)
	}
	if f.Profiles["aws-research"].AWS == nil || f.Profiles["search-api"].Pool == nil {
		t.Error("the example has no aws profile, or no pool profile")
	}
}

// What the example offers in comments is right, too.
func TestExampleWithItsCommentedFields(t *testing.T) {
	t.Parallel()
	text := read(t, example)
	for _, field := range []string{"tls:", "  cert_file:", "  key_file:", "  client_ca_file:", "external_id:", "access_key_id:", "secret_access_key:"} {
		if !strings.Contains(text, "# "+field) {
			t.Errorf("the example does not mention %s", field)
		}
		text = strings.Replace(text, "# "+field, field, 1)
	}
	if f := parse(t, text); f.TLS == nil || f.Profiles["aws-research"].AWS.SecretAccessKey == "" {
		t.Error("the comments were not read")
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	got := parse(t, small)
	want := &config.File{
		Listen: "127.0.0.1:8080", Database: config.Database{URL: "env:DB"}, Seal: config.Seal{Keyset: "env:KEYSET"},
		UpstreamTimeout: 10 * time.Second, ShutdownTimeout: 30 * time.Second, Log: config.Log{Level: "info"},
		Limits: config.Limits{PerTask: 100, PerAgent: 1000, PerProfile: 50_000, PerCaller: 20_000}, Concurrency: usual,
		Profiles: map[string]config.Profile{"a": {
			Provider: "pool", TTL: config.TTL{Default: 10 * time.Minute, Max: time.Hour},
			Allow: []config.Rule{{Callers: []string{"bob"}}},
		}},
	}
	p := want.Profiles["a"]
	p.Pool = &pool.Config{Name: "p", Scopes: []string{"s", "t"}, Disclosed: "accept", Keys: []pool.Key{{Name: "k", Value: broker.Ref("env:K")}}}
	want.Profiles["a"] = p
	if diff := cmp.Diff(want, got, sameFile); diff != "" {
		t.Error(diff)
	}
}

func TestAliasesAndMergesStandForTheirTargets(t *testing.T) {
	t.Parallel()
	f := parse(t, read(t, full))
	a, b := f.Profiles["aws-a"], f.Profiles["aws-b"]
	if b.AWS.RoleARN != "arn:aws:iam::123456789012:role/b" || a.AWS.RoleARN != "arn:aws:iam::123456789012:role/a" {
		t.Errorf("a mapping's own key must win over a merged one, and change nothing at its source: %s, %s", a.AWS.RoleARN, b.AWS.RoleARN)
	}
	same := *b.AWS
	same.RoleARN, same.Revocation = a.AWS.RoleARN, a.AWS.Revocation
	if b.AWS.Revocation.Mode != "none" || len(b.AWS.Revocation.SpillPolicies) > 0 {
		t.Errorf("a mapping's own value must stand in place of the merged one: %+v", b.AWS.Revocation)
	}
	if diff := cmp.Diff(a.AWS, &same); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]any{a.TTL, a.Allow}, []any{b.TTL, b.Allow}); diff != "" {
		t.Error(diff)
	}
}

// A File that was read, written by the library and read again is the same.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for _, path := range []string{example, full} {
		f := parse(t, read(t, path))
		text, err := yaml.Dump(f)
		if err != nil {
			t.Fatal(err)
		}
		var tree yaml.Node
		if err := yaml.Load(text, &tree); err != nil {
			t.Fatal(err)
		}
		leaveOut(&tree)
		if text, err = yaml.Dump(&tree); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(f, parse(t, string(text)), sameFile, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
}

// leaveOut drops the fields that were absent, and that the library writes all the same.
func leaveOut(n *yaml.Node) {
	var kept []*yaml.Node
	for i := 0; i < len(n.Content); i++ {
		c := n.Content[i]
		leaveOut(c)
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			if v := n.Content[i+1]; v.ShortTag() == "!!null" || v.Kind != yaml.ScalarNode && len(v.Content) == 0 {
				i++
				continue
			}
		}
		kept = append(kept, c)
	}
	n.Content = kept
}

// The decoder is held against the library's: what it accepts, the library reads the same.
func TestDecodesAsTheLibrary(t *testing.T) {
	t.Parallel()
	for _, path := range []string{example, full} {
		text := read(t, path)
		likeTheLibrary(t, text, parse(t, text))
	}
}

func likeTheLibrary(t *testing.T, text string, got *config.File) {
	t.Helper()
	want := config.File{
		Listen: "127.0.0.1:8080", UpstreamTimeout: 10 * time.Second, ShutdownTimeout: 30 * time.Second, Log: config.Log{Level: "info"},
		Limits: config.Limits{PerTask: 100, PerAgent: 1000, PerProfile: 50_000, PerCaller: 20_000}, Concurrency: usual,
	}
	if err := yaml.Load([]byte(text), &want, yaml.WithKnownFields()); err != nil {
		t.Fatalf("we read what the library refuses: %v", err)
	}
	if diff := cmp.Diff(&want, got, sameFile); diff != "" {
		t.Error(diff)
	}
}

// full.yaml is what the canary and the fuzzer start from, so it must leave no field out. Nor may a provider's section
// have a kind of value that the decoder does not know.
func TestFullHasEveryField(t *testing.T) {
	t.Parallel()
	there := map[string]bool{}
	f := parse(t, read(t, full))
	fieldsThere(reflect.ValueOf(*f), there)
	eachField(t, reflect.TypeFor[config.File](), func(field string) {
		if !there[field] {
			t.Errorf("testdata/full.yaml gives %s no value", field)
		}
	})
}

func fieldsThere(v reflect.Value, there map[string]bool) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			fieldsThere(v.Elem(), there)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if f.IsExported() && !v.Field(i).IsZero() {
				there[v.Type().String()+"."+f.Name] = true
				fieldsThere(v.Field(i), there)
			}
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			fieldsThere(v.MapIndex(key), there)
		}
	case reflect.Slice:
		for i := range v.Len() {
			fieldsThere(v.Index(i), there)
		}
	}
}

func eachField(t *testing.T, of reflect.Type, visit func(field string)) {
	switch of.Kind() {
	case reflect.Pointer, reflect.Slice:
		eachField(t, of.Elem(), visit)
	case reflect.Map:
		if of.Key().Kind() != reflect.String {
			t.Errorf("the decoder does not know %s", of)
		}
		eachField(t, of.Elem(), visit)
	case reflect.Struct:
		for i := range of.NumField() {
			if f := of.Field(i); f.IsExported() {
				visit(of.String() + "." + f.Name)
				eachField(t, f.Type, visit)
			}
		}
	case reflect.String, reflect.Bool, reflect.Int, reflect.Int64:
	default:
		t.Errorf("the decoder does not know %s", of)
	}
}

func TestFingerprintIsOfTheText(t *testing.T) {
	t.Parallel()
	a, b, c := parse(t, small), parse(t, small), parse(t, small+"# another\n")
	if !bytes.Equal(a.Fingerprint(), b.Fingerprint()) || bytes.Equal(a.Fingerprint(), c.Fingerprint()) {
		t.Errorf("got %x, %x, %x", a.Fingerprint(), b.Fingerprint(), c.Fingerprint())
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := config.Load(filepath.Join(dir, "absent.yaml")); !os.IsNotExist(unwrap(err)) {
		t.Errorf("absent: %v", err)
	}
	if _, err := config.Load(dir); err == nil {
		t.Error("a directory was read")
	}
	path := filepath.Join(dir, "big.yaml")
	if err := os.WriteFile(path, []byte(small+strings.Repeat("# much too long\n", 1<<16)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(path); err == nil || err.Error() != path+": is larger than 1 MiB" {
		t.Errorf("big: %v", err)
	}
}

func unwrap(err error) error {
	if w, ok := err.(interface{ Unwrap() error }); ok {
		return w.Unwrap()
	}
	return err
}

// usual is what may be open at the same time where the file says nothing.
var usual = config.Concurrency{
	Requests: config.Bounds{PerToken: 512, PerCaller: 1024, Total: 4096}, Watches: config.Bounds{PerToken: 512, PerCaller: 2048, Total: 8192},
	Searches: config.Bounds{PerToken: 4, PerCaller: 8, Total: 32}, Exports: config.Bounds{PerToken: 2, PerCaller: 4, Total: 8},
	LivePages: config.Bounds{PerToken: 16, PerCaller: 32, Total: 64}, Authentications: config.Bounds{PerToken: 1024, PerCaller: 8192, Total: 16384},
}
