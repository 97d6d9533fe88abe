package gcp

import (
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	issuer       = "https://accounts.google.com"
	tokenURI     = "https://oauth2.googleapis.com/token"
	bearerGrant  = "urn:ietf:params:oauth:grant-type:jwt-bearer" // RFC 7523
	keyTokenLife = time.Hour
	maxForm      = 1 << 20
)

// oauthToken is POST /token: a service-account key's signature for an access token.
func (s *Server) oauthToken(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil || r.PostForm.Get("grant_type") != bearerGrant {
		writeOAuthError(w, http.StatusBadRequest, "unsupported_grant_type", "Invalid grant_type.")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a, k, scopes, why := s.assertion(r.PostForm.Get("assertion"), "http://"+r.Host+"/token")
	if why != "" {
		writeOAuthError(w, http.StatusBadRequest, "invalid_grant", why)
		return
	}
	value, _ := s.issue(token{account: a, caller: a.email, scopes: scopes, key: k.id}, keyTokenLife)
	writeJSON(w, http.StatusOK, map[string]any{
		"access_token": value, "token_type": "Bearer", "expires_in": int(keyTokenLife.Seconds()) - 1,
	})
}

// assertion verifies a JWT that an account's key signed; why says why not, in Google's
// words. With s.mu held.
func (s *Server) assertion(raw, ownURI string) (a *account, k *key, scopes []string, why string) {
	const bad = "Invalid JWT Signature."
	parsed, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil || len(parsed.Headers) != 1 {
		return nil, nil, nil, "Invalid JWT: failed to parse."
	}
	var unverified jwt.Claims
	if err := parsed.UnsafeClaimsWithoutVerification(&unverified); err != nil {
		return nil, nil, nil, "Invalid JWT: failed to parse."
	}
	if a = s.find(unverified.Issuer); a == nil || a.disabled {
		return nil, nil, nil, "Invalid grant: account not found"
	}
	if k = a.keys[parsed.Headers[0].KeyID]; k == nil || !k.hidden.seen(s.cfg.Now()) || !k.valid(s.cfg.Now()) {
		return nil, nil, nil, bad
	}
	var claims struct {
		jwt.Claims
		Scope string `json:"scope"`
	}
	if err := parsed.Claims(k.public, &claims); err != nil {
		return nil, nil, nil, bad
	}
	if !slices.Contains([]string(claims.Audience), tokenURI) && !slices.Contains([]string(claims.Audience), ownURI) {
		return nil, nil, nil, "Invalid JWT: audience is wrong."
	}
	// The times in it are the client's, whose clock a test cannot move: only its life is checked.
	if claims.Expiry == nil || claims.IssuedAt == nil || claims.Expiry.Time().Sub(claims.IssuedAt.Time()) > time.Hour+time.Minute {
		return nil, nil, nil, "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe."
	}
	if scopes = strings.Fields(claims.Scope); len(scopes) == 0 {
		return nil, nil, nil, "Invalid OAuth scope or ID token audience provided."
	}
	return a, k, scopes, ""
}

// signIDToken makes an ID token as GenerateIdToken does. With s.mu held.
func (s *Server) signIDToken(a *account, audience string, withEmail bool) (string, error) {
	signing, err := s.signing()
	if err != nil {
		return "", err
	}
	options := (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", keyID(&signing.PublicKey))
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: signing}, options)
	if err != nil {
		return "", err
	}
	now := s.cfg.Now()
	claims := map[string]any{
		"iss": issuer, "aud": audience, "azp": a.uniqueID, "sub": a.uniqueID,
		"iat": now.Unix(), "exp": now.Add(idTokenLife).Unix(),
	}
	if withEmail {
		claims["email"], claims["email_verified"] = a.email, true
	}
	return jwt.Signed(signer).Claims(claims).Serialize()
}

func keyID(public *rsa.PublicKey) string {
	sum := sha256.Sum256(public.N.Bytes())
	return hex.EncodeToString(sum[:20])
}

// certs are the keys that ID tokens are verified with, as a JWK set.
func (s *Server) certs(w http.ResponseWriter, _ *http.Request) {
	signing, err := s.signing()
	if err != nil {
		writeJSONError(w, http.StatusInternalServerError, "backendError", "No key.")
		return
	}
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{
		Key: &signing.PublicKey, KeyID: keyID(&signing.PublicKey), Algorithm: string(jose.RS256), Use: "sig",
	}}}
	writeJSON(w, http.StatusOK, set)
}

const exchangeGrant = "urn:ietf:params:oauth:grant-type:token-exchange" // RFC 8693

const accessTokenType = "urn:ietf:params:oauth:token-type:access_token"

// exchangeToken is POST /v1/token of the Security Token Service: an access token for
// one that a Credential Access Boundary narrows. It ends when its source does.
func (s *Server) exchangeToken(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil || r.PostForm.Get("grant_type") != exchangeGrant ||
		r.PostForm.Get("subject_token_type") != accessTokenType || r.PostForm.Get("requested_token_type") != accessTokenType {
		writeOAuthError(w, http.StatusBadRequest, "invalid_request", "Invalid token exchange request.")
		return
	}
	var options struct {
		AccessBoundary *struct {
			Rules []ruleJSON `json:"accessBoundaryRules"`
		} `json:"accessBoundary"`
	}
	if err := json.Unmarshal([]byte(r.PostForm.Get("options")), &options); err != nil || options.AccessBoundary == nil {
		writeOAuthError(w, http.StatusBadRequest, "invalid_request", "Invalid options.")
		return
	}
	b, err := newBoundary(options.AccessBoundary.Rules)
	if err != nil {
		writeOAuthError(w, http.StatusBadRequest, "invalid_request", "Invalid access boundary.")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	source, ok := s.bearer(r.PostForm.Get("subject_token"))
	if !ok || source.boundary != nil || !slices.Contains(source.scopes, CloudPlatform) {
		writeOAuthError(w, http.StatusBadRequest, "invalid_grant", "The subject token is invalid.")
		return
	}
	value, made := s.issue(token{
		account: source.account, caller: source.caller, delegates: source.delegates, scopes: source.scopes,
		source: source, boundary: b, expires: source.expires, key: source.key,
	}, 0)
	writeJSON(w, http.StatusOK, map[string]any{
		"access_token": value, "issued_token_type": accessTokenType, "token_type": "Bearer",
		"expires_in": int(made.expires.Sub(s.cfg.Now()).Seconds()),
	})
}
