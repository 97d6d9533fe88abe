package aws

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	awsarn "github.com/aws/aws-sdk-go-v2/aws/arn"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/awsclient"
)

// Check returns all that is wrong; pointers are paths within the section, as in "scopes.read.statements[0].actions".
func (c Config) Check() []broker.Fault {
	var f broker.Faults
	role, wrong := c.role(c.RoleARN)
	if wrong != "" {
		f.Add("role_arn", "%s", wrong)
	}
	switch {
	case c.Region == "" && wrong == "" && awsclient.DefaultRegion(role.Partition) == "":
		f.Add("region", "is required: the SDK knows no first region of the partition %s", role.Partition)
	case c.Region != "" && !awsclient.ValidRegion(c.Region):
		f.Add("region", "is not a region such as eu-west-1")
	case c.Region != "" && wrong == "" && awsclient.OtherPartition(c.Region, role.Partition):
		f.Add("region", "is not of the role's partition")
	}
	if c.FIPS && c.Endpoint != "" {
		f.Add("fips", "is for AWS's own endpoints, and endpoint names another")
	}
	if c.ExternalID != "" && (!externalForm.MatchString(c.ExternalID) || len(c.ExternalID) > 1224) {
		f.Add("external_id", "is not 2 to 1224 of A-Z a-z 0-9 _ + = , . @ : / -")
	}
	if reason := badText(c.ConfigProfile); reason != "" {
		f.Add("config_profile", "%s", reason)
	}
	f = append(f, c.checkSource()...)
	f.Below("revocation", c.Revocation.check(c.SourceIdentity, role))
	if c.STSAndIAM != "" && c.STSAndIAM != "accept" {
		f.Add("sts_and_iam", "can only say accept")
	}
	f = append(f, c.checkTags()...)
	if len(c.Scopes) == 0 {
		f.Add("scopes", "names no scope")
	}
	for name, scope := range c.Scopes {
		f = append(f, scope.check("scopes."+name, role)...)
	}
	return f
}

func (c Config) checkTags() []broker.Fault {
	var f broker.Faults
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
		} else if err := broker.Template(value).CheckApart(broker.MatchWildcards); err != nil {
			f.Add("tags."+key, "%v", err)
		}
	}
	return f
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
		if _, wrong := c.role(w.RoleARN); wrong != "" {
			f.Add("web_identity.role_arn", "%s", wrong)
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
	a, wrong := namedARN(r.IAMRoleARN, "role")
	switch {
	case r.IAMRoleARN == "":
	case wrong != "":
		return wrong
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
	a, wrong := namedARN(arn, "policy")
	switch {
	case wrong == "" && a.AccountID == "aws", wrong != "" && !strings.HasPrefix(a.Resource, "policy/"):
		return "is not the ARN of a managed policy of your own"
	case wrong != "":
		return wrong
	case a.AccountID != role.AccountID || a.Partition != role.Partition:
		return "is not of the account of role_arn"
	}
	return ""
}

func (s Scope) check(at string, role awsarn.ARN) []broker.Fault {
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
			if !actionForm.MatchString(a) {
				f.Add(fmt.Sprintf("%s.actions[%d]", here, j), "is not of the form service:Action, of A-Z a-z 0-9 - * ? without spaces")
			}
		}
		if len(st.Resources) == 0 {
			f.Add(here+".resources", "is empty")
		}
		for j, r := range st.Resources {
			if err := broker.Template(r).CheckApart(broker.MatchWildcards); err != nil {
				f.Add(fmt.Sprintf("%s.resources[%d]", here, j), "%v", err)
			} else if reason := badResource(r); reason != "" {
				f.Add(fmt.Sprintf("%s.resources[%d]", here, j), "%s", reason)
			}
		}
		for op, keys := range st.Conditions {
			if !operatorForm.MatchString(op) {
				f.Add(fmt.Sprintf("%s.conditions.%s", here, op), "is not the name of an operator, such as StringLike")
			}
			for key, values := range keys {
				if !keyForm.MatchString(key) {
					f.Add(fmt.Sprintf("%s.conditions.%s.%s", here, op, key), "is not the name of a key, such as s3:prefix")
				}
				for _, v := range values {
					if reason := badText(v); reason != "" {
						f.Add(fmt.Sprintf("%s.conditions.%s.%s", here, op, key), "%s", reason)
					}
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
	for i, arn := range s.PolicyARNs {
		a, wrong := namedARN(arn, "policy")
		switch {
		case wrong != "" || role.Partition == "": // the role's own fault is reported
		case a.Partition != role.Partition:
			wrong = "is not of the role's partition"
		case a.AccountID != role.AccountID && a.AccountID != "aws": // STS takes no others
			wrong = "is neither of the account of role_arn nor AWS's own"
		}
		if wrong != "" {
			f.Add(fmt.Sprintf("%s.policy_arns[%d]", at, i), "%s", wrong)
		}
	}
	return f
}
