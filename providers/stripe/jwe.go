package stripe

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"github.com/go-jose/go-jose/v4"

	"github.com/taskpass/taskpass/broker"
)

// keyBits is the size of the RSA key that secrets are sent to; Stripe takes no less than 2048.
const keyBits = 2048

// maxJWE bounds what is decrypted: a key is a hundred characters.
const maxJWE = 16 << 10

// recipient is the RSA key that live secrets are encrypted to. It never leaves the process: a secret whose answer was lost
// on the way can be read by nobody.
type recipient struct {
	private *rsa.PrivateKey
	public  publicKey
}

// publicKey is its public half as Stripe takes it.
type publicKey struct {
	PEMKey pemKey `json:"pem_key"`
}

type pemKey struct {
	Algorithm string `json:"algorithm"`
	Data      string `json:"data"`
}

func (m *managed) recipient() (*recipient, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys != nil {
		return m.keys, nil
	}
	private, err := m.GenerateKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	m.keys = &recipient{private, publicKey{pemKey{"RSA", string(text)}}}
	return m.keys, nil
}

// open decrypts a compact JWE of just the algorithms that Stripe documents. The library's errors say nothing of the text.
func (r *recipient) open(ciphertext string) (broker.Secret, error) {
	if len(ciphertext) > maxJWE {
		return broker.Secret{}, fmt.Errorf("%w: the secret's length", errNotAsAsked)
	}
	jwe, err := jose.ParseEncryptedCompact(ciphertext, []jose.KeyAlgorithm{jose.RSA_OAEP_256}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		return broker.Secret{}, fmt.Errorf("%w: the secret is no JWE of RSA-OAEP-256 and A256GCM", errNotAsAsked)
	}
	plain, err := jwe.Decrypt(r.private)
	if err != nil {
		return broker.Secret{}, fmt.Errorf("%w: the secret is not encrypted to our key", errNotAsAsked)
	}
	defer clear(plain)
	return broker.NewSecret(string(plain)), nil
}
