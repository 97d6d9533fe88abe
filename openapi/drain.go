package openapi

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// A request may be answered before its body has been read: it is refused by its header alone. Many clients, Python's
// urllib among them, send the whole body before they read the answer. If the connection were closed meanwhile, the kernel
// would reset it and the client would never see the answer. So the answer is sent first, and then the rest of the body is
// read and dropped, within these limits.
const (
	drainBytes = 32 << 20
	drainTime  = 10 * time.Second
)

// drainBounds are how many answered requests may still be sending a body at the same time. What exceeds them is closed
// without being drained.
var drainBounds = broker.Bounds{PerToken: 64, PerCaller: 256, Total: 1024}

func newDrains() *broker.Limiter {
	return broker.NewLimiter("answered requests that still send a body", time.Second, drainBounds)
}

// drain reads what is left of a request's body after the answer. HTTP/2 needs none of it: there a stream ends by itself.
func (s *server) drain(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		// Without full duplex, net/http reads a small body before it sends an answer, and resets the connection after a large one.
		if r.ProtoMajor != 1 || r.Body == nil || r.Body == http.NoBody || control.EnableFullDuplex() != nil {
			next.ServeHTTP(w, r)
			return
		}
		body := &tracked{ReadCloser: r.Body}
		r.Body = body
		next.ServeHTTP(w, r)
		if body.ended {
			return
		}
		release, err := s.drains.Acquire(*callerOf(r.Context()))
		if err != nil {
			_ = control.SetReadDeadline(time.Now()) // net/http would read on by itself
			return
		}
		defer release()
		_, _ = w.Write(nil) // from here on reading the body does not make net/http send "100 Continue"
		if control.Flush() != nil || control.SetReadDeadline(time.Now().Add(drainTime)) != nil {
			return
		}
		defer context.AfterFunc(s.Stopping, func() { _ = control.SetReadDeadline(time.Now()) })()
		_, _ = io.CopyN(io.Discard, body, drainBytes) // whatever happens, the request has been answered
	})
}

// tracked notes whether a body was read to its end.
type tracked struct {
	io.ReadCloser
	ended bool
}

func (t *tracked) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	t.ended = t.ended || err == io.EOF // a reader's end is never wrapped
	return n, err
}
