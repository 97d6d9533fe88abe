package broker

import (
	"context"
	"time"
)

// Account is a service account of an upstream that one credential holds at a time.
type Account struct {
	Email      string
	State      AccountState
	Holder     CredentialID // while it is held
	AliveUntil time.Time    // nothing that was made for it works later than this; zero: nothing was. Waking: see Wake
	UsedAt     time.Time    // when something was last minted for it
	StoppedAt  time.Time    // when the upstream confirmed that it is disabled, since it rests
	Found      string       // what was last reported about it
	Idle       bool         // held by a credential of which no version is alive any more
}

// AccountState is where an account is in its round.
type AccountState string

// available → held → resting → waking → available. Enabling an account revives every token that was made for it, so it
// rests, disabled, until none of them would work.
const (
	AccountAvailable AccountState = "available"
	AccountHeld      AccountState = "held"
	AccountResting   AccountState = "resting"
	AccountWaking    AccountState = "waking" // its rest is over; it is being enabled
)

// Accounts keeps which credential holds which account. One holder an account is a constraint of the database. A
// credential's versions share its account.
type Accounts interface {
	// Occupy gives the version that is being minted an account: the one its credential holds already, else one that is
	// free, else one whose time is over. That what is made for it may work until aliveUntil is on the ledger from then
	// on. awake tells that it was enabled when it was left; kept, that the credential held it before. When none is free
	// it says when the next is due back (zero: unknown). most is how many of the emails one caller may hold or have
	// resting at once (zero: all). ErrOverShare: the credential's caller has that many; dueBack is then when the first
	// of them is. Any number of replicas that take for one caller at once stay within it.
	Occupy(ctx context.Context, c Credential, emails []string, most int, aliveUntil, now time.Time) (o Occupied, ok bool, dueBack time.Time, err error)

	// Vacate gives back what c.Version took, when the upstream surely made nothing for it: to nobody before until, where a
	// call to enable it failed or may still come through (zero: at once). Holding none is success.
	Vacate(ctx context.Context, c Credential, until time.Time) error

	// Prolong records that what was made for the account that the credential holds may work for longer than was asked.
	Prolong(ctx context.Context, c Credential, aliveUntil time.Time) error

	// Rest ends the credential's hold, unless another of its versions needs the account, and lists what the credential
	// holds, or held last.
	Rest(ctx context.Context, c Credential) ([]Account, error)

	// Stopped records that the upstream confirmed a resting account disabled.
	Stopped(ctx context.Context, email string, now time.Time) error

	AccountRounds
}

// Occupied is what Occupy gave.
type Occupied struct {
	Email       string
	Awake, Kept bool
	AwakeAt     time.Time // when it was enabled; zero: not by the broker
}

// AccountRounds is what is done about accounts when nobody asks.
type AccountRounds interface {
	// Accounts lists those of the emails that are known, sorted.
	Accounts(ctx context.Context, emails []string) ([]Account, error)

	// RestIdle ends the hold of a credential of which no version is alive; one that came alive meanwhile keeps it.
	RestIdle(ctx context.Context, a Account) error

	// Wake keeps an account whose rest is over to the caller, who enables it: false if somebody was first. Nobody else tries
	// before until, for a call that is not answered may still enable it.
	Wake(ctx context.Context, email string, now, until time.Time) (bool, error)

	// Awake makes an account that was enabled, since Wake kept it until then, available.
	Awake(ctx context.Context, email string, now, until time.Time) error

	// Report writes what was found about an account, and the event, in one transaction.
	Report(ctx context.Context, email, found string, e Event) error
}
