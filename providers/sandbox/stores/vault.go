// Package stores has loopback stand-ins for the stores in which operators keep secrets: HashiCorp Vault's and OpenBao's
// KV engine of version 2, AWS Secrets Manager, and Google Secret Manager. They keep versions, and give nothing to who has
// not the right token. What they do not check is said at each.
//
// Sources: Vault's "KV secrets engine - version 2 (API)", AWS's Secrets Manager API Reference, Google's REST reference
// of Secret Manager and "Using OAuth 2.0 for server to server applications".
package stores

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"crypto/sha256"
	"crypto/subtle"

	"github.com/taskpass/taskpass/providers/sandbox/fault"
)

const maxBody = 1 << 20

// Read is the action of reading a secret, for faults, in each of the stores.
const Read = "read"

func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// Vault has one KV engine of version 2. It has one token, no policies, and no check-and-set.
type Vault struct {
	*fault.Queue
	token, namespace, mount string
	mux                     http.ServeMux

	mu      sync.Mutex
	secrets map[string][]vaultVersion // oldest first: version 1 is at 0
}

type vaultVersion struct {
	data    map[string]any
	created time.Time
	deleted time.Time
}

// NewVault makes a Vault with an empty engine at a mount, in a namespace or "".
func NewVault(token, namespace, mount string) (*Vault, error) {
	if token == "" || mount == "" {
		return nil, errors.New("sandbox stores: token and mount are required")
	}
	s := &Vault{Queue: fault.New(), token: token, namespace: namespace, mount: mount, secrets: map[string][]vaultVersion{}}
	s.handle("GET /v1/{mount}/data/{path...}", Read, s.read)
	s.handle("POST /v1/{mount}/data/{path...}", "write", s.write)
	s.handle("PUT /v1/{mount}/data/{path...}", "write", s.write)
	s.handle("DELETE /v1/{mount}/data/{path...}", "delete", s.remove)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { refuseVault(w, http.StatusNotFound) })
	return s, nil
}

// ServeHTTP answers one request.
func (s *Vault) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Put writes a next version.
func (s *Vault) Put(path string, data map[string]any) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets[path] = append(s.secrets[path], vaultVersion{data: data, created: time.Now().UTC()})
	return len(s.secrets[path])
}

func (s *Vault) handle(pattern, action string, do http.HandlerFunc) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !same(r.Header.Get("X-Vault-Token"), s.token) || r.Header.Get("X-Vault-Namespace") != s.namespace:
			refuseVault(w, http.StatusForbidden)
		case r.PathValue("mount") != s.mount:
			refuseVault(w, http.StatusNotFound)
		default:
			s.Serve(w, r, action, do, refuseVault)
		}
	})
}

func (s *Vault) read(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	versions := s.secrets[r.PathValue("path")]
	n := len(versions)
	if text := r.URL.Query().Get("version"); text != "" && text != "0" {
		n, _ = strconv.Atoi(text)
	}
	if n < 1 || n > len(versions) {
		refuseVault(w, http.StatusNotFound)
		return
	}
	v, status := versions[n-1], http.StatusOK
	metadata := map[string]any{
		"version": n, "created_time": v.created.Format(time.RFC3339Nano), "deletion_time": "", "destroyed": false, "custom_metadata": nil,
	}
	if !v.deleted.IsZero() { // "not found", and yet with the metadata
		status, v.data = http.StatusNotFound, nil
		metadata["deletion_time"] = v.deleted.Format(time.RFC3339Nano)
	}
	answer(w, status, map[string]any{"request_id": "sandbox", "lease_duration": 0, "data": map[string]any{"data": v.data, "metadata": metadata}})
}

func (s *Vault) write(w http.ResponseWriter, r *http.Request) {
	var in struct{ Data map[string]any }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&in); err != nil || in.Data == nil {
		refuseVault(w, http.StatusBadRequest)
		return
	}
	n := s.Put(r.PathValue("path"), in.Data)
	answer(w, http.StatusOK, map[string]any{"data": map[string]any{
		"version": n, "created_time": time.Now().UTC().Format(time.RFC3339Nano), "deletion_time": "", "destroyed": false,
	}})
}

func (s *Vault) remove(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if versions := s.secrets[strings.Trim(r.PathValue("path"), "/")]; len(versions) > 0 {
		versions[len(versions)-1].deleted = time.Now().UTC()
	}
	w.WriteHeader(http.StatusNoContent)
}

func refuseVault(w http.ResponseWriter, status int) {
	messages := []string{}
	if status != http.StatusNotFound {
		messages = append(messages, "the stand-in's message: "+http.StatusText(status))
	}
	answer(w, status, map[string]any{"errors": messages})
}
