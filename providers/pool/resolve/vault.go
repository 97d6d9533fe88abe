package resolve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/taskpass/taskpass/broker"
)

// Vault is a HashiCorp Vault, or an OpenBao, whose KV engine (version 2) keeps secrets.
type Vault struct {
	Address   string     `yaml:"address"`   // https://vault.example.com:8200; empty: there is none
	Token     broker.Ref `yaml:"token"`     // read at each call, so an agent may renew it in its file
	Namespace string     `yaml:"namespace"` // of Vault Enterprise and OpenBao; empty: the root's
	CAFile    string     `yaml:"ca_file"`   // PEM, absolute: who signs the server's certificate; empty: this machine's roots
}

func (c Vault) check(f *broker.Faults) {
	if c.Address == "" {
		if c != (Vault{}) {
			f.Add("vault.address", "is required")
		}
		return
	}
	f.Endpoint("vault.address", c.Address)
	if err := c.Token.Check(); err != nil {
		f.Add("vault.token", "%v", err)
	}
	if c.CAFile != "" && !filepath.IsAbs(c.CAFile) {
		f.Add("vault.ca_file", "is not an absolute path")
	}
	if strings.ContainsFunc(c.Namespace, func(r rune) bool { return r <= ' ' || r > '~' }) {
		f.Add("vault.namespace", "has characters that no header may hold")
	}
}

type vault struct {
	wire
	cfg   Vault
	files *broker.SecretFiles
}

const vaultName = "Vault"

func newVault(cfg Vault, w wire, files *broker.SecretFiles) (*vault, error) {
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, errors.New("resolve: vault.ca_file holds no certificate")
		}
		transport, ok := w.client.Transport.(*http.Transport)
		if !ok {
			transport = http.DefaultTransport.(*http.Transport)
		}
		transport = transport.Clone()
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
		own := *w.client
		own.Transport = transport
		w.client = &own
	}
	return &vault{w, cfg, files}, nil
}

// read answers the newest version of a KV secret, as the JSON of its data.
// https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2#read-secret-version
func (v *vault) read(ctx context.Context, name string) ([]byte, string, error) {
	token, err := v.files.Own(v.cfg.Token)
	if err == nil {
		err = broker.CheckSecretValue(token.Reveal())
	}
	if err != nil {
		return nil, "", broker.Errorf(broker.CodeUpstreamRefused, "the token for Vault cannot be used (%v): the operator should check it", err).Because(err)
	}
	header := http.Header{"X-Vault-Token": {token.Reveal()}, "X-Vault-Request": {"true"}}
	if v.cfg.Namespace != "" {
		header.Set("X-Vault-Namespace", v.cfg.Namespace)
	}
	mount, path, _ := strings.Cut(name, "/")
	segments := strings.Split(path, "/")
	for i, s := range segments {
		segments[i] = url.PathEscape(s)
	}
	address := strings.TrimRight(v.cfg.Address, "/") + "/v1/" + url.PathEscape(mount) + "/data/" + strings.Join(segments, "/")
	r, err := v.get(ctx, broker.VendorAnswer{Vendor: vaultName, Action: "kv.read"}, address, header)
	if err != nil {
		return nil, "", err
	}
	var said struct { // a refusal has errors; that of a deleted version has data
		RequestID string `json:"request_id"`
		Errors    json.RawMessage
		Data      *struct {
			Data     json.RawMessage
			Metadata struct{ Version int64 }
		}
	}
	r.genuine = json.Unmarshal(r.body, &said) == nil && (said.Errors != nil || said.Data != nil)
	if broker.ValidID(said.RequestID) {
		r.RequestID = said.RequestID
	}
	switch {
	case r.Status != http.StatusOK, !r.genuine:
		return nil, "", v.meaning("vault.token and its policy (read on MOUNT/data/PATH), and vault.namespace", r)
	case said.Data == nil || said.Data.Metadata.Version < 1:
		return nil, "", broker.Errorf(broker.CodeUpstreamRefused, "Vault's answer is not that of a KV engine of version 2: the operator should check the mount").
			Because(r.VendorAnswer)
	}
	return said.Data.Data, strconv.FormatInt(said.Data.Metadata.Version, 10), nil
}
