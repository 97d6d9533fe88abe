package stripe

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// previewVersion is the API version under which the preview is served.
const previewVersion = "2026-08-26.preview"

// preview guards the calls of the preview: only an app's own key, in the name of an account, under the preview's version.
func (s *Server) preview(do func(*call) reply) func(*call) reply {
	return func(c *call) reply {
		switch {
		case c.who != nil && !c.who.has("api_key_write") || c.eph != nil:
			refusal, _ := s.may(c, "api_key_write")
			return refusal
		case c.Header.Get("Stripe-Version") != previewVersion:
			return refuse(http.StatusBadRequest, "", "Unrecognized request URL (%s: %s). This endpoint needs Stripe-Version %s.", c.Method, c.URL.Path, previewVersion)
		case c.Header.Get("Stripe-Context") != s.cfg.AccountID:
			return refuse(http.StatusForbidden, "", "The key '%s' does not have access to the account in Stripe-Context.", tail(c.secret))
		}
		return do(c)
	}
}

// keyParams are a creation's, an update's and a rotation's parameters.
type keyParams struct {
	Type        string     `json:"type"`
	Name        *string    `json:"name"`
	Note        *string    `json:"note"`
	Permissions []string   `json:"permissions"`
	ExpiresAt   *time.Time `json:"expires_at"`
	PublicKey   *publicKey `json:"public_key"`
	InMinutes   *int       `json:"expire_current_key_in_minutes"`
}

// read decodes a body strictly, as the v2 API does: a field that a call does not know is refused.
func read(c *call, fields ...string) (p keyParams, refusal reply, ok bool) {
	if !strings.HasPrefix(c.Header.Get("Content-Type"), "application/json") {
		return p, refuse(http.StatusBadRequest, "", "The v2 API takes JSON."), false
	}
	body := c.body
	if len(bytes.TrimSpace(body)) == 0 {
		body = []byte("{}")
	}
	var names map[string]json.RawMessage
	if err := json.Unmarshal(body, &names); err != nil {
		return p, refuse(http.StatusBadRequest, "", "Invalid JSON."), false
	}
	for name := range names {
		if !slices.Contains(fields, name) {
			return p, refuse(http.StatusBadRequest, "", "%s: Unknown field, did you mean %s?", name, strings.Join(fields, ", ")), false
		}
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return p, refuse(http.StatusBadRequest, "", "A field has the wrong type."), false
	}
	return p, reply{}, true
}

var permissionForm = regexp.MustCompile(`^[a-z_]+_(read|write)$`)

func (s *Server) createKey(c *call) reply {
	p, refusal, ok := read(c, "type", "name", "note", "permissions", "connect_permissions", "expires_at", "public_key")
	if !ok {
		return refusal
	}
	k := &key{managed: true, permissions: slices.Clone(p.Permissions)}
	switch {
	case p.Type != "secret_key":
		return refuse(http.StatusBadRequest, "api_key_invalid_type", "type: Invalid value.")
	case len(p.Permissions) == 0 || slices.ContainsFunc(p.Permissions, func(name string) bool { return !permissionForm.MatchString(name) }):
		return refuse(http.StatusBadRequest, "api_key_invalid_permissions", "permissions: Invalid value.")
	case p.ExpiresAt != nil && !p.ExpiresAt.After(c.now):
		return refuse(http.StatusBadRequest, "api_key_invalid_expires_at", "expires_at: Must be in the future.")
	case p.PublicKey == nil && s.livemode:
		return refuse(http.StatusBadRequest, "api_key_public_key_required", "public_key: Required to create a secret key in live mode.")
	}
	if p.ExpiresAt != nil {
		k.expiresAt = *p.ExpiresAt
	}
	if p.Name != nil {
		k.name = *p.Name
	}
	if p.Note != nil {
		k.note = *p.Note
	}
	return s.give(k, p.PublicKey)
}

// give makes the key and answers it with its secret: sealed in live mode, in the clear otherwise.
func (s *Server) give(k *key, to *publicKey) reply {
	if !s.livemode {
		return answer(s.renderKey(s.newKey(k)))
	}
	k.secret = "rk_live_" + random(48)
	ciphertext, err := to.seal(k.secret)
	if err != nil {
		return refuse(http.StatusBadRequest, "api_key_invalid_public_key", "public_key: Must be a PEM-encoded RSA key of at least 2048 bits.")
	}
	body := s.renderKey(s.newKey(k))
	body["secret_key"] = map[string]any{
		"secret_token_redacted": tail(k.secret),
		"encrypted_secret":      map[string]any{"ciphertext": ciphertext, "format": "jwe_compact", "recipient_key_id": to.ID},
	}
	return answer(body)
}

func (s *Server) renderKey(k *key) map[string]any {
	status := "active"
	if k.over(s.cfg.Now()) {
		status = "expired"
	}
	secret := map[string]any{"secret_token_redacted": tail(k.secret)}
	if !s.livemode {
		secret["token"] = k.secret
	}
	body := map[string]any{
		"id": k.id, "object": "v2.iam.api_key", "type": "secret_key", "name": k.name, "note": k.note, "status": status, "livemode": s.livemode,
		"created": k.created.UTC().Format(time.RFC3339Nano), "permissions": slices.Clone(k.permissions), "connect_permissions": []string{},
		"ip_allowlist": []string{}, "secret_key": secret,
	}
	if !k.expiresAt.IsZero() {
		body["expires_at"] = k.expiresAt.UTC().Format(time.RFC3339Nano)
	}
	return body
}

func (s *Server) known(c *call) (*key, reply, bool) {
	if k := s.find(c.PathValue("id")); k != nil && k.id == c.PathValue("id") && !k.gone {
		return k, reply{}, true
	}
	return nil, refuse(http.StatusNotFound, "not_found", "API key not found."), false
}

func (s *Server) getKey(c *call) reply {
	k, refusal, ok := s.known(c)
	if !ok {
		return refusal
	}
	return answer(s.renderKey(k))
}

// listKeys answers the newest first, a page at a time.
func (s *Server) listKeys(c *call) reply {
	q := c.URL.Query()
	limit, from := min(20, s.cfg.PageSize), 0
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 100 {
			return refuse(http.StatusBadRequest, "", "limit: The maximum page limit is 100")
		}
		limit = min(n, s.cfg.PageSize)
	}
	if text := q.Get("page"); text != "" {
		from, _ = strconv.Atoi(text)
	}
	all := []any{}
	for _, k := range slices.Backward(s.keys) {
		if !k.gone && (q.Get("include_expired") == "true" || !k.over(c.now)) {
			all = append(all, s.renderKey(k))
		}
	}
	from = min(max(0, from), len(all))
	end := min(from+limit, len(all))
	body := map[string]any{"data": all[from:end], "next_page_url": nil, "previous_page_url": nil}
	if end < len(all) {
		next := url.Values{"page": {strconv.Itoa(end)}, "limit": {strconv.Itoa(limit)}, "include_expired": {q.Get("include_expired")}}
		body["next_page_url"] = "/v2/iam/api_keys?" + next.Encode()
	}
	return answer(body)
}

func (s *Server) updateKey(c *call) reply {
	k, refusal, ok := s.known(c)
	if !ok {
		return refusal
	}
	p, refusal, ok := read(c, "name", "note", "permissions", "connect_permissions")
	if !ok {
		return refusal
	}
	if p.Name != nil {
		k.name = *p.Name
	}
	if p.Note != nil {
		k.note = *p.Note
	}
	if len(p.Permissions) > 0 { // an empty list is accepted and changes nothing
		k.permissions = slices.Clone(p.Permissions)
	}
	return answer(s.renderKey(k))
}

func (s *Server) expireKey(c *call) reply {
	k, refusal, ok := s.known(c)
	if !ok {
		return refusal
	}
	if k.over(c.now) {
		return refuse(http.StatusBadRequest, "api_key_already_expired", "The API key has already expired.")
	}
	s.expire(k)
	return answer(s.renderKey(k))
}

// rotateKey makes a new key of the same properties. The old one's id is not known any more, and it dies at once, or after
// the given time.
func (s *Server) rotateKey(c *call) reply {
	old, refusal, ok := s.known(c)
	if !ok {
		return refusal
	}
	p, refusal, ok := read(c, "expire_current_key_in_minutes", "public_key")
	switch {
	case !ok:
		return refusal
	case p.InMinutes != nil && (*p.InMinutes < 0 || *p.InMinutes > 10080):
		return refuse(http.StatusBadRequest, "api_key_invalid_expire_in_minutes", "expire_current_key_in_minutes: At most 10080.")
	case p.PublicKey == nil && s.livemode:
		return refuse(http.StatusBadRequest, "api_key_public_key_required", "public_key: Required in live mode.")
	}
	r := s.give(&key{managed: true, name: old.name, note: old.note, permissions: slices.Clone(old.permissions), expiresAt: old.expiresAt}, p.PublicKey)
	if r.status != http.StatusOK {
		return r
	}
	old.gone, old.expiredAt = true, c.now
	if p.InMinutes != nil {
		old.lag = time.Duration(*p.InMinutes) * time.Minute
	}
	return r
}
