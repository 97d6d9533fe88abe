package gcp_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	admin "cloud.google.com/go/iam/admin/apiv1"
	credentials "cloud.google.com/go/iam/credentials/apiv1"
	"cloud.google.com/go/iam/credentials/apiv1/credentialspb"
	"go.uber.org/goleak"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/taskpass/taskpass/providers/sandbox/gcp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	brokerToken = "ya29.broker-token"
	bucket      = "data"
)

// clock is the stand-in's.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

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

type rig struct {
	*gcp.Server
	clock  *clock
	rpc    string // host:port
	url    string
	client *http.Client
	tokens *credentials.IamCredentialsClient
	admin  *admin.IamClient
}

func start(t *testing.T, edit ...func(*gcp.Config)) *rig {
	t.Helper()
	r := &rig{clock: &clock{now: time.Date(2026, 3, 3, 10, 11, 12, 0, time.UTC)}}
	cfg := gcp.Config{
		BrokerToken: brokerToken, Now: r.clock.Now,
		Accounts: []gcp.Account{{Name: "worker-a"}, {Name: "worker-b"}},
	}
	for _, e := range edit {
		e(&cfg)
	}
	server, err := gcp.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.ServeGRPC(l) })
	web := httptest.NewServer(server)
	transport := &http.Transport{}
	r.Server, r.rpc, r.url, r.client = server, l.Addr().String(), web.URL, &http.Client{Transport: transport}
	r.tokens, r.admin = r.clients(t, brokerToken)
	t.Cleanup(func() {
		server.Close()
		serving.Wait()
		transport.CloseIdleConnections()
		web.Close()
	})
	server.CreateBucket(bucket)
	server.PutObject(bucket, "tasks/a/brief.txt", []byte("do a"))
	server.PutObject(bucket, "tasks/ab/brief.txt", []byte("do ab"))
	server.Grant(bucket, server.Email("worker-a"), "roles/storage.objectUser")
	return r
}

// bearer sends a token over plaintext, which Google's own credentials refuse to.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return false }

// clients are Google's own, without their retries.
func (r *rig) clients(t *testing.T, token string) (*credentials.IamCredentialsClient, *admin.IamClient) {
	t.Helper()
	options := []option.ClientOption{
		option.WithEndpoint(r.rpc), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
		option.WithGRPCDialOption(grpc.WithPerRPCCredentials(bearer(token))),
	}
	tokens, err := credentials.NewIamCredentialsClient(context.Background(), options...)
	if err != nil {
		t.Fatal(err)
	}
	tokens.CallOptions = &credentials.IamCredentialsCallOptions{}
	accounts, err := admin.NewIamClient(context.Background(), options...)
	if err != nil {
		t.Fatal(err)
	}
	accounts.CallOptions = &admin.IamCallOptions{}
	t.Cleanup(func() {
		_ = tokens.Close()
		_ = accounts.Close()
	})
	return tokens, accounts
}

func name(email string) string { return "projects/-/serviceAccounts/" + email }

func (r *rig) mint(t *testing.T, account string, life time.Duration, delegates ...string) (string, error) {
	t.Helper()
	in := &credentialspb.GenerateAccessTokenRequest{
		Name: name(r.Email(account)), Scope: []string{gcp.CloudPlatform}, Lifetime: durationpb.New(life),
	}
	for _, d := range delegates {
		in.Delegates = append(in.Delegates, name(r.Email(d)))
	}
	out, err := r.tokens.GenerateAccessToken(t.Context(), in)
	if err != nil {
		return "", err
	}
	if want := r.clock.Now().Add(life); !out.GetExpireTime().AsTime().Equal(want) {
		t.Errorf("expires %s, want %s", out.GetExpireTime().AsTime(), want)
	}
	return out.GetAccessToken(), nil
}

func (r *rig) mustMint(t *testing.T, account string, life time.Duration) string {
	t.Helper()
	token, err := r.mint(t, account, life)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// get, put and list speak the JSON API and answer the status.
func (r *rig) get(t *testing.T, token, object string) int {
	t.Helper()
	status, _ := r.do(t, token, http.MethodGet, "/storage/v1/b/"+bucket+"/o/"+url.PathEscape(object)+"?alt=media", "")
	return status
}

func (r *rig) put(t *testing.T, token, object string) int {
	t.Helper()
	status, _ := r.do(t, token, http.MethodPost, "/upload/storage/v1/b/"+bucket+"/o?uploadType=media&name="+url.QueryEscape(object), "hello")
	return status
}

func (r *rig) list(t *testing.T, token, prefix string) (int, []string) {
	t.Helper()
	var names []string
	page := ""
	for {
		status, body := r.do(t, token, http.MethodGet, "/storage/v1/b/"+bucket+"/o?maxResults=1&prefix="+url.QueryEscape(prefix)+"&pageToken="+page, "")
		var out struct {
			Items []struct{ Name string }
			Next  string `json:"nextPageToken"`
		}
		if status != http.StatusOK {
			return status, nil
		}
		if err := json.Unmarshal(body, &out); err != nil {
			t.Fatal(err)
		}
		for _, i := range out.Items {
			names = append(names, i.Name)
		}
		if page = out.Next; page == "" {
			return status, names
		}
	}
}

func (r *rig) do(t *testing.T, token, method, path, body string) (int, []byte) {
	t.Helper()
	in, err := http.NewRequestWithContext(t.Context(), method, r.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	in.Header.Set("Authorization", "Bearer "+token)
	out, err := r.client.Do(in)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	text, err := io.ReadAll(out.Body)
	if err != nil {
		t.Fatal(err)
	}
	return out.StatusCode, text
}

// reason is the ErrorInfo's of a refusal, as the client library sees it.
func reason(t *testing.T, err error) string {
	t.Helper()
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(interface{ GetReason() string }); ok {
			return info.GetReason()
		}
	}
	return ""
}

// certificate makes a key pair and the certificate that bounds it.
func certificate(t *testing.T, from, until time.Time) (*rsa.PrivateKey, []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "marker"}, NotBefore: from, NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
