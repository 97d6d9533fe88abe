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

// serveIAM does the calls that a broker needs on a role or a managed policy.
func (s *Server) serveIAM(w http.ResponseWriter, c *call) *apiError {
	if policyCalls[c.action] != nil {
		return s.servePolicy(w, c)
	}
	if c.action == "SimulatePrincipalPolicy" {
		return s.simulatePrincipalPolicy(w, c)
	}
	do, ok := map[string]func(http.ResponseWriter, *call, *role) *apiError{
		"GetRole":                  s.getRole,
		"PutRolePolicy":            s.putRolePolicy,
		"GetRolePolicy":            s.getRolePolicy,
		"DeleteRolePolicy":         s.deleteRolePolicy,
		"ListRolePolicies":         s.listRolePolicies,
		"ListAttachedRolePolicies": s.listAttachedRolePolicies,
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
	var statements []any
	if len(r.TrustedARNs) > 0 {
		statement := map[string]any{
			"Effect": "Allow", "Action": []string{"sts:AssumeRole", "sts:SetSourceIdentity", "sts:TagSession"},
			"Principal": map[string]any{"AWS": r.TrustedARNs},
		}
		if r.ExternalID != "" {
			statement["Condition"] = map[string]any{"StringEquals": map[string]string{"sts:ExternalId": r.ExternalID}}
		}
		statements = append(statements, statement)
	}
	for _, t := range r.WebTrusts {
		equal := map[string]string{t.Issuer + ":sub": t.Subject}
		if t.Audience != "" {
			equal[t.Issuer+":aud"] = t.Audience
		}
		statements = append(statements, map[string]any{
			"Effect": "Allow", "Action": "sts:AssumeRoleWithWebIdentity",
			"Principal": map[string]string{"Federated": "arn:aws:iam::" + r.AccountID + ":oidc-provider/" + t.Issuer},
			"Condition": map[string]any{"StringEquals": equal},
		})
	}
	doc, _ := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": statements})
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
	for other, p := range r.policies.inline {
		if other != name {
			size += countedChars(p.text)
		}
	}
	if size > maxInlineChars {
		return fail(http.StatusConflict, "LimitExceeded",
			"Maximum policy size of "+strconv.Itoa(maxInlineChars)+" bytes exceeded for role "+r.Name)
	}
	r.putInline(name, inlinePolicy{text: text, doc: doc})
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
	p, ok := s.readPolicySet(c, r).inline[name]
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
	ok := r.deleteInline(name)
	s.mu.Unlock()
	if !ok {
		return noSuchPolicy(name)
	}
	writeResult(w, c, nil)
	return nil
}

// listRolePolicies lists by name.
func (s *Server) listRolePolicies(w http.ResponseWriter, c *call, r *role) *apiError {
	type result struct {
		XMLName     xml.Name `xml:"ListRolePoliciesResult"`
		PolicyNames struct {
			Member []string `xml:"member"`
		}
		IsTruncated bool
		Marker      string `xml:",omitempty"`
	}
	names := slices.Sorted(maps.Keys(s.readPolicySet(c, r).inline))
	part, marker, e := page(c.Form, names, func(name string) string { return name }, strings.Compare)
	if e != nil {
		return e
	}
	out := result{IsTruncated: marker != "", Marker: marker}
	out.PolicyNames.Member = part
	writeResult(w, c, out)
	return nil
}

// page is the part of a listing that one call returns: what follows Marker, at most
// MaxItems (100 unless told). The items are in order by their keys; a marker is the
// last key of the page before, and it does not matter if that one is gone since.
func page[T any](form url.Values, items []T, key func(T) string, order func(a, b string) int) ([]T, string, *apiError) {
	limit, e := maxItems(form)
	if e != nil {
		return nil, "", e
	}
	if after := form.Get("Marker"); after != "" {
		i, found := slices.BinarySearchFunc(items, after, func(item T, after string) int { return order(key(item), after) })
		if found {
			i++
		}
		items = items[i:]
	}
	if len(items) <= limit {
		return items, "", nil
	}
	return items[:limit], key(items[limit-1]), nil
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
