package gcp

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/durationpb"
)

// FaultKind is what goes wrong.
type FaultKind int

// The kinds of fault. All but DropReply, SlowReply and Lie happen instead of the work.
const (
	// Unavailable answers UNAVAILABLE (HTTP: 503).
	Unavailable FaultKind = iota + 1
	// Internal answers INTERNAL (HTTP: 500).
	Internal
	// Exhausted answers RESOURCE_EXHAUSTED (HTTP: 429) with ErrorInfo, RetryInfo and
	// QuotaFailure.
	Exhausted
	// Denied answers PERMISSION_DENIED (HTTP: 403) with the reason IAM_PERMISSION_DENIED.
	Denied
	// DropReply does the work and breaks the connection: a lost reply.
	DropReply
	// Hang answers nothing until the client goes away or the server closes.
	Hang
	// SlowReply does the work, waits Delay of real time, then answers.
	SlowReply
	// NotSeen answers NOT_FOUND (HTTP: 404) for what is there: IAM is eventually consistent.
	NotSeen
	// Lie does the work, and lets Edit change the answer: a pointer to the method's reply. For the gRPC services.
	Lie
)

// RetryDelay is what an Exhausted answer's RetryInfo says.
const RetryDelay = 7 * time.Second

// String names the kind.
func (k FaultKind) String() string {
	names := [...]string{"", "Unavailable", "Internal", "Exhausted", "Denied", "DropReply", "Hang", "SlowReply", "NotSeen", "Lie"}
	if k < 1 || int(k) >= len(names) {
		return fmt.Sprintf("FaultKind(%d)", int(k))
	}
	return names[k]
}

// Fault is something that goes wrong with calls that were authenticated properly.
type Fault struct {
	// Method is the call it is for: a method of the gRPC services, ExchangeToken, Token,
	// or GetObject, ListObjects, InsertObject. Empty: any.
	Method string
	// Kind is required.
	Kind FaultKind
	// Message replaces Google's message.
	Message string
	// Edit is Lie's, which must have it.
	Edit func(reply any)
	// Delay is for SlowReply.
	Delay time.Duration
	// Times is how many calls it befalls. Zero: one. Negative: all, until ClearFaults.
	Times int
	// Met, if any, is closed when it has befallen its first call; for DropReply, when the
	// work is done.
	Met chan struct{}
}

// Inject queues a fault. It panics on a kind that does not exist: only tests call it.
func (s *Server) Inject(f Fault) {
	if f.Kind < Unavailable || f.Kind > Lie || f.Kind == Lie && f.Edit == nil {
		panic("sandbox gcp: no such fault: " + f.Kind.String())
	}
	s.faults.Add(f, f.Times)
}

// ClearFaults drops what is queued. A call that already hangs goes on hanging.
func (s *Server) ClearFaults() { s.faults.Clear() }

func (s *Server) fault(method string) (Fault, bool) {
	f, first, ok := s.faults.Take(func(f Fault) bool { return f.Method == "" || f.Method == method })
	if !first {
		f.Met = nil // it is closed already
	}
	return f, ok
}

func (f Fault) met() {
	if f.Met != nil {
		close(f.Met)
	}
}

type (
	callerKey struct{}
	reasonKey struct{}
)

// callerOf is the identity that intercept found.
func callerOf(ctx context.Context) string {
	email, _ := ctx.Value(callerKey{}).(string)
	return email
}

// reasonOf is what the client gave as the request's reason.
func reasonOf(ctx context.Context) string {
	reason, _ := ctx.Value(reasonKey{}).(string)
	return reason
}

// intercept authenticates a gRPC call, counts it, and does what a fault says.
func (s *Server) intercept(ctx context.Context, in any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	method := path.Base(info.FullMethod)
	header := ""
	if md, ok := metadata.FromIncomingContext(ctx); ok && len(md.Get("authorization")) == 1 {
		header = md.Get("authorization")[0]
	}
	email, ok := s.caller(header)
	if !ok {
		return nil, refuse(codes.Unauthenticated, "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential.",
			&errdetails.ErrorInfo{Reason: "ACCESS_TOKEN_TYPE_UNSUPPORTED", Domain: "googleapis.com"})
	}
	s.count(method)
	ctx = context.WithValue(ctx, callerKey{}, email)
	if md, ok := metadata.FromIncomingContext(ctx); ok && len(md.Get("x-goog-request-reason")) == 1 {
		ctx = context.WithValue(ctx, reasonKey{}, md.Get("x-goog-request-reason")[0])
	}
	f, ok := s.fault(method)
	if !ok {
		return next(ctx, in)
	}
	switch f.Kind {
	case DropReply:
		out, err := next(ctx, in)
		f.met()
		if p, ok := peer.FromContext(ctx); ok {
			s.conns.cut(p.Addr.String())
			<-ctx.Done() // the answer must not overtake the end of its connection
		}
		return out, err
	case Hang:
		f.met()
		s.wait(ctx, nil)
		return nil, refuse(codes.Canceled, "gone")
	case SlowReply:
		f.met()
		out, err := next(ctx, in)
		timer := time.NewTimer(f.Delay)
		defer timer.Stop()
		s.wait(ctx, timer.C)
		return out, err
	case Lie:
		f.met()
		out, err := next(ctx, in)
		if err == nil {
			f.Edit(out)
		}
		return out, err
	default:
		f.met()
		return nil, f.refusal()
	}
}

func (f Fault) refusal() error {
	or := func(message string) string {
		if f.Message != "" {
			return f.Message
		}
		return message
	}
	switch f.Kind {
	case Unavailable:
		return refuse(codes.Unavailable, or("The service is currently unavailable."))
	case Internal:
		return refuse(codes.Internal, or("Internal error encountered."))
	case NotSeen:
		return refuse(codes.NotFound, or("Not found."))
	case Exhausted:
		return refuse(codes.ResourceExhausted, or("Quota exceeded for quota metric 'Generate credential requests'."),
			&errdetails.ErrorInfo{Reason: "RATE_LIMIT_EXCEEDED", Domain: "googleapis.com", Metadata: map[string]string{"service": "iamcredentials.googleapis.com"}},
			&errdetails.QuotaFailure{Violations: []*errdetails.QuotaFailure_Violation{{Subject: "project:1", Description: or("quota")}}},
			&errdetails.RetryInfo{RetryDelay: durationpb.New(RetryDelay)})
	default:
		return refuse(codes.PermissionDenied, or("Permission denied on resource (or it may not exist)."),
			&errdetails.ErrorInfo{Reason: "IAM_PERMISSION_DENIED", Domain: "iam.googleapis.com", Metadata: map[string]string{"permission": "unknown"}})
	}
}

// serveWithFaults serves an HTTP call, or does what a fault says instead.
func (s *Server) serveWithFaults(w http.ResponseWriter, r *http.Request, method string, serve http.HandlerFunc) {
	f, ok := s.fault(method)
	if !ok {
		serve(w, r)
		return
	}
	switch f.Kind {
	case DropReply:
		serve(httptest.NewRecorder(), r)
		f.met()
		panic(http.ErrAbortHandler) // how net/http is told to close without an answer
	case Hang:
		f.met()
		s.wait(r.Context(), nil)
		panic(http.ErrAbortHandler)
	case SlowReply:
		f.met()
		timer := time.NewTimer(f.Delay)
		defer timer.Stop()
		s.wait(r.Context(), timer.C)
		serve(w, r)
	default:
		f.met()
		f.refuseHTTP(w, method)
	}
}

func (f Fault) refuseHTTP(w http.ResponseWriter, method string) {
	status, reason := http.StatusServiceUnavailable, "backendError"
	switch f.Kind {
	case Internal:
		status = http.StatusInternalServerError
	case Exhausted:
		status, reason = http.StatusTooManyRequests, "rateLimitExceeded"
		w.Header().Set("Retry-After", fmt.Sprint(int(RetryDelay.Seconds())))
	case Denied:
		status, reason = http.StatusForbidden, "forbidden"
	case NotSeen:
		status, reason = http.StatusNotFound, "notFound"
	}
	message := f.Message
	if message == "" {
		message = http.StatusText(status)
	}
	if strings.HasSuffix(method, "Token") {
		writeOAuthError(w, status, reason, message)
		return
	}
	writeJSONError(w, status, reason, message)
}
