package gcp

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"cloud.google.com/go/auth/credentials/downscope"

	"github.com/taskpass/taskpass/broker"
)

// checkPrefix refuses what is no beginning of an object's name, and what would let one task's prefix match another's
// objects.
func checkPrefix(text string) error {
	if len(text) > maxObjectName || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return errors.New("is no beginning of an object's name")
	}
	return broker.Template(text).CheckApart(broker.MatchPrefix)
}

// oauthScopes are those of all of the credential's scopes, sorted, each once.
func (c Config) oauthScopes(names []string) []string {
	var list []string
	for _, name := range names {
		if s := c.Scopes[name]; len(s.OAuth) > 0 {
			list = append(list, s.OAuth...)
		} else {
			list = append(list, cloudPlatform)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// boundary is the Credential Access Boundary of the credential's scopes, and its hash; none where no scope has rules.
//
// A boundary bounds the whole token: a scope without rules beside one with rules would lose everything else it means, so
// that is refused. Rules for the same bucket and prefix are joined.
func (c Config) boundary(cred broker.Credential) (rules []downscope.AccessBoundaryRule, hash string, err error) {
	unbounded := false
	for _, name := range cred.Scopes {
		list := c.Scopes[name].Boundary
		unbounded = unbounded || len(list) == 0
		for _, r := range list {
			rule, err := r.resolve(cred)
			if err != nil {
				return nil, "", err
			}
			rules = join(rules, rule)
		}
	}
	if len(rules) == 0 {
		return nil, "", nil
	}
	if unbounded || len(rules) > maxRules {
		e := broker.Errorf(broker.CodeInvalidRequest,
			"the scopes %s do not fit into one access boundary: Google takes %d rules, and all scopes must have some", strings.Join(cred.Scopes, ", "), maxRules)
		e.Faults = []broker.Fault{{Pointer: "/scopes", Reason: "do not fit into one access boundary"}}
		return nil, "", e
	}
	for i := range rules {
		slices.Sort(rules[i].AvailablePermissions)
		rules[i].AvailablePermissions = slices.Compact(rules[i].AvailablePermissions)
	}
	text, err := json.Marshal(rules)
	if err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(text)
	return rules, hex.EncodeToString(sum[:]), nil
}

func join(rules []downscope.AccessBoundaryRule, r downscope.AccessBoundaryRule) []downscope.AccessBoundaryRule {
	for i, have := range rules {
		if have.AvailableResource == r.AvailableResource && condition(have) == condition(r) {
			rules[i].AvailablePermissions = append(have.AvailablePermissions, r.AvailablePermissions...)
			return rules
		}
	}
	return append(rules, r)
}

func condition(r downscope.AccessBoundaryRule) string {
	if r.Condition == nil {
		return ""
	}
	return r.Condition.Expression
}

// resolve makes the rule for one credential. A list is judged by the prefix that it asks for, since it has no object.
func (r Rule) resolve(c broker.Credential) (downscope.AccessBoundaryRule, error) {
	out := downscope.AccessBoundaryRule{AvailableResource: "//storage.googleapis.com/projects/_/buckets/" + r.Bucket}
	for _, role := range r.Roles {
		out.AvailablePermissions = append(out.AvailablePermissions, "inRole:"+role)
	}
	if r.Prefix == "" {
		return out, nil
	}
	prefix, err := broker.Template(r.Prefix).Fill(c.Placeholder)
	if err != nil {
		return out, err
	}
	out.Condition = &downscope.AvailabilityCondition{Expression: fmt.Sprintf(
		"resource.name.startsWith(%s) || api.getAttribute('storage.googleapis.com/objectListPrefix', '').startsWith(%s)",
		quoteCEL("projects/_/buckets/"+r.Bucket+"/objects/"+prefix), quoteCEL(prefix))}
	return out, nil
}

// quoteCEL writes a string literal of CEL. Go's escapes of ASCII text are among CEL's.
func quoteCEL(s string) string { return strconv.QuoteToASCII(s) }
