package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsarn "github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	"github.com/taskpass/taskpass/broker"
)

// PolicyName is the inline policy of a role that the broker owns. Nobody else should edit it.
const PolicyName = "taskpass-revoked"

// skew keeps a denial in place for a while after its session's end, for clocks that differ.
const skew = time.Minute

// denier writes one role's deny policy from the ledger. PutRolePolicy overwrites and knows no compare-and-swap, so the
// policy is always written whole, by one process at a time, from what the database says at that moment: a revocation
// that is on the ledger before reconcile begins is in what it writes.
type denier struct {
	iam     *iam.Client
	role    string // the name without its path
	arn     string
	denials broker.Denials
	clock   func() time.Time

	turn chan struct{} // held by the run that is writing

	mu     sync.Mutex
	next   *run // the run that has not begun to read yet: later callers join it
	roleID string
}

// run is one write of the policy, shared by all who waited for it.
type run struct {
	done chan struct{}
	err  error
	left bool // its leader went away before it was done: somebody else must lead
}

func newDenier(client *iam.Client, role awsarn.ARN, arn string, deps Deps) *denier {
	return &denier{
		iam: client, role: path.Base(role.Resource), arn: arn,
		denials: deps.Denials, clock: deps.Clock, turn: make(chan struct{}, 1),
	}
}

// reconcile brings the role's policy in line with the ledger. Calls that wait at the same moment share one write: the first
// leads, and when its time is up another takes its place.
func (d *denier) reconcile(ctx context.Context) error {
	for {
		d.mu.Lock()
		r, leads := d.next, false
		if r == nil {
			r, leads = &run{done: make(chan struct{})}, true
			d.next = r
		}
		d.mu.Unlock()
		if leads {
			r.err = d.lead(ctx)
			r.left = ctx.Err() != nil
			close(r.done)
			return r.err
		}
		select {
		case <-r.done:
			if !r.left {
				return r.err
			}
		case <-ctx.Done():
			return broker.Errorf(broker.CodeUpstreamTimeout, "AWS did not answer in time").Because(ctx.Err())
		}
	}
}

func (d *denier) lead(ctx context.Context) error {
	begin := func() { d.mu.Lock(); d.next = nil; d.mu.Unlock() }
	select {
	case d.turn <- struct{}{}:
		begin()
		defer func() { <-d.turn }()
	case <-ctx.Done():
		begin()
		return broker.Errorf(broker.CodeUpstreamTimeout, "AWS did not answer in time").Because(ctx.Err())
	}
	return d.denials.Locked(ctx, d.arn, func(ctx context.Context) error {
		list, err := d.denials.Denied(ctx, d.arn, d.clock().Add(-skew))
		if err != nil {
			return err
		}
		return d.write(ctx, list)
	})
}

func (d *denier) write(ctx context.Context, list []broker.VersionID) error {
	if len(list) == 0 {
		_, err := d.iam.DeleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{RoleName: &d.role, PolicyName: aws.String(PolicyName)})
		if v, answered := readVendorError(err); err == nil || answered && v.status == 404 {
			return nil
		}
		return vendorMeaning(err, d.arn)
	}
	id, err := d.id(ctx)
	if err != nil {
		return err
	}
	users := make(oneOrMany, len(list))
	for i, version := range list {
		users[i] = id + ":" + string(version)
	}
	slices.Sort(users)
	document, err := json.Marshal(policy{Version: "2012-10-17", Statement: []statement{{
		Effect: "Deny", Action: oneOrMany{"*"}, Resource: oneOrMany{"*"},
		Condition: map[string]map[string]oneOrMany{"StringEquals": {"aws:userid": users}},
	}}})
	if err != nil {
		return err
	}
	_, err = d.iam.PutRolePolicy(ctx, &iam.PutRolePolicyInput{
		RoleName: &d.role, PolicyName: aws.String(PolicyName), PolicyDocument: aws.String(string(document)),
	})
	if err != nil {
		return vendorMeaning(err, d.arn)
	}
	return nil
}

// id is the role's unique id, the first part of its sessions' aws:userid. It never changes for a role; a role that was
// deleted and made anew has another, and then the broker must be restarted.
func (d *denier) id(ctx context.Context) (string, error) {
	d.mu.Lock()
	known := d.roleID
	d.mu.Unlock()
	if known != "" {
		return known, nil
	}
	out, err := d.iam.GetRole(ctx, &iam.GetRoleInput{RoleName: &d.role})
	if err != nil {
		return "", vendorMeaning(err, d.arn)
	}
	if out.Role == nil || aws.ToString(out.Role.RoleId) == "" {
		return "", fmt.Errorf("reading role %s: %w", d.role, errors.New("the answer has no role id"))
	}
	d.mu.Lock()
	d.roleID = *out.Role.RoleId
	d.mu.Unlock()
	return *out.Role.RoleId, nil
}
