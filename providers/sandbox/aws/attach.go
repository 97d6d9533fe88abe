package aws

import (
	"encoding/xml"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// policySet is a role's policies beside the one it was made with. It is replaced and
// never edited, so that the former one stays for StaleRead.
type policySet struct {
	inline   map[string]inlinePolicy
	attached []string // ARNs of managed policies, sorted
}

func (r *role) change(next policySet) { r.former, r.policies = r.policies, next }

func (r *role) putInline(name string, p inlinePolicy) {
	next := maps.Clone(r.policies.inline)
	next[name] = p
	r.change(policySet{inline: next, attached: r.policies.attached})
}

func (r *role) deleteInline(name string) bool {
	if _, ok := r.policies.inline[name]; !ok {
		return false
	}
	next := maps.Clone(r.policies.inline)
	delete(next, name)
	r.change(policySet{inline: next, attached: r.policies.attached})
	return true
}

// readPolicySet is what a read sees: with StaleRead, what was there before the last
// change.
func (s *Server) readPolicySet(c *call, r *role) policySet {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if c.stale {
		return r.former
	}
	return r.policies
}

// listAttachedRolePolicies lists by ARN; PathPrefix picks.
func (s *Server) listAttachedRolePolicies(w http.ResponseWriter, c *call, r *role) *apiError {
	type attached struct {
		PolicyName string
		PolicyArn  string
	}
	type result struct {
		XMLName          xml.Name `xml:"ListAttachedRolePoliciesResult"`
		AttachedPolicies struct {
			Member []attached `xml:"member"`
		}
		IsTruncated bool
		Marker      string `xml:",omitempty"`
	}
	var arns []string
	for _, arn := range s.readPolicySet(c, r).attached {
		if strings.HasPrefix(policyARNPattern.FindStringSubmatch(arn)[2], c.Form.Get("PathPrefix")) {
			arns = append(arns, arn)
		}
	}
	part, marker, e := page(c.Form, arns, func(arn string) string { return arn }, strings.Compare)
	if e != nil {
		return e
	}
	out := result{IsTruncated: marker != "", Marker: marker}
	for _, arn := range part {
		name := policyARNPattern.FindStringSubmatch(arn)[3]
		out.AttachedPolicies.Member = append(out.AttachedPolicies.Member, attached{PolicyName: name, PolicyArn: arn})
	}
	writeResult(w, c, out)
	return nil
}

// AddManagedPolicy makes a managed policy, as its operator would: a customer's
// (arn:aws:iam::<12 digits>:policy/[path/]name) or one of AWS's
// (arn:aws:iam::aws:policy/…). Its version v1 is the default. It is an error if the ARN
// is taken or if IAM would refuse the document.
func (s *Server) AddManagedPolicy(arn, document string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.managed[arn] != nil {
		return fmt.Errorf("sandbox aws: managed policy %s is there already", arn)
	}
	p, e := newManagedPolicy(arn, document, s.cfg.Now())
	if e != nil {
		return operatorError("managed policy "+arn, e)
	}
	s.managed[arn] = p
	return nil
}

// AttachRolePolicy attaches a managed policy to a role: from now on its default
// version counts for every session of the role. Attached already is no error.
func (s *Server) AttachRolePolicy(role, policyARN string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.roles[role]
	if r == nil {
		return noRole(role)
	}
	p := s.managed[policyARN]
	if p == nil || p.account != "aws" && p.account != r.AccountID {
		return operatorError("role "+role, noSuchEntity("Policy "+policyARN+" does not exist or is not attachable."))
	}
	if slices.Contains(r.policies.attached, policyARN) {
		return nil
	}
	if len(r.policies.attached) >= maxPoliciesPerRole {
		return operatorError("role "+role, fail(http.StatusConflict, "LimitExceeded",
			"Cannot exceed quota for PoliciesPerRole: "+strconv.Itoa(maxPoliciesPerRole)))
	}
	attached := append(slices.Clone(r.policies.attached), policyARN)
	slices.Sort(attached)
	r.change(policySet{inline: r.policies.inline, attached: attached})
	return nil
}

// DetachRolePolicy takes a managed policy off a role. It is an error if it is not on.
func (s *Server) DetachRolePolicy(role, policyARN string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.roles[role]
	if r == nil {
		return noRole(role)
	}
	if !slices.Contains(r.policies.attached, policyARN) {
		return operatorError("role "+role, noSuchEntity("Policy "+policyARN+" was not found."))
	}
	attached := slices.DeleteFunc(slices.Clone(r.policies.attached), func(arn string) bool { return arn == policyARN })
	r.change(policySet{inline: r.policies.inline, attached: attached})
	return nil
}

// AttachedPolicies are the ARNs of a role's managed policies, sorted; nil if there is
// no such role.
func (s *Server) AttachedPolicies(role string) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.roles[role]
	if r == nil {
		return nil
	}
	return append([]string{}, r.policies.attached...)
}

// PolicyVersion is one version of a managed policy.
type PolicyVersion struct {
	ID       string // v1 …
	Document string
	Default  bool
	Created  time.Time
}

// PolicyVersions are a managed policy's versions, oldest first; nil if there is no
// such policy.
func (s *Server) PolicyVersions(arn string) []PolicyVersion {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p := s.managed[arn]
	if p == nil {
		return nil
	}
	out := make([]PolicyVersion, 0, len(p.versions.list))
	for _, v := range p.versions.list {
		out = append(out, PolicyVersion{ID: v.id, Document: v.text, Default: v.id == p.versions.current, Created: v.created})
	}
	return out
}

// AddPolicyVersion edits a managed policy behind the broker's back, by IAM's rules, and
// returns the new version's id.
func (s *Server) AddPolicyVersion(arn, document string, asDefault bool) (string, error) {
	var id string
	err := s.editPolicy(arn, func(p *managedPolicy) *apiError {
		v, e := p.addVersion(document, asDefault, s.cfg.Now())
		id = v.id
		return e
	})
	return id, err
}

// SetDefaultPolicyVersion puts another version of a managed policy in force, behind the
// broker's back.
func (s *Server) SetDefaultPolicyVersion(arn, version string) error {
	return s.editPolicy(arn, func(p *managedPolicy) *apiError { return p.setDefault(version, s.cfg.Now()) })
}

func (s *Server) editPolicy(arn string, edit func(*managedPolicy) *apiError) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.managed[arn]
	if p == nil {
		return operatorError("managed policy "+arn, noSuchManagedPolicy(arn))
	}
	if e := edit(p); e != nil {
		return operatorError("managed policy "+arn, e)
	}
	return nil
}

func noRole(name string) error { return fmt.Errorf("sandbox aws: no role %q", name) }

func operatorError(what string, e *apiError) error {
	return errors.New("sandbox aws: " + what + ": " + e.code + ": " + e.message)
}
