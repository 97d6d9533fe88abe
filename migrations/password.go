package migrations

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"unicode"

	"golang.org/x/text/unicode/norm"

	"github.com/taskpass/taskpass/broker"
)

// checkPassword refuses a password that SASLprep (RFC 4013) changes or forbids, or of which clients disagree: the
// verifier would be of other bytes than those that a client sends, and the login would fail. pgx normalises by PRECIS
// and libpq by SASLprep with the tables of Unicode 3.2; what they agree on, and leave alone, is printable ASCII and the
// Latin letters up to U+021F that are no compatibility forms and are composed.
func checkPassword(password broker.Secret) error {
	const latinEnd = 0x21f // the Latin letters that Unicode 3.0 knew
	text := password.Reveal()
	for _, r := range text {
		if (r < ' ' || r > '~') && (r > latinEnd || !unicode.IsLetter(r)) {
			return errNotPlain
		}
	}
	if !norm.NFKC.IsNormalString(text) {
		return errNotPlain
	}
	return nil
}

var errNotPlain = errors.New("it has characters that clients turn into others before they log in (SASLprep), so that the " +
	"login would fail: use printable ASCII, or composed Latin letters")

// alterPassword sends the password's SCRAM verifier (RFC 5803) and not the password, so that no log of the server's can
// hold it (P7).
func alterPassword(name string, password broker.Secret) (string, error) {
	const iterations = 4096 // PostgreSQL's own default
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails: see crypto/rand
	salted, err := pbkdf2.Key(sha256.New, password.Reveal(), salt, iterations, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("deriving the login's verifier: %w", err)
	}
	mac := func(text string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("ALTER ROLE %s PASSWORD 'SCRAM-SHA-256$%d:%s$%s:%s'",
		name, iterations, b64(salt), b64(stored[:]), b64(mac("Server Key"))), nil
}
