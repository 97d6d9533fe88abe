package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Life says whether a version still works, and how that is known: never more than is known.
type Life struct {
	Alive   string     `json:"alive"`              // no, yes or maybe
	Since   *time.Time `json:"since,omitempty"`    // it works no more from then on
	Until   *time.Time `json:"until,omitempty"`    // it works no longer than that; absent where that is not known either
	How     string     `json:"how"`                // a machine word
	EventID string     `json:"event_id,omitempty"` // the event that says so: GET /v1/audit/proof/inclusion proves it
}

// ending is what the ledger knows of a version's end.
type ending struct {
	state, result, basis   string
	expiresAt              time.Time
	effectiveAt            *time.Time
	selfExpires, unclaimed bool
}

// LifeOf is the answer for a version that the ledger has.
func LifeOf(v broker.Version, now time.Time) Life {
	e := ending{
		state: string(v.State), result: string(v.Revocation.Result), basis: v.Revocation.Basis,
		expiresAt: v.ExpiresAt.UTC(), selfExpires: v.SelfExpires, unclaimed: v.Unclaimed,
	}
	if at := v.Revocation.EffectiveAt; !at.IsZero() {
		e.effectiveAt = &at
	}
	return e.life(now)
}

// life is the answer at a time. The words of How beside a revocation's basis: never_made, not_yet_made, self_expires,
// being_minted, active, overdue, lost, being_revoked, stuck, released; and of a trace: contradicted.
func (e ending) life(now time.Time) Life {
	switch s := broker.State(e.state); s {
	case broker.StateFailed:
		return Life{Alive: "no", How: "never_made"}
	case broker.StateIssuing:
		if e.unclaimed {
			return Life{Alive: "no", How: "not_yet_made"}
		}
		return e.open(now, "maybe", "being_minted")
	case broker.StateActive:
		return e.open(now, "yes", "active")
	case broker.StateLost:
		return e.open(now, "maybe", "lost")
	case broker.StateStuck:
		return e.open(now, "maybe", "stuck")
	case broker.StateRevoking:
		if e.result != "" && e.effectiveAt != nil {
			return e.dies(now)
		}
		return e.open(now, "maybe", "being_revoked")
	}
	switch {
	case broker.Result(e.result) == broker.ResultReleased:
		return Life{Alive: "maybe", How: "released"} // the key works until somebody replaces it
	case e.effectiveAt != nil:
		return e.dies(now)
	}
	return e.open(now, "maybe", "overdue")
}

// open is a version whose end was not achieved: it dies by itself at its time, or nobody can say when.
func (e ending) open(now time.Time, alive, how string) Life {
	switch {
	case e.selfExpires && !now.Before(e.expiresAt):
		return Life{Alive: "no", Since: &e.expiresAt, How: "self_expires"}
	case e.selfExpires:
		return Life{Alive: alive, Until: &e.expiresAt, How: how}
	case alive == "yes" && now.Before(e.expiresAt):
		return Life{Alive: alive, Until: &e.expiresAt, How: how}
	case alive == "yes":
		return Life{Alive: "maybe", How: "overdue"}
	}
	return Life{Alive: alive, How: how}
}

// dies is a version of which the upstream's refusal is certain from a time on, which includes the upstream's own lag.
func (e ending) dies(now time.Time) Life {
	at := e.effectiveAt.UTC()
	how := e.basis
	if how == "" {
		how = e.result
	}
	if now.Before(at) {
		return Life{Alive: "maybe", Until: &at, How: how}
	}
	return Life{Alive: "no", Since: &at, How: how}
}

const hashed = "sha256:"

// Fingerprint is a SHA-256 as the record, the API and the pages show it: "sha256:…"; empty for none.
func Fingerprint(sum []byte) string {
	if len(sum) == 0 {
		return ""
	}
	return hashed + hex.EncodeToString(sum)
}

// ParseFingerprint reads what Fingerprint writes, in either case; the 64 digits alone will do.
func ParseFingerprint(text string) ([]byte, error) {
	sum, err := hex.DecodeString(strings.TrimPrefix(strings.ToLower(text), hashed))
	if err != nil || len(sum) != sha256.Size {
		return nil, errors.New("is not sha256: and 64 hexadecimal digits") // err may quote a secret
	}
	return sum, nil
}

// Hashed is what stands on the record for a text that was looked for and is not known here: it may be a secret that
// somebody found.
func Hashed(text string) string {
	sum := sha256.Sum256([]byte(text))
	return Fingerprint(sum[:])
}
