package aws_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	ststypes "github.com/aws/aws-sdk-go-v2/service/sts/types"
	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/providers/sandbox/aws"
)

func TestSessionPolicyBoundsTheSession(t *testing.T) {
	t.Parallel()
	b := start(t)
	task, out := b.assume("crd1", taskOne)
	if id := *out.AssumedRoleUser.AssumedRoleId; id != "AROAEXAMPLE:crd1" {
		t.Errorf("AssumedRoleId %q", id)
	}
	if arn := *out.AssumedRoleUser.Arn; arn != "arn:aws:sts::123456789012:assumed-role/agent/crd1" {
		t.Errorf("Arn %q", arn)
	}
	packed := *out.PackedPolicySize //nolint:staticcheck // what STS answers and the provider records
	if !strings.HasPrefix(*out.Credentials.AccessKeyId, "ASIA") || packed < 1 {
		t.Errorf("key %s, packed %d", *out.Credentials.AccessKeyId, packed)
	}
	wantRead(t, task, "tasks/1/a")
	for _, key := range []string{"tasks/2/a", "tasks/1", "tasks/11/a", "other"} {
		_, err := get(t.Context(), task, key)
		wantDenied(t, err)
	}
	wantDenied(t, put(t.Context(), task, "tasks/1/a", "overwritten"))
	_, err := s3Client(task).DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: sdk.String("data"), Key: sdk.String("tasks/1/a")})
	wantDenied(t, err)
	_, err = s3Client(task).ListBuckets(t.Context(), &s3.ListBucketsInput{})
	wantDenied(t, err)
	if body, _ := b.Object("data", "tasks/1/a"); string(body) != "body of tasks/1/a" {
		t.Errorf("a refused write changed the object to %q", body)
	}
}

func TestSessionPolicyAddsNothingToTheRole(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *aws.Config) {
		c.Roles = append(c.Roles, aws.Role{Name: "lister", Policy: `{"Statement":[{"Effect":"Allow","Action":"s3:ListAllMyBuckets","Resource":"*"}]}`})
	})
	b.PutObject("elsewhere", "k", nil)
	all := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`
	wide, _ := b.assume("wide", all)
	whole, _ := b.assume("whole", "")
	for _, cfg := range []sdk.Config{wide, whole} {
		wantRead(t, cfg, "tasks/2/a")
		if err := put(t.Context(), cfg, "new", "x"); err != nil {
			t.Fatal(err)
		}
		_, err := s3Client(cfg).GetObject(t.Context(), &s3.GetObjectInput{Bucket: sdk.String("elsewhere"), Key: sdk.String("k")})
		wantDenied(t, err)
	}
	buckets, err := s3Client(lister(b)).ListBuckets(t.Context(), &s3.ListBucketsInput{})
	if err != nil || len(buckets.Buckets) != 2 || *buckets.Buckets[0].Name != "data" {
		t.Errorf("buckets: %+v, %v", buckets, err)
	}
	_, err = get(t.Context(), b.broker(), "tasks/1/a") // the broker's own key reads nothing
	wantDenied(t, err)
}

func lister(b *bench) sdk.Config {
	cfg, _ := b.assume("lister", "", func(in *sts.AssumeRoleInput) {
		in.RoleArn, in.DurationSeconds = sdk.String(b.RoleARN("lister")), sdk.Int32(3600)
	})
	return cfg
}

func TestListIsBoundByPrefix(t *testing.T) {
	t.Parallel()
	b := start(t)
	task, _ := b.assume("crd1", taskOne)
	list := func(prefix *string, delimiter string, limit int32) (*s3.ListObjectsV2Output, error) {
		in := &s3.ListObjectsV2Input{Bucket: sdk.String("data"), Prefix: prefix}
		if delimiter != "" {
			in.Delimiter = sdk.String(delimiter)
		}
		if limit > 0 {
			in.MaxKeys = sdk.Int32(limit)
		}
		return s3Client(task).ListObjectsV2(t.Context(), in)
	}
	out, err := list(sdk.String("tasks/1/"), "/", 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Contents) != 1 || *out.Contents[0].Key != "tasks/1/a" || len(out.CommonPrefixes) != 1 || *out.CommonPrefixes[0].Prefix != "tasks/1/b/" {
		t.Errorf("listing: %+v %+v", out.Contents, out.CommonPrefixes)
	}
	if out, err = list(sdk.String("tasks/1/"), "", 1); err != nil || !*out.IsTruncated || *out.KeyCount != 1 {
		t.Fatalf("page: %+v, %v", out, err)
	}
	pages := s3.NewListObjectsV2Paginator(s3Client(task), &s3.ListObjectsV2Input{Bucket: sdk.String("data"), Prefix: sdk.String("tasks/1/"), MaxKeys: sdk.Int32(1)})
	var keys []string
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Contents {
			keys = append(keys, *o.Key)
		}
	}
	if diff := cmp.Diff([]string{"tasks/1/a", "tasks/1/b/c"}, keys); diff != "" {
		t.Error(diff)
	}
	for _, prefix := range []*string{sdk.String("tasks/2/"), sdk.String(""), sdk.String("tasks/1"), nil} {
		_, err := list(prefix, "", 0)
		wantDenied(t, err)
	}
}

func TestObjectsRoundTrip(t *testing.T) {
	t.Parallel()
	b := start(t)
	cfg, _ := b.assume("crd1", "")
	client := s3Client(cfg)
	const key = "odd key/ä+b%2F&=~(1)'*!.txt"
	_, err := client.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: sdk.String("data"), Key: sdk.String(key), Body: strings.NewReader("text"),
		ContentType: sdk.String("text/plain"), Metadata: map[string]string{"Task": "a  b"},
	})
	if err != nil {
		t.Fatal(err)
	}
	head, err := client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: sdk.String("data"), Key: sdk.String(key)})
	if err != nil || *head.ContentLength != 4 || *head.ContentType != "text/plain" || head.Metadata["task"] != "a  b" {
		t.Fatalf("head: %+v, %v", head, err)
	}
	if body, err := get(t.Context(), cfg, key); body != "text" {
		t.Fatalf("get: %q, %v", body, err)
	}
	// The SDK's default checksums too: what a customer's client sends.
	plain := s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true })
	if _, err := plain.PutObject(t.Context(), &s3.PutObjectInput{Bucket: sdk.String("data"), Key: sdk.String(key), Body: strings.NewReader("again")}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: sdk.String("data"), Key: sdk.String(key)}); err != nil {
		t.Fatal(err)
	}
	// The role may list, so it learns that the key is gone.
	_, err = get(t.Context(), cfg, key)
	wantError(t, err, http.StatusNotFound, "NoSuchKey")
	_, err = client.GetObjectAcl(t.Context(), &s3.GetObjectAclInput{Bucket: sdk.String("data"), Key: sdk.String("tasks/1/a")})
	wantError(t, err, http.StatusNotImplemented, "NotImplemented")
	_, err = client.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: sdk.String("data"), Key: sdk.String("copy"), CopySource: sdk.String("data/tasks/1/a")})
	wantError(t, err, http.StatusNotImplemented, "NotImplemented")
}

func denyUsers(ids ...string) string {
	return `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"StringEquals":{"aws:userid":["` +
		strings.Join(ids, `","`) + `"]}}}]}`
}

func TestDenyByUserIDKillsExactlyOneSession(t *testing.T) {
	t.Parallel()
	b := start(t)
	doomed, _ := b.assume("doomed", taskOne)
	twin, _ := b.assume("doomed2", taskOne)
	wantRead(t, doomed, "tasks/1/a")
	admin := iamClient(b.broker())
	_, err := admin.PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{
		RoleName: sdk.String("agent"), PolicyName: sdk.String("revoked"), PolicyDocument: sdk.String(denyUsers("AROAEXAMPLE:doomed")),
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = get(t.Context(), doomed, "tasks/1/a")
	wantDenied(t, err)
	if !strings.Contains(err.Error(), "with an explicit deny in an identity-based policy") {
		t.Errorf("message: %v", err)
	}
	wantRead(t, twin, "tasks/1/a")
	id, err := sts.NewFromConfig(doomed).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if err != nil || *id.UserId != "AROAEXAMPLE:doomed" {
		t.Errorf("GetCallerIdentity of a denied session: %+v, %v", id, err)
	}
	// Only the policy's being there denies: a foreign edit that drops it revives.
	if err := b.SetRolePolicy("agent", "revoked", ""); err != nil {
		t.Fatal(err)
	}
	wantRead(t, doomed, "tasks/1/a")
}

func TestDenyByWhatASessionBears(t *testing.T) {
	t.Parallel()
	for name, condition := range map[string]string{
		"source identity": `{"StringEquals":{"aws:SourceIdentity":"run-7"}}`,
		"tag":             `{"StringEquals":{"aws:PrincipalTag/task":"seven"}}`,
		"issue time":      `{"DateLessThan":{"aws:TokenIssueTime":"` + time.Now().Add(time.Minute).UTC().Format(time.RFC3339) + `"},"Null":{"aws:SourceIdentity":"false"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t)
			marked, out := b.assume("marked", taskOne, func(in *sts.AssumeRoleInput) {
				in.SourceIdentity = sdk.String("run-7")
				in.Tags = []ststypes.Tag{tag("Task", "seven")}
			})
			if *out.SourceIdentity != "run-7" {
				t.Errorf("SourceIdentity %q", *out.SourceIdentity)
			}
			other, _ := b.assume("other", taskOne)
			wantRead(t, marked, "tasks/1/a")
			policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*","Condition":` + condition + `}]}`
			if err := b.SetRolePolicy("agent", "revoked", policy); err != nil {
				t.Fatal(err)
			}
			_, err := get(t.Context(), marked, "tasks/1/a")
			wantDenied(t, err)
			wantRead(t, other, "tasks/1/a")
		})
	}
}

func TestIssueTimeCutOff(t *testing.T) {
	t.Parallel()
	now := newClock()
	b := start(t, withClock(now))
	older, _ := b.assume("older", taskOne)
	now.Advance(time.Minute)
	cutOff := now.Now()
	younger, _ := b.assume("younger", taskOne)
	deny := func(operator string) {
		t.Helper()
		doc := `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"` +
			operator + `":{"aws:TokenIssueTime":"` + cutOff.UTC().Format(time.RFC3339) + `"}}}]}`
		if err := b.SetRolePolicy("agent", "revoked", doc); err != nil {
			t.Fatal(err)
		}
	}
	deny("DateLessThan")
	_, err := get(t.Context(), older, "tasks/1/a")
	wantDenied(t, err)
	wantRead(t, younger, "tasks/1/a")
	deny("DateLessThanEquals")
	_, err = get(t.Context(), younger, "tasks/1/a")
	wantDenied(t, err)
}

func TestSessionEnds(t *testing.T) {
	t.Parallel()
	now := newClock()
	b := start(t, withClock(now))
	end := now.Now().Add(5 * time.Minute)
	early := fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"},`+
		`{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"DateGreaterThan":{"aws:CurrentTime":"%s"}}}]}`, end.UTC().Format(time.RFC3339))
	short, _ := b.assume("short", early)
	long, out := b.assume("long", taskOne, func(in *sts.AssumeRoleInput) { in.DurationSeconds = sdk.Int32(900) })
	if got := out.Credentials.Expiration.Sub(now.Now()); got != 15*time.Minute {
		t.Errorf("expires in %s", got)
	}
	now.Advance(5 * time.Minute)
	wantRead(t, short, "tasks/1/a")
	now.Advance(time.Second)
	_, err := get(t.Context(), short, "tasks/1/a")
	wantDenied(t, err)
	wantRead(t, long, "tasks/1/a")
	now.Advance(10*time.Minute - time.Second)
	_, err = get(t.Context(), long, "tasks/1/a")
	wantError(t, err, http.StatusBadRequest, "ExpiredToken")
	_, err = sts.NewFromConfig(long).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	wantError(t, err, http.StatusForbidden, "ExpiredToken")
}
