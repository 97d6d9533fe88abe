package aws_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	ststypes "github.com/aws/aws-sdk-go-v2/service/sts/types"
	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/providers/sandbox/aws"
)

func TestAssumeRoleRefuses(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *aws.Config) {
		c.Roles = append(c.Roles,
			aws.Role{Name: "partner", Policy: bucketPolicy, ExternalID: "x-1"},
			aws.Role{Name: "closed", Policy: bucketPolicy, TrustedARNs: []string{"arn:aws:iam::999999999999:root"}})
	})
	type in = sts.AssumeRoleInput
	tags := func(n int, value string) (out []ststypes.Tag) {
		for i := range n {
			out = append(out, tag(fmt.Sprintf("k%d", i), value))
		}
		return out
	}
	for _, tc := range []struct {
		name string
		edit func(*in)
		code string
	}{
		{"too short", func(i *in) { i.DurationSeconds = sdk.Int32(899) }, "ValidationError"},
		{"over the role's maximum", func(i *in) { i.DurationSeconds = sdk.Int32(7201) }, "ValidationError"},
		{"over twelve hours", func(i *in) { i.DurationSeconds = sdk.Int32(43201) }, "ValidationError"},
		{"name of one", func(i *in) { i.RoleSessionName = sdk.String("x") }, "ValidationError"},
		{"name of 65", func(i *in) { i.RoleSessionName = sdk.String(strings.Repeat("x", 65)) }, "ValidationError"},
		{"name with a space", func(i *in) { i.RoleSessionName = sdk.String("a b") }, "ValidationError"},
		{"source identity with a colon", func(i *in) { i.SourceIdentity = sdk.String("aws:x") }, "ValidationError"},
		{"empty policy", func(i *in) { i.Policy = sdk.String("") }, "ValidationError"},
		{"long policy", func(i *in) { i.Policy = sdk.String(taskOne + strings.Repeat(" ", 2049-len(taskOne))) }, "ValidationError"},
		{"policy that is no JSON", func(i *in) { i.Policy = sdk.String("{") }, "MalformedPolicyDocument"},
		{"policy with a principal", func(i *in) {
			i.Policy = sdk.String(`{"Statement":[{"Effect":"Allow","Action":"*","Resource":"*","Principal":"*"}]}`)
		}, "MalformedPolicyDocument"},
		{"eleven managed policies", func(i *in) {
			for range 11 {
				i.PolicyArns = append(i.PolicyArns, ststypes.PolicyDescriptorType{Arn: sdk.String("arn:aws:iam::aws:policy/X")})
			}
		}, "ValidationError"},
		{"51 tags", func(i *in) { i.Tags = tags(51, "") }, "ValidationError"},
		{"long tag", func(i *in) { i.Tags = tags(1, strings.Repeat("v", 257)) }, "ValidationError"},
		{"tag twice", func(i *in) { i.Tags = []ststypes.Tag{tag("a", "1"), tag("A", "2")} }, "InvalidParameterValue"},
		{"tags too large together", func(i *in) { i.Tags = tags(50, strings.Repeat("v", 256)) }, "PackedPolicyTooLarge"},
		{"no such role", func(i *in) { i.RoleArn = sdk.String("arn:aws:iam::123456789012:role/none") }, "AccessDenied"},
		{"role that trusts others", func(i *in) { i.RoleArn = sdk.String("arn:aws:iam::123456789012:role/closed") }, "AccessDenied"},
		{"no external id", func(i *in) { i.RoleArn = sdk.String("arn:aws:iam::123456789012:role/partner") }, "AccessDenied"},
		{"wrong external id", func(i *in) {
			i.RoleArn, i.ExternalId = sdk.String("arn:aws:iam::123456789012:role/partner"), sdk.String("x-2")
		}, "AccessDenied"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := b.tryAssume(b.broker(), "crd1", "", tc.edit)
			status := http.StatusBadRequest
			if tc.code == "AccessDenied" {
				status = http.StatusForbidden
				if !strings.Contains(err.Error(), "User: arn:aws:iam::123456789012:user/taskpass-broker is not authorized to perform: sts:AssumeRole on resource: arn:aws:iam::") {
					t.Errorf("message: %v", err)
				}
			}
			wantError(t, err, status, tc.code)
		})
	}
	_, _, err := b.tryAssume(b.broker(), "crd1", taskOne+strings.Repeat(" ", 2048-len(taskOne)), func(i *in) {
		i.RoleArn, i.ExternalId = sdk.String("arn:aws:iam::123456789012:role/partner"), sdk.String("x-1")
	})
	if err != nil {
		t.Errorf("the right external id and a policy of 2,048: %v", err)
	}
	if n := len(b.Sessions()); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

func TestRolePolicies(t *testing.T) {
	t.Parallel()
	b := start(t)
	client := iamClient(b.broker())
	put := func(role, name, doc string) error {
		_, err := client.PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{RoleName: &role, PolicyName: &name, PolicyDocument: &doc})
		return err
	}
	role, err := client.GetRole(t.Context(), &iam.GetRoleInput{RoleName: sdk.String("agent")})
	if err != nil || *role.Role.RoleId != "AROAEXAMPLE" || *role.Role.MaxSessionDuration != 7200 || *role.Role.Arn != roleARN {
		t.Fatalf("GetRole: %+v, %v", role, err)
	}
	doc := denyUsers("AROAEXAMPLE:a+b c")
	for _, name := range []string{"z", "a"} {
		if err := put("agent", name, doc); err != nil {
			t.Fatal(err)
		}
	}
	got, err := client.GetRolePolicy(t.Context(), &iam.GetRolePolicyInput{RoleName: sdk.String("agent"), PolicyName: sdk.String("a")})
	if err != nil || strings.ContainsAny(*got.PolicyDocument, `{" +`) {
		t.Fatalf("GetRolePolicy, percent-encoded: %+v, %v", got, err)
	}
	names, err := client.ListRolePolicies(t.Context(), &iam.ListRolePoliciesInput{RoleName: sdk.String("agent")})
	if diff := cmp.Diff([]string{"a", "z"}, names.PolicyNames); err != nil || diff != "" {
		t.Fatal(err, diff)
	}
	if diff := cmp.Diff(map[string]string{"a": doc, "z": doc}, b.RolePolicies("agent")); diff != "" {
		t.Error(diff)
	}
	if _, err := client.DeleteRolePolicy(t.Context(), &iam.DeleteRolePolicyInput{RoleName: sdk.String("agent"), PolicyName: sdk.String("z")}); err != nil {
		t.Fatal(err)
	}
	_, err = client.GetRolePolicy(t.Context(), &iam.GetRolePolicyInput{RoleName: sdk.String("agent"), PolicyName: sdk.String("z")})
	wantError(t, err, http.StatusNotFound, "NoSuchEntity")
	wantError(t, put("none", "a", doc), http.StatusNotFound, "NoSuchEntity")
	wantError(t, put("agent", "a", "{"), http.StatusBadRequest, "MalformedPolicyDocument")
}

func TestInlinePoliciesShareALimit(t *testing.T) {
	t.Parallel()
	b := start(t)
	// sized is a policy of exactly n characters that count, and some that do not.
	sized := func(n int) string {
		doc := denyUsers("")
		return strings.Replace(doc, `[""]`, `["`+strings.Repeat("x", n-len(doc))+"\"]  \n\t ", 1)
	}
	for _, step := range []struct {
		name string
		size int
		ok   bool
	}{
		{"a", 10241, false}, {"a", 10240, true}, {"b", 200, false}, {"a", 10040, true}, {"b", 200, true}, {"b", 201, false},
	} {
		_, err := iamClient(b.broker()).PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{
			RoleName: sdk.String("agent"), PolicyName: sdk.String(step.name), PolicyDocument: sdk.String(sized(step.size)),
		})
		if step.ok && err != nil {
			t.Fatalf("%+v: %v", step, err)
		}
		if !step.ok {
			wantError(t, err, http.StatusConflict, "LimitExceeded")
		}
	}
	if err := b.SetRolePolicy("agent", "c", denyUsers("x")); err == nil {
		t.Error("a foreign edit passed the limit")
	}
}

func TestForgeriesAreRefused(t *testing.T) {
	t.Parallel()
	b := start(t)
	good, out := b.assume("crd1", taskOne)
	other, _ := b.assume("crd2", taskOne)
	id, secret, token := *out.Credentials.AccessKeyId, *out.Credentials.SecretAccessKey, *out.Credentials.SessionToken
	otherToken, err := other.Credentials.Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantRead(t, good, "tasks/1/a")
	for _, tc := range []struct {
		name      string
		cfg       sdk.Config
		s3Status  int
		s3Code    string
		queryCode string
	}{
		{"wrong secret", b.config(id, secret+"x", token), 403, "SignatureDoesNotMatch", "SignatureDoesNotMatch"},
		{"wrong token", b.config(id, secret, token+"x"), 400, "InvalidToken", "InvalidClientTokenId"},
		{"no token", b.config(id, secret, ""), 400, "InvalidToken", "InvalidClientTokenId"},
		{"another session's token", b.config(id, secret, otherToken.SessionToken), 400, "InvalidToken", "InvalidClientTokenId"},
		{"unknown key", b.config("ASIAUNKNOWNUNKNOWN00", secret, token), 403, "InvalidAccessKeyId", "InvalidClientTokenId"},
		{"broker's key with a token", b.config(brokerID, brokerSecret, token), 400, "InvalidToken", "InvalidClientTokenId"},
	} {
		_, err := get(t.Context(), tc.cfg, "tasks/1/a")
		wantError(t, err, tc.s3Status, tc.s3Code)
		_, err = sts.NewFromConfig(tc.cfg).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
		wantError(t, err, 403, tc.queryCode)
	}
}

// signed is a properly signed S3 request, for tests that then tamper with it.
func signed(t *testing.T, cfg sdk.Config, method, url, body string, at time.Time, header http.Header) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	hash := fmt.Sprintf("%x", sha256.Sum256([]byte(body)))
	for name, values := range header {
		r.Header[name] = values
	}
	if h := r.Header.Get("X-Amz-Content-Sha256"); h != "" {
		hash = h
	}
	r.Header.Set("X-Amz-Content-Sha256", hash)
	creds, err := cfg.Credentials.Retrieve(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	if err := signer.SignHTTP(t.Context(), creds, r, hash, "s3", "us-east-1", at); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTamperedRequestsAreRefused(t *testing.T) {
	t.Parallel()
	b := start(t)
	cfg, _ := b.assume("crd1", "")
	now := time.Now()
	for _, tc := range []struct {
		name   string
		at     time.Time
		header http.Header
		tamper func(*http.Request)
		status int
		code   string
	}{
		{"nothing", now, nil, func(*http.Request) {}, 200, ""},
		{"path", now, nil, func(r *http.Request) { r.URL.Path = "/data/tasks/2/a" }, 403, "SignatureDoesNotMatch"},
		{"query", now, nil, func(r *http.Request) { r.URL.RawQuery = "x-id=PutObject" }, 403, "SignatureDoesNotMatch"},
		{"method", now, nil, func(r *http.Request) { r.Method = http.MethodDelete }, 403, "SignatureDoesNotMatch"},
		{"host", now, nil, func(r *http.Request) { r.Host = "elsewhere" }, 403, "SignatureDoesNotMatch"},
		{"signed header", now, http.Header{"X-Amz-Meta-A": {"1"}}, func(r *http.Request) { r.Header.Set("X-Amz-Meta-A", "2") }, 403, "SignatureDoesNotMatch"},
		{"added header", now, nil, func(r *http.Request) { r.Header.Set("X-Amz-Copy-Source", "/data/tasks/2/a") }, 403, "AccessDenied"},
		{"date", now, nil, func(r *http.Request) {
			r.Header.Set("X-Amz-Date", now.Add(time.Second).UTC().Format("20060102T150405Z"))
		}, 403, "SignatureDoesNotMatch"},
		{"body", now, nil, func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("BODY")) }, 400, "XAmzContentSHA256Mismatch"},
		{"body and its hash", now, nil, func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader("BODY"))
			r.Header.Set("X-Amz-Content-Sha256", fmt.Sprintf("%x", sha256.Sum256([]byte("BODY"))))
		}, 403, "SignatureDoesNotMatch"},
		{"unsigned payload", now, http.Header{"X-Amz-Content-Sha256": {"UNSIGNED-PAYLOAD"}}, func(*http.Request) {}, 200, ""},
		{"wrong checksum", now, http.Header{"X-Amz-Checksum-Crc32": {"AAAAAA=="}}, func(*http.Request) {}, 400, "BadDigest"},
		{"no signature", now, nil, func(r *http.Request) { r.Header.Del("Authorization") }, 403, "AccessDenied"},
		{"14 minutes old", now.Add(-14 * time.Minute), nil, func(*http.Request) {}, 200, ""},
		{"16 minutes old", now.Add(-16 * time.Minute), nil, func(*http.Request) {}, 403, "RequestTimeTooSkewed"},
		{"16 minutes early", now.Add(16 * time.Minute), nil, func(*http.Request) {}, 403, "RequestTimeTooSkewed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := signed(t, cfg, http.MethodPut, b.url+"/data/tasks/1/new", "body", tc.at, tc.header)
			tc.tamper(r)
			b.wantReply(r, tc.status, tc.code)
		})
	}
}

// wantReply sends a request by hand and checks the status and the error's code.
func (b *bench) wantReply(r *http.Request, status int, code string) {
	b.t.Helper()
	reply, err := b.client.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer reply.Body.Close()
	body, _ := io.ReadAll(reply.Body)
	if reply.StatusCode != status || code != "" && !bytes.Contains(body, []byte("<Code>"+code+"</Code>")) {
		b.t.Errorf("%d %s, want %d %s", reply.StatusCode, body, status, code)
	}
}

func TestStreamingTrailer(t *testing.T) {
	t.Parallel()
	b := start(t)
	cfg, _ := b.assume("crd1", "")
	send := func(framed, length string, status int, code string) {
		t.Helper()
		r := signed(t, cfg, http.MethodPut, b.url+"/data/streamed", framed, time.Now(), http.Header{
			"X-Amz-Content-Sha256": {"STREAMING-UNSIGNED-PAYLOAD-TRAILER"}, "X-Amz-Decoded-Content-Length": {length},
			"X-Amz-Trailer": {"x-amz-checksum-crc32"}, "Content-Encoding": {"aws-chunked"},
		})
		b.wantReply(r, status, code)
	}
	const trailer = "0\r\nx-amz-checksum-crc32:DUoRhQ==\r\n\r\n" // of "hello world"
	send("6\r\nhello \r\n5\r\nworld\r\n"+trailer, "11", 200, "")
	if body, _ := b.Object("data", "streamed"); string(body) != "hello world" {
		t.Errorf("stored %q", body)
	}
	send("6\r\nhello \r\n5\r\nWORLD\r\n"+trailer, "11", 400, "BadDigest")
	send("6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n", "11", 400, "MalformedTrailerError")
	send("6\r\nhello \r\n"+trailer, "11", 400, "IncompleteBody")
	send("ffffff\r\nhello", "5", 400, "IncompleteBody")
}
