package aws

import (
	"fmt"
	"net/http"
	"strings"
	"time"
)

// FaultKind is what goes wrong.
type FaultKind int

// The kinds of fault. All but DropReply, SlowReply, StaleRead and Lie happen instead of the
// work.
const (
	// Throttle answers 400 Throttling "Rate exceeded" (S3: 503 SlowDown).
	Throttle FaultKind = iota + 1
	// AccessDenied answers 403 AccessDenied.
	AccessDenied
	// ServerError answers 500, with Body verbatim if there is one.
	ServerError
	// DropReply does the work and closes the connection without a byte: a lost reply.
	// Note that Go's HTTP client sends a GET again by itself after that.
	DropReply
	// Hang answers nothing until the client goes away or the server closes.
	Hang
	// SlowReply does the work, and answers after Delay of real time or, if there is an Until, when that is closed.
	SlowReply
	// StaleRead has an IAM read of a role's policies or of a managed policy see what was
	// there before the last change of that role or policy, as IAM may for a while after
	// a write. A call that is no such read is as ever.
	StaleRead
	// LimitExceeded answers 409 LimitExceeded, as IAM does at a quota.
	LimitExceeded
	// Refuse answers Status and Code.
	Refuse
	// Lie does the work, and answers 200 with what Edit makes of the true answer's body.
	Lie
	hold // see Hold
)

// String names the kind.
func (k FaultKind) String() string {
	names := [...]string{"", "Throttle", "AccessDenied", "ServerError", "DropReply", "Hang", "SlowReply",
		"StaleRead", "LimitExceeded", "Refuse", "Lie", "hold"}
	if k < 1 || int(k) >= len(names) {
		return fmt.Sprintf("FaultKind(%d)", int(k))
	}
	return names[k]
}

// Fault is something that goes wrong with calls that were signed properly.
type Fault struct {
	// Action is the call it is for: "AssumeRole", "PutRolePolicy", "GetObject" …
	// Empty: any.
	Action string
	// Kind is required.
	Kind FaultKind
	// Message replaces the vendor's message (of a kind that answers an error).
	Message string
	// Status and Code are Refuse's, which must have them.
	Status int
	Code   string
	// Body, for ServerError, is sent as it is instead of the vendor's XML.
	Body string
	// Edit is Lie's, which must have it.
	Edit func(body string) string
	// Delay and Until are for SlowReply.
	Delay time.Duration
	Until <-chan struct{}
	// Times is how many calls it befalls. Zero: one. Negative: all, until ClearFaults.
	Times int

	held *Held
}

// Inject queues a fault. It panics on a kind that does not exist: only tests call it.
func (s *Server) Inject(f Fault) {
	if f.Kind < Throttle || f.Kind > Lie || f.Kind == Lie && f.Edit == nil || f.Kind == Refuse && (f.Status < 400 || f.Status > 599 || f.Code == "") {
		panic("sandbox aws: no such fault: " + f.Kind.String())
	}
	s.faults.Add(f, f.Times)
}

// ClearFaults drops what is queued. A call that already hangs goes on hanging.
func (s *Server) ClearFaults() { s.faults.Clear() }

// serveWithFaults serves the call, or does what a fault says instead.
func (s *Server) serveWithFaults(w http.ResponseWriter, c *call) {
	f, _, ok := s.faults.Take(func(f Fault) bool { return f.Action == "" || strings.EqualFold(f.Action, c.action) })
	if !ok {
		s.serve(w, c)
		return
	}
	switch f.Kind {
	case DropReply:
		s.serve(&heldReply{header: http.Header{}}, c)
		// The way a handler tells net/http to close the connection without an answer.
		panic(http.ErrAbortHandler)
	case Hang:
		s.wait(c, nil, nil)
		panic(http.ErrAbortHandler)
	case SlowReply:
		held := &heldReply{header: w.Header().Clone()}
		s.serve(held, c)
		var delay <-chan time.Time
		if f.Until == nil {
			delay = time.After(f.Delay)
		}
		s.wait(c, delay, f.Until)
		held.release(w)
	case StaleRead:
		c.stale = true
		s.serve(w, c)
	case Lie:
		held := &heldReply{header: http.Header{}}
		s.serve(held, c)
		setRequestID(w, c)
		_, _ = w.Write([]byte(f.Edit(string(held.body))))
	case hold:
		s.serveHeld(w, c, f.held)
	default:
		f.refusal(c.service).write(w, c)
	}
}

// wait returns when the client is gone, the server closes, the delay is over or until is closed.
func (s *Server) wait(c *call, delay <-chan time.Time, until <-chan struct{}) {
	select {
	case <-c.Context().Done():
	case <-s.closed:
	case <-delay:
	case <-until:
	}
}

func (f Fault) refusal(service string) *apiError {
	var e *apiError
	switch f.Kind {
	case Throttle:
		e = fail(http.StatusBadRequest, "Throttling", "Rate exceeded")
		if service == "s3" {
			e = fail(http.StatusServiceUnavailable, "SlowDown", "Please reduce your request rate.")
		}
	case AccessDenied:
		e = fail(http.StatusForbidden, "AccessDenied", "Access Denied")
	case LimitExceeded:
		e = fail(http.StatusConflict, "LimitExceeded", "The request was rejected because it attempted to create resources beyond the current AWS account limits.")
	case Refuse:
		e = fail(f.Status, f.Code, "The request was refused.")
	default:
		e = fail(http.StatusInternalServerError, "InternalFailure",
			"The request processing has failed because of an unknown error, exception or failure.")
		if f.Body != "" {
			e.verbatim = []byte(f.Body)
		}
	}
	if f.Message != "" {
		e.message = f.Message
	}
	return e
}

// heldReply keeps an answer back.
type heldReply struct {
	header http.Header
	status int
	body   []byte
}

func (h *heldReply) Header() http.Header { return h.header }

func (h *heldReply) WriteHeader(status int) {
	if h.status == 0 {
		h.status = status
	}
}

func (h *heldReply) Write(b []byte) (int, error) {
	h.WriteHeader(http.StatusOK)
	h.body = append(h.body, b...)
	return len(b), nil
}

func (h *heldReply) release(w http.ResponseWriter) {
	for name, values := range h.header {
		w.Header()[name] = values
	}
	if h.status != 0 {
		w.WriteHeader(h.status)
	}
	_, _ = w.Write(h.body)
}
