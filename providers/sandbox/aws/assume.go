package aws

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/taskpass/taskpass/providers/sandbox/aws/iampolicy"
)

// Limits of AssumeRole (STS API Reference, AssumeRole; IAM User Guide, "IAM and AWS
// STS quotas"). packedLimit is ours: AWS packs policies and tags in a way it does
// not tell, and answers only with a percentage.
const (
	minDuration     = 900
	maxDuration     = 43200
	defaultDuration = 3600
	maxPolicyChars  = 2048
	maxPolicyARNs   = 10
	maxTags         = 50
	maxTagKey       = 128
	maxTagValue     = 256
	packedLimit     = 4096
)

var (
	namePattern       = regexp.MustCompile(`^[\w+=,.@-]*$`)
	externalIDPattern = regexp.MustCompile(`^[\w+=,.@:/-]*$`)
	policyPattern     = regexp.MustCompile(`^[\x{0009}\x{000A}\x{000D}\x{0020}-\x{00FF}]+$`)
	tagPattern        = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]*$`)
)

// assumeParams is a well-formed AssumeRole request.
type assumeParams struct {
	roleARN, sessionName, externalID, sourceIdentity string
	duration                                         time.Duration
	policyText                                       string
	policyARNs                                       []string
	policies                                         []*iampolicy.Document
	tags, transitive                                 map[string]string
	packedPercent                                    int
}

func (s *Server) readAssumeRole(form url.Values) (*assumeParams, *apiError) {
	p := &assumeParams{
		roleARN:        form.Get("RoleArn"),
		sessionName:    form.Get("RoleSessionName"),
		externalID:     form.Get("ExternalId"),
		sourceIdentity: form.Get("SourceIdentity"),
	}
	for _, f := range []struct {
		name, value string
		min, max    int
		pattern     *regexp.Regexp
		required    bool
	}{
		{"roleArn", p.roleARN, 20, 2048, nil, true},
		{"roleSessionName", p.sessionName, 2, 64, namePattern, true},
		{"externalId", p.externalID, 2, 1224, externalIDPattern, false},
		{"sourceIdentity", p.sourceIdentity, 2, 64, namePattern, false},
	} {
		if !f.required && !form.Has(strings.ToUpper(f.name[:1])+f.name[1:]) {
			continue
		}
		if e := checkText(f.name, f.value, f.min, f.max, f.pattern); e != nil {
			return nil, e
		}
	}
	for _, read := range []func(url.Values) *apiError{p.readDuration, p.readTags} {
		if e := read(form); e != nil {
			return nil, e
		}
	}
	if e := s.readPolicies(p, form); e != nil {
		return nil, e
	}
	return p, p.pack(form)
}

func checkText(name, value string, shortest, longest int, pattern *regexp.Regexp) *apiError {
	constraint := ""
	switch n := utf8.RuneCountInString(value); {
	case n < shortest:
		constraint = "Member must have length greater than or equal to " + strconv.Itoa(shortest)
	case n > longest:
		constraint = "Member must have length less than or equal to " + strconv.Itoa(longest)
	case pattern != nil && !pattern.MatchString(value):
		constraint = "Member must satisfy regular expression pattern: " + strings.Trim(pattern.String(), "^$")
	default:
		return nil
	}
	return constraintError(name, value, constraint)
}

func constraintError(name, value, constraint string) *apiError {
	return validationError(fmt.Sprintf(
		"1 validation error detected: Value '%s' at '%s' failed to satisfy constraint: %s", value, name, constraint))
}

func validationError(message string) *apiError {
	return fail(http.StatusBadRequest, "ValidationError", message)
}

func (p *assumeParams) readDuration(form url.Values) *apiError {
	text, n := form.Get("DurationSeconds"), defaultDuration
	if form.Has("DurationSeconds") {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			return fail(http.StatusBadRequest, "MalformedInput", "Invalid value for DurationSeconds")
		}
	}
	switch {
	case n < minDuration:
		return constraintError("durationSeconds", text, "Member must have value greater than or equal to 900")
	case n > maxDuration:
		return constraintError("durationSeconds", text, "Member must have value less than or equal to 43200")
	}
	p.duration = time.Duration(n) * time.Second
	return nil
}

// readTags also checks what no pattern says: no aws: prefix, no key twice in any case.
func (p *assumeParams) readTags(form url.Values) *apiError {
	p.tags, p.transitive = map[string]string{}, map[string]string{}
	seen := map[string]bool{}
	for i := 1; form.Has(fmt.Sprintf("Tags.member.%d.Key", i)); i++ {
		key, value := form.Get(fmt.Sprintf("Tags.member.%d.Key", i)), form.Get(fmt.Sprintf("Tags.member.%d.Value", i))
		if i > maxTags {
			return constraintError("tags", "", "Member must have length less than or equal to 50")
		}
		if e := checkText(fmt.Sprintf("tags.%d.member.key", i), key, 1, maxTagKey, tagPattern); e != nil {
			return e
		}
		if e := checkText(fmt.Sprintf("tags.%d.member.value", i), value, 0, maxTagValue, tagPattern); e != nil {
			return e
		}
		if strings.HasPrefix(strings.ToLower(key), "aws:") {
			return validationError("Tag keys may not begin with aws:")
		}
		if seen[strings.ToLower(key)] {
			return fail(http.StatusBadRequest, "InvalidParameterValue", "Duplicate tag keys found. Please note that Tag keys are case insensitive.")
		}
		seen[strings.ToLower(key)] = true
		p.tags[key] = value
	}
	for i := 1; form.Has(fmt.Sprintf("TransitiveTagKeys.member.%d", i)); i++ {
		key := form.Get(fmt.Sprintf("TransitiveTagKeys.member.%d", i))
		if e := checkText(fmt.Sprintf("transitiveTagKeys.%d.member", i), key, 1, maxTagKey, tagPattern); e != nil {
			return e
		}
		if !seen[strings.ToLower(key)] {
			return fail(http.StatusBadRequest, "InvalidParameterValue", "The specified transitive tag key must be included in the requested tags.")
		}
		for own, value := range p.tags {
			if strings.EqualFold(own, key) {
				p.transitive[own] = value
			}
		}
	}
	return nil
}

// readPolicies reads the session policies. "The plaintext that you use for both
// inline and managed session policies can't exceed 2,048 characters."
func (s *Server) readPolicies(p *assumeParams, form url.Values) *apiError {
	chars := 0
	if form.Has("Policy") {
		p.policyText = form.Get("Policy")
		chars = utf8.RuneCountInString(p.policyText)
		if e := checkText("policy", p.policyText, 1, maxPolicyChars, policyPattern); e != nil {
			return e
		}
		doc, e := parsePolicy(p.policyText)
		if e != nil {
			return e
		}
		p.policies = append(p.policies, doc)
	}
	for i := 1; form.Has(fmt.Sprintf("PolicyArns.member.%d.arn", i)); i++ {
		arn := form.Get(fmt.Sprintf("PolicyArns.member.%d.arn", i))
		if i > maxPolicyARNs {
			return constraintError("policyArns", "", "Member must have length less than or equal to 10")
		}
		s.mu.RLock()
		managed := s.managed[arn]
		var doc *iampolicy.Document
		if managed != nil {
			doc = managed.effective()
		}
		s.mu.RUnlock()
		if doc == nil {
			return validationError("The managed policy " + arn + " does not exist.")
		}
		chars += len(arn)
		p.policies, p.policyARNs = append(p.policies, doc), append(p.policyARNs, arn)
	}
	if chars > maxPolicyChars {
		return validationError("The plaintext of the session policies exceeds 2048 characters.")
	}
	return nil
}

// isPolicyARN says whether a form field is one of the managed session policies.
func isPolicyARN(field string) bool { return strings.HasPrefix(field, "PolicyArns.") }

// parsePolicy answers a policy that does not read as MalformedPolicyDocument.
func parsePolicy(text string) (*iampolicy.Document, *apiError) {
	doc, err := iampolicy.Parse(text)
	if errors.Is(err, iampolicy.ErrMalformed) {
		return nil, fail(http.StatusBadRequest, "MalformedPolicyDocument",
			strings.TrimPrefix(err.Error(), iampolicy.ErrMalformed.Error()+": "))
	}
	return doc, nil
}

// pack works out PackedPolicySize; the reply has it only if there was something.
func (p *assumeParams) pack(form url.Values) *apiError {
	size := 0
	for name, values := range form {
		if name == "Policy" || isPolicyARN(name) || strings.HasPrefix(name, "Tags.") {
			size += len(values[0])
		}
	}
	p.packedPercent = (size*100 + packedLimit - 1) / packedLimit
	if p.packedPercent > 100 {
		return fail(http.StatusBadRequest, "PackedPolicyTooLarge", fmt.Sprintf(
			"Packed size of session tags consumes %d%% of allotted space.", p.packedPercent))
	}
	return nil
}

// inherit gives the new session what chaining hands down: the source identity, which
// cannot be changed, and transitive tags, which cannot be overridden (IAM User
// Guide, "Monitor and control actions taken with assumed roles", "Pass session tags
// in AWS STS"). What is handed down needs sts:SetSourceIdentity and sts:TagSession
// like what is asked for, so call it before those are looked at.
func (p *assumeParams) inherit(from *session) *apiError {
	if from == nil {
		return nil
	}
	if id := from.info.SourceIdentity; id != "" {
		if p.sourceIdentity != "" && p.sourceIdentity != id {
			return fail(http.StatusForbidden, "AccessDenied", "The source identity of a session cannot be changed by role chaining.")
		}
		p.sourceIdentity = id
	}
	for k := range from.transitive {
		for own := range p.tags {
			if strings.EqualFold(own, k) {
				return fail(http.StatusBadRequest, "InvalidParameterValue",
					"One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key from the calling session.")
			}
		}
	}
	maps.Copy(p.tags, from.transitive)
	maps.Copy(p.transitive, from.transitive)
	return nil
}
