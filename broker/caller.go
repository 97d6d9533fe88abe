package broker

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Role is what a caller may do.
type Role string

const (
	// RoleOrchestrator issues credentials, and sees and ends its own.
	RoleOrchestrator Role = "orchestrator"
	// RoleAuditor reads everything and changes nothing.
	RoleAuditor Role = "auditor"
	// RoleAgent holds a task's own token: it reads the task and its credentials, resolves, refreshes and watches them, and
	// may end the task. Another task does not exist for it, nor another caller's task of the same id.
	RoleAgent Role = "agent"
	// RoleOperator reads everything and may end any credential; it issues none.
	RoleOperator Role = "operator"
)

// ParseRole finds the role of that name that a caller token may have.
func ParseRole(s string) (Role, bool) {
	switch r := Role(s); r {
	case RoleOrchestrator, RoleAuditor, RoleOperator:
		return r, true
	}
	return "", false
}

// Caller is who is calling and how, as the audit trail records it.
type Caller struct {
	Name      string
	Role      Role
	Auth      string // how it authenticated: "token:tok_…"
	Addr      string // the client's address
	RequestID string
	TraceID   string // the caller's own, of a W3C traceparent: 32 hexadecimal digits; empty: it sent none
	TaskID    string // the one task that an agent's token is for
}

// ReadsAll tells whether the caller may see what others were issued.
func (c Caller) ReadsAll() bool { return c.Role == RoleAuditor || c.Role == RoleOperator }

// owns tells whether the caller may see the credential at all.
func (c Caller) owns(cr Credential) bool {
	if c.Role == RoleAgent {
		return c.Name == cr.Caller && c.TaskID == cr.TaskID
	}
	return c.ReadsAll() || c.Name == cr.Caller
}

// use is a use case, for the question who may do it.
type use string

const (
	useIssue   use = "issue credentials"
	useOffers  use = "list profiles"
	useSee     use = "look at credentials and tasks"
	useResolve use = "resolve a credential"
	useRefresh use = "refresh a credential"
	useWatch   use = "watch a credential"
	useRevoke  use = "revoke a credential"
	useEnd     use = "end a task"
	useReport  use = "report what an upstream answered"
	useKeys    use = "look at the keys of pools"
	useKeep    use = "manage the keys of pools"
)

// may is the whole of who may do what, before any profile's rules.
var may = map[use][]Role{
	useIssue:   {RoleOrchestrator},
	useOffers:  {RoleOrchestrator, RoleAgent, RoleAuditor, RoleOperator},
	useSee:     {RoleOrchestrator, RoleAgent, RoleAuditor, RoleOperator},
	useResolve: {RoleOrchestrator, RoleAgent},
	useRefresh: {RoleOrchestrator, RoleAgent},
	useWatch:   {RoleOrchestrator, RoleAgent, RoleAuditor, RoleOperator},
	useRevoke:  {RoleOrchestrator, RoleOperator},
	useEnd:     {RoleOrchestrator, RoleAgent, RoleOperator},
	useReport:  {RoleOrchestrator, RoleAgent},
	useKeys:    {RoleAuditor, RoleOperator},
	useKeep:    {RoleOperator},
}

func (c Caller) mayUse(u use) error {
	if slices.Contains(may[u], c.Role) {
		return nil
	}
	return Errorf(CodeForbidden, "the role %s may not %s", c.Role, u)
}

// Token is a caller's bearer token as the ledger knows it: by its hash.
type Token struct {
	ID        string // "tok_…": public, for lists and for revoking
	Caller    string
	Role      Role
	CreatedAt time.Time
	ExpiresAt time.Time
	RevokedAt time.Time // zero: it is not revoked
}

// Tokens keeps bearer tokens.
type Tokens interface {
	// AddToken writes a token, its caller if new, and the event. ErrRoleTaken if the caller exists with another role.
	AddToken(ctx context.Context, t Token, sha256 []byte, e Event) error
	// FindToken finds one by the hash of its value; ErrNoSuch.
	FindToken(ctx context.Context, sha256 []byte) (Token, error)
	// RevokeToken ends one for good; doing it again changes nothing. ErrNoSuch.
	RevokeToken(ctx context.Context, id string, e Event) error
	// Tokens lists them, newest first, at most 1000.
	Tokens(ctx context.Context) ([]Token, error)
}

// ErrRoleTaken says that a caller has one role, and it is another.
var ErrRoleTaken = errors.New("the caller exists with another role")

// TaskTokens finds the tokens of tasks.
type TaskTokens interface {
	// FindTaskToken finds one by the hash of its value, and whether its task has ended; ErrNoSuch.
	FindTaskToken(ctx context.Context, sha256 []byte) (t NewTaskToken, ended bool, err error)
}
