package aws

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
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

	// What is upstream, as fingerprints of documents: what was last seen to be written, and what may have been written since
	// by requests that nobody saw answered.
	Written   string    `json:"written,omitempty"`
	Intended  []string  `json:"intended,omitempty"`
	WrittenAt time.Time `json:"written_at,omitzero"`

	away bool // it cannot be used: it is not attached to the role
}

func (s *shelf) managed() bool { return s.Name != PolicyName }

// settled tells whether what is upstream is known to be the document.
func (s *shelf) settled(document string) bool {
	return s.Written == fingerprint(document) && len(s.Intended) == 0
}

// shape is how entries are written.
type shape struct {
	key    string    // the condition key
	prefix string    // before each version's id
	cutOff time.Time // sessions that were issued before it are refused; zero: none
}

// document is a shelf's policy; empty when there is nothing to say.
func (s *shelf) document(f shape) string {
	p := policy{Version: "2012-10-17"}
	if len(s.Members) > 0 {
		entries := make(oneOrMany, len(s.Members))
		for i, id := range s.Members {
			entries[i] = f.prefix + string(id)
		}
		slices.Sort(entries)
		p.Statement = append(p.Statement, denyIf("StringEquals", f.key, entries))
	}
	switch {
	case s.managed() && len(s.Members) == 0: // a managed policy cannot be empty: this one is nobody's
		p.Statement = append(p.Statement, denyIf("StringEquals", f.key, oneOrMany{"nobody"}))
	case !s.managed() && !f.cutOff.IsZero():
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

// frame is what a document has beside its entries, at most.
func (s *shelf) frame(f shape) int {
	empty := shelf{Name: s.Name, Members: []broker.VersionID{"", ""}} // two, so that the list has its brackets
	return len(empty.document(f)) - 2*len(`"",`) - 2*len(f.prefix)
}

// arrange puts every wanted version on one shelf. What has a place keeps it, so that few policies change; what is new
// goes to the first shelf with room, those that live longest first. It returns what fits nowhere.
//
// room is how many characters each shelf may have.
func arrange(shelves []*shelf, wanted []broker.Denial, f shape, room func(*shelf) int) (unfit []broker.VersionID) {
	entry := len(`"",`) + len(f.prefix) + versionIDLength
	open := make(map[broker.VersionID]broker.Denial, len(wanted))
	for _, w := range wanted {
		open[w.ID] = w
	}
	space := make([]int, len(shelves))
	for i, s := range shelves {
		if !s.away {
			space[i] = max(0, (room(s)-s.frame(f))/entry)
		}
		s.Members = slices.DeleteFunc(s.Members, func(id broker.VersionID) bool {
			if _, want := open[id]; !want || space[i] == 0 {
				return true
			}
			delete(open, id)
			space[i]--
			return false
		})
	}
	left := make([]broker.Denial, 0, len(open))
	for _, w := range open {
		left = append(left, w)
	}
	slices.SortFunc(left, func(a, b broker.Denial) int {
		if byEnd := b.ExpiresAt.Compare(a.ExpiresAt); byEnd != 0 {
			return byEnd
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
	for _, w := range left {
		i := slices.IndexFunc(space, func(n int) bool { return n > 0 })
		if i < 0 {
			unfit = append(unfit, w.ID)
			continue
		}
		shelves[i].Members = append(shelves[i].Members, w.ID)
		space[i]--
	}
	return unfit
}

const versionIDLength = 16

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
