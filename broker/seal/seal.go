// Package seal encrypts secrets at rest, with a Tink keyset that the operator keeps (AES-256-GCM; keys rotate by adding a
// primary to the keyset).
//
// A sealed secret is bound to its version's id as associated data: moved to another row it does not open. This package
// refuses to know where the keyset comes from.
package seal

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/taskpass/taskpass/broker"
)

// Sealer implements broker.Sealer. It is safe for concurrent use.
type Sealer struct{ aead tink.AEAD }

// New reads a keyset in Tink's JSON form, as NewKeyset makes it.
func New(keysetJSON broker.Secret) (*Sealer, error) {
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewBufferString(keysetJSON.Reveal())))
	if err != nil {
		return nil, errors.New("the sealing keyset is not a Tink keyset in JSON") // the cause may quote it
	}
	primitive, err := aead.New(handle)
	if err != nil {
		return nil, errors.New("the sealing keyset is not for AEAD")
	}
	return &Sealer{primitive}, nil
}

// NewKeyset makes a fresh keyset for New. Whoever has it and the database can read every secret still in use.
func NewKeyset() (broker.Secret, error) {
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return broker.Secret{}, fmt.Errorf("making a keyset: %w", err)
	}
	var buf bytes.Buffer
	if err := insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&buf)); err != nil {
		return broker.Secret{}, fmt.Errorf("writing a keyset: %w", err)
	}
	return broker.NewSecret(buf.String()), nil
}

// Seal implements broker.Sealer.
func (s *Sealer) Seal(plain []byte, id broker.VersionID) ([]byte, error) {
	return s.aead.Encrypt(plain, []byte(id))
}

// Open implements broker.Sealer.
func (s *Sealer) Open(sealed []byte, id broker.VersionID) ([]byte, error) {
	return s.aead.Decrypt(sealed, []byte(id))
}
