package broker

import (
	"crypto/rand"
	"crypto/sha256"
	"hash/crc32"
	"math/big"
	"strings"
)

// Prefix tells what a token is for, so that secret scanners and people can.
type Prefix string

// The prefixes.
const (
	PrefixCaller Prefix = "tpc_" // orchestrators, auditors and operators
	PrefixTask   Prefix = "tpt_" // a task's own token
	PrefixTicket Prefix = "tpx_" // a ticket
)

const (
	randomBytes  = 22 // 176 bits
	randomDigits = 30 // 62^30 > 2^176
	checkDigits  = 6  // 62^6 > 2^32
	base62       = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// NewToken makes a token: the prefix, 176 random bits in base62, and a CRC-32 of both in base62. The checksum lets a
// scanner, and us, tell a token from chance and from a typing error without a look-up; it protects nothing.
func NewToken(p Prefix) Secret {
	var b [randomBytes]byte
	_, _ = rand.Read(b[:]) // never fails: see crypto/rand
	body := string(p) + digits(new(big.Int).SetBytes(b[:]), randomDigits)
	return NewSecret(body + checksum(body))
}

// WellFormed tells whether s has the form of such a token, checksum included.
func WellFormed(p Prefix, s string) bool {
	if len(s) != len(p)+randomDigits+checkDigits || !strings.HasPrefix(s, string(p)) {
		return false
	}
	body := s[:len(s)-checkDigits]
	return checksum(body) == s[len(body):]
}

// IsToken tells whether s looks like one of our own tokens, put where a name belongs.
func IsToken(s string) bool {
	for _, p := range []Prefix{PrefixCaller, PrefixTask, PrefixTicket} {
		if strings.HasPrefix(s, string(p)) {
			return true
		}
	}
	return false
}

// HashToken is what is kept of a token. It has 176 random bits, so the hash needs no salt.
func HashToken(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

func checksum(body string) string {
	return digits(big.NewInt(int64(crc32.ChecksumIEEE([]byte(body)))), checkDigits)
}

func digits(n *big.Int, width int) string {
	out := make([]byte, width)
	mod, base := new(big.Int), big.NewInt(int64(len(base62)))
	for i := width - 1; i >= 0; i-- {
		n.DivMod(n, base, mod)
		out[i] = base62[mod.Int64()]
	}
	return string(out)
}
