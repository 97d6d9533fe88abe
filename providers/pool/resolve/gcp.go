package resolve

import (
	"context"
	"encoding/json"
	"errors"
	"hash/crc32"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"

	"github.com/taskpass/taskpass/broker"
)

// GCP is Google's Secret Manager. Its REST API is called as it is: the client library would bring gRPC along for one call.
type GCP struct {
	Endpoint        string `yaml:"endpoint"`         // empty: https://secretmanager.googleapis.com
	CredentialsFile string `yaml:"credentials_file"` // a service account's key, absolute; empty: Application Default Credentials
}

const (
	gcpStoreName = "Google Secret Manager"
	gcpScope     = "https://www.googleapis.com/auth/cloud-platform"
)

func (c GCP) check(f *broker.Faults) {
	if c.Endpoint != "" {
		f.Endpoint("gcp.endpoint", c.Endpoint)
	}
	if c.CredentialsFile != "" && !filepath.IsAbs(c.CredentialsFile) {
		f.Add("gcp.credentials_file", "is not an absolute path")
	}
}

// Environment lists the variables of the environment that reading a secret obeys, and those that have no effect on it: they
// are about Application Default Credentials, which a credentials file of our own replaces.
func (c GCP) Environment() (obeyed, ignored []string) {
	for _, name := range []string{"CLOUDSDK_CONFIG", "GCE_METADATA_HOST", "GOOGLE_APPLICATION_CREDENTIALS"} {
		switch {
		case os.Getenv(name) == "":
		case c.CredentialsFile != "":
			ignored = append(ignored, name)
		default:
			obeyed = append(obeyed, name)
		}
	}
	return obeyed, ignored
}

type gcpStore struct {
	wire
	cfg GCP

	mu   sync.Mutex
	cred *auth.Credentials // nil: not found yet
}

func newGCP(cfg GCP, w wire) *gcpStore {
	if cfg.Endpoint == "" {
		cfg.Endpoint = "https://secretmanager.googleapis.com"
	}
	return &gcpStore{wire: w, cfg: cfg}
}

// credentials are looked for when the first reference is read, so that who has none of Google's needs none.
func (g *gcpStore) credentials() (*auth.Credentials, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cred != nil {
		return g.cred, nil
	}
	options := &credentials.DetectOptions{
		Scopes: []string{gcpScope}, Client: g.client,
		DisableAsyncRefresh: true,                          // no goroutine outlives its call
		Logger:              slog.New(slog.DiscardHandler), // its own may write tokens, if the environment says so
	}
	found, err := (*auth.Credentials)(nil), error(nil)
	if g.cfg.CredentialsFile != "" {
		found, err = credentials.NewCredentialsFromFile(credentials.ServiceAccount, g.cfg.CredentialsFile, options)
	} else {
		found, err = credentials.DetectDefault(options)
	}
	if err != nil { // its text may quote the file
		return nil, broker.Errorf(broker.CodeUpstreamRefused, "there are no usable credentials for Google: the operator should check gcp.credentials_file, or Application Default Credentials")
	}
	g.cred = found
	return found, nil
}

func (g *gcpStore) token(ctx context.Context) (string, error) {
	found, err := g.credentials()
	if err != nil {
		return "", err
	}
	token, err := found.Token(ctx)
	if err == nil {
		return token.Value, nil
	}
	call := broker.VendorAnswer{Vendor: "Google's token endpoint", Action: "token"}
	if refused, ok := errors.AsType[*auth.Error](err); ok && refused.Response != nil && ctx.Err() == nil { // its text quotes the answer
		call.Status = refused.Response.StatusCode
		return "", g.meaning("the broker's own Google credentials", googleSaid(reply{call, false, refused.Response.Header, refused.Body}))
	}
	return "", unread(ctx, call)
}

// read answers one version's payload.
// https://cloud.google.com/secret-manager/docs/reference/rest/v1/projects.secrets.versions/access
func (g *gcpStore) read(ctx context.Context, name string) ([]byte, string, error) {
	token, err := g.token(ctx)
	if err != nil {
		return nil, "", err
	}
	if !strings.Contains(name, "/versions/") {
		name += "/versions/latest"
	}
	r, err := g.get(ctx, broker.VendorAnswer{Vendor: gcpStoreName, Action: "versions.access"}, strings.TrimRight(g.cfg.Endpoint, "/")+"/v1/"+name+":access",
		http.Header{"Authorization": {"Bearer " + token}})
	if err != nil {
		return nil, "", err
	}
	r = googleSaid(r)
	if r.Status == http.StatusBadRequest && r.genuine { // FAILED_PRECONDITION: the version is disabled or destroyed
		return nil, "", broker.Errorf(broker.CodeUpstreamRefused, "Google Secret Manager does not give out this version: the operator should check that it is enabled").
			Because(r.VendorAnswer)
	}
	if r.Status != http.StatusOK {
		return nil, "", g.meaning("that its identity has secretmanager.versions.access on the secret", r)
	}
	var version struct {
		Name    string
		Payload struct {
			Data       []byte // base64 on the wire
			DataCRC32C string
		}
	}
	_, asked, _ := strings.Cut(name, "/secrets/")
	asked, _, _ = strings.Cut(asked, "/")
	number := ""
	if json.Unmarshal(r.body, &version) == nil { // the project is named by its number, so it is not compared
		_, number, _ = strings.Cut(version.Name, "/secrets/"+asked+"/versions/")
	}
	if number == "" || version.Payload.DataCRC32C != "" && version.Payload.DataCRC32C != checksum(version.Payload.Data) {
		return nil, "", g.meaning("", r)
	}
	return version.Payload.Data, number, nil
}

// googleSaid reads the error in an answer: of Google's APIs an object, of its token endpoint a word.
func googleSaid(r reply) reply {
	var said struct{ Error json.RawMessage }
	if json.Unmarshal(r.body, &said) != nil || said.Error == nil {
		return r
	}
	var object struct{ Status string }
	var word string
	r.genuine = json.Unmarshal(said.Error, &object) == nil || json.Unmarshal(said.Error, &word) == nil
	for _, code := range []string{object.Status, word} {
		if broker.ValidID(code) && len(code) <= 64 {
			r.Code = code
		}
	}
	return r
}

func checksum(data []byte) string {
	return strconv.FormatUint(uint64(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))), 10)
}
