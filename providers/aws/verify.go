package aws

import (
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsarn "github.com/aws/aws-sdk-go-v2/aws/arn"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/taskpass/taskpass/broker"
)

// clockSkew is how much STS's clock may be ahead of ours: AWS itself refuses requests beyond 5 min.
const clockSkew = 5 * time.Minute

// verify checks STS's answer against what was asked, as far as broker.CheckMinted does not. What fails is not handed out,
// and stays in doubt: it is ended like a session whose answer was lost.
func (p *Provider) verify(in *sts.AssumeRoleInput, out *sts.AssumeRoleOutput) error {
	wrong := ""
	cred := out.Credentials
	switch {
	case cred == nil || cred.Expiration == nil:
		wrong = "it has no credentials, or they have no end"
	case !token(cred.AccessKeyId) || len(*cred.AccessKeyId) > 128 || !token(cred.SecretAccessKey) || !token(cred.SessionToken):
		wrong = "a part of the credentials is empty, or has characters that AWS's never have"
	case cred.Expiration.After(p.clock().Add(time.Duration(*in.DurationSeconds)*time.Second + clockSkew)):
		wrong = "it ends later than was asked"
	case !p.isOurs(in, out):
		wrong = "it is a session of another role, or of another name"
	case out.SourceIdentity != nil && in.SourceIdentity != nil && *out.SourceIdentity != *in.SourceIdentity:
		wrong = "it has another source identity"
	default:
		return nil
	}
	answer := broker.VendorAnswer{Vendor: "AWS", Action: "AssumeRole", Status: 200}
	if id, ok := awsmiddleware.GetRequestIDMetadata(out.ResultMetadata); ok && plain(id) {
		answer.RequestID = id
	}
	return broker.Errorf(broker.CodeUpstreamError, "what STS answered was not handed out, and is ended: %s", wrong).Because(answer)
}

// token tells whether a part of the credentials is there, and printable ASCII without white space.
func token(s *string) bool {
	return aws.ToString(s) != "" && !strings.ContainsFunc(*s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// isOurs tells whether the session is of the role and the name that were asked for. AWS leaves a role's path out of a
// session's ARN; Ceph's gateway leaves out the id.
func (p *Provider) isOurs(in *sts.AssumeRoleInput, out *sts.AssumeRoleOutput) bool {
	user := out.AssumedRoleUser
	role, err := awsarn.Parse(p.cfg.RoleARN)
	if user == nil || err != nil {
		return false
	}
	if id := aws.ToString(user.AssumedRoleId); id != "" && !strings.HasSuffix(id, ":"+*in.RoleSessionName) {
		return false
	}
	got, err := awsarn.Parse(aws.ToString(user.Arn))
	if err != nil || got.Partition != role.Partition || got.AccountID != role.AccountID {
		return false
	}
	full := strings.TrimPrefix(role.Resource, "role/")
	bare := full[strings.LastIndex(full, "/")+1:]
	name, ours := strings.CutPrefix(got.Resource, "assumed-role/")
	name, named := strings.CutSuffix(name, "/"+*in.RoleSessionName)
	return ours && named && (name == bare || name == full)
}
