package broker

import (
	"errors"
	"strings"
)

// CheckSecretValue refuses a value that cannot travel in an HTTP header and in an environment variable: one that is
// empty, begins or ends with a space, or has anything but printable ASCII. The error does not quote the value.
func CheckSecretValue(value string) error {
	switch {
	case value == "":
		return errors.New("is empty")
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }):
		return errors.New("has characters that no header can hold")
	case strings.TrimSpace(value) != value:
		return errors.New("begins or ends with white space")
	}
	return nil
}
