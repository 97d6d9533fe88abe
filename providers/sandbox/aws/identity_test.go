package aws_test

import (
	"context"
	"strings"
	"testing"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	ststypes "github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/taskpass/taskpass/providers/sandbox/aws"
)

const allowAll = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`

func headElsewhere(ctx context.Context, cfg sdk.Config) error {
	_, err := s3Client(cfg).HeadObject(ctx, &s3.HeadObjectInput{Bucket: sdk.String("elsewhere"), Key: sdk.String("k")})
	return err
}

// TestUserPolicyIsAskedForEachCall grants all calls but one, for each of them.
func TestUserPolicyIsAskedForEachCall(t *testing.T) {
	t.Parallel()
	role, name, doc := sdk.String("agent"), sdk.String("revoked"), sdk.String(idle)
	policy, v1 := sdk.String(overflowARN), sdk.String("v1")
	assume := func(ctx context.Context, cfg sdk.Config, edit func(*sts.AssumeRoleInput)) error {
		in := &sts.AssumeRoleInput{RoleArn: sdk.String(roleARN), RoleSessionName: sdk.String("crd1")}
		edit(in)
		_, err := sts.NewFromConfig(cfg).AssumeRole(ctx, in)
		return err
	}
	calls := map[string]func(context.Context, sdk.Config) error{
		"sts:AssumeRole": func(ctx context.Context, cfg sdk.Config) error {
			return assume(ctx, cfg, func(*sts.AssumeRoleInput) {})
		},
		"sts:TagSession": func(ctx context.Context, cfg sdk.Config) error {
			return assume(ctx, cfg, func(in *sts.AssumeRoleInput) { in.Tags = []ststypes.Tag{tag("task", "7")} })
		},
		"sts:SetSourceIdentity": func(ctx context.Context, cfg sdk.Config) error {
			return assume(ctx, cfg, func(in *sts.AssumeRoleInput) { in.SourceIdentity = sdk.String("run-7") })
		},
		"iam:GetRole": func(ctx context.Context, cfg sdk.Config) error {
			_, err := iamClient(cfg).GetRole(ctx, &iam.GetRoleInput{RoleName: role})
			return err
		},
		"iam:PutRolePolicy": func(ctx context.Context, cfg sdk.Config) error {
			_, err := iamClient(cfg).PutRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: role, PolicyName: name, PolicyDocument: doc})
			return err
		},
		"iam:DeleteRolePolicy": func(ctx context.Context, cfg sdk.Config) error {
			_, err := iamClient(cfg).DeleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{RoleName: role, PolicyName: name})
			return err
		},
		"iam:GetRolePolicy": func(ctx context.Context, cfg sdk.Config) error {
			_, err := iamClient(cfg).GetRolePolicy(ctx, &iam.GetRolePolicyInput{RoleName: role, PolicyName: name})
			return err
		},
		"iam:ListRolePolicies": func(ctx context.Context, cfg sdk.Config) error {
			_, err := iamClient(cfg).ListRolePolicies(ctx, &iam.ListRolePoliciesInput{RoleName: role})
			return err
		},
		"iam:ListAttachedRolePolicies": func(ctx context.Context, cfg sdk.Config) error {
			_, err := iamClient(cfg).ListAttachedRolePolicies(ctx, &iam.ListAttachedRolePoliciesInput{RoleName: role})
			return err
		},
		"iam:CreatePolicyVersion": func(ctx context.Context, cfg sdk.Config) error {
			_, err := createVersion(ctx, cfg, overflowARN, idle, true)
			return err
		},
		"iam:DeletePolicyVersion": func(ctx context.Context, cfg sdk.Config) error {
			_, err := iamClient(cfg).DeletePolicyVersion(ctx, &iam.DeletePolicyVersionInput{PolicyArn: policy, VersionId: v1})
			return err
		},
		"iam:ListPolicyVersions": func(ctx context.Context, cfg sdk.Config) error {
			_, err := iamClient(cfg).ListPolicyVersions(ctx, &iam.ListPolicyVersionsInput{PolicyArn: policy})
			return err
		},
		"iam:GetPolicyVersion": func(ctx context.Context, cfg sdk.Config) error {
			_, err := iamClient(cfg).GetPolicyVersion(ctx, &iam.GetPolicyVersionInput{PolicyArn: policy, VersionId: v1})
			return err
		},
		"iam:GetPolicy": func(ctx context.Context, cfg sdk.Config) error {
			_, err := iamClient(cfg).GetPolicy(ctx, &iam.GetPolicyInput{PolicyArn: policy})
			return err
		},
	}
	for action, do := range calls {
		t.Run(action, func(t *testing.T) {
			t.Parallel()
			b := start(t, withOverflow)
			if err := b.SetRolePolicy("agent", "revoked", idle); err != nil {
				t.Fatal(err)
			}
			if action == "iam:DeletePolicyVersion" { // which the default version would refuse
				if _, err := b.AddPolicyVersion(overflowARN, idle, true); err != nil {
					t.Fatal(err)
				}
			}
			rest := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","NotAction":"` + action + `","Resource":"*"}]}`
			if err := b.SetUserPolicy(rest); err != nil {
				t.Fatal(err)
			}
			err := do(t.Context(), b.broker())
			wantDenied(t, err)
			if !strings.Contains(err.Error(), "not authorized to perform: "+action+" on resource: arn:aws:iam::123456789012:") {
				t.Error(err)
			}
			if err := b.SetUserPolicy(allowAll); err != nil {
				t.Fatal(err)
			}
			if err := do(t.Context(), b.broker()); err != nil {
				t.Errorf("with all rights: %v", err)
			}
		})
	}
}

func TestUserPolicyBoundsTheResource(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *aws.Config) {
		c.Roles = append(c.Roles, aws.Role{Name: "other", Policy: bucketPolicy})
		c.UserPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["iam:*","sts:*"],"Resource":"` + roleARN + `"}]}`
	})
	if _, _, err := b.tryAssume(b.broker(), "crd1", ""); err != nil {
		t.Error(err)
	}
	_, _, err := b.tryAssume(b.broker(), "crd1", "", func(in *sts.AssumeRoleInput) { in.RoleArn = sdk.String(b.RoleARN("other")) })
	wantDenied(t, err)
	_, err = iamClient(b.broker()).GetRole(t.Context(), &iam.GetRoleInput{RoleName: sdk.String("other")})
	wantDenied(t, err)
}

func TestUserPolicyConditions(t *testing.T) {
	t.Parallel()
	b := start(t)
	for condition, ok := range map[string]bool{
		`{"StringEquals":{"aws:username":"taskpass-broker"}}`:            true,
		`{"StringEquals":{"aws:username":"somebody"}}`:                   false,
		`{"StringEquals":{"sts:RoleSessionName":"crd1"}}`:                true,
		`{"StringEquals":{"aws:RequestTag/task":"7"}}`:                   true,
		`{"StringEquals":{"aws:RequestTag/task":"8"}}`:                   false,
		`{"StringLike":{"sts:SourceIdentity":"run-*"}}`:                  true,
		`{"DateGreaterThan":{"aws:TokenIssueTime":"2000-01-01"}}`:        false, // a user's key has none
		`{"DateLessThanIfExists":{"aws:TokenIssueTime":"2000-01-01"}}`:   true,
		`{"DateGreaterThanIfExists":{"aws:CurrentTime":"2100-01-01"}}`:   false,
		`{"DateGreaterThanEquals":{"aws:CurrentTime":"2000-01-01"}}`:     true,
		`{"StringEquals":{"aws:RequestTag/task":"7","aws:userid":"me"}}`: false,
	} {
		doc := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*","Condition":` + condition + `}]}`
		if err := b.SetUserPolicy(doc); err != nil {
			t.Fatal(err)
		}
		_, _, err := b.tryAssume(b.broker(), "crd1", "", func(in *sts.AssumeRoleInput) {
			in.Tags, in.SourceIdentity = []ststypes.Tag{tag("task", "7")}, sdk.String("run-7")
		})
		if ok != (err == nil) {
			t.Errorf("%s: %v", condition, err)
		}
	}
}

func TestGetCallerIdentityNeedsNoRight(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *aws.Config) {
		c.UserPolicy = `{"Statement":[{"Effect":"Deny","Action":"*","Resource":"*"}]}`
	})
	id, err := sts.NewFromConfig(b.broker()).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if err != nil || *id.Arn != "arn:aws:iam::123456789012:user/taskpass-broker" || *id.Account != "123456789012" || !strings.HasPrefix(*id.UserId, "AIDA") {
		t.Errorf("%+v, %v", id, err)
	}
}
