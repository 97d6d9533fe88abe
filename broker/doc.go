// Package broker is the domain of Taskpass: it mints a credential for one task, keeps it on the ledger, and ends it. It
// knows no database, no HTTP and no vendor; those implement its interfaces.
//
// # Words
//
// A Profile is an operator's named offer. A Credential is what one task and one agent hold under a profile. A Version is
// one minted secret under a credential; versions follow each other and overlap. A Caller is who asks. A ticket is a
// single-use claim that an agent exchanges for the secret; a task token is what an agent calls with. The Upstream is the
// vendor, and an upstream id its public name for what was minted. An Event is one audit record.
//
// # A mint
//
//	policy → intent (on the ledger) → upstream → outcome (on the ledger) → answer
//
// Nothing is asked of an upstream that is not on the ledger first, and no secret leaves before its outcome is there. A
// process may stop between any two of these steps: the Sweeper (Run) finds the intent when it is due and sees to it that
// nothing stays alive that nobody was given.
//
// # States of a version
//
//	issuing ──→ active ──→ revoking ──→ revoked
//	   │  │        │        ↑    │ │
//	   │  │        ↓        │    │ └──→ stuck ──→ revoked, expired
//	   │  │     expired ←───│────┘
//	   │  └──→ lost ────────┘   lost ──→ expired
//	   └─────→ failed
//
// revoked, expired and failed are ends. While a version is in any other state it is due for something (DueAt), so that it
// cannot be forgotten. The transitions table holds this, and so does the database.
//
// # Promises
//
// P1 no secret leaves before its issuance is durable. P2 intent first. P3 an acknowledged revocation is durable, retried,
// and reported as what it achieved. P4 state and event commit together. P5 one Idempotency-Key, one credential. P6 never
// more scope than asked, offered and allowed. P7 no secret in any output but the one answer. P8 a pool key has one
// holder. P9 after ExpiresAt a credential is dead or stuck. P10 no transaction across an upstream call, no timers in
// memory. P11 one bad row, vendor or client stops nothing else. P12 one tenant cannot see, guess, exhaust or slow down
// another: whatever is shared has a share for each caller.
package broker
