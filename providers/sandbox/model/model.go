// Package model is a loopback stand-in for a vendor of a language model with plain
// API keys: the kind of vendor behind a key pool. It knows which of its keys are
// active, counts what each was used for, and answers a message with its echo. It has
// no administration calls; a test or the demo turns keys on and off in the process.
//
// The shapes follow Anthropic's API ("Messages", "Errors" in its API reference).
package model

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
)

const maxBody = 1 << 20

// Key is one API key.
type Key struct {
	ID     string // its public name, never a secret. Required.
	Secret string // what clients send. Required.
}

// Config says which keys exist.
type Config struct {
	// Keys are active at the start.
	Keys []Key
}

// Server is the stand-in: an http.Handler that is safe for many goroutines.
type Server struct {
	mux http.ServeMux

	mu       sync.Mutex
	byID     map[string]*keyState
	bySecret map[[sha256.Size]byte]*keyState // by hash: a lookup tells no bytes of a key by its time
	messages int
}

type keyState struct {
	id     string
	active bool
	calls  int
}

// New makes a server with the given keys, all active.
func New(cfg Config) (*Server, error) {
	s := &Server{byID: map[string]*keyState{}, bySecret: map[[sha256.Size]byte]*keyState{}}
	for i, k := range cfg.Keys {
		if k.ID == "" || k.Secret == "" {
			return nil, fmt.Errorf("sandbox model: key %d: ID and Secret are required", i)
		}
		hash := sha256.Sum256([]byte(k.Secret))
		if s.byID[k.ID] != nil || s.bySecret[hash] != nil {
			return nil, fmt.Errorf("sandbox model: key %s is there twice", k.ID)
		}
		state := &keyState{id: k.ID, active: true}
		s.byID[k.ID], s.bySecret[hash] = state, state
	}
	s.mux.HandleFunc("POST /v1/messages", s.postMessage)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusNotFound, "not_found_error", "Not found")
	})
	return s, nil
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Calls is how many requests the key got an answer for, good or bad, while active.
// key is an id or the secret itself. An unknown key has none.
func (s *Server) Calls(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.find(key); k != nil {
		return k.calls
	}
	return 0
}

// SetActive turns a key, named by id or by the secret itself, on or off, from the
// next request on.
func (s *Server) SetActive(key string, active bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.find(key)
	if k == nil {
		return errors.New("sandbox model: no such key") // without its name: it may be a secret
	}
	k.active = active
	return nil
}

// find needs s.mu.
func (s *Server) find(key string) *keyState {
	if k := s.byID[key]; k != nil {
		return k
	}
	return s.bySecret[sha256.Sum256([]byte(key))]
}

// use counts a request by the key and reports whether it may go on.
func (s *Server) use(secret string) (message int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.bySecret[sha256.Sum256([]byte(secret))]
	if k == nil || !k.active {
		return 0, false
	}
	k.calls++
	s.messages++
	return s.messages, true
}

type content struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

func (s *Server) postMessage(w http.ResponseWriter, r *http.Request) {
	secret := r.Header.Get("X-Api-Key")
	if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok && secret == "" {
		secret = bearer
	}
	n, ok := s.use(secret)
	if !ok {
		refuse(w, http.StatusUnauthorized, "authentication_error", "invalid x-api-key")
		return
	}
	var in struct {
		Model    string `json:"model"`
		Messages []struct {
			Role    string          `json:"role"`
			Content json.RawMessage `json:"content"`
		} `json:"messages"`
	}
	err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(&in)
	if err != nil || len(in.Messages) == 0 {
		refuse(w, http.StatusBadRequest, "invalid_request_error", "messages: Field required")
		return
	}
	said := text(in.Messages[len(in.Messages)-1].Content)
	answer(w, http.StatusOK, map[string]any{
		"id": fmt.Sprintf("msg_sandbox_%06d", n), "type": "message", "role": "assistant", "model": in.Model,
		"content":     []content{{"text", "echo: " + said}},
		"stop_reason": "end_turn", "stop_sequence": nil,
		"usage": map[string]int{"input_tokens": len(strings.Fields(said)), "output_tokens": len(strings.Fields(said)) + 1},
	})
}

// text reads a message's content: a string, or blocks of which the text is taken.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	var blocks []content
	_ = json.Unmarshal(raw, &blocks)
	var parts []string
	for _, b := range blocks {
		if b.Type == "text" {
			parts = append(parts, b.Text)
		}
	}
	return strings.Join(parts, " ")
}

func refuse(w http.ResponseWriter, status int, kind, message string) {
	answer(w, status, map[string]any{
		"type":  "error",
		"error": map[string]string{"type": kind, "message": message},
	})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
