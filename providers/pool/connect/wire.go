package connect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/taskpass/taskpass/broker"
)

const (
	maxReply      = 1 << 20         // bytes of an answer; a page of a hundred accounts is 20 KiB
	throttlePause = 2 * time.Second // when a vendor says only that it is too much
	maxPause      = time.Hour       // no vendor's word holds a revocation up for longer
)

func checkLag(f *broker.Faults, pointer string, lag *time.Duration) {
	if lag != nil && (*lag < 0 || *lag > maxLag) {
		f.Add(pointer, "is not within 0 s and %s", maxLag)
	}
}

// vendor is whom calls go to.
type vendor struct {
	name   string // as errors call it
	idName string // the header in which its answers bear their id
	look   string // what the operator should look at when the vendor does not let us in
	errors bool   // its errors are JSON with an error in it; false: they may have any form
	client *http.Client
	clock  func() time.Time
	files  *broker.SecretFiles
}

func newVendor(name, idName, look string, w Wire) vendor {
	v := vendor{name: name, idName: idName, look: look, clock: w.Clock, files: &broker.SecretFiles{}}
	client := http.Client{Transport: http.DefaultTransport}
	if w.Client != nil {
		client = *w.Client
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client.Timeout = 0
	v.client = &client
	if v.clock == nil {
		v.clock = time.Now
	}
	return v
}

// reply is what came back. Its body may hold a secret and must go nowhere.
type reply struct {
	action string
	status int
	header http.Header
	body   []byte
}

func (r reply) good() bool { return r.status >= 200 && r.status < 300 }

func (r reply) isPage() bool { return broker.IsPage(r.header.Get("Content-Type"), r.body) }

// unsent marks an error after which the vendor surely made nothing: of a request that was never written to the wire, or was
// refused.
type unsent struct{ err *broker.Error }

func (u unsent) Error() string   { return u.err.Error() }
func (u unsent) Unwrap() []error { return []error{u.err, broker.ErrNotMinted} }

// do sends one request and reads the answer whole. An error means that there was none: net/http's own text is not kept,
// for it may quote what came back.
//
// action is what the log calls it.
func (v vendor) do(ctx context.Context, action, method, address string, header http.Header, body []byte) (reply, error) {
	var sent atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaderField: func(string, []string) { sent.Store(true) },
	})
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	r, err := http.NewRequestWithContext(traced, method, address, reader)
	if err != nil {
		return reply{}, unsent{broker.Errorf(broker.CodeUpstreamRefused, "no request to %s can be made of this configuration", v.name)}
	}
	r.Header = header
	got, err := v.client.Do(r)
	if err != nil {
		return reply{}, v.unread(ctx, action, sent.Load())
	}
	defer got.Body.Close()
	text, err := io.ReadAll(io.LimitReader(got.Body, maxReply+1))
	if err != nil {
		return reply{}, v.unread(ctx, action, true)
	}
	if len(text) > maxReply {
		return reply{}, broker.Errorf(broker.CodeUpstreamError, "the answer of %s is larger than %d bytes", v.name, maxReply).
			Because(v.cause(reply{action, got.StatusCode, got.Header, nil}))
	}
	return reply{action, got.StatusCode, got.Header, text}, nil
}

func (v vendor) unread(ctx context.Context, action string, sent bool) error {
	var e *broker.Error
	none := broker.VendorAnswer{Vendor: v.name, Action: action}
	if err := ctx.Err(); err != nil {
		e = broker.Errorf(broker.CodeUpstreamTimeout, "%s did not answer in time", v.name).Because(errors.Join(err, none))
	} else {
		e = broker.Errorf(broker.CodeUpstreamError, "%s could not be reached, or its answer could not be read", v.name).Because(none)
	}
	if !sent {
		return unsent{e}
	}
	return e
}

// cause is what is kept of an answer for the log: never its body.
func (v vendor) cause(r reply) error {
	a := broker.VendorAnswer{Vendor: v.name, Action: r.action, Status: r.status}
	if id := r.header.Get(v.idName); broker.ValidID(id) {
		a.RequestID = id
	}
	if told := v.told(r); told != nil && !r.good() {
		for _, code := range []string{told.Type, told.Code} {
			if broker.ValidID(code) && len(code) <= 64 {
				a.Code = code
			}
		}
	}
	return a
}

// told is the error in an answer; nil: it has none in the vendor's form.
func (v vendor) told(r reply) *vendorError {
	var body struct{ Error *vendorError }
	if json.Unmarshal(r.body, &body) != nil {
		return nil
	}
	return body.Error
}

type vendorError struct{ Type, Code string }

// genuine tells whether a refusal is the vendor's, and not one of something on the way to it.
func (v vendor) genuine(r reply) bool { return !v.errors || v.told(r) != nil }

// meaning says what an answer means that is not the one that was hoped for.
func (v vendor) meaning(r reply) *broker.Error {
	cause := v.cause(r)
	switch {
	case r.status >= 400 && r.status < 500 && r.status != http.StatusRequestTimeout && r.status != http.StatusTooManyRequests && !v.genuine(r):
		return broker.Errorf(broker.CodeUpstreamError, "what answered for %s (HTTP %d) has not the form of its answers: "+
			"the operator should check proxies and gateways on the way, and the endpoint", v.name, r.status).Because(cause)
	case r.status == http.StatusUnauthorized || r.status == http.StatusForbidden:
		return broker.Errorf(broker.CodeUpstreamRefused, "%s refuses the broker itself (HTTP %d): the operator should check %s",
			v.name, r.status, v.look).Because(cause)
	case r.status == http.StatusTooManyRequests:
		e := broker.Errorf(broker.CodeUpstreamThrottled, "%s is throttling the broker", v.name).Because(cause)
		if e.RetryAfter = v.retryAfter(r.header); e.RetryAfter == 0 {
			e.RetryAfter = throttlePause
		}
		return e
	case r.status >= 500 || doubtful[r.status]:
		e := broker.Errorf(broker.CodeUpstreamError, "%s failed (HTTP %d)", v.name, r.status).Because(cause)
		e.RetryAfter = v.retryAfter(r.header)
		return e
	case r.status >= 300 && r.status < 400:
		return broker.Errorf(broker.CodeUpstreamRefused, "%s answers with a redirect (HTTP %d), which is not followed: the operator should check the address",
			v.name, r.status).Because(cause)
	case r.good():
		return broker.Errorf(broker.CodeUpstreamError, "the answer of %s could not be understood (HTTP %d)", v.name, r.status).Because(cause)
	}
	return broker.Errorf(broker.CodeUpstreamRefused, "%s refused the request (HTTP %d)", v.name, r.status).Because(cause)
}

// doubtful are the statuses below 500 that pass by themselves, and after which something may have been done: time-outs,
// conflicts with another call, failed dependencies.
var doubtful = map[int]bool{http.StatusRequestTimeout: true, http.StatusConflict: true, http.StatusFailedDependency: true, http.StatusTooEarly: true}

// definite tells whether the vendor itself refused, so that nothing was done.
func (v vendor) definite(r reply) bool {
	return r.status >= 400 && r.status < 500 && !doubtful[r.status] && v.genuine(r)
}

// retryAfter reads the header's two forms, seconds and a date; zero if there is none.
func (v vendor) retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseFloat(text, 64); err == nil && seconds > 0 {
		return time.Duration(min(seconds, maxPause.Seconds()) * float64(time.Second))
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(0, at.Sub(v.clock())), maxPause)
	}
	return 0
}

// admin reads a secret of the broker's own, as it is now.
func (v vendor) admin(ref broker.Ref, field string) (string, error) {
	value, err := v.files.Own(ref)
	if err != nil {
		return "", unsent{broker.Errorf(broker.CodeUpstreamRefused, "the %s for %s cannot be read: the operator should check it", field, v.name).Because(err)}
	}
	if err := broker.CheckSecretValue(value.Reveal()); err != nil {
		return "", unsent{broker.Errorf(broker.CodeUpstreamRefused, "the %s for %s %v: the operator should check it", field, v.name, err)}
	}
	return value.Reveal(), nil
}

// ended is a Revocation as of now.
func (v vendor) ended(result broker.Result, lag time.Duration, basis string) broker.Revocation {
	return broker.Revocation{Result: result, EffectiveAt: v.clock().UTC().Add(lag), Basis: basis}
}

var errNoName = errors.New("the name is not 1-128 of A-Z a-z 0-9 . _ : @ -, and not only dots")
