package broker

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
)

// Secret is a value that must never be seen by chance (P7): it prints as "[secret]" under every verb, in slog and in a
// panic's dump of a struct, and refuses to be marshalled. Reveal is the only way out, and is easy to grep for.
type Secret struct{ reveal func() string }

const redacted = "[secret]"

var errSecretMarshal = errors.New("broker: a Secret refuses to be marshalled")

// NewSecret wraps a value. The value lives in a closure, so that a reflective dump (%#v, a debugger's printer) finds
// a function pointer and not the text.
func NewSecret(value string) Secret { return Secret{func() string { return value }} }

// Reveal returns the value. Every call is a place where a secret leaves: keep them few.
func (s Secret) Reveal() string {
	if s.reveal == nil {
		return ""
	}
	return s.reveal()
}

// Fingerprint is the SHA-256 of the value, by which an auditor can recognise a found secret without our keeping it.
// It is meant for vendors' random keys: never fingerprint something a person chose.
func (s Secret) Fingerprint() [sha256.Size]byte { return sha256.Sum256([]byte(s.Reveal())) }

// Empty tells whether there is no value.
func (s Secret) Empty() bool { return s.Reveal() == "" }

func (s Secret) String() string               { return redacted }
func (s Secret) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted)) }
func (s Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (s Secret) MarshalJSON() ([]byte, error) { return nil, errSecretMarshal }
func (s Secret) MarshalText() ([]byte, error) { return nil, errSecretMarshal }
func (s Secret) GobEncode() ([]byte, error)   { return nil, errSecretMarshal }
