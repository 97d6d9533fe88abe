package aws

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
)

// How a workload comes by credentials that are not a user's key: it is given a session
// of a role (EC2, ECS, Lambda), or it has a token of an identity provider and asks
// STS for one (EKS, CI systems). What it then assumes, it assumes by role chaining.

// SessionSpec says what session StartSession makes, within AssumeRole's limits.
type SessionSpec struct {
	// Role is the role's name, and Name the session's. Required.
	Role, Name string
	// Duration is whole seconds, 900 to the role's maximum. Zero: 1 hour.
	Duration       time.Duration
	SourceIdentity string
	Tags           map[string]string
	// TransitiveTagKeys are those of Tags that chained sessions bear too.
	TransitiveTagKeys []string
}

// SessionCredentials are a session's secrets, in the clear.
type SessionCredentials struct {
	AccessKeyID, SecretAccessKey, SessionToken string
	Expires                                    time.Time
}

// StartSession gives out a session of a role without asking anybody, as the platform
// that a workload runs on does. Its AssumeRole calls are role chaining.
func (s *Server) StartSession(spec SessionSpec) (SessionCredentials, error) {
	s.mu.RLock()
	r := s.roles[spec.Role]
	s.mu.RUnlock()
	if r == nil {
		return SessionCredentials{}, noRole(spec.Role)
	}
	if spec.Duration == 0 {
		spec.Duration = time.Hour
	}
	form := url.Values{
		"RoleArn": {r.arn()}, "RoleSessionName": {spec.Name},
		"DurationSeconds": {strconv.Itoa(int(spec.Duration.Seconds()))},
	}
	if spec.SourceIdentity != "" {
		form.Set("SourceIdentity", spec.SourceIdentity)
	}
	for i, key := range slices.Sorted(maps.Keys(spec.Tags)) {
		form.Set(fmt.Sprintf("Tags.member.%d.Key", i+1), key)
		form.Set(fmt.Sprintf("Tags.member.%d.Value", i+1), spec.Tags[key])
	}
	for i, key := range spec.TransitiveTagKeys {
		form.Set(fmt.Sprintf("TransitiveTagKeys.member.%d", i+1), key)
	}
	p, e := s.readAssumeRole(form)
	if e == nil {
		e = r.checkDuration(p)
	}
	if e != nil {
		return SessionCredentials{}, operatorError("session of role "+spec.Role, e)
	}
	ses := s.addSession(r, p, s.cfg.Now())
	return SessionCredentials{
		AccessKeyID: ses.info.AccessKeyID, SecretAccessKey: ses.secret, SessionToken: ses.token, Expires: ses.info.Expires,
	}, nil
}

// WebIdentity is a token of an identity provider, and what it says. The server does
// not read a token: it knows those that were registered, by their text.
type WebIdentity struct {
	// Token is 4 to 20,000 characters. Issuer and Subject are its iss (without
	// "https://") and sub. All are required.
	Token, Issuer, Subject string
	// Audience is its aud.
	Audience string
	// Expires is the end of the token, by the server's clock. Required.
	Expires time.Time
}

// WebTrust lets a subject of an identity provider assume a role.
type WebTrust struct {
	// Issuer and Subject are required and match exactly.
	Issuer, Subject string
	// Audience, if set, must be the token's.
	Audience string
}

// Limits of a WebIdentityToken (STS API Reference, AssumeRoleWithWebIdentity).
const (
	minWebToken = 4
	maxWebToken = 20_000
)

// RegisterWebIdentity makes a token known, as if an identity provider that IAM trusts had
// signed it. The same token again replaces what it says.
func (s *Server) RegisterWebIdentity(id WebIdentity) error {
	if len(id.Token) < minWebToken || len(id.Token) > maxWebToken || id.Issuer == "" || id.Subject == "" || id.Expires.IsZero() {
		return errors.New("sandbox aws: a web identity needs a token of 4-20,000 characters, an issuer, a subject and an end")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.webIdentities[sha256.Sum256([]byte(id.Token))] = id
	return nil
}

// assumeRoleWithWebIdentity is the one call that nobody signs: the token is the proof.
// It takes its tags and source identity from the token alone, and ours have none.
func (s *Server) assumeRoleWithWebIdentity(w http.ResponseWriter, c *call) *apiError {
	token := c.Form.Get("WebIdentityToken")
	if len(token) < minWebToken || len(token) > maxWebToken {
		// checkText would repeat the token.
		return validationError("1 validation error detected: Value at 'webIdentityToken' failed to satisfy constraint: " +
			"Member must have length between 4 and 20000, inclusive")
	}
	form := url.Values{}
	for name, values := range c.Form {
		if slices.Contains([]string{"RoleArn", "RoleSessionName", "DurationSeconds", "Policy"}, name) || isPolicyARN(name) {
			form[name] = values
		}
	}
	p, e := s.readAssumeRole(form)
	if e != nil {
		return e
	}
	s.mu.RLock()
	id, ok := s.webIdentities[sha256.Sum256([]byte(token))]
	s.mu.RUnlock()
	if !ok {
		return fail(http.StatusBadRequest, "InvalidIdentityToken",
			"The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)")
	}
	if !c.now.Before(id.Expires) {
		return fail(http.StatusBadRequest, "ExpiredTokenException", fmt.Sprintf(
			"Token expired: current date/time %d must be before the expiration date/time%d", c.now.Unix(), id.Expires.Unix()))
	}
	r := s.roleByARN(p.roleARN)
	if r == nil || !r.trustsWeb(id) {
		return fail(http.StatusForbidden, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity")
	}
	if e := r.checkDuration(p); e != nil {
		return e
	}
	out := newAssumeRoleResult(c, s.addSession(r, p, c.now), p)
	out.SubjectFromWebIdentityToken, out.Audience, out.Provider = id.Subject, id.Audience, id.Issuer
	writeResult(w, c, out)
	return nil
}

func (r *role) trustsWeb(id WebIdentity) bool {
	return slices.ContainsFunc(r.WebTrusts, func(t WebTrust) bool {
		return t.Issuer == id.Issuer && t.Subject == id.Subject && (t.Audience == "" || t.Audience == id.Audience)
	})
}
