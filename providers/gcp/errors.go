package gcp

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/googleapis/gax-go/v2/apierror"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/taskpass/taskpass/broker"
)

// throttlePause is what a caller is told to wait when Google says only that a quota is spent: quotas refill by the minute.
const throttlePause = 10 * time.Second

// notMinted adds broker.ErrNotMinted to an error's chain without adding to its text.
type notMinted struct{}

func (notMinted) Error() string { return "" }
func (notMinted) Unwrap() error { return broker.ErrNotMinted }

// nothing marks an error as proof that nothing was made.
func nothing(err error) error { return fmt.Errorf("%w%w", notMinted{}, err) }

// answer is what is kept of Google's: its code and reason. Never its message, which may name what is nobody's business.
type answer struct {
	code       codes.Code
	reason     string
	permission string
	retryAfter time.Duration
}

func (a answer) Error() string { return fmt.Sprintf("Google answered %s %s", a.code, a.reason) }

var (
	plainReason     = regexp.MustCompile(`^[A-Z0-9_]{1,64}$`)
	plainPermission = regexp.MustCompile(`^[a-z]+(\.[A-Za-z]+){1,3}$`)
)

// definite are the codes after which nothing was done.
var definite = []codes.Code{
	codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated,
	codes.FailedPrecondition, codes.ResourceExhausted, codes.Unimplemented,
}

func (a answer) definite() bool { return slices.Contains(definite, a.code) }

// disabled tells of an account that Google says is disabled. Google documents only that asking fails, so a
// precondition is taken for it too.
func (a answer) disabled() bool {
	return a.reason == "ACCOUNT_STATE_INVALID" || a.code == codes.FailedPrecondition
}

// unseen tells of what a fresh thing gives until it is seen everywhere.
func (a answer) unseen() bool { return a.code == codes.NotFound || a.code == codes.PermissionDenied }

func read(err error) answer {
	a := answer{code: status.Code(err)}
	if errors.Is(err, context.DeadlineExceeded) {
		a.code = codes.DeadlineExceeded
	}
	api, ok := apierror.FromError(err)
	if !ok {
		return a
	}
	if st := api.GRPCStatus(); st != nil {
		a.code = st.Code()
		for _, d := range st.Details() {
			if info, ok := d.(*errdetails.RetryInfo); ok {
				a.retryAfter = info.GetRetryDelay().AsDuration()
			}
		}
	}
	if plainReason.MatchString(api.Reason()) {
		a.reason = api.Reason()
	}
	if p := api.Metadata()["permission"]; plainPermission.MatchString(p) {
		a.permission = p
	}
	return a
}

// meaning says what an answer about an account means, and what the operator should change.
func (a answer) meaning(email string) *broker.Error {
	refused := func(format string, args ...any) *broker.Error {
		return broker.Errorf(broker.CodeUpstreamRefused, format, args...).Because(a)
	}
	switch {
	case a.code == codes.DeadlineExceeded || a.code == codes.Canceled:
		return broker.Errorf(broker.CodeUpstreamTimeout, "Google did not answer in time").Because(context.DeadlineExceeded)
	case a.code == codes.ResourceExhausted:
		e := broker.Errorf(broker.CodeUpstreamThrottled, "Google's quota for this project is spent for now").Because(a)
		if e.RetryAfter = throttlePause; a.retryAfter > 0 && a.retryAfter <= time.Hour {
			e.RetryAfter = a.retryAfter
		}
		return e
	case a.reason == "ACCOUNT_STATE_INVALID":
		return refused("the service account %s is disabled: the operator should enable it, or take it out of the profile", email)
	case a.reason == "SERVICE_DISABLED":
		return refused("the IAM APIs are not enabled in the broker's project: the operator should enable iam.googleapis.com and iamcredentials.googleapis.com")
	case a.code == codes.Unauthenticated:
		return refused("Google does not accept the broker's own credentials")
	case a.code == codes.PermissionDenied && a.permission != "":
		return refused("the broker's identity lacks %s on %s, or it does not exist: the operator should grant the role that docs/gcp.md names", a.permission, email)
	case a.code == codes.PermissionDenied:
		return refused("the broker's identity may not do this to %s: the operator should grant the roles that docs/gcp.md names, to each link of the delegates", email)
	case a.code == codes.NotFound:
		return refused("the service account %s does not exist, or cannot be seen yet", email)
	case a.code == codes.InvalidArgument:
		return refused("Google refuses the request's form; most often the TTL is over an hour and the organization's policy " +
			"iam.allowServiceAccountCredentialLifetimeExtension does not list the account, or an OAuth scope is unknown")
	case a.code == codes.FailedPrecondition:
		return refused("the service account %s is not in a state for this: the operator should look whether it is disabled, or an organization policy forbids it", email)
	case a.definite():
		return refused("Google refused the request")
	case a.code == codes.Unavailable:
		return broker.Errorf(broker.CodeUpstreamError, "Google could not be reached, or its answer could not be read").Because(a)
	}
	return broker.Errorf(broker.CodeUpstreamError, "Google failed").Because(a)
}

// mintError says what a failed mint means: for the caller, and for the ledger.
func mintError(err error, sent bool, email string) error {
	a := read(err)
	if sent && !a.definite() {
		return a.meaning(email)
	}
	return nothing(a.meaning(email))
}
