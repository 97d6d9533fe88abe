package aws

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
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

// knowRole finds the role's unique id, the first part of its sessions' aws:userid, unless it is noted already. A role that
// was deleted and made anew has another: look finds that.
func (d *denier) knowRole(ctx context.Context, n *notes) error {
	if n.RoleID != "" {
		return nil
	}
	out, err := d.iam.GetRole(ctx, &iam.GetRoleInput{RoleName: &d.role})
	if err != nil {
		return vendorMeaning(err, d.arn)
	}
	if out.Role == nil || aws.ToString(out.Role.RoleId) == "" {
		return fmt.Errorf("reading role %s: %w", d.role, errors.New("the answer has no role id"))
	}
	// IAM looks in the caller's own account only: a role of the same name there is not the one that agents hold sessions of.
	if found := aws.ToString(out.Role.Arn); found != "" && found != d.arn {
		return broker.Errorf(broker.CodeUpstreamRefused,
			"the broker's account has another role of that name than %s: the operator should set revocation.iam_role_arn to a role of its account", d.arn)
	}
	n.RoleID = *out.Role.RoleId
	return nil
}

// put makes one policy say the document; an empty one means that it goes.
func (d *denier) put(ctx context.Context, n *notes, s *shelf, document string) error {
	if s.managed() {
		return d.putManaged(ctx, s.Name, document)
	}
	if document == "" {
		_, err := d.iam.DeleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{RoleName: &d.role, PolicyName: aws.String(PolicyName)})
		if v, answered := readVendorError(err); err == nil || answered && v.status == 404 {
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
	if v, _ := readVendorError(err); v.code == "LimitExceeded" || v.code == "LimitExceededException" {
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
		if s.away = !have[s.Name]; s.away {
			d.logger.WarnContext(ctx, "a spill policy is not attached to the role, so it is not used", "role", d.arn, "policy", s.Name)
		}
	}
	return nil
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
	if v, answered := readVendorError(err); err != nil && answered && v.status == 404 {
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
	if v, answered := readVendorError(err); err != nil && answered && v.status == 404 {
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
// from the notes, which say from now on what was seen.
func (d *denier) look(ctx context.Context, n *notes) error {
	n.RoleID = "" // the role may be another one under the same name
	if err := d.knowRole(ctx, n); err != nil {
		return err
	}
	if err := d.measureOthers(ctx, n); err != nil {
		return err
	}
	for _, s := range n.Shelves {
		var text string
		var err error
		if s.managed() {
			if s.untouched() {
				continue
			}
			text, err = d.managed(ctx, s.Name)
		} else {
			text, err = d.inline(ctx, s.Name)
		}
		if err != nil {
			return err
		}
		d.compare(ctx, n, s, fingerprint(text))
	}
	return nil
}

// compare notes what was seen of one policy. IAM's reads may be behind its writes for as long as the lag, so within it a
// difference is nobody's fault.
func (d *denier) compare(ctx context.Context, n *notes, s *shelf, seen string) {
	ours := seen == s.Written || slices.Contains(s.Intended, seen)
	lag := defaultLag
	if d.cfg.Lag != nil {
		lag = *d.cfg.Lag
	}
	behind := !s.WrittenAt.IsZero() && d.clock().Sub(s.WrittenAt) < lag
	s.Written, s.Intended = seen, nil
	if ours || behind {
		return
	}
	d.logger.WarnContext(ctx, "somebody else changed a deny policy; it is set right", "role", d.arn, "policy", s.Name)
	n.found = append(n.found, d.finding(broker.EventUpstreamEdited, map[string]string{"policy": s.Name}))
}
