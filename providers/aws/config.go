package aws

import (
	"slices"
	"time"

	awsarn "github.com/aws/aws-sdk-go-v2/aws/arn"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/awsclient"
)

// Config is the `aws` section of a profile.
type Config struct {
	RoleARN    string `yaml:"role_arn"`    // the role that sessions are made of
	Region     string `yaml:"region"`      // of the STS; empty: the first of role_arn's partition, if the SDK knows it
	ExternalID string `yaml:"external_id"` // for roles of other accounts
	Endpoint   string `yaml:"endpoint"`    // for STS and IAM, and for all that agents call; empty: AWS's own
	FIPS       bool   `yaml:"fips"`        // AWS's own endpoints with FIPS 140 cryptography

	// Source of the broker's own credentials, one of three; none: the SDK's default chain.
	AccessKeyID     broker.Ref   `yaml:"access_key_id"`
	SecretAccessKey broker.Ref   `yaml:"secret_access_key"`
	ConfigProfile   string       `yaml:"config_profile"` // a profile of AWS's own shared configuration files
	WebIdentity     *WebIdentity `yaml:"web_identity"`

	SourceIdentity bool              `yaml:"source_identity"` // set SourceIdentity to the version's id; the role's trust policy must allow it
	Tags           map[string]string `yaml:"tags"`            // session tags; values may hold placeholders
	TransitiveTags []string          `yaml:"transitive_tags"` // keys of tags that a chained session keeps

	// STSAndIAM must say "accept" for sessions that may call STS and IAM as far as their scopes allow it. Such a session can
	// chain into another role, where neither its end nor its denial follows it.
	STSAndIAM string `yaml:"sts_and_iam"`

	Revocation Revocation       `yaml:"revocation"`
	Scopes     map[string]Scope `yaml:"scopes"`
}

// WebIdentity is a role that the broker gets by a token of an OIDC provider, such as a Kubernetes service account's.
type WebIdentity struct {
	RoleARN   string `yaml:"role_arn"`
	TokenFile string `yaml:"token_file"` // absolute; read anew each time
}

// Revocation is how sessions are ended early.
type Revocation struct {
	Mode string         `yaml:"mode"` // "deny" (the default): the role's policies refuse the session; "none"
	Lag  *time.Duration `yaml:"lag"`  // how long AWS may take to obey; absent: 5 min

	// IAMRoleARN is a role of the same account as the profile's role, which the broker takes to write policies there. IAM
	// knows roles of the caller's own account only, so a role of another account needs it. Empty: the broker's own identity.
	IAMRoleARN string `yaml:"iam_role_arn"`

	By            string        `yaml:"by"`             // what a session is told by: "userid" (the default) or "source_identity"
	SpillPolicies []string      `yaml:"spill_policies"` // ARNs of managed policies, attached to the role, for what the inline policy cannot hold
	CheckEvery    time.Duration `yaml:"check_every"`    // how often the policies are looked at; absent: 5 min

	// CutOff must say "accept" for the last resort: when every policy is full, all sessions of the role that are older than a
	// moment are refused, and their tasks are told to refresh. Without it, what does not fit is stuck.
	CutOff string `yaml:"cut_off"`
}

// Scope is what one scope means: fragments of a session policy, and managed policies.
type Scope struct {
	Statements  []Statement `yaml:"statements"`
	PolicyARNs  []string    `yaml:"policy_arns"`
	Description string      `yaml:"description"`
}

// Statement allows actions on resources. Resources and the values of conditions may hold the placeholders {{.Caller}},
// {{.TaskID}}, {{.AgentID}} and {{.Metadata.key}}.
type Statement struct {
	Actions    []string                       `yaml:"actions"`
	Resources  []string                       `yaml:"resources"`
	Conditions map[string]map[string][]string `yaml:"conditions"` // operator → key → values
}

// Limits of STS: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
const (
	maxPolicyLength = 2048
	maxPolicyARNs   = 10
	maxTags         = 50
	minDuration     = 15 * time.Minute
	maxDuration     = 12 * time.Hour

	defaultCheck = 5 * time.Minute
	maxSpill     = 10 // IAM attaches 10 managed policies to a role, unless the quota was raised to 20

	defaultLag = 5 * time.Minute // an upper bound for "a few minutes", in which IAM's changes reach every endpoint
)

// region is the one whose STS is asked.
func (c Config) region() string {
	if c.Region != "" {
		return c.Region
	}
	role, _ := awsarn.Parse(c.RoleARN)
	return awsclient.DefaultRegion(role.Partition)
}

// Sets lists the environment variables that agents get of this configuration, and those that would replace the session.
func (c Config) Sets() []string {
	names := []string{
		"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_CREDENTIAL_EXPIRATION", "AWS_PROFILE",
	}
	if c.Region != "" {
		names = append(names, "AWS_REGION", "AWS_DEFAULT_REGION")
	}
	if c.Endpoint != "" {
		names = append(names, "AWS_ENDPOINT_URL")
	}
	return names
}

// ScopeNames lists the scopes, sorted.
func (c Config) ScopeNames() []string {
	names := make([]string, 0, len(c.Scopes))
	for name := range c.Scopes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Capabilities are the promises of this configuration.
func (c Config) Capabilities() broker.Capabilities {
	caps := broker.Capabilities{MinTTL: time.Second, MaxTTL: maxDuration, SelfExpires: true, Revoke: broker.RevokeNone}
	if c.Revocation.Mode != "none" {
		caps.Revoke, caps.RevokeLag = broker.RevokeDeny, defaultLag
		if c.Revocation.Lag != nil {
			caps.RevokeLag = *c.Revocation.Lag
		}
	}
	if c.WebIdentity != nil { // that makes the broker a role's session
		caps.MaxTTL = chainedMax
	}
	return caps
}
