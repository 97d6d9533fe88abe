package console

import (
	"fmt"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// verdict says whether a version is dead, and how that is known. It never says more than the ledger does.
type verdict struct {
	Kind  string // "alive", "dead", "ending", "unsure"
	Words string
}

// Label is the kind in the words of the drawings' legend.
func (v verdict) Label() string {
	if v.Kind == "unsure" {
		return "may still work"
	}
	return v.Kind
}

// judge words docs/states.md for one version.
func judge(v broker.Version, now time.Time) verdict {
	switch v.State {
	case broker.StateActive:
		switch until := lives(v); {
		case now.After(until):
			return verdict{"ending", "Its time came at " + stamp(until) + ", and its end is due now."}
		case until.Before(v.ExpiresAt):
			return verdict{"alive", "Alive until " + stamp(until) + ", the end of the overlap with the version after it."}
		}
		return verdict{"alive", "Alive until " + stamp(v.ExpiresAt) + "."}
	case broker.StateIssuing:
		if v.Unclaimed {
			return verdict{"alive", "Its ticket is not redeemed: the upstream was not asked yet."}
		}
		return verdict{"alive", "The upstream is being asked; nobody has the secret yet."}
	case broker.StateFailed:
		return verdict{"dead", "It never was: the upstream surely made nothing."}
	case broker.StateLost:
		return verdict{"unsure", "The upstream may have made it, and nobody was given it. It is treated as alive until " + stamp(v.ExpiresAt) + ", and is being ended."}
	case broker.StateStuck:
		if v.Revocation.Basis == "awaiting_rotation" {
			return verdict{"unsure", "It still works until an operator replaces the key: " + basis(v.Revocation.Basis) + "."}
		}
		return verdict{"unsure", fmt.Sprintf("It may still work: it could not be ended in %d attempts (%s). An operator is needed.", v.Attempts, v.LastError)}
	case broker.StateRevoking:
		if v.Revocation.Result == broker.ResultExpires {
			return verdict{"ending", "Nothing can end it early. It dies at " + stamp(v.Revocation.EffectiveAt) + "."}
		}
		return verdict{"ending", fmt.Sprintf("Its end was asked for and is durable; it may still work. Attempts so far: %d.", v.Attempts)}
	}
	return ended(v, now)
}

// lives is until when an active version is left alive: one that has a successor is due at the end of the overlap.
func lives(v broker.Version) time.Time {
	if !v.DueAt.IsZero() && v.DueAt.Before(v.ExpiresAt) {
		return v.DueAt
	}
	return v.ExpiresAt
}

func ended(v broker.Version, now time.Time) verdict {
	kind, from := "dead", "since "
	if v.Revocation.EffectiveAt.After(now) {
		kind, from = "ending", "from "
	}
	from += stamp(v.Revocation.EffectiveAt)
	switch v.Revocation.Result {
	case broker.ResultDestroyed:
		return verdict{kind, "The upstream no longer knows it, " + from + ": " + basis(v.Revocation.Basis) + "."}
	case broker.ResultDenied:
		return verdict{kind, "The upstream refuses it, " + from + ": " + basis(v.Revocation.Basis) + "."}
	case broker.ResultExpires:
		return verdict{kind, "The upstream ends it by itself, " + from + ": " + basis(v.Revocation.Basis) + "."}
	case broker.ResultReleased:
		return verdict{"unsure", "The key went back to its pool and still works; the upstream was not told (" + basis(v.Revocation.Basis) + ")."}
	}
	return verdict{kind, "Ended at " + stamp(v.EndedAt) + "."}
}

// basis explains the machine words by which providers say how an end is known. One that is new stands for itself.
func basis(word string) string {
	if words, ok := map[string]string{
		"self_expires":        "its expiry is part of it",
		"role_policy_written": "a policy on the role denies it",
		"role_cut_off":        "the role denies all that was issued before",
		"account_disabled":    "its service account was disabled",
		"time_over":           "its time was over before the account changed hands",
		"key_deleted":         "its key was deleted",
		"key_replaced":        "the key at the source is another one now",
		"awaiting_rotation":   "whoever has seen it can use it",
		"returned":            "its credential ended as planned",
		"not_held":            "nothing was held for it",
	}[word]; ok {
		return words + " (" + word + ")"
	}
	return word
}
