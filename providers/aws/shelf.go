package aws

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Limits of IAM, in characters without white space, of which our documents have none:
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html
const (
	inlineRoom  = 10_240 // of all inline policies of a role together
	managedRoom = 6_144  // of one managed policy
)

// shelf is one policy that holds denials: the role's inline one, or a managed one.
type shelf struct {
	Name    string             `json:"name"` // the inline policy's name, or a managed policy's ARN
	Members []broker.VersionID `json:"members,omitempty"`

	// What is upstream, as fingerprints of documents: what was last known to be there; what may have been written since by
	// requests that nobody saw answered; and our own of before, which a slow write or a read that is behind may bring back.
	Written   string    `json:"written,omitempty"`
	Intended  []string  `json:"intended,omitempty"`
	Past      []string  `json:"past,omitempty"`
	WrittenAt time.Time `json:"written_at,omitzero"`

	Attached bool `json:"attached,omitempty"` // of a managed one: to the role, when it was last looked at
}

func (s *shelf) managed() bool { return s.Name != PolicyName }

// usable tells whether a denial in it denies.
func (s *shelf) usable() bool { return !s.managed() || s.Attached }

// untouched tells whether a managed policy was never written and is not needed: it is left as the operator made it.
func (s *shelf) untouched() bool {
	return s.managed() && len(s.Members) == 0 && s.Written == "" && len(s.Intended) == 0
}

// settled tells whether what is upstream is known to be the document.
func (s *shelf) settled(document string) bool {
	return s.Written == fingerprint(document) && len(s.Intended) == 0
}

// shape is how entries are written.
type shape struct {
	bySource map[broker.VersionID]bool // told by their source identity: all others by their user id, which every session has
	sources  bool                      // there may be some of these
	cutOff   time.Time                 // sessions that were issued before it are refused; zero: none
	cuts     bool                      // there may be a cut-off: its room is kept
}

// entry is a condition on one session. A user id is <role id>:<session name>, and the policy is the role's own, so the name
// is enough: that halves an entry, and a role that was made anew needs no other one.
func (f shape) entry(id broker.VersionID) (key, value string) {
	if f.bySource[id] {
		return "aws:SourceIdentity", string(id)
	}
	return "aws:userid", "*:" + string(id)
}

// size is what an entry takes: the quotes and the comma too.
func (f shape) size(id broker.VersionID) int {
	_, value := f.entry(id)
	return len(value) + len(`"",`)
}

// document is a shelf's policy; empty when there is nothing to say.
func (s *shelf) document(f shape) string {
	entries := map[string]oneOrMany{}
	for _, id := range s.Members {
		key, value := f.entry(id)
		entries[key] = append(entries[key], value)
	}
	if s.managed() && len(entries) == 0 { // a managed policy cannot be empty: this one is nobody's
		entries["aws:userid"] = oneOrMany{"nobody"}
	}
	p := policy{Version: "2012-10-17"}
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		slices.Sort(entries[key])
		p.Statement = append(p.Statement, denyIf("StringLike", key, entries[key]))
	}
	if !s.managed() && !f.cutOff.IsZero() {
		p.Statement = append(p.Statement, denyIf("DateLessThan", "aws:TokenIssueTime", oneOrMany{f.cutOff.UTC().Format(time.RFC3339)}))
	}
	if len(p.Statement) == 0 {
		return ""
	}
	text, _ := json.Marshal(p) // strings always encode
	return string(text)
}

func denyIf(operator, key string, values oneOrMany) statement {
	return statement{Effect: "Deny", Action: oneOrMany{"*"}, Resource: oneOrMany{"*"},
		Condition: map[string]map[string]oneOrMany{operator: {key: values}}}
}

// frame is what a document may have beside its entries, at most. The room of a cut-off is kept from the beginning: one that
// came would else push an entry out.
func (s *shelf) frame(f shape) int {
	empty := policy{Version: "2012-10-17", Statement: []statement{denyIf("StringLike", "aws:userid", oneOrMany{"", ""})}}
	entries := 2 * len(`"",`)
	if f.sources {
		empty.Statement = append(empty.Statement, denyIf("StringLike", "aws:SourceIdentity", oneOrMany{"", ""}))
		entries *= 2
	}
	if f.cuts && !s.managed() {
		empty.Statement = append(empty.Statement, denyIf("DateLessThan", "aws:TokenIssueTime", oneOrMany{"2006-01-02T15:04:05Z"}))
	}
	text, _ := json.Marshal(empty) // strings always encode
	return len(text) - entries
}

// arrange puts every wanted version on one shelf. What has a place keeps it, so that few policies change; what is new
// goes to the first shelf with room: first what was said to be denied, then what lives longest. It returns what fits nowhere.
//
// room is how many characters each shelf may have.
func arrange(shelves []*shelf, wanted []broker.Denial, f shape, room func(*shelf) int) (unfit []broker.VersionID) {
	open := make(map[broker.VersionID]broker.Denial, len(wanted))
	for _, w := range wanted {
		open[w.ID] = w
	}
	space := make([]int, len(shelves))
	for i, s := range shelves {
		if s.usable() {
			space[i] = room(s) - s.frame(f)
		}
		s.Members = slices.DeleteFunc(s.Members, func(id broker.VersionID) bool {
			if _, want := open[id]; !want || space[i] < f.size(id) {
				return true
			}
			delete(open, id)
			space[i] -= f.size(id)
			return false
		})
	}
	left := slices.SortedFunc(maps.Values(open), func(a, b broker.Denial) int {
		if a.Done != b.Done { // somebody was told that it is denied
			if a.Done {
				return -1
			}
			return 1
		}
		if byEnd := b.ExpiresAt.Compare(a.ExpiresAt); byEnd != 0 {
			return byEnd
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
	for _, w := range left {
		i := slices.IndexFunc(space, func(n int) bool { return n >= f.size(w.ID) })
		if i < 0 {
			unfit = append(unfit, w.ID)
			continue
		}
		shelves[i].Members = append(shelves[i].Members, w.ID)
		space[i] -= f.size(w.ID)
	}
	return unfit
}

// fingerprint is the SHA-256 of a policy's meaning, whatever the order of its fields and its white space; empty for no
// policy.
func fingerprint(document string) string {
	if document == "" {
		return ""
	}
	var meaning any
	text := []byte(document)
	if json.Unmarshal(text, &meaning) == nil {
		text, _ = json.Marshal(meaning) // what was just decoded encodes
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
