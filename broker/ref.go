package broker

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Ref names where a secret is kept, so that a configuration file never holds one: "env:NAME" or "file:/path".
// It is safe to print.
type Ref string

// maxRefSize bounds what a reference may hold; a key or a keyset is far smaller.
const maxRefSize = 64 << 10

var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// Check tells what is wrong with the reference's form; it reads nothing.
func (r Ref) Check() error {
	kind, name, ok := strings.Cut(string(r), ":")
	switch {
	case !ok || name == "" || (kind != "env" && kind != "file"):
		// The text is not repeated: somebody may have pasted the secret itself.
		return fmt.Errorf("must be a reference, env:NAME or file:/path, and never the secret itself")
	case kind == "env" && !variable.MatchString(name):
		return fmt.Errorf("an env: reference takes the name of a variable: letters, digits and _")
	case kind == "file" && !strings.HasPrefix(name, "/"):
		return fmt.Errorf("a file: reference takes an absolute path")
	}
	return nil
}

// Resolve reads the secret now. White space around it is trimmed: files end in a newline. An empty value is an error.
func (r Ref) Resolve() (Secret, error) {
	if err := r.Check(); err != nil {
		return Secret{}, err
	}
	kind, name, _ := strings.Cut(string(r), ":")
	value := ""
	if kind == "env" {
		value = os.Getenv(name)
	} else {
		info, err := os.Stat(name)
		if err != nil {
			return Secret{}, fmt.Errorf("%s: %w", r, err)
		}
		if info.Size() > maxRefSize {
			return Secret{}, fmt.Errorf("%s: larger than %d bytes", r, maxRefSize)
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return Secret{}, fmt.Errorf("%s: %w", r, err)
		}
		value = string(text)
	}
	if value = strings.TrimSpace(value); value == "" {
		return Secret{}, fmt.Errorf("%s: is empty or not set", r)
	}
	return NewSecret(value), nil
}

// ResolveValue is Resolve for a secret that travels in a header, as a token does: what CheckSecretValue refuses, such as
// a byte order mark or a second line, is an error that names the reference.
func (r Ref) ResolveValue() (Secret, error) {
	value, err := r.Resolve()
	if err != nil {
		return Secret{}, err
	}
	if err := CheckSecretValue(value.Reveal()); err != nil {
		return Secret{}, fmt.Errorf("%s: %w", r, err)
	}
	return value, nil
}
