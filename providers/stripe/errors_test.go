package stripe_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

const (
	surelyNot = true
	inDoubt   = false
)

func says(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Request-Id", "req_1")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

func refusal(status int, code, message string) http.HandlerFunc {
	return says(status, `{"error":{"type":"invalid_request_error","code":"`+code+`","message":"`+message+` rk_live_...C4n4ry"}}`)
}

// What each answer means to the caller and to the ledger. No message of Stripe's is ever shown.
func TestMintErrors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer  http.HandlerFunc
		nothing bool
		code    broker.Code
		says    string
	}{
		"own key expired":         {refusal(401, "api_key_expired", "Expired API Key provided:"), surelyNot, broker.CodeUpstreamRefused, "secret_key"},
		"own key unknown":         {refusal(401, "", "Invalid API Key provided:"), surelyNot, broker.CodeUpstreamRefused, "secret_key"},
		"own address":             {refusal(401, "", "The IP address 192.0.2.1 is not allowed"), surelyNot, broker.CodeUpstreamRefused, "allowed addresses"},
		"lacks, newer words":      {refusal(403, "more_permissions_required", "Enabling Customers Write ('customer_write') permissions"), surelyNot, broker.CodeUpstreamRefused, "customer_write"},
		"lacks, older words":      {refusal(403, "", "Having the 'rak_plan_read' permission would"), surelyNot, broker.CodeUpstreamRefused, "plan_read"},
		"lacks something unheard": {refusal(403, "", "Having the 'rak_C4n4ry_read' permission would"), surelyNot, broker.CodeUpstreamRefused, "permissions"},
		"forbidden":               {says(403, `C4n4ry`), inDoubt, broker.CodeUpstreamError, "proxies"},
		"a proxy's time-out":      {says(408, `<html>C4n4ry</html>`), inDoubt, broker.CodeUpstreamError, "408"},
		"a proxy's 404":           {says(404, `<html>C4n4ry</html>`), inDoubt, broker.CodeUpstreamError, "proxies"},
		"throttled":               {refusal(429, "rate_limit", "Request rate limit exceeded"), surelyNot, broker.CodeUpstreamThrottled, "throttling"},
		"locked":                  {refusal(429, "lock_timeout", "This object cannot be accessed right now"), surelyNot, broker.CodeUpstreamThrottled, ""},
		"such a key":              {refusal(400, "api_key_invalid_permissions", "no"), surelyNot, broker.CodeUpstreamRefused, "api_key_invalid_permissions"},
		"no preview":              {refusal(404, "", "Unrecognized request URL (POST: /v2/iam/api_keys)."), surelyNot, broker.CodeUpstreamRefused, "private preview"},
		"no preview, as a 400":    {refusal(400, "", "Unrecognized request URL"), surelyNot, broker.CodeUpstreamRefused, "private preview"},
		"another request's key":   {says(400, `{"error":{"type":"idempotency_error","message":"C4n4ry"}}`), inDoubt, broker.CodeUpstreamError, ""},
		"under way already":       {refusal(409, "idempotency_key_in_use", "no"), inDoubt, broker.CodeUpstreamError, ""},
		"failed":                  {says(500, `{"error":{"type":"api_error","message":"C4n4ry"}}`), inDoubt, broker.CodeUpstreamError, ""},
		"a proxy failed":          {says(502, `<html>C4n4ry</html>`), inDoubt, broker.CodeUpstreamError, ""},
		"empty":                   {says(200, ``), inDoubt, broker.CodeUpstreamError, ""},
		"no JSON":                 {says(200, `C4n4ry`), inDoubt, broker.CodeUpstreamError, ""},
		"another thing":           {says(200, `{"id":"cus_1","C4n4ry":1}`), inDoubt, broker.CodeUpstreamError, ""},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/C4n4ry", http.StatusTemporaryRedirect)
		}, inDoubt, broker.CodeUpstreamError, ""},
		"an endless answer":        {says(200, `{"id":"`+strings.Repeat("C4n4ry", 1<<20)+`"}`), inDoubt, broker.CodeUpstreamError, ""},
		"a code that is a message": {says(400, `{"error":{"type":"invalid_request_error","code":"C4n4ry C4n4ry"}}`), surelyNot, broker.CodeUpstreamRefused, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int32
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if calls.Add(1) > 1 && !strings.HasSuffix(r.URL.Path, "/expire") && r.Method == http.MethodPost {
					t.Error("sent twice")
				}
				c.answer(w, r)
			}))
			t.Cleanup(web.Close)
			r := newManaged(t)
			r.config.Endpoint = web.URL
			p := r.open(t, nil)
			_, err := p.Mint(t.Context(), r.intended(p, time.Hour, "customers:read"))
			e := broker.AsError(err)
			if e.Code != c.code || !strings.Contains(e.Message, c.says) {
				t.Errorf("%v; want %s, %q", err, c.code, c.says)
			}
			if errors.Is(err, broker.ErrNotMinted) != c.nothing {
				t.Errorf("says that nothing was minted: %t", !c.nothing)
			}
			if e.Code == broker.CodeUpstreamThrottled && e.RetryAfter <= 0 {
				t.Error("does not say when to ask again")
			}
			holdsNoSecret(t, err)
			r.logged(t)
		})
	}
}

// What Stripe's published codes and statuses mean.
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
		{429, "rate_limit", throttled, surelyNot, "throttling"},
		{429, "", throttled, surelyNot, "throttling"},
		{400, "lock_timeout", failed, surelyNot, "at this moment"},
		{409, "idempotency_key_in_use", failed, inDoubt, "at this moment"},
		{409, "", failed, inDoubt, "409"},
		{408, "", failed, inDoubt, "408"},
		{424, "", failed, inDoubt, "424"},
		{402, "processing_error", failed, inDoubt, "failed"},
		{500, "", failed, inDoubt, "500"},
		{502, "", failed, inDoubt, "502"},
		{503, "", failed, inDoubt, "503"},
		{504, "", failed, inDoubt, "504"},
		{401, "api_key_expired", refused, surelyNot, "secret_key"},
		{401, "platform_api_key_expired", refused, surelyNot, "secret_key"},
		{401, "secret_key_required", refused, surelyNot, "secret_key"},
		{401, "", refused, surelyNot, "secret_key"},
		{400, "livemode_mismatch", refused, surelyNot, "livemode"},
		{400, "testmode_charges_only", refused, surelyNot, "livemode"},
		{403, "account_invalid", refused, surelyNot, "account"},
		{403, "platform_account_required", refused, surelyNot, "account"},
		{400, "not_allowed_on_standard_account", refused, surelyNot, "account"},
		{403, "more_permissions_required", refused, surelyNot, "permissions"},
		{403, "", refused, surelyNot, "permissions"},
		{400, "parameter_missing", refused, surelyNot, "form"},
		{400, "parameter_unknown", refused, surelyNot, "form"},
		{400, "parameter_invalid_empty", refused, surelyNot, "form"},
		{400, "parameter_invalid_integer", refused, surelyNot, "form"},
		{400, "parameters_exclusive", refused, surelyNot, "form"},
		{400, "url_invalid", refused, surelyNot, "form"},
		{400, "tls_version_unsupported", refused, surelyNot, "TLS"},
		{402, "", refused, surelyNot, "refused"},
		{404, "something_new", refused, surelyNot, "refused"},
	} {
		web := httptest.NewServer(refusal(c.status, c.code, "no"))
		r := newRig(t)
		ephemeral(&r.config)
		r.config.Endpoint = web.URL
		p := r.open(t, nil)
		_, err := p.Mint(t.Context(), r.intended(p, time.Minute, "wallet"))
		web.Close()
		if e := broker.AsError(err); e.Code != c.want || errors.Is(err, broker.ErrNotMinted) != c.nothing || !strings.Contains(e.Message, c.says) {
			t.Errorf("%d %q: %v, surely nothing: %t; want %s, to be told of %q", c.status, c.code, err, errors.Is(err, broker.ErrNotMinted), c.want, c.says)
		}
		want := broker.VendorAnswer{Vendor: "Stripe", Action: "POST /v1/ephemeral_keys", Status: c.status, Code: c.code, RequestID: "req_1"}
		if got := broker.VendorAnswers(err); len(got) != 1 || got[0] != want {
			t.Errorf("%d %q: the log would have %v; want %v", c.status, c.code, got, want)
		}
	}
}
