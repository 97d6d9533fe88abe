package broker

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"time"
)

// Bounds of what an upstream may give. The largest that is known is a service account's key file, of about 2.4 KB.
const (
	maxSecretValue = 16 << 10 // bytes of one field or environment variable
	maxBundle      = 64 << 10 // bytes of all of them
	maxUpstreamID  = 512      // bytes
	maxTraceValue  = 4 << 10  // bytes
)

const (
	// maxEarly is how much earlier than promised a secret may end by the upstream's clock: clocks differ, and upstreams
	// count in whole seconds. Short lives allow less: see allowedEarly.
	maxEarly = time.Minute
	minEarly = 3 * time.Second
	// maxOutlive is how much later than promised the upstream's own end may be. What ends later is not what was asked for.
	// STS gives 15 min at least and Stripe's ephemeral keys about an hour, whatever was asked.
	maxOutlive = 2 * time.Hour
)

var errLies = errors.New("the upstream's answer is not what was asked for")

// allowedEarly is a quarter of the version's life, within minEarly and maxEarly.
func allowedEarly(v Version) time.Duration {
	return min(maxEarly, max(minEarly, v.ExpiresAt.Sub(v.IssuedAt)/4))
}

// CheckMinted checks what Mint answered for version v before anything of it is recorded or handed out: it is complete,
// printable and bounded, and ends when it was asked to. It is applied to every provider; what only one vendor's answer
// can have wrong is that provider's to check. The error is CodeUpstreamError, names what is wrong, and never the value.
// The upstream may hold what it made, so the version is to be ended like one whose mint was not answered.
func CheckMinted(m Minted, v Version, caps Capabilities, now time.Time) error {
	if reason := badSecret(m.Secret); reason != "" {
		return lie(reason)
	}
	for _, id := range m.UpstreamIDs {
		if id == "" || len(id) > maxUpstreamID || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return lie("an id in it is empty, not printable, or too long")
		}
	}
	for _, value := range m.Trace {
		if len(value) > maxTraceValue {
			return lie("a field of it is too long")
		}
	}
	switch end := m.UpstreamExpiresAt; {
	case end.IsZero() && caps.SelfExpires:
		return lie("it has no end")
	case end.IsZero():
	case !end.After(now) || end.Before(v.ExpiresAt.Add(-allowedEarly(v))):
		return lie("it ends before the time that was asked for; if all of them do, the operator should check this machine's clock")
	case end.After(v.ExpiresAt.Add(maxOutlive)):
		return lie("it ends long after the time that was asked for")
	}
	return nil
}

func lie(reason string) error {
	return Errorf(CodeUpstreamError, "what the upstream made was not handed out, and is ended: %s", reason).Because(errLies)
}

// badSecret says what is wrong with a bundle; empty: nothing.
func badSecret(b Bundle) string {
	if b.Fields[b.Primary].Empty() {
		return "it has no secret"
	}
	total := 0
	for _, list := range []map[string]Secret{b.Fields, b.Env} {
		for _, name := range slices.Sorted(maps.Keys(list)) {
			value := list[name].Reveal()
			if total += len(value); len(value) > maxSecretValue || total > maxBundle {
				return name + " is too long"
			}
			if err := CheckSecretValue(value); err != nil {
				return name + " " + err.Error()
			}
		}
	}
	return ""
}
