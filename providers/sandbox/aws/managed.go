package aws

import (
	"cmp"
	"encoding/xml"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/taskpass/taskpass/providers/sandbox/aws/iampolicy"
)

// Limits of managed policies (IAM User Guide, "IAM and AWS STS quotas"). White space
// is not counted.
const (
	maxManagedChars    = 6144
	maxPolicyVersions  = 5
	maxPoliciesPerRole = 10
)

var (
	policyARNPattern = regexp.MustCompile(`^arn:aws:iam::(\d{12}|aws):policy(/(?:[\x21-\x7e]+/)?)([\w+=,.@-]{1,128})$`)
	versionPattern   = regexp.MustCompile(`^v[1-9][0-9]*(\.[A-Za-z0-9-]*)?$`)
)

// managedPolicy is a customer's policy, or one of AWS's own (account "aws"), which
// nobody can change.
type managedPolicy struct {
	arn, account, path, name string
	id                       string
	created                  time.Time
	last                     int // number of the newest version; numbers are not used again
	versions, former         versionSet
}

// versionSet is replaced and never edited, so that the former one stays for StaleRead.
type versionSet struct {
	list    []policyVersion // oldest first
	current string          // the default version
	updated time.Time
}

type policyVersion struct {
	inlinePolicy
	id      string
	created time.Time
}

// newManagedPolicy makes a policy with one version, v1.
func newManagedPolicy(arn, text string, now time.Time) (*managedPolicy, *apiError) {
	parts := policyARNPattern.FindStringSubmatch(arn)
	if parts == nil {
		return nil, invalidARN(arn)
	}
	p := &managedPolicy{
		arn: arn, account: parts[1], path: parts[2], name: parts[3], id: newID("ANPA"), created: now,
	}
	if _, e := p.addVersion(text, true, now); e != nil {
		return nil, e
	}
	p.former = p.versions
	return p, nil
}

// addVersion is CreatePolicyVersion, less the right to do it.
func (p *managedPolicy) addVersion(text string, asDefault bool, now time.Time) (policyVersion, *apiError) {
	doc, e := parsePolicy(text)
	if e != nil {
		return policyVersion{}, e
	}
	if p.account != "aws" && countedChars(text) > maxManagedChars {
		return policyVersion{}, fail(http.StatusConflict, "LimitExceeded", "Cannot exceed quota for PolicySize: "+strconv.Itoa(maxManagedChars))
	}
	if len(p.versions.list) >= maxPolicyVersions {
		return policyVersion{}, fail(http.StatusConflict, "LimitExceeded", "A managed policy can have up to "+strconv.Itoa(maxPolicyVersions)+
			" versions. Before you create a new version, you must delete an existing version.")
	}
	p.last++
	v := policyVersion{id: "v" + strconv.Itoa(p.last), inlinePolicy: inlinePolicy{text: text, doc: doc}, created: now}
	next := versionSet{list: append(slices.Clone(p.versions.list), v), current: p.versions.current, updated: now}
	if asDefault {
		next.current = v.id
	}
	p.change(next)
	return v, nil
}

func (p *managedPolicy) deleteVersion(id string, now time.Time) *apiError {
	if _, ok := p.versions.find(id); !ok {
		return p.noSuchVersion(id)
	}
	if id == p.versions.current {
		return fail(http.StatusConflict, "DeleteConflict", "Cannot delete the default version of a policy.")
	}
	list := slices.DeleteFunc(slices.Clone(p.versions.list), func(v policyVersion) bool { return v.id == id })
	p.change(versionSet{list: list, current: p.versions.current, updated: now})
	return nil
}

func (p *managedPolicy) setDefault(id string, now time.Time) *apiError {
	if _, ok := p.versions.find(id); !ok {
		return p.noSuchVersion(id)
	}
	p.change(versionSet{list: p.versions.list, current: id, updated: now})
	return nil
}

func (p *managedPolicy) change(next versionSet) { p.former, p.versions = p.versions, next }

func (v versionSet) find(id string) (policyVersion, bool) {
	i := slices.IndexFunc(v.list, func(v policyVersion) bool { return v.id == id })
	if i < 0 {
		return policyVersion{}, false
	}
	return v.list[i], true
}

// effective is the version that is in force.
func (p *managedPolicy) effective() *iampolicy.Document {
	v, _ := p.versions.find(p.versions.current)
	return v.doc
}

func (p *managedPolicy) noSuchVersion(id string) *apiError {
	return noSuchEntity("Policy " + p.arn + " version " + id + " does not exist or is not attachable.")
}

func invalidARN(arn string) *apiError {
	return fail(http.StatusBadRequest, "InvalidInput", "ARN "+arn+" is not valid.")
}

func noSuchManagedPolicy(arn string) *apiError {
	return noSuchEntity("Policy " + arn + " was not found.")
}

// policyCalls are the calls that name a managed policy.
var policyCalls = map[string]func(*Server, http.ResponseWriter, *call, *managedPolicy) *apiError{
	"GetPolicy":           (*Server).getPolicy,
	"CreatePolicyVersion": (*Server).createPolicyVersion,
	"DeletePolicyVersion": (*Server).deletePolicyVersion,
	"GetPolicyVersion":    (*Server).getPolicyVersion,
	"ListPolicyVersions":  (*Server).listPolicyVersions,
}

// servePolicy finds the policy and asks whether the caller may. A policy belongs to
// an account; AWS's own may be read by all and changed by none.
func (s *Server) servePolicy(w http.ResponseWriter, c *call) *apiError {
	arn := c.Form.Get("PolicyArn")
	if e := checkText("policyArn", arn, 20, 2048, nil); e != nil {
		return e
	}
	if c.action == "GetPolicyVersion" || c.action == "DeletePolicyVersion" {
		if e := checkText("versionId", c.Form.Get("VersionId"), 1, 2048, versionPattern); e != nil {
			return e
		}
	}
	parts := policyARNPattern.FindStringSubmatch(arn)
	if parts == nil {
		return invalidARN(arn)
	}
	action := "iam:" + c.action
	if e := s.authorize(c, action, arn, nil); e != nil {
		return e
	}
	writes := c.action == "CreatePolicyVersion" || c.action == "DeletePolicyVersion"
	if parts[1] != c.who.account && (writes || parts[1] != "aws") {
		return c.denied(action, arn, "because no resource-based policy allows the "+action+" action")
	}
	s.mu.RLock()
	p := s.managed[arn]
	s.mu.RUnlock()
	if p == nil {
		return noSuchManagedPolicy(arn)
	}
	return policyCalls[c.action](s, w, c, p)
}

// readVersions is what a read sees: with StaleRead, what was there before the last
// change.
func (s *Server) readVersions(c *call, p *managedPolicy) versionSet {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if c.stale {
		return p.former
	}
	return p.versions
}

func (s *Server) getPolicy(w http.ResponseWriter, c *call, p *managedPolicy) *apiError {
	type xmlPolicy struct {
		PolicyName                    string
		PolicyID                      string `xml:"PolicyId"`
		Arn                           string
		Path                          string
		DefaultVersionID              string `xml:"DefaultVersionId"`
		AttachmentCount               int
		PermissionsBoundaryUsageCount int
		IsAttachable                  bool
		CreateDate                    string
		UpdateDate                    string
	}
	type result struct {
		XMLName xml.Name `xml:"GetPolicyResult"`
		Policy  xmlPolicy
	}
	versions := s.readVersions(c, p)
	attached := 0
	s.mu.RLock()
	for _, r := range s.roles {
		if slices.Contains(r.policies.attached, p.arn) {
			attached++
		}
	}
	s.mu.RUnlock()
	writeResult(w, c, result{Policy: xmlPolicy{
		PolicyName: p.name, PolicyID: p.id, Arn: p.arn, Path: p.path, DefaultVersionID: versions.current,
		AttachmentCount: attached, IsAttachable: true, CreateDate: xmlTime(p.created), UpdateDate: xmlTime(versions.updated),
	}})
	return nil
}

// xmlVersion has a document only in GetPolicyVersion's reply, percent-encoded.
type xmlVersion struct {
	Document         string `xml:",omitempty"`
	VersionID        string `xml:"VersionId"`
	IsDefaultVersion bool
	CreateDate       string
}

func (v versionSet) xml(of policyVersion) xmlVersion {
	return xmlVersion{VersionID: of.id, IsDefaultVersion: of.id == v.current, CreateDate: xmlTime(of.created)}
}

func (s *Server) createPolicyVersion(w http.ResponseWriter, c *call, p *managedPolicy) *apiError {
	type result struct {
		XMLName       xml.Name `xml:"CreatePolicyVersionResult"`
		PolicyVersion xmlVersion
	}
	text := c.Form.Get("PolicyDocument")
	if e := checkText("policyDocument", text, 1, 131_072, policyPattern); e != nil {
		return e
	}
	s.mu.Lock()
	v, e := p.addVersion(text, c.Form.Get("SetAsDefault") == "true", c.now)
	versions := p.versions
	s.mu.Unlock()
	if e != nil {
		return e
	}
	writeResult(w, c, result{PolicyVersion: versions.xml(v)})
	return nil
}

func (s *Server) deletePolicyVersion(w http.ResponseWriter, c *call, p *managedPolicy) *apiError {
	s.mu.Lock()
	e := p.deleteVersion(c.Form.Get("VersionId"), c.now)
	s.mu.Unlock()
	if e != nil {
		return e
	}
	writeResult(w, c, nil)
	return nil
}

func (s *Server) getPolicyVersion(w http.ResponseWriter, c *call, p *managedPolicy) *apiError {
	type result struct {
		XMLName       xml.Name `xml:"GetPolicyVersionResult"`
		PolicyVersion xmlVersion
	}
	id := c.Form.Get("VersionId")
	versions := s.readVersions(c, p)
	v, ok := versions.find(id)
	if !ok {
		return p.noSuchVersion(id)
	}
	out := result{PolicyVersion: versions.xml(v)}
	out.PolicyVersion.Document = uriEncode(v.text, false)
	writeResult(w, c, out)
	return nil
}

// listPolicyVersions lists the newest first.
func (s *Server) listPolicyVersions(w http.ResponseWriter, c *call, p *managedPolicy) *apiError {
	type result struct {
		XMLName  xml.Name `xml:"ListPolicyVersionsResult"`
		Versions struct {
			Member []xmlVersion `xml:"member"`
		}
		IsTruncated bool
		Marker      string `xml:",omitempty"`
	}
	if m := c.Form.Get("Marker"); m != "" && !versionPattern.MatchString(m) {
		return fail(http.StatusBadRequest, "InvalidInput", "Invalid Marker.")
	}
	versions := s.readVersions(c, p)
	newest := slices.Clone(versions.list)
	slices.Reverse(newest)
	part, marker, e := page(c.Form, newest, func(v policyVersion) string { return v.id },
		func(a, b string) int { return cmp.Compare(versionNumber(b), versionNumber(a)) })
	if e != nil {
		return e
	}
	out := result{IsTruncated: marker != "", Marker: marker}
	for _, v := range part {
		out.Versions.Member = append(out.Versions.Member, versions.xml(v))
	}
	writeResult(w, c, out)
	return nil
}

func versionNumber(id string) int {
	digits, _, _ := strings.Cut(strings.TrimPrefix(id, "v"), ".")
	n, _ := strconv.Atoi(digits)
	return n
}
