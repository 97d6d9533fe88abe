package broker

import (
	"slices"
	"time"
)

// Credential is what a task holds: one task, one agent, one profile, a set of scopes, an end. Its secret is not in it.
type Credential struct {
	ID        CredentialID
	TaskID    string
	Parent    string // the task above it, where the request named one
	AgentID   string
	Profile   string
	Provider  string
	Caller    string // who asked for it
	Requested []string
	Scopes    []string // what it got: sorted, each once
	Metadata  map[string]string
	TTL       time.Duration
	CreatedAt time.Time
	Strikes   int       // refusals in a row that its holder reported
	HardEnd   time.Time // no version outlives it; zero: unknown, so no version may follow
	Version   Version   // the one spoken of: the current one, unless said otherwise
}

// Version is one minted secret under a credential.
type Version struct {
	ID       VersionID
	Number   int // 1, 2, … under its credential
	State    State
	IssuedAt time.Time
	// ExpiresAt is when the broker promises it dead (P9); it is fixed before the upstream is asked.
	ExpiresAt time.Time
	// UpstreamExpiresAt is the upstream's own end; zero if the upstream knows none.
	UpstreamExpiresAt time.Time
	Unclaimed         bool   // its ticket is not redeemed: the upstream was not asked
	Succeed           bool   // its successor is to be minted though nobody asked: its key is being rotated
	Ungiven           bool   // minted though nobody asked, and not yet resolved by its holder
	SelfExpires       bool   // the upstream ends it by ExpiresAt without the broker
	Upstream          string // where it lives: a role's ARN, a pool
	UpstreamIDs       []string
	OwnID             bool // for Activate, and not stored: the first of UpstreamIDs is no other version's
	Trace             map[string]string
	Fingerprint       []byte // SHA-256 of the secret
	Cause             Cause  // why it is ending or ended
	Reason            string // the caller's own words for it
	Revocation        Revocation
	LastError         Code // why the latest attempt to end it failed
	Attempts          int  // attempts to end it so far
	DueAt             time.Time
	EndedAt           time.Time
}

// TraceUsableAfter is the key of Minted.Trace under which a provider says when the upstream surely knows what was made,
// in RFC 3339.
const TraceUsableAfter = "usable_after"

// UsableAfter is when the upstream surely knows the secret; before, it may refuse it. Zero: at once.
func (v Version) UsableAfter() time.Time {
	at, err := time.Parse(time.RFC3339, v.Trace[TraceUsableAfter])
	if err != nil {
		return time.Time{}
	}
	return at.UTC()
}

// State is where a version is in its life. doc.go draws the diagram; the transitions table and the database hold it.
type State string

const (
	StateIssuing  State = "issuing"  // on the ledger; the upstream may have been asked
	StateActive   State = "active"   // minted and handed out
	StateRevoking State = "revoking" // asked to end; it may still work
	StateRevoked  State = "revoked"  // ended before its time; Revocation says how
	StateExpired  State = "expired"  // ended at its time
	StateFailed   State = "failed"   // the upstream surely made nothing
	StateLost     State = "lost"     // the upstream may have made it and nobody can know: treated as alive
	StateStuck    State = "stuck"    // the bounded attempts to end it are spent; retried slowly, alarmed
)

var transitions = map[State][]State{
	StateIssuing:  {StateActive, StateFailed, StateLost},
	StateActive:   {StateRevoking, StateExpired},
	StateLost:     {StateRevoking, StateExpired},
	StateRevoking: {StateRevoked, StateExpired, StateStuck},
	StateStuck:    {StateRevoked, StateExpired},
	StateRevoked:  {},
	StateExpired:  {},
	StateFailed:   {},
}

// States lists all states, in the order of the diagram.
func States() []State {
	return []State{StateIssuing, StateActive, StateRevoking, StateRevoked, StateExpired, StateFailed, StateLost, StateStuck}
}

// Next lists the states that may follow s.
func (s State) Next() []State { return transitions[s] }

// Ended tells whether nothing of the version can be alive, as far as was promised.
func (s State) Ended() bool { return len(transitions[s]) == 0 }

// leadingTo lists the states from which s may be reached.
func leadingTo(s State) []State {
	var from []State
	for _, f := range States() {
		if slices.Contains(transitions[f], s) {
			from = append(from, f)
		}
	}
	return from
}

// Cause is why a version ends.
type Cause string

const (
	CauseNone      Cause = ""
	CauseRevoked   Cause = "revoked"    // a caller asked
	CauseExpired   Cause = "expired"    // its time came
	CauseAbandoned Cause = "abandoned"  // the broker could not finish issuing it; nobody was given the secret
	CauseTaskEnded Cause = "task_ended" // its task ended
	CauseReplaced  Cause = "replaced"   // a newer version took its place
	CauseCutOff    Cause = "cut_off"    // all of its upstream had to be refused; the next version works
)

// RefreshAfter is when a holder should ask for the next version: ttl before the end less max(10 % of ttl, 5 min), but
// never before half of it.
func RefreshAfter(issued, expires time.Time) time.Time {
	ttl := expires.Sub(issued)
	lead := min(max(ttl/10, 5*time.Minute), ttl/2)
	return expires.Add(-lead)
}
