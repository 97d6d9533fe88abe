package aws

import (
	"context"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsarn "github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"github.com/taskpass/taskpass/broker"
)

// ProbeName is the inline policy that Prove writes and removes. It denies everything to a user id that no session has.
const ProbeName = "taskpass-probe"

const probeDocument = `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*",` +
	`"Condition":{"StringEquals":{"aws:userid":"taskpass-probe:nobody"}}}]}`

var (
	roleRights   = []string{"iam:GetRole", "iam:PutRolePolicy", "iam:DeleteRolePolicy", "iam:GetRolePolicy", "iam:ListRolePolicies"}
	policyRights = []string{"iam:ListPolicyVersions", "iam:GetPolicyVersion", "iam:CreatePolicyVersion", "iam:DeletePolicyVersion"}
)

var _ broker.Prover = (*Provider)(nil)

// Prove implements broker.Prover: SimulatePrincipalPolicy says what the policies of the identity that writes allow, and a
// write is made and undone: an inline policy and, for spill policies, a version that is not the default one.
func (p *Provider) Prove(ctx context.Context, writes bool) []broker.Proof {
	if p.cfg.Revocation.Mode == "none" {
		return nil
	}
	if err := p.own.ready(ctx); err != nil {
		return []broker.Proof{broker.NotProvenBy("the broker's own AWS credentials", err)}
	}
	rights := roleRights
	if len(p.cfg.Revocation.SpillPolicies) > 0 {
		rights = append(slices.Clone(rights), "iam:ListAttachedRolePolicies")
	}
	who := p.writer(ctx)
	list := p.denier.simulate(ctx, who, p.cfg.RoleARN, rights)
	for _, policy := range p.cfg.Revocation.SpillPolicies {
		list = append(list, p.denier.simulate(ctx, who, policy, policyRights)...)
	}
	if writes {
		list = append(list, p.denier.tryWrites(ctx)...)
	}
	return list
}

// writer is the ARN of the user or role by which policies are written; empty: it cannot be found out. The ARN of a session
// has no path, so a role's own is looked up.
func (p *Provider) writer(ctx context.Context) string {
	if role := p.cfg.Revocation.IAMRoleARN; role != "" {
		return role
	}
	who, err := awsarn.Parse(p.own.identity(ctx))
	if err != nil {
		return ""
	}
	session, isRole := strings.CutPrefix(who.Resource, "assumed-role/")
	if !isRole {
		return who.String()
	}
	name, _, _ := strings.Cut(session, "/")
	if out, err := p.denier.iam.GetRole(ctx, &iam.GetRoleInput{RoleName: &name}); err == nil && out.Role != nil && aws.ToString(out.Role.Arn) != "" {
		return *out.Role.Arn
	}
	who.Service, who.Resource = "iam", "role/"+name
	return who.String()
}

// simulate asks IAM what an identity's policies say of each right on a resource.
func (d *denier) simulate(ctx context.Context, who, resource string, rights []string) []broker.Proof {
	const right = "the right to revoke"
	if who == "" {
		return []broker.Proof{{Right: right, State: broker.NotProven, How: "AWS did not say who the broker is"}}
	}
	out, err := d.iam.SimulatePrincipalPolicy(ctx, &iam.SimulatePrincipalPolicyInput{
		PolicySourceArn: &who, ActionNames: rights, ResourceArns: []string{resource},
	})
	if err != nil {
		if r, _ := readReplyOf(err); r.asksWho() {
			return []broker.Proof{{Right: right + " on " + resource, State: broker.NotProven,
				How: "grant iam:SimulatePrincipalPolicy on " + who + ", or prove it by --probe-writes"}}
		}
		return []broker.Proof{broker.NotProvenBy(right+" on "+resource, vendorMeaning(err, d.arn))}
	}
	said := map[string]types.PolicyEvaluationDecisionType{}
	for _, e := range out.EvaluationResults {
		said[aws.ToString(e.EvalActionName)] = e.EvalDecision
	}
	var list []broker.Proof
	for _, action := range rights {
		proof := broker.Proof{Right: action + " on " + resource, State: broker.Proven, How: "SimulatePrincipalPolicy of " + who}
		switch said[action] {
		case types.PolicyEvaluationDecisionTypeAllowed:
		case "":
			proof.State, proof.How = broker.NotProven, "SimulatePrincipalPolicy did not say"
		default:
			proof.State, proof.How = broker.Lacking, "grant it to "+who
		}
		list = append(list, proof)
	}
	return list
}

// tryWrites makes and undoes the writes of a revocation. They deny nobody anything.
func (d *denier) tryWrites(ctx context.Context) []broker.Proof {
	list := []broker.Proof{d.tried("iam:PutRolePolicy", d.arn, func() error {
		_, err := d.iam.PutRolePolicy(ctx, &iam.PutRolePolicyInput{
			RoleName: &d.role, PolicyName: aws.String(ProbeName), PolicyDocument: aws.String(probeDocument),
		})
		return err
	}), d.tried("iam:DeleteRolePolicy", d.arn, func() error {
		_, err := d.iam.DeleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{RoleName: &d.role, PolicyName: aws.String(ProbeName)})
		return err
	})}
	for _, arn := range d.cfg.SpillPolicies {
		var made *types.PolicyVersion
		list = append(list, d.tried("iam:CreatePolicyVersion", arn, func() error {
			out, err := d.iam.CreatePolicyVersion(ctx, &iam.CreatePolicyVersionInput{PolicyArn: &arn, PolicyDocument: aws.String(probeDocument)})
			if err == nil {
				made = out.PolicyVersion
			}
			return err
		}))
		if made != nil {
			list = append(list, d.tried("iam:DeletePolicyVersion", arn, func() error {
				_, err := d.iam.DeletePolicyVersion(ctx, &iam.DeletePolicyVersionInput{PolicyArn: &arn, VersionId: made.VersionId})
				return err
			}))
		}
	}
	return list
}

// tried says what one write proves. IAM asks for the right before it looks at what there is, or at its limits.
func (d *denier) tried(action, resource string, write func() error) broker.Proof {
	proof := broker.Proof{Right: action + " on " + resource, State: broker.Proven, How: "done, and undone"}
	err := write()
	switch r, _ := readReplyOf(err); {
	case err == nil:
	case r.genuine && strings.HasPrefix(r.Code, "NoSuchEntity") && action != "iam:DeleteRolePolicy":
		proof.State, proof.How = broker.Lacking, "IAM has no such role or policy"
	case r.genuine && (strings.HasPrefix(r.Code, "LimitExceeded") || strings.HasPrefix(r.Code, "NoSuchEntity")):
		proof.How = "IAM refused it for another reason (" + r.Code + ")"
	case r.asksWho():
		proof.State, proof.How = broker.Lacking, "IAM refused the write: grant it"
	default:
		return broker.NotProvenBy(proof.Right, vendorMeaning(err, d.arn))
	}
	return proof
}
