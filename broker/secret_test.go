package broker_test

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/taskpass/taskpass/broker"
)

const (
	planted   = "s3cr3t-CANARY-9f2d71c4"
	panicWith = "TASKPASS_TEST_PANIC_WITH"
)

// leaks tells whether the text holds the planted secret in any plain or simply encoded form.
func leaks(text string) bool {
	for _, form := range []string{
		planted, hex.EncodeToString([]byte(planted)), strings.ToUpper(hex.EncodeToString([]byte(planted))),
		base64.StdEncoding.EncodeToString([]byte(planted)), base64.RawURLEncoding.EncodeToString([]byte(planted)),
		strings.Trim(fmt.Sprintf("%d", []byte(planted)), "[]"),
	} {
		if strings.Contains(text, form) {
			return true
		}
	}
	return false
}

type holder struct {
	Name   string
	Secret broker.Secret
}

type hidden struct{ secret broker.Secret } // fmt reads it by reflection

func TestSecretPrintsNothing(t *testing.T) {
	t.Parallel()
	s := broker.NewSecret(planted)
	values := map[string]any{
		"value": s, "pointer": &s, "struct": holder{"n", s}, "struct pointer": &holder{"n", s},
		"hidden field": hidden{s}, "slice": []broker.Secret{s}, "map": map[string]broker.Secret{"k": s},
		"any": []any{s}, "bundle": broker.Bundle{Type: "t", Primary: "k", Fields: map[string]broker.Secret{"k": s}},
		"issued": broker.Issued{Secret: broker.Bundle{Fields: map[string]broker.Secret{"k": s}}},
		"error":  fmt.Errorf("with %v and %w", s, errors.New("cause")),
	}
	for what, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p", "%t", "%c", "%U", "%e", "%10v", "%-40s"} {
			if got := fmt.Sprintf(verb, v); leaks(got) {
				t.Errorf("%s under %s: %s", what, verb, got)
			}
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		if got := fmt.Sprintf(verb, s); got != "[secret]" {
			t.Errorf("under %s: %q", verb, got)
		}
	}
	if s.String() != "[secret]" || fmt.Sprint("a ", s) != "a [secret]" {
		t.Error("a Secret prints as something else than [secret]")
	}
}

func TestSecretInLogs(t *testing.T) {
	t.Parallel()
	s := broker.NewSecret(planted)
	for what, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"text": func(b *bytes.Buffer) slog.Handler {
			return slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug})
		},
		"json": func(b *bytes.Buffer) slog.Handler {
			return slog.NewJSONHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug})
		},
	} {
		var out bytes.Buffer
		log := slog.New(handler(&out)).With("with", s)
		log.Debug("m", "bare", s, "pointer", &s, "struct", holder{"n", s}, "list", []broker.Secret{s},
			"map", map[string]broker.Secret{"k": s}, "error", fmt.Errorf("x: %w", errors.New(s.String())),
			slog.Group("g", "inner", s, "issued", broker.Issued{Secret: broker.Bundle{Fields: map[string]broker.Secret{"k": s}}}))
		if leaks(out.String()) {
			t.Errorf("%s handler: %s", what, out.String())
		}
		if !strings.Contains(out.String(), "[secret]") {
			t.Errorf("%s handler shows no [secret]: %s", what, out.String())
		}
	}
}

func TestSecretRefusesToBeMarshalled(t *testing.T) {
	t.Parallel()
	s := broker.NewSecret(planted)
	for what, marshal := range map[string]func(any) ([]byte, error){
		"json": json.Marshal,
		"xml":  func(v any) ([]byte, error) { return xml.Marshal(v) },
		"yaml": yaml.Marshal,
		"gob": func(v any) ([]byte, error) {
			var b bytes.Buffer
			err := gob.NewEncoder(&b).Encode(v)
			return b.Bytes(), err
		},
	} {
		for form, v := range map[string]any{"value": s, "pointer": &s, "struct": holder{"n", s}} {
			out, err := marshal(v)
			if err == nil {
				t.Errorf("%s of a %s: no error, %q", what, form, out)
			} else if leaks(err.Error()) {
				t.Errorf("%s of a %s: the error shows it: %v", what, form, err)
			}
			if leaks(string(out)) {
				t.Errorf("%s of a %s: %s", what, form, out)
			}
		}
	}
	if text, err := s.MarshalText(); err == nil || leaks(string(text)) {
		t.Errorf("MarshalText: %q, %v", text, err)
	}
	var back holder
	if err := json.Unmarshal([]byte(`{"Name":"n","Secret":"`+planted+`"}`), &back); err == nil && !back.Secret.Empty() {
		t.Error("a Secret was read from JSON")
	}
}

func TestSecretReveals(t *testing.T) {
	t.Parallel()
	s := broker.NewSecret(planted)
	if s.Reveal() != planted || s.Empty() {
		t.Error("Reveal does not give the value")
	}
	var zero broker.Secret
	if zero.Reveal() != "" || !zero.Empty() || fmt.Sprint(zero) != "[secret]" {
		t.Error("the zero Secret is not an empty one")
	}
	if a, b := s.Fingerprint(), broker.NewSecret("other").Fingerprint(); a == b || a != broker.NewSecret(planted).Fingerprint() {
		t.Error("fingerprints do not tell secrets apart")
	}
}

// panicNow is the child's part of the test below.
func panicNow() {
	s := broker.NewSecret(planted)
	switch os.Getenv(panicWith) {
	case "value":
		panic(s)
	case "pointer":
		panic(&s)
	case "struct":
		panic(holder{"n", s})
	case "error":
		panic(fmt.Errorf("it was %v", s))
	case "argument":
		crash(s, holder{"n", s})
	}
	os.Exit(0)
}

//go:noinline
func crash(s broker.Secret, h holder) { panic(len(s.Reveal()) + len(h.Name)) }

// A panic that nobody recovers prints its value and the stack with arguments.
func TestSecretInAPanic(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"value", "pointer", "struct", "error", "argument"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), panicWith+"="+form, "GOTRACEBACK=all")
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "panic: ") {
				t.Fatalf("the child did not panic: %v\n%s", err, out)
			}
			if leaks(string(out)) {
				t.Errorf("the panic shows it:\n%s", out)
			}
		})
	}
}
