package resolve_test

import (
	"context"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/pool/resolve"
	"github.com/taskpass/taskpass/providers/sandbox/fault"
)

func TestEveryKindOfReference(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	path := file(t, "plain", "sk-file\n")
	r.aws.Put(region, "pools/a", "sk-aws-0")
	r.aws.Put(region, "pools/a", "sk-aws\n")
	r.aws.Put(region, "json", `{"key":"sk-aws-json","n":1}`)
	r.aws.PutBinary(region, "binary", []byte("sk-aws-binary"))
	const arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:x-AbCdEf"
	r.aws.Put(region, arn, "sk-aws-arn")
	r.gcp.Put(gcpName, []byte("sk-gcp-1"))
	r.gcp.Put(gcpName, []byte(`{"key":"sk-gcp-2"}`))
	r.vault.Put("pools/a", map[string]any{"key": "sk-vault-1"})
	r.vault.Put("pools/a", map[string]any{"key": "sk-vault-2", "other": 1})
	const version = "00000000-0000-4000-8000-00000000000"
	for _, c := range []struct{ ref, value, version string }{
		{"file:" + path, "sk-file", ""},
		{"aws-sm:eu-west-1/pools/a", "sk-aws", version + "2"},
		{"aws-sm:eu-west-1/json#key", "sk-aws-json", version + "1"},
		{"aws-sm:eu-west-1/binary", "sk-aws-binary", version + "1"},
		{"aws-sm:eu-west-1/" + arn, "sk-aws-arn", version + "1"},
		{"gcp-sm:" + gcpName + "/versions/1", "sk-gcp-1", "1"},
		{"gcp-sm:" + gcpName + "#key", "sk-gcp-2", "2"},
		{"vault:kv/pools/a#key", "sk-vault-2", "2"},
	} {
		value, got, err := r.Resolve(t.Context(), c.ref)
		if err != nil || value.Reveal() != c.value || got != c.version {
			t.Errorf("%s: %q, version %s, %v", c.ref, value.Reveal(), got, err)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("TASKPASS_RESOLVE_TEST", "sk-env")
	r, err := resolve.New(resolve.Config{}, resolve.Wire{})
	if err != nil {
		t.Fatal(err)
	}
	if value, _, err := r.Resolve(t.Context(), "env:TASKPASS_RESOLVE_TEST"); err != nil || value.Reveal() != "sk-env" {
		t.Error(err)
	}
}

func TestNoValueThere(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	big := strings.Repeat("canary", 64<<10/6+1)
	r.aws.Put(region, "empty", " \n")
	r.aws.Put(region, "big", big)
	r.aws.Put(region, "plain", "canary")
	r.aws.Put(region, "json", `{"n":1,"null":null,"empty":"","big":"`+big+`","a":["canary"]}`)
	r.aws.Delete(region, "deleted")
	r.gcp.Put(gcpName, []byte("canary"))
	r.gcp.Disable(gcpName)
	r.vault.Put("a", map[string]any{"key": 5})
	for _, ref := range []string{
		"file:/none/x", "env:TASKPASS_NOT_SET",
		"aws-sm:eu-west-1/none", "aws-sm:us-east-1/plain", "aws-sm:eu-west-1/empty", "aws-sm:eu-west-1/big", "aws-sm:eu-west-1/deleted",
		"aws-sm:eu-west-1/plain#key", "aws-sm:eu-west-1/json#key", "aws-sm:eu-west-1/json#n", "aws-sm:eu-west-1/json#null",
		"aws-sm:eu-west-1/json#empty", "aws-sm:eu-west-1/json#big", "aws-sm:eu-west-1/json#a",
		"gcp-sm:projects/sandbox/secrets/none", "gcp-sm:" + gcpName, "gcp-sm:" + gcpName + "/versions/7",
		"vault:kv/none#key", "vault:other/a#key", "vault:kv/a#key", "vault:kv/a#none",
	} {
		value, version, err := r.Resolve(t.Context(), ref)
		if e := wantCode(t, err, broker.CodeUpstreamRefused); !value.Empty() || version != "" || !strings.Contains(e.Message, ref) {
			t.Errorf("%s: version %q, %v", ref, version, err)
		}
	}
}

func TestForm(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, ref := range []string{
		"env:A", "file:/a", "aws-sm:us-gov-west-1/a", "aws-sm:eusc-de-east-1/a", "gcp-sm:projects/example.com:p/secrets/S_1-x/versions/latest", "vault:kv/a b/c#key with #",
	} {
		if err := r.Check(ref); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
	none, err := resolve.New(resolve.Config{}, resolve.Wire{})
	if err != nil {
		t.Fatal(err)
	}
	if none.Check("vault:kv/a#k") == nil || none.Check("env:A") != nil {
		t.Error("a vault: reference without a Vault")
	}
	for _, ref := range []string{
		"", "canary", "sk-canary:x", "env:", "file:canary", "aws-sm:", "aws-sm:canary", "aws-sm:eu-west-1", "aws-sm:eu-west-1/", "aws-sm:EU/x",
		"aws-sm:eu-west-1/a#", "aws-sm:evil.com/x/canary", "aws-sm:eu-west-1/a b", "gcp-sm:projects/p", "gcp-sm:projects/p/secrets/a/b", "gcp-sm:projects/../secrets/a",
		"gcp-sm:projects/p/secrets/s/versions/1:destroy", "gcp-sm:projects/p/secrets/a?x", "vault:kv#k", "vault:kv/a", "vault:kv/a#", "vault:kv//a#k", "vault:kv/../sys/a#k", "vault:kv/./a#k",
		"vault:/a#k", "vault:kv/a?version=1#k", "vault:kv/a%2e#k", "vault:kv/a\n#k",
	} {
		err := r.Check(ref)
		if err == nil {
			t.Errorf("%q is accepted", ref)
			continue
		}
		clean(t, err.Error())
		if _, _, err := r.Resolve(t.Context(), ref); err == nil {
			t.Errorf("%q is resolved", ref)
		} else {
			clean(t, err.Error())
		}
	}
	if n := r.vault.Calls("read") + r.aws.Calls("read") + r.gcp.Calls("read"); n != 0 {
		t.Errorf("%d stores were asked", n)
	}
}

func TestStoresFail(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.aws.Put(region, "a", "x")
	r.gcp.Put(gcpName, []byte("x"))
	r.vault.Put("a", map[string]any{"key": "x"})
	refs := map[string]struct {
		ref   string
		queue *fault.Queue
	}{"aws": {"aws-sm:eu-west-1/a", r.aws.Queue}, "gcp": {"gcp-sm:" + gcpName, r.gcp.Queue}, "vault": {"vault:kv/a#key", r.vault.Queue}}
	for store, of := range refs {
		t.Run(store, func(t *testing.T) {
			if _, _, err := r.Resolve(t.Context(), of.ref); err != nil { // Google's token is kept from here on
				t.Fatal(err)
			}
			for _, c := range []struct {
				fault fault.Fault
				code  broker.Code
				after time.Duration
			}{
				{fault.Fault{Kind: fault.Refuse, Status: 403}, broker.CodeUpstreamRefused, 0},
				{fault.Fault{Kind: fault.Throttle}, broker.CodeUpstreamThrottled, 2 * time.Second},
				{fault.Fault{Kind: fault.Throttle, RetryAfter: 9 * time.Second}, broker.CodeUpstreamThrottled, 9 * time.Second},
				{fault.Fault{Kind: fault.Refuse, Status: 500}, broker.CodeUpstreamError, 0},
				{fault.Fault{Kind: fault.Refuse, Status: 503, RetryAfter: 3 * time.Second}, broker.CodeUpstreamError, 3 * time.Second},
				{fault.Fault{Kind: fault.Verbatim, Status: 307, Header: http.Header{"Location": {"/v1/elsewhere"}}}, broker.CodeUpstreamRefused, 0},
				{fault.Fault{Kind: fault.Verbatim, Status: 502, Body: "<html>canary"}, broker.CodeUpstreamError, 0},
				{fault.Fault{Kind: fault.Verbatim, Status: 403, Body: "<html>canary"}, broker.CodeUpstreamError, 0}, // a proxy's
				{fault.Fault{Kind: fault.Verbatim, Status: 400, Body: "<html>canary"}, broker.CodeUpstreamError, 0},
				{fault.Fault{Kind: fault.Verbatim, Status: 404, Body: `{"message":"canary"}`}, broker.CodeUpstreamError, 0},
				{fault.Fault{Kind: fault.Verbatim, Status: 200, Body: "<html>canary"}, broker.CodeUpstreamError, 0},
				{fault.Fault{Kind: fault.Verbatim, Status: 200, Body: `{}`}, broker.CodeUpstreamError, 0},
				{fault.Fault{Kind: fault.Verbatim, Status: 200}, broker.CodeUpstreamError, 0},
				{fault.Fault{Kind: fault.DropReply, Times: 3}, broker.CodeUpstreamError, 0}, // net/http sends a GET again
			} {
				of.queue.Inject(c.fault)
				_, _, err := r.Resolve(t.Context(), of.ref)
				if e := wantCode(t, err, c.code); e.RetryAfter != c.after || !strings.HasPrefix(e.Message, of.ref+": ") {
					t.Errorf("%+v: retry after %s, %v", c.fault, e.RetryAfter, err)
				}
				if got := broker.VendorAnswers(err); len(got) != 1 || got[0].Vendor == "" || got[0].Action == "" ||
					c.fault.Kind == fault.Verbatim && got[0].Status != c.fault.Status {
					t.Errorf("%+v: the log has %+v", c.fault, got)
				}
				of.queue.Clear()
			}
			calls := of.queue.Calls("read")
			of.queue.Inject(fault.Fault{Kind: fault.Hang})
			ctx, cancel := context.WithCancel(t.Context())
			go func() { of.queue.Await("read", calls+1); cancel() }()
			_, _, err := r.Resolve(ctx, of.ref)
			wantCode(t, err, broker.CodeUpstreamTimeout)
			if value, _, err := r.Resolve(t.Context(), of.ref); err != nil || value.Reveal() != "x" {
				t.Error("afterwards:", err)
			}
		})
	}
}

// An answer that says something else than it should is no value.
func TestStoresAnswerNonsense(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.vault.Inject(fault.Fault{Kind: fault.Verbatim, Status: 200, Body: `{"data":{"key":"canary of KV version 1"}}`})
	_, _, err := r.Resolve(t.Context(), "vault:kv/a#key")
	wantCode(t, err, broker.CodeUpstreamRefused)
	for _, body := range []string{
		`{"name":"projects/1/secrets/pool/versions/1","payload":{"data":"Y2FuYXJ5","dataCrc32c":"1"}}`, `{"payload":{"data":"Y2FuYXJ5"}}`, `canary`,
		`{"name":"projects/1/secrets/other/versions/1","payload":{"data":"Y2FuYXJ5"}}`, // another secret's
		`{"x":"` + strings.Repeat("canary", 1<<18) + `"}`,
	} {
		r.gcp.Inject(fault.Fault{Action: "read", Kind: fault.Verbatim, Status: 200, Body: body})
		_, _, err := r.Resolve(t.Context(), "gcp-sm:"+gcpName)
		wantCode(t, err, broker.CodeUpstreamError)
	}
	for _, body := range []string{`canary`, `{"SecretString":"canary"}`, `{"Name":"b","SecretString":"canary"}`, `{"SecretString":"` + strings.Repeat("canary", 1<<18) + `"}`} {
		r.aws.Inject(fault.Fault{Kind: fault.Verbatim, Status: 200, Body: body})
		_, _, err := r.Resolve(t.Context(), "aws-sm:eu-west-1/a")
		wantCode(t, err, broker.CodeUpstreamError)
	}
}

// What AWS's codes mean where the status says only 400: what passes by itself may be tried again.
func TestCodesOfSecretsManager(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for code, want := range map[string]broker.Code{
		"ThrottlingException": broker.CodeUpstreamThrottled, "Throttling": broker.CodeUpstreamThrottled, "RequestLimitExceeded": broker.CodeUpstreamThrottled,
		"RequestTimeout": broker.CodeUpstreamError, "InternalFailure": broker.CodeUpstreamError, "ServiceUnavailable": broker.CodeUpstreamError,
		"ResourceNotFoundException": broker.CodeUpstreamRefused, "RequestExpired": broker.CodeUpstreamRefused, "InvalidParameterException": broker.CodeUpstreamRefused,
	} {
		r.aws.Inject(fault.Fault{Kind: fault.Verbatim, Status: 400, Header: http.Header{"X-Amzn-Requestid": {"req-1"}}, Body: `{"__type":"` + code + `","message":"canary"}`})
		_, _, err := r.Resolve(t.Context(), "aws-sm:eu-west-1/a")
		wantCode(t, err, want)
		answer := broker.VendorAnswer{Vendor: "AWS Secrets Manager", Action: "GetSecretValue", Status: 400, Code: code, RequestID: "req-1"}
		if got := broker.VendorAnswers(err); len(got) != 1 || got[0] != answer {
			t.Errorf("%s: the log has %+v", code, got)
		}
	}
}

// The broker's own way in: wrong, missing, and renewed while it runs.
func TestOwnCredentials(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.vault.Put("a", map[string]any{"key": "x"})
	for _, text := range []string{"other-canary", "", "canary\nX-Evil: 1"} {
		write(t, r.token, text)
		_, _, err := r.Resolve(t.Context(), "vault:kv/a#key")
		wantCode(t, err, broker.CodeUpstreamRefused)
	}
	write(t, r.token, token)
	if _, _, err := r.Resolve(t.Context(), "vault:kv/a#key"); err != nil {
		t.Error(err)
	}
	cfg := r.cfg
	cfg.AWS.AccessKeyID = broker.Ref("file:" + file(t, "id", "AKIAOTHERCANARY"))
	cfg.GCP.CredentialsFile = file(t, "gcp.json", `{"type":"service_account","canary":1}`)
	other, err := resolve.New(cfg, r.wire)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"aws-sm:eu-west-1/a", "gcp-sm:" + gcpName} {
		_, _, err := other.Resolve(t.Context(), ref)
		wantCode(t, err, broker.CodeUpstreamRefused)
	}
	r.gcp.Inject(fault.Fault{Action: "token", Kind: fault.Refuse, Status: 403})
	_, _, err = r.Resolve(t.Context(), "gcp-sm:"+gcpName)
	wantCode(t, err, broker.CodeUpstreamRefused)
}

// A token does not follow where a store points.
func TestNoRedirectIsFollowed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	followed := make(chan string, 8)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) { followed <- q.URL.Path }))
	t.Cleanup(elsewhere.Close)
	for ref, queue := range map[string]*fault.Queue{"vault:kv/a#key": r.vault.Queue, "gcp-sm:" + gcpName: r.gcp.Queue, "aws-sm:eu-west-1/a": r.aws.Queue} {
		queue.Inject(fault.Fault{Action: "read", Kind: fault.Verbatim, Status: 307, Header: http.Header{"Location": {elsewhere.URL}}})
		_, _, err := r.Resolve(t.Context(), ref)
		if e := wantCode(t, err, broker.CodeUpstreamRefused); !strings.Contains(e.Message, "redirect") {
			t.Error(err)
		}
	}
	if len(followed) != 0 {
		t.Errorf("%s was followed", <-followed)
	}
}

func TestVaultWithACertificateOfItsOwn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.vault.Put("a", map[string]any{"key": "x"})
	server := httptest.NewUnstartedServer(r.vault)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of the refused handshake
	server.StartTLS()
	t.Cleanup(server.Close)
	cfg := r.cfg
	cfg.Vault.Address = server.URL
	strict, err := resolve.New(cfg, r.wire)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = strict.Resolve(t.Context(), "vault:kv/a#key")
	wantCode(t, err, broker.CodeUpstreamError)
	cfg.Vault.CAFile = file(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	trusting, err := resolve.New(cfg, r.wire)
	if err != nil {
		t.Fatal(err)
	}
	if value, _, err := trusting.Resolve(t.Context(), "vault:kv/a#key"); err != nil || value.Reveal() != "x" {
		t.Error(err)
	}
	for _, path := range []string{"/none", file(t, "ca.pem", "canary")} {
		cfg.Vault.CAFile = path
		if _, err := resolve.New(cfg, r.wire); err == nil {
			t.Error("accepted without a certificate")
		} else {
			clean(t, err.Error())
		}
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		cfg  resolve.Config
		want []string
	}{
		"none":  {resolve.Config{}, nil},
		"vault": {resolve.Config{Vault: resolve.Vault{Address: "https://v:8200", Token: "env:T", Namespace: "a/b"}}, nil},
		"vault, all": {resolve.Config{Vault: resolve.Vault{Address: "http://vault.example.com", Token: "hvs.canary", Namespace: "a b", CAFile: "ca.pem"}},
			[]string{"vault.address", "vault.token", "vault.ca_file", "vault.namespace"}},
		"no address":   {resolve.Config{Vault: resolve.Vault{Token: "env:T"}}, []string{"vault.address"}},
		"aws":          {resolve.Config{AWS: resolve.AWS{AccessKeyID: "env:A"}}, []string{"aws.access_key_id"}},
		"aws, both":    {resolve.Config{AWS: resolve.AWS{AccessKeyID: "env:A", SecretAccessKey: "env:B", ConfigProfile: "p"}}, []string{"aws.config_profile"}},
		"aws, pasted":  {resolve.Config{AWS: resolve.AWS{Endpoint: "https://u:canary@h", AccessKeyID: "AKIACANARY", SecretAccessKey: "canary"}}, []string{"aws.endpoint", "aws.access_key_id", "aws.secret_access_key"}},
		"gcp":          {resolve.Config{GCP: resolve.GCP{Endpoint: "ftp://127.0.0.1", CredentialsFile: "key.json"}}, []string{"gcp.endpoint", "gcp.credentials_file"}},
		"gcp loopback": {resolve.Config{GCP: resolve.GCP{Endpoint: "http://[::1]:8080"}}, nil},
	} {
		var got []string
		for _, f := range c.cfg.Check() {
			got = append(got, f.Pointer)
			clean(t, f.Reason)
		}
		if !cmp.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if _, err := resolve.New(c.cfg, resolve.Wire{}); (err != nil) != (len(c.want) > 0) {
			t.Errorf("%s: New: %v", name, err)
		}
	}
}
