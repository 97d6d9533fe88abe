package tree

import (
	"bufio"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/taskpass/taskpass/broker"
)

// Signer signs checkpoints of one log. During a rotation it holds the new key and those before it.
type Signer struct {
	origin string
	keys   []note.Signer
	public *Keys
}

// NewKey makes a signing key for the log of that name, such as "taskpass.example/log": the private one, and the public
// one that verifiers are given.
func NewKey(origin string) (private broker.Secret, public string, err error) {
	if err := CheckOrigin(origin); err != nil {
		return broker.Secret{}, "", err
	}
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	return broker.NewSecret(skey), vkey, err
}

// CheckOrigin tells what is wrong with the name of a log.
func CheckOrigin(origin string) error {
	if len(origin) > 128 || origin == "" || strings.ContainsFunc(origin, func(c rune) bool { return c <= ' ' || c > '~' || c == '+' }) {
		return errors.New("the name of a log is 1-128 visible ASCII characters without a +")
	}
	return nil
}

// NewSigner takes one or more private keys, all of the log of that name.
func NewSigner(origin string, private ...broker.Secret) (*Signer, error) {
	if err := CheckOrigin(origin); err != nil {
		return nil, err
	}
	if len(private) == 0 {
		return nil, errors.New("no key to sign checkpoints with")
	}
	s := &Signer{origin: origin}
	var all string
	for i, p := range private {
		key, err := note.NewSigner(p.Reveal())
		if err != nil { // the library's text is fixed, but what it is about is a secret
			return nil, fmt.Errorf("signing key %d is none: make one with `taskpass audit key`", i+1)
		}
		if key.Name() != origin {
			return nil, fmt.Errorf("signing key %d is for a log of another name", i+1)
		}
		public, err := Public(p)
		if err != nil {
			return nil, err
		}
		s.keys, all = append(s.keys, key), all+public+"\n"
	}
	var err error
	s.public, err = ParseKeys(all)
	return s, err
}

// Origin is the name of the log that it signs for.
func (s *Signer) Origin() string { return s.origin }

// Keys are public keys that an auditor trusts. During and after a rotation they are several.
type Keys struct {
	list   note.Verifiers
	origin string
}

// ParseKeys reads public keys, one a line; empty lines and those that begin with # are passed over. All are of one log.
func ParseKeys(text string) (*Keys, error) {
	var list []note.Verifier
	seen := map[string]bool{}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' || seen[line] {
			continue
		}
		seen[line] = true
		if strings.HasPrefix(line, "PRIVATE+") {
			return nil, errors.New("that is a private key: verifying takes the public one, and the private one stays where it is")
		}
		v, err := note.NewVerifier(line)
		if err != nil {
			return nil, errors.New("a line is not a public key, NAME+HASH+KEY")
		}
		if len(list) > 0 && v.Name() != list[0].Name() {
			return nil, fmt.Errorf("keys of two logs, %s and %s", list[0].Name(), v.Name())
		}
		list = append(list, v)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, errors.New("no public key")
	}
	return &Keys{note.VerifierList(list...), list[0].Name()}, nil
}

// Origin is the name of the log whose keys these are.
func (k *Keys) Origin() string { return k.origin }

// Keys are the public halves of what it signs with.
func (s *Signer) Keys() *Keys { return s.public }

// Public finds the public half of a private key.
func Public(private broker.Secret) (string, error) {
	bad := errors.New("no signing key: make one with `taskpass audit key`")
	if _, err := note.NewSigner(private.Reveal()); err != nil {
		return "", bad
	}
	// PRIVATE+KEY+NAME+HASH+KEY, which was just checked; the key is one byte for Ed25519 and the seed.
	parts := strings.SplitN(private.Reveal(), "+", 5)
	key, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(key) != 1+ed25519.SeedSize {
		return "", bad
	}
	public, ok := ed25519.NewKeyFromSeed(key[1:]).Public().(ed25519.PublicKey)
	if !ok {
		return "", bad
	}
	return note.NewEd25519VerifierKey(parts[2], public)
}
