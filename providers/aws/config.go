package aws

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	awsarn "github.com/aws/aws-sdk-go-v2/aws/arn"

	"github.com/taskpass/taskpass/broker"
)

// Config is the `aws` section of a profile.
type Config struct {
	RoleARN    string `yaml:"role_arn"`    // the role that sessions are made of
	Region     string `yaml:"region"`      // whose STS is asked
	ExternalID string `yaml:"external_id"` // for roles of other accounts
	Endpoint   string `yaml:"endpoint"`    // for STS and IAM; empty: AWS's own

	// Source of the broker's own credentials; both empty: the SDK's default chain.
	AccessKeyID     broker.Ref `yaml:"access_key_id"`
	SecretAccessKey broker.Ref `yaml:"secret_access_key"`

	SourceIdentity bool              `yaml:"source_identity"` // set SourceIdentity to the version's id; the role's trust policy must allow it
	Tags           map[string]string `yaml:"tags"`            // session tags; values may hold placeholders

	Revocation Revocation       `yaml:"revocation"`
	Scopes     map[string]Scope `yaml:"scopes"`
}

// Revocation is how sessions are ended early.
type Revocation struct {
	Mode string         `yaml:"mode"` // "deny" (the default): the role's inline policy refuses the session; "none"
	Lag  *time.Duration `yaml:"lag"`  // how long AWS may take to obey; absent: 5 min
}

// Scope is what one scope means: fragments of a session policy, and managed policies.
type Scope struct {
	Statements  []Statement `yaml:"statements"`
	PolicyARNs  []string    `yaml:"policy_arns"`
	Description string      `yaml:"description"`
}

// Statement allows actions on resources. Resources and the values of conditions may hold the placeholders {{.TaskID}},
// {{.AgentID}} and {{.Metadata.key}}.
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

	defaultLag = 5 * time.Minute // an upper bound for "a few minutes", in which IAM's changes reach every endpoint
)

var regionForm = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-\d$`)

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
	return caps
}

// Check returns all that is wrong; pointers are paths within the section, as in "scopes.read.statements[0].actions".
func (c Config) Check() []broker.Fault {
	var faults []broker.Fault
	add := func(pointer, format string, args ...any) {
		faults = append(faults, broker.Fault{Pointer: pointer, Reason: fmt.Sprintf(format, args...)})
	}
	if a, err := awsarn.Parse(c.RoleARN); err != nil || a.Service != "iam" || !strings.HasPrefix(a.Resource, "role/") {
		add("role_arn", "is not the ARN of an IAM role")
	}
	if !regionForm.MatchString(c.Region) {
		add("region", "is not a region such as eu-west-1")
	}
	if (c.AccessKeyID == "") != (c.SecretAccessKey == "") {
		add("access_key_id", "and secret_access_key go together")
	}
	for pointer, ref := range map[string]broker.Ref{"access_key_id": c.AccessKeyID, "secret_access_key": c.SecretAccessKey} {
		if ref != "" && ref.Check() != nil {
			add(pointer, "%v", ref.Check())
		}
	}
	if c.Revocation.Mode != "" && c.Revocation.Mode != "deny" && c.Revocation.Mode != "none" {
		add("revocation.mode", "is neither deny nor none")
	}
	if lag := c.Revocation.Lag; lag != nil && (*lag < 0 || *lag > time.Hour) {
		add("revocation.lag", "is not between 0 s and 1 h")
	}
	if len(c.Tags) > maxTags {
		add("tags", "has more than the %d that STS takes", maxTags)
	}
	for key, value := range c.Tags {
		if err := checkTemplate(value); err != nil {
			add("tags."+key, "%v", err)
		}
	}
	if len(c.Scopes) == 0 {
		add("scopes", "names no scope")
	}
	for name, scope := range c.Scopes {
		faults = append(faults, scope.check("scopes."+name)...)
	}
	return faults
}

func (s Scope) check(at string) []broker.Fault {
	var faults []broker.Fault
	add := func(pointer, reason string) {
		faults = append(faults, broker.Fault{Pointer: at + pointer, Reason: reason})
	}
	if len(s.Statements) == 0 {
		// Managed policies alone would be a session policy too, but ours always has statements: the session must end
		// at its own time. An empty list would therefore allow nothing.
		add(".statements", "has no statement, so the scope would allow nothing")
	}
	for i, st := range s.Statements {
		here := fmt.Sprintf(".statements[%d]", i)
		if len(st.Actions) == 0 {
			add(here+".actions", "is empty")
		}
		for j, a := range st.Actions {
			if !strings.Contains(a, ":") && a != "*" {
				add(fmt.Sprintf("%s.actions[%d]", here, j), "is not of the form service:Action")
			}
		}
		if len(st.Resources) == 0 {
			add(here+".resources", "is empty")
		}
		for j, r := range st.Resources {
			if err := checkTemplate(r); err != nil {
				add(fmt.Sprintf("%s.resources[%d]", here, j), err.Error())
			}
		}
		for op, keys := range st.Conditions {
			for key, values := range keys {
				for _, v := range values {
					if err := checkTemplate(v); err != nil {
						add(fmt.Sprintf("%s.conditions.%s.%s", here, op, key), err.Error())
					}
				}
			}
		}
	}
	if len(s.PolicyARNs) > maxPolicyARNs {
		add(".policy_arns", "has more than the 10 that STS takes")
	}
	return faults
}
