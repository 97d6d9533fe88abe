package broker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// What a Ledger answers when the database's own constraints said no. Nothing was written.
var (
	ErrIDKnown   = errors.New("another version has this upstream id")
	ErrMoved     = errors.New("the version has moved on")            // another replica, or another request, was first
	ErrNoSuch    = errors.New("no such row")                         // nothing bears the id
	ErrKeyUsed   = errors.New("the idempotency key was used")        // by this caller, for whatever request
	ErrTaskEnded = errors.New("the task has ended")                  // or one above it
	ErrOverLimit = errors.New("too many are alive")                  // of the task, agent, profile or caller
	ErrRedeemed  = errors.New("the ticket was redeemed before")      // its credential is answered all the same
	ErrVoid      = errors.New("the ticket has expired or was ended") // its credential is answered all the same
)

// LimitError is ErrOverLimit with every limit that an intent would exceed, as far as they can still be told.
type LimitError struct{ Exceeded []Exceeded }

// Exceeded is one limit that an intent would exceed.
type Exceeded struct {
	Of          string // "task", "agent", "profile" or "caller"
	Live, Limit int64
	Credentials []int // which of the intent's credentials count towards it
}

func (e Exceeded) String() string { return fmt.Sprintf("%d of this %s's %d", e.Live, e.Of, e.Limit) }

func (e *LimitError) Error() string { return ErrOverLimit.Error() }

// Unwrap makes it an ErrOverLimit.
func (e *LimitError) Unwrap() error { return ErrOverLimit }

// Ledger is what the broker needs of storage. State and event commit together (P4), or neither does. Every method is
// safe for concurrent use by any number of replicas.
type Ledger interface {
	Versions
	Tasks
	Tickets
	Upkeeps
	Keys
}

// Lists reads credentials for whoever looks through them: it must not take from issuing what that needs.
type Lists interface {
	// CredentialPage lists by filter, newest first. It examines a bounded number of credentials, so a page may have fewer
	// than the limit, or none, although there are more. next is the Before of the page that follows; empty at the end.
	CredentialPage(ctx context.Context, f Filter) (page []Credential, next CredentialID, err error)
}

// Intent is what is written before any upstream is asked, in one transaction.
type Intent struct {
	Credentials []Credential // each with its first version
	Events      []Event
	Limits      Limits
	Key         *RequestKey // nil: the request has none; its Credentials are those above
	Tickets     []NewTicket // of those credentials that are given as tickets
	TaskToken   *NewTaskToken
}

// Versions keeps credentials and their versions.
type Versions interface {
	// Begin writes an intent: ErrKeyUsed, ErrTaskEnded or a LimitError.
	Begin(ctx context.Context, in Intent) error

	// Next writes the intent of a credential's next version, and the key and the task token of the request for it, if any: ErrMoved if its
	// number is taken, ErrKeyUsed, ErrTaskEnded if its task has ended or its own end was asked for.
	Next(ctx context.Context, c Credential, key *RequestKey, token *NewTaskToken, e Event) error

	// Activate takes an issuing version to StateActive with its sealed secret and makes it the credential's current one;
	// those before it stay good until the given time. ErrMoved if its end was asked for meanwhile, or its task ended;
	// ErrIDKnown if it has OwnID and an event of the last 32 days has its first upstream id as the first of its own.
	Activate(ctx context.Context, c Credential, sealed []byte, others time.Time, e Event) error

	// Move takes a version that is on the ledger to c.Version.State and writes its fields, if it is in one of the from states; else ErrMoved.
	// Sealed is stored where it isn't nil, and wiped where the state has ended. Moving to the same state is how an
	// attempt is put off.
	Move(ctx context.Context, c Credential, from []State, sealed []byte, events ...Event) error

	// AskIssuingToEnd keeps a version that is just being minted from becoming active, and writes the event: ErrMoved if it
	// is not being minted, or no more.
	AskIssuingToEnd(ctx context.Context, id VersionID, cause Cause, e Event) error

	// Forbid keeps a credential that may still be refreshed though its versions have ended from getting another one, and
	// writes the event: ErrMoved if there is nothing to forbid.
	Forbid(ctx context.Context, id CredentialID, e Event) error

	// Give says that the holder has a version that was minted though nobody asked, and writes the event.
	Give(ctx context.Context, id VersionID, e Event) error

	// Strike counts a version that its holder reported as refused, once, in a row, writes the event, and answers the count.
	// With pardon the row begins anew, unless that version was itself refused.
	Strike(ctx context.Context, id CredentialID, number int, pardon bool, events ...Event) (int, error)

	// Record writes events that change no state.
	Record(ctx context.Context, events ...Event) error

	// Credential finds one, with its current version, or, once that has ended, with one that is still alive, if any:
	// a credential is not said to be ended while a version of it may work. ErrNoSuch.
	Credential(ctx context.Context, id CredentialID) (Credential, error)

	// Latest finds one with its newest version, whatever became of it; ErrNoSuch.
	Latest(ctx context.Context, id CredentialID) (Credential, error)

	// Version finds one version, whatever became of it, with its credential; ErrNoSuch.
	Version(ctx context.Context, id VersionID) (Credential, error)

	// Delivered tells whether a version of the credential was ever active and not abandoned: its secret was answered, or
	// may have been.
	Delivered(ctx context.Context, id CredentialID) (bool, error)

	// Alive lists a credential's versions that have not ended, oldest first.
	Alive(ctx context.Context, id CredentialID) ([]Credential, error)

	// Sealed is a version's sealed secret; nil once it has ended.
	Sealed(ctx context.Context, id VersionID) ([]byte, error)

	Lists

	// Credentials lists by filter, newest first, however many it must read for that: for filters that one index answers.
	Credentials(ctx context.Context, f Filter) ([]Credential, error)

	// Repeated finds what a key was used for: the key with the hash of its request, and what it made; ErrNoSuch.
	Repeated(ctx context.Context, caller string, keySHA256 []byte) (RequestKey, error)

	// Changes gives a channel that receives something when the credential may have changed. It is a hint: the ledger is
	// the truth, and a lost hint costs only time. Call done to end it.
	Changes(id CredentialID) (changed <-chan struct{}, done func())

	// OnChange has fn called with each credential that may have changed in a way that Changes tells of, and with an empty id
	// when any may have. fn must return at once. It is called for as long as the ledger is open.
	OnChange(fn func(CredentialID))

	// CredentialsByID finds those of the ids that there are, at most 256, each as Credential does. It uses none of the
	// connections that issuing needs.
	CredentialsByID(ctx context.Context, ids []CredentialID) ([]Credential, error)

	// Claim leases versions of one provider that are due at now: their DueAt moves to now+lease and Attempts counts
	// up, in one statement, so that no other replica takes them meanwhile and a crash gives them back. They are
	// answered with the time at which they were due.
	Claim(ctx context.Context, provider string, now time.Time, lease time.Duration, limit int) ([]Credential, error)

	// DueProviders lists the providers that have something due at now.
	DueProviders(ctx context.Context, now time.Time) ([]string, error)

	// Tidy drops what is of no use after now: keys of old requests, tokens of old tasks, counts of nothing.
	Tidy(ctx context.Context, now time.Time) error
}

// Tasks keeps tasks that have a parent or an end.
type Tasks interface {
	// AddTask puts a task under its parent, for good. ErrMoved if it has another one; ErrTaskEnded if the parent has ended
	// and the task holds something, which is left alone. That the task itself has ended is Begin's to say.
	AddTask(ctx context.Context, t Task) error

	// FindTasks finds the tasks of that id: one caller's, or every caller's where caller is empty. A task of which only
	// credentials are known is among them.
	FindTasks(ctx context.Context, caller, id string) ([]Task, error)

	// EndTask ends a task and all below it, and answers those that had not ended before. The event of each is made by
	// the function. Their credentials are due for ending from due on.
	EndTask(ctx context.Context, t Task, due time.Time, event func(Task) Event) ([]Task, error)

	// AliveOf lists versions of a task that have not ended, in the order of their ids from the one after, at most limit.
	AliveOf(ctx context.Context, t Task, after VersionID, limit int) ([]Credential, error)

	// TaskPending counts what is still to be ended of a task and of all tasks below it: versions that have not ended,
	// without those that nothing can end before their time.
	TaskPending(ctx context.Context, t Task) (int64, error)

	// ClaimTasks leases ended tasks whose credentials are due for ending.
	ClaimTasks(ctx context.Context, now time.Time, lease time.Duration, limit int) ([]Task, error)

	// TaskDone says that all of the task's credentials are ended or being ended.
	TaskDone(ctx context.Context, t Task) error
}

// NewTicket is a ticket to be written with the intent of its credential.
type NewTicket struct {
	Credential CredentialID
	Version    VersionID
	SHA256     []byte
	Sealed     []byte // for a repeated request; wiped when it is used
	ExpiresAt  time.Time
}

// NewTaskToken is a task token to be written with an intent.
type NewTaskToken struct {
	ID        string
	SHA256    []byte
	Caller    string
	TaskID    string
	CreatedAt time.Time
	ExpiresAt time.Time
}

// Tickets keeps tickets.
type Tickets interface {
	// Redeem uses a ticket, once: its version is from then on being minted, until due. It answers the credential also
	// with ErrRedeemed and ErrVoid. ErrNoSuch.
	Redeem(ctx context.Context, sha256 []byte, now, due time.Time, event func(Credential) Event) (Credential, error)

	// TicketOf is a credential's sealed ticket while it may be redeemed; ErrNoSuch afterwards.
	TicketOf(ctx context.Context, id CredentialID) (sealed []byte, expiresAt time.Time, err error)
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

// RequestKey is a caller's Idempotency-Key, as hashes of itself and of the request it came with.
type RequestKey struct {
	Caller        string
	SHA256        []byte
	RequestSHA256 []byte
	Credentials   []CredentialID // what it made, or made a version of
	Seen          int            // the version that a refresh was to follow; zero for an issuance
	At            time.Time      // when the request came
	ExpiresAt     time.Time
}

// Limits bound how many versions may be alive at once, so that a crash-looping orchestrator is stopped.
type Limits struct {
	PerTask, PerAgent, PerProfile, PerCaller int64
}

// DefaultLimits are far above what a healthy fleet of a hundred agents holds.
var DefaultLimits = Limits{PerTask: 100, PerAgent: 1000, PerProfile: 50_000, PerCaller: 20_000}

// Denials is what a provider needs that keeps a list of refused versions upstream, written whole each time.
type Denials interface {
	Upkeep

	// Denied lists the versions at an upstream that were asked to end early and have not expired at the given time: those
	// being ended, those that are stuck, and those that were denied. They are sorted by their ids.
	Denied(ctx context.Context, upstream string, at time.Time) ([]Denial, error)

	// CutOff makes every active version at the upstream that was issued before a moment due for ending, for CauseCutOff, and
	// writes the notes and the event.
	CutOff(ctx context.Context, upstream string, n Notes, issuedBefore, now time.Time, e Event) error
}

// Denial is a version that is to be refused.
type Denial struct {
	ID        VersionID
	IssuedAt  time.Time
	ExpiresAt time.Time

	Done           bool // it was said to be denied
	SourceIdentity bool // its upstream confirmed its id as the session's source identity
}

// Count is how many things of one kind are in one state now.
type Count struct {
	Of    string // a provider, or a pool
	State string
	N     int64
}
