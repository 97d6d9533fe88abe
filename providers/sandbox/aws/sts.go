package aws

import (
	"encoding/xml"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// serveSTS does AssumeRole, AssumeRoleWithWebIdentity and GetCallerIdentity.
func (s *Server) serveSTS(w http.ResponseWriter, c *call) *apiError {
	switch c.action {
	case "AssumeRole":
		return s.assumeRole(w, c)
	case "AssumeRoleWithWebIdentity":
		return s.assumeRoleWithWebIdentity(w, c)
	case "GetCallerIdentity":
		// Answers even a caller whom a policy denies it (STS API Reference,
		// GetCallerIdentity: "no permissions are required").
		s.getCallerIdentity(w, c)
		return nil
	}
	return invalidAction(c, "2011-06-15")
}

func invalidAction(c *call, version string) *apiError {
	return fail(http.StatusBadRequest, "InvalidAction", "Could not find operation "+c.action+" for version "+version)
}

func (s *Server) getCallerIdentity(w http.ResponseWriter, c *call) {
	type identity struct {
		XMLName xml.Name `xml:"GetCallerIdentityResult"`
		Arn     string
		UserID  string `xml:"UserId"`
		Account string
	}
	writeResult(w, c, identity{Arn: c.who.arn, UserID: c.who.userID, Account: c.who.account})
}

type assumeRoleResult struct {
	XMLName         xml.Name
	AssumedRoleUser struct {
		AssumedRoleID string `xml:"AssumedRoleId"`
		Arn           string
	}
	Credentials struct {
		AccessKeyID     string `xml:"AccessKeyId"`
		SecretAccessKey string
		SessionToken    string
		Expiration      string
	}
	SourceIdentity   string `xml:",omitempty"`
	PackedPolicySize int    `xml:",omitempty"`
	// AssumeRoleWithWebIdentity's alone.
	SubjectFromWebIdentityToken string `xml:",omitempty"`
	Audience                    string `xml:",omitempty"`
	Provider                    string `xml:",omitempty"`
}

func newAssumeRoleResult(c *call, ses *session, p *assumeParams) assumeRoleResult {
	out := assumeRoleResult{XMLName: xml.Name{Local: c.action + "Result"}}
	out.AssumedRoleUser.AssumedRoleID = ses.info.UserID
	out.AssumedRoleUser.Arn = ses.info.ARN
	out.Credentials.AccessKeyID = ses.info.AccessKeyID
	out.Credentials.SecretAccessKey = ses.secret
	out.Credentials.SessionToken = ses.token
	out.Credentials.Expiration = xmlTime(ses.info.Expires)
	out.SourceIdentity = ses.info.SourceIdentity
	out.PackedPolicySize = p.packedPercent
	return out
}

// assumeRole makes a session, or says why not. It checks the parameters, then the
// right to the role, then what depends on both.
func (s *Server) assumeRole(w http.ResponseWriter, c *call) *apiError {
	p, e := s.readAssumeRole(c.Form)
	if e != nil {
		return e
	}
	r, e := s.mayAssume(c, p)
	if e != nil {
		return e
	}
	// "Role chaining limits your … role session to a maximum of one hour" (STS API
	// Reference, AssumeRole).
	if c.who.session != nil && p.duration > time.Hour {
		return validationError("The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.")
	}
	if e := r.checkDuration(p); e != nil {
		return e
	}
	writeResult(w, c, newAssumeRoleResult(c, s.addSession(r, p, c.now), p))
	return nil
}

func (r *role) checkDuration(p *assumeParams) *apiError {
	if p.duration > r.MaxSessionDuration {
		return validationError("The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	return nil
}

func (s *Server) addSession(r *role, p *assumeParams, now time.Time) *session {
	ses := newSession(r, p, now)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetOldSessions(now)
	s.sessions[ses.info.AccessKeyID] = ses
	return ses
}

// mayAssume finds the role and asks its trust and the caller's own policies. A role
// that does not exist is answered like one that does not trust the caller.
func (s *Server) mayAssume(c *call, p *assumeParams) (*role, *apiError) {
	r := s.roleByARN(p.roleARN)
	if r == nil || !r.trusts(c.who) || r.ExternalID != "" && r.ExternalID != p.externalID {
		return nil, c.denied("sts:AssumeRole", p.roleARN, "")
	}
	keys := map[string]string{"sts:rolesessionname": p.sessionName}
	for k, v := range p.tags {
		keys["aws:requesttag/"+strings.ToLower(k)] = v
	}
	if e := p.inherit(c.who.session); e != nil {
		return nil, e
	}
	if p.externalID != "" {
		keys["sts:externalid"] = p.externalID
	}
	actions := []string{"sts:AssumeRole"}
	if p.sourceIdentity != "" {
		keys["sts:sourceidentity"] = p.sourceIdentity
		actions = append(actions, "sts:SetSourceIdentity")
	}
	if len(p.tags) > 0 {
		actions = append(actions, "sts:TagSession")
	}
	for _, action := range actions {
		if e := s.authorize(c, action, p.roleARN, keys); e != nil {
			return nil, e
		}
	}
	return r, nil
}

func (s *Server) roleByARN(arn string) *role {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, r := range s.roles {
		if r.arn() == arn {
			return r
		}
	}
	return nil
}

func newSession(r *role, p *assumeParams, now time.Time) *session {
	issued := now.UTC().Truncate(time.Second)
	return &session{
		info: SessionInfo{
			Name:              p.sessionName,
			AccessKeyID:       newAccessKeyID("ASIA"),
			Role:              r.Name,
			UserID:            r.RoleID + ":" + p.sessionName,
			ARN:               "arn:aws:sts::" + r.AccountID + ":assumed-role/" + r.Name + "/" + p.sessionName,
			SourceIdentity:    p.sourceIdentity,
			Tags:              maps.Clone(p.tags),
			TransitiveTagKeys: slices.Sorted(maps.Keys(p.transitive)),
			Policy:            p.policyText,
			PolicyARNs:        p.policyARNs,
			Issued:            issued,
			Expires:           issued.Add(p.duration),
		},
		secret:     newSecretKey(),
		token:      newSessionToken(),
		role:       r,
		policies:   p.policies,
		transitive: p.transitive,
	}
}

// Sessions are kept for a day past their end, so that a late user hears ExpiredToken;
// beyond that only while there are few.
const (
	sessionsKept    = 10_000
	sessionsKeptFor = 24 * time.Hour
)

// forgetOldSessions looks through all of them only when there are twice as many as it left the last time: else each new
// session would cost as much as there are.
func (s *Server) forgetOldSessions(now time.Time) {
	if len(s.sessions) < max(sessionsKept, s.sessionsLeft*2) {
		return
	}
	for id, ses := range s.sessions {
		if now.Sub(ses.info.Expires) > sessionsKeptFor {
			delete(s.sessions, id)
		}
	}
	s.sessionsLeft = len(s.sessions)
}
