// Package connect asks vendors to end keys, and to make them: clients of their admin APIs, and of a hook of the
// operator's own. It decides what a vendor's answer proves. It knows nothing of pools, holders or the ledger, and never
// says more than the vendor did.
//
// Nothing here retries, and no vendor's text is repeated: an error says what happened and what the operator should look
// at. An admin key is read at each call, so a replaced one is used from then on.
package connect

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Key is what a vendor is told about a key.
type Key struct {
	Name        string // the operator's
	VendorID    string // the vendor's public name for it; never the key itself
	Fingerprint []byte // SHA-256 of the key
}

// Ender has a vendor refuse a key from now on.
type Ender interface {
	// End is done when the vendor says so. Ended already is success; "not found" is only where absence is proof.
	End(ctx context.Context, k Key) (broker.Revocation, error)

	// Revoke is the promise: what End achieves, and how long the vendor may go on accepting the key after it.
	Revoke() (broker.RevokeMode, time.Duration)
}

// Prover is an Ender that can find out whether it may end keys, by calls that change nothing.
type Prover interface {
	Prove(ctx context.Context, keys []Key) []broker.Proof
}

// Maker makes a key for a task, and ends it by the name that it was given, also when nothing else is known of it.
type Maker interface {
	// Make makes a key of that name, which must be unique: a version's id. Unless it fails with broker.ErrNotMinted the
	// vendor may hold a key, and End must be called. trace helps an auditor and holds no secret.
	Make(ctx context.Context, name string) (value broker.Secret, vendorID string, trace map[string]string, err error)

	// End ends every key of that name. Its basis is "deleted", or "not_listed" if the vendor has none of that name: of a
	// Make that was not answered a moment ago this is no proof, for it may still be under way.
	End(ctx context.Context, name string) (broker.Revocation, error)

	// Revoke is the promise, as an Ender's.
	Revoke() (broker.RevokeMode, time.Duration)
}

// Config is the `vendor` section of a pool: just one of them.
type Config struct {
	Anthropic *Anthropic `yaml:"anthropic"` // ends keys that a person made
	OpenAI    *OpenAI    `yaml:"openai"`    // makes a key for each task
	HTTP      *HTTP      `yaml:"http"`      // ends keys by a hook
}

// Makes tells whether the vendor makes keys (OpenMaker), rather than ending those that it is told of (OpenEnder).
func (c Config) Makes() bool { return c.OpenAI != nil }

// Check returns all that is wrong; pointers are paths within the section, as in "openai.project".
func (c Config) Check() []broker.Fault {
	var f broker.Faults
	n := 0
	for _, given := range []bool{c.Anthropic != nil, c.OpenAI != nil, c.HTTP != nil} {
		if given {
			n++
		}
	}
	if n != 1 {
		f.Add("", "names %d vendors: it takes just one of anthropic, openai and http", n)
	}
	if c.Anthropic != nil {
		c.Anthropic.check(&f)
	}
	if c.OpenAI != nil {
		c.OpenAI.check(&f)
	}
	if c.HTTP != nil {
		c.HTTP.check(&f)
	}
	return f
}

// Wire is how vendors are reached. The zero value is fine.
type Wire struct {
	// Client's transport and jar are used; its redirect policy is not: no redirect is followed, for an admin key or a
	// signature would go with it. Nil: one of its own. Time-outs are the context's.
	Client *http.Client
	Clock  func() time.Time // nil: time.Now
}

// OpenEnder makes the Ender of a configuration that Check found good.
func OpenEnder(cfg Config, w Wire) (Ender, error) {
	switch {
	case len(cfg.Check()) > 0:
		return nil, broken(cfg)
	case cfg.Anthropic != nil:
		return newAnthropic(*cfg.Anthropic, w)
	case cfg.HTTP != nil:
		return newHook(*cfg.HTTP, w)
	}
	return nil, errors.New("connect: this vendor makes keys: OpenMaker")
}

// OpenMaker makes the Maker of a configuration that Check found good.
func OpenMaker(cfg Config, w Wire) (Maker, error) {
	switch {
	case len(cfg.Check()) > 0:
		return nil, broken(cfg)
	case cfg.OpenAI != nil:
		return newOpenAI(*cfg.OpenAI, w)
	}
	return nil, errors.New("connect: this vendor makes no keys: OpenEnder")
}

func broken(cfg Config) error {
	first := cfg.Check()[0]
	return errors.New("connect: " + first.Pointer + " " + first.Reason)
}

// defaultLag is what is assumed of a vendor that documents no upper bound for how soon all of it refuses an ended key.
const defaultLag = time.Minute

const maxLag = time.Hour

func lagOf(lag *time.Duration) time.Duration {
	if lag == nil {
		return defaultLag
	}
	return *lag
}
