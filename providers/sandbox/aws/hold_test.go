package aws_test

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/providers/sandbox/aws"
)

func (b *bench) putRolePolicy(ctx context.Context, name, document string) error {
	_, err := iamClient(b.broker()).PutRolePolicy(ctx, &iam.PutRolePolicyInput{
		RoleName: sdk.String("agent"), PolicyName: &name, PolicyDocument: &document,
	})
	return err
}

func (b *bench) rolePolicy(ctx context.Context, name string) (string, error) {
	out, err := iamClient(b.broker()).GetRolePolicy(ctx, &iam.GetRolePolicyInput{RoleName: sdk.String("agent"), PolicyName: &name})
	if err != nil {
		return "", err
	}
	return url.PathUnescape(*out.PolicyDocument)
}

// TestHeldWriteOvertakesALaterOne is what a broker that gave up on a write must survive.
func TestHeldWriteOvertakesALaterOne(t *testing.T) {
	t.Parallel()
	b := start(t)
	held := b.Hold("PutRolePolicy")
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() { gone <- b.putRolePolicy(ctx, "revoked", denyUsers("AROAEXAMPLE:old")) }()
	<-held.Arrived()
	leave()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Fatalf("the client that went away: %v", err)
	}
	newer := denyUsers("AROAEXAMPLE:old", "AROAEXAMPLE:new")
	if err := b.putRolePolicy(t.Context(), "revoked", newer); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"revoked": newer}, b.RolePolicies("agent")); diff != "" {
		t.Error(diff)
	}
	held.Release()
	if diff := cmp.Diff(map[string]string{"revoked": denyUsers("AROAEXAMPLE:old")}, b.RolePolicies("agent")); diff != "" {
		t.Error(diff)
	}
	held.Release() // twice is no matter
}

func TestHoldReleasedFirstOrNever(t *testing.T) {
	t.Parallel()
	b := start(t)
	b.Hold("PutRolePolicy").Release()
	if err := b.putRolePolicy(t.Context(), "revoked", idle); err != nil {
		t.Fatal(err)
	}
	held := b.Hold("PutRolePolicy")
	gone := make(chan error, 1)
	go func() { gone <- b.putRolePolicy(context.Background(), "revoked", denyUsers("AROAEXAMPLE:x")) }()
	<-held.Arrived()
	b.Close()
	if err := <-gone; err == nil {
		t.Error("the server closed and yet there was an answer")
	}
	if diff := cmp.Diff(map[string]string{"revoked": idle}, b.RolePolicies("agent")); diff != "" {
		t.Error(diff)
	}
}

func TestStaleReadOfARolePolicy(t *testing.T) {
	t.Parallel()
	b := start(t)
	first, second := denyUsers("AROAEXAMPLE:1"), denyUsers("AROAEXAMPLE:1", "AROAEXAMPLE:2")
	if err := b.putRolePolicy(t.Context(), "revoked", first); err != nil {
		t.Fatal(err)
	}
	b.Inject(aws.Fault{Action: "GetRolePolicy", Kind: aws.StaleRead})
	_, err := b.rolePolicy(t.Context(), "revoked") // not there yet
	wantError(t, err, http.StatusNotFound, "NoSuchEntity")
	if err := b.putRolePolicy(t.Context(), "revoked", second); err != nil {
		t.Fatal(err)
	}
	b.Inject(aws.Fault{Action: "GetRolePolicy", Kind: aws.StaleRead, Times: 2})
	for _, want := range []string{first, first, second} {
		if got, err := b.rolePolicy(t.Context(), "revoked"); got != want {
			t.Errorf("%s, %v, want %s", got, err, want)
		}
	}
	if err := b.SetRolePolicy("agent", "revoked", ""); err != nil {
		t.Fatal(err)
	}
	b.Inject(aws.Fault{Action: "ListRolePolicies", Kind: aws.StaleRead})
	for _, want := range []int{1, 0} {
		out, err := iamClient(b.broker()).ListRolePolicies(t.Context(), &iam.ListRolePoliciesInput{RoleName: sdk.String("agent")})
		if err != nil || len(out.PolicyNames) != want {
			t.Errorf("%+v, %v, want %d", out, err, want)
		}
	}
}

func TestStaleReadOfAManagedPolicy(t *testing.T) {
	t.Parallel()
	b := start(t, withOverflow)
	if _, err := createVersion(t.Context(), b.broker(), overflowARN, denyUsers("x"), true); err != nil {
		t.Fatal(err)
	}
	b.Inject(aws.Fault{Action: "GetPolicy", Kind: aws.StaleRead})
	b.Inject(aws.Fault{Action: "GetPolicyVersion", Kind: aws.StaleRead})
	b.Inject(aws.Fault{Action: "ListPolicyVersions", Kind: aws.StaleRead})
	client, arn := iamClient(b.broker()), sdk.String(overflowARN)
	for _, stale := range []bool{true, false} {
		want, versions := "v2", 2
		if stale {
			want, versions = "v1", 1
		}
		p, err := client.GetPolicy(t.Context(), &iam.GetPolicyInput{PolicyArn: arn})
		if err != nil || *p.Policy.DefaultVersionId != want {
			t.Errorf("stale %v: %+v, %v", stale, p, err)
		}
		_, err = client.GetPolicyVersion(t.Context(), &iam.GetPolicyVersionInput{PolicyArn: arn, VersionId: sdk.String("v2")})
		if stale {
			wantError(t, err, http.StatusNotFound, "NoSuchEntity")
		} else if err != nil {
			t.Error(err)
		}
		l, err := client.ListPolicyVersions(t.Context(), &iam.ListPolicyVersionsInput{PolicyArn: arn})
		if err != nil || len(l.Versions) != versions {
			t.Errorf("stale %v: %+v, %v", stale, l, err)
		}
	}
}

func TestFaultsOfIAMWrites(t *testing.T) {
	t.Parallel()
	b := start(t)
	b.Inject(aws.Fault{Action: "PutRolePolicy", Kind: aws.LimitExceeded, Message: "planted"})
	b.Inject(aws.Fault{Action: "PutRolePolicy", Kind: aws.Throttle})
	b.Inject(aws.Fault{Action: "PutRolePolicy", Kind: aws.Refuse, Status: http.StatusConflict, Code: "ConcurrentModification"})
	err := b.putRolePolicy(t.Context(), "revoked", idle)
	wantError(t, err, http.StatusConflict, "LimitExceeded")
	if !strings.Contains(err.Error(), "planted") {
		t.Error(err)
	}
	err = b.putRolePolicy(t.Context(), "revoked", idle)
	wantError(t, err, http.StatusBadRequest, "Throttling")
	if !strings.Contains(err.Error(), "Rate exceeded") {
		t.Error(err)
	}
	wantError(t, b.putRolePolicy(t.Context(), "revoked", idle), http.StatusConflict, "ConcurrentModification")
	if n := len(b.RolePolicies("agent")); n != 0 {
		t.Errorf("%d policies were written", n)
	}
	b.Inject(aws.Fault{Action: "PutRolePolicy", Kind: aws.DropReply})
	if err := b.putRolePolicy(t.Context(), "revoked", idle); err == nil {
		t.Error("a lost reply was answered")
	}
	if diff := cmp.Diff(map[string]string{"revoked": idle}, b.RolePolicies("agent")); diff != "" {
		t.Error(diff)
	}
}
