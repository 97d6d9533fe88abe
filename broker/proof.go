package broker

import "context"

// Prover is a Provider that can find out, outside any request, whether the broker may do upstream what the configuration
// promises; above all, end what it mints.
type Prover interface {
	Provider

	// Prove asks by calls that change nothing, and, with writes, also by writes that harm nothing, which it undoes. It needs
	// no ledger. An empty list: the configuration promises nothing that could be proven.
	Prove(ctx context.Context, writes bool) []Proof
}

// ProofState is what is known of a right.
type ProofState string

// The states. What the upstream does not say is not proven, and no failure.
const (
	Proven    ProofState = "proven"
	Lacking   ProofState = "lacking"
	NotProven ProofState = "not proven"
)

// Proof is what is known of one right of the broker's at an upstream. It holds no secret.
type Proof struct {
	Right string // the vendor's name for it, and on what: "iam:PutRolePolicy on arn:…"
	State ProofState
	How   string // how that is known, or what the operator should grant or do
}

// NotProvenBy says that a call which would have told failed.
func NotProvenBy(right string, err error) Proof {
	return Proof{right, NotProven, upstreamError(err).Message}
}
