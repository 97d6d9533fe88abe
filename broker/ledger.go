package broker

import (
	"context"
	"errors"
	"time"
)

// ErrMoved is Ledger.Move's answer when the version is no longer in a state from which it may go there: another replica
// was first. Nothing was written.
var ErrMoved = errors.New("the version has moved on")

// ErrNoSuch is a look-up's answer when nothing bears the id.
var ErrNoSuch = errors.New("no such row")

// Ledger is what the broker needs of storage. State and event commit together (P4), or neither does. Every method is
// safe for concurrent use by any number of replicas.
type Ledger interface {
	// Begin writes a new credential with its version, in StateIssuing, and the event.
	Begin(ctx context.Context, c Credential, e Event) error

	// Move takes a version to c.Version.State and writes its fields, if it is in one of the from states; else ErrMoved.
	// Sealed is stored where it isn't nil, and wiped where the state has ended. Moving to the same state is how an
	// attempt is put off.
	Move(ctx context.Context, c Credential, from []State, sealed []byte, events ...Event) error

	// Record writes events that change no state.
	Record(ctx context.Context, events ...Event) error

	// Credential finds one, with its current version; ErrNoSuch.
	Credential(ctx context.Context, id CredentialID) (Credential, error)

	// Credentials lists by filter, newest first.
	Credentials(ctx context.Context, f Filter) ([]Credential, error)

	// Claim leases versions of one provider that are due at now: their DueAt moves to now+lease and Attempts counts
	// up, in one statement, so that no other replica takes them meanwhile and a crash gives them back.
	Claim(ctx context.Context, provider string, now time.Time, lease time.Duration, limit int) ([]Credential, error)

	// DueProviders lists the providers that have something due at now.
	DueProviders(ctx context.Context, now time.Time) ([]string, error)
}

// Filter selects credentials; empty fields match all.
type Filter struct {
	Caller  string
	TaskID  string
	AgentID string
	Profile string
	State   State
	Before  CredentialID // for paging: only ids that sort before it
	Limit   int          // 1-500
}

// KeyChoice is one key that a pool may hand out now.
type KeyChoice struct {
	Name        string
	Fingerprint []byte // SHA-256 of its present value
}

// Slots keeps who holds which key of a pool. One holder a key is a constraint of the database, by name and by
// fingerprint: the same key under two names is still one key.
type Slots interface {
	// Take gives the version a key: the agent's own last one if free, else the least recently used. A quarantined key
	// is free again once its fingerprint has changed. When none is free it says when the next is due back (zero: unknown).
	Take(ctx context.Context, pool string, c Credential, keys []KeyChoice, now time.Time) (name string, ok bool, dueBack time.Time, err error)

	// Held finds the version's key and the fingerprint it had when taken; ok is false when it holds none.
	Held(ctx context.Context, id VersionID) (key KeyChoice, pool string, ok bool, err error)

	// Release frees the version's key. Holding none is success.
	Release(ctx context.Context, id VersionID, now time.Time) error

	// Quarantine keeps the version's key from being handed out until its value changes.
	Quarantine(ctx context.Context, id VersionID, now time.Time) error
}

// Denials is what a provider needs that keeps a list of refused versions upstream, written whole each time.
type Denials interface {
	// Denied lists, sorted, the versions at an upstream that were asked to end early and have not expired at the given
	// time: those being ended, those that are stuck, and those that were denied.
	Denied(ctx context.Context, upstream string, at time.Time) ([]VersionID, error)

	// Locked runs fn while no other process runs one for the same upstream. It holds no transaction open.
	Locked(ctx context.Context, upstream string, fn func(context.Context) error) error
}

// Count is how many things of one kind are in one state now.
type Count struct {
	Of    string // a provider, or a pool
	State string
	N     int64
}
