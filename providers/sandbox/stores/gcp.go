package stores

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/taskpass/taskpass/providers/sandbox/fault"
)

// SecretManager is Google's, with its token endpoint: one service account, whose key it makes, gets an access token for a
// JWT that it signed (RS256).
type SecretManager struct {
	*fault.Queue
	key   *rsa.PrivateKey
	email string

	mu      sync.Mutex
	tokens  map[string]time.Time // their end
	secrets map[string][]gcpVersion
}

type gcpVersion struct {
	data     []byte
	disabled bool
}

const keyBits = 2048

// NewSecretManager makes an empty one.
func NewSecretManager() (*SecretManager, error) {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return nil, err
	}
	return &SecretManager{
		Queue: fault.New(), key: key, email: "broker@sandbox.iam.gserviceaccount.com",
		tokens: map[string]time.Time{}, secrets: map[string][]gcpVersion{},
	}, nil
}

// CredentialsFile is the service account's key file, for a server at that URL.
func (s *SecretManager) CredentialsFile(url string) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]string{
		"type": "service_account", "project_id": "sandbox", "private_key_id": "sandbox-1", "client_email": s.email,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": url + "/token",
	})
}

// Put adds a version to a secret, named projects/P/secrets/S.
func (s *SecretManager) Put(name string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets[name] = append(s.secrets[name], gcpVersion{data: data})
}

// Disable disables the newest version of a secret.
func (s *SecretManager) Disable(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if versions := s.secrets[name]; len(versions) > 0 {
		versions[len(versions)-1].disabled = true
	}
}

var access = regexp.MustCompile(`^/v1/(projects/[^/]+/secrets/[^/]+)/versions/([^/:]+):access$`)

// ServeHTTP answers one request.
func (s *SecretManager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost && r.URL.Path == "/token" {
		s.Serve(w, r, "token", s.token, refuseGCP)
		return
	}
	found := access.FindStringSubmatch(r.URL.Path)
	switch {
	case r.Method != http.MethodGet || found == nil:
		refuseGCP(w, http.StatusNotFound)
	case !s.knows(r.Header.Get("Authorization")):
		refuseGCP(w, http.StatusUnauthorized)
	default:
		s.Serve(w, r, Read, func(w http.ResponseWriter, _ *http.Request) { s.access(w, found[1], found[2]) }, refuseGCP)
	}
}

func (s *SecretManager) knows(header string) bool {
	token, _ := strings.CutPrefix(header, "Bearer ")
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.tokens[token])
}

func (s *SecretManager) access(w http.ResponseWriter, name, version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	versions := s.secrets[name]
	n := len(versions)
	if version != "latest" {
		n, _ = strconv.Atoi(version)
	}
	switch {
	case n < 1 || n > len(versions):
		refuseGCP(w, http.StatusNotFound)
	case versions[n-1].disabled:
		refuseGCP(w, http.StatusBadRequest)
	default:
		data := versions[n-1].data
		sum := crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))
		answer(w, http.StatusOK, map[string]any{
			"name":    fmt.Sprintf("%s/versions/%d", strings.Replace(name, "projects/sandbox", "projects/1234", 1), n), // by the project's number
			"payload": map[string]any{"data": data, "dataCrc32c": strconv.FormatUint(uint64(sum), 10)},
		})
	}
}

func (s *SecretManager) token(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if r.PostFormValue("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" || !s.signed(r.PostFormValue("assertion")) {
		answer(w, http.StatusBadRequest, map[string]string{"error": "invalid_grant", "error_description": "the stand-in's message"})
		return
	}
	token := "ya29.sandbox-" + rand.Text()
	s.mu.Lock()
	s.tokens[token] = time.Now().Add(time.Hour)
	s.mu.Unlock()
	answer(w, http.StatusOK, map[string]any{"access_token": token, "expires_in": 3600, "token_type": "Bearer"})
}

// signed verifies a JWT: its signature, whose it is, and that it is of now.
func (s *SecretManager) signed(jwt string) bool {
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		return false
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return false
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if rsa.VerifyPKCS1v15(&s.key.PublicKey, crypto.SHA256, sum[:], signature) != nil {
		return false
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Iss, Scope string
		Exp        int64
	}
	return err == nil && json.Unmarshal(text, &claims) == nil && claims.Iss == s.email && claims.Exp > time.Now().Unix() &&
		strings.Contains(claims.Scope, "cloud-platform")
}

func refuseGCP(w http.ResponseWriter, status int) {
	answer(w, status, map[string]any{"error": map[string]any{
		"code": status, "message": "the stand-in's message: " + http.StatusText(status), "status": "SANDBOX",
	}})
}
