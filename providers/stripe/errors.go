package stripe

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	sdk "github.com/stripe/stripe-go/v76"

	"github.com/taskpass/taskpass/broker"
)

// throttlePause is what a caller is told to wait: Stripe counts calls by the second, and does not say more.
const throttlePause = 2 * time.Second

// notMinted adds broker.ErrNotMinted to an error's chain without adding to its text.
type notMinted struct{}

func (notMinted) Error() string { return "" }
func (notMinted) Unwrap() error { return broker.ErrNotMinted }

// surely says that nothing was made.
func surely(err error) error { return fmt.Errorf("%w%w", notMinted{}, err) }

// failure is what is kept of a call that did not succeed: never Stripe's message, which bears the tail of the key (P7).
type failure struct {
	sent       bool // some of the request was written to the wire
	status     int  // zero: no answer
	unread     bool // there was an answer, which broke off or cannot be understood
	code       string
	idempotent bool   // refused because its Idempotency-Key was used for another request
	permission string // what a 403 says is lacking, if it is a permission that is known here
	dead       bool   // a 401 for a key that is expired or not known, and not for the caller's address
	requestID  string
	action     string
	late       bool // the context ended
}

// Error is for the log.
func (f *failure) Error() string { return f.Answer().Error() }

// Answer is what the log has of it.
func (f *failure) Answer() broker.VendorAnswer {
	return broker.VendorAnswer{Vendor: "Stripe", Action: f.action, Status: f.status, Code: f.code, RequestID: f.requestID}
}

// notOf is f, or, where a call succeeded with an answer that is not the one to it, a failure that says so.
func notOf(f *failure, action string, itIs bool) *failure {
	if f != nil || itIs {
		return f
	}
	return &failure{sent: true, status: http.StatusOK, unread: true, action: action}
}

var permissionName = regexp.MustCompile(`\b(?:rak_)?([a-z_]+_(?:read|write))\b`)

// failure reads what became of a call; nil: it succeeded.
func (x *exchange) failure(ctx context.Context, err error) *failure {
	if err == nil {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	f := &failure{sent: x.sent, status: x.status, requestID: x.id, action: x.action, late: ctx.Err() != nil}
	answer, ok := errors.AsType[*sdk.Error](err)
	if !ok {
		f.unread = f.status != 0
		return f
	}
	f.idempotent = answer.Type == sdk.ErrorTypeIdempotency
	if code := string(answer.Code); plain(code) {
		f.code = code
	}
	switch f.status {
	case http.StatusForbidden:
		if found := permissionName.FindStringSubmatch(answer.Msg); found != nil && slices.Contains(knownPermissions, found[1]) {
			f.permission = found[1]
		}
	case http.StatusUnauthorized:
		// A key that was deleted has no code; neither has a caller's address that is not let in. The text tells them apart,
		// and is never repeated.
		f.dead = f.code == "api_key_expired" || f.code == "" && strings.HasPrefix(answer.Msg, "Invalid API Key provided")
	}
	return f
}

// refused tells whether Stripe said a definite no, so that nothing was done by this call or by one before it of the same
// Idempotency-Key. An error without Stripe's form may be a proxy's.
func (f *failure) refused() bool {
	return !f.unread && !f.idempotent && f.status >= 400 && f.status < 500 && !doubtful[f.status] && !rows[f.code].doubt
}

// meaning is what a caller is told of a failed call that was made with the broker's own key: by Stripe's code, or by the
// status where that says nothing.
func (f *failure) meaning() *broker.Error {
	row, named := rows[f.code]
	switch {
	case f.status == 0 && f.late || f.unread && f.late:
		return broker.Errorf(broker.CodeUpstreamTimeout, "Stripe did not answer in time").Because(f)
	case f.status == 0 || f.unread && f.status < 400:
		return broker.Errorf(broker.CodeUpstreamError, "Stripe could not be reached, or its answer could not be read").Because(f)
	case f.status == http.StatusTooManyRequests:
		return throttled(f)
	case f.unread:
		return broker.Errorf(broker.CodeUpstreamError, "what answered for Stripe (HTTP %d) has not the form of Stripe's answers: "+
			"the operator should check proxies and gateways on the way, and endpoint", f.status).Because(f)
	case named && row.code == broker.CodeUpstreamThrottled:
		return throttled(f)
	case named:
		return broker.Errorf(row.code, "%s", row.says).Because(f)
	case f.status == http.StatusUnauthorized:
		return refusedBy(f, saysKey)
	case f.status == http.StatusForbidden && f.permission != "":
		return refusedBy(f, "the broker's own Stripe key lacks the permission %s", f.permission)
	case f.status == http.StatusForbidden:
		return refusedBy(f, saysRight)
	case !f.refused():
		return broker.Errorf(broker.CodeUpstreamError, "Stripe failed (HTTP %d)", f.status).Because(f)
	}
	return refusedBy(f, "Stripe refused the request")
}

func throttled(f *failure) *broker.Error {
	e := broker.Errorf(broker.CodeUpstreamThrottled, "Stripe is throttling this account").Because(f)
	e.RetryAfter = throttlePause
	return e
}

func refusedBy(f *failure, format string, args ...any) *broker.Error {
	return broker.Errorf(broker.CodeUpstreamRefused, format, args...).Because(f)
}

func refusedUnsent(format string, args ...any) *broker.Error {
	return broker.Errorf(broker.CodeUpstreamRefused, format, args...)
}

// mint is what a failed creation means for the ledger, too: with a definite no, or with nothing sent, nothing was made.
func (f *failure) mint(e *broker.Error) error {
	if !f.sent && f.status == 0 || f.refused() {
		return surely(e)
	}
	return e
}
