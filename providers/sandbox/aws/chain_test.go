package aws_test

import (
	"net/http"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	ststypes "github.com/aws/aws-sdk-go-v2/service/sts/types"
	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/providers/sandbox/aws"
)

func TestSessionMayNotReachSTSOrIAM(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *aws.Config) {
		c.Roles[0].Policy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`
		c.Roles[0].TrustedARNs = []string{"123456789012"}
	})
	bound, _ := b.assume("bound", taskOne)
	free, _ := b.assume("free", "")
	_, _, err := b.tryAssume(bound, "next", "")
	wantDenied(t, err)
	_, err = iamClient(bound).GetRole(t.Context(), &iam.GetRoleInput{RoleName: sdk.String("agent")})
	wantDenied(t, err)
	_, err = iamClient(bound).DeleteRolePolicy(t.Context(), &iam.DeleteRolePolicyInput{RoleName: sdk.String("agent"), PolicyName: sdk.String("revoked")})
	wantDenied(t, err)

	next, _, err := b.tryAssume(free, "next", "")
	if err != nil {
		t.Fatal(err)
	}
	wantRead(t, next, "tasks/1/a")
	_, _, err = b.tryAssume(free, "long", "", func(in *sts.AssumeRoleInput) { in.DurationSeconds = sdk.Int32(3601) })
	wantError(t, err, http.StatusBadRequest, "ValidationError")
}

func TestChainingHandsDown(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *aws.Config) {
		c.Roles[0].Policy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`
		c.Roles[0].TrustedARNs = []string{"arn:aws:iam::123456789012:user/taskpass-broker", roleARN}
	})
	first, _ := b.assume("first", "", func(in *sts.AssumeRoleInput) {
		in.SourceIdentity = sdk.String("run-7")
		in.Tags = []ststypes.Tag{tag("task", "seven"), tag("own", "x")}
		in.TransitiveTagKeys = []string{"task"}
	})
	_, out, err := b.tryAssume(first, "second", "")
	if err != nil || *out.SourceIdentity != "run-7" {
		t.Fatalf("chained: %+v, %v", out, err)
	}
	for _, info := range b.Sessions() {
		if info.Name != "second" {
			continue
		}
		if diff := cmp.Diff(map[string]string{"task": "seven"}, info.Tags); diff != "" {
			t.Error(diff)
		}
	}
	_, _, err = b.tryAssume(first, "third", "", func(in *sts.AssumeRoleInput) { in.SourceIdentity = sdk.String("run-8") })
	wantDenied(t, err)
	_, _, err = b.tryAssume(first, "third", "", func(in *sts.AssumeRoleInput) { in.Tags = []ststypes.Tag{tag("Task", "eight")} })
	wantError(t, err, http.StatusBadRequest, "InvalidParameterValue")
}

func TestSessionsAreRecorded(t *testing.T) {
	t.Parallel()
	now := newClock()
	b := start(t, withClock(now))
	_, out := b.assume("crd1", taskOne, func(in *sts.AssumeRoleInput) {
		in.SourceIdentity = sdk.String("run-7")
		in.Tags = []ststypes.Tag{tag("task", "seven")}
	})
	want := []aws.SessionInfo{{
		Name: "crd1", AccessKeyID: *out.Credentials.AccessKeyId, Role: "agent", UserID: "AROAEXAMPLE:crd1",
		ARN: "arn:aws:sts::123456789012:assumed-role/agent/crd1", SourceIdentity: "run-7",
		Tags: map[string]string{"task": "seven"}, Policy: taskOne,
		Issued: now.Now().UTC(), Expires: now.Now().UTC().Add(time.Hour),
	}}
	if diff := cmp.Diff(want, b.Sessions()); diff != "" {
		t.Error(diff)
	}
	if n := b.AssumeRoleCalls(); n != 1 {
		t.Errorf("%d calls", n)
	}
}
