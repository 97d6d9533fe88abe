package sandbox_test

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"cloud.google.com/go/iam/credentials/apiv1/credentialspb"
	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/taskpass/taskpass/providers/sandbox"
	"github.com/taskpass/taskpass/providers/sandbox/aws"
	"github.com/taskpass/taskpass/providers/sandbox/gcp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T) (*sandbox.Sandbox, *http.Client) {
	t.Helper()
	s, err := sandbox.Start(sandbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, &http.Client{Transport: transport}
}

func TestDemoEnvironment(t *testing.T) {
	t.Parallel()
	s, client := start(t)
	cfg := sdk.Config{
		Region: sandbox.Region, BaseEndpoint: sdk.String(s.AWSURL), HTTPClient: client,
		Credentials: credentials.NewStaticCredentialsProvider(s.BrokerAccessKeyID, s.BrokerSecretAccessKey, ""),
	}
	out, err := sts.NewFromConfig(cfg).AssumeRole(t.Context(), &sts.AssumeRoleInput{
		RoleArn: sdk.String(sandbox.RoleARN), RoleSessionName: sdk.String("demo"), DurationSeconds: sdk.Int32(43200),
	})
	if err != nil {
		t.Fatal(err)
	}
	c := out.Credentials
	cfg.Credentials = credentials.NewStaticCredentialsProvider(*c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken)
	for _, key := range s.SeedTask("t-1") {
		reply, err := s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true }).
			GetObject(t.Context(), &s3.GetObjectInput{Bucket: sdk.String(sandbox.Bucket), Key: sdk.String(key)})
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(reply.Body)
		_ = reply.Body.Close()
		if !strings.Contains(string(body), "t-1") {
			t.Errorf("%s: %q", key, body)
		}
	}
}

func TestModelKeys(t *testing.T) {
	t.Parallel()
	s, client := start(t)
	if len(s.ModelKeys) != sandbox.PoolKeys+2 || len(s.ModelKeyIDs) != len(s.ModelKeys) {
		t.Fatalf("%d keys", len(s.ModelKeys))
	}
	for i, key := range s.ModelKeys {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.ModelURL+"/v1/messages",
			strings.NewReader(`{"messages":[{"role":"user","content":"hi"}]}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Api-Key", key)
		reply, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = reply.Body.Close()
		if reply.StatusCode != http.StatusOK || s.Model.Calls(s.ModelKeyIDs[i]) != 1 || !strings.HasPrefix(key, "sk-sandbox-") {
			t.Errorf("key %d: %d", i, reply.StatusCode)
		}
	}
}

// Google's stand-in serves both of its ports, and lets nobody but the broker in.
func TestGoogle(t *testing.T) {
	t.Parallel()
	s, client := start(t)
	object := s.SeedTask("t-1")[0]
	for _, c := range []struct {
		token string
		want  codes.Code
	}{{s.GCPBrokerToken, codes.OK}, {"another", codes.Unauthenticated}} {
		conn, err := grpc.NewClient(strings.TrimPrefix(s.GCPRPC, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+c.token)
		out, err := credentialspb.NewIAMCredentialsClient(conn).GenerateAccessToken(ctx, &credentialspb.GenerateAccessTokenRequest{
			Name: "projects/-/serviceAccounts/" + s.GCPShared, Scope: []string{gcp.CloudPlatform},
		})
		if status.Code(err) != c.want {
			t.Fatalf("%v", err)
		}
		if err != nil {
			continue
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.GCPURL+"/storage/v1/b/"+sandbox.Bucket+"/o/"+url.PathEscape(object)+"?alt=media", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+out.GetAccessToken())
		reply, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = reply.Body.Close()
		if reply.StatusCode != http.StatusOK || len(s.GCPSlots) < 2 {
			t.Errorf("%d, %d slots", reply.StatusCode, len(s.GCPSlots))
		}
	}
}

// TestCloseWithARequestHanging is held to leaving nothing behind by TestMain.
func TestCloseWithARequestHanging(t *testing.T) {
	t.Parallel()
	s, client := start(t)
	s.AWS.Inject(aws.Fault{Action: "GetCallerIdentity", Kind: aws.Hang})
	cfg := sdk.Config{
		Region: sandbox.Region, BaseEndpoint: sdk.String(s.AWSURL), HTTPClient: client,
		Credentials: credentials.NewStaticCredentialsProvider(s.BrokerAccessKeyID, s.BrokerSecretAccessKey, ""),
		Retryer:     func() sdk.Retryer { return sdk.NopRetryer{} },
	}
	done := make(chan error, 1)
	go func() {
		_, err := sts.NewFromConfig(cfg).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
		done <- err
	}()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("answered after Close")
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}
