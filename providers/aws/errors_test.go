package aws_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/providertest"
)

// bare is an error as servers other than AWS send it: no code, or no XML at all.
func bare(status int) http.HandlerFunc {
	return body(status, `<?xml version="1.0"?><Error><Message>`+escaped(providertest.Canary)+`</Message></Error>`)
}

// cut sends the beginning of a good answer and then nothing.
func cut(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", fmt.Sprint(len(grantedBody)))
	reply(w, http.StatusOK, grantedBody[:len(grantedBody)/2])
	if err := http.NewResponseController(w).Flush(); err != nil {
		panic(err)
	}
	panic(http.ErrAbortHandler)
}

func drop(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

const (
	surelyNot = true
	inDoubt   = false
)

// What each answer of STS means to the caller and to the ledger.
func TestMintErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		answer  http.HandlerFunc
		nothing bool // surely nothing was minted
		code    broker.Code
		says    string // a word that helps
	}{
		{"malformed policy", refusal(400, "MalformedPolicyDocument"), surelyNot, broker.CodeUpstreamRefused, "statements"},
		{"packed policy", refusal(400, "PackedPolicyTooLarge"), surelyNot, broker.CodeUpstreamRefused, "fewer scopes"},
		{"region disabled", refusal(403, "RegionDisabledException"), surelyNot, broker.CodeUpstreamRefused, "region"},
		{"region disabled, as documented", refusal(403, "RegionDisabled"), surelyNot, broker.CodeUpstreamRefused, "region"},
		{"own token expired", refusal(403, "ExpiredToken"), surelyNot, broker.CodeUpstreamRefused, "expired"},
		{"own token expired, modelled", refusal(400, "ExpiredTokenException"), surelyNot, broker.CodeUpstreamRefused, "expired"},
		{"access denied", refusal(403, "AccessDenied"), surelyNot, broker.CodeUpstreamRefused, "trust policy"},
		{"validation", refusal(400, "ValidationError"), surelyNot, broker.CodeUpstreamRefused, "maximum session duration"},
		{"unknown key", refusal(403, "InvalidClientTokenId"), surelyNot, broker.CodeUpstreamRefused, "credentials"},
		{"bad signature", refusal(403, "SignatureDoesNotMatch"), surelyNot, broker.CodeUpstreamRefused, "credentials"},
		{"throttling", refusal(400, "Throttling"), surelyNot, broker.CodeUpstreamThrottled, "throttling"},
		{"throttling, other name", refusal(400, "ThrottlingException"), surelyNot, broker.CodeUpstreamThrottled, "throttling"},
		{"request limit", refusal(400, "RequestLimitExceeded"), surelyNot, broker.CodeUpstreamThrottled, "throttling"},
		{"throttling, as a server error", refusal(503, "Throttling"), inDoubt, broker.CodeUpstreamThrottled, "throttling"},
		{"a code nobody knows", refusal(400, "SomethingNew"), surelyNot, broker.CodeUpstreamRefused, ""},
		{"a code with a canary", refusal(400, "C4n4ry &amp; &lt;sk_live&gt;"), surelyNot, broker.CodeUpstreamRefused, ""},
		{"a code that is no XML", refusal(400, "C4n4ry & <sk_live>"), inDoubt, broker.CodeUpstreamError, "form"},
		{"internal failure", refusal(500, "InternalFailure"), inDoubt, broker.CodeUpstreamError, ""},
		{"unavailable", refusal(503, "ServiceUnavailable"), inDoubt, broker.CodeUpstreamError, ""},

		{"bare 400", bare(400), surelyNot, broker.CodeUpstreamRefused, ""},
		{"bare 401", bare(401), surelyNot, broker.CodeUpstreamRefused, "role"},
		{"bare 403", bare(403), surelyNot, broker.CodeUpstreamRefused, "role"},
		{"bare 404", bare(404), surelyNot, broker.CodeUpstreamRefused, ""},
		{"bare 429", bare(429), surelyNot, broker.CodeUpstreamThrottled, ""},
		{"bare 500", bare(500), inDoubt, broker.CodeUpstreamError, ""},
		{"bare 503", bare(503), inDoubt, broker.CodeUpstreamError, ""},
		{"403 with no body", body(403, ""), inDoubt, broker.CodeUpstreamError, "proxies"},
		{"403 with a page", body(403, "<html><p>"+providertest.Canary), inDoubt, broker.CodeUpstreamError, "proxies"},
		{"400 with JSON", body(400, `{"message":"C4n4ry"}`), inDoubt, broker.CodeUpstreamError, "proxies"},
		{"502 of a proxy", body(502, "<html><body>C4n4ry</body></html>"), inDoubt, broker.CodeUpstreamError, ""},
		{"500 with no body", body(500, ""), inDoubt, broker.CodeUpstreamError, ""},

		// From here on STS may have minted.
		{"dropped", drop, inDoubt, broker.CodeUpstreamError, ""},
		{"cut off", cut, inDoubt, broker.CodeUpstreamError, ""},
		{"200 with nothing", body(200, ""), inDoubt, broker.CodeUpstreamError, ""},
		{"200 with a page", body(200, "<html><p>"+providertest.Canary), inDoubt, broker.CodeUpstreamError, ""},
		{"200 with no XML", body(200, providertest.Canary), inDoubt, broker.CodeUpstreamError, ""},
		{"200 without credentials", body(200, strings.Replace(grantedBody, "Credentials>", "Nothing>", 2)), inDoubt, broker.CodeUpstreamError, ""},
		{"200 without a token", body(200, strings.Replace(grantedBody, "SessionToken>", "Nothing>", 2)), inDoubt, broker.CodeUpstreamError, ""},
		{"200 with an odd date", body(200, strings.Replace(grantedBody, "2026-03-03T10:26:12Z", "C4n4ry", 1)), inDoubt, broker.CodeUpstreamError, ""},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, inDoubt, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t)
			p := w.provider(t)
			if _, err := p.Mint(t.Context(), w.request("read")); err != nil { // opens a connection
				t.Fatal(err)
			}
			w.calls()
			w.answers(c.answer)
			_, err := p.Mint(t.Context(), w.request("read"))
			if err == nil {
				t.Fatal("minted")
			}
			if n := len(w.calls()); n != 1 {
				t.Errorf("%d calls upstream", n)
			}
			silent(t, err)
			if got := errors.Is(err, broker.ErrNotMinted); got != c.nothing {
				t.Errorf("surely nothing was minted: %v, want %v: %v", got, c.nothing, err)
			}
			e := broker.AsError(err)
			if c.code != "" && e.Code != c.code || !strings.Contains(e.Message, c.says) {
				t.Errorf("got %v; want %s, and to be told of %q", e, c.code, c.says)
			}
			if throttled := e.Code == broker.CodeUpstreamThrottled; throttled != (e.RetryAfter > 0) {
				t.Errorf("%s, try again after %s", e.Code, e.RetryAfter)
			}
		})
	}
}

func TestMintWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 1)
	w := newWire(t)
	w.answers(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	})
	p := w.provider(t)
	for _, name := range []string{"deadline", "cancelled"} {
		parent, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		ctx := parent
		if name == "deadline" {
			ctx = providertest.ExpireAfter(parent, asked)
		} else {
			go func() { <-asked; cancel() }()
		}
		_, err := p.Mint(ctx, w.request("read"))
		cancel()
		silent(t, err)
		if e := broker.AsError(err); errors.Is(err, broker.ErrNotMinted) || e.Code != broker.CodeUpstreamTimeout || !e.Code.Retryable() {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMintAtNobody(t *testing.T) {
	t.Parallel()
	clock := providertest.NewClock()
	w := newWire(t)
	for name, endpoint := range map[string]string{
		"refused":      "http://" + providertest.Refusing(t),
		"no such host": "http://taskpass.invalid",
	} {
		_, err := open(t, config(t, endpoint), nil, clock.Now).Mint(t.Context(), w.request("read"))
		silent(t, err)
		if e := broker.AsError(err); !errors.Is(err, broker.ErrNotMinted) || e.Code != broker.CodeUpstreamError {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A definite refusal of the revocation is never taken for success, nor is a revocation that the ledger knows nothing of.
func TestRevokeErrors(t *testing.T) {
	t.Parallel()
	const role = `<GetRoleResponse><GetRoleResult><Role><RoleId>AROAEXAMPLE</RoleId><Arn>arn:aws:iam::123456789012:role/agents</Arn></Role></GetRoleResult></GetRoleResponse>`
	some := list{"abcdefghijklmnop"}
	for _, c := range []struct {
		name   string
		denied list
		answer map[string]http.HandlerFunc // by action
		code   broker.Code                 // empty: success
		says   string
	}{
		{"written", some, nil, "", ""},
		{"full", some, map[string]http.HandlerFunc{"PutRolePolicy": refusal(409, "LimitExceeded")}, broker.CodeUpstreamRefused, "full"},
		{"no such role", some, map[string]http.HandlerFunc{"PutRolePolicy": refusal(404, "NoSuchEntity")}, broker.CodeUpstreamRefused, "does not exist"},
		{"forbidden", some, map[string]http.HandlerFunc{"PutRolePolicy": refusal(403, "AccessDenied")}, broker.CodeUpstreamRefused, "permissions"},
		{"malformed", some, map[string]http.HandlerFunc{"PutRolePolicy": refusal(400, "MalformedPolicyDocument")}, broker.CodeUpstreamRefused, ""},
		{"throttled", some, map[string]http.HandlerFunc{"PutRolePolicy": refusal(400, "Throttling")}, broker.CodeUpstreamThrottled, ""},
		{"failed", some, map[string]http.HandlerFunc{"PutRolePolicy": refusal(500, "ServiceFailure")}, broker.CodeUpstreamError, ""},
		{"bare 404", some, map[string]http.HandlerFunc{"PutRolePolicy": bare(404)}, broker.CodeUpstreamRefused, ""},
		{"dropped", some, map[string]http.HandlerFunc{"PutRolePolicy": drop}, broker.CodeUpstreamError, ""},
		{"role cannot be read", some, map[string]http.HandlerFunc{"GetRole": refusal(403, "AccessDenied")}, broker.CodeUpstreamRefused, ""},
		{"role gone", some, map[string]http.HandlerFunc{"GetRole": refusal(404, "NoSuchEntity")}, broker.CodeUpstreamRefused, "does not exist"},
		{"role without an ARN", some, map[string]http.HandlerFunc{"GetRole": body(200, strings.ReplaceAll(role, "Arn", "Nothing"))}, broker.CodeUpstreamError, ""},

		{"not on the ledger", list{}, nil, broker.CodeUnavailable, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t)
			w.answers(func(rw http.ResponseWriter, r *http.Request) {
				w.mu.Lock()
				action := w.asked[len(w.asked)-1].Get("Action")
				w.mu.Unlock()
				switch {
				case c.answer[action] != nil:
					c.answer[action](rw, r)
				case action == "GetRole":
					reply(rw, http.StatusOK, role)
				default:
					reply(rw, http.StatusOK, "<"+action+"Response/>")
				}
			})
			p := open(t, config(t, w.url), c.denied, w.clock.Now)
			done, err := p.Revoke(t.Context(), w.request("read"))
			silent(t, err)
			if c.code == "" {
				if err != nil || done.Result != broker.ResultDenied {
					t.Errorf("%+v, %v", done, err)
				}
				return
			}
			if err == nil {
				t.Fatalf("claims success: %+v", done)
			}
			e, ok := errors.AsType[*broker.Error](err)
			if !ok { // as the broker reads what is no *Error
				e = broker.Errorf(broker.CodeUpstreamError, "")
			}
			if e.Code != c.code || !strings.Contains(e.Message, c.says) {
				t.Errorf("got %v; want %s, and to be told of %q", e, c.code, c.says)
			}
		})
	}
}

// silent holds an error and its causes to P7.
func silent(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for _, text := range []string{err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err)} {
		if strings.Contains(text, "C4n4ry") {
			t.Errorf("%T shows what AWS said, or the broker's key: %s", err, text)
		}
	}
	switch e := err.(type) { //nolint:errorlint // it walks the tree itself
	case interface{ Unwrap() error }:
		silent(t, e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, cause := range e.Unwrap() {
			silent(t, cause)
		}
	}
}

func TestNewRefusesWhatCannotBeRead(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*aws.Config){
		"no such file": func(c *aws.Config) { c.SecretAccessKey = "file:/nowhere/at/all" },
		"not an ARN":   func(c *aws.Config) { c.RoleARN = "agents" },
	} {
		c := config(t, "http://127.0.0.1:1")
		edit(&c)
		if _, err := aws.New(t.Context(), c, aws.Deps{}); err == nil {
			t.Errorf("%s: no error", name)
		} else {
			silent(t, err)
		}
	}
}
