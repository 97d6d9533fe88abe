package connect

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Anthropic ends keys by its Admin API: a key's status becomes inactive, which only a person takes back.
// https://platform.claude.com/docs/en/api/admin/api_keys/update
type Anthropic struct {
	AdminKey broker.Ref     `yaml:"admin_key"` // an Admin API key of the keys' organisation
	Endpoint string         `yaml:"endpoint"`  // empty: https://api.anthropic.com
	Lag      *time.Duration `yaml:"lag"`       // how long Anthropic may go on accepting an ended key; absent: 1 min
}

const anthropicVersion = "2023-06-01"

func (c *Anthropic) check(f *broker.Faults) {
	f.Ref("anthropic.admin_key", c.AdminKey)
	if c.Endpoint != "" {
		f.Endpoint("anthropic.endpoint", c.Endpoint)
	}
	checkLag(f, "anthropic.lag", c.Lag)
}

type anthropic struct {
	vendor
	cfg Anthropic
}

func newAnthropic(cfg Anthropic, w Wire) (*anthropic, error) {
	if cfg.Endpoint == "" {
		cfg.Endpoint = "https://api.anthropic.com"
	}
	if _, err := cfg.AdminKey.Resolve(); err != nil {
		return nil, err
	}
	v := newVendor("Anthropic", "Request-Id", "anthropic.admin_key: it must be an active Admin API key (sk-ant-admin…)", w)
	v.errors = true
	return &anthropic{v, cfg}, nil
}

func (a *anthropic) Revoke() (broker.RevokeMode, time.Duration) {
	return broker.RevokeDeny, lagOf(a.cfg.Lag)
}

// End sets the key inactive, and looks whether it is. A key that is archived or has expired needs nothing. One that is not
// found proves nothing: an admin key of another organisation finds none.
func (a *anthropic) End(ctx context.Context, k Key) (broker.Revocation, error) {
	if !broker.ValidID(k.VendorID) || strings.Trim(k.VendorID, ".") == "" {
		return broker.Revocation{}, broker.Errorf(broker.CodeUpstreamRefused,
			"the key has no vendor id by which Anthropic knows it (apikey_…): the operator should add it")
	}
	address, header, err := a.request(k)
	if err != nil {
		return broker.Revocation{}, err
	}
	asked, err := a.do(ctx, "api_keys.update", http.MethodPost, address, header.Clone(), []byte(`{"status":"inactive"}`))
	if err != nil {
		return broker.Revocation{}, err
	}
	// What is archived or expired cannot be set inactive any more: another refusal of the request may be that.
	if e := a.meaning(asked); !asked.good() && (asked.status == 404 || !a.genuine(asked) || e.Code != broker.CodeUpstreamRefused || isUs(asked)) {
		return broker.Revocation{}, a.missing(asked, e)
	}
	seen, err := a.do(ctx, "api_keys.get", http.MethodGet, address, header, nil)
	if err != nil {
		return broker.Revocation{}, err
	}
	if !seen.good() {
		return broker.Revocation{}, a.missing(seen, a.meaning(seen))
	}
	var key struct{ ID, Status string }
	if json.Unmarshal(seen.body, &key) != nil || key.ID != k.VendorID {
		return broker.Revocation{}, a.meaning(seen)
	}
	switch key.Status {
	case "inactive", "archived", "expired":
		return a.ended(broker.ResultDenied, lagOf(a.cfg.Lag), "status_"+key.Status), nil
	case "active":
		if !asked.good() {
			return broker.Revocation{}, a.meaning(asked)
		}
		return broker.Revocation{}, broker.Errorf(broker.CodeUpstreamError, "Anthropic still shows the key as active").Because(a.cause(seen))
	}
	return broker.Revocation{}, broker.Errorf(broker.CodeUpstreamError, "Anthropic shows the key in a state that is not known here").Because(a.cause(seen))
}

// request is the address of a key, and the headers of a call.
func (a *anthropic) request(k Key) (string, http.Header, error) {
	admin, err := a.admin(a.cfg.AdminKey, "admin key")
	if err != nil {
		return "", nil, err
	}
	return strings.TrimRight(a.cfg.Endpoint, "/") + "/v1/organizations/api_keys/" + url.PathEscape(k.VendorID), http.Header{
		"X-Api-Key": {admin}, "Anthropic-Version": {anthropicVersion}, "Content-Type": {"application/json"}, "Accept": {"application/json"},
	}, nil
}

// Prove implements Prover: an admin key that reads a key may end it, for Anthropic's admin keys have no scopes.
func (a *anthropic) Prove(ctx context.Context, keys []Key) []broker.Proof {
	var list []broker.Proof
	for _, k := range keys {
		proof := broker.Proof{Right: "ending key " + k.Name, State: broker.Proven, How: "the admin key reads it"}
		address, header, err := a.request(k)
		var seen reply
		if err == nil {
			seen, err = a.do(ctx, "api_keys.get", http.MethodGet, address, header, nil)
		}
		var key struct{ ID string }
		switch e := a.meaning(seen); {
		case err != nil:
			proof = broker.NotProvenBy(proof.Right, err)
		case seen.good() && json.Unmarshal(seen.body, &key) == nil && key.ID == k.VendorID:
		case e.Code == broker.CodeUpstreamRefused:
			proof.State, proof.How = broker.Lacking, broker.AsError(a.missing(seen, e)).Message
		default:
			proof = broker.NotProvenBy(proof.Right, e)
		}
		list = append(list, proof)
	}
	return list
}

func isUs(r reply) bool {
	return r.status == http.StatusUnauthorized || r.status == http.StatusForbidden || r.status < 400
}

func (a *anthropic) missing(r reply, e *broker.Error) error {
	if r.status != http.StatusNotFound || !a.genuine(r) {
		return e
	}
	return broker.Errorf(broker.CodeUpstreamRefused,
		"Anthropic finds no such key: the operator should check its vendor id, and that anthropic.admin_key is of the same organisation").Because(a.cause(r))
}
