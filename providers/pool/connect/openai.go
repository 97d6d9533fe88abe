package connect

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// OpenAI makes a service account, and with it a key, for each task, and deletes it.
// https://platform.openai.com/docs/api-reference/project-service-accounts
type OpenAI struct {
	AdminKey broker.Ref     `yaml:"admin_key"` // an admin key of the organisation
	Project  string         `yaml:"project"`   // proj_…, in which the accounts are made; best one that holds nothing else
	Endpoint string         `yaml:"endpoint"`  // empty: https://api.openai.com
	Lag      *time.Duration `yaml:"lag"`       // how long OpenAI may go on accepting a deleted key; absent: 1 min

	// KeyLifetime has OpenAI itself end each key at the latest that long after it was made: what remains of a crash, and
	// of a Make that comes about after nobody waited for it any more, dies by it. It must exceed the profile's longest
	// TTL. Zero: keys live until they are deleted.
	KeyLifetime time.Duration `yaml:"key_lifetime"`
}

const (
	pageSize = 100 // OpenAI's largest
	maxPages = 200 // of a project's accounts
)

func (c *OpenAI) check(f *broker.Faults) {
	f.Ref("openai.admin_key", c.AdminKey)
	if !broker.ValidID(c.Project) || strings.Trim(c.Project, ".") == "" {
		f.Add("openai.project", "is not the id of a project (proj_…)")
	}
	if c.Endpoint != "" {
		f.Endpoint("openai.endpoint", c.Endpoint)
	}
	checkLag(f, "openai.lag", c.Lag)
	if c.KeyLifetime != 0 && c.KeyLifetime < time.Minute {
		f.Add("openai.key_lifetime", "is less than 1 min")
	}
}

type openAI struct {
	vendor
	cfg      OpenAI
	accounts string // the URL of the project's service accounts
}

func newOpenAI(cfg OpenAI, w Wire) (*openAI, error) {
	if cfg.Endpoint == "" {
		cfg.Endpoint = "https://api.openai.com"
	}
	if _, err := cfg.AdminKey.Resolve(); err != nil {
		return nil, err
	}
	v := newVendor("OpenAI", "X-Request-Id", "openai.admin_key: it must be an admin key (sk-admin-…) that may manage the project's service accounts", w)
	v.errors = true
	return &openAI{
		v, cfg,
		strings.TrimRight(cfg.Endpoint, "/") + "/v1/organization/projects/" + url.PathEscape(cfg.Project) + "/service_accounts",
	}, nil
}

func (o *openAI) Revoke() (broker.RevokeMode, time.Duration) {
	return broker.RevokeDestroy, lagOf(o.cfg.Lag)
}

func (o *openAI) header() (http.Header, error) {
	admin, err := o.admin(o.cfg.AdminKey, "admin key")
	if err != nil {
		return nil, err
	}
	return http.Header{"Authorization": {"Bearer " + admin}, "Content-Type": {"application/json"}, "Accept": {"application/json"}}, nil
}

func (o *openAI) Make(ctx context.Context, name string) (broker.Secret, string, map[string]string, error) {
	fail := func(err error) (broker.Secret, string, map[string]string, error) {
		return broker.Secret{}, "", nil, err
	}
	if !broker.ValidID(name) {
		return fail(unsent{broker.Errorf(broker.CodeInvalidRequest, "no key can have this name").Because(errNoName)})
	}
	header, err := o.header()
	if err != nil {
		return fail(err)
	}
	body, err := json.Marshal(struct {
		Name    string `json:"name"`
		Expires int64  `json:"expires_in_seconds,omitempty"`
	}{name, int64(o.cfg.KeyLifetime / time.Second)})
	if err != nil {
		return fail(unsent{broker.Errorf(broker.CodeInvalidRequest, "no key can have this name").Because(err)})
	}
	r, err := o.do(ctx, "service_accounts.create", http.MethodPost, o.accounts, header, body)
	if err != nil {
		return fail(err)
	}
	if !r.good() {
		return fail(o.unmade(r))
	}
	var made struct {
		ID, Name string
		Key      struct{ ID, Value string } `json:"api_key"`
	}
	if json.Unmarshal(r.body, &made) != nil || made.Name != name || !broker.ValidID(made.ID) || broker.CheckSecretValue(made.Key.Value) != nil {
		return fail(o.meaning(r))
	}
	trace := map[string]string{"openai_project": o.cfg.Project, "service_account_id": made.ID}
	if broker.ValidID(made.Key.ID) {
		trace["api_key_id"] = made.Key.ID
	}
	return broker.NewSecret(made.Key.Value), made.ID, trace, nil
}

// unmade says what a refused Make means. A definite refusal proves that nothing was made.
func (o *openAI) unmade(r reply) error {
	e := o.meaning(r)
	if r.status == http.StatusNotFound && o.genuine(r) {
		e = broker.Errorf(broker.CodeUpstreamRefused, "OpenAI finds no such project: the operator should check openai.project, and that it is not archived").Because(o.cause(r))
	}
	if o.definite(r) {
		return unsent{e}
	}
	return e
}

// End deletes every account of that name. It lists the whole project, for the name may be all that is known.
func (o *openAI) End(ctx context.Context, name string) (broker.Revocation, error) {
	if !broker.ValidID(name) {
		return broker.Revocation{}, broker.Errorf(broker.CodeInvalidRequest, "no key can have this name").Because(errNoName)
	}
	header, err := o.header()
	if err != nil {
		return broker.Revocation{}, err
	}
	ids, err := o.named(ctx, header, name)
	if err != nil {
		return broker.Revocation{}, err
	}
	basis, doubtful := "not_listed", false
	for _, id := range ids {
		gone, err := o.remove(ctx, header, id)
		if err != nil {
			return broker.Revocation{}, err
		}
		basis, doubtful = "deleted", doubtful || !gone
	}
	if doubtful { // "not found" of one that was listed: somebody else deleted it, or not
		left, err := o.named(ctx, header, name)
		if err != nil {
			return broker.Revocation{}, err
		}
		if len(left) > 0 {
			return broker.Revocation{}, broker.Errorf(broker.CodeUpstreamError, "OpenAI still lists a service account that it says it does not have")
		}
	}
	return o.ended(broker.ResultDestroyed, lagOf(o.cfg.Lag), basis), nil
}

// named lists the ids of the accounts of that name.
func (o *openAI) named(ctx context.Context, header http.Header, name string) ([]string, error) {
	var ids []string
	after := ""
	for range maxPages {
		address := fmt.Sprintf("%s?limit=%d", o.accounts, pageSize)
		if after != "" {
			address += "&after=" + url.QueryEscape(after)
		}
		r, err := o.do(ctx, "service_accounts.list", http.MethodGet, address, header.Clone(), nil)
		if err != nil {
			return nil, err
		}
		if !r.good() {
			return nil, o.unlisted(r, after)
		}
		var page struct {
			Data []struct{ ID, Name string }
			More *bool  `json:"has_more"`
			Last string `json:"last_id"`
		}
		if json.Unmarshal(r.body, &page) != nil || page.More == nil || page.Data == nil {
			return nil, o.meaning(r)
		}
		for _, account := range page.Data {
			if account.Name != name {
				continue
			}
			if !broker.ValidID(account.ID) {
				return nil, o.meaning(r)
			}
			ids = append(ids, account.ID)
		}
		if !*page.More {
			return ids, nil
		}
		if page.Last == "" || page.Last == after {
			return nil, o.meaning(r)
		}
		after = page.Last
	}
	return nil, broker.Errorf(broker.CodeUpstreamRefused, "the project has more than %d service accounts: the operator should give the broker one of its own", maxPages*pageSize)
}

func (o *openAI) unlisted(r reply, after string) error {
	switch {
	case after != "" && (r.status == http.StatusBadRequest || r.status == http.StatusNotFound):
		return broker.Errorf(broker.CodeUpstreamError, "the list of OpenAI's service accounts changed while it was read").Because(o.cause(r))
	case r.status == http.StatusNotFound && o.genuine(r):
		return broker.Errorf(broker.CodeUpstreamRefused, "OpenAI finds no such project: the operator should check openai.project").Because(o.cause(r))
	}
	return o.meaning(r)
}

// remove tells whether OpenAI says that it deleted the account; false: that it has none.
func (o *openAI) remove(ctx context.Context, header http.Header, id string) (bool, error) {
	r, err := o.do(ctx, "service_accounts.delete", http.MethodDelete, o.accounts+"/"+url.PathEscape(id), header.Clone(), nil)
	switch {
	case err != nil:
		return false, err
	case r.status == http.StatusNotFound && o.genuine(r):
		return false, nil
	case !r.good():
		return false, o.meaning(r)
	}
	var out struct {
		ID      string
		Deleted bool
	}
	if json.Unmarshal(r.body, &out) != nil || out.ID != id || !out.Deleted {
		return false, o.meaning(r)
	}
	return true, nil
}
