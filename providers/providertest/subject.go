package providertest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Canary must stand in every text that a Fault makes the upstream send. No error may show it.
const Canary = `do not show <this>: "sk_live_C4n4ryC4n4ry"`

// AtOnce is how many credentials a Subject must be able to hold at the same time.
const AtOnce = 8

// Subject is one provider on an upstream of its own. Each check gets a fresh one.
type Subject struct {
	// Provider is what is held to the contract. Required.
	Provider broker.Provider
	// Unreachable is configured like Provider, but nothing listens where its upstream should be. nil: the provider's
	// upstream is not reached over a network.
	Unreachable broker.Provider
	// Ledger is the one that the provider reads, if it reads one. Required.
	Ledger Ledger
	// Clock is the provider's and its upstream's. Required.
	Clock *Clock

	// Credential makes a credential for a task and an agent of its own: ids, profile, provider, scopes and metadata, all
	// valid. The suite adds the rest. Required.
	Credential func() broker.Credential
	// Public lists the bundle's fields that are no secrets, such as an access key's id.
	Public []string

	// Alive asks the upstream at its wire whether c's secret works now. Required.
	Alive func(t testing.TB, c broker.Credential, secret broker.Bundle) bool
	// Known lists the versions that the upstream holds something for, dead or alive; of versions that share one thing,
	// the newest. Required.
	Known func(t testing.TB) []broker.VersionID
	// Calls counts the calls to mint that reached the upstream. Required with Throttle.
	Calls func() int

	// Fault makes the next call that Mint or Revoke makes upstream go wrong, once; met is closed when it has befallen a
	// call (only Hang is waited for). ok tells whether that can happen to this upstream at all. nil: nothing can.
	Fault func(t testing.TB, at Operation, f Fault) (met <-chan struct{}, ok bool)
	// Lie has the next call that Mint or Revoke makes upstream done, and its answer altered, once. False: that can't be
	// with this upstream. nil: nothing can.
	Lie func(t testing.TB, at Operation, l Lie) bool
	// Lost is the secret whose minting was answered, but whose answer LoseReply kept back. Required with LoseReply.
	Lost func(t testing.TB) broker.Bundle
	// Replace is what an operator does at the source of a disclosed secret: put another in its place, and end the old
	// one. Required if the provider discloses.
	Replace func(t testing.TB, secret broker.Bundle)
}

// Operation is what the broker asks of a provider.
type Operation string

// The operations that go upstream.
const (
	Mint   Operation = "mint"
	Revoke Operation = "revoke"
)

// Fault is a way in which a call upstream goes wrong.
type Fault string

// The faults.
const (
	LoseReply   Fault = "lost reply"   // the upstream does the work; no answer arrives
	Refuse      Fault = "refusal"      // a definite no: nothing was done
	Throttle    Fault = "throttling"   // a definite not now: nothing was done
	ServerError Fault = "server error" // the upstream failed; nobody knows what it did
	Hang        Fault = "hang"         // no answer until the client goes away
)

// Lie is a way in which the answer to a call that was done is not to be believed.
type Lie string

// The lies. LoginPage and EmptyAnswer are for Mint and Revoke, the others for Mint.
const (
	LoginPage     Lie = "login page"            // HTTP 200 with HTML: what answers is not the upstream
	EmptyAnswer   Lie = "answer without fields" // of the upstream's own syntax
	NoEnd         Lie = "no end"
	EndedBefore   Lie = "an end an hour ago"
	EndsAtOnce    Lie = "an end in 5 s"
	EndsIn9999    Lie = "an end in 9999"
	NoSecret      Lie = "an empty secret"
	SpaceInSecret Lie = "a secret with CR LF"
	HugeSecret    Lie = "a secret of 5 MiB"
)

var lies = []Lie{LoginPage, EmptyAnswer, NoEnd, EndedBefore, EndsAtOnce, EndsIn9999, NoSecret, SpaceInSecret, HugeSecret}

// Ledger is what the suite does for the broker, around the calls to a provider.
type Ledger interface {
	Begin(ctx context.Context, in broker.Intent) error
	Activate(ctx context.Context, c broker.Credential, sealed []byte, others time.Time, e broker.Event) error
	Next(ctx context.Context, c broker.Credential, key *broker.RequestKey, token *broker.NewTaskToken, e broker.Event) error
	Move(ctx context.Context, c broker.Credential, from []broker.State, sealed []byte, events ...broker.Event) error
}

// Clock is a clock that tests move.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock starts at a moment that is no whole second, as moments are.
func NewClock() *Clock {
	return &Clock{now: time.Date(2026, time.March, 3, 10, 11, 12, 700_001_000, time.UTC)}
}

// Now is the clock's time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock on.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// To moves the clock on to t; a moment that has passed changes nothing.
func (c *Clock) To(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.After(c.now) {
		c.now = t
	}
}
