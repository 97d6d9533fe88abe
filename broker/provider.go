package broker

import (
	"context"
	"errors"
	"time"
)

// RevokeMode is what a provider can do to a secret before its time.
type RevokeMode string

const (
	RevokeNone    RevokeMode = "none"    // nothing
	RevokeDeny    RevokeMode = "deny"    // the upstream refuses it, though it exists
	RevokeDestroy RevokeMode = "destroy" // the upstream no longer knows it
)

// Capabilities are a provider's promises as configured. They are published by GET /v1/profiles; reading them does no I/O.
type Capabilities struct {
	MinTTL, MaxTTL time.Duration // what Mint accepts, inclusive
	SelfExpires    bool          // the upstream ends it by ExpiresAt, broker or no broker
	Revoke         RevokeMode
	RevokeLag      time.Duration // the longest use the upstream may still allow after Revoke returned
	Disclosed      bool          // the secret outlives its credential by design, and the operator accepted that in writing
}

// ErrNotMinted marks a failed Mint after which the upstream surely holds nothing. Wrap it (errors.Is) only with proof:
// a definite refusal, or a connection that was never made. A time-out is not one.
var ErrNotMinted = errors.New("the upstream made nothing")

// ErrNotRotated is Revoke's answer for a secret that only an operator can end, by replacing it at its source.
var ErrNotRotated = errors.New("the secret works until an operator replaces it")

// Minted is what Mint made.
type Minted struct {
	Secret            Bundle
	UpstreamExpiresAt time.Time         // the upstream's own end; zero if it knows none
	UpstreamIDs       []string          // the public names by which the upstream's log knows it
	OwnID             bool              // the first of them belongs to this one secret: no version had it before
	Trace             map[string]string // all that helps an auditor; never a secret

	Levels map[string]float64 // what the upstream said of its limits, for the metrics: few names, known beforehand
}

// Result is what a revocation achieved, never more.
type Result string

const (
	ResultNone      Result = ""          // nothing yet
	ResultDestroyed Result = "destroyed" // the upstream no longer knows the secret
	ResultDenied    Result = "denied"    // the upstream refuses it
	ResultExpires   Result = "expires"   // nothing can end it early; it dies at EffectiveAt
	ResultReleased  Result = "released"  // a disclosed key went back to its pool; the upstream was not told
)

// Revocation says what was achieved, from when on it holds, and how that is known.
type Revocation struct {
	Result      Result
	EffectiveAt time.Time // includes the provider's lag
	Basis       string    // a short machine word: "policy_written", "self_expires", "key_replaced", …
}

// Provider mints and ends secrets at one kind of upstream. Implementations are safe for concurrent use, obey ctx,
// retry nothing by themselves, and return *Error for what a caller should be told.
type Provider interface {
	Capabilities() Capabilities

	// Upstream names where c will live, before it is minted: it is recorded with the intent.
	Upstream(c Credential) string

	// Mint makes c.Version: a secret that dies by c.Version.ExpiresAt and bears c.Version.ID where the upstream's log
	// shows it. Unless it fails with ErrNotMinted the upstream may hold something, and Revoke will be called.
	Mint(ctx context.Context, c Credential) (Minted, error)

	// Revoke ends c.Version for c.Version.Cause. It works from what the intent recorded alone: after a crash nothing
	// else is known. Already gone is success; "not found" is gone only where absence is proof, "forbidden" never.
	// A Revocation with ResultExpires means that nothing can be done before EffectiveAt: it is not asked again.
	Revoke(ctx context.Context, c Credential) (Revocation, error)
}
