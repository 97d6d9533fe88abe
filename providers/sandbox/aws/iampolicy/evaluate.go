package iampolicy

import (
	"slices"
	"strings"
	"time"
)

// Request is what a policy is asked about.
type Request struct {
	Action   string // "s3:GetObject"
	Resource string // an ARN
	Now      time.Time
	// Context has the condition keys of this request, in lower case, with one value
	// each. aws:CurrentTime comes from Now. A key that the list below names and that is
	// missing here is absent; a key that neither has is unknown.
	Context map[string]string
}

// Outcome is what one document says. Silent is an implicit denial.
type Outcome int

// The outcomes of a document, weakest first: the greatest of several wins.
const (
	Silent Outcome = iota
	Allowed
	Denied
)

// String names the outcome for a test's message.
func (o Outcome) String() string {
	return [...]string{"Silent", "Allowed", "Denied"}[o]
}

// Evaluate says what the document gives the request: Denied if any Deny applies,
// else Allowed if any Allow does, else Silent.
func (d *Document) Evaluate(req Request) Outcome {
	out := Silent
	for i := range d.statements {
		out = max(out, d.statements[i].evaluate(req))
	}
	return out
}

func (st *statement) evaluate(req Request) Outcome {
	fits := st.applies(req)
	switch {
	case st.deny && fits != no:
		return Denied // unsure too: fail closed
	case !st.deny && fits == yes:
		return Allowed
	}
	return Silent
}

// applies is the AND of the statement's parts. One definite no settles it, whatever
// the parts that this package does not understand would have said.
func (st *statement) applies(req Request) truth {
	result := min(st.actions.match(req.Action, req), st.resources.match(req.Resource, req))
	for i := range st.conditions {
		if result == no {
			return no
		}
		result = min(result, st.conditions[i].match(req))
	}
	return result
}

type keyState int

const (
	keyUnknown keyState = iota
	keyAbsent
	keyPresent
)

// known are keys that a request may lack and that are still understood. The
// difference matters: sts:RoleSessionName is set only in the AssumeRole request
// itself, so a Deny on it stops no later request, here as on AWS.
//
// Source: IAM User Guide, "AWS global condition context keys", "Available keys for
// AWS STS"; Service Authorization Reference, "Condition keys for Amazon S3".
var known = []string{
	"aws:currenttime", "aws:userid", "aws:username", "aws:sourceidentity", "aws:tokenissuetime",
	"aws:principalarn", "aws:principalaccount", "aws:principaltype", "aws:securetransport",
	"sts:rolesessionname", "sts:externalid", "sts:sourceidentity",
	"s3:prefix", "s3:delimiter", "s3:max-keys",
}

func (req Request) lookup(key string) (string, keyState) {
	key = strings.ToLower(key)
	if key == "aws:currenttime" {
		return req.Now.UTC().Format(time.RFC3339), keyPresent
	}
	if value, ok := req.Context[key]; ok {
		return value, keyPresent
	}
	if slices.Contains(known, key) ||
		strings.HasPrefix(key, "aws:principaltag/") || strings.HasPrefix(key, "aws:requesttag/") {
		return "", keyAbsent
	}
	return "", keyUnknown
}
