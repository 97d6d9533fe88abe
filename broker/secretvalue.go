package broker

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxSecretValue bounds one secret value, in bytes: what a header or an environment variable can reasonably carry.
const MaxSecretValue = 64 << 10

// CheckSecretValue returns why a value cannot be handed to an agent as one secret: it must reach its upstream unchanged
// both in an HTTP header and in an environment variable. So it is 1 to MaxSecretValue bytes of printable ASCII
// (0x20-0x7e) without white space at either end. nil means that it can. The error never repeats any part of the value.
func CheckSecretValue(value string) error {
	switch {
	case value == "":
		return errors.New("is empty")
	case len(value) > MaxSecretValue:
		return fmt.Errorf("is larger than %d bytes", MaxSecretValue)
	case strings.HasPrefix(value, "\xef\xbb\xbf"):
		return errors.New("begins with a byte order mark (BOM): save it as UTF-8 without one")
	case strings.HasPrefix(value, "\xff\xfe"), strings.HasPrefix(value, "\xfe\xff"), utf16Like(value):
		return errors.New("is encoded as UTF-16: save it as plain ASCII")
	case strings.Contains(value, "\x00"):
		return errors.New("contains a NUL byte")
	case value[0] == ' ' || value[0] == '\t':
		return errors.New("begins with white space")
	case strings.TrimRight(value, " \t\r\n") != value:
		return errors.New("ends in white space, or in more than one newline")
	case strings.ContainsAny(value, "\r\n"):
		return errors.New("has more than one line")
	case !utf8.ValidString(value):
		return errors.New("is not UTF-8 (perhaps Latin-1): a key is plain ASCII")
	}
	for _, r := range value {
		switch {
		case r < 0x20 || r == 0x7f:
			return errors.New("contains a control character")
		case r > 0x7f:
			return errors.New("contains a character that is not ASCII, which may be invisible: no header carries it unchanged")
		}
	}
	return nil
}

// utf16Like recognizes UTF-16 text without a byte order mark: ASCII characters alternate with NUL bytes.
func utf16Like(value string) bool {
	return len(value) >= 4 && len(value)%2 == 0 && 2*strings.Count(value, "\x00") == len(value)
}

// NewSecretValue makes a secret of the text in which somebody stored a value: a file, a store's entry, standard input.
// One final newline (LF or CRLF), which editors add, does not count; everything else must pass CheckSecretValue.
func NewSecretValue(text string) (Secret, error) {
	if cut, ok := strings.CutSuffix(text, "\n"); ok {
		text = strings.TrimSuffix(cut, "\r")
	}
	if err := CheckSecretValue(text); err != nil {
		return Secret{}, err
	}
	return NewSecret(text), nil
}
