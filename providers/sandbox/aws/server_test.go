package aws_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	ststypes "github.com/aws/aws-sdk-go-v2/service/sts/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"go.uber.org/goleak"

	"github.com/taskpass/taskpass/providers/sandbox/aws"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	brokerID     = "AKIAIOSFODNN7EXAMPLE"
	brokerSecret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	roleARN      = "arn:aws:iam::123456789012:role/agent"
	bucketPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":["arn:aws:s3:::data","arn:aws:s3:::data/*"]}]}`
)

// taskOne is the session policy most tests use: read tasks/1/ and list it.
const taskOne = `{"Version":"2012-10-17","Statement":[` +
	`{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::data/tasks/1/*"},` +
	`{"Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::data","Condition":{"StringLike":{"s3:prefix":"tasks/1/*"}}},` +
	`{"Effect":"Deny","Action":["sts:*","iam:*"],"Resource":"*"}]}`

// bench is a running server and the clients that tests drive it with.
type bench struct {
	*aws.Server
	t      *testing.T
	url    string
	client *http.Client
}

// clock is a clock that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now().Truncate(time.Second)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func start(t *testing.T, edit ...func(*aws.Config)) *bench {
	t.Helper()
	cfg := aws.Config{
		AccessKeyID: brokerID, SecretAccessKey: brokerSecret,
		Roles: []aws.Role{{Name: "agent", RoleID: "AROAEXAMPLE", MaxSessionDuration: 2 * time.Hour, Policy: bucketPolicy}},
	}
	for _, e := range edit {
		e(&cfg)
	}
	srv, err := aws.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"tasks/1/a", "tasks/1/b/c", "tasks/2/a"} {
		srv.PutObject("data", key, []byte("body of "+key))
	}
	web := httptest.NewServer(srv)
	transport := &http.Transport{}
	t.Cleanup(func() {
		srv.Close()
		transport.CloseIdleConnections()
		web.Close()
	})
	return &bench{Server: srv, t: t, url: web.URL, client: &http.Client{Transport: transport}}
}

func withClock(c *clock) func(*aws.Config) {
	return func(cfg *aws.Config) { cfg.Now, cfg.MaxSkew = c.Now, -1 }
}

// config is an SDK configuration with no retries, so that a test sees each answer.
func (b *bench) config(id, secret, token string) sdk.Config {
	return sdk.Config{
		Region: "eu-west-1", BaseEndpoint: sdk.String(b.url), HTTPClient: b.client,
		Credentials: credentials.NewStaticCredentialsProvider(id, secret, token),
		Retryer:     func() sdk.Retryer { return sdk.NopRetryer{} },
	}
}

func (b *bench) broker() sdk.Config { return b.config(brokerID, brokerSecret, "") }

func s3Client(cfg sdk.Config) *s3.Client {
	return s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.UsePathStyle = true
		o.RequestChecksumCalculation = sdk.RequestChecksumCalculationWhenRequired
	})
}

// assume makes a session by the broker, with a session policy unless that is empty.
func (b *bench) assume(name, policy string, edit ...func(*sts.AssumeRoleInput)) (sdk.Config, *sts.AssumeRoleOutput) {
	b.t.Helper()
	cfg, out, err := b.tryAssume(b.broker(), name, policy, edit...)
	if err != nil {
		b.t.Fatalf("AssumeRole %s: %v", name, err)
	}
	return cfg, out
}

func (b *bench) tryAssume(as sdk.Config, name, policy string, edit ...func(*sts.AssumeRoleInput)) (sdk.Config, *sts.AssumeRoleOutput, error) {
	in := &sts.AssumeRoleInput{RoleArn: sdk.String(roleARN), RoleSessionName: sdk.String(name)}
	if policy != "" {
		in.Policy = sdk.String(policy)
	}
	for _, e := range edit {
		e(in)
	}
	out, err := sts.NewFromConfig(as).AssumeRole(b.t.Context(), in)
	if err != nil {
		return sdk.Config{}, nil, err
	}
	c := out.Credentials
	return b.config(*c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken), out, nil
}

func get(ctx context.Context, cfg sdk.Config, key string) (string, error) {
	out, err := s3Client(cfg).GetObject(ctx, &s3.GetObjectInput{Bucket: sdk.String("data"), Key: sdk.String(key)})
	if err != nil {
		return "", err
	}
	defer out.Body.Close()
	body, err := io.ReadAll(out.Body)
	return string(body), err
}

func put(ctx context.Context, cfg sdk.Config, key, body string) error {
	_, err := s3Client(cfg).PutObject(ctx, &s3.PutObjectInput{Bucket: sdk.String("data"), Key: sdk.String(key), Body: strings.NewReader(body)})
	return err
}

// wantError checks the vendor's status and code.
func wantError(t *testing.T, err error, status int, code string) {
	t.Helper()
	var api smithy.APIError
	var reply *smithyhttp.ResponseError
	if !errors.As(err, &api) || !errors.As(err, &reply) {
		t.Fatalf("error %v, want %d %s", err, status, code)
	}
	if reply.HTTPStatusCode() != status || api.ErrorCode() != code {
		t.Fatalf("error %d %s (%s), want %d %s", reply.HTTPStatusCode(), api.ErrorCode(), api.ErrorMessage(), status, code)
	}
}

func wantRead(t *testing.T, cfg sdk.Config, key string) {
	t.Helper()
	if body, err := get(t.Context(), cfg, key); err != nil || body != "body of "+key {
		t.Fatalf("read %s: %q, %v", key, body, err)
	}
}

func wantDenied(t *testing.T, err error) {
	t.Helper()
	wantError(t, err, http.StatusForbidden, "AccessDenied")
}

func iamClient(cfg sdk.Config) *iam.Client { return iam.NewFromConfig(cfg) }

func tag(k, v string) ststypes.Tag { return ststypes.Tag{Key: sdk.String(k), Value: sdk.String(v)} }
