// Package anthropic is a loopback stand-in for Anthropic's Admin API of API keys, with the Messages API that the keys
// open: a key that is inactive, archived or expired is refused there. Keys cannot be created or deleted by the API, as at
// the vendor; an organisation's keys are those of Config.
//
// Sources: Anthropic's API reference, "API Keys" under "Admin API", and "Errors". Where it is silent (whether an archived
// key can be changed) the stand-in is strict: it refuses.
package anthropic

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/taskpass/taskpass/providers/sandbox/fault"
	"github.com/taskpass/taskpass/providers/sandbox/model"
)

// What a key's status may be.
const (
	Active   = "active"
	Inactive = "inactive"
	Archived = "archived"
	Expired  = "expired"
)

// The actions, for faults.
const (
	ListKeys  = "list_keys"
	GetKey    = "get_key"
	UpdateKey = "update_key"
	Message   = "message"
)

const maxBody = 64 << 10

// Key is one API key of the organisation.
type Key struct {
	ID          string // apikey_…. Required.
	Secret      string // what clients send. Required.
	Name        string
	WorkspaceID string    // empty: the default workspace
	ExpiresAt   time.Time // zero: never
}

// Config says what the organisation has.
type Config struct {
	AdminKey string // sk-ant-admin…. Required.
	Keys     []Key  // all active at the start
	Now      func() time.Time
}

type state struct {
	Key
	status  string
	created time.Time
}

// Server is the stand-in: an http.Handler that is safe for many goroutines. Close ends requests that hang.
type Server struct {
	*fault.Queue
	cfg   Config
	mux   http.ServeMux
	model *model.Server

	mu   sync.Mutex
	keys []*state // in the order of their ids
}

// New makes a server with the given keys, all active.
func New(cfg Config) (*Server, error) {
	if cfg.AdminKey == "" {
		return nil, errors.New("sandbox anthropic: AdminKey is required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{Queue: fault.New(), cfg: cfg}
	var plain []model.Key
	for _, k := range cfg.Keys {
		plain = append(plain, model.Key{ID: k.ID, Secret: k.Secret})
		s.keys = append(s.keys, &state{Key: k, status: Active, created: cfg.Now().UTC()})
	}
	slices.SortFunc(s.keys, func(a, b *state) int { return strings.Compare(a.ID, b.ID) })
	var err error
	if s.model, err = model.New(model.Config{Keys: plain}); err != nil {
		return nil, fmt.Errorf("sandbox anthropic: %w", err)
	}
	s.handle("GET /v1/organizations/api_keys", ListKeys, s.list)
	s.handle("GET /v1/organizations/api_keys/{id}", GetKey, s.get)
	s.handle("POST /v1/organizations/api_keys/{id}", UpdateKey, s.update)
	s.mux.HandleFunc("POST /v1/messages", s.message)
	s.mux.HandleFunc("/v1/organizations/api_keys", func(w http.ResponseWriter, _ *http.Request) { refuse(w, http.StatusMethodNotAllowed) })
	s.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { refuse(w, http.StatusNotFound) })
	return s, nil
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Calls is how many messages a key got an answer for, by its id.
func (s *Server) Calls(id string) int { return s.model.Calls(id) }

// Status is a key's, as the console shows it; "" for an unknown key.
func (s *Server) Status(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.find(id); k != nil {
		return s.statusOf(k)
	}
	return ""
}

// SetStatus is what a person does in the console.
func (s *Server) SetStatus(id, status string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.find(id)
	if k == nil {
		return errors.New("sandbox anthropic: no such key")
	}
	k.status = status
	return nil
}

// handle serves one call of the Admin API: only for who has the admin key and names a version of the API.
func (s *Server) handle(pattern, action string, do http.HandlerFunc) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Request-Id", "req_sandbox_"+action)
		if r.Header.Get("Anthropic-Version") == "" {
			refuse(w, http.StatusBadRequest)
			return
		}
		given, want := sha256.Sum256([]byte(r.Header.Get("X-Api-Key"))), sha256.Sum256([]byte(s.cfg.AdminKey))
		if subtle.ConstantTimeCompare(given[:], want[:]) != 1 {
			refuse(w, http.StatusUnauthorized)
			return
		}
		s.Serve(w, r, action, do, refuse)
	})
}

// find needs s.mu, as all below.
func (s *Server) find(id string) *state {
	for _, k := range s.keys {
		if k.ID == id {
			return k
		}
	}
	return nil
}

func (s *Server) statusOf(k *state) string {
	if k.status == Active && !k.ExpiresAt.IsZero() && !s.cfg.Now().Before(k.ExpiresAt) {
		return Expired
	}
	return k.status
}

func (s *Server) shown(k *state) map[string]any {
	out := map[string]any{
		"id": k.ID, "type": "api_key", "name": k.Name, "status": s.statusOf(k), "partial_key_hint": hint(k.Secret),
		"created_at": k.created.Format(time.RFC3339Nano), "created_by": map[string]string{"id": "user_sandbox", "type": "user"},
		"workspace_id": nil, "expires_at": nil, "principal": nil, "scope": map[string]string{"type": "organization"},
	}
	if k.WorkspaceID != "" {
		out["workspace_id"] = k.WorkspaceID
		out["scope"] = map[string]string{"type": "workspace", "workspace_id": k.WorkspaceID}
	}
	if !k.ExpiresAt.IsZero() {
		out["expires_at"] = k.ExpiresAt.UTC().Format(time.RFC3339Nano)
	}
	return out
}

func hint(secret string) string {
	if len(secret) < 16 {
		return "..."
	}
	return secret[:8] + "..." + secret[len(secret)-4:]
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	limit := 20
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 1000 {
			refuse(w, http.StatusBadRequest)
			return
		}
		limit = n
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	page, more := []map[string]any{}, false
	for _, k := range s.keys {
		if k.ID <= query.Get("after_id") || query.Has("status") && query.Get("status") != s.statusOf(k) ||
			query.Has("workspace_id") && query.Get("workspace_id") != k.WorkspaceID {
			continue
		}
		if more = len(page) == limit; more {
			break
		}
		page = append(page, s.shown(k))
	}
	out := map[string]any{"data": page, "has_more": more, "first_id": nil, "last_id": nil}
	if len(page) > 0 {
		out["first_id"], out["last_id"] = page[0]["id"], page[len(page)-1]["id"]
	}
	answer(w, http.StatusOK, out)
}

func (s *Server) get(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.find(r.PathValue("id"))
	if k == nil {
		refuse(w, http.StatusNotFound)
		return
	}
	answer(w, http.StatusOK, s.shown(k))
}

func (s *Server) update(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Name   *string `json:"name"`
		Status *string `json:"status"`
	}
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&in); err != nil ||
		in.Status != nil && !slices.Contains([]string{Active, Inactive, Archived}, *in.Status) || in.Name != nil && *in.Name == "" {
		refuse(w, http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.find(r.PathValue("id"))
	switch {
	case k == nil:
		refuse(w, http.StatusNotFound)
		return
	case s.statusOf(k) == Archived || s.statusOf(k) == Expired:
		refuse(w, http.StatusBadRequest)
		return
	}
	if in.Name != nil {
		k.Name = *in.Name
	}
	if in.Status != nil {
		k.status = *in.Status
	}
	answer(w, http.StatusOK, s.shown(k))
}

func (s *Server) message(w http.ResponseWriter, r *http.Request) {
	s.Serve(w, r, Message, func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		for _, k := range s.keys {
			_ = s.model.SetActive(k.ID, s.statusOf(k) == Active)
		}
		s.mu.Unlock()
		s.model.ServeHTTP(w, r)
	}, refuse)
}

var kinds = map[int]string{
	http.StatusBadRequest: "invalid_request_error", http.StatusUnauthorized: "authentication_error",
	http.StatusForbidden: "permission_error", http.StatusNotFound: "not_found_error",
	http.StatusTooManyRequests: "rate_limit_error", 529: "overloaded_error",
}

func refuse(w http.ResponseWriter, status int) {
	kind := kinds[status]
	if kind == "" {
		kind = "api_error"
	}
	answer(w, status, map[string]any{
		"type":  "error",
		"error": map[string]string{"type": kind, "message": "the stand-in's message: " + http.StatusText(status)},
	})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
