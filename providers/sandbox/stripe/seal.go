package stripe

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"

	"github.com/go-jose/go-jose/v4"
)

// publicKey is to whom a live secret is sealed.
type publicKey struct {
	ID     string `json:"id"`
	PEMKey struct {
		Algorithm string `json:"algorithm"`
		Data      string `json:"data"`
	} `json:"pem_key"`
}

// seal is how Stripe sends a live secret.
func (p *publicKey) seal(secret string) (string, error) {
	return Seal(p.PEMKey.Data, secret, jose.RSA_OAEP_256, jose.A256GCM)
}

// Seal encrypts to a PEM-encoded RSA key under any algorithms, for tests of what must be refused.
func Seal(publicKeyPEM, secret string, alg jose.KeyAlgorithm, enc jose.ContentEncryption) (string, error) {
	block, _ := pem.Decode([]byte(publicKeyPEM))
	if block == nil || block.Type != "PUBLIC KEY" {
		return "", errors.New("sandbox stripe: not a PEM public key")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return "", err
	}
	key, ok := parsed.(*rsa.PublicKey)
	if !ok || key.Size() < 256 {
		return "", errors.New("sandbox stripe: not an RSA key of at least 2048 bits")
	}
	e, err := jose.NewEncrypter(enc, jose.Recipient{Algorithm: alg, Key: key}, nil)
	if err != nil {
		return "", err
	}
	sealed, err := e.Encrypt([]byte(secret))
	if err != nil {
		return "", err
	}
	return sealed.CompactSerialize()
}
