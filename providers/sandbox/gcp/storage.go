package gcp

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

const maxObject = 32 << 20

// storageScopes are those that let a token read and write objects.
var storageScopes = map[string]bool{
	CloudPlatform: true,
	"https://www.googleapis.com/auth/devstorage.full_control": true,
	"https://www.googleapis.com/auth/devstorage.read_write":   true,
}

const readOnlyScope = "https://www.googleapis.com/auth/devstorage.read_only"

type bucket struct {
	objects map[string][]byte
	roles   map[string][]string // by email
}

// routeObject recognizes the calls of the Cloud Storage JSON API that exist here.
func (s *Server) routeObject(r *http.Request, path string) (string, http.HandlerFunc) {
	if rest, ok := strings.CutPrefix(path, "/upload/storage/v1/b/"); ok {
		if name, ok := strings.CutSuffix(rest, "/o"); ok && r.Method == http.MethodPost && r.URL.Query().Get("uploadType") == "media" {
			return "InsertObject", func(w http.ResponseWriter, r *http.Request) { s.insertObject(w, r, name) }
		}
		return "", nil
	}
	rest, ok := strings.CutPrefix(path, "/storage/v1/b/")
	if !ok || r.Method != http.MethodGet {
		return "", nil
	}
	name, object, ok := strings.Cut(rest, "/o")
	switch {
	case !ok:
		return "", nil
	case object == "":
		return "ListObjects", func(w http.ResponseWriter, r *http.Request) { s.listObjects(w, r, name) }
	}
	object, err := url.PathUnescape(strings.TrimPrefix(object, "/"))
	if err != nil || object == "" {
		return "", nil
	}
	return "GetObject", func(w http.ResponseWriter, r *http.Request) { s.getObject(w, r, name, object) }
}

// authorize answers the refusal itself. Roles, scope and boundary must all allow it.
// With s.mu held.
func (s *Server) authorize(w http.ResponseWriter, r *http.Request, permission, name, object string, attributes map[string]string) bool {
	value, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	t, ok := s.bearer(value)
	if !ok {
		if known := s.tokens[value]; known != nil && known.account.disabled {
			writeAccountState(w, known.account.email)
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://accounts.google.com/", error="invalid_token"`)
		writeJSONError(w, http.StatusUnauthorized, "authError", "Invalid Credentials")
		return false
	}
	b := s.buckets[name]
	scoped := slices.ContainsFunc(t.scopes, func(scope string) bool {
		reads := permission == "storage.objects.get" || permission == "storage.objects.list"
		return storageScopes[scope] || reads && scope == readOnlyScope
	})
	if b == nil || !scoped || !holds(b.roles[t.account.email], permission) ||
		t.boundary != nil && !t.boundary.allows(permission, name, object, attributes) {
		writeJSONError(w, http.StatusForbidden, "forbidden", t.account.email+" does not have "+permission+" access (or it may not exist).")
		return false
	}
	return true
}

// writeAccountState is the example in google.api.ErrorReason of ACCOUNT_STATE_INVALID.
func writeAccountState(w http.ResponseWriter, email string) {
	writeJSON(w, http.StatusUnauthorized, map[string]any{"error": map[string]any{
		"code": http.StatusUnauthorized, "message": "Request had invalid authentication credentials.", "status": "UNAUTHENTICATED",
		"details": []any{map[string]any{
			"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "ACCOUNT_STATE_INVALID", "domain": "googleapis.com",
			"metadata": map[string]string{"service": "storage.googleapis.com", "email": email},
		}},
	}})
}

func (s *Server) getObject(w http.ResponseWriter, r *http.Request, name, object string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.authorize(w, r, "storage.objects.get", name, object, nil) {
		return
	}
	body, ok := s.buckets[name].objects[object]
	if !ok {
		writeJSONError(w, http.StatusNotFound, "notFound", "No such object")
		return
	}
	if r.URL.Query().Get("alt") != "media" {
		writeJSON(w, http.StatusOK, describeObject(name, object, body))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // the client may be gone
}

func (s *Server) insertObject(w http.ResponseWriter, r *http.Request, name string) {
	object := r.URL.Query().Get("name")
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxObject))
	if err != nil || object == "" || len(object) > 1024 {
		writeJSONError(w, http.StatusBadRequest, "invalid", "Invalid argument.")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.authorize(w, r, "storage.objects.create", name, object, nil) {
		return
	}
	if _, there := s.buckets[name].objects[object]; there && !s.authorize(w, r, "storage.objects.delete", name, object, nil) {
		return // to overwrite is to delete
	}
	s.buckets[name].objects[object] = body
	writeJSON(w, http.StatusOK, describeObject(name, object, body))
}

func (s *Server) listObjects(w http.ResponseWriter, r *http.Request, name string) {
	query := r.URL.Query()
	prefix := query.Get("prefix")
	size, err := strconv.Atoi(query.Get("maxResults"))
	if err != nil || size < 1 || size > 1000 {
		size = 1000
	}
	after, err := base64.RawURLEncoding.DecodeString(query.Get("pageToken"))
	if err != nil || query.Has("delimiter") {
		writeJSONError(w, http.StatusBadRequest, "invalid", "Invalid argument.")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.authorize(w, r, "storage.objects.list", name, "", map[string]string{"storage.googleapis.com/objectListPrefix": prefix}) {
		return
	}
	type list struct {
		Kind  string            `json:"kind"`
		Items []json.RawMessage `json:"items,omitempty"`
		Next  string            `json:"nextPageToken,omitempty"`
	}
	out := list{Kind: "storage#objects"}
	last := ""
	for _, object := range slices.Sorted(maps.Keys(s.buckets[name].objects)) {
		if !strings.HasPrefix(object, prefix) || object <= string(after) {
			continue
		}
		if len(out.Items) == size {
			out.Next = base64.RawURLEncoding.EncodeToString([]byte(last))
			break
		}
		item, _ := json.Marshal(describeObject(name, object, s.buckets[name].objects[object])) // strings always encode
		out.Items, last = append(out.Items, item), object
	}
	writeJSON(w, http.StatusOK, out)
}

func describeObject(bucket, object string, body []byte) map[string]string {
	return map[string]string{
		"kind": "storage#object", "name": object, "bucket": bucket, "size": strconv.Itoa(len(body)),
	}
}
