package upstreamlog

import (
	"crypto/sha256"
	"regexp"
)

// secrets are the forms of keys in full, which nobody's id or name has: Stripe's (whose log shows only the ends of one),
// Anthropic's and OpenAI's, Google's access tokens, and the broker's own tokens and tickets.
var secrets = regexp.MustCompile(`^(?:[a-z]{2,3}_(?:live|test)_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|ya29\.[!-~]{16,}|tp[ctx]_[A-Za-z0-9]{16,})$`)

// Secret is the SHA-256 of a text that is a whole secret by its form: what it is looked for by, so that it goes nowhere.
// nil: it is a name, for all that its form shows.
func Secret(text string) []byte {
	if !secrets.MatchString(text) {
		return nil
	}
	sum := sha256.Sum256([]byte(text))
	return sum[:]
}
