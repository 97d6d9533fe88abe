package aws

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/taskpass/taskpass/broker"
)

// maxReply bounds an answer's body, in bytes. The largest that AWS gives is a policy of 131,072 characters, encoded.
const maxReply = 1 << 20

// wire is the HTTP client below the SDK. It reads every answer whole, and lets a good one through only if it has AWS's own
// form: an SDK looks at nothing but the status where a call returns no data, so that a login page would count as IAM's
// word. It reads the request's body, a few kilobytes, to know which action was called.
type wire struct{ next aws.HTTPClient }

func (c wire) Do(r *http.Request) (*http.Response, error) {
	action := ""
	if r.Body != nil && r.Body != http.NoBody {
		text, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r = r.WithContext(r.Context()) // a shallow copy: the SDK's own request stays as it is
		r.Body = io.NopCloser(bytes.NewReader(text))
		if form, err := url.ParseQuery(string(text)); err == nil {
			action = form.Get("Action")
		}
	}
	res, err := c.next.Do(r)
	if err != nil {
		return nil, unanswered{broker.VendorAnswer{Vendor: "AWS", Action: action}, err}
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxReply+1))
	_ = res.Body.Close()
	reply := readReply(action, res, body)
	switch {
	case err != nil:
		return nil, unanswered{reply.VendorAnswer, err}
	case len(body) > maxReply || res.StatusCode < 300 && !reply.genuine:
		return nil, reply
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	if res.Request == nil {
		res.Request = r
	}
	res.Request = res.Request.WithContext(context.WithValue(res.Request.Context(), replyKey{}, reply))
	return res, nil
}

// reply is what is kept of an answer. As an error it stands for a good status without AWS's form.
type reply struct {
	broker.VendorAnswer
	genuine bool // it has the form of AWS's answers: something in between did not write it
}

type replyKey struct{}

// codeForm is how AWS's codes look. What does not is not logged.
var codeForm = regexp.MustCompile(`^[A-Za-z0-9.]{1,64}$`)

// unanswered is a call that was not answered, or whose answer broke off. net/http's text is not shown.
type unanswered struct {
	broker.VendorAnswer
	cause error
}

// Unwrap keeps only what tells a time limit from the rest.
func (u unanswered) Unwrap() error {
	for _, known := range []error{context.DeadlineExceeded, context.Canceled} {
		if errors.Is(u.cause, known) {
			return known
		}
	}
	return nil
}

// document is the part of an answer's XML that all have: of AWS's query protocol, and of the bare <Error> of S3 and of
// Ceph's gateway.
type document struct {
	XMLName   xml.Name
	Code      string `xml:"Error>Code"`
	BareCode  string `xml:"Code"`
	RequestID string `xml:"RequestId"`
	Metadata  string `xml:"ResponseMetadata>RequestId"`
	NewSession
}

// NewSession is what a call that makes a session must answer. The SDK's own credential providers use it unchecked.
type NewSession struct {
	Role *sessionParts `xml:"AssumeRoleResult>Credentials"`
	Web  *sessionParts `xml:"AssumeRoleWithWebIdentityResult>Credentials"`
}

type sessionParts struct {
	AccessKeyID                               string `xml:"AccessKeyId"`
	SecretAccessKey, SessionToken, Expiration string
}

func readReply(action string, res *http.Response, body []byte) reply {
	r := reply{VendorAnswer: broker.VendorAnswer{Vendor: "AWS", Action: action, Status: res.StatusCode}}
	for _, name := range []string{"X-Amzn-Requestid", "X-Amz-Request-Id", "X-Amz-Requestid"} {
		if id := res.Header.Get(name); plain(id) {
			r.RequestID = id
		}
	}
	var d document
	if !decode(body, &d) {
		return r
	}
	for _, id := range []string{d.RequestID, d.Metadata} {
		if plain(id) {
			r.RequestID = id
		}
	}
	for _, code := range []string{d.BareCode, d.Code} {
		if codeForm.MatchString(code) {
			r.Code = code
		}
	}
	if res.StatusCode >= 300 {
		r.genuine = d.XMLName.Local == "ErrorResponse" || d.XMLName.Local == "Error"
		return r
	}
	r.Code = ""
	r.genuine = r.RequestID != "" && namesAction(d.XMLName.Local, action) && d.complete(action)
	return r
}

// namesAction tells whether a document is the answer to a call. Ceph's gateway calls one of them by another name.
func namesAction(root, action string) bool {
	return action != "" && (root == action+"Response" || action == "DeleteRolePolicy" && root == "DeleteRolePoliciesResponse")
}

// complete tells whether the answer to a call that makes a session has all its parts.
func (p NewSession) complete(action string) bool {
	parts := p.Role
	switch action {
	case "AssumeRole":
	case "AssumeRoleWithWebIdentity":
		parts = p.Web
	default:
		return true
	}
	return parts != nil && parts.AccessKeyID != "" && parts.SecretAccessKey != "" && parts.SessionToken != "" && parts.Expiration != ""
}

// decode reads a body that is one whole XML document; false: it is not.
func decode(body []byte, into any) bool {
	decoder := xml.NewDecoder(bytes.NewReader(bytes.TrimPrefix(body, []byte("\ufeff"))))
	if decoder.Decode(into) != nil {
		return false
	}
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return true
		}
		text, ok := token.(xml.CharData)
		if err != nil || !ok || len(bytes.TrimSpace(text)) > 0 {
			return false
		}
	}
}
