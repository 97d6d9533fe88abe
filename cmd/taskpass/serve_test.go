package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"

	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/openapi"
	"github.com/taskpass/taskpass/providers/sandbox"
)

// installation is what an operator has set up: a migrated database, keys in files, a configuration, and a vendor.
type installation struct {
	t       *testing.T
	dir     string
	config  string // its file
	admin   string // file with the database's URL, as superuser
	sandbox *sandbox.Sandbox
	tokens  map[string]string
}

// settings are the parts of the configuration that tests change.
type settings struct {
	Dir, AWS, Role, Region string
	Listen, URLFile, TLS   string
	MaxTTL                 string
	More                   string // further profiles
}

var serveYAML = template.Must(template.New("").Parse(`
listen: {{.Listen}}
{{.TLS}}
database: {url: "file:{{.URLFile}}"}
seal: {keyset: "file:{{.Dir}}/keyset"}
upstream_timeout: 2s
shutdown_timeout: 10s
profiles:
  aws-test:
    provider: aws
    ttl: {default: 15m, min: 1s, max: {{.MaxTTL}}}
    allow: [{callers: [orch]}]
    aws:
      role_arn: "{{.Role}}"
      region: {{.Region}}
      endpoint: {{.AWS}}
      access_key_id: "file:{{.Dir}}/aws_id"
      secret_access_key: "file:{{.Dir}}/aws_key"
      revocation: {mode: deny, lag: 0s}
      scopes:
        read: {statements: [{actions: ["s3:GetObject"], resources: ["arn:aws:s3:::b/{{"{{.TaskID}}"}}/*"]}]}
{{.More}}`))

func install(t *testing.T) *installation {
	t.Helper()
	dir, admin, service := migrated(t)
	i := &installation{t: t, dir: dir, config: filepath.Join(dir, "taskpass.yaml"), admin: admin, tokens: map[string]string{}}
	var err error
	if i.sandbox, err = sandbox.Start(sandbox.Config{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.sandbox.Close(); err != nil {
			t.Error(err)
		}
	})
	writeFile(t, dir, "aws_id", i.sandbox.BrokerAccessKeyID)
	writeFile(t, dir, "aws_key", i.sandbox.BrokerSecretAccessKey)
	must(t, "keyset", "create", filepath.Join(dir, "keyset"))
	for name, role := range map[string]string{"orch": "orchestrator", "aud": "auditor"} {
		i.tokens[name] = strings.TrimSpace(must(t, "token", "create", "--role", role, "--name", name, "--database-url-file", service).stdout)
	}
	i.configure(nil)
	return i
}

// configure writes the configuration.
func (i *installation) configure(change func(*settings)) {
	i.t.Helper()
	s := settings{
		Dir: i.dir, AWS: i.sandbox.AWSURL, Role: sandbox.RoleARN, Region: sandbox.Region, Listen: "127.0.0.1:0",
		URLFile: filepath.Join(i.dir, "service_url"), MaxTTL: "1h",
	}
	if change != nil {
		change(&s)
	}
	var text bytes.Buffer
	if err := serveYAML.Execute(&text, s); err != nil {
		i.t.Fatal(err)
	}
	writeFile(i.t, i.dir, filepath.Base(i.config), text.String())
}

// serve starts the service and returns where it answers.
func (i *installation) serve() (c *child, url string) {
	i.t.Helper()
	c = start(i.t, "serve", "--config", i.config)
	line := c.awaitLine("serving", 0)
	return c, fmt.Sprintf("http://%s", line["address"])
}

const serveRequest = `{"task_id":"t","agent_id":"a","profile":"aws-test","scopes":["read"]%s}`

func TestServe(t *testing.T) {
	t.Parallel()
	i := install(t)
	c, url := i.serve()
	must(t, "healthcheck", "--url", url+"/readyz")
	var issued openapi.IssuedCredential
	text := mustCall(t, 201, "POST", url+"/v1/credentials", i.tokens["orch"], fmt.Sprintf(serveRequest, ""))
	if err := json.Unmarshal([]byte(text), &issued); err != nil {
		t.Fatal(err)
	}
	revoked := mustCall(t, 200, "POST", url+"/v1/credentials/"+issued.ID+"/revoke", i.tokens["orch"], "{}")
	if !strings.Contains(revoked, `"result":"denied"`) {
		t.Errorf("revoked: %s", revoked)
	}
	if metrics := mustCall(t, 200, "GET", url+"/metrics", "", ""); !strings.Contains(metrics, `taskpass_operations_total{op="issue",outcome="ok",profile="aws-test",provider="aws"} 1`) {
		t.Error("the metrics do not count it")
	}
	if metrics := mustCall(t, 200, "GET", url+"/metrics", "", ""); !strings.Contains(metrics, "\ntaskpass_clock_difference_seconds ") {
		t.Error("the difference from the database's clock is not measured")
	}
	if metrics := mustCall(t, 200, "GET", url+"/metrics", "", ""); !strings.Contains(metrics, "\ntaskpass_concurrency_open{kind=\"watches\"} 0\n") {
		t.Error("what clients keep open is not shown")
	}
	loaded := mustCall(t, 200, "GET", url+"/v1/audit/events?type=config.loaded", i.tokens["aud"], "")
	if !strings.Contains(loaded, `"trace":{"aws-test":"aws"}`) || !strings.Contains(loaded, `"fingerprint":"sha256:`) {
		t.Errorf("the configuration is not on the record: %s", loaded)
	}
	// A revoked token is refused at once, by the running service.
	list := must(t, "token", "list", "--database-url-file", i.admin).stdout
	for line := range strings.Lines(list) {
		if words := strings.Fields(line); len(words) > 1 && words[1] == "orch" {
			must(t, "token", "revoke", words[0], "--database-url-file", i.admin)
		}
	}
	mustCall(t, 401, "GET", url+"/v1/profiles", i.tokens["orch"], "")
	c.stop()
	if c.awaitStopped(url); strings.Contains(c.out.String(), issued.Secret.Fields["session_token"]) || strings.Contains(c.out.String(), i.tokens["orch"]) {
		t.Error("the log holds a secret")
	}
}

func (c *child) awaitStopped(url string) {
	c.t.Helper()
	if _, _, err := call(c.t, "GET", url+"/livez", "", ""); err == nil {
		c.t.Error("it still answers")
	}
}

// A header of more than 16 KiB is refused before anything is made of it.
func TestServeBoundsHeaders(t *testing.T) {
	t.Parallel()
	i := install(t)
	_, url := i.serve()
	for size, want := range map[int]int{10 << 10: 200, 40 << 10: http.StatusRequestHeaderFieldsTooLarge} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/livez", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Long", strings.Repeat("x", size))
		r.Close = true
		response, err := (&http.Client{}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%d bytes: %d, want %d", size, response.StatusCode, want)
		}
	}
}

func TestReload(t *testing.T) {
	t.Parallel()
	i := install(t)
	c, url := i.serve()
	issue := func(profile string, ttl int) int {
		status, _, err := call(t, "POST", url+"/v1/credentials", i.tokens["orch"],
			fmt.Sprintf(`{"task_id":"t","agent_id":"a","profile":%q,"scopes":["read"],"ttl_seconds":%d}`, profile, ttl))
		if err != nil {
			t.Fatal(err)
		}
		return status
	}
	if issue("aws-test", 7200) != 422 || issue("aws-more", 60) != 422 {
		t.Fatal("the first configuration allows too much")
	}
	more := func(s *settings) {
		s.MaxTTL = "2h"
		s.More = strings.ReplaceAll(`  aws-more:
    provider: aws
    ttl: {default: 15m, max: 1h}
    allow: [{callers: [orch]}]
    aws: {role_arn: "`+sandbox.RoleARN+`", region: us-east-1, endpoint: "`+i.sandbox.AWSURL+`", access_key_id: "file:DIR/aws_id", secret_access_key: "file:DIR/aws_key",
      revocation: {mode: deny, lag: 0s}, scopes: {read: {statements: [{actions: ["s3:GetObject"], resources: ["arn:aws:s3:::b/x"]}]}}}
`, "DIR", i.dir)
	}
	i.configure(more)
	c.signal(syscall.SIGHUP)
	c.awaitLine("reloaded", 0)
	if issue("aws-test", 7200) != 201 || issue("aws-more", 60) != 201 {
		t.Error("the new configuration is not in force")
	}

	// Faults of every kind change nothing, and the log says where they are.
	for n, bad := range []string{
		"profiles: {}\n", "not: [yaml", "", strings.ReplaceAll(readFile(t, i.config), "ttl: {default: 15m, max: 1h}", "ttl: {default: 3h, max: 1h}"),
		strings.ReplaceAll(readFile(t, i.config), "file:"+i.dir+"/aws_key", "file:"+i.dir+"/none"),
	} {
		writeFile(t, i.dir, filepath.Base(i.config), bad)
		c.signal(syscall.SIGHUP)
		line := c.awaitLine("not reloaded: the profiles are as before", n)
		if line["error"] == "" || line["level"] != "ERROR" {
			t.Errorf("fault %d: %v", n, line)
		}
		if issue("aws-test", 7200) != 201 || issue("aws-more", 60) != 201 {
			t.Errorf("fault %d: the profiles are not as before", n)
		}
	}
	// A profile taken away is gone for new requests; what it issued can still be seen.
	i.configure(nil)
	c.signal(syscall.SIGHUP)
	c.awaitLine("reloaded", 1)
	if issue("aws-more", 60) != 422 || issue("aws-test", 60) != 201 {
		t.Error("the last configuration is not in force")
	}
	if held := mustCall(t, 200, "GET", url+"/v1/credentials?profile=aws-more", i.tokens["orch"], ""); strings.Count(held, `"id"`) < 2 {
		t.Errorf("what it issued: %s", held)
	}
	loaded := mustCall(t, 200, "GET", url+"/v1/audit/events?type=config.loaded", i.tokens["aud"], "")
	if n := strings.Count(loaded, `"type":"config.loaded"`); n != 3 {
		t.Errorf("%d configurations are on the record, want 3", n)
	}
	c.stop()
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// What must not serve says why and does not.
func TestServeRefuses(t *testing.T) {
	t.Parallel()
	i := install(t)
	empty := pgtest.New(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for what, c := range map[string]struct {
		change func(*settings)
		words  []string
	}{
		"a superuser's URL": {func(s *settings) { s.URLFile = i.admin },
			[]string{"may alter or delete audit events", "migrate --service-login"}},
		"no schema": {func(s *settings) { s.URLFile = writeFile(t, i.dir, "empty_url", empty.URL(cliLogin)) },
			[]string{"no schema yet", "taskpass migrate"}},
		"no such database": {func(s *settings) {
			s.URLFile = writeFile(t, i.dir, "none_url", "postgres://u:"+cliPassword+"@127.0.0.1:1/x?sslmode=disable")
		},
			[]string{"the database cannot be asked"}},
		"a bad URL":   {func(s *settings) { s.URLFile = writeFile(t, i.dir, "bad_url", "postgres://u:"+cliPassword+"@[x/y") }, []string{"database URL"}},
		"no URL":      {func(s *settings) { s.URLFile = filepath.Join(i.dir, "nowhere") }, []string{"database.url", "nowhere"}},
		"port taken":  {func(s *settings) { s.Listen = taken.Addr().String() }, []string{"address already in use"}},
		"no TLS file": {func(s *settings) { s.TLS = `tls: {cert_file: /nowhere/cert, key_file: /nowhere/key}` }, []string{"tls", "/nowhere/cert"}},
		"undisclosed": {func(s *settings) {
			s.More = "  pool:\n    provider: pool\n    ttl: {default: 1m, max: 1h}\n    allow: [{callers: [orch]}]\n" +
				"    pool: {name: p, scopes: [use], keys: [{name: k, value: \"file:" + i.dir + "/aws_key\"}]}\n"
		}, []string{"disclosed: accept"}},
		"a fault":             {func(s *settings) { s.MaxTTL = "1s" }, []string{"taskpass.yaml:", "profiles.aws-test.ttl.max"}},
		"beyond the provider": {func(s *settings) { s.MaxTTL = "13h" }, []string{"taskpass.yaml:", "ttl.max", "12h"}},
	} {
		i.configure(c.change)
		r := mustFail(t, 1, c.words, "serve", "--config", i.config, "--wait-for-database", "0s")
		if strings.Contains(r.stderr+r.stdout, cliPassword) {
			t.Errorf("%s: the password is said: %s", what, r)
		}
	}
	i.configure(nil)
	writeFile(t, i.dir, "keyset", `{"primaryKeyId":1,"key":["`+cliPassword+`"]}`)
	r := mustFail(t, 1, []string{"keyset"}, "serve", "--config", i.config)
	if strings.Contains(r.stderr, cliPassword) {
		t.Errorf("the keyset is said: %s", r)
	}
	mustFail(t, 1, []string{"none.yaml"}, "serve", "--config", filepath.Join(i.dir, "none.yaml"))
}

// A login that is no member of the service's role, or a schema that is too old.
func TestServeRefusesADatabaseInAnotherState(t *testing.T) {
	t.Parallel()
	i := install(t)
	db := strings.TrimSpace(readFile(t, i.admin))
	sql(t, db, `DO $$ BEGIN CREATE ROLE taskpass_stranger LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$`)
	stranger, err := as(db, "taskpass_stranger", "")
	if err != nil {
		t.Fatal(err)
	}
	i.configure(func(s *settings) { s.URLFile = writeFile(t, i.dir, "stranger_url", stranger) })
	mustFail(t, 1, []string{"not a member of taskpass_service", "migrate --service-login"}, "serve", "--config", i.config)

	i.configure(nil)
	sql(t, db, `DELETE FROM goose_db_version WHERE version_id = (SELECT max(version_id) FROM goose_db_version)`)
	mustFail(t, 1, []string{"older than this build", "taskpass migrate"}, "serve", "--config", i.config)
}

// TLS, and clients that must show a certificate.
func TestServeTLS(t *testing.T) {
	t.Parallel()
	i := install(t)
	ca, cert, pool := selfSigned(t, i.dir)
	i.configure(func(s *settings) {
		s.TLS = fmt.Sprintf("tls: {cert_file: %[1]s/cert.pem, key_file: %[1]s/key.pem, client_ca_file: %[2]s}", i.dir, ca)
	})
	c, url := i.serve()
	url = strings.Replace(url, "http://", "https://", 1)
	get := func(certs ...tls.Certificate) (int, error) {
		client := &http.Client{Transport: &http.Transport{
			DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: certs, MinVersion: tls.VersionTLS12},
		}}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(r)
		if err != nil {
			return 0, err
		}
		return response.StatusCode, response.Body.Close()
	}
	if status, err := get(cert); err != nil || status != 200 {
		t.Errorf("with a certificate: %d, %v", status, err)
	}
	if status, err := get(); err == nil {
		t.Errorf("without one: %d", status)
	}
	if status, _, err := call(t, "GET", strings.Replace(url, "https://", "http://", 1)+"/readyz", "", ""); err == nil && status < 400 {
		t.Errorf("in the clear: %d", status)
	}
	c.stop()
}

// selfSigned writes a certificate for 127.0.0.1 that is its own authority, for the server and its clients alike.
func selfSigned(t *testing.T, dir string) (file string, cert tls.Certificate, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "taskpass test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, form, form, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	file = writeFile(t, dir, "cert.pem", string(certPEM))
	writeFile(t, dir, "key.pem", string(keyPEM))
	cert, err = tls.X509KeyPair(certPEM, keyPEM)
	pool = x509.NewCertPool()
	if err = errors.Join(err, map[bool]error{false: errors.New("no certificate")}[pool.AppendCertsFromPEM(certPEM)]); err != nil {
		t.Fatal(err)
	}
	return file, cert, pool
}
