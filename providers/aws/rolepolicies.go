package aws

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"
	"unicode"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"github.com/taskpass/taskpass/broker"
)

// errRoom says that the role's inline policies took less than was planned; the notes now know why.
var errRoom = errors.New("the inline policies of the role have less room than was known")

// maxPolicyVersions is what IAM keeps of a managed policy.
const maxPolicyVersions = 5

// knowRole sees to it that the role which IAM finds is the profile's. IAM looks in the caller's own account only, and by the
// name: a role of the same name there is not the one that agents hold sessions of.
func (d *denier) knowRole(ctx context.Context, n *notes) error {
	if n.Known {
		return nil
	}
	out, err := d.iam.GetRole(ctx, &iam.GetRoleInput{RoleName: &d.role})
	if err != nil {
		return vendorMeaning(err, d.arn)
	}
	if out.Role == nil || aws.ToString(out.Role.Arn) == "" {
		return fmt.Errorf("reading role %s: %w", d.role, errors.New("the answer has no ARN"))
	}
	if *out.Role.Arn != d.arn {
		return broker.Errorf(broker.CodeUpstreamRefused,
			"the broker's account has another role of that name than %s: the operator should set revocation.iam_role_arn to a role of its account", d.arn)
	}
	n.Known = true
	return nil
}

// put makes one policy say the document; an empty one means that it goes.
func (d *denier) put(ctx context.Context, n *notes, s *shelf, document string) error {
	if s.managed() {
		return d.putManaged(ctx, s.Name, document)
	}
	if document == "" {
		_, err := d.iam.DeleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{RoleName: &d.role, PolicyName: aws.String(PolicyName)})
		if r, _ := readReplyOf(err); err == nil || r.genuine && r.Status == 404 {
			return nil
		}
		return vendorMeaning(err, d.arn)
	}
	_, err := d.iam.PutRolePolicy(ctx, &iam.PutRolePolicyInput{
		RoleName: &d.role, PolicyName: aws.String(PolicyName), PolicyDocument: &document,
	})
	if err == nil {
		return nil
	}
	if r, _ := readReplyOf(err); r.genuine && (r.Code == "LimitExceeded" || r.Code == "LimitExceededException") {
		known := n.Others
		if measureErr := d.measureOthers(ctx, n); measureErr == nil && n.Others > known {
			s.Intended = s.Intended[:len(s.Intended)-1] // refused: it is surely not there
			return errRoom
		}
	}
	return vendorMeaning(err, d.arn)
}

// putManaged makes a new default version of a managed policy; the oldest one makes room for it.
func (d *denier) putManaged(ctx context.Context, arn, document string) error {
	versions, err := d.iam.ListPolicyVersions(ctx, &iam.ListPolicyVersionsInput{PolicyArn: &arn})
	if err != nil {
		return vendorMeaning(err, d.arn)
	}
	old := slices.DeleteFunc(versions.Versions, func(v types.PolicyVersion) bool { return v.IsDefaultVersion })
	if len(old) >= maxPolicyVersions-1 {
		oldest := slices.MinFunc(old, func(a, b types.PolicyVersion) int { return aws.ToTime(a.CreateDate).Compare(aws.ToTime(b.CreateDate)) })
		_, err := d.iam.DeletePolicyVersion(ctx, &iam.DeletePolicyVersionInput{PolicyArn: &arn, VersionId: oldest.VersionId})
		if err != nil {
			return vendorMeaning(err, d.arn)
		}
	}
	_, err = d.iam.CreatePolicyVersion(ctx, &iam.CreatePolicyVersionInput{PolicyArn: &arn, PolicyDocument: &document, SetAsDefault: true})
	if err != nil {
		return vendorMeaning(err, d.arn)
	}
	return nil
}

// attached finds out which of the managed policies the role really has: a denial in one that is not attached denies
// nothing.
func (d *denier) attached(ctx context.Context, n *notes) error {
	have := map[string]bool{}
	pages := iam.NewListAttachedRolePoliciesPaginator(d.iam, &iam.ListAttachedRolePoliciesInput{RoleName: &d.role})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return vendorMeaning(err, d.arn)
		}
		for _, p := range page.AttachedPolicies {
			have[aws.ToString(p.PolicyArn)] = true
		}
	}
	for _, s := range n.Shelves[1:] {
		was := s.Attached
		s.Attached = have[s.Name]
		switch {
		case s.Attached:
		case was && len(s.Members) > 0: // those that it denied live
			d.edited(ctx, n, s.Name)
		default:
			d.logger.WarnContext(ctx, "a spill policy is not attached to the role, so it is not used", "role", d.arn, "policy", s.Name)
		}
	}
	return nil
}

func (d *denier) edited(ctx context.Context, n *notes, policy string) {
	d.logger.WarnContext(ctx, "somebody else changed a deny policy; it is set right", "role", d.arn, "policy", policy)
	n.found = append(n.found, d.finding(broker.EventUpstreamEdited, map[string]string{"policy": policy}))
}

// measureOthers counts the characters of the role's other inline policies, which share the room.
func (d *denier) measureOthers(ctx context.Context, n *notes) error {
	total := 0
	pages := iam.NewListRolePoliciesPaginator(d.iam, &iam.ListRolePoliciesInput{RoleName: &d.role})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return vendorMeaning(err, d.arn)
		}
		for _, name := range page.PolicyNames {
			if name == PolicyName {
				continue
			}
			text, err := d.inline(ctx, name)
			if err != nil {
				return err
			}
			for _, c := range text {
				if !unicode.IsSpace(c) {
					total++
				}
			}
		}
	}
	n.Others = total
	return nil
}

// inline is an inline policy's document; empty when there is none.
func (d *denier) inline(ctx context.Context, name string) (string, error) {
	out, err := d.iam.GetRolePolicy(ctx, &iam.GetRolePolicyInput{RoleName: &d.role, PolicyName: &name})
	if r, _ := readReplyOf(err); err != nil && r.genuine && r.Status == 404 {
		return "", nil
	}
	if err != nil {
		return "", vendorMeaning(err, d.arn)
	}
	return plainDocument(out.PolicyDocument), nil
}

// managed is the document of a managed policy's default version; empty when there is no such policy.
func (d *denier) managed(ctx context.Context, arn string) (string, error) {
	versions, err := d.iam.ListPolicyVersions(ctx, &iam.ListPolicyVersionsInput{PolicyArn: &arn})
	if r, _ := readReplyOf(err); err != nil && r.genuine && r.Status == 404 {
		return "", nil
	}
	if err != nil {
		return "", vendorMeaning(err, d.arn)
	}
	for _, v := range versions.Versions {
		if !v.IsDefaultVersion {
			continue
		}
		out, err := d.iam.GetPolicyVersion(ctx, &iam.GetPolicyVersionInput{PolicyArn: &arn, VersionId: v.VersionId})
		if err != nil {
			return "", vendorMeaning(err, d.arn)
		}
		if out.PolicyVersion != nil {
			return plainDocument(out.PolicyVersion.Document), nil
		}
	}
	return "", nil
}

// plainDocument undoes the encoding in which IAM gives documents (RFC 3986). Servers that give them plain are read too: an
// IAM document of ours has no percent sign.
func plainDocument(text *string) string {
	plain, err := url.PathUnescape(aws.ToString(text))
	if err != nil {
		return aws.ToString(text)
	}
	return plain
}

// look compares what is upstream with the notes. What nobody here wrote is put on the record; that it is set right follows
// from the notes, which say from now on what was seen. What cannot be read keeps nothing else from being looked at.
func (d *denier) look(ctx context.Context, n *notes) error {
	n.Known = false // the role may be another one under the same name
	err := d.knowRole(ctx, n)
	err = errors.Join(err, d.measureOthers(ctx, n))
	if len(n.Shelves) > 1 {
		err = errors.Join(err, d.attached(ctx, n))
	}
	for _, s := range n.Shelves {
		if s.untouched() {
			continue
		}
		read := d.inline
		if s.managed() {
			read = d.managed
		}
		text, readErr := read(ctx, s.Name)
		if readErr != nil {
			err = errors.Join(err, readErr)
			continue
		}
		d.compare(ctx, n, s, fingerprint(text))
	}
	return err
}

// compare notes what was seen of one policy. What we wrote at any time is no edit of somebody else's: a write of ours was slow,
// or IAM's read is behind. That there is no policy yet may be such a read, for as long as the lag.
func (d *denier) compare(ctx context.Context, n *notes, s *shelf, seen string) {
	lag := defaultLag
	if d.cfg.Lag != nil {
		lag = *d.cfg.Lag
	}
	ours := seen == s.Written || slices.Contains(s.Intended, seen) || slices.Contains(s.Past, seen) ||
		seen == "" && d.clock().Sub(s.WrittenAt) < lag
	if !s.managed() && seen != s.Written {
		n.InForce = time.Time{} // until it is written again
	}
	at := s.WrittenAt
	s.wrote(seen, at)
	if !ours {
		d.edited(ctx, n, s.Name)
	}
}
