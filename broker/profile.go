package broker

import (
	"slices"
	"time"
)

// Profile is an operator's named offer: a provider, the scopes it knows, TTL bounds, and who may ask.
// What a scope means upstream is the provider's business.
type Profile struct {
	Name       string
	Provider   string // "aws", "pool"
	Scopes     []string
	DefaultTTL time.Duration
	MinTTL     time.Duration
	MaxTTL     time.Duration
	Allow      []Rule
	// MaxLifetime is how long a credential may be refreshed: no version outlives it. Zero: 24 h, or MaxTTL if longer.
	MaxLifetime time.Duration
	// Overlap is how long a version stays good after the next one is there; its own end may come first. Zero: 10 min.
	Overlap time.Duration
	// TicketTTL is how long a ticket may be redeemed. Zero: 10 min.
	TicketTTL time.Duration
	// RevokeOnReuse ends the credential when its ticket is redeemed a second time.
	RevokeOnReuse bool
	// Env are fixed environment variables beside the provider's own, in what the agent gets. None is secret.
	Env      map[string]string
	Upstream Provider
}

// Defaults of a profile.
const (
	defaultMaxLifetime = 24 * time.Hour
	defaultOverlap     = 10 * time.Minute
	defaultTicketTTL   = 10 * time.Minute
)

// withDefaults fills in what was left out.
func (p Profile) withDefaults() Profile {
	if p.MaxLifetime == 0 {
		p.MaxLifetime = max(defaultMaxLifetime, p.MaxTTL)
	}
	orDefault(&p.Overlap, defaultOverlap)
	orDefault(&p.TicketTTL, defaultTicketTTL)
	return p
}

// Rule lets some callers ask for some of a profile's scopes. Patterns are ids in which a trailing "*" stands for any
// rest; a rule must match in all its parts. What no rule allows is refused.
type Rule struct {
	Callers []string
	Tasks   []string      // empty: any
	Agents  []string      // empty: any
	Scopes  []string      // empty: all of the profile's
	MaxTTL  time.Duration // zero: the profile's
}

// Request is what an orchestrator asks for.
type Request struct {
	TaskID   string
	AgentID  string
	Profile  string
	Scopes   []string
	TTL      time.Duration // zero: the profile's default
	Metadata map[string]string

	ParentTaskID string // the task ends with it; empty: none
	Ticket       bool   // answer a ticket in place of the secret
	TaskToken    bool   // also answer a token for the task itself
}

// Grant is what a policy allows for a request: scopes sorted and each once.
type Grant struct {
	Scopes []string
	TTL    time.Duration
}

// Policy decides on requests (P6: effective ⊆ request ∩ profile ∩ policy). It is pure. A refusal is an *Error that
// carries every reason as a Fault, under the code of the gravest.
type Policy interface {
	Decide(caller Caller, p Profile, r Request) (Grant, error)
	// Visible tells whether the caller may ask this profile for anything, and for which scopes.
	Visible(caller Caller, p Profile) (scopes []string, ok bool)
}

// Profiles is the set of profiles in force; a reload replaces it as a whole.
type Profiles map[string]Profile

// Sorted lists the profiles by name.
func (ps Profiles) Sorted() []Profile {
	list := make([]Profile, 0, len(ps))
	for _, p := range ps {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b Profile) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return list
}
