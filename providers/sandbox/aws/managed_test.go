package aws_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	iamtypes "github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	ststypes "github.com/aws/aws-sdk-go-v2/service/sts/types"
	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/providers/sandbox/aws"
)

const (
	overflowARN = "arn:aws:iam::123456789012:policy/taskpass/overflow"
	// idle is a policy that denies nothing that anybody asks for.
	idle = `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"none:None","Resource":"*"}]}`
)

// withOverflow has a managed policy that denies nothing, attached to the role.
func withOverflow(c *aws.Config) {
	c.ManagedPolicies = map[string]string{overflowARN: idle}
	c.Roles[0].AttachedPolicies = []string{overflowARN}
}

func createVersion(ctx context.Context, cfg sdk.Config, arn, document string, asDefault bool) (*iamtypes.PolicyVersion, error) {
	out, err := iamClient(cfg).CreatePolicyVersion(ctx, &iam.CreatePolicyVersionInput{
		PolicyArn: &arn, PolicyDocument: &document, SetAsDefault: asDefault,
	})
	if err != nil {
		return nil, err
	}
	return out.PolicyVersion, nil
}

func TestAttachedPolicyCountsByItsDefaultVersion(t *testing.T) {
	t.Parallel()
	b := start(t, withOverflow)
	doomed, _ := b.assume("doomed", taskOne)
	twin, _ := b.assume("twin", taskOne)
	v, err := createVersion(t.Context(), b.broker(), overflowARN, denyUsers("AROAEXAMPLE:doomed"), false)
	if err != nil || *v.VersionId != "v2" || v.IsDefaultVersion || v.CreateDate == nil || v.Document != nil {
		t.Fatalf("CreatePolicyVersion: %+v, %v", v, err)
	}
	wantRead(t, doomed, "tasks/1/a") // v1 is still in force
	if v, err = createVersion(t.Context(), b.broker(), overflowARN, denyUsers("AROAEXAMPLE:doomed"), true); err != nil || !v.IsDefaultVersion {
		t.Fatalf("CreatePolicyVersion, default: %+v, %v", v, err)
	}
	_, err = get(t.Context(), doomed, "tasks/1/a")
	wantDenied(t, err)
	wantRead(t, twin, "tasks/1/a")

	if err := b.SetDefaultPolicyVersion(overflowARN, "v1"); err != nil {
		t.Fatal(err)
	}
	wantRead(t, doomed, "tasks/1/a")
	if err := b.SetDefaultPolicyVersion(overflowARN, "v3"); err != nil {
		t.Fatal(err)
	}
	if err := b.DetachRolePolicy("agent", overflowARN); err != nil {
		t.Fatal(err)
	}
	wantRead(t, doomed, "tasks/1/a")
	if err := b.AttachRolePolicy("agent", overflowARN); err != nil {
		t.Fatal(err)
	}
	_, err = get(t.Context(), doomed, "tasks/1/a")
	wantDenied(t, err)
}

func TestAttachedPolicyMayAllow(t *testing.T) {
	t.Parallel()
	const arn = "arn:aws:iam::aws:policy/ReadElsewhere"
	b := start(t)
	b.PutObject("elsewhere", "k", []byte("x"))
	if err := b.AddManagedPolicy(arn, `{"Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::elsewhere/*"}]}`); err != nil {
		t.Fatal(err)
	}
	read := func(name, policy string) error {
		cfg, _ := b.assume(name, policy)
		return headElsewhere(t.Context(), cfg)
	}
	wantError(t, read("before", ""), http.StatusForbidden, "Forbidden")
	if err := b.AttachRolePolicy("agent", arn); err != nil {
		t.Fatal(err)
	}
	if err := read("after", ""); err != nil {
		t.Error(err)
	}
	wantError(t, read("bound", taskOne), http.StatusForbidden, "Forbidden")
}

func TestPolicyVersions(t *testing.T) {
	t.Parallel()
	b := start(t, withOverflow)
	client, ctx := iamClient(b.broker()), t.Context()
	for range 4 {
		if _, err := createVersion(ctx, b.broker(), overflowARN, idle, false); err != nil {
			t.Fatal(err)
		}
	}
	_, err := createVersion(ctx, b.broker(), overflowARN, idle, true)
	wantError(t, err, http.StatusConflict, "LimitExceeded")

	remove := func(id string) error {
		_, err := client.DeletePolicyVersion(ctx, &iam.DeletePolicyVersionInput{PolicyArn: sdk.String(overflowARN), VersionId: &id})
		return err
	}
	wantError(t, remove("v1"), http.StatusConflict, "DeleteConflict")
	wantError(t, remove("v9"), http.StatusNotFound, "NoSuchEntity")
	wantError(t, remove("1"), http.StatusBadRequest, "ValidationError")
	if err := remove("v3"); err != nil {
		t.Fatal(err)
	}
	doc := denyUsers("AROAEXAMPLE:a+b c")
	v, err := createVersion(ctx, b.broker(), overflowARN, doc, true)
	if err != nil || *v.VersionId != "v6" { // a number is not used again
		t.Fatalf("%+v, %v", v, err)
	}
	var ids []string
	pages := iam.NewListPolicyVersionsPaginator(client, &iam.ListPolicyVersionsInput{PolicyArn: sdk.String(overflowARN), MaxItems: sdk.Int32(2)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if page.IsTruncated != (page.Marker != nil) || len(page.Versions) > 2 {
			t.Errorf("page: %+v", page)
		}
		for _, v := range page.Versions {
			ids = append(ids, fmt.Sprintf("%s %v", *v.VersionId, v.IsDefaultVersion))
		}
	}
	if diff := cmp.Diff([]string{"v6 true", "v5 false", "v4 false", "v2 false", "v1 false"}, ids); diff != "" {
		t.Error(diff)
	}
	_, err = client.ListPolicyVersions(ctx, &iam.ListPolicyVersionsInput{PolicyArn: sdk.String(overflowARN), Marker: sdk.String("first")})
	wantError(t, err, http.StatusBadRequest, "InvalidInput")

	got, err := client.GetPolicyVersion(ctx, &iam.GetPolicyVersionInput{PolicyArn: sdk.String(overflowARN), VersionId: sdk.String("v6")})
	if err != nil {
		t.Fatal(err)
	}
	text, err := url.PathUnescape(*got.PolicyVersion.Document)
	if err != nil || text != doc || strings.ContainsAny(*got.PolicyVersion.Document, `{" +`) {
		t.Errorf("document %s, %v", *got.PolicyVersion.Document, err)
	}
	policy, err := client.GetPolicy(ctx, &iam.GetPolicyInput{PolicyArn: sdk.String(overflowARN)})
	if err != nil {
		t.Fatal(err)
	}
	if p := policy.Policy; *p.DefaultVersionId != "v6" || *p.AttachmentCount != 1 || *p.PolicyName != "overflow" ||
		*p.Path != "/taskpass/" || *p.Arn != overflowARN || !strings.HasPrefix(*p.PolicyId, "ANPA") {
		t.Errorf("GetPolicy: %+v", p)
	}
	if vs := b.PolicyVersions(overflowARN); len(vs) != 5 || vs[4].Document != doc || !vs[4].Default || vs[0].ID != "v1" {
		t.Errorf("PolicyVersions: %+v", vs)
	}
}

func TestManagedPolicyRefuses(t *testing.T) {
	t.Parallel()
	const (
		foreign = "arn:aws:iam::210987654321:policy/theirs"
		vendors = "arn:aws:iam::aws:policy/ReadOnlyAccess"
	)
	b := start(t, withOverflow, func(c *aws.Config) {
		c.ManagedPolicies[foreign], c.ManagedPolicies[vendors] = idle, idle
	})
	ctx := t.Context()
	// sized is a policy of exactly n characters that count, and some that do not.
	sized := func(n int) string {
		doc := denyUsers("")
		return strings.Replace(doc, `[""]`, `["`+strings.Repeat("x", n-len(doc))+"\"]  \n\t ", 1)
	}
	create := func(arn, document string) error {
		_, err := createVersion(ctx, b.broker(), arn, document, true)
		return err
	}
	if err := create(overflowARN, sized(6144)); err != nil {
		t.Error(err)
	}
	wantError(t, create(overflowARN, sized(6145)), http.StatusConflict, "LimitExceeded")
	wantError(t, create(overflowARN, `{"Statement":[]}`), http.StatusBadRequest, "MalformedPolicyDocument")
	wantError(t, create(overflowARN, "\u4e00"), http.StatusBadRequest, "ValidationError")
	wantError(t, create("arn:aws:iam::123456789012:policy/none", idle), http.StatusNotFound, "NoSuchEntity")
	wantError(t, create("arn:aws:iam::123456789012:role/agent", idle), http.StatusBadRequest, "InvalidInput")
	wantDenied(t, create(foreign, idle))
	wantDenied(t, create(vendors, idle))
	read := func(arn string) error {
		_, err := iamClient(b.broker()).GetPolicyVersion(ctx, &iam.GetPolicyVersionInput{PolicyArn: &arn, VersionId: sdk.String("v1")})
		return err
	}
	wantDenied(t, read(foreign))
	if err := read(vendors); err != nil {
		t.Error(err)
	}
	if n := len(b.PolicyVersions(overflowARN)); n != 2 {
		t.Errorf("%d versions", n)
	}
}

func TestListAttachedRolePolicies(t *testing.T) {
	t.Parallel()
	b := start(t, withOverflow)
	want := []string{}
	for i := range 9 {
		arn := fmt.Sprintf("arn:aws:iam::123456789012:policy/p%d", i)
		want = append(want, arn)
		if err := b.AddManagedPolicy(arn, idle); err != nil {
			t.Fatal(err)
		}
		if err := b.AttachRolePolicy("agent", arn); err != nil {
			t.Fatal(err)
		}
	}
	client := iamClient(b.broker())
	list := func(in iam.ListAttachedRolePoliciesInput) (arns []string) {
		in.RoleName = sdk.String("agent")
		pages := iam.NewListAttachedRolePoliciesPaginator(client, &in)
		for pages.HasMorePages() {
			page, err := pages.NextPage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if in.MaxItems != nil && len(page.AttachedPolicies) > int(*in.MaxItems) {
				t.Errorf("%d on a page", len(page.AttachedPolicies))
			}
			for _, p := range page.AttachedPolicies {
				if !strings.HasSuffix(*p.PolicyArn, "/"+*p.PolicyName) {
					t.Errorf("%s is named %s", *p.PolicyArn, *p.PolicyName)
				}
				arns = append(arns, *p.PolicyArn)
			}
		}
		return arns
	}
	want = append(want, overflowARN)
	if diff := cmp.Diff(want, list(iam.ListAttachedRolePoliciesInput{MaxItems: sdk.Int32(3)})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{overflowARN}, list(iam.ListAttachedRolePoliciesInput{PathPrefix: sdk.String("/taskpass/")})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, b.AttachedPolicies("agent")); diff != "" {
		t.Error(diff)
	}
	const eleventh = "arn:aws:iam::123456789012:policy/eleventh"
	if err := b.AddManagedPolicy(eleventh, idle); err != nil {
		t.Fatal(err)
	}
	if err := b.AttachRolePolicy("agent", eleventh); err == nil || !strings.Contains(err.Error(), "LimitExceeded") {
		t.Errorf("an eleventh policy: %v", err)
	}
	if err := b.DetachRolePolicy("agent", want[0]); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want[1:], b.AttachedPolicies("agent")); diff != "" {
		t.Error(diff)
	}
}

func TestListRolePoliciesPages(t *testing.T) {
	t.Parallel()
	b := start(t)
	want := []string{"a", "b", "c", "d", "e"}
	for _, name := range want {
		if err := b.SetRolePolicy("agent", name, idle); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	pages := iam.NewListRolePoliciesPaginator(iamClient(b.broker()), &iam.ListRolePoliciesInput{RoleName: sdk.String("agent"), MaxItems: sdk.Int32(2)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, page.PolicyNames...)
		if len(got) == 2 { // what is gone between two pages does not upset the listing
			if err := b.SetRolePolicy("agent", "b", ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSessionIsBoundByManagedSessionPolicies(t *testing.T) {
	t.Parallel()
	const arn = "arn:aws:iam::123456789012:policy/tasks-one"
	b := start(t, func(c *aws.Config) { c.ManagedPolicies = map[string]string{arn: taskOne} })
	cfg, _ := b.assume("bound", "", func(in *sts.AssumeRoleInput) {
		in.PolicyArns = []ststypes.PolicyDescriptorType{{Arn: sdk.String(arn)}}
	})
	wantRead(t, cfg, "tasks/1/a")
	_, err := get(t.Context(), cfg, "tasks/2/a")
	wantDenied(t, err)
	if got := b.Sessions()[0].PolicyARNs; len(got) != 1 || got[0] != arn {
		t.Errorf("PolicyARNs %v", got)
	}
}

func TestOperatorIsRefused(t *testing.T) {
	t.Parallel()
	b := start(t, withOverflow)
	for name, try := range map[string]func() error{
		"policy twice":       func() error { return b.AddManagedPolicy(overflowARN, idle) },
		"policy ARN":         func() error { return b.AddManagedPolicy("arn:aws:iam::1:policy/x", idle) },
		"policy document":    func() error { return b.AddManagedPolicy("arn:aws:iam::123456789012:policy/x", "{") },
		"attach nothing":     func() error { return b.AttachRolePolicy("agent", "arn:aws:iam::123456789012:policy/x") },
		"attach to nobody":   func() error { return b.AttachRolePolicy("none", overflowARN) },
		"detach nothing":     func() error { return b.DetachRolePolicy("agent", "arn:aws:iam::123456789012:policy/x") },
		"no such version":    func() error { return b.SetDefaultPolicyVersion(overflowARN, "v9") },
		"version of nothing": func() error { _, err := b.AddPolicyVersion("arn:aws:iam::aws:policy/x", idle, true); return err },
		"user policy":        func() error { return b.SetUserPolicy("{") },
	} {
		if try() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if id, err := b.AddPolicyVersion(overflowARN, idle, true); id != "v2" || err != nil {
		t.Errorf("AddPolicyVersion: %s, %v", id, err)
	}
	if err := b.AttachRolePolicy("agent", overflowARN); err != nil {
		t.Errorf("attached already: %v", err)
	}
}
