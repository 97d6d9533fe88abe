package broker

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Task is a caller's unit of work, as far as the ledger knows of it.
type Task struct {
	Caller  string
	ID      string
	Parent  string // empty: none
	EndedAt time.Time
	Outcome string // the caller's own word for how it ended
}

// TaskView is a task and all that it holds, as one caller may see it.
type TaskView struct {
	Task
	Credentials []Credential // the newest of them, at most taskPage
	HasMore     bool         // there are older ones that are not listed
	Pending     int64        // of an ended task: versions, also of the tasks below it, whose end is still being achieved
}

// MaxIDLength is the longest task or agent id, in bytes.
const MaxIDLength = 128

// ValidID tells whether s may be a task's or an agent's id: 1-128 of A-Z a-z 0-9 . _ : @ -, and
// not only dots: clients remove "." and ".." from a URL's path, and so call another path.
//
// The alphabet is a security boundary, for ids are put into upstream policies: no slash, so that no task's prefix
// contains another's; no wildcard, quote or dollar sign, so that none can widen a pattern or close a string.
func ValidID(s string) bool {
	return 0 < len(s) && len(s) <= MaxIDLength && idText(s) && strings.Trim(s, ".") != ""
}

// idText tells whether a text could be part of an id.
func idText(s string) bool {
	for i := range len(s) {
		if !idByte(s[i]) {
			return false
		}
	}
	return true
}

func idByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return c == '.' || c == '_' || c == ':' || c == '@' || c == '-'
}

// Limits of a request's metadata, whose values may reach the upstream as tags.
const (
	MaxMetadataEntries = 16
	MaxMetadataKey     = 64
	MaxMetadataValue   = 256
)

// CheckMetadata returns what is wrong with a request's metadata; keys are ids, values any text up to 256 bytes.
func CheckMetadata(m map[string]string) []Fault {
	var faults []Fault
	if len(m) > MaxMetadataEntries {
		faults = append(faults, Fault{"/metadata", "has more than 16 entries"})
	}
	for k, v := range m {
		if !ValidID(k) || len(k) > MaxMetadataKey {
			faults = append(faults, Fault{"/metadata", "has a key that is not 1-64 of A-Z a-z 0-9 . _ : @ -, and not only dots"})
		} else if len(v) > MaxMetadataValue || !utf8.ValidString(v) || strings.ContainsFunc(v, unicode.IsControl) {
			faults = append(faults, Fault{"/metadata", "is not at most 256 bytes of text without control characters"})
		}
	}
	return faults
}
