package broker_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"math/big"
	"regexp"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/broker"
)

var prefixes = []broker.Prefix{broker.PrefixCaller, broker.PrefixTask, broker.PrefixTicket}

func TestTokens(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, prefix := range prefixes {
		form := regexp.MustCompile(`\A` + string(prefix) + `[0-9A-Za-z]{36}\z`)
		for range 500 {
			token := broker.NewToken(prefix)
			text := token.Reveal()
			if !form.MatchString(text) || seen[text] || !broker.WellFormed(prefix, text) {
				t.Fatalf("made %q", text)
			}
			seen[text] = true
			if fmt.Sprint(token) != "[secret]" {
				t.Fatalf("it prints as %v", token)
			}
			for _, other := range prefixes {
				if other != prefix && broker.WellFormed(other, text) {
					t.Errorf("%s passes for a %s", text, other)
				}
			}
		}
	}
	// 176 random bits: no character of the first 30 is constant.
	for i := 4; i < 34; i++ {
		chars := map[byte]bool{}
		for text := range seen {
			chars[text[i]] = true
		}
		if len(chars) < 8 {
			t.Errorf("position %d has only %d characters", i, len(chars))
		}
	}
}

// A secret scanner's author reads this: CRC-32 (IEEE) of prefix and body, base62, 6 digits, most significant first.
func TestTokenChecksum(t *testing.T) {
	t.Parallel()
	const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	body := "tpc_" + strings.Repeat("0", 29) + "1"
	n, base, mod := big.NewInt(int64(crc32.ChecksumIEEE([]byte(body)))), big.NewInt(62), new(big.Int)
	check := ""
	for range 6 {
		n.DivMod(n, base, mod)
		check = string(alphabet[mod.Int64()]) + check
	}
	if !broker.WellFormed(broker.PrefixCaller, body+check) {
		t.Errorf("%s is refused", body+check)
	}
}

// Any one character changed, left out or added is seen without a look-up.
func TestTypingErrors(t *testing.T) {
	t.Parallel()
	text := broker.NewToken(broker.PrefixCaller).Reveal()
	for i := range text {
		for _, c := range []byte("0aZ_ \x00") {
			if text[i] != c && broker.WellFormed(broker.PrefixCaller, text[:i]+string(c)+text[i+1:]) {
				t.Errorf("%q at %d is not seen", c, i)
			}
		}
		if broker.WellFormed(broker.PrefixCaller, text[:i]+text[i+1:]) || broker.WellFormed(broker.PrefixCaller, text[:i]+"0"+text[i:]) {
			t.Errorf("a character too few or too many at %d is not seen", i)
		}
	}
	for _, bad := range []string{"", "tpc_", text + "\n", " " + text, strings.ToUpper(text), strings.ToLower(text), text[4:]} {
		if broker.WellFormed(broker.PrefixCaller, bad) {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestHashToken(t *testing.T) {
	t.Parallel()
	sum := sha256.Sum256([]byte("tpc_x"))
	if !bytes.Equal(broker.HashToken("tpc_x"), sum[:]) {
		t.Error("it is not SHA-256")
	}
}

func FuzzWellFormed(f *testing.F) {
	f.Add(broker.NewToken(broker.PrefixCaller).Reveal())
	f.Add("tpc_" + strings.Repeat("é", 18))
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		for _, prefix := range prefixes {
			if broker.WellFormed(prefix, s) && (len(s) != 40 || !strings.HasPrefix(s, string(prefix)) || !regexp.MustCompile(`\A[0-9A-Za-z]{6}\z`).MatchString(s[34:])) {
				t.Errorf("%q passes for a %s", s, prefix)
			}
		}
	})
}
