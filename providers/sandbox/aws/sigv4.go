package aws

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Signature Version 4, verified from the wire and written by hand: checking the
// SDK's signer with the SDK's signer would not notice a mistake that both make.
//
// Source: IAM User Guide, "Create a signed AWS API request"; Amazon S3 API
// Reference, "Authenticating Requests: Using the Authorization Header".
const (
	algorithm     = "AWS4-HMAC-SHA256"
	amzDateFormat = "20060102T150405Z"
)

// signature is a parsed Authorization header.
type signature struct {
	keyID   string
	date    string // yyyymmdd
	region  string
	service string
	headers []string // lower case, as listed
	value   string   // lower-case hexadecimal
	time    string   // X-Amz-Date
}

// parseAuthorization also sets c.service, as early as it can be told, so that an
// error is written in the right form.
func parseAuthorization(c *call) (signature, *apiError) {
	header := c.Header.Get("Authorization")
	if header == "" {
		if c.Method == http.MethodPost && c.URL.Path == "/" {
			c.service = "sts"
			return signature{}, fail(http.StatusForbidden, "MissingAuthenticationToken", "Request is missing Authentication Token")
		}
		c.service = "s3"
		return signature{}, fail(http.StatusForbidden, "AccessDenied", "Access Denied")
	}
	c.service = "sts"
	incomplete := fail(http.StatusBadRequest, "IncompleteSignature", "Authorization header is not a complete AWS4-HMAC-SHA256 signature.")
	rest, ok := strings.CutPrefix(header, algorithm+" ")
	if !ok {
		return signature{}, incomplete
	}
	parts := map[string]string{}
	for _, p := range strings.Split(rest, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
		parts[k] = v
	}
	scope := strings.Split(parts["Credential"], "/")
	if len(scope) != 5 || scope[4] != "aws4_request" || parts["SignedHeaders"] == "" || parts["Signature"] == "" {
		return signature{}, incomplete
	}
	sig := signature{
		keyID: scope[0], date: scope[1], region: scope[2], service: scope[3],
		headers: strings.Split(parts["SignedHeaders"], ";"), value: parts["Signature"],
		time: c.Header.Get("X-Amz-Date"),
	}
	if !slices.Contains([]string{"sts", "iam", "s3"}, sig.service) {
		return signature{}, fail(http.StatusForbidden, "SignatureDoesNotMatch", "Credential should be scoped to correct service: 'sts'. ")
	}
	c.service = sig.service
	return sig, nil
}

// checkTime holds X-Amz-Date to the server's clock and to the credential scope.
func (s *Server) checkTime(c *call, sig signature) *apiError {
	at, err := time.Parse(amzDateFormat, sig.time)
	if err != nil {
		return fail(http.StatusForbidden, "AccessDenied", "AWS authentication requires a valid Date or x-amz-date header")
	}
	if at.Format("20060102") != sig.date {
		return fail(http.StatusForbidden, "SignatureDoesNotMatch",
			"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '"+sig.date+"' != '"+sig.time+"'.")
	}
	if s.cfg.MaxSkew < 0 || at.Sub(c.now).Abs() <= s.cfg.MaxSkew {
		return nil
	}
	if c.service == "s3" {
		return fail(http.StatusForbidden, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.")
	}
	return fail(http.StatusForbidden, "SignatureDoesNotMatch", "Signature expired: "+sig.time+" is not within the allowed time of "+c.now.UTC().Format(amzDateFormat))
}

// checkSignature recomputes the signature. Everything that steers the request must
// be under it: host, each x-amz-* header, and the content type where there is one.
func (c *call) checkSignature(sig signature, secret, payloadHash string) *apiError {
	mismatch := fail(http.StatusForbidden, "SignatureDoesNotMatch",
		"The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method.")
	if !slices.IsSorted(sig.headers) || !slices.Contains(sig.headers, "host") {
		return mismatch
	}
	for name, values := range c.Header {
		lower := strings.ToLower(name)
		if (strings.HasPrefix(lower, "x-amz-") || lower == "content-type") && !slices.Contains(sig.headers, lower) {
			return fail(http.StatusForbidden, "AccessDenied", "There were headers present in the request which were not signed")
		}
		if strings.HasPrefix(lower, "x-amz-") && len(values) > 1 {
			return mismatch // two values: which would be believed?
		}
	}
	canonical, ok := c.canonicalRequest(sig.headers, payloadHash)
	if !ok {
		return mismatch
	}
	sum := sha256.Sum256([]byte(canonical))
	scope := sig.date + "/" + sig.region + "/" + sig.service + "/aws4_request"
	toSign := algorithm + "\n" + sig.time + "\n" + scope + "\n" + hex.EncodeToString(sum[:])
	key := []byte("AWS4" + secret)
	for _, part := range []string{sig.date, sig.region, sig.service, "aws4_request", toSign} {
		key = mac(key, part)
	}
	if !hmac.Equal([]byte(hex.EncodeToString(key)), []byte(sig.value)) {
		return mismatch
	}
	return nil
}

func (c *call) canonicalRequest(signed []string, payloadHash string) (string, bool) {
	query, err := url.ParseQuery(c.URL.RawQuery)
	if err != nil {
		return "", false
	}
	var b strings.Builder
	b.WriteString(c.Method + "\n" + uriEncode(c.URL.Path, true) + "\n" + canonicalQuery(query) + "\n")
	for _, name := range signed {
		var values []string
		switch name {
		case "host":
			values = []string{c.Host}
		case "content-length":
			values = []string{strconv.FormatInt(c.ContentLength, 10)}
		default:
			values = slices.Clone(c.Header.Values(name))
		}
		if values == nil {
			return "", false
		}
		for i, v := range values {
			values[i] = strings.Join(strings.Fields(v), " ")
		}
		b.WriteString(name + ":" + strings.Join(values, ",") + "\n")
	}
	b.WriteString("\n" + strings.Join(signed, ";") + "\n" + payloadHash)
	return b.String(), true
}

func canonicalQuery(query url.Values) string {
	// Sorted by encoded name and then value; sorting "name=value" would put "a-b"
	// before "a".
	encoded := map[string][]string{}
	for name, values := range query {
		for _, v := range values {
			name := uriEncode(name, false)
			encoded[name] = append(encoded[name], name+"="+uriEncode(v, false))
		}
	}
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(encoded)) {
		pairs = append(pairs, slices.Sorted(slices.Values(encoded[name]))...)
	}
	return strings.Join(pairs, "&")
}

// uriEncode is AWS's percent-encoding: only A-Z a-z 0-9 - . _ ~ stay, and the slash
// in a path. A path is encoded once, which is S3's rule; the other services' paths
// are "/".
func uriEncode(s string, path bool) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		ch := s[i]
		switch {
		case 'a' <= ch && ch <= 'z', 'A' <= ch && ch <= 'Z', '0' <= ch && ch <= '9',
			ch == '-', ch == '.', ch == '_', ch == '~', path && ch == '/':
			b.WriteByte(ch)
		default:
			b.Write([]byte{'%', hexDigits[ch>>4], hexDigits[ch&15]})
		}
	}
	return b.String()
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func sha256Hex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
