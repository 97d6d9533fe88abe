package gcp_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/credentials/downscope"
	"cloud.google.com/go/iam/admin/apiv1/adminpb"
	iamcredentials "cloud.google.com/go/iam/credentials/apiv1"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/taskpass/taskpass/providers/sandbox/gcp"
)

// defaultCallOptions are what the client library comes with.
func defaultCallOptions(t *testing.T, r *rig) ([]gax.CallOption, error) {
	t.Helper()
	c, err := iamcredentials.NewIamCredentialsClient(t.Context(), option.WithEndpoint(r.rpc), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.CallOptions.GenerateAccessToken, nil
}

// keyToken asks for an access token as Google's SDKs do with a service account's key.
func (r *rig) keyToken(t *testing.T, email, keyID string, private []byte) (string, error) {
	t.Helper()
	file, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "taskpass-sandbox", "private_key_id": keyID, "private_key": string(private),
		"client_email": email, "client_id": "1", "token_uri": r.url + "/token",
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := credentials.NewCredentialsFromJSON(credentials.ServiceAccount, file, &credentials.DetectOptions{
		Scopes: []string{gcp.CloudPlatform}, Client: r.client,
	})
	if err != nil {
		t.Fatal(err)
	}
	token, err := c.Token(context.Background())
	if err != nil {
		return "", err
	}
	return token.Value, nil
}

func TestKeys(t *testing.T) {
	t.Parallel()
	r := start(t)
	email := r.Email("worker-a")
	end := r.clock.Now().Add(10 * time.Minute)
	private, cert := certificate(t, r.clock.Now(), end)
	r.Hide(gcp.Visibility{For: time.Minute})
	k, err := r.admin.UploadServiceAccountKey(t.Context(), &adminpb.UploadServiceAccountKeyRequest{Name: name(email), PublicKeyData: cert})
	if err != nil {
		t.Fatal(err)
	}
	if k.GetKeyOrigin() != adminpb.ServiceAccountKeyOrigin_USER_PROVIDED || k.GetKeyType() != adminpb.ListServiceAccountKeysRequest_USER_MANAGED ||
		!k.GetValidBeforeTime().AsTime().Equal(end) || k.GetPublicKeyData() != nil {
		t.Errorf("%v", k)
	}
	id := k.GetName()[strings.LastIndex(k.GetName(), "/")+1:]
	pemKey := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)})
	if _, err := r.keyToken(t, email, id, pemKey); err == nil || !strings.Contains(err.Error(), "Invalid JWT Signature.") {
		t.Errorf("before it can be seen: %v", err)
	}
	r.clock.Advance(time.Minute)
	token, err := r.keyToken(t, email, id, pemKey)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.get(t, token, "tasks/a/brief.txt"); got != http.StatusOK {
		t.Errorf("%d", got)
	}
	stranger, _ := certificate(t, r.clock.Now(), end)
	forged := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(stranger)})
	if _, err := r.keyToken(t, email, id, forged); err == nil || !strings.Contains(err.Error(), "Invalid JWT Signature.") {
		t.Errorf("forged: %v", err)
	}
	got, err := r.admin.GetServiceAccountKey(t.Context(), &adminpb.GetServiceAccountKeyRequest{
		Name: k.GetName(), PublicKeyType: adminpb.ServiceAccountPublicKeyType_TYPE_X509_PEM_FILE,
	})
	if err != nil || string(got.GetPublicKeyData()) != string(cert) {
		t.Errorf("%v, %v", got, err)
	}
	r.SetDisabled(email, true)
	if _, err := r.keyToken(t, email, id, pemKey); err == nil || !strings.Contains(err.Error(), "invalid_grant") {
		t.Errorf("disabled: %v", err)
	}
	r.SetDisabled(email, false)
	if err := r.admin.DeleteServiceAccountKey(t.Context(), &adminpb.DeleteServiceAccountKeyRequest{Name: k.GetName()}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.keyToken(t, email, id, pemKey); err == nil || !strings.Contains(err.Error(), "Invalid JWT Signature.") {
		t.Errorf("deleted: %v", err)
	}
	if got := r.get(t, token, "tasks/a/brief.txt"); got != http.StatusOK {
		t.Errorf("a token outlives its key at Google, and here: %d", got)
	}
	err = r.admin.DeleteServiceAccountKey(t.Context(), &adminpb.DeleteServiceAccountKeyRequest{Name: k.GetName()})
	if status.Code(err) != codes.NotFound {
		t.Errorf("deleted twice: %v", err)
	}
}

func TestKeyEndsWithItsCertificate(t *testing.T) {
	t.Parallel()
	r := start(t)
	private, cert := certificate(t, r.clock.Now(), r.clock.Now().Add(10*time.Minute))
	if err := r.AddKey(r.Email("worker-a"), cert); err != nil {
		t.Fatal(err)
	}
	info, _ := r.Account(r.Email("worker-a"))
	if len(info.Keys) != 1 || info.Keys[0].CommonName != "marker" {
		t.Fatalf("%+v", info)
	}
	pemKey := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)})
	if _, err := r.keyToken(t, info.Email, info.Keys[0].ID, pemKey); err != nil {
		t.Fatal(err)
	}
	r.clock.Advance(10 * time.Minute)
	if _, err := r.keyToken(t, info.Email, info.Keys[0].ID, pemKey); err == nil {
		t.Error("signs after its certificate's end")
	}
}

func TestTenKeys(t *testing.T) {
	t.Parallel()
	for _, exhausted := range []bool{false, true} {
		r := start(t, func(c *gcp.Config) { c.KeysExhausted = exhausted })
		want := codes.FailedPrecondition
		if exhausted {
			want = codes.ResourceExhausted
		}
		for i := range 11 {
			_, cert := certificate(t, r.clock.Now(), r.clock.Now().Add(time.Hour))
			_, err := r.admin.UploadServiceAccountKey(t.Context(), &adminpb.UploadServiceAccountKeyRequest{Name: name(r.Email("worker-a")), PublicKeyData: cert})
			if i < 10 && err != nil || i == 10 && status.Code(err) != want {
				t.Errorf("key %d: %v", i+1, err)
			}
		}
		out, err := r.admin.ListServiceAccountKeys(t.Context(), &adminpb.ListServiceAccountKeysRequest{Name: name(r.Email("worker-a"))})
		if err != nil || len(out.GetKeys()) != 10 {
			t.Errorf("%d keys, %v", len(out.GetKeys()), err)
		}
	}
	r := start(t)
	for _, bad := range []string{"", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		_, err := r.admin.UploadServiceAccountKey(t.Context(), &adminpb.UploadServiceAccountKeyRequest{Name: name(r.Email("worker-a")), PublicKeyData: []byte(bad)})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// redirect sends what is meant for Google to the stand-in: the library names its host.
type redirect struct {
	base string
	next http.RoundTripper
}

func (d redirect) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme, r.URL.Host = "http", strings.TrimPrefix(d.base, "http://")
	return d.next.RoundTrip(r)
}

// narrow exchanges a token by Google's own library.
func (r *rig) narrow(t *testing.T, token string, rules ...downscope.AccessBoundaryRule) (string, error) {
	t.Helper()
	c, err := downscope.NewCredentials(&downscope.Options{
		Credentials: auth.NewCredentials(&auth.CredentialsOptions{TokenProvider: static(token)}),
		Rules:       rules, Client: &http.Client{Transport: redirect{r.url, r.client.Transport}},
	})
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.Token(t.Context())
	if err != nil {
		return "", err
	}
	return out.Value, nil
}

type static string

func (s static) Token(context.Context) (*auth.Token, error) {
	return &auth.Token{Value: string(s), Expiry: time.Now().Add(time.Hour)}, nil
}

const available = "//storage.googleapis.com/projects/_/buckets/" + bucket

func TestAccessBoundary(t *testing.T) {
	t.Parallel()
	r := start(t)
	wide := r.mustMint(t, "worker-a", 10*time.Minute)
	narrow, err := r.narrow(t, wide, downscope.AccessBoundaryRule{
		AvailableResource: available, AvailablePermissions: []string{"inRole:roles/storage.objectViewer"},
		Condition: &downscope.AvailabilityCondition{Expression: "resource.name.startsWith('projects/_/buckets/data/objects/tasks/a/')" +
			" || api.getAttribute('storage.googleapis.com/objectListPrefix', '').startsWith('tasks/a/')"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what      string
		got, want int
	}{
		{"its own object", r.get(t, narrow, "tasks/a/brief.txt"), 200},
		{"a longer id's", r.get(t, narrow, "tasks/ab/brief.txt"), 403},
		{"another permission", r.put(t, narrow, "tasks/a/new.txt"), 403},
		{"no boundary, the same permission", r.put(t, wide, "tasks/a/new.txt"), 200},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d, want %d", c.what, c.got, c.want)
		}
	}
	if got, names := r.list(t, narrow, "tasks/a/"); got != 200 || strings.Join(names, " ") != "tasks/a/brief.txt tasks/a/new.txt" {
		t.Errorf("listing its own: %d %v", got, names)
	}
	for _, prefix := range []string{"", "tasks/", "tasks/a"} {
		if got, _ := r.list(t, narrow, prefix); got != 403 {
			t.Errorf("listing %q: %d", prefix, got)
		}
	}
	if _, err := r.narrow(t, narrow, downscope.AccessBoundaryRule{AvailableResource: available, AvailablePermissions: []string{"inRole:roles/storage.objectAdmin"}}); err == nil {
		t.Error("a narrowed token was exchanged for a wider one")
	}
	r.SetDisabled(r.Email("worker-a"), true)
	if got := r.get(t, narrow, "tasks/a/brief.txt"); got != 401 {
		t.Errorf("disabled: %d", got)
	}
	r.SetDisabled(r.Email("worker-a"), false)
	r.clock.Advance(10 * time.Minute)
	if got := r.get(t, narrow, "tasks/a/brief.txt"); got != 401 {
		t.Errorf("outlives its source: %d", got)
	}
}

func TestAccessBoundaryThatSaysNothing(t *testing.T) {
	t.Parallel()
	r := start(t)
	wide := r.mustMint(t, "worker-a", 10*time.Minute)
	for what, rule := range map[string]downscope.AccessBoundaryRule{
		"not CEL":        {AvailableResource: available, AvailablePermissions: []string{"inRole:roles/storage.objectViewer"}, Condition: &downscope.AvailabilityCondition{Expression: "resource.name.startsWith('"}},
		"not a boolean":  {AvailableResource: available, AvailablePermissions: []string{"inRole:roles/storage.objectViewer"}, Condition: &downscope.AvailabilityCondition{Expression: "resource.name"}},
		"no role":        {AvailableResource: available, AvailablePermissions: []string{"storage.objects.get"}},
		"unknown role":   {AvailableResource: available, AvailablePermissions: []string{"inRole:roles/owner"}},
		"not a bucket":   {AvailableResource: "//storage.googleapis.com/projects/_/buckets/", AvailablePermissions: []string{"inRole:roles/storage.objectViewer"}},
		"unknown object": {AvailableResource: available, AvailablePermissions: []string{"inRole:roles/storage.objectViewer"}, Condition: &downscope.AvailabilityCondition{Expression: "request.time < timestamp('2030-01-01T00:00:00Z')"}},
	} {
		if _, err := r.narrow(t, wide, rule); err == nil {
			t.Errorf("%s: exchanged", what)
		}
	}
	other, err := r.narrow(t, wide, downscope.AccessBoundaryRule{
		AvailableResource: available + "2", AvailablePermissions: []string{"inRole:roles/storage.objectViewer"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.get(t, other, "tasks/a/brief.txt"); got != 403 {
		t.Errorf("another bucket's rule: %d", got)
	}
	// A boundary gives nothing that the account's own roles do not.
	poor, err := r.narrow(t, r.mustMint(t, "worker-b", time.Minute), downscope.AccessBoundaryRule{
		AvailableResource: available, AvailablePermissions: []string{"inRole:roles/storage.objectViewer"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.get(t, poor, "tasks/a/brief.txt"); got != 403 {
		t.Errorf("an account without a role: %d", got)
	}
}
