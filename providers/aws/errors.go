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

// readReplyOf finds AWS's answer in an error of the SDK. Without an answer there is still the call's name.
func readReplyOf(err error) (r reply, answered bool) {
	if response, ok := errors.AsType[*awshttp.ResponseError](err); ok && response.Response != nil && response.Response.Request != nil {
		if r, ok = response.Response.Request.Context().Value(replyKey{}).(reply); ok {
			return r, true
		}
	}
	if r, ok := errors.AsType[reply](err); ok {
		return r, true
	}
	if u, ok := errors.AsType[unanswered](err); ok {
		return reply{VendorAnswer: u.VendorAnswer}, false
	}
	return reply{VendorAnswer: broker.VendorAnswer{Vendor: "AWS", Action: operationOf(err)}}, false
}

// operationOf is the call that an error of the SDK belongs to.
func operationOf(err error) string {
	if op, ok := errors.AsType[*smithy.OperationError](err); ok {
		return op.Operation()
	}
	return ""
}

// plain tells whether a field of an answer has the form of a code or an id, so that it may be logged.
func plain(s string) bool { return broker.ValidID(s) && len(s) <= 64 }

// asksWho tells whether AWS refused because of who asks, with no code that says more. Whose fault that is depends on the
// call: a role's trust policy, or the identity's own rights.
func (r reply) asksWho() bool {
	_, named := r.row()
	return r.genuine && !named && (r.Status == 401 || r.Status == 403 || r.denied())
}

func (r reply) denied() bool {
	return r.Code == "AccessDenied" || r.Code == "AccessDeniedException" || r.Code == "NotAuthorized"
}

// definite tells whether AWS itself refused, so that nothing was done.
func (r reply) definite() bool {
	row, _ := r.row()
	return r.genuine && r.Status >= 400 && r.Status < 500 && r.Status != 408 && !row.doubt
}

// mintError says what a failed AssumeRole means: for the caller, and for the ledger.
func (p *Provider) mintError(ctx context.Context, err error, sent bool) error {
	e := vendorMeaning(err, p.cfg.RoleARN)
	r, answered := readReplyOf(err)
	switch {
	case answered && r.asksWho():
		who := p.own.identity(ctx)
		if who == "" {
			who = "the broker's identity"
		}
		e = refused(r, "the role %s does not trust %s: the operator should check its trust policy (sts:AssumeRole%s%s%s) and that this identity may call these itself",
			p.cfg.RoleARN, who, when(len(p.cfg.Tags) > 0, ", sts:TagSession"), when(p.cfg.SourceIdentity, ", sts:SetSourceIdentity"),
			when(p.cfg.ExternalID != "", "; the external id"))
	case strings.HasPrefix(r.Code, "Validation") && saysChained(err):
		e = tooLongForChain().Because(r.VendorAnswer)
	case strings.HasPrefix(r.Code, "Validation") && saysTooLong(err):
		e = tooLong("the TTL exceeds the maximum session duration of the role " + p.cfg.RoleARN +
			": ask for less; the operator should raise it, or lower the profile's ttl.max").Because(r.VendorAnswer)
	}
	// A definite refusal, or nothing sent: nothing was minted. All else may have been.
	if !sent || answered && r.definite() {
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

// saysNoKeys is STS's wording where it could not reach the identity provider: a code of its own says so only sometimes.
func saysNoKeys(err error) bool { return says(err, "retrieve verification key") }

func says(err error, part string) bool {
	api, ok := errors.AsType[smithy.APIError](err)
	return ok && strings.Contains(api.ErrorMessage(), part)
}

// vendorMeaning maps an answer of STS or IAM to our codes: by the table of codes, or by the status where the code is not in
// it or there is none.
func vendorMeaning(err error, role string) *broker.Error {
	r, answered := readReplyOf(err)
	unread := !answered || r.Status < 300 && r.genuine // also a good answer that the SDK could not read
	switch {
	case unread && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)):
		return broker.Errorf(broker.CodeUpstreamTimeout, "AWS did not answer in time").Because(errors.Join(context.DeadlineExceeded, r.VendorAnswer))
	case unread:
		return broker.Errorf(broker.CodeUpstreamError, "AWS could not be reached, or its answer could not be read").Because(r.VendorAnswer)
	case r.Code == "InvalidIdentityToken" && saysNoKeys(err):
		return rows["IDPCommunicationError"].meaning(r, role)
	}
	if row, ok := r.row(); ok {
		return row.meaning(r, role)
	}
	switch {
	case r.Status == 429:
		return rows["Throttling"].meaning(r, role)
	case r.Status == 408 || r.Status >= 500:
		return broker.Errorf(broker.CodeUpstreamError, "AWS failed (HTTP %d)", r.Status).Because(r.VendorAnswer)
	case !r.genuine:
		return broker.Errorf(broker.CodeUpstreamError, "what answered for AWS (HTTP %d) has not the form of AWS's answers: "+
			"the operator should check proxies and gateways on the way, and endpoint", r.Status).Because(r.VendorAnswer)
	case r.Status == 404:
		return rows["NoSuchEntity"].meaning(r, role)
	case r.Status == 401 || r.Status == 403 || r.denied():
		return refused(r, "the broker's identity may not look after the policies of the role %s: the operator should check its permissions", role)
	}
	return refused(r, "AWS refused the request")
}

func refused(r reply, format string, args ...any) *broker.Error {
	return broker.Errorf(broker.CodeUpstreamRefused, format, args...).Because(r.VendorAnswer)
}
