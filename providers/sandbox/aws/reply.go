package aws

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// XML namespaces of the query replies (the services' API References).
const (
	stsNamespace = "https://sts.amazonaws.com/doc/2011-06-15/"
	iamNamespace = "https://iam.amazonaws.com/doc/2010-05-08/"
)

// apiError is a refusal as the vendor words it.
type apiError struct {
	status   int
	code     string
	message  string
	verbatim []byte // sent instead of the XML, when a fault asks for it
}

func fail(status int, code, message string) *apiError {
	return &apiError{status: status, code: code, message: message}
}

// write sends the error in the form of the call's service: S3's <Error>, or the
// query protocol's <ErrorResponse>.
func (e *apiError) write(w http.ResponseWriter, c *call) {
	setRequestID(w, c)
	if e.verbatim != nil {
		w.WriteHeader(e.status)
		_, _ = w.Write(e.verbatim)
		return
	}
	if c.service == "s3" {
		type s3Error struct {
			XMLName   xml.Name `xml:"Error"`
			Code      string
			Message   string
			RequestID string `xml:"RequestId"`
			HostID    string `xml:"HostId"`
		}
		writeXML(w, e.status, s3Error{Code: e.code, Message: e.message, RequestID: c.id, HostID: "sandbox"})
		return
	}
	type detail struct{ Type, Code, Message string }
	type errorResponse struct {
		XMLName   xml.Name
		Error     detail
		RequestID string `xml:"RequestId"`
	}
	kind := "Sender"
	if e.status >= 500 {
		kind = "Receiver"
	}
	writeXML(w, e.status, errorResponse{
		XMLName:   xml.Name{Space: namespace(c.service), Local: "ErrorResponse"},
		Error:     detail{kind, e.code, e.message},
		RequestID: c.id,
	})
}

func namespace(service string) string {
	if service == "iam" {
		return iamNamespace
	}
	return stsNamespace
}

// writeResult sends <ActionResponse> around result, which names its own element
// (nil for a call that returns nothing), and the request id.
func writeResult(w http.ResponseWriter, c *call, result any) {
	type metadata struct {
		RequestID string `xml:"RequestId"`
	}
	type response struct {
		XMLName          xml.Name
		Result           any
		ResponseMetadata metadata
	}
	setRequestID(w, c)
	writeXML(w, http.StatusOK, response{
		XMLName:          xml.Name{Space: namespace(c.service), Local: c.action + "Response"},
		Result:           result,
		ResponseMetadata: metadata{c.id},
	})
}

func writeXML(w http.ResponseWriter, status int, v any) {
	out, err := xml.Marshal(v)
	if err != nil {
		http.Error(w, "reply could not be encoded", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/xml")
	w.Header().Set("Content-Length", strconv.Itoa(len(xml.Header)+len(out)))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, xml.Header)
	_, _ = w.Write(out)
}

func setRequestID(w http.ResponseWriter, c *call) {
	if c.service == "s3" {
		w.Header().Set("X-Amz-Request-Id", c.id)
		w.Header().Set("X-Amz-Id-2", "sandbox")
		return
	}
	w.Header().Set("X-Amzn-Requestid", c.id)
}

// xmlTime is how AWS writes an instant: seconds, UTC.
func xmlTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func parseForm(body []byte) (url.Values, error) { return url.ParseQuery(string(body)) }

func newRequestID() string {
	b := randomBytes(16)
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// newID is an AWS unique id: prefix and enough base32 to make 21 characters (IAM User
// Guide, "IAM identifiers").
func newID(prefix string) string {
	return prefix + base32.StdEncoding.EncodeToString(randomBytes(20))[:21-len(prefix)]
}

// newAccessKeyID is prefix and 16 characters, 20 in all.
func newAccessKeyID(prefix string) string { return newID(prefix)[:20] }

func newSecretKey() string { return base64.StdEncoding.EncodeToString(randomBytes(30)) }

func newSessionToken() string { return "IQoJ" + base64.StdEncoding.EncodeToString(randomBytes(240)) }

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return b
}
