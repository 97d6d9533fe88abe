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
	late       bool // the context ended
}

// Error is for the log.
func (f *failure) Error() string {
	switch {
	case f.status == 0 && !f.sent:
		return "nothing was sent to Stripe"
	case f.status == 0:
		return "no answer from Stripe"
	case f.unread:
		return fmt.Sprintf("an answer of Stripe's that cannot be read (%d, request %s)", f.status, f.requestID)
	}
	code := f.code
	if code == "" {
		code = "without a code"
	}
	return fmt.Sprintf("Stripe answered %d %s (request %s)", f.status, code, f.requestID)
}

var permissionName = regexp.MustCompile(`\b(?:rak_)?([a-z_]+_(?:read|write))\b`)

// failure reads what became of a call; nil: it succeeded.
func (x *exchange) failure(ctx context.Context, err error) *failure {
	if err == nil {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	f := &failure{sent: x.sent, status: x.status, requestID: x.id, late: ctx.Err() != nil}
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
// Idempotency-Key.
func (f *failure) refused() bool {
	return f.status >= 400 && f.status < 500 && f.status != http.StatusRequestTimeout && f.status != http.StatusConflict && !f.idempotent
}

// meaning is what a caller is told of a failed call that was made with the broker's own key.
func (f *failure) meaning() *broker.Error {
	switch {
	case f.status == 0 && f.late || f.unread && f.late:
		return broker.Errorf(broker.CodeUpstreamTimeout, "Stripe did not answer in time").Because(f)
	case f.status == 0 || f.unread:
		return broker.Errorf(broker.CodeUpstreamError, "Stripe could not be reached, or its answer could not be read").Because(f)
	case f.status == http.StatusTooManyRequests:
		e := broker.Errorf(broker.CodeUpstreamThrottled, "Stripe is throttling this account").Because(f)
		e.RetryAfter = throttlePause
		return e
	case f.status == http.StatusUnauthorized:
		return refusedBy(f, "Stripe does not accept the broker's own key: the operator should check secret_key, whether it has expired, and its list of allowed addresses")
	case f.status == http.StatusForbidden && f.permission != "":
		return refusedBy(f, "the broker's own Stripe key lacks the permission %s", f.permission)
	case f.status == http.StatusForbidden:
		return refusedBy(f, "the broker's own Stripe key may not do this: the operator should check its permissions and the account")
	case f.status >= 500, f.status < 400, !f.refused():
		return broker.Errorf(broker.CodeUpstreamError, "Stripe failed").Because(f)
	}
	return refusedBy(f, "Stripe refused the request")
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
