package stores_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cloud.google.com/go/auth/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/aws"
	awscredentials "github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"
	bao "github.com/openbao/openbao/api/v2"
	"go.uber.org/goleak"

	"github.com/taskpass/taskpass/providers/sandbox/fault"
	"github.com/taskpass/taskpass/providers/sandbox/stores"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func serve(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server
}

// OpenBao's own client reads, writes and deletes.
func TestVault(t *testing.T) {
	t.Parallel()
	s, err := stores.NewVault("token", "team", "kv")
	if err != nil {
		t.Fatal(err)
	}
	server := serve(t, s)
	client := func(token, namespace string) *bao.KVv2 {
		c, err := bao.NewClient(&bao.Config{Address: server.URL, HttpClient: server.Client(), MaxRetries: 0, Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		c.SetToken(token)
		c.SetNamespace(namespace)
		return c.KVv2("kv")
	}
	kv := client("token", "team")
	for i, value := range []string{"one", "two"} {
		made, err := kv.Put(t.Context(), "pools/a", map[string]any{"key": value})
		if err != nil || made.VersionMetadata.Version != i+1 {
			t.Fatalf("%+v, %v", made, err)
		}
		got, err := kv.Get(t.Context(), "pools/a")
		if err != nil || got.Data["key"] != value || got.VersionMetadata.Version != i+1 {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	if got, err := kv.GetVersion(t.Context(), "pools/a", 1); err != nil || got.Data["key"] != "one" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, c := range []*bao.KVv2{client("other", "team"), client("token", "")} {
		var refused *bao.ResponseError
		if _, err := c.Get(t.Context(), "pools/a"); !errors.As(err, &refused) || refused.StatusCode != http.StatusForbidden {
			t.Error(err)
		}
	}
	if err := kv.Delete(t.Context(), "pools/a"); err != nil {
		t.Fatal(err)
	}
	if got, err := kv.Get(t.Context(), "pools/a"); err != nil || got.Data != nil || got.VersionMetadata.DeletionTime.IsZero() {
		t.Errorf("a deleted version: %+v, %v", got, err)
	}
	if _, err := kv.Get(t.Context(), "pools/none"); !errors.Is(err, bao.ErrSecretNotFound) {
		t.Error(err)
	}
	if _, err := stores.NewVault("", "", "kv"); err == nil {
		t.Error("a Vault without a token")
	}
}

// AWS's own client reads.
func TestSecretsManager(t *testing.T) {
	t.Parallel()
	s, err := stores.NewSecretsManager("AKIASANDBOX")
	if err != nil {
		t.Fatal(err)
	}
	server := serve(t, s)
	client := func(id, region string) *secretsmanager.Client {
		return secretsmanager.New(secretsmanager.Options{
			Region: region, BaseEndpoint: &server.URL, HTTPClient: server.Client(), Retryer: sdk.NopRetryer{},
			Credentials: awscredentials.NewStaticCredentialsProvider(id, "secret", ""),
		})
	}
	get := func(c *secretsmanager.Client, name string) (*secretsmanager.GetSecretValueOutput, error) {
		return c.GetSecretValue(t.Context(), &secretsmanager.GetSecretValueInput{SecretId: &name})
	}
	s.Put("eu-west-1", "pools/a", "one")
	s.PutBinary("eu-west-1", "binary", []byte{1, 2})
	c := client("AKIASANDBOX", "eu-west-1")
	first, err := get(c, "pools/a")
	if err != nil || *first.SecretString != "one" {
		t.Fatal(err)
	}
	s.Put("eu-west-1", "pools/a", "two")
	if second, err := get(c, "pools/a"); err != nil || *second.SecretString != "two" || *second.VersionId == *first.VersionId {
		t.Errorf("%+v, %v", second, err)
	}
	if b, err := get(c, "binary"); err != nil || string(b.SecretBinary) != "\x01\x02" || b.SecretString != nil {
		t.Errorf("%+v, %v", b, err)
	}
	var missing *types.ResourceNotFoundException
	if _, err := get(client("AKIASANDBOX", "us-east-1"), "pools/a"); !errors.As(err, &missing) {
		t.Error("another region:", err)
	}
	if _, err := get(client("AKIAOTHER", "eu-west-1"), "pools/a"); err == nil {
		t.Error("another's key was let in")
	}
	s.Delete("eu-west-1", "pools/a")
	var invalid *types.InvalidRequestException
	if _, err := get(c, "pools/a"); !errors.As(err, &invalid) {
		t.Error(err)
	}
	s.Inject(fault.Fault{Kind: fault.Refuse, Status: 500})
	var internal *types.InternalServiceError
	if _, err := get(c, "binary"); !errors.As(err, &internal) {
		t.Error(err)
	}
}

// Google's own library gets the token; a forged key gets none.
func TestSecretManager(t *testing.T) {
	t.Parallel()
	s, err := stores.NewSecretManager()
	if err != nil {
		t.Fatal(err)
	}
	forger, err := stores.NewSecretManager()
	if err != nil {
		t.Fatal(err)
	}
	server := serve(t, s)
	token := func(of *stores.SecretManager) (string, error) {
		text, err := of.CredentialsFile(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "key.json")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := credentials.NewCredentialsFromFile(credentials.ServiceAccount, path, &credentials.DetectOptions{
			Scopes: []string{"https://www.googleapis.com/auth/cloud-platform"}, Client: server.Client(), DisableAsyncRefresh: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Token(context.WithoutCancel(t.Context()))
		if err != nil {
			return "", err
		}
		return got.Value, nil
	}
	good, err := token(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := token(forger); err == nil {
		t.Error("a forged key got a token")
	}
	s.Put("projects/sandbox/secrets/a", []byte("one"))
	s.Put("projects/sandbox/secrets/a", []byte("two"))
	s.Put("projects/sandbox/secrets/b", []byte("off"))
	s.Disable("projects/sandbox/secrets/b")
	for _, c := range []struct {
		token, path string
		want        int
	}{
		{good, "a/versions/latest:access", 200}, {good, "a/versions/1:access", 200}, {good, "a/versions/3:access", 404},
		{good, "b/versions/latest:access", 400}, {good, "c/versions/latest:access", 404}, {good, "a", 404},
		{"", "a/versions/latest:access", 401}, {"ya29.other", "a/versions/latest:access", 401},
	} {
		r := &http.Request{Method: http.MethodGet, Header: http.Header{"Authorization": {"Bearer " + c.token}}}
		r.URL, _ = url.Parse(server.URL + "/v1/projects/sandbox/secrets/" + c.path)
		reply, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		reply.Body.Close()
		if reply.StatusCode != c.want {
			t.Errorf("%s: %d, want %d", c.path, reply.StatusCode, c.want)
		}
	}
}
