package gcp

import (
	"maps"
	"slices"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Modes.
const (
	modeImpersonate = "impersonate"
	modeSlot        = "slot"
	modeKey         = "key"
)

// Config is the `gcp` section of a profile.
type Config struct {
	Mode string `yaml:"mode"` // impersonate, slot or key

	ServiceAccount string   `yaml:"service_account"` // email: of impersonate, and of key without dedicated
	Accounts       []string `yaml:"accounts"`        // emails: of slot, and of key with dedicated; one task each
	Dedicated      bool     `yaml:"dedicated"`       // key: each task's account is its own, and is disabled at its end
	// SharePercent is how much of the accounts one caller may hold or have resting at once, where rules let several
	// callers use them; absent: 25.
	SharePercent int      `yaml:"share_percent"`
	Delegates    []string `yaml:"delegates"`     // emails, each may make tokens of the next, the last of the account
	LongLifetime bool     `yaml:"long_lifetime"` // the organization lets the accounts' tokens live for up to 12 h
	Audience     string   `yaml:"audience"`      // impersonate: an ID token for this audience in place of an access token

	// Skew is how much longer than Google says a token is taken for alive before its account is enabled again; absent:
	// 2 min. It covers clocks that differ and the time that Google's answer takes.
	Skew *time.Duration `yaml:"skew"`
	// Grace is how long a refusal that a fresh account, a fresh key or an account that was just enabled may give for a while is
	// asked again, within the time of one call; absent: 5 s. A fresh key is usable after a minute at the latest.
	Grace *time.Duration `yaml:"grace"`

	// Source of the broker's own identity; both empty: Application Default Credentials.
	CredentialsFile broker.Ref `yaml:"credentials_file"` // JSON of a service account, a workload identity or an impersonation
	TokenFile       broker.Ref `yaml:"token_file"`       // an access token that somebody else keeps fresh; read at each call

	Endpoints Endpoints        `yaml:"endpoints"`
	Scopes    map[string]Scope `yaml:"scopes"`
}

// Endpoints replace Google's own; empty: Google's. http:// is for loopback only.
type Endpoints struct {
	Credentials string `yaml:"credentials"` // IAM Service Account Credentials, gRPC
	Admin       string `yaml:"admin"`       // IAM, gRPC
	STS         string `yaml:"sts"`         // Security Token Service
	Token       string `yaml:"token"`       // OAuth 2.0; stands in the keys that are handed out
}

// Scope is what one scope means: OAuth scopes, and rules of a Credential Access Boundary.
type Scope struct {
	OAuth       []string `yaml:"oauth"` // of the token; absent: cloud-platform
	Boundary    []Rule   `yaml:"boundary"`
	Description string   `yaml:"description"`
}

// Rule makes the permissions of some roles available on a bucket's objects. Only Cloud Storage knows boundaries: a token
// with one can do nothing elsewhere.
type Rule struct {
	Bucket string   `yaml:"bucket"`
	Roles  []string `yaml:"roles"`  // roles/storage.objectViewer …
	Prefix string   `yaml:"prefix"` // of the objects' names; a template, see broker.Template.CheckApart; empty: all
}

const (
	maxRules      = 10
	maxObjectName = 1024 // bytes: https://cloud.google.com/storage/docs/objects#naming
	minTTL        = 10 * time.Second
	maxTTL        = time.Hour
	longTTL       = 12 * time.Hour
	idTokenTTL    = time.Hour + time.Minute // Google fixes an hour; the minute is for the asking
	keyTokenLife  = time.Hour               // of what is made with a key
	maxKeyTTL     = 12 * time.Hour
	defaultSkew   = 2 * time.Minute
	defaultGrace  = 5 * time.Second

	cloudPlatform = "https://www.googleapis.com/auth/cloud-platform"
	googleToken   = "https://oauth2.googleapis.com/token"
)

// ScopeNames lists the scopes, sorted.
func (c Config) ScopeNames() []string { return slices.Sorted(maps.Keys(c.Scopes)) }

// Capabilities are the promises of this configuration.
func (c Config) Capabilities() broker.Capabilities {
	caps := broker.Capabilities{MinTTL: minTTL, MaxTTL: maxTTL, SelfExpires: true, Revoke: broker.RevokeNone}
	if c.LongLifetime {
		caps.MaxTTL = longTTL
	}
	switch {
	case c.Mode == modeSlot:
		caps.Revoke = broker.RevokeDeny // "Existing access tokens for the service account are rejected": DisableServiceAccount
	case c.Mode == modeKey:
		// The certificate ends the key, but not what was made with it: the broker must act at the end too.
		caps.MinTTL, caps.MaxTTL, caps.SelfExpires, caps.Revoke = time.Minute, maxKeyTTL, false, broker.RevokeDeny
		caps.RevokeLag = keyTokenLife // none where the account is disabled too
	case c.Audience != "":
		caps.MinTTL, caps.MaxTTL = idTokenTTL, idTokenTTL
	}
	return caps
}

// pooled tells whether one task holds an account at a time.
func (c Config) pooled() bool { return c.Mode == modeSlot || c.Mode == modeKey && c.Dedicated }

func (c Config) skew() time.Duration {
	if c.Skew != nil {
		return *c.Skew
	}
	return defaultSkew
}

func (c Config) grace() time.Duration {
	if c.Grace != nil {
		return *c.Grace
	}
	return defaultGrace
}
