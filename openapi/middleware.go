package openapi

import (
	"context"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/google/uuid"

	"github.com/taskpass/taskpass/broker"
)

type callerKey struct{}

// callerOf is the request's caller: with only its request id and address until authenticate has run.
func callerOf(ctx context.Context) *broker.Caller {
	if c, ok := ctx.Value(callerKey{}).(*broker.Caller); ok {
		return c
	}
	return &broker.Caller{}
}

type arrivalKey struct{}

// sinceArrival is how long ago the request came.
func sinceArrival(ctx context.Context) time.Duration {
	if at, ok := ctx.Value(arrivalKey{}).(time.Time); ok {
		return time.Since(at)
	}
	return 0
}

// identify gives each request an id, the client's own if it has an id's form, and the answer bears it.
func identify(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Request-Id")
		if !broker.ValidID(id) || broker.IsToken(id) {
			id = uuid.NewString()
		}
		w.Header().Set("X-Request-Id", id)
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			host = ""
		}
		ctx := context.WithValue(r.Context(), callerKey{}, &broker.Caller{RequestID: id, TraceID: traceID(r.Header), Addr: host})
		ctx = context.WithValue(ctx, arrivalKey{}, time.Now())
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

var traceparent = regexp.MustCompile(`^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?$`)

// traceID is the trace-id of the request's W3C traceparent header; empty if there is not just one, or it is not well-formed.
func traceID(h http.Header) string {
	values := h.Values("Traceparent")
	if len(values) != 1 {
		return ""
	}
	m := traceparent.FindStringSubmatch(values[0])
	if m == nil || m[1] == "ff" || m[1] == "00" && m[4] != "" || strings.Trim(m[2], "0") == "" || strings.Trim(m[3], "0") == "" {
		return ""
	}
	return m[2]
}

// observe logs and counts each request by its route. The path and the query are not logged: anything may stand there.
func (s *server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		defer func() {
			route := chi.RouteContext(r.Context()).RoutePattern()
			took := time.Since(start)
			if s.Requests != nil {
				s.Requests(route, r.Method, ww.Status(), took)
			}
			caller := callerOf(r.Context())
			s.Logger.InfoContext(r.Context(), "request", "method", known(r.Method), "route", route, "status", ww.Status(),
				"ms", took.Milliseconds(), "bytes", ww.BytesWritten(), "request_id", caller.RequestID, "trace_id", caller.TraceID, "caller", caller.Name)
		}()
		next.ServeHTTP(ww, r)
	})
}

// recoverPanic answers `unavailable`. The panic's value is not logged, for it may hold a secret (P7); its type and the
// stack, in which Go prints only addresses, are.
func (s *server) recoverPanic(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if v == http.ErrAbortHandler { //nolint:errorlint // the server compares it so
				panic(v)
			}
			p := broker.NewPanicError(v)
			s.Logger.ErrorContext(r.Context(), "panic", "type", p.Type, "stack", p.Stack,
				"request_id", callerOf(r.Context()).RequestID)
			s.problem(w, r, broker.Errorf(broker.CodeUnavailable, "the broker failed unexpectedly"))
		}()
		next.ServeHTTP(w, r)
	})
}

func limitBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, MaxBody)
		next.ServeHTTP(w, r)
	})
}

func noStore(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r)
	})
}

// authenticate finds out who calls, except where the contract asks for no token.
func (s *server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, operation := s.operation(r); operation.Security != nil && len(*operation.Security) == 0 {
			next.ServeHTTP(w, r)
			return
		}
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			token = ""
		}
		found, err := s.lookUp(r.Context(), strings.TrimSpace(token))
		if err != nil {
			s.problem(w, r, err)
			return
		}
		caller := callerOf(r.Context())
		found.RequestID, found.TraceID, found.Addr = caller.RequestID, caller.TraceID, caller.Addr
		*caller = found
		next.ServeHTTP(w, r)
	})
}

// lookUp authenticates a token, as one of a bounded number at a time.
func (s *server) lookUp(ctx context.Context, token string) (broker.Caller, error) {
	sum := broker.HashToken(token) // the token itself is kept nowhere
	release, err := s.Limits.Lookups.Acquire(broker.Caller{Addr: callerOf(ctx).Addr, Auth: string(sum)})
	if err != nil {
		return broker.Caller{}, err
	}
	defer release()
	return s.Callers.Authenticate(ctx, token)
}

// known is a method of HTTP's own; any other may be anything.
func known(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions,
		http.MethodTrace, http.MethodConnect:
		return method
	}
	return "other"
}
