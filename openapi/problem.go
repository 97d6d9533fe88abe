package openapi

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"

	"github.com/taskpass/taskpass/broker"
)

// problem answers an error as RFC 9457 has it. What is not a broker.Error is our own failure: its text goes to the log
// and never to the client.
func (s *server) problem(w http.ResponseWriter, r *http.Request, err error) {
	e := broker.AsError(err)
	status := e.Code.Status()
	caller := callerOf(r.Context())
	if hungUp(r) {
		s.Logger.InfoContext(r.Context(), "the client hung up", "code", e.Code, "cause", e.Err, "request_id", caller.RequestID)
		w.WriteHeader(statusHungUp)
		return
	}
	if e.Err != nil && status >= http.StatusInternalServerError {
		s.Logger.ErrorContext(r.Context(), "request failed", "code", e.Code, "cause", e.Err, "request_id", caller.RequestID)
	}
	p := Problem{
		Type: "urn:taskpass:problem:" + string(e.Code), Title: http.StatusText(status), Status: status,
		Code: string(e.Code), Detail: e.Message, Retryable: e.Code.Retryable(), RequestID: caller.RequestID,
	}
	for _, f := range e.Faults {
		p.Errors = append(p.Errors, Fault(f))
	}
	h := w.Header()
	if e.RetryAfter > 0 {
		p.RetryAfterSeconds = math.Ceil(e.RetryAfter.Seconds())
		h.Set("Retry-After", strconv.Itoa(int(p.RetryAfterSeconds)))
	}
	if status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="taskpass"`)
	}
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	text, err := json.Marshal(p)
	if err != nil { // texts and numbers only: it always encodes
		panic(err)
	}
	text = append(text, '\n')
	h.Set("Content-Length", strconv.Itoa(len(text))) // the client has the whole answer before its body is drained
	w.WriteHeader(status)
	_, _ = w.Write(text) // the client may have gone; there is nobody else to tell
}
