package aws

import (
	"crypto/subtle"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/taskpass/taskpass/providers/sandbox/aws/iampolicy"
)

// principal is who signed a request: the broker user, or a session of a role.
type principal struct {
	arn     string
	userID  string // what aws:userid is: AIDA…, or AROA…:session
	account string
	session *session // nil for the user
}

// session is one AssumeRole. It does not change once made.
type session struct {
	info     SessionInfo
	secret   string
	token    string
	role     *role
	policies []*iampolicy.Document // session policies; none: the role's rights whole
	// transitive are the tags that a session made from this one bears too.
	transitive map[string]string
}

type role struct {
	Role
	doc     *iampolicy.Document
	created time.Time
	// Guarded by Server.mu. former is what policies were before their last change.
	policies, former policySet
}

type inlinePolicy struct {
	text string
	doc  *iampolicy.Document
}

func (r *role) arn() string { return "arn:aws:iam::" + r.AccountID + ":role/" + r.Name }

func newUser(cfg Config) principal {
	return principal{
		arn:     "arn:aws:iam::" + cfg.AccountID + ":user/" + cfg.UserName,
		userID:  newID("AIDA"),
		account: cfg.AccountID,
	}
}

var roleNamePattern = regexp.MustCompile(`^[\w+=,.@-]{1,64}$`)

func newRole(r Role, cfg Config, userARN string) (*role, error) {
	if !roleNamePattern.MatchString(r.Name) {
		return nil, fmt.Errorf("sandbox aws: role name %q: 1-64 of letters, digits and _+=,.@-", r.Name)
	}
	if r.AccountID == "" {
		r.AccountID = cfg.AccountID
	}
	if !accountPattern.MatchString(r.AccountID) {
		return nil, fmt.Errorf("sandbox aws: role %s: account %q is not 12 digits", r.Name, r.AccountID)
	}
	if r.RoleID == "" {
		r.RoleID = newID("AROA")
	}
	if r.MaxSessionDuration == 0 {
		r.MaxSessionDuration = time.Hour
	}
	if r.MaxSessionDuration < time.Hour || r.MaxSessionDuration > 12*time.Hour {
		return nil, fmt.Errorf("sandbox aws: role %s: maximum session duration %s is not 1-12 h", r.Name, r.MaxSessionDuration)
	}
	for _, t := range r.WebTrusts {
		if t.Issuer == "" || t.Subject == "" {
			return nil, fmt.Errorf("sandbox aws: role %s: a web trust needs an issuer and a subject", r.Name)
		}
	}
	if len(r.TrustedARNs) == 0 && len(r.WebTrusts) == 0 {
		r.TrustedARNs = []string{userARN}
	}
	doc, err := iampolicy.Parse(r.Policy)
	if err != nil {
		return nil, fmt.Errorf("sandbox aws: role %s: %w", r.Name, err)
	}
	none := policySet{inline: map[string]inlinePolicy{}}
	return &role{Role: r, doc: doc, created: cfg.Now(), policies: none, former: none}, nil
}

// authenticate finds who signed, and leaves it in c.who. The order is AWS's as far as
// it can be seen from outside: the key, its token, the signature, then the expiry,
// so that nobody learns of a session who cannot sign for it.
func (s *Server) authenticate(c *call, sig signature) *apiError {
	token := c.Header.Get("X-Amz-Security-Token")
	who, secret, ok := s.principalFor(sig.keyID)
	if !ok {
		if c.service == "s3" {
			return fail(http.StatusForbidden, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
		}
		return fail(http.StatusForbidden, "InvalidClientTokenId", "The security token included in the request is invalid.")
	}
	want := ""
	if who.session != nil {
		want = who.session.token
	}
	if subtle.ConstantTimeCompare([]byte(token), []byte(want)) != 1 {
		if c.service == "s3" {
			return fail(http.StatusBadRequest, "InvalidToken", "The provided token is malformed or otherwise invalid.")
		}
		return fail(http.StatusForbidden, "InvalidClientTokenId", "The security token included in the request is invalid.")
	}
	if e := s.checkTime(c, sig); e != nil {
		return e
	}
	hash, e := c.payloadHash()
	if e != nil {
		return e
	}
	if e := c.checkSignature(sig, secret, hash); e != nil {
		return e
	}
	if who.session != nil && !c.now.Before(who.session.info.Expires) {
		return expired(c.service)
	}
	c.who = who
	if c.service == "s3" {
		return c.decodePayload()
	}
	return nil
}

// expired is worded as seen on the wire. The API References' "Common Errors" call the
// query services' code ExpiredTokenException; STS and IAM themselves send
// ExpiredToken with status 403 (boto/boto3#1431, pulumi/pulumi-aws#2560).
func expired(service string) *apiError {
	if service == "s3" {
		return fail(http.StatusBadRequest, "ExpiredToken", "The provided token has expired.")
	}
	return fail(http.StatusForbidden, "ExpiredToken", "The security token included in the request is expired")
}

func (s *Server) principalFor(keyID string) (principal, string, bool) {
	if subtle.ConstantTimeCompare([]byte(keyID), []byte(s.cfg.AccessKeyID)) == 1 {
		return s.user, s.cfg.SecretAccessKey, true
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	ses := s.sessions[keyID]
	if ses == nil {
		return principal{}, "", false
	}
	return principal{
		arn: ses.info.ARN, userID: ses.info.UserID, account: ses.role.AccountID, session: ses,
	}, ses.secret, true
}

// authorize says whether the caller may do action ("s3:GetObject") on the resource.
// extra are condition keys of this request.
//
// A session has what its role's policies and its session policies both allow; a Deny
// in any of them wins (IAM User Guide, "Policy evaluation for requests within a
// single account"). The user has what its one policy says.
func (s *Server) authorize(c *call, action, resource string, extra map[string]string) *apiError {
	req := iampolicy.Request{Action: action, Resource: resource, Now: c.now, Context: s.conditionKeys(c, extra)}
	identity, limit, limited := s.identityOutcome(c.who, req), iampolicy.Silent, false
	if ses := c.who.session; ses != nil {
		limited = len(ses.policies) > 0
		for _, p := range ses.policies {
			limit = max(limit, p.Evaluate(req))
		}
	}
	switch {
	case identity == iampolicy.Denied:
		return c.denied(action, resource, "with an explicit deny in an identity-based policy")
	case limit == iampolicy.Denied:
		return c.denied(action, resource, "with an explicit deny in a session policy")
	case identity != iampolicy.Allowed:
		return c.denied(action, resource, "because no identity-based policy allows the "+action+" action")
	case limited && limit != iampolicy.Allowed:
		return c.denied(action, resource, "because no session policy allows the "+action+" action")
	}
	return nil
}

// identityOutcome is what the user's policy says, or all of the role's together.
func (s *Server) identityOutcome(who principal, req iampolicy.Request) iampolicy.Outcome {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if who.session == nil {
		return s.userPolicy.Evaluate(req)
	}
	r := who.session.role
	out := r.doc.Evaluate(req)
	for _, p := range r.policies.inline {
		out = max(out, p.doc.Evaluate(req))
	}
	for _, arn := range r.policies.attached {
		out = max(out, s.managed[arn].effective().Evaluate(req))
	}
	return out
}

func (c *call) denied(action, resource, why string) *apiError {
	if c.service == "s3" {
		resource = strconv.Quote(resource)
	}
	return fail(http.StatusForbidden, "AccessDenied", strings.TrimSpace(fmt.Sprintf(
		"User: %s is not authorized to perform: %s on resource: %s %s", c.who.arn, action, resource, why)))
}

// conditionKeys are those of every request by this caller, and extra. A key that has
// no value is left out: to a policy it is absent.
func (s *Server) conditionKeys(c *call, extra map[string]string) map[string]string {
	keys := map[string]string{
		"aws:userid":           c.who.userID,
		"aws:principalarn":     c.who.arn,
		"aws:principalaccount": c.who.account,
		"aws:principaltype":    "User",
		"aws:securetransport":  strconv.FormatBool(c.TLS != nil),
	}
	if c.who.session == nil {
		keys["aws:username"] = s.cfg.UserName
	}
	if ses := c.who.session; ses != nil {
		// aws:PrincipalArn of a session is its role's ARN.
		keys["aws:principalarn"] = ses.role.arn()
		keys["aws:principaltype"] = "AssumedRole"
		keys["aws:tokenissuetime"] = xmlTime(ses.info.Issued)
		if ses.info.SourceIdentity != "" {
			keys["aws:sourceidentity"] = ses.info.SourceIdentity
		}
		for k, v := range ses.info.Tags {
			keys["aws:principaltag/"+strings.ToLower(k)] = v
		}
	}
	maps.Copy(keys, extra)
	return keys
}

// trusts says whether the role lets who in, by any name that who goes under.
func (r *role) trusts(who principal) bool {
	for _, arn := range r.TrustedARNs {
		switch {
		case arn == "*", arn == who.arn, arn == who.account, arn == "arn:aws:iam::"+who.account+":root":
			return true
		case who.session != nil && arn == who.session.role.arn():
			return true
		}
	}
	return false
}
