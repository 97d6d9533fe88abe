package aws

import (
	"encoding/json"
	"encoding/xml"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// maxInlineChars is what all inline policies of a role have together, white space
// not counted (IAM User Guide, "IAM and AWS STS quotas").
const maxInlineChars = 10_240

// serveIAM does the calls that a broker needs on a role.
func (s *Server) serveIAM(w http.ResponseWriter, c *call) *apiError {
	do, ok := map[string]func(http.ResponseWriter, *call, *role) *apiError{
		"GetRole":          s.getRole,
		"PutRolePolicy":    s.putRolePolicy,
		"GetRolePolicy":    s.getRolePolicy,
		"DeleteRolePolicy": s.deleteRolePolicy,
		"ListRolePolicies": s.listRolePolicies,
	}[c.action]
	if !ok {
		return invalidAction(c, "2010-05-08")
	}
	name := c.Form.Get("RoleName")
	if e := checkText("roleName", name, 1, 64, namePattern); e != nil {
		return e
	}
	if strings.HasSuffix(c.action, "RolePolicy") {
		if e := checkText("policyName", c.Form.Get("PolicyName"), 1, 128, namePattern); e != nil {
			return e
		}
	}
	s.mu.RLock()
	r := s.roles[name]
	s.mu.RUnlock()
	// IAM is by account: a role of another account is not to be found by name.
	if r != nil && r.AccountID != c.who.account {
		r = nil
	}
	arn := "arn:aws:iam::" + c.who.account + ":role/" + name
	if e := s.authorize(c, "iam:"+c.action, arn, nil); e != nil {
		return e
	}
	if r == nil {
		return noSuchEntity("The role with name " + name + " cannot be found.")
	}
	return do(w, c, r)
}

func noSuchEntity(message string) *apiError {
	return fail(http.StatusNotFound, "NoSuchEntity", message)
}

func noSuchPolicy(name string) *apiError {
	return noSuchEntity("The role policy with name " + name + " cannot be found.")
}

func (s *Server) getRole(w http.ResponseWriter, c *call, r *role) *apiError {
	type xmlRole struct {
		Path                     string
		RoleName                 string
		RoleID                   string `xml:"RoleId"`
		Arn                      string
		CreateDate               string
		AssumeRolePolicyDocument string
		MaxSessionDuration       int
	}
	type result struct {
		XMLName xml.Name `xml:"GetRoleResult"`
		Role    xmlRole
	}
	writeResult(w, c, result{Role: xmlRole{
		Path: "/", RoleName: r.Name, RoleID: r.RoleID, Arn: r.arn(), CreateDate: xmlTime(r.created),
		AssumeRolePolicyDocument: uriEncode(r.trustDocument(), false),
		MaxSessionDuration:       int(r.MaxSessionDuration.Seconds()),
	}})
	return nil
}

// trustDocument is the trust policy that r's fields amount to.
func (r *role) trustDocument() string {
	statement := map[string]any{
		"Effect": "Allow", "Action": []string{"sts:AssumeRole", "sts:SetSourceIdentity", "sts:TagSession"},
		"Principal": map[string]any{"AWS": r.TrustedARNs},
	}
	if r.ExternalID != "" {
		statement["Condition"] = map[string]any{"StringEquals": map[string]string{"sts:ExternalId": r.ExternalID}}
	}
	doc, _ := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": []any{statement}})
	return string(doc)
}

// putRolePolicy replaces the policy whole. Like IAM's it has no compare-and-swap.
func (s *Server) putRolePolicy(w http.ResponseWriter, c *call, r *role) *apiError {
	text := c.Form.Get("PolicyDocument")
	if e := checkText("policyDocument", text, 1, 131_072, policyPattern); e != nil {
		return e
	}
	if e := s.setPolicy(r, c.Form.Get("PolicyName"), text); e != nil {
		return e
	}
	writeResult(w, c, nil)
	return nil
}

func (s *Server) setPolicy(r *role, name, text string) *apiError {
	doc, e := parsePolicy(text)
	if e != nil {
		return e
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	size := countedChars(text)
	for other, p := range r.inline {
		if other != name {
			size += countedChars(p.text)
		}
	}
	if size > maxInlineChars {
		return fail(http.StatusConflict, "LimitExceeded",
			"Maximum policy size of "+strconv.Itoa(maxInlineChars)+" bytes exceeded for role "+r.Name)
	}
	r.inline[name] = inlinePolicy{text: text, doc: doc}
	return nil
}

func countedChars(text string) int {
	n := 0
	for _, r := range text {
		if !unicode.IsSpace(r) {
			n++
		}
	}
	return n
}

func (s *Server) getRolePolicy(w http.ResponseWriter, c *call, r *role) *apiError {
	type result struct {
		XMLName        xml.Name `xml:"GetRolePolicyResult"`
		RoleName       string
		PolicyName     string
		PolicyDocument string
	}
	name := c.Form.Get("PolicyName")
	s.mu.RLock()
	p, ok := r.inline[name]
	s.mu.RUnlock()
	if !ok {
		return noSuchPolicy(name)
	}
	// "Policies returned by this operation are URL-encoded compliant with RFC 3986."
	writeResult(w, c, result{RoleName: r.Name, PolicyName: name, PolicyDocument: uriEncode(p.text, false)})
	return nil
}

func (s *Server) deleteRolePolicy(w http.ResponseWriter, c *call, r *role) *apiError {
	name := c.Form.Get("PolicyName")
	s.mu.Lock()
	_, ok := r.inline[name]
	delete(r.inline, name)
	s.mu.Unlock()
	if !ok {
		return noSuchPolicy(name)
	}
	writeResult(w, c, nil)
	return nil
}

// listRolePolicies pages as IAM does: MaxItems (100 unless told), and Marker.
func (s *Server) listRolePolicies(w http.ResponseWriter, c *call, r *role) *apiError {
	type result struct {
		XMLName     xml.Name `xml:"ListRolePoliciesResult"`
		PolicyNames struct {
			Member []string `xml:"member"`
		}
		IsTruncated bool
		Marker      string `xml:",omitempty"`
	}
	limit, e := maxItems(c.Form)
	if e != nil {
		return e
	}
	s.mu.RLock()
	names := slices.Sorted(maps.Keys(r.inline))
	s.mu.RUnlock()
	// The marker is the last name of the page before; a name deleted since is no matter.
	if after := c.Form.Get("Marker"); after != "" {
		i, found := slices.BinarySearch(names, after)
		if found {
			i++
		}
		names = names[i:]
	}
	var out result
	if len(names) > limit {
		names, out.IsTruncated = names[:limit], true
		out.Marker = names[limit-1]
	}
	out.PolicyNames.Member = names
	writeResult(w, c, out)
	return nil
}

func maxItems(form url.Values) (int, *apiError) {
	if !form.Has("MaxItems") {
		return 100, nil
	}
	n, err := strconv.Atoi(form.Get("MaxItems"))
	if err != nil || n < 1 || n > 1000 {
		return 0, constraintError("maxItems", form.Get("MaxItems"), "Member must have value between 1 and 1000")
	}
	return n, nil
}
