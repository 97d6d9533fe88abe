package resolve

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/taskpass/taskpass/broker"
)

const (
	throttlePause = 2 * time.Second // when a store says only that it is too much
	maxPause      = time.Hour
)

// wire is how stores are reached.
type wire struct {
	client *http.Client
	given  bool // the client is the caller's
	clock  func() time.Time
}

func newWire(client *http.Client, clock func() time.Time) wire {
	own := http.Client{Transport: http.DefaultTransport}
	if client != nil {
		own = *client
	}
	own.Timeout = 0
	// A token must not follow where a store points: net/http would take X-Vault-Token along to any host.
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if clock == nil {
		clock = time.Now
	}
	return wire{&own, client != nil, clock}
}

// reply is a store's answer. Its body may hold a secret and must go nowhere.
type reply struct {
	broker.VendorAnswer
	genuine bool // a refusal has the form of the store's: something in between did not write it
	header  http.Header
	body    []byte
}

// get reads one answer whole. An error means that there was none: net/http's own text is not kept, for it may quote what
// came back. The call is what the log calls it.
func (w wire) get(ctx context.Context, call broker.VendorAnswer, address string, header http.Header) (reply, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return reply{}, broker.Errorf(broker.CodeUpstreamRefused, "no request to %s can be made of this reference", call.Vendor)
	}
	r.Header = header
	got, err := w.client.Do(r)
	if err != nil {
		return reply{}, unread(ctx, call)
	}
	defer got.Body.Close()
	call.Status = got.StatusCode
	text, err := io.ReadAll(io.LimitReader(got.Body, maxReply+1))
	if err != nil || len(text) > maxReply {
		return reply{}, unread(ctx, call)
	}
	return reply{call, false, got.Header, text}, nil
}

func unread(ctx context.Context, a broker.VendorAnswer) error {
	if err := ctx.Err(); err != nil {
		return broker.Errorf(broker.CodeUpstreamTimeout, "%s did not answer in time", a.Vendor).Because(errors.Join(err, a))
	}
	return broker.Errorf(broker.CodeUpstreamError, "%s could not be reached, or its answer could not be read", a.Vendor).Because(a)
}

// meaning says what an answer means that is not the one that was asked for. look is what the operator should check when the
// store does not let us in.
func (w wire) meaning(look string, r reply) *broker.Error {
	return w.means(r.Vendor, look, r.Status, r.genuine, r.header).Because(r.VendorAnswer)
}

func (w wire) means(store, look string, status int, genuine bool, header http.Header) *broker.Error {
	switch {
	case status >= 400 && status < 500 && status != http.StatusRequestTimeout && status != http.StatusTooManyRequests && !genuine:
		return broker.Errorf(broker.CodeUpstreamError, "what answered for %s (HTTP %d) has not the form of its answers: "+
			"the operator should check proxies and gateways on the way, and the address", store, status)
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return broker.Errorf(broker.CodeUpstreamRefused, "%s refuses the broker (HTTP %d): the operator should check %s", store, status, look)
	case status == http.StatusNotFound:
		return broker.Errorf(broker.CodeUpstreamRefused, "%s has no such secret, or none that may be read: the operator should check the reference", store)
	case status == http.StatusTooManyRequests:
		e := broker.Errorf(broker.CodeUpstreamThrottled, "%s is throttling the broker", store)
		if e.RetryAfter = w.retryAfter(header); e.RetryAfter == 0 {
			e.RetryAfter = throttlePause
		}
		return e
	case status >= 500 || status == http.StatusRequestTimeout:
		e := broker.Errorf(broker.CodeUpstreamError, "%s failed (HTTP %d)", store, status)
		e.RetryAfter = w.retryAfter(header)
		return e
	case status >= 300 && status < 400:
		return broker.Errorf(broker.CodeUpstreamRefused, "%s answers with a redirect (HTTP %d), which is not followed: the operator should name the address that it points to", store, status)
	case status >= 400:
		return broker.Errorf(broker.CodeUpstreamRefused, "%s refused the request (HTTP %d)", store, status)
	}
	return broker.Errorf(broker.CodeUpstreamError, "the answer of %s could not be understood (HTTP %d)", store, status)
}

// retryAfter reads the header's two forms, seconds and a date; zero if there is none.
func (w wire) retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.Atoi(text); err == nil && seconds > 0 {
		return min(time.Duration(min(seconds, 1<<20))*time.Second, maxPause)
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(0, at.Sub(w.clock())), maxPause)
	}
	return 0
}

// member takes one member of a JSON object: a string. encoding/json's own errors are not kept, for they may quote it.
func member(text []byte, field string) (string, error) {
	var object map[string]json.RawMessage
	if json.Unmarshal(text, &object) != nil || object == nil {
		return "", errors.New("is not a JSON object, and the reference names a field")
	}
	raw, ok := object[field]
	if !ok {
		return "", errors.New("has no such field")
	}
	var value *string
	if json.Unmarshal(raw, &value) != nil || value == nil {
		return "", errors.New("has a field of that name which is no string")
	}
	return *value, nil
}
