package providertest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// What follows is the broker's part around a provider's calls, at its shortest.

// intend puts a fresh credential on the ledger, to end after ttl.
func (s Subject) intend(t testing.TB, ttl time.Duration) broker.Credential {
	t.Helper()
	return Intend(t, s.Ledger, s.Provider, s.Credential(), s.Clock.Now(), ttl)
}

// Intend completes a credential and writes its intent, as the broker does before Mint.
func Intend(t testing.TB, ledger Ledger, p broker.Provider, c broker.Credential, now time.Time, ttl time.Duration) broker.Credential {
	t.Helper()
	now = now.UTC().Truncate(time.Microsecond)
	c.ID, c.CreatedAt, c.TTL = broker.NewCredentialID(), now, ttl
	if c.Caller == "" {
		c.Caller = "orchestrator"
	}
	if c.Requested == nil {
		c.Requested = c.Scopes
	}
	c.Version = broker.Version{
		ID: broker.NewVersionID(), Number: 1, State: broker.StateIssuing, IssuedAt: now, ExpiresAt: now.Add(ttl),
		SelfExpires: p.Capabilities().SelfExpires, DueAt: now.Add(time.Minute),
	}
	c.Version.Upstream = p.Upstream(c)
	err := ledger.Begin(t.Context(), broker.Intent{
		Credentials: []broker.Credential{c}, Events: []broker.Event{event(broker.EventIntended, c, now)}, Limits: broker.DefaultLimits,
	})
	if err != nil {
		t.Fatalf("writing the intent: %v", err)
	}
	return c
}

// Activate records what was minted, as the broker does before it hands the secret out.
func Activate(t testing.TB, ledger Ledger, c broker.Credential, m broker.Minted) broker.Credential {
	t.Helper()
	v := &c.Version
	v.State, v.DueAt = broker.StateActive, v.ExpiresAt
	v.UpstreamExpiresAt, v.UpstreamIDs, v.Trace = m.UpstreamExpiresAt, m.UpstreamIDs, m.Trace
	v.Fingerprint = m.Secret.Fingerprint()
	others := v.IssuedAt.Add(time.Minute) // the versions before it are then due for their end
	err := ledger.Activate(t.Context(), c, []byte("sealed"), others, event(broker.EventIssued, c, v.IssuedAt))
	if err != nil {
		t.Fatalf("recording the mint: %v", err)
	}
	return c
}

// Next writes the intent of a credential's next version, as the broker does for a refresh.
func Next(t testing.TB, ledger Ledger, p broker.Provider, c broker.Credential, now time.Time) broker.Credential {
	t.Helper()
	now = now.UTC().Truncate(time.Microsecond)
	c.Version = broker.Version{
		ID: broker.NewVersionID(), Number: c.Version.Number + 1, State: broker.StateIssuing, IssuedAt: now, ExpiresAt: now.Add(c.TTL),
		SelfExpires: p.Capabilities().SelfExpires, Upstream: p.Upstream(c), DueAt: now.Add(time.Minute),
	}
	if err := ledger.Next(t.Context(), c, nil, nil, event(broker.EventIntended, c, now)); err != nil {
		t.Fatalf("writing the intent of the next version: %v", err)
	}
	return c
}

// Settle records what a revocation achieved, as the broker does after Revoke.
func Settle(t testing.TB, ledger Ledger, c broker.Credential, done broker.Revocation) broker.Credential {
	t.Helper()
	v := &c.Version
	from := v.State
	v.State, v.Revocation, v.DueAt, v.EndedAt = broker.StateRevoked, done, time.Time{}, done.EffectiveAt
	err := ledger.Move(t.Context(), c, []broker.State{from}, nil, event(broker.EventRevoked, c, v.IssuedAt))
	if err != nil {
		t.Fatalf("recording the end: %v", err)
	}
	return c
}

// Ask records that an active version is to end, as the broker does before Revoke.
func Ask(t testing.TB, ledger Ledger, c broker.Credential, cause broker.Cause) broker.Credential {
	t.Helper()
	c, err := ask(t.Context(), ledger, c, cause)
	if err != nil {
		t.Fatalf("recording that an end was asked for: %v", err)
	}
	return c
}

func ask(ctx context.Context, ledger Ledger, c broker.Credential, cause broker.Cause) (broker.Credential, error) {
	v := &c.Version
	v.State, v.Cause, v.Attempts, v.DueAt = broker.StateRevoking, cause, 1, v.IssuedAt.Add(time.Minute)
	from := []broker.State{broker.StateActive, broker.StateLost}
	return c, ledger.Move(ctx, c, from, nil, event(broker.EventRevokeAsked, c, v.IssuedAt))
}

// Crash leaves of a credential what the intent recorded, and nothing of what came after; then its end is asked for, as
// the sweeper does with what it finds abandoned.
func Crash(t testing.TB, ledger Ledger, c broker.Credential) broker.Credential {
	t.Helper()
	v := c.Version
	c.Version = broker.Version{
		ID: v.ID, Number: v.Number, State: broker.StateLost, IssuedAt: v.IssuedAt, ExpiresAt: v.ExpiresAt,
		SelfExpires: v.SelfExpires, Upstream: v.Upstream, Cause: broker.CauseAbandoned, DueAt: v.IssuedAt.Add(time.Minute),
	}
	err := ledger.Move(t.Context(), c, []broker.State{broker.StateIssuing}, nil, event(broker.EventLost, c, v.IssuedAt))
	if err != nil {
		t.Fatalf("recording that it is lost: %v", err)
	}
	return Ask(t, ledger, c, broker.CauseAbandoned)
}

func event(kind broker.EventType, c broker.Credential, at time.Time) broker.Event {
	return broker.Event{
		ID: broker.NewEventID(), At: at, Type: kind, Caller: broker.Caller{Name: c.Caller, Role: broker.RoleOrchestrator},
		TaskID: c.TaskID, AgentID: c.AgentID, Profile: c.Profile, Provider: c.Provider, Credential: c.ID,
		Version: c.Version.Number, VersionID: c.Version.ID, State: c.Version.State, UpstreamIDs: c.Version.UpstreamIDs,
	}
}

// issue mints a credential and records it.
func (s Subject) issue(t testing.TB) (broker.Credential, broker.Minted) {
	t.Helper()
	return s.issueFor(t, s.intend(t, s.ttl()))
}

func (s Subject) issueFor(t testing.TB, c broker.Credential) (broker.Credential, broker.Minted) {
	t.Helper()
	m, err := s.Provider.Mint(t.Context(), c)
	if err != nil {
		t.Fatalf("Mint: %v", err)
	}
	return Activate(t, s.Ledger, c, m), m
}

// ttl is a time in the provider's bounds that is not one of them.
func (s Subject) ttl() time.Duration {
	caps := s.Provider.Capabilities()
	return min(max(10*time.Minute, caps.MinTTL), caps.MaxTTL)
}

func (s Subject) knows(t testing.TB, id broker.VersionID) bool {
	t.Helper()
	return slices.Contains(s.Known(t), id)
}

// fault asks for a fault and skips the check where there is no such thing.
func (s Subject) fault(t testing.TB, at Operation, f Fault) (met <-chan struct{}) {
	t.Helper()
	if s.Fault != nil {
		if met, ok := s.Fault(t, at, f); ok {
			return met
		}
	}
	t.Skipf("this upstream knows no %s", f)
	return nil
}

// expiring is a context whose deadline is when expire is called.
type expiring struct {
	context.Context
	expired chan struct{}
}

func (e expiring) Done() <-chan struct{} { return e.expired }

func (e expiring) Err() error {
	select {
	case <-e.expired:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// ExpireAfter gives a context that is past its deadline as soon as something has happened, so that a test neither
// guesses how long that takes nor waits longer. It gives up with the parent.
func ExpireAfter(parent context.Context, happened <-chan struct{}) context.Context {
	e := expiring{parent, make(chan struct{})}
	go func() {
		select {
		case <-happened:
		case <-parent.Done():
		}
		close(e.expired)
	}()
	return e
}

// patience bounds what must return at once, on a machine that is busy with other tests.
const patience = 2 * time.Minute

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}
