package broker

import (
	"crypto/rand"
	"encoding/base32"

	"github.com/google/uuid"
)

// CredentialID names a credential: "crd_" and 26 characters that sort by time of creation.
type CredentialID string

// VersionID names one version: 16 characters of a-z2-7 (80 random bits). It is short because it is what survives in
// vendors' logs: AWS's RoleSessionName and SourceIdentity, a label, a key's name.
type VersionID string

var (
	sortable = base32.HexEncoding.WithPadding(base32.NoPadding)
	short    = base32.StdEncoding.WithPadding(base32.NoPadding)
)

// NewCredentialID makes a fresh id from a version 7 UUID (RFC 9562).
func NewCredentialID() CredentialID { return CredentialID("crd_" + newSortable()) }

// NewVersionID makes a fresh random id.
func NewVersionID() VersionID {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails: see crypto/rand
	return VersionID(lower(short.EncodeToString(b[:])))
}

// NewEventID makes a fresh id that sorts by time.
func NewEventID() string { return "evt_" + newSortable() }

// NewTokenID makes the public id of a caller's token.
func NewTokenID() string { return "tok_" + newSortable() }

// NewTaskTokenID makes the public id of a task's token.
func NewTaskTokenID() string { return "ttk_" + newSortable() }

// NewRotationID makes the id of a key's rotation.
func NewRotationID() string { return "rot_" + newSortable() }

func newSortable() string {
	u := uuid.Must(uuid.NewV7()) // fails only if the system's random source does, and that one panics by itself
	return lower(sortable.EncodeToString(u[:]))
}

func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
