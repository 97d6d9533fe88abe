package stripe

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	sdk "github.com/stripe/stripe-go/v76"

	"github.com/taskpass/taskpass/broker"
)

const (
	keysPath = "/v2/iam/api_keys"
	// maxPages bounds a search of the account's live keys, at a hundred a page.
	maxPages = 200
	// availableEvery is how often the account is asked whether it has the preview.
	availableEvery = 10 * time.Minute
)

// managed makes a restricted key for each version.
type managed struct {
	base
	mu   sync.Mutex
	keys *recipient // made at the first mint
}

// apiKey is a key as the preview tells it.
type apiKey struct {
	sdk.APIResource
	ID                 string    `json:"id"`
	Name               string    `json:"name"`
	Type               string    `json:"type"`
	Status             string    `json:"status"`
	Livemode           bool      `json:"livemode"`
	Permissions        *[]string `json:"permissions"`
	ConnectPermissions []string  `json:"connect_permissions"`
	ExpiresAt          moment    `json:"expires_at"`
	SecretKey          struct {
		Token           hidden `json:"token"` // in test mode, in every list
		EncryptedSecret *struct {
			Ciphertext string `json:"ciphertext"`
			Format     string `json:"format"`
		} `json:"encrypted_secret"`
	} `json:"secret_key"`
}

// keyPage is a page of a list.
type keyPage struct {
	sdk.APIResource
	Data        []apiKey `json:"data"`
	NextPageURL string   `json:"next_page_url"`
}

// ignored is an answer of which only the status counts.
type ignored struct{ sdk.APIResource }

// keyName is by what a version's key is found when nothing else is known of it.
func keyName(id broker.VersionID) string { return "taskpass-" + string(id) }

// Upstream implements broker.Provider.
func (m *managed) Upstream(broker.Credential) string { return "stripe:" + m.cfg.Account }

// Quota implements broker.Metered: Stripe counts an account's calls.
func (m *managed) Quota() string { return "stripe:" + m.cfg.Account }

// Keeps implements broker.Keeper.
func (m *managed) Keeps() string { return "stripe:" + m.cfg.Account }

// Keep implements broker.Keeper: it looks whether the account has the preview, so that an operator learns of it before a
// task does. Nothing is changed.
func (m *managed) Keep(ctx context.Context) (time.Time, error) {
	key, err := m.client.ownKey(m.cfg.SecretKey)
	if err != nil {
		return time.Time{}, err
	}
	var page keyPage
	if _, f := m.call(ctx, key, http.MethodGet, "?limit=1", "", nil, &page); f != nil {
		return time.Time{}, m.meaning(f)
	} else if page.Data == nil {
		return time.Time{}, m.meaning(notOf(nil, "GET "+keysPath, false))
	}
	return m.Clock().Add(availableEvery), nil
}

// call is one call of the preview; below is the path below the keys'.
func (m *managed) call(ctx context.Context, key broker.Secret, method, below, idempotency string, body any, into sdk.LastResponseSetter) (string, *failure) {
	r := request{method: method, path: keysPath + below, key: key, account: m.cfg.Account, idempotency: idempotency}
	if method == http.MethodPost {
		r.json = []byte("{}")
		if body != nil {
			text, err := json.Marshal(body)
			if err != nil {
				return "", &failure{}
			}
			r.json = text
		}
	}
	return m.client.do(ctx, r, into)
}

// meaning says what an answer of the preview means. Stripe does not know the path where the account has no preview.
func (m *managed) meaning(f *failure) *broker.Error {
	if !f.unread && (f.status == http.StatusNotFound || f.status == http.StatusBadRequest && f.code == "" && !f.idempotent) {
		return refusedBy(f, "Stripe does not offer managed API keys (a private preview) to %s, or refuses the form of the request: "+
			"the operator should have the app with api_key_write installed there, or use mode pool", m.cfg.Account)
	}
	if f.status == http.StatusBadRequest && strings.HasPrefix(f.code, "api_key_") {
		return refusedBy(f, "Stripe refuses such a key (%s): the operator should check these scopes' permissions", f.code)
	}
	return f.meaning()
}

// creation is the body of a creation. Its permissions are never empty.
type creation struct {
	Type        string    `json:"type"`
	Name        string    `json:"name"`
	Note        string    `json:"note"`
	Permissions []string  `json:"permissions"`
	ExpiresAt   string    `json:"expires_at"`
	PublicKey   publicKey `json:"public_key"`
}

// Mint implements broker.Provider.
func (m *managed) Mint(ctx context.Context, c broker.Credential) (broker.Minted, error) {
	names, err := m.wanted(c)
	if err == nil && len(names) == 0 {
		err = refusedUnsent("these scopes come to no permission")
	}
	if err != nil {
		return broker.Minted{}, surely(err)
	}
	own, err := m.client.ownKey(m.cfg.SecretKey)
	if err != nil {
		return broker.Minted{}, surely(err)
	}
	to, err := m.recipient()
	if err != nil {
		return broker.Minted{}, surely(broker.Errorf(broker.CodeUnavailable, "no RSA key could be made to receive the secret").Because(err))
	}
	end := c.Version.ExpiresAt.UTC().Truncate(time.Second) // never later than was promised
	var made apiKey
	requestID, f := m.call(ctx, own, http.MethodPost, "", string(c.Version.ID), creation{
		Type: "secret_key", Name: keyName(c.Version.ID), Note: "made by Taskpass for one task", Permissions: names,
		ExpiresAt: end.Format(time.RFC3339), PublicKey: to.public,
	}, &made)
	if f != nil {
		return broker.Minted{}, f.mint(m.meaning(f))
	}
	secret, err := m.verify(ctx, own, c, names, end, to, &made)
	if err != nil {
		return broker.Minted{}, m.drop(ctx, own, c, made.ID, err)
	}
	return broker.Minted{
		Secret: m.bundle("stripe_key", secret), UpstreamExpiresAt: made.ExpiresAt.Time, UpstreamIDs: []string{made.ID, made.Name}, OwnID: true,
		Trace: m.trace(c, made.ID, requestID, map[string]string{"permissions": strings.Join(names, " ")}),
	}, nil
}

// trace is what an auditor finds the version by in Stripe's own log.
func (b *base) trace(_ broker.Credential, id, requestID string, more map[string]string) map[string]string {
	t := map[string]string{"mode": b.cfg.Mode, "key_id": id, "livemode": fmt.Sprint(b.cfg.Livemode)}
	if b.cfg.Account != "" {
		t["account"] = b.cfg.Account
	}
	if requestID != "" {
		t["request_id"] = requestID
		t["request_log_url"] = "https://dashboard.stripe.com/logs/" + requestID
		if !b.cfg.Livemode {
			t["request_log_url"] = "https://dashboard.stripe.com/test/logs/" + requestID
		}
	}
	maps.Copy(t, more)
	return t
}

// verify holds the answer against what was asked for, and opens the secret. Nothing that differs is handed out.
func (m *managed) verify(ctx context.Context, own broker.Secret, c broker.Credential, names []string, end time.Time, to *recipient, made *apiKey) (broker.Secret, error) {
	if !plain(made.ID) {
		return broker.Secret{}, fmt.Errorf("%w: id", errNotAsAsked)
	}
	got := *made
	if got.Permissions == nil { // then the key itself says what it may do
		if _, f := m.call(ctx, own, http.MethodGet, "/"+url.PathEscape(made.ID), "", nil, &got); f != nil {
			return broker.Secret{}, f
		}
	}
	asked := implying(names...)
	switch {
	case got.ID != made.ID, got.Name != keyName(c.Version.ID), got.Type != "secret_key", got.Status != "active":
		return broker.Secret{}, fmt.Errorf("%w: name, type or status", errNotAsAsked)
	case got.Livemode != m.cfg.Livemode:
		return broker.Secret{}, fmt.Errorf("%w: livemode", errNotAsAsked)
	case got.Permissions == nil || !maps.Equal(implying(*got.Permissions...), asked) || len(got.ConnectPermissions) > 0:
		return broker.Secret{}, fmt.Errorf("%w: permissions", errNotAsAsked)
	case got.ExpiresAt.IsZero() || got.ExpiresAt.After(end):
		return broker.Secret{}, fmt.Errorf("%w: expires_at", errNotAsAsked)
	}
	made.ExpiresAt = got.ExpiresAt
	return m.open(made, to)
}

// open gets the secret out of an answer. A live one has to be encrypted.
func (m *managed) open(made *apiKey, to *recipient) (broker.Secret, error) {
	secret := made.SecretKey.Token.Secret
	if e := made.SecretKey.EncryptedSecret; e != nil {
		if e.Format != "" && e.Format != "jwe_compact" {
			return broker.Secret{}, fmt.Errorf("%w: the secret's format", errNotAsAsked)
		}
		var err error
		if secret, err = to.open(e.Ciphertext); err != nil {
			return broker.Secret{}, err
		}
	} else if m.cfg.Livemode {
		return broker.Secret{}, fmt.Errorf("%w: a live secret in the clear, or none", errNotAsAsked)
	}
	if !isKey(secret, m.cfg.Livemode, "rk_") {
		return broker.Secret{}, fmt.Errorf("%w: the secret's form", errNotAsAsked)
	}
	return secret, nil
}

// drop expires a key that is not handed out. The version stays in doubt: Revoke looks for it once more, by its name, which
// a key that bears another one would escape. So that is tried here and said aloud if it fails.
func (m *managed) drop(ctx context.Context, own broker.Secret, c broker.Credential, id string, why error) error {
	e := broker.Errorf(broker.CodeUpstreamError, "Stripe made another key than was asked for; it was not handed out").Because(why)
	if !plain(id) {
		m.Logger.ErrorContext(ctx, "a key that is not as asked for has no readable id: expire it by hand", "version_id", c.Version.ID, "name", keyName(c.Version.ID))
		return e
	}
	if f := m.expire(ctx, own, id); f != nil && !m.over(ctx, own, id) {
		m.Logger.ErrorContext(ctx, "a key that is not as asked for could not be expired: expire it by hand if the version stays stuck",
			"version_id", c.Version.ID, "key_id", id, "error", f, broker.VendorAttr(f))
	}
	return e
}

// expire asks that a key be refused from now on. A success names the key, and that it is expired.
func (m *managed) expire(ctx context.Context, own broker.Secret, id string) *failure {
	var k apiKey
	_, f := m.call(ctx, own, http.MethodPost, "/"+url.PathEscape(id)+"/expire", "", nil, &k)
	return notOf(f, "POST "+keysPath+"/*/expire", k.ID == id && k.Status == "expired")
}

// over tells whether a key's status is expired. What cannot be asked is not.
func (m *managed) over(ctx context.Context, own broker.Secret, id string) bool {
	var k apiKey
	_, f := m.call(ctx, own, http.MethodGet, "/"+url.PathEscape(id), "", nil, &k)
	return f == nil && k.ID == id && k.Status == "expired"
}

// named finds the live keys of a version by their name.
func (m *managed) named(ctx context.Context, own broker.Secret, id broker.VersionID) ([]apiKey, error) {
	var found []apiKey
	below := "?limit=100"
	for range maxPages {
		var page keyPage
		if _, f := m.call(ctx, own, http.MethodGet, below, "", nil, &page); f != nil {
			return nil, m.meaning(f)
		} else if page.Data == nil { // an answer without a list is no proof that there is no key
			return nil, m.meaning(notOf(nil, "GET "+keysPath, false))
		}
		for _, k := range page.Data {
			if k.Name == keyName(id) && plain(k.ID) && k.Status != "expired" {
				found = append(found, k)
			}
		}
		if page.NextPageURL == "" {
			return found, nil
		}
		var ok bool
		if below, ok = m.nextPage(page.NextPageURL); !ok {
			return nil, broker.Errorf(broker.CodeUpstreamError, "Stripe's list of keys goes on somewhere else")
		}
	}
	return nil, broker.Errorf(broker.CodeUpstreamRefused, "the account has more live keys than are searched (%d pages)", maxPages)
}

// nextPage is the query of a list's next page, if that is of the same list: the key goes nowhere else.
func (m *managed) nextPage(text string) (string, bool) {
	next, err := url.Parse(text)
	if err != nil || next.Path != keysPath || next.RawQuery == "" {
		return "", false
	}
	own, err := url.Parse(m.client.backend.URL)
	return "?" + next.RawQuery, err == nil && (next.Host == "" || next.Host == own.Host)
}
