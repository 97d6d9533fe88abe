package gcp

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/taskpass/taskpass/broker"
)

var (
	emailForm  = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}@[a-z0-9.:-]{1,128}\.gserviceaccount\.com$`)
	bucketForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$`)
	roleForm   = regexp.MustCompile(`^(projects/[a-z0-9.:-]+/|organizations/\d+/)?roles/[A-Za-z0-9_.]{1,128}$`)
)

// Check returns all that is wrong; pointers are paths within the section, as in "scopes.read.boundary[0].bucket".
func (c Config) Check() []broker.Fault {
	var f broker.Faults
	if c.Mode != modeImpersonate && c.Mode != modeSlot && c.Mode != modeKey {
		f.Add("mode", "is none of impersonate, slot and key")
		return f // nothing else can be judged
	}
	c.checkAccounts(&f)
	if c.Dedicated && c.Mode != modeKey {
		f.Add("dedicated", "is for mode key")
	}
	if c.SharePercent < 0 || c.SharePercent > 100 {
		f.Add("share_percent", "is not between 1 and 100")
	}
	if c.SharePercent != 0 && !c.pooled() {
		f.Add("share_percent", "is for accounts that are listed")
	}
	if c.Audience != "" && c.Mode != modeImpersonate {
		f.Add("audience", "is for mode impersonate")
	}
	if len(c.Audience) > 2048 {
		f.Add("audience", "is longer than 2048 characters")
	}
	if c.LongLifetime && (c.Mode == modeKey || c.Audience != "") {
		f.Add("long_lifetime", "is for access tokens that the broker makes")
	}
	if c.Skew != nil && (*c.Skew < time.Minute || *c.Skew > time.Hour) {
		f.Add("skew", "is not between 1m and 1h")
	}
	if c.Grace != nil && (*c.Grace < 0 || *c.Grace > time.Minute) {
		f.Add("grace", "is not between 0s and 1m")
	}
	c.checkIdentity(&f)
	if len(c.Scopes) == 0 {
		f.Add("scopes", "names no scope")
	}
	for name, scope := range c.Scopes {
		c.checkScope("scopes."+name, scope, &f)
	}
	return f
}

// checkIdentity checks what the broker is to Google, and where Google is.
func (c Config) checkIdentity(f *broker.Faults) {
	for pointer, ref := range map[string]broker.Ref{"credentials_file": c.CredentialsFile, "token_file": c.TokenFile} {
		if ref != "" {
			f.Ref(pointer, ref)
		}
	}
	if c.CredentialsFile != "" && c.TokenFile != "" {
		f.Add("token_file", "and credentials_file exclude each other")
	}
	for pointer, at := range map[string]string{
		"credentials": c.Endpoints.Credentials, "admin": c.Endpoints.Admin, "sts": c.Endpoints.STS, "token": c.Endpoints.Token,
	} {
		if at != "" {
			f.Endpoint("endpoints."+pointer, at)
		}
	}
	for _, plain := range []string{c.Endpoints.Credentials, c.Endpoints.Admin} {
		if strings.HasPrefix(plain, "http://") && c.TokenFile == "" {
			f.Add("token_file", "is required with an endpoint without TLS: no other identity may be sent there")
			break
		}
	}
}

func (c Config) checkAccounts(f *broker.Faults) {
	const notEmail = "is not the email of a service account"
	if c.pooled() {
		if len(c.Accounts) == 0 {
			f.Add("accounts", "names no account")
		}
		if c.ServiceAccount != "" {
			f.Add("service_account", "does not belong here: the accounts are listed")
		}
	} else {
		if !emailForm.MatchString(c.ServiceAccount) {
			f.Add("service_account", notEmail)
		}
		if len(c.Accounts) > 0 {
			f.Add("accounts", "do not belong here: there is one service_account")
		}
	}
	seen := map[string]bool{}
	for i, email := range c.Accounts {
		at := fmt.Sprintf("accounts[%d]", i)
		if !emailForm.MatchString(email) {
			f.Add(at, notEmail)
		}
		if seen[email] {
			f.Add(at, "stands twice")
		}
		seen[email] = true
	}
	if c.Mode == modeKey && len(c.Delegates) > 0 {
		f.Add("delegates", "are for tokens, and this profile makes keys")
	}
	for i, email := range c.Delegates {
		if !emailForm.MatchString(email) {
			f.Add(fmt.Sprintf("delegates[%d]", i), notEmail)
		}
	}
}

func (c Config) checkScope(at string, s Scope, f *broker.Faults) {
	for i, scope := range s.OAuth {
		if u, err := url.Parse(scope); err != nil || u.Scheme != "https" || u.Host == "" || strings.ContainsAny(scope, " \t\n") {
			f.Add(fmt.Sprintf("%s.oauth[%d]", at, i), "is not an OAuth scope such as %s", cloudPlatform)
		}
	}
	token := c.Mode != modeKey && c.Audience == ""
	if !token && len(s.OAuth)+len(s.Boundary) > 0 {
		f.Add(at, "can have neither oauth nor boundary: a key or an ID token carries none")
	}
	if len(s.Boundary) > 0 && len(s.OAuth) > 0 && !slices.Contains(s.OAuth, cloudPlatform) {
		f.Add(at+".oauth", "must hold %s, which Google narrows by the boundary", cloudPlatform)
	}
	if len(s.Boundary) > maxRules {
		f.Add(at+".boundary", "has more than the %d rules that Google takes", maxRules)
	}
	for i, r := range s.Boundary {
		here := fmt.Sprintf("%s.boundary[%d]", at, i)
		if !bucketForm.MatchString(r.Bucket) {
			f.Add(here+".bucket", "is not the name of a bucket")
		}
		if len(r.Roles) == 0 {
			f.Add(here+".roles", "is empty")
		}
		for j, role := range r.Roles {
			if !roleForm.MatchString(role) {
				f.Add(fmt.Sprintf("%s.roles[%d]", here, j), "is not a role such as roles/storage.objectViewer")
			}
		}
		if err := checkPrefix(r.Prefix); err != nil {
			f.Add(here+".prefix", "%v", err)
		}
	}
}
