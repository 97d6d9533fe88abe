package resolve_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/pool/resolve"
	"github.com/taskpass/taskpass/providers/providertest"
	"github.com/taskpass/taskpass/providers/sandbox/fault"
	"github.com/taskpass/taskpass/providers/sandbox/stores"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	token   = "vault-token-canary"
	awsID   = "AKIACANARY"
	region  = "eu-west-1"
	gcpName = "projects/sandbox/secrets/pool"
)

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	providertest.WriteSecret(t, path, text)
	return path
}

// write writes a file in place, as a shell's redirection does.

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// rig has one of each store.
type rig struct {
	*resolve.Resolver
	vault *stores.Vault
	aws   *stores.SecretsManager
	gcp   *stores.SecretManager
	cfg   resolve.Config
	wire  resolve.Wire
	token string // the file of Vault's token
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{token: file(t, "token", token+"\n")}
	var errs [3]error
	r.vault, errs[0] = stores.NewVault(token, "team", "kv")
	r.aws, errs[1] = stores.NewSecretsManager(awsID)
	r.gcp, errs[2] = stores.NewSecretManager()
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	serve := func(h http.Handler, q *fault.Queue) *httptest.Server {
		server := httptest.NewServer(h)
		t.Cleanup(server.Close)
		t.Cleanup(q.Close)
		return server
	}
	gcp := serve(r.gcp, r.gcp.Queue)
	credentials, err := r.gcp.CredentialsFile(gcp.URL)
	if err != nil {
		t.Fatal(err)
	}
	r.cfg = resolve.Config{
		Vault: resolve.Vault{Address: serve(r.vault, r.vault.Queue).URL, Token: broker.Ref("file:" + r.token), Namespace: "team"},
		AWS: resolve.AWS{
			Endpoint:    serve(r.aws, r.aws.Queue).URL,
			AccessKeyID: broker.Ref("file:" + file(t, "id", awsID)), SecretAccessKey: broker.Ref("file:" + file(t, "key", "aws-secret-canary")),
		},
		GCP: resolve.GCP{Endpoint: gcp.URL, CredentialsFile: file(t, "gcp.json", string(credentials))},
	}
	r.wire = resolve.Wire{Client: &http.Client{Transport: &http.Transport{}}}
	t.Cleanup(r.wire.Client.CloseIdleConnections)
	if r.Resolver, err = resolve.New(r.cfg, r.wire); err != nil {
		t.Fatal(err)
	}
	return r
}

// wantCode checks an error's code, and that nothing secret or foreign is in it, cause included.
func wantCode(t *testing.T, err error, code broker.Code) *broker.Error {
	t.Helper()
	e, ok := errors.AsType[*broker.Error](err)
	if !ok || e.Code != code {
		t.Fatalf("%v, want %s", err, code)
	}
	for cause := err; cause != nil; cause = errors.Unwrap(cause) {
		clean(t, fmt.Sprintf("%v %+v", cause, cause))
	}
	return e
}

func clean(t *testing.T, text string) {
	t.Helper()
	if strings.Contains(strings.ToLower(text), "canary") || strings.Contains(text, "stand-in's message") || strings.Contains(text, "ya29") {
		t.Errorf("a secret or a store's text is in an error: %s", text)
	}
}
