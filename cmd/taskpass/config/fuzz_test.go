package config_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/cmd/taskpass/config"
)

// FuzzParse holds that any text gives a File that keeps the promises, or faults; and that what we accept the library
// reads the same.
func FuzzParse(f *testing.F) {
	for _, text := range []string{
		read(f, example), read(f, full), small, small + second, "", "a", "- a", "---\n---\n", "a: &a [*a]", "? {a: b}\n: c", "<<: {}",
		strings.Replace(small, "ttl:", "ttl: &t", 1) + strings.Replace(second, "ttl: {default: 10m, max: 1h}", "ttl: {<<: *t, min: 1s}", 1),
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := config.Parse("taskpass.yaml", []byte(text))
		if err == nil {
			valid(t, got)
			likeTheLibrary(t, text, got)
			return
		}
		faults, ok := errors.AsType[config.Faults](err)
		if got != nil || !ok || len(faults) == 0 {
			t.Fatalf("got %v, %T", got, err)
		}
		lines := 1 + strings.Count(strings.NewReplacer("\r\n", "\n", "\r", "\n", "\u0085", "\n", "\u2028", "\n", "\u2029", "\n").Replace(text), "\n")
		for _, fault := range faults {
			if fault.Reason == "" || fault.Line < 0 || fault.Line > lines+1 || strings.ContainsAny(fault.String(), "\r\n") {
				t.Errorf("of %d lines: %+q", lines, fault)
			}
		}
	})
}

func valid(t *testing.T, f *config.File) {
	t.Helper()
	if f.Database.URL.Check() != nil || f.Seal.Keyset.Check() != nil || len(f.Profiles) == 0 || f.UpstreamTimeout <= 0 {
		t.Errorf("got %+v", f)
	}
	for name, p := range f.Profiles {
		if !broker.ValidID(name) || p.TTL.Min < 0 || p.TTL.Default < p.TTL.Min || p.TTL.Max < p.TTL.Default || p.TTL.Default <= 0 {
			t.Errorf("%q: got %+v", name, p.TTL)
		}
		if len(p.Check(p.Provider)) > 0 || len(p.ScopeNames(p.Provider)) == 0 || len(p.Allow) == 0 {
			t.Errorf("%q: got %+v", name, p)
		}
		for _, rule := range p.Allow {
			if len(rule.Callers) == 0 || rule.Tasks != nil && len(rule.Tasks) == 0 || rule.MaxTTL > p.TTL.Max {
				t.Errorf("%q: got %+v", name, rule)
			}
		}
	}
}
