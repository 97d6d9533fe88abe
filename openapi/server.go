package openapi

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/broker"
)

//go:embed openapi.yaml
var document []byte

// MaxBody is the largest request body, in bytes: far above what any call of the contract needs.
const MaxBody = 64 << 10

// readyLimit is the longest that a look at the database's readiness may take.
const readyLimit = 5 * time.Second

// Authenticator finds out whose token it is; an error is an *broker.Error.
type Authenticator interface {
	Authenticate(ctx context.Context, token string) (broker.Caller, error)
}

// Config is what the handler serves. Broker, Audit, Callers, Ready and Logger are required.
type Config struct {
	Broker  *broker.Broker
	Audit   *audit.Log
	Tree    *sequence.Log // nil: nothing is signed, and there are no proofs
	Callers Authenticator
	Ready   func(context.Context) error // why the service should get no traffic; nil when it should. A broker.Error is shown
	Logger  *slog.Logger

	Limits          *broker.Concurrency  // bounds what clients keep open; shared with the console; nil: the default ones
	ClockDifference func() time.Duration // how far this process's clock is ahead of the ledger's; nil: not checked

	Stopping context.Context // done when the service stops: who watches is answered then; nil: never

	Metrics  http.Handler                                               // serves /metrics; nil: there is none
	Requests func(route, method string, status int, took time.Duration) // is told of each request; nil: nobody is

	Console http.Handler // serves / and all below /console; nil: there is none
}

// server implements StrictServerInterface.
type server struct {
	Config
	spec    *openapi3.T
	json    []byte                             // spec
	drains  *broker.Limiter                    // answered requests that still send a body
	guesses *broker.Guesses                    // of tickets
	checks  broker.Flights[struct{}, struct{}] // of readiness: probes at the same moment share one
}

// contract is the document, read once: it takes 20 ms, and nobody changes what was read.
var contract = sync.OnceValues(func() (*openapi3.T, error) { return openapi3.NewLoader().LoadFromData(document) })

// New makes the handler of the whole HTTP contract.
func New(cfg Config) (http.Handler, error) {
	if cfg.Broker == nil || cfg.Audit == nil || cfg.Callers == nil || cfg.Ready == nil || cfg.Logger == nil {
		return nil, errors.New("openapi: Broker, Audit, Callers, Ready and Logger are required")
	}
	if cfg.Stopping == nil {
		cfg.Stopping = context.Background()
	}
	spec, err := contract()
	if err != nil {
		return nil, fmt.Errorf("reading the contract: %w", err)
	}
	if cfg.Limits == nil {
		cfg.Limits = broker.NewConcurrency(broker.ConcurrencyBounds{})
	}
	text, err := spec.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("writing the contract as JSON: %w", err)
	}
	s := &server{Config: cfg, spec: spec, json: text, drains: newDrains(), guesses: broker.NewGuesses(cfg.Broker.Clock)}
	r := chi.NewRouter()
	r.Use(decodePath, identify, s.drain, s.observe, s.recoverPanic, limitBody, middleware.GetHead)
	r.NotFound(s.refuseNUL(http.HandlerFunc(s.notFound)).ServeHTTP)
	r.MethodNotAllowed(s.methodNotAllowed(r))
	s.besides(r.With(s.refuseNUL))
	if cfg.Console != nil { // it refuses NUL itself, with a page
		for _, pattern := range []string{"/", "/console", "/console/*"} {
			r.Handle(pattern, cfg.Console)
		}
	}
	// The middlewares of With run after routing, so they know which operation it is.
	HandlerWithOptions(NewStrictHandlerWithOptions(s, nil, StrictHTTPServerOptions{
		RequestErrorHandlerFunc: s.badRequest, ResponseErrorHandlerFunc: s.problem,
	}), ChiServerOptions{BaseRouter: r.With(noStore, s.authenticate, negotiate, s.admit, s.validate), ErrorHandlerFunc: s.badRequest})
	return r, nil
}

// besides routes what is not in the contract, except for the console.
func (s *server) besides(r chi.Router) {
	r.Get("/livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	r.Get("/readyz", s.readyz)
	r.Get("/openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(document)
	})
	r.Get("/openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(s.json)
	})
	if s.Metrics != nil {
		r.Method(http.MethodGet, "/metrics", s.Metrics)
	}
}

func (s *server) readyz(w http.ResponseWriter, r *http.Request) {
	_, err := s.checks.Do(r.Context(), struct{}{}, readyLimit, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, s.Ready(ctx)
	})
	if hungUp(r) {
		w.WriteHeader(statusHungUp)
		return
	}
	if err != nil {
		s.Logger.WarnContext(r.Context(), "not ready", "error", err)
		reason, known := errors.AsType[*broker.Error](err)
		if !known {
			reason = broker.Errorf(broker.CodeUnavailable, "not ready to serve").Because(err)
		}
		s.problem(w, r, reason)
		return
	}
	if degraded := s.checkClock(); degraded != "" {
		_, _ = fmt.Fprintf(w, "degraded\nclock: %s\n", degraded)
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}

// checkClock tells whether this process's clock is too far from the ledger's; empty: it is not. That is no reason to get no
// traffic, since whatever is due is decided by the ledger's clock: a database with a wrong clock would stop every replica.
func (s *server) checkClock() string {
	if s.ClockDifference == nil {
		return ""
	}
	ahead := s.ClockDifference()
	if ahead.Abs() <= broker.MaxClockDifference {
		return ""
	}
	word := "ahead of"
	if ahead < 0 {
		word = "behind"
	}
	return fmt.Sprintf("this process's clock is %.1f s %s PostgreSQL's; at most %.0f s is normal",
		ahead.Abs().Seconds(), word, broker.MaxClockDifference.Seconds())
}

// badRequest answers what the generated binding could not read. The validation before it leaves it next to nothing.
func (s *server) badRequest(w http.ResponseWriter, r *http.Request, err error) {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		s.problem(w, r, tooLarge())
		return
	}
	pointer := ""
	if e, ok := errors.AsType[*InvalidParamFormatError](err); ok {
		pointer = "/query/" + e.ParamName
	}
	s.problem(w, r, invalid(broker.Fault{Pointer: pointer, Reason: "cannot be read"}))
}

func tooLarge() *broker.Error {
	return broker.Errorf(broker.CodePayloadTooLarge, "the body exceeds %d bytes", MaxBody)
}

func invalid(faults ...broker.Fault) *broker.Error {
	return &broker.Error{Code: broker.CodeInvalidRequest, Message: "the request is not valid", Faults: faults}
}
