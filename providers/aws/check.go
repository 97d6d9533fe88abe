package aws

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	awsarn "github.com/aws/aws-sdk-go-v2/aws/arn"

	"github.com/taskpass/taskpass/broker"
)

var regionForm = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-\d$`)

// Check returns all that is wrong; pointers are paths within the section, as in "scopes.read.statements[0].actions".
func (c Config) Check() []broker.Fault {
	var f broker.Faults
	role, err := awsarn.Parse(c.RoleARN)
	if err != nil || role.Service != "iam" || !strings.HasPrefix(role.Resource, "role/") {
		f.Add("role_arn", "is not the ARN of an IAM role")
	} else if _, known := partitions[role.Partition]; !known && c.Region == "" {
		f.Add("region", "is required: the role's ARN names a partition whose regions are not known here")
	}
	switch {
	case c.Region != "" && !regionForm.MatchString(c.Region):
		f.Add("region", "is not a region such as eu-west-1")
	case c.Region != "" && err == nil && partitionOf(c.Region) != role.Partition && partitions[role.Partition].region != "":
		f.Add("region", "is not of the role's partition")
	}
	f = append(f, c.checkSource()...)
	f.Below("revocation", c.Revocation.check(c.SourceIdentity, role))
	if c.STSAndIAM != "" && c.STSAndIAM != "accept" {
		f.Add("sts_and_iam", "can only say accept")
	}
	for i, key := range c.TransitiveTags {
		if _, ok := c.Tags[key]; !ok {
			f.Add(fmt.Sprintf("transitive_tags[%d]", i), "is not the key of one of the tags")
		}
	}
	if len(c.Tags) > maxTags {
		f.Add("tags", "has more than the %d that STS takes", maxTags)
	}
	for key, value := range c.Tags {
		if reason := badTag(key, value, c.Tags); reason != "" {
			f.Add("tags."+key, "%s", reason)
		}
		if err := broker.Template(value).CheckApart(broker.MatchWildcards); err != nil {
			f.Add("tags."+key, "%v", err)
		}
	}
	if len(c.Scopes) == 0 {
		f.Add("scopes", "names no scope")
	}
	for name, scope := range c.Scopes {
		f = append(f, scope.check("scopes."+name)...)
	}
	return f
}

// partitionOf finds a region's partition by its beginning.
func partitionOf(region string) string {
	for name, p := range partitions {
		if p.prefix != "" && strings.HasPrefix(region, p.prefix) {
			return name
		}
	}
	return "aws"
}

// checkSource checks where the broker's own credentials come from.
func (c Config) checkSource() []broker.Fault {
	var f broker.Faults
	if (c.AccessKeyID == "") != (c.SecretAccessKey == "") {
		f.Add("access_key_id", "and secret_access_key go together")
	}
	for pointer, ref := range map[string]broker.Ref{"access_key_id": c.AccessKeyID, "secret_access_key": c.SecretAccessKey} {
		if ref != "" {
			f.Ref(pointer, ref)
		}
	}
	keys := c.AccessKeyID != "" || c.SecretAccessKey != ""
	if c.ConfigProfile != "" && keys {
		f.Add("config_profile", "and access_key_id are two sources: name one")
	}
	if w := c.WebIdentity; w != nil {
		if keys || c.ConfigProfile != "" {
			f.Add("web_identity", "is a second source of credentials: name one")
		}
		if a, err := awsarn.Parse(w.RoleARN); err != nil || a.Service != "iam" || !strings.HasPrefix(a.Resource, "role/") {
			f.Add("web_identity.role_arn", "is not the ARN of an IAM role")
		}
		if !filepath.IsAbs(w.TokenFile) || strings.ContainsAny(w.TokenFile, "\r\n") {
			f.Add("web_identity.token_file", "is not an absolute path of a file")
		}
	}
	return f
}

func (r Revocation) check(sourceIdentity bool, role awsarn.ARN) []broker.Fault {
	var f broker.Faults
	if r.Mode != "" && r.Mode != "deny" && r.Mode != "none" {
		f.Add("mode", "is neither deny nor none")
	}
	if r.Lag != nil && (*r.Lag < 0 || *r.Lag > time.Hour) {
		f.Add("lag", "is not between 0 s and 1 h")
	}
	if reason := r.badIAMRole(role); reason != "" {
		f.Add("iam_role_arn", "%s", reason)
	}
	switch {
	case r.By != "" && r.By != "userid" && r.By != "source_identity":
		f.Add("by", "is neither userid nor source_identity")
	case r.By == "source_identity" && !sourceIdentity:
		f.Add("by", "needs source_identity: true, for else the sessions have none")
	}
	if len(r.SpillPolicies) > maxSpill {
		f.Add("spill_policies", "has more than the 10 that a role takes")
	}
	for i, p := range r.SpillPolicies {
		if reason := badSpill(p, role); reason != "" {
			f.Add(fmt.Sprintf("spill_policies[%d]", i), "%s", reason)
		} else if slices.Index(r.SpillPolicies, p) < i {
			f.Add(fmt.Sprintf("spill_policies[%d]", i), "stands twice")
		}
	}
	if r.CheckEvery != 0 && (r.CheckEvery < time.Second || r.CheckEvery > 24*time.Hour) {
		f.Add("check_every", "is not between 1s and 24h")
	}
	if r.CutOff != "" && r.CutOff != "accept" {
		f.Add("cut_off", "can only say accept")
	}
	return f
}

// badIAMRole says what is wrong with the role that policies are written by.
func (r Revocation) badIAMRole(role awsarn.ARN) string {
	a, err := awsarn.Parse(r.IAMRoleARN)
	switch {
	case r.IAMRoleARN == "":
	case err != nil || a.Service != "iam" || !strings.HasPrefix(a.Resource, "role/"):
		return "is not the ARN of an IAM role"
	case a.AccountID != role.AccountID || a.Partition != role.Partition:
		return "is not of the account of role_arn"
	case a.Resource == role.Resource:
		return "is role_arn itself, whose sessions agents hold"
	}
	return ""
}

// badSpill says what is wrong with a managed policy: IAM attaches those of the role's own account, and AWS's, which nobody
// else can write.
func badSpill(arn string, role awsarn.ARN) string {
	a, err := awsarn.Parse(arn)
	switch {
	case err != nil || a.Service != "iam" || !strings.HasPrefix(a.Resource, "policy/") || a.AccountID == "aws":
		return "is not the ARN of a managed policy of your own"
	case a.AccountID != role.AccountID || a.Partition != role.Partition:
		return "is not of the account of role_arn"
	}
	return ""
}

// badTag says what STS does not take: https://docs.aws.amazon.com/IAM/latest/UserGuide/id_session-tags.html
func badTag(key, value string, all map[string]string) string {
	switch {
	case key == "" || len(key) > 128:
		return "has a key that is not 1 to 128 characters"
	case strings.HasPrefix(strings.ToLower(key), "aws:"):
		return "has a key that begins with aws:, which is AWS's own"
	case len(value) > 256 && !strings.Contains(value, "{{"):
		return "has a value that is longer than 256 characters"
	}
	for other := range all {
		if other != key && strings.EqualFold(other, key) {
			return "has a key that differs from another one in case only"
		}
	}
	return ""
}

func (s Scope) check(at string) []broker.Fault {
	var f broker.Faults
	if len(s.Statements) == 0 {
		// Managed policies alone would be a session policy too, but ours always has statements: the session must end
		// at its own time. An empty list would therefore allow nothing.
		f.Add(at+".statements", "has no statement, so the scope would allow nothing")
	}
	for i, st := range s.Statements {
		here := fmt.Sprintf("%s.statements[%d]", at, i)
		if len(st.Actions) == 0 {
			f.Add(here+".actions", "is empty")
		}
		for j, a := range st.Actions {
			if !strings.Contains(a, ":") && a != "*" {
				f.Add(fmt.Sprintf("%s.actions[%d]", here, j), "is not of the form service:Action")
			}
		}
		if len(st.Resources) == 0 {
			f.Add(here+".resources", "is empty")
		}
		for j, r := range st.Resources {
			if err := broker.Template(r).CheckApart(broker.MatchWildcards); err != nil {
				f.Add(fmt.Sprintf("%s.resources[%d]", here, j), "%v", err)
			}
		}
		for op, keys := range st.Conditions {
			for key, values := range keys {
				for _, v := range values {
					if err := broker.Template(v).CheckApart(broker.MatchWildcards); err != nil {
						f.Add(fmt.Sprintf("%s.conditions.%s.%s", here, op, key), "%v", err)
					}
				}
			}
		}
	}
	if len(s.PolicyARNs) > maxPolicyARNs {
		f.Add(at+".policy_arns", "has more than the 10 that STS takes")
	}
	return f
}
