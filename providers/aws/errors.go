package aws

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/taskpass/taskpass/broker"
)

// throttlePause is what a caller is told to wait when AWS says only that the rate was exceeded: its quotas refill by the
// second.
const throttlePause = 2 * time.Second

// notMinted adds broker.ErrNotMinted to an error's chain without adding to its text.
type notMinted struct{}

func (notMinted) Error() string { return "" }
func (notMinted) Unwrap() error { return broker.ErrNotMinted }

// watchSending tells afterwards whether any of a request was written to the wire. What was never sent was never minted.
func watchSending(ctx context.Context) (context.Context, func() bool) {
	var sent atomic.Bool
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaderField: func(string, []string) { sent.Store(true) },
	}), sent.Load
}

// vendorError is what is kept of AWS's answer: its code, status and request id. Never its message, which may quote the
// policy, an account's names, or whatever a proxy put there (P7).
type vendorError struct {
	code      string
	status    int
	requestID string
}

func (e vendorError) Error() string {
	return fmt.Sprintf("AWS answered %d %s (request %s)", e.status, e.code, e.requestID)
}

func readVendorError(err error) (vendorError, bool) {
	v := vendorError{code: "without a code"}
	if api, ok := errors.AsType[smithy.APIError](err); ok && plain(api.ErrorCode()) {
		v.code = api.ErrorCode()
	}
	if response, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		v.status = response.HTTPStatusCode()
		if plain(response.RequestID) {
			v.requestID = response.RequestID
		}
		return v, true
	}
	return v, false
}

// plain tells whether a field of an answer has the form of a code or an id, so that it may be logged.
func plain(s string) bool { return broker.ValidID(s) && len(s) <= 64 }

// mintError says what a failed AssumeRole means: for the caller, and for the ledger.
func (p *Provider) mintError(ctx context.Context, err error, sent bool) error {
	e := vendorMeaning(err, p.cfg.RoleARN)
	v, answered := readVendorError(err)
	switch {
	case answered && named(v, p.cfg.RoleARN) == nil && (v.status == 401 || v.status == 403):
		who := p.own.identity(ctx)
		if who == "" {
			who = "the broker's identity"
		}
		e = broker.Errorf(broker.CodeUpstreamRefused, "the role %s does not trust %s: the operator should check its trust policy (sts:AssumeRole%s%s%s) and that this identity may call these itself",
			p.cfg.RoleARN, who, when(len(p.cfg.Tags) > 0, ", sts:TagSession"), when(p.cfg.SourceIdentity, ", sts:SetSourceIdentity"),
			when(p.cfg.ExternalID != "", "; the external id")).Because(v)
	case v.code == "ValidationError" && saysChained(err):
		e = tooLongForChain().Because(v)
	case v.code == "ValidationError" && saysTooLong(err):
		e = tooLong("the TTL exceeds the maximum session duration of the role " + p.cfg.RoleARN +
			": ask for less; the operator should raise it, or lower the profile's ttl.max").Because(v)
	}
	// A definite refusal, or nothing sent: nothing was minted. All else may have been.
	if !sent || answered && v.status >= 400 && v.status < 500 {
		return fmt.Errorf("%w%w", notMinted{}, e)
	}
	return e
}

func when(yes bool, text string) string {
	if yes {
		return text
	}
	return ""
}

// STS has one code for whatever is wrong with a request. Its text is a hint only, never repeated: without it the answer is
// the less exact one.
func saysChained(err error) bool { return says(err, "role chaining") }
func saysTooLong(err error) bool { return says(err, "MaxSessionDuration") }

func says(err error, part string) bool {
	api, ok := errors.AsType[smithy.APIError](err)
	return ok && strings.Contains(api.ErrorMessage(), part)
}

// vendorMeaning maps an answer of STS or IAM to our codes. Servers that give no code are told by their status.
func vendorMeaning(err error, role string) *broker.Error {
	v, answered := readVendorError(err)
	unread := !answered || v.status < 400 // also a good answer that broke off on the way
	switch {
	case unread && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)):
		return broker.Errorf(broker.CodeUpstreamTimeout, "AWS did not answer in time").Because(context.DeadlineExceeded)
	case unread:
		return broker.Errorf(broker.CodeUpstreamError, "AWS could not be reached, or its answer could not be read").Because(errUnread)
	}
	if e := named(v, role); e != nil {
		return e
	}
	switch {
	case v.status == 429:
		return throttled(v)
	case v.status == 404:
		return refused(v, "the role %s, or a policy of it, does not exist", role)
	case v.status == 401 || v.status == 403:
		return refused(v, "the broker's identity may not look after the policies of the role %s: the operator should check its permissions", role)
	case v.status >= 500:
		return broker.Errorf(broker.CodeUpstreamError, "AWS failed").Because(v)
	}
	return refused(v, "AWS refused the request")
}

func refused(v vendorError, format string, args ...any) *broker.Error {
	return broker.Errorf(broker.CodeUpstreamRefused, format, args...).Because(v)
}

// named says what the codes mean that say enough by themselves; nil for all others.
func named(v vendorError, role string) *broker.Error {
	switch v.code {
	case "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException":
		return throttled(v)
	case "MalformedPolicyDocument", "MalformedPolicyDocumentException":
		return refused(v, "AWS finds the session policy malformed: the operator should check the statements of these scopes")
	case "PackedPolicyTooLarge", "PackedPolicyTooLargeException":
		return refused(v, "the session policy and tags together are too large for AWS: ask for fewer scopes, or have the operator shorten tags")
	case "RegionDisabled", "RegionDisabledException":
		return refused(v, "STS is not active in this profile's region: the operator should activate it or choose another")
	case "ExpiredToken", "ExpiredTokenException":
		return refused(v, "the broker's own AWS credentials have expired: the operator should renew them")
	case "InvalidIdentityToken", "InvalidIdentityTokenException", "IDPRejectedClaim", "IDPRejectedClaimException":
		return refused(v, "AWS does not accept the broker's web identity: the operator should check its token file and the trust policy of its role")
	case "InvalidClientTokenId", "SignatureDoesNotMatch", "UnrecognizedClientException":
		return refused(v, "AWS does not accept the broker's own credentials: the operator should check them, and this machine's clock")
	case "ValidationError":
		return refused(v, "AWS refuses the request's form: the operator should check the role's maximum session duration, and the tags")
	case "LimitExceeded", "LimitExceededException":
		return refused(v, "the role's deny policies are full")
	case "NoSuchEntity", "NoSuchEntityException":
		return refused(v, "the role %s, or a policy of it, does not exist", role)
	}
	return nil
}

func throttled(v vendorError) *broker.Error {
	e := broker.Errorf(broker.CodeUpstreamThrottled, "AWS is throttling this account and region").Because(v)
	e.RetryAfter = throttlePause
	return e
}

var errUnread = errors.New("no readable answer")
