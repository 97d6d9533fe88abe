package console

import (
	"fmt"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
)

// verdict says whether a version is dead, and how that is known: the words for an audit.Life, and no more than it says.
type verdict struct {
	Kind  string // "alive", "dead", "ending", "unsure": the colour
	Label string // goes before the words
	Words string
}

func (v verdict) String() string { return v.Label + " " + v.Words }

// judge words what the ledger knows of a version.
func judge(v broker.Version, life audit.Life, now time.Time) verdict {
	switch left := lives(v); {
	case life.How == "active" && left.Before(v.ExpiresAt) && now.After(left):
		return verdict{"ending", "ending", "its time came at " + stamp(left) + ", and its end is due now."}
	case life.How == "active" && left.Before(v.ExpiresAt):
		return verdict{"alive", "alive", "until " + stamp(left) + ", the end of the overlap with the version after it."}
	case life.How == "stuck" && v.Revocation.Basis == "awaiting_rotation":
		return verdict{"unsure", "may still work", "until an operator replaces the key: " + basis(v.Revocation.Basis) + "."}
	}
	said := worded(life)
	switch life.How {
	case "stuck":
		said.Words += fmt.Sprintf(" It could not be ended in %d attempts (%s).", v.Attempts, v.LastError)
	case "being_revoked":
		said.Words += fmt.Sprintf(" Attempts so far: %d.", v.Attempts)
	}
	return said
}

// lives is until when an active version is left alive: one that has a successor is due at the end of the overlap.
func lives(v broker.Version) time.Time {
	if !v.DueAt.IsZero() && v.DueAt.Before(v.ExpiresAt) {
		return v.DueAt
	}
	return v.ExpiresAt
}

// worded says a life in words.
func worded(l audit.Life) verdict {
	until := ""
	if l.Until != nil {
		until = " Until " + stamp(*l.Until) + " at the latest."
	}
	switch l.How {
	case "active":
		return verdict{"alive", "alive", "until " + stamp(*l.Until) + "."}
	case "never_made":
		return verdict{"dead", "dead", "it never was: the upstream surely made nothing."}
	case "not_yet_made":
		return verdict{"dead", "not made yet", "its ticket is not redeemed: the upstream was not asked."}
	case "being_minted":
		return verdict{"ending", "being made", "the upstream is being asked; nobody has the secret yet." + until}
	case "lost":
		return verdict{"unsure", "may still work", "the upstream may have made it, and nobody was given it; it is being ended." + until}
	case "being_revoked":
		return verdict{"ending", "ending", "its end was asked for and is durable; it may still work." + until}
	case "stuck":
		return verdict{"unsure", "may still work", "its end was asked for and is not achieved: an operator is needed." + until}
	case "overdue":
		return verdict{"ending", "ending", "its time is over, and its end is due now."}
	case "contradicted":
		return verdict{"unsure", "not known", "the ledger and the record tell of two ends."}
	case "released":
		return verdict{"unsure", "may still work", "the key went back to its pool and works until somebody replaces it; the upstream was not told."}
	}
	switch {
	case l.Since != nil:
		return verdict{"dead", "dead", "since " + stamp(*l.Since) + ": " + basis(l.How) + "."}
	case l.Until != nil:
		return verdict{"ending", "ending", "surely dead from " + stamp(*l.Until) + " on: " + basis(l.How) + "."}
	}
	return verdict{"unsure", "may still work", basis(l.How) + "."}
}

// basis explains the machine words by which an end is known. One that is new stands for itself.
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
		"destroyed":           "the upstream no longer knows it",
		"denied":              "the upstream refuses it",
		"expires":             "the upstream ends it by itself",
	}[word]; ok {
		return words + " (" + word + ")"
	}
	return word
}
