package stripe

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/taskpass/taskpass/providers/sandbox/fault"
)

const maxBody = 1 << 20

// Config says what the account is like. It is copied by New.
type Config struct {
	// SecretKey is the account's unrestricted key, sk_test_… or sk_live_…; in the preview, the app's. Required.
	SecretKey string
	// AccountID is what Stripe-Context must name. Zero: acct_sandbox.
	AccountID string
	// Preview tells whether the account has the preview of /v2/iam/api_keys.
	Preview bool
	// ExpireLag and ExpireUses are how long, and for how many further calls, a key still works after it was expired: the
	// longer of both counts.
	ExpireLag  time.Duration
	ExpireUses int
	// PageSize is how many keys a page of a list has at the most. Zero: 100, as with Stripe.
	PageSize int
	// Now is the server's clock. Zero: time.Now.
	Now func() time.Time
}

// Server is the stand-in: an http.Handler that is safe for many goroutines.
type Server struct {
	cfg      Config
	livemode bool
	mux      http.ServeMux
	faults   fault.Line[Fault]
	closed   chan struct{}
	closing  sync.Once

	mu        sync.Mutex
	keys      []*key                        // in the order of their making
	bySecret  map[[sha256.Size]byte]*key    // by hash: a lookup tells no bytes of a key by its time
	objects   map[string]map[string]*object // resource → id
	ephemeral map[string]*ephemeralKey
	answers   map[string]saved // by who sent which Idempotency-Key
	calls     []string         // "POST /v1/customers", as they came
}

// New makes a server that has no key but its own.
func New(cfg Config) (*Server, error) {
	live, test := strings.HasPrefix(cfg.SecretKey, "sk_live_"), strings.HasPrefix(cfg.SecretKey, "sk_test_")
	if !live && !test {
		return nil, errors.New("sandbox stripe: SecretKey begins with neither sk_test_ nor sk_live_")
	}
	if cfg.AccountID == "" {
		cfg.AccountID = "acct_sandbox"
	}
	if cfg.PageSize == 0 {
		cfg.PageSize = 100
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{
		cfg: cfg, livemode: live, closed: make(chan struct{}), bySecret: map[[sha256.Size]byte]*key{},
		objects: map[string]map[string]*object{}, ephemeral: map[string]*ephemeralKey{}, answers: map[string]saved{},
	}
	s.mux.HandleFunc("POST /v1/ephemeral_keys", s.handler(s.createEphemeral))
	s.mux.HandleFunc("DELETE /v1/ephemeral_keys/{id}", s.handler(s.deleteEphemeral))
	for resource := range Resources {
		s.mux.HandleFunc("GET /v1/"+resource, s.handler(s.listObjects(resource)))
		s.mux.HandleFunc("POST /v1/"+resource, s.handler(s.createObject(resource)))
		s.mux.HandleFunc("GET /v1/"+resource+"/{id}", s.handler(s.getObject(resource)))
	}
	if cfg.Preview {
		s.mux.HandleFunc("GET /v2/iam/api_keys", s.handler(s.preview(s.listKeys)))
		s.mux.HandleFunc("POST /v2/iam/api_keys", s.handler(s.preview(s.createKey)))
		s.mux.HandleFunc("GET /v2/iam/api_keys/{id}", s.handler(s.preview(s.getKey)))
		s.mux.HandleFunc("POST /v2/iam/api_keys/{id}", s.handler(s.preview(s.updateKey)))
		s.mux.HandleFunc("POST /v2/iam/api_keys/{id}/expire", s.handler(s.preview(s.expireKey)))
		s.mux.HandleFunc("POST /v2/iam/api_keys/{id}/rotate", s.handler(s.preview(s.rotateKey)))
	}
	s.mux.HandleFunc("/", s.handler(func(c *call) reply {
		return refuse(http.StatusNotFound, "", "Unrecognized request URL (%s: %s). If you are trying to list objects, remove the trailing slash. "+
			"If you are trying to retrieve an object, make sure you passed a valid (non-empty) identifier in your code. "+
			"Please see https://stripe.com/docs or we can help at https://support.stripe.com/.", c.Method, c.URL.Path)
	}))
	return s, nil
}

// Close lets go of every request that a fault holds. It does not stop the listener, which is the caller's.
func (s *Server) Close() { s.closing.Do(func() { close(s.closed) }) }

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Calls counts the calls so far whose method and path match the pattern, as in "POST /v2/iam/api_keys/*/expire".
func (s *Server) Calls(pattern string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, c := range s.calls {
		if matches(pattern, c) {
			n++
		}
	}
	return n
}

// call is one request on its way through.
type call struct {
	*http.Request
	id     string // Request-Id
	body   []byte
	secret string // what it authenticates with
	who    *key   // nil: the account's own key, or an ephemeral one
	eph    *ephemeralKey
	now    time.Time
}

// handler authenticates, then does what a fault or the action says.
func (s *Server) handler(do func(*call) reply) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := &call{Request: r, id: "req_" + random(14), now: s.cfg.Now()}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			refuse(http.StatusBadRequest, "", "The request body could not be read.").write(w, c)
			return
		}
		c.body = body
		action := r.Method + " " + r.URL.Path
		s.mu.Lock()
		s.calls = append(s.calls, action)
		s.mu.Unlock()
		if f, ok := s.fault(action); ok {
			s.serveFault(w, c, do, f)
			return
		}
		s.serve(c, do).write(w, c)
	}
}

// serve does the work of one call. One at a time: what Stripe does concurrently is of no interest here.
func (s *Server) serve(c *call, do func(*call) reply) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	if refusal, ok := s.authenticate(c); !ok {
		return refusal
	}
	return s.once(c, do)
}

// authenticate needs s.mu.
func (s *Server) authenticate(c *call) (reply, bool) {
	c.secret, _, _ = c.BasicAuth()
	if bearer, ok := strings.CutPrefix(c.Header.Get("Authorization"), "Bearer "); ok {
		c.secret = bearer
	}
	if c.secret == "" {
		return refuse(http.StatusUnauthorized, "", "You did not provide an API key."), false
	}
	sum := sha256.Sum256([]byte(c.secret))
	if sum == sha256.Sum256([]byte(s.cfg.SecretKey)) {
		return reply{}, true
	}
	for _, e := range s.ephemeral {
		if sum == sha256.Sum256([]byte(e.secret)) {
			if c.eph = e; !c.now.Before(e.expires) {
				return expired(c), false
			}
			return reply{}, true
		}
	}
	k := s.bySecret[sum]
	switch {
	case k == nil:
		return refuse(http.StatusUnauthorized, "", "Invalid API Key provided: %s", tail(c.secret)), false
	case k.refused(c.now):
		return expired(c), false
	}
	c.who = k
	return reply{}, true
}

func expired(c *call) reply {
	return refuse(http.StatusUnauthorized, "api_key_expired", "Expired API Key provided: %s", tail(c.secret))
}

// tail is how Stripe shows a key in a message: its beginning and its last six characters.
func tail(secret string) string {
	if len(secret) < 16 {
		return "****"
	}
	return secret[:8] + strings.Repeat("*", len(secret)-14) + secret[len(secret)-6:]
}

// may is the refusal of a call that takes a permission which the key lacks.
func (s *Server) may(c *call, permission string) (reply, bool) {
	if c.who == nil && c.eph == nil || c.who != nil && c.who.has(permission) {
		return reply{}, true
	}
	if c.eph == nil && c.who.oldWords {
		return refuse(http.StatusForbidden, "", "The provided key '%s' does not have the required permissions for this endpoint on account '%s'. "+
			"Having the 'rak_%s' permission would allow this request to continue.", tail(c.secret), s.cfg.AccountID, permission), false
	}
	return refuse(http.StatusForbidden, "more_permissions_required", "Permission denied. The provided key '%s' does not have the required permissions for this endpoint on account '%s'. "+
		"Enabling this permission ('%s') on this key would allow this request to continue.", tail(c.secret), s.cfg.AccountID, permission), false
}

// reply is an answer that is not sent yet.
type reply struct {
	status int
	header map[string]string
	body   map[string]any
	raw    string // in the place of body
}

func answer(body map[string]any) reply { return reply{status: http.StatusOK, body: body} }

func refuse(status int, code, format string, args ...any) reply {
	kind := "invalid_request_error"
	if status >= 500 {
		kind = "api_error"
	}
	e := map[string]any{"type": kind, "message": sprintf(format, args...)}
	if code != "" {
		e["code"] = code
		e["doc_url"] = "https://stripe.com/docs/error-codes/" + strings.ReplaceAll(code, "_", "-")
	}
	return reply{status: status, body: map[string]any{"error": e}}
}

func (r reply) write(w http.ResponseWriter, c *call) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Request-Id", c.id)
	for name, value := range r.header {
		w.Header().Set(name, value)
	}
	if e, ok := r.body["error"].(map[string]any); ok {
		e["request_log_url"] = "https://dashboard.stripe.com/logs/" + c.id
	}
	w.WriteHeader(r.status)
	if r.raw != "" {
		_, _ = io.WriteString(w, r.raw)
		return
	}
	_ = json.NewEncoder(w).Encode(r.body)
}

// saved is the answer to an idempotent request, for whoever sends it again.
type saved struct {
	what  [sha256.Size]byte
	reply reply
}

// once answers a POST whose Idempotency-Key was seen before as it was answered then. Refusals are not kept: nothing was
// begun. It needs s.mu.
func (s *Server) once(c *call, do func(*call) reply) reply {
	name := c.Header.Get("Idempotency-Key")
	if c.Method != http.MethodPost || name == "" {
		return do(c)
	}
	of := c.secret + " " + name
	what := sha256.Sum256(slices.Concat([]byte(c.URL.Path+"\x00"), c.body))
	if before, ok := s.answers[of]; ok {
		if before.what != what {
			r := refuse(http.StatusBadRequest, "", "Keys for idempotent requests can only be used with the same parameters they were first used with. "+
				"Try using a key other than '%s' if you meant to execute a different request.", name)
			r.body["error"].(map[string]any)["type"] = "idempotency_error"
			return r
		}
		r := before.reply
		r.header = map[string]string{"Idempotent-Replayed": "true"}
		return r
	}
	r := do(c)
	if r.status < 400 || r.status >= 500 {
		s.answers[of] = saved{what, r}
	}
	return r
}

func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))[:n]
}
