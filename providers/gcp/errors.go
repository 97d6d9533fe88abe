package gcp

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
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
	method     string
	code       codes.Code
	reason     string
	permission string
	requestID  string // few of Google's answers have one
	foreign    bool   // what answered is not Google
	cut        bool   // the answer was not read to its end
	retryAfter time.Duration
}

func (a answer) Error() string { return a.Answer().Error() }

// Answer is what the log has of it. Google's status is the code, which its reason says more of.
func (a answer) Answer() broker.VendorAnswer {
	v := broker.VendorAnswer{Vendor: "Google", Action: a.method, Code: a.code.String(), RequestID: a.requestID}
	if a.reason != "" {
		v.Code += "/" + a.reason
	}
	return v
}

var (
	plainReason     = regexp.MustCompile(`^[A-Z0-9_]{1,64}$`)
	plainPermission = regexp.MustCompile(`^[a-z]+(\.[A-Za-z]+){1,3}$`)
)

// definite are the codes after which nothing was done.
var definite = []codes.Code{
	codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated,
	codes.FailedPrecondition, codes.ResourceExhausted, codes.Unimplemented,
}

func (a answer) definite() bool { return slices.Contains(definite, a.code) && !a.foreign && !a.cut }

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
	if rpc, ok := errors.AsType[*rpcError](err); ok {
		a.method, a.foreign, a.cut = rpc.method, rpc.foreign, rpc.cut
	}
	api, ok := apierror.FromError(err)
	if !ok {
		return a
	}
	if st := api.GRPCStatus(); st != nil {
		a.code = st.Code()
		for _, d := range st.Details() {
			switch info := d.(type) {
			case *errdetails.RetryInfo:
				a.retryAfter = info.GetRetryDelay().AsDuration()
			case *errdetails.RequestInfo:
				if id := info.GetRequestId(); broker.ValidID(id) && len(id) <= 64 {
					a.requestID = id
				}
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

// meaning says what an answer about an account means, and what the operator should change: by its reason, where the table
// has it, or by its code.
func (a answer) meaning(email string) *broker.Error {
	switch {
	case a.code == codes.DeadlineExceeded || a.code == codes.Canceled:
		return broker.Errorf(broker.CodeUpstreamTimeout, "Google did not answer in time").Because(errors.Join(context.DeadlineExceeded, a))
	case a.foreign:
		return broker.Errorf(broker.CodeUpstreamError, "what answered for Google does not speak gRPC: the operator should check proxies and gateways on the way, and endpoints").Because(a)
	case a.cut:
		return broker.Errorf(broker.CodeUpstreamError, "Google's answer could not be read to its end").Because(a)
	case a.code == codes.PermissionDenied && a.permission != "" && (a.reason == "" || a.reason == "IAM_PERMISSION_DENIED"):
		return broker.Errorf(broker.CodeUpstreamRefused, "the broker's identity lacks %s on %s, or it does not exist: "+
			"the operator should grant the role that docs/gcp.md names", a.permission, email).Because(a)
	}
	w, ok := reasons[a.reason]
	if !ok {
		if w, ok = statuses[a.code]; !ok {
			w = row{broker.CodeUpstreamError, "Google failed"}
		}
	}
	e := broker.Errorf(w.code, "%s", strings.ReplaceAll(w.says, "{account}", email)).Because(a)
	if w.code == broker.CodeUpstreamThrottled {
		if e.RetryAfter = throttlePause; a.retryAfter > 0 && a.retryAfter <= time.Hour {
			e.RetryAfter = a.retryAfter
		}
	}
	return e
}

// mintError says what a failed mint means: for the caller, and for the ledger.
func mintError(err error, sent bool, email string) error {
	a := read(err)
	if sent && !a.definite() {
		return a.meaning(email)
	}
	return nothing(a.meaning(email))
}
