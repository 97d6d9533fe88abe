package stripe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"

	sdk "github.com/stripe/stripe-go/v76"

	"github.com/taskpass/taskpass/broker"
)

const (
	// previewVersion is the API version under which managed keys are served.
	previewVersion = "2026-08-26.preview"
	// maxAnswer bounds an answer's body. A page of a hundred keys has some hundred kilobytes.
	maxAnswer = 4 << 20
	// idleConns is how many connections are kept for the next calls.
	idleConns = 64
)

// client calls Stripe through its own library, whose retries, log and telemetry are off.
type client struct {
	backend  *sdk.BackendImplementation
	livemode bool
	web      *http.Transport
	files    broker.SecretFiles
}

func newClient(c Config) (*client, error) {
	web := http.DefaultTransport.(*http.Transport).Clone()
	web.MaxIdleConns, web.MaxIdleConnsPerHost = idleConns, idleConns
	cfg := &sdk.BackendConfig{
		EnableTelemetry: sdk.Bool(false), MaxNetworkRetries: sdk.Int64(0), LeveledLogger: &sdk.LeveledLogger{Level: sdk.LevelNull},
		HTTPClient: &http.Client{
			Transport: watched{web},
			// A redirect would carry the key to somebody else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	if c.Endpoint != "" {
		cfg.URL = sdk.String(c.Endpoint)
	}
	backend, ok := sdk.GetBackendWithConfig(sdk.APIBackend, cfg).(*sdk.BackendImplementation)
	if !ok {
		return nil, errors.New("stripe-go has another backend than it had")
	}
	return &client{backend: backend, livemode: c.Livemode, web: web}, nil
}

// ownKey reads the broker's own key and refuses one of the other mode.
func (c *client) ownKey(ref broker.Ref) (broker.Secret, error) {
	key, err := c.files.Own(ref)
	if err != nil {
		return key, refusedUnsent("the broker's own Stripe key cannot be read: the operator should check secret_key").Because(errors.New("secret_key cannot be resolved"))
	}
	if !isKey(key, c.livemode, "sk_", "rk_") {
		return broker.Secret{}, refusedUnsent("secret_key is not a Stripe key of this profile's mode (livemode: %t)", c.livemode)
	}
	return key, nil
}

// isKey tells whether a secret is a key of one of the kinds, and of the mode.
func isKey(s broker.Secret, livemode bool, kinds ...string) bool {
	mode := "test_"
	if livemode {
		mode = "live_"
	}
	text := s.Reveal()
	if len(text) < 16 || len(text) > 512 || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return false
	}
	for _, kind := range kinds {
		if strings.HasPrefix(text, kind+mode) {
			return true
		}
	}
	return false
}

// request is one call.
type request struct {
	method, path string
	key          broker.Secret
	account      string // names the preview's account; empty: a v1 call
	idempotency  string // empty: the library's own random one
	json         []byte // of a v2 call
	form         string // of a v1 call
}

// do sends one request and decodes the answer. Its failure says what is known of what Stripe did.
func (c *client) do(ctx context.Context, r request, into sdk.LastResponseSetter) (requestID string, f *failure) {
	ctx, x := watch(ctx, r.method+" "+r.path)
	params := &sdk.Params{Context: ctx, Headers: http.Header{}}
	contentType, body := "application/x-www-form-urlencoded", bytes.NewBufferString(r.form)
	if r.account != "" {
		params.Headers.Set("Stripe-Version", previewVersion)
		params.Headers.Set("Stripe-Context", r.account)
		contentType, body = "application/json", bytes.NewBuffer(r.json)
	}
	if r.idempotency != "" {
		params.IdempotencyKey = sdk.String(r.idempotency)
	}
	in, err := c.backend.NewRequest(r.method, r.path, r.key.Reveal(), contentType, params)
	if err == nil {
		err = c.backend.Do(in, body, into)
	}
	return x.requestID(), x.failure(ctx, err)
}

// exchange is what was seen of a call on the wire, whatever the library makes of it.
type exchange struct {
	action string

	mu     sync.Mutex
	sent   bool
	status int
	id     string
}

type exchangeKey struct{}

// watch makes a context under which the transport keeps book.
func watch(ctx context.Context, action string) (context.Context, *exchange) {
	x := &exchange{action: nameOf(action)}
	ctx = context.WithValue(ctx, exchangeKey{}, x)
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaderField: func(string, []string) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.sent = true
	}}), x
}

// nameOf is a call's method and path without its query and without ids, as the log has it.
func nameOf(action string) string {
	action, _, _ = strings.Cut(action, "?")
	parts := strings.Split(action, "/")
	for i, part := range parts {
		if strings.ContainsAny(part, "0123456789%") && len(part) > 2 || strings.HasPrefix(part, "ephkey_") {
			parts[i] = "*"
		}
	}
	return strings.Join(parts, "/")
}

func (x *exchange) requestID() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.id
}

// watched notes what came back, bounds it, and has nothing that may have changed something sent twice.
type watched struct{ next http.RoundTripper }

func (t watched) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet {
		// net/http takes an Idempotency-Key for leave to send again by itself. It may not: a mint is one call.
		r = r.Clone(r.Context())
		r.GetBody = nil
	}
	res, err := t.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if x, ok := r.Context().Value(exchangeKey{}).(*exchange); ok {
		x.mu.Lock()
		x.status = res.StatusCode
		if id := res.Header.Get("Request-Id"); plain(id) {
			x.id = id
		}
		x.mu.Unlock()
	}
	res.Body = &bounded{res.Body, maxAnswer}
	return res, nil
}

// bounded is a body that fails where it is longer than is taken in.
type bounded struct {
	io.ReadCloser
	left int
}

var errTooLong = errors.New("the answer is too long")

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLong
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// plain tells whether a field of an answer has the form of a code or an id, so that it may be logged.
func plain(s string) bool { return broker.ValidID(s) && len(s) <= 64 }

// moment is a time in either of Stripe's forms; zero where there is none that can be read.
type moment struct{ time.Time }

func (m *moment) UnmarshalJSON(text []byte) error {
	if at, err := time.Parse(`"`+time.RFC3339Nano+`"`, string(text)); err == nil {
		m.Time = at
	}
	return nil // an end that cannot be read is one that was not asked for
}

// hidden is a secret in an answer: it is one from the moment that it is decoded.
type hidden struct{ broker.Secret }

func (h *hidden) UnmarshalJSON(text []byte) error {
	var value *string
	if err := json.Unmarshal(text, &value); err == nil && value != nil {
		h.Secret = broker.NewSecret(*value)
	}
	return nil // an error would quote it
}
