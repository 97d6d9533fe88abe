package broker

import (
	"context"
	"errors"
	"time"
)

// KeyChoice is one key that a pool may hand out now.
type KeyChoice struct {
	Name        string
	Fingerprint []byte // SHA-256 of its present value
	Rank        int    // how much more it can do than is asked for: the lowest is taken
	Seats       int    // how many may hold it at once; zero: one
}

// Share bounds how many keys of a pool that several callers may use one of them may have held, resting or quarantined
// at once. The zero value is no bound.
type Share struct {
	Keys        []KeyChoice // all keys of the pool, with their present values
	Most        int         // of all of them
	MostOffered int         // of those that a Take offers; zero: no bound of their own
}

// DefaultSharePercent is how much of a pool's keys one caller may use, where several may use the pool and nobody said
// more.
const DefaultSharePercent = 25

// ShareOf is the share of a pool with these keys: ShareSize of their number. offered is how many of them fit a request, where these have a share of their own; zero: they have none.
func ShareOf(keys []KeyChoice, percent, offered int) Share {
	s := Share{Keys: keys, Most: ShareSize(len(keys), percent)}
	if offered > 0 && offered < len(keys) {
		s.MostOffered = ShareSize(offered, percent)
	}
	return s
}

// ShareSize is percent (zero: DefaultSharePercent) of n, rounded down, and at least one.
func ShareSize(n, percent int) int {
	if percent == 0 {
		percent = DefaultSharePercent
	}
	return max(1, n*percent/100)
}

// ErrOverShare says that a caller has used up its share of a pool.
var ErrOverShare = errors.New("the caller's share of the pool is used up")

// Rest is how long a key is left alone after its holder gave it back.
type Rest struct {
	Confirmed    bool      // its upstream, or another caller, confirmed why: it counts in nobody's share
	Until        time.Time // zero: not at all
	UntilRotated bool      // until its value has changed
}

// Slots keeps which credential holds which key of a pool. One holder a seat is a constraint of the database, by name and by
// fingerprint: the same key under two names is still one key. A credential's versions share its key.
type Slots interface {
	// Take gives the credential a key: the one it holds already, else one of the lowest rank: its agent's last one if free,
	// else the least recently used. A quarantined or resting key is free again once its fingerprint has changed. When none
	// is free it says when the next is due back (zero: unknown). A credential whose key can be handed out no more leaves it to
	// rest as said, and gets another. ErrOverShare: the credential's caller has used up its share; dueBack is then when
	// the first key that counts for it is. Any number of replicas that take for one caller at once stay within its
	// share.
	Take(ctx context.Context, pool string, c Credential, keys []KeyChoice, share Share, rest Rest, now time.Time) (name string, ok bool, dueBack time.Time, err error)

	// OverShare tells whether more keys count for a caller than its share, as after a share was made smaller.
	OverShare(ctx context.Context, pool, caller string, share Share, now time.Time) (bool, error)

	// Held finds the credential's key and the fingerprint it had when taken; ok is false when it holds none.
	Held(ctx context.Context, id CredentialID) (key KeyChoice, ok bool, err error)

	// Release frees the key, unless another version of the credential still needs it: one that is good, or one that was
	// revoked and has the key's present value, of which the fingerprint is given. Holding none is success.
	Release(ctx context.Context, c Credential, present []byte, rest Rest, now time.Time) error

	// Leave frees the key at once, for its upstream refuses that value: the credential's next version gets another. It tells
	// whether the credential held it.
	Leave(ctx context.Context, id CredentialID, key KeyChoice, rest Rest) (left bool, err error)

	// Quarantine keeps the credential's key from being handed out until its value changes.
	Quarantine(ctx context.Context, id CredentialID) error

	// QuarantineKey keeps a value that its holder left from being handed out again, with an event. It counts for the
	// caller.
	QuarantineKey(ctx context.Context, pool, name string, fingerprint []byte, caller, why string, now time.Time) error

	// Draining tells whether a value that is no key's present one may still be in use, or come back: its rotation has not
	// ended.
	Draining(ctx context.Context, pool, name string, fingerprint []byte) (bool, error)

	// StrikeKey counts a refusal of the key's value, in a row, and those that other callers reported beyond their
	// shares; at most, it is put into quarantine, with an event, and counts for the caller (empty: for nobody).
	StrikeKey(ctx context.Context, pool, name string, fingerprint []byte, caller string, most int, now time.Time) (quarantined bool, err error)

	// DoubtKey notes a refusal of the key's value that a caller reported beyond its share. It tells whether another
	// caller has reported that value too.
	DoubtKey(ctx context.Context, pool, name string, fingerprint []byte, caller string) (confirmed bool, err error)

	// Pardon ends a key's row of refusals, those that nobody has confirmed among them.
	Pardon(ctx context.Context, pool, name string) error

	// SealedKeys lists the keys of a pool that operators handed in and that are not retired.
	SealedKeys(ctx context.Context, pool string) ([]SealedKey, error)

	// Converge takes in the present values of a pool's keys. Where one has changed, a rotation begins: every holder of
	// another value gets a next version, by the sweeper. A rotation whose holders have all moved, or whose deadline has
	// come, ends. It answers what the vendor can be told to refuse now.
	Converge(ctx context.Context, pool string, keys []KeyChoice, deadline time.Duration, now time.Time) ([]Retirement, error)

	// Soon has the upstream looked at by then at the latest.
	Soon(ctx context.Context, upstream string, at time.Time) error

	// Retired says that the vendor refuses the old value of a rotation.
	Retired(ctx context.Context, r Retirement, now time.Time) error
}

// SealedKey is a key whose value an operator handed in.
type SealedKey struct {
	Pool, Name  string
	ValueID     VersionID // names the value, and is its associated data
	Sealed      []byte
	VendorID    string // by what the vendor knows it; empty: unknown
	Scopes      []string
	Labels      map[string]string
	Fingerprint []byte
}

// Retirement is an old value that nobody needs any more.
type Retirement struct {
	Rotation    string
	Pool, Name  string
	VendorID    string
	Fingerprint []byte
}

// KeyState is where a key of a pool is.
type KeyState string

const (
	KeyAvailable   KeyState = "available"   // a seat is free
	KeyHeld        KeyState = "held"        // every seat is
	KeyResting     KeyState = "resting"     // after a holder, for a while or until its value has changed
	KeyDraining    KeyState = "draining"    // its value has changed, and its holders move
	KeyQuarantined KeyState = "quarantined" // not handed out until its value has changed
	KeyRetired     KeyState = "retired"     // never handed out again
)

// PoolKey is a key of a pool as operators see it. Its value is not in it.
type PoolKey struct {
	Name        string
	State       KeyState
	Why         string // of quarantine and retirement
	Sealed      bool   // handed in by an operator; else by reference in the configuration
	Scopes      []string
	Labels      map[string]string
	VendorID    string
	Fingerprint []byte // of the present value, as last seen; nil: never
	ChangedAt   time.Time
	Strikes     int
	Unconfirmed int            // callers that reported a refusal beyond their share; nobody has confirmed it
	Problem     string         // why its value cannot be handed out, as this replica last read it; empty: it can
	Seats       map[string]int // by their states
	BackAt      time.Time      // when the next seat is due back; zero: unknown
	Rotation    *Rotation      // nil: none is under way
}

// Rotation is a change of a key's value, until every holder has the new one.
type Rotation struct {
	ID             string
	OldFingerprint []byte
	NewFingerprint []byte
	StartedAt      time.Time
	Deadline       time.Time
	Holders, Moved int
}

// Errors of Keys.
var (
	ErrKeyExists  = errors.New("the pool has a key of that name")
	ErrNoRotation = errors.New("no rotation is under way")
	ErrRotating   = errors.New("a rotation is under way")
)

// Keys keeps what is known of pools' keys.
type Keys interface {
	// PoolKeys lists what the ledger knows of a pool's keys, by name. Keys that are only configured may be missing.
	PoolKeys(ctx context.Context, pool string) ([]PoolKey, error)

	// AddKey keeps a value that an operator handed in: ErrKeyExists.
	AddKey(ctx context.Context, k SealedKey, now time.Time, e Event) error

	// RotateKey gives a key that was handed in another value, and begins its rotation: ErrNoSuch, ErrRotating.
	RotateKey(ctx context.Context, k SealedKey, now, deadline time.Time, e Event) error

	// AbortRotation takes a key back to the value before: holders that moved move back. ErrNoRotation.
	AbortRotation(ctx context.Context, pool, name string, now time.Time, e Event) error

	// SetKey puts a key into quarantine, takes it out (KeyAvailable), or retires it for good, wiping its value.
	SetKey(ctx context.Context, pool, name string, state KeyState, why string, e Event) error
}

// Pooled is a Provider that hands out keys of a pool.
type Pooled interface {
	Pool() string
	// Configured lists the keys that the configuration names.
	Configured() []PoolKey
	// Problems tells, by the keys' names, why values could not be handed out when they were last read. It does no I/O
	// and shows nothing of a value.
	Problems() map[string]string
	// Refused takes in that a version's upstream refused it, as its holder says: the credential's next version gets another
	// key, or the same one with another value. It tells whether the key is in quarantine now. CodeQuotaExceeded: the
	// report is beyond the caller's share, and nothing but the caller's word says that it is true: the key is left as
	// it is.
	Refused(ctx context.Context, c Credential) (quarantined bool, err error)
	// Worked ends the row of refusals.
	Worked(ctx context.Context, c Credential) error
}
