package stripe

import (
	"fmt"
	"net/http"
	"path"
)

func sprintf(format string, args ...any) string { return fmt.Sprintf(format, args...) }

// FaultKind is what goes wrong.
type FaultKind int

// The kinds of fault. All but DropReply and Lie happen instead of the work.
const (
	// Throttle answers 429 rate_limit, as for too many calls of one endpoint.
	Throttle FaultKind = iota + 1
	// Refuse answers Status and Code.
	Refuse
	// ServerError answers 500, with Body verbatim if there is one.
	ServerError
	// DropReply does the work and closes the connection without a byte: a lost reply. Note that Go's HTTP client sends a
	// GET again by itself after that.
	DropReply
	// Hang answers nothing until the client goes away or the server closes.
	Hang
	// Lie does the work and lets Edit change the answer.
	Lie
)

// Fault is something that goes wrong with a call.
type Fault struct {
	// Action is the method and path it is for, in which "*" stands for one part: "POST /v2/iam/api_keys/*/expire".
	// Empty: any.
	Action string
	// Kind is required.
	Kind FaultKind
	// Message replaces Stripe's message, of a kind that answers an error.
	Message string
	// Status and Code are Refuse's; an empty Code is left out.
	Status int
	Code   string
	// Body, for ServerError and Lie, is sent as it is instead of JSON.
	Body string
	// Edit is Lie's. It is given what was asked, and the answer to change.
	Edit func(asked []byte, body map[string]any)
	// Times is how many calls it befalls. Zero: one. Negative: all, until ClearFaults.
	Times int
	// Met is closed when it befalls a call for the first time. May be nil.
	Met chan struct{}
}

// Inject queues a fault. It panics on one that makes no sense: only tests call it.
func (s *Server) Inject(f Fault) {
	if f.Kind < Throttle || f.Kind > Lie || f.Kind == Refuse && (f.Status < 400 || f.Status > 599) || f.Kind == Lie && f.Edit == nil && f.Body == "" {
		panic("sandbox stripe: no such fault")
	}
	s.faults.Add(f, f.Times)
}

// ClearFaults drops what is queued. A call that already hangs goes on hanging.
func (s *Server) ClearFaults() { s.faults.Clear() }

func matches(pattern, action string) bool {
	ok, err := path.Match(pattern, action)
	return pattern == "" || err == nil && ok
}

func (s *Server) fault(action string) (Fault, bool) {
	f, first, ok := s.faults.Take(func(f Fault) bool { return matches(f.Action, action) })
	if first && f.Met != nil {
		close(f.Met)
	}
	return f, ok
}

func (s *Server) serveFault(w http.ResponseWriter, c *call, do func(*call) reply, f Fault) {
	switch f.Kind {
	case DropReply:
		s.serve(c, do)
		panic(http.ErrAbortHandler) // how a handler has net/http close the connection without an answer
	case Hang:
		select {
		case <-c.Context().Done():
		case <-s.closed:
		}
		panic(http.ErrAbortHandler)
	case Lie:
		r := s.serve(c, do)
		if r.raw = f.Body; f.Edit != nil {
			r.body = deepCopy(r.body)
			f.Edit(c.body, r.body)
		}
		r.write(w, c)
	default:
		f.refusal().write(w, c)
	}
}

func (f Fault) refusal() reply {
	var r reply
	switch f.Kind {
	case Throttle:
		r = refuse(http.StatusTooManyRequests, "rate_limit", "Request rate limit exceeded. Learn more about rate limits here https://stripe.com/docs/rate-limits.")
		r.header = map[string]string{"Stripe-Rate-Limited-Reason": "endpoint-rate"}
	case Refuse:
		r = refuse(f.Status, f.Code, "The request was refused.")
	default:
		r = refuse(http.StatusInternalServerError, "", "An unknown error occurred.")
		r.raw = f.Body
	}
	if f.Message != "" {
		r.body["error"].(map[string]any)["message"] = f.Message
	}
	return r
}

// deepCopy copies maps, so that a lie does not change what is kept.
func deepCopy(m map[string]any) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		if inner, ok := v.(map[string]any); ok {
			v = deepCopy(inner)
		}
		out[k] = v
	}
	return out
}
