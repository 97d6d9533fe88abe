// Package auth finds out who is calling, and makes and ends the tokens by which callers prove it.
//
// It decides whether a token is good and whose it is. It refuses to know what the caller may then do: that is the
// policy's business. A token is kept only as its SHA-256.
package auth

import (
	"context"
	"errors"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Bounds of a caller token's life.
const (
	DefaultTokenTTL = 90 * 24 * time.Hour
	MaxTokenTTL     = 400 * 24 * time.Hour
)

// Authenticator knows callers by their tokens. It is safe for concurrent use.
type Authenticator struct {
	tokens broker.Tokens
	tasks  broker.TaskTokens
	clock  func() time.Time

	// Requests with one token that come at the same moment share a look at the ledger, so that no token can fill the
	// connections that issuing needs.
	callers broker.Flights[string, broker.Token]
	agents  broker.Flights[string, taskToken]
}

// taskToken is a task's token, and whether its task has ended.
type taskToken struct {
	broker.NewTaskToken
	ended bool
}

// lookupLimit is the longest that one look at the ledger may take.
const lookupLimit = 5 * time.Second

// Tokens is where all tokens are kept.
type Tokens interface {
	broker.Tokens
	broker.TaskTokens
}

// New makes an Authenticator over the tokens that are kept there. A nil clock is time.Now.
func New(tokens Tokens, clock func() time.Time) *Authenticator {
	if clock == nil {
		clock = time.Now
	}
	return &Authenticator{tokens: tokens, tasks: tokens, clock: clock}
}

// Authenticate finds the caller whose token this is: a caller's own, or a task's. Every call asks the ledger after it was
// made, so a token that was revoked, or whose task has ended, is refused from that moment on, on every replica. The error
// is unauthenticated, token_expired or token_revoked.
func (a *Authenticator) Authenticate(ctx context.Context, token string) (broker.Caller, error) {
	switch {
	case broker.WellFormed(broker.PrefixCaller, token):
		return a.Holder(ctx, broker.HashToken(token))
	case broker.WellFormed(broker.PrefixTask, token):
		return a.task(ctx, token)
	}
	return broker.Caller{}, broker.Errorf(broker.CodeUnauthenticated, "send a token: Authorization: Bearer tpc_… or tpt_…")
}

// Holder finds the caller whose own token has that SHA-256, as Authenticate does with the token: for a session that was
// begun with it and must not outlive it.
func (a *Authenticator) Holder(ctx context.Context, sha256 []byte) (broker.Caller, error) {
	t, err := a.callers.Do(ctx, string(sha256), lookupLimit, func(ctx context.Context) (broker.Token, error) {
		return a.tokens.FindToken(ctx, sha256)
	})
	if err := a.good(err, !t.RevokedAt.IsZero(), t.ExpiresAt); err != nil {
		return broker.Caller{}, err
	}
	return broker.Caller{Name: t.Caller, Role: t.Role, Auth: "token:" + t.ID}, nil
}

func (a *Authenticator) task(ctx context.Context, token string) (broker.Caller, error) {
	sum := broker.HashToken(token)
	t, err := a.agents.Do(ctx, string(sum), lookupLimit, func(ctx context.Context) (t taskToken, err error) {
		t.NewTaskToken, t.ended, err = a.tasks.FindTaskToken(ctx, sum)
		return t, err
	})
	if err := a.good(err, t.ended, t.ExpiresAt); err != nil {
		return broker.Caller{}, err
	}
	return broker.Caller{Name: t.Caller, Role: broker.RoleAgent, TaskID: t.TaskID, Auth: "token:" + t.ID}, nil
}

func (a *Authenticator) good(err error, revoked bool, expires time.Time) error {
	switch {
	case errors.Is(err, broker.ErrNoSuch):
		return broker.Errorf(broker.CodeUnauthenticated, "the token is not known here")
	case err != nil:
		return err
	case revoked:
		return broker.Errorf(broker.CodeTokenRevoked, "the token was revoked, or its task has ended")
	case !a.clock().Before(expires):
		return broker.Errorf(broker.CodeTokenExpired, "the token has expired")
	}
	return nil
}

// Create makes a token for a caller; the secret is shown this once. by is who asked, for the record.
func (a *Authenticator) Create(ctx context.Context, by broker.Caller, name string, role broker.Role, ttl time.Duration) (broker.Secret, broker.Token, error) {
	var faults []broker.Fault
	if !broker.ValidID(name) {
		faults = append(faults, broker.Fault{Pointer: "name", Reason: "is not 1-128 of A-Z a-z 0-9 . _ : @ -, and not only dots"})
	}
	if _, ok := broker.ParseRole(string(role)); !ok {
		faults = append(faults, broker.Fault{Pointer: "role", Reason: "is not orchestrator, auditor or operator"})
	}
	if ttl <= 0 || ttl > MaxTokenTTL {
		faults = append(faults, broker.Fault{Pointer: "ttl", Reason: "is not between 0 and 400 days"})
	}
	if len(faults) > 0 {
		return broker.Secret{}, broker.Token{}, &broker.Error{
			Code: broker.CodeInvalidRequest, Message: "the token cannot be made", Faults: faults,
		}
	}
	now := a.clock().UTC()
	secret := broker.NewToken(broker.PrefixCaller)
	t := broker.Token{ID: broker.NewTokenID(), Caller: name, Role: role, CreatedAt: now, ExpiresAt: now.Add(ttl)}
	err := a.tokens.AddToken(ctx, t, broker.HashToken(secret.Reveal()), broker.Event{
		ID: broker.NewEventID(), At: now, Type: broker.EventTokenCreated, Caller: by, TTL: ttl, ExpiresAt: t.ExpiresAt,
		Trace: map[string]string{"token_id": t.ID, "caller": name, "role": string(role)},
	})
	if errors.Is(err, broker.ErrRoleTaken) {
		err = broker.Errorf(broker.CodeConflict, "the caller %s exists with another role; a caller has one", name)
	}
	return secret, t, err
}

// Revoke ends a token for good.
func (a *Authenticator) Revoke(ctx context.Context, by broker.Caller, id string) error {
	err := a.tokens.RevokeToken(ctx, id, broker.Event{
		ID: broker.NewEventID(), At: a.clock().UTC(), Type: broker.EventTokenRevoked, Caller: by,
	})
	if errors.Is(err, broker.ErrNoSuch) {
		return broker.Errorf(broker.CodeNotFound, "there is no token of that id")
	}
	return err
}
