package aws_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/providertest"
)

// What AWS's published codes mean, each in a mint and in a write.
func TestPublishedCodes(t *testing.T) {
	t.Parallel()
	const throttled, refused, failed = broker.CodeUpstreamThrottled, broker.CodeUpstreamRefused, broker.CodeUpstreamError
	for _, c := range []struct {
		status  int
		code    string
		want    broker.Code
		nothing bool
		says    string
	}{
		{400, "Throttling", throttled, surelyNot, "throttling"},
		{400, "ThrottlingException", throttled, surelyNot, "throttling"},
		{403, "Throttling", throttled, surelyNot, "throttling"},
		{400, "RequestThrottled", throttled, surelyNot, "throttling"},
		{429, "RequestThrottledException", throttled, surelyNot, "throttling"},
		{429, "TooManyRequestsException", throttled, surelyNot, "throttling"},
		{503, "RequestLimitExceeded", throttled, inDoubt, "throttling"},
		{503, "SlowDown", throttled, inDoubt, "throttling"},
		{503, "BandwidthLimitExceeded", throttled, inDoubt, "throttling"},

		{408, "RequestTimeoutException", failed, inDoubt, "in time"},
		{400, "RequestTimeout", failed, inDoubt, "in time"},
		{400, "RequestAbortedException", failed, inDoubt, "in time"},
		{400, "IncompleteBody", failed, inDoubt, "in time"},
		{408, "SomethingNew", failed, inDoubt, "408"},
		{500, "InternalFailure", failed, inDoubt, ""},
		{500, "ServiceFailure", failed, inDoubt, ""},
		{400, "InternalError", failed, inDoubt, ""},
		{503, "ServiceUnavailable", failed, inDoubt, ""},
		{409, "ConcurrentModification", failed, surelyNot, "somebody else"},
		{409, "ConcurrentModificationException", failed, surelyNot, "somebody else"},
		{409, "EntityTemporarilyUnmodifiable", failed, surelyNot, "somebody else"},
		{400, "IDPCommunicationError", failed, surelyNot, "identity provider"},
		{400, "IDPCommunicationErrorException", failed, surelyNot, "identity provider"},
		{400, "OpenIdIdpCommunicationError", failed, surelyNot, "identity provider"},

		{403, "RequestTimeTooSkewed", refused, surelyNot, "clock"},
		{400, "RequestExpired", refused, surelyNot, "clock"},
		{403, "SignatureDoesNotMatch", refused, surelyNot, "credentials"},
		{403, "IncompleteSignature", refused, surelyNot, "credentials"},
		{403, "InvalidClientTokenId", refused, surelyNot, "credentials"},
		{403, "InvalidAccessKeyId", refused, surelyNot, "credentials"},
		{403, "UnrecognizedClientException", refused, surelyNot, "credentials"},
		{403, "MissingAuthenticationToken", refused, surelyNot, "credentials"},
		{403, "ExpiredTokenException", refused, surelyNot, "expired"},
		{403, "OptInRequired", refused, surelyNot, "account"},
		{403, "IDPRejectedClaim", refused, surelyNot, "web identity"},
		{400, "InvalidIdentityToken", refused, surelyNot, "web identity"},
		{400, "ValidationError", refused, surelyNot, "form"},
		{400, "ValidationException", refused, surelyNot, "form"},
		{400, "InvalidInput", refused, surelyNot, "form"},
		{400, "InvalidParameterValue", refused, surelyNot, "form"},
		{400, "InvalidParameterCombination", refused, surelyNot, "form"},
		{400, "MissingParameter", refused, surelyNot, "form"},
		{404, "MalformedQueryString", refused, surelyNot, "form"},
		{413, "RequestEntityTooLargeException", refused, surelyNot, "form"},
		{400, "InvalidAction", refused, surelyNot, "endpoint"},
		{404, "UnknownOperationException", refused, surelyNot, "endpoint"},
		{400, "MalformedPolicyDocument", refused, surelyNot, "statements"},
		{400, "PackedPolicyTooLarge", refused, surelyNot, "fewer scopes"},
		{403, "RegionDisabledException", refused, surelyNot, "region"},
		{400, "UnmodifiableEntity", refused, surelyNot, "service's own"},
		{404, "NoSuchEntity", refused, surelyNot, "does not exist"},
		{403, "AccessDenied", refused, surelyNot, "trust policy"},
		{400, "AccessDeniedException", refused, surelyNot, "trust policy"},
		{401, "NotAuthorized", refused, surelyNot, "trust policy"},
		{418, "SomethingNew", refused, surelyNot, "refused"},
	} {
		w := newWire(t)
		w.answers(refusal(c.status, c.code))
		_, err := w.provider(t).Mint(t.Context(), w.request("read"))
		e := broker.AsError(err)
		if e.Code != c.want || errors.Is(err, broker.ErrNotMinted) != c.nothing || !strings.Contains(e.Message, c.says) {
			t.Errorf("%d %s: %v, surely nothing: %t; want %s, to be told of %q, %t",
				c.status, c.code, e, errors.Is(err, broker.ErrNotMinted), c.want, c.says, c.nothing)
		}
		wantAnswer(t, err, broker.VendorAnswer{
			Vendor: "AWS", Action: "AssumeRole", Status: c.status, Code: c.code, RequestID: "11111111-2222-3333-4444-555555555555",
		})
		p := open(t, w.config(t), list{"abcdefghijklmnop"}, w.clock.Now)
		_, err = p.Revoke(t.Context(), w.request("read"))
		if e := broker.AsError(err); c.says != "trust policy" && e.Code != c.want {
			t.Errorf("%d %s, to a write: %v; want %s", c.status, c.code, e, c.want)
		}
		wantAnswer(t, err, broker.VendorAnswer{
			Vendor: "AWS", Action: "GetRole", Status: c.status, Code: c.code, RequestID: "11111111-2222-3333-4444-555555555555",
		})
	}
}

func wantAnswer(t *testing.T, err error, want broker.VendorAnswer) {
	t.Helper()
	if got := broker.VendorAnswers(err); len(got) == 0 || got[0] != want {
		t.Errorf("the log would have %v; want %v", got, want)
	}
}

func (w *wire) config(t testing.TB) aws.Config { return config(t, w.url) }

// What keeps STS from asking the identity provider passes by itself; a role that does not trust the token does not.
func TestWebIdentityCodes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		want   broker.Code
		says   string
	}{
		{"communication error", refusal(400, "IDPCommunicationError"), broker.CodeUpstreamError, "identity provider"},
		{"no verification key", body(400, `<ErrorResponse><Error><Code>InvalidIdentityToken</Code><Message>Couldn't retrieve verification key from your identity provider, `+
			`please reference AssumeRoleWithWebIdentity documentation for requirements</Message></Error><RequestId>r</RequestId></ErrorResponse>`), broker.CodeUpstreamError, "identity provider"},
		{"a bad token", refusal(400, "InvalidIdentityToken"), broker.CodeUpstreamRefused, "token file"},
		{"a rejected claim", refusal(403, "IDPRejectedClaim"), broker.CodeUpstreamRefused, "token file"},
		{"no trust", refusal(403, "AccessDenied"), broker.CodeUpstreamRefused, "trust policy"},
		{"a proxy's page", body(403, "<html><h1>403</h1></html>"), broker.CodeUpstreamError, "proxies"},
		{"a proxy's time-out", body(408, "<html><h1>408</h1></html>"), broker.CodeUpstreamError, "408"},
		{"a login page", body(200, "<html><body>Welcome</body></html>"), broker.CodeUpstreamError, "form"},
		{"no end", body(200, webBody(strings.Replace(grantedBody, "<Expiration>2026-03-03T10:26:12Z</Expiration>", "", 1))), broker.CodeUpstreamError, "form"},
		{"no secret key", body(200, webBody(strings.Replace(grantedBody, "<SecretAccessKey>secret</SecretAccessKey>", "", 1))), broker.CodeUpstreamError, "form"},
		{"slow down", refusal(503, "SlowDown"), broker.CodeUpstreamThrottled, "throttling"},
		{"a clock that is wrong", refusal(403, "RequestTimeTooSkewed"), broker.CodeUpstreamRefused, "clock"},
	} {
		w := newWire(t)
		w.answers(c.answer)
		token := strings.TrimPrefix(string(providertest.SecretFile(t, "token")), "file:")
		p := w.provider(t, func(cfg *aws.Config) {
			cfg.AccessKeyID, cfg.SecretAccessKey = "", ""
			cfg.WebIdentity = &aws.WebIdentity{RoleARN: "arn:aws:iam::123456789012:role/broker", TokenFile: filepath.Clean(token)}
		})
		_, err := p.Mint(t.Context(), w.request("read"))
		if e := broker.AsError(err); e.Code != c.want || !strings.Contains(e.Message, c.says) || !errors.Is(err, broker.ErrNotMinted) {
			t.Errorf("%s: %v; want %s, and to be told of %q", c.name, err, c.want, c.says)
		}
		if got := broker.VendorAnswers(err); len(got) == 0 || got[0].Action != "AssumeRoleWithWebIdentity" {
			t.Errorf("%s: the log would have %v", c.name, got)
		}
		silent(t, err)
	}
}

func webBody(text string) string {
	return strings.NewReplacer("AssumeRoleRes", "AssumeRoleWithWebIdentityRes").Replace(text)
}

// The log's attribute is the same for each provider: here as JSON.
func TestAnswerInTheLog(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	w.answers(refusal(409, "ConcurrentModification"))
	p := open(t, w.config(t), list{"abcdefghijklmnop"}, w.clock.Now)
	_, err := p.Keep(t.Context())
	var text bytes.Buffer
	slog.New(slog.NewJSONHandler(&text, nil)).Error("x", broker.VendorAttr(err))
	var line struct{ Vendor map[string]any }
	if jsonErr := json.Unmarshal(text.Bytes(), &line); jsonErr != nil || len(line.Vendor) != 5 || line.Vendor["code"] != "ConcurrentModification" ||
		line.Vendor["status"] != 409.0 || line.Vendor["action"] != "GetRole" || strings.Contains(text.String(), "C4n4ry") {
		t.Errorf("logged %s: %v", text.String(), jsonErr)
	}
}
