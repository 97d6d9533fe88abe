package connect

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// HTTP ends keys by a call to a hook of the operator's, or right to a vendor's own API. URL and body may hold the
// placeholders {{.Name}}, {{.VendorID}} and {{.Fingerprint}} (SHA-256, hexadecimal). Any answer of the 200s but 202 says
// that the key is refused from now on, unless it is an HTML page, as of a login or a gateway; the same call may come again
// and must then be answered in the same way.
//
// With a secret the call bears `Taskpass-Signature: t=<Unix seconds>,v1=<HMAC-SHA256 of "<t>.<body>", hexadecimal>`, the
// form of Stripe's webhooks. It covers the body and not the URL: a hook should obey the body, and refuse an old time.
type HTTP struct {
	URL    string         `yaml:"url"`
	Method string         `yaml:"method"` // POST (the default), PUT, PATCH or DELETE
	Body   string         `yaml:"body"`   // JSON; empty: see defaultBody
	Secret broker.Ref     `yaml:"secret"` // signs the call
	Token  broker.Ref     `yaml:"token"`  // sent as Authorization: Bearer; one of secret and token is required
	Mode   string         `yaml:"mode"`   // what an ended key is: "deny" (the default), refused though it exists, or "destroy"
	Lag    *time.Duration `yaml:"lag"`    // how long the vendor may go on accepting an ended key; absent: 1 min

	// Absent may say "ended", where a key that is not there (404, 410) surely is refused.
	Absent string `yaml:"absent"`
}

// SignatureHeader bears the signature of a hook's call.
const SignatureHeader = "Taskpass-Signature"

const (
	defaultBody = `{"event":"key.end","name":"{{.Name}}","vendor_id":"{{.VendorID}}","fingerprint":"sha256:{{.Fingerprint}}"}`
	maxBody     = 16 << 10
)

func (c *HTTP) check(f *broker.Faults) {
	if !broker.Template(c.URL).Check(named) || !broker.Template(c.Body).Check(named) {
		f.Add("http", "has a placeholder that is not {{.Name}}, {{.VendorID}} or {{.Fingerprint}}")
	}
	f.URL("http.url", fillURL(c.URL, sample))
	if scheme, host, ok := strings.Cut(c.URL, "://"); ok {
		if host, _, _ = strings.Cut(host, "/"); len(names(scheme, host)) > 0 {
			f.Add("http.url", "has a placeholder before its path")
		}
	}
	if c.Method != "" && !slices.Contains([]string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}, c.Method) {
		f.Add("http.method", "is not POST, PUT, PATCH or DELETE")
	}
	if c.Body != "" && (len(c.Body) > maxBody || !json.Valid(fillJSON(c.Body, sample))) {
		f.Add("http.body", "is not JSON of at most %d bytes", maxBody)
	}
	if c.Body != "" && len(names(c.URL, c.Body)) == 0 {
		f.Add("http.body", "names no key: it needs one of the placeholders, or the url does")
	}
	for _, r := range []struct {
		pointer string
		ref     broker.Ref
	}{{"http.secret", c.Secret}, {"http.token", c.Token}} {
		if r.ref != "" {
			f.Ref(r.pointer, r.ref)
		}
	}
	if c.Secret == "" && c.Token == "" {
		f.Add("http.secret", "is required, unless there is a token: else anybody could end keys")
	}
	if c.Mode != "" && c.Mode != "deny" && c.Mode != "destroy" {
		f.Add("http.mode", "is not deny or destroy")
	}
	if c.Absent != "" && c.Absent != "ended" {
		f.Add("http.absent", "can only say ended")
	}
	checkLag(f, "http.lag", c.Lag)
}

// sample has what a value may have at the worst.
var sample = map[string]string{"Name": `a"\{}/?#%b`, "VendorID": "\x01é,:", "Fingerprint": strings.Repeat("0a", sha256.Size)}

func named(name string) bool { _, ok := sample[name]; return ok }

func names(texts ...string) (all []string) {
	for _, text := range texts {
		all = append(all, broker.Template(text).Names()...)
	}
	return all
}

func fillURL(text string, values map[string]string) string {
	return fill(text, values, func(value string) string {
		return strings.ReplaceAll(url.PathEscape(value), "&", "%26") // in a query too
	})
}

// fillJSON puts values into JSON strings, escaped as such.
func fillJSON(text string, values map[string]string) []byte {
	return []byte(fill(text, values, func(value string) string {
		quoted, err := json.Marshal(value)
		if err != nil {
			return ""
		}
		return string(quoted[1 : len(quoted)-1])
	}))
}

func fill(text string, values map[string]string, escape func(string) string) string {
	filled, _ := broker.Template(text).Fill(func(name string) (string, error) { return escape(values[name]), nil }) // so it cannot fail
	return filled
}

type hook struct {
	vendor
	cfg HTTP
}

func newHook(cfg HTTP, w Wire) (*hook, error) {
	if cfg.Body == "" {
		cfg.Body = defaultBody
	}
	if cfg.Method == "" {
		cfg.Method = http.MethodPost
	}
	for _, ref := range []broker.Ref{cfg.Secret, cfg.Token} {
		if ref != "" {
			if _, err := ref.Resolve(); err != nil {
				return nil, err
			}
		}
	}
	return &hook{newVendor("the hook", "X-Request-Id", "http.secret and http.token, and the hook's own", w), cfg}, nil
}

func (h *hook) Revoke() (broker.RevokeMode, time.Duration) {
	if h.cfg.Mode == "destroy" {
		return broker.RevokeDestroy, lagOf(h.cfg.Lag)
	}
	return broker.RevokeDeny, lagOf(h.cfg.Lag)
}

func (h *hook) End(ctx context.Context, k Key) (broker.Revocation, error) {
	values, err := h.values(k)
	if err != nil {
		return broker.Revocation{}, err
	}
	body := fillJSON(h.cfg.Body, values)
	header := http.Header{"Content-Type": {"application/json"}}
	if h.cfg.Token != "" {
		token, err := h.admin(h.cfg.Token, "token")
		if err != nil {
			return broker.Revocation{}, err
		}
		header.Set("Authorization", "Bearer "+token)
	}
	if h.cfg.Secret != "" {
		secret, err := h.files.Own(h.cfg.Secret)
		if err != nil {
			return broker.Revocation{}, broker.Errorf(broker.CodeUpstreamRefused, "the hook's secret cannot be read: the operator should check it").Because(err)
		}
		header.Set(SignatureHeader, sign(secret, h.clock(), body))
	}
	r, err := h.do(ctx, "hook", h.cfg.Method, fillURL(h.cfg.URL, values), header, body)
	if err != nil {
		return broker.Revocation{}, err
	}
	result := broker.ResultDenied
	if h.cfg.Mode == "destroy" {
		result = broker.ResultDestroyed
	}
	switch {
	case r.status == http.StatusAccepted:
		e := broker.Errorf(broker.CodeUpstreamError, "the hook has accepted the call and not done it yet (HTTP 202)").Because(h.cause(r))
		e.RetryAfter = h.retryAfter(r.header)
		return broker.Revocation{}, e
	case r.good() && r.isPage():
		return broker.Revocation{}, broker.Errorf(broker.CodeUpstreamError, "the hook's answer is an HTML page (HTTP %d), so it counts as a gateway's and not as the hook's: "+
			"the operator should check http.url, and what is on the way to it", r.status).Because(h.cause(r))
	case r.good():
		return h.ended(result, lagOf(h.cfg.Lag), "hook_confirmed"), nil
	case h.cfg.Absent == "ended" && (r.status == http.StatusNotFound || r.status == http.StatusGone):
		return h.ended(result, lagOf(h.cfg.Lag), "hook_absent"), nil
	}
	return broker.Revocation{}, h.meaning(r)
}

// values are what the placeholders stand for. What is used must be there: an empty id would name another thing.
func (h *hook) values(k Key) (map[string]string, error) {
	values := map[string]string{"Name": k.Name, "VendorID": k.VendorID, "Fingerprint": hex.EncodeToString(k.Fingerprint)}
	used := names(h.cfg.URL)
	if h.cfg.Body != defaultBody {
		used = append(used, names(h.cfg.Body)...)
	}
	for _, name := range used {
		if strings.Trim(values[name], ".") == "" { // "." and ".." would climb in a path
			return nil, broker.Errorf(broker.CodeUpstreamRefused, "the key has no %s, which the hook's url or body uses: the operator should add it", name)
		}
	}
	return values, nil
}

func sign(secret broker.Secret, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(secret.Reveal()))
	mac.Write([]byte(t + "."))
	mac.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}
