// Package openai is a loopback stand-in for OpenAI's Admin API of projects' service accounts, with the chat API that
// their keys open: a key whose account was deleted, or that has expired, is refused there.
//
// Sources: OpenAI's API reference, "Project service accounts" under "Administration", "Pagination" and "Error codes".
// Where it is silent (a cursor whose object is gone) the stand-in is strict: it refuses.
package openai

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/taskpass/taskpass/providers/sandbox/fault"
)

// The actions, for faults.
const (
	Create = "create"
	List   = "list"
	Get    = "get"
	Delete = "delete"
	Chat   = "chat"
)

const maxBody = 64 << 10

// Config says what the organisation has.
type Config struct {
	AdminKey string   // sk-admin-…. Required.
	Projects []string // proj_…. Required.
	Now      func() time.Time
}

// Account is a service account.
type Account struct {
	ID, Name, Project string
	KeyID             string
	Created           time.Time
	Expires           time.Time // its key's end; zero: none

	secret [sha256.Size]byte
	calls  int
}

// Server is the stand-in: an http.Handler that is safe for many goroutines. Close ends requests that hang.
type Server struct {
	*fault.Queue
	cfg Config
	mux http.ServeMux

	mu       sync.Mutex
	accounts []*Account // oldest first
}

// New makes a server without service accounts.
func New(cfg Config) (*Server, error) {
	if cfg.AdminKey == "" || len(cfg.Projects) == 0 {
		return nil, errors.New("sandbox openai: AdminKey and Projects are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{Queue: fault.New(), cfg: cfg}
	const accounts = "/v1/organization/projects/{project}/service_accounts"
	s.handle("POST "+accounts, Create, s.create)
	s.handle("GET "+accounts, List, s.list)
	s.handle("GET "+accounts+"/{id}", Get, s.get)
	s.handle("DELETE "+accounts+"/{id}", Delete, s.remove)
	s.mux.HandleFunc("POST /v1/chat/completions", s.chat)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { refuse(w, http.StatusNotFound) })
	return s, nil
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Accounts are the service accounts that exist, oldest first.
func (s *Server) Accounts() []Account {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Account, 0, len(s.accounts))
	for _, a := range s.accounts {
		list = append(list, *a)
	}
	return list
}

// Calls is how many chats the key of an account got an answer for.
func (s *Server) Calls(accountID string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.accounts, func(a *Account) bool { return a.ID == accountID }); i >= 0 {
		return s.accounts[i].calls
	}
	return 0
}

// handle serves one call of the Admin API: only for who has the admin key, in a project that exists.
func (s *Server) handle(pattern, action string, do http.HandlerFunc) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Request-Id", "req_sandbox_"+action)
		given, want := sha256.Sum256([]byte(bearer(r))), sha256.Sum256([]byte(s.cfg.AdminKey))
		switch {
		case subtle.ConstantTimeCompare(given[:], want[:]) != 1:
			refuse(w, http.StatusUnauthorized)
		case !slices.Contains(s.cfg.Projects, r.PathValue("project")):
			refuse(w, http.StatusNotFound)
		default:
			s.Serve(w, r, action, do, refuse)
		}
	})
}

func bearer(r *http.Request) string {
	value, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return value
}

func (s *Server) create(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Name             string `json:"name"`
		ExpiresInSeconds *int64 `json:"expires_in_seconds"`
	}
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&in); err != nil || in.Name == "" || in.ExpiresInSeconds != nil && *in.ExpiresInSeconds < 1 {
		refuse(w, http.StatusBadRequest)
		return
	}
	secret := "sk-svcacct-" + rand.Text() + rand.Text()
	now := s.cfg.Now().UTC()
	a := &Account{
		ID: "svc_acct_" + rand.Text(), Name: in.Name, Project: r.PathValue("project"), KeyID: "key_" + rand.Text(),
		Created: now, secret: sha256.Sum256([]byte(secret)),
	}
	key := map[string]any{
		"object": "organization.project.service_account.api_key", "id": a.KeyID, "name": "Secret Key",
		"value": secret, "created_at": now.Unix(), "expires_at": nil,
	}
	if in.ExpiresInSeconds != nil {
		a.Expires = now.Add(time.Duration(*in.ExpiresInSeconds) * time.Second)
		key["expires_at"] = a.Expires.Unix()
	}
	s.mu.Lock()
	s.accounts = append(s.accounts, a) // names need not be unique
	s.mu.Unlock()
	out := a.shown()
	out["api_key"] = key
	answer(w, http.StatusOK, out)
}

func (a *Account) shown() map[string]any {
	return map[string]any{
		"object": "organization.project.service_account", "id": a.ID, "name": a.Name, "role": "member",
		"created_at": a.Created.Unix(),
	}
}

// in are the accounts of the request's project. It needs s.mu.
func (s *Server) in(r *http.Request) []*Account {
	var list []*Account
	for _, a := range s.accounts {
		if a.Project == r.PathValue("project") {
			list = append(list, a)
		}
	}
	return list
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	limit := 20
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 100 {
			refuse(w, http.StatusBadRequest)
			return
		}
		limit = n
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.in(r)
	if after := query.Get("after"); after != "" {
		at := slices.IndexFunc(all, func(a *Account) bool { return a.ID == after })
		if at < 0 {
			refuse(w, http.StatusBadRequest)
			return
		}
		all = all[at+1:]
	}
	more := len(all) > limit
	all = all[:min(limit, len(all))]
	out := map[string]any{"object": "list", "has_more": more, "first_id": nil, "last_id": nil}
	data := []map[string]any{}
	for _, a := range all {
		data = append(data, a.shown())
	}
	if len(data) > 0 {
		out["first_id"], out["last_id"] = data[0]["id"], data[len(data)-1]["id"]
	}
	out["data"] = data
	answer(w, http.StatusOK, out)
}

func (s *Server) get(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.in(r) {
		if a.ID == r.PathValue("id") {
			answer(w, http.StatusOK, a.shown())
			return
		}
	}
	refuse(w, http.StatusNotFound)
}

func (s *Server) remove(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.in(r) {
		if a.ID == r.PathValue("id") {
			s.accounts = slices.DeleteFunc(s.accounts, func(b *Account) bool { return a == b })
			answer(w, http.StatusOK, map[string]any{
				"object": "organization.project.service_account.deleted", "id": a.ID, "deleted": true,
			})
			return
		}
	}
	refuse(w, http.StatusNotFound)
}

func (s *Server) chat(w http.ResponseWriter, r *http.Request) {
	s.Serve(w, r, Chat, func(w http.ResponseWriter, r *http.Request) {
		sum, now := sha256.Sum256([]byte(bearer(r))), s.cfg.Now()
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, a := range s.accounts {
			if a.secret != sum || !a.Expires.IsZero() && !now.Before(a.Expires) {
				continue
			}
			a.calls++
			answer(w, http.StatusOK, map[string]any{
				"id": "chatcmpl-sandbox", "object": "chat.completion", "created": now.Unix(), "model": "sandbox",
				"choices": []map[string]any{{
					"index": 0, "finish_reason": "stop", "message": map[string]string{"role": "assistant", "content": "hello"},
				}},
			})
			return
		}
		refuse(w, http.StatusUnauthorized)
	}, refuse)
}

func refuse(w http.ResponseWriter, status int) {
	kind, code := "invalid_request_error", any(nil)
	switch {
	case status == http.StatusUnauthorized:
		code = "invalid_api_key"
	case status == http.StatusTooManyRequests:
		kind, code = "requests", "rate_limit_exceeded"
	case status >= 500:
		kind = "server_error"
	}
	answer(w, status, map[string]any{"error": map[string]any{
		"message": "the stand-in's message: " + http.StatusText(status), "type": kind, "param": nil, "code": code,
	}})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
