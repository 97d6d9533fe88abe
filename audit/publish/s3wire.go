package publish

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"github.com/taskpass/taskpass/broker"
)

// maxList bounds a page of a bucket's list, in bytes: 1,000 keys of at most 1,024 bytes, each escaped, and their dates.
const maxList = 8 << 20

// s3wire is the HTTP client below the SDK, which looks at nothing but the status of an answer: a login page would count as
// a checkpoint that was taken, or as a bucket with nothing in it. A good answer passes only if it has S3's own form. An
// object that is read is not checked here: it is a signed note, or it does not open.
type s3wire struct{ next s3.HTTPClient }

var errNotS3 = errors.New("the answer has not the form of S3's: the operator should check proxies and gateways on the way, and endpoint")

func (c s3wire) Do(r *http.Request) (*http.Response, error) {
	res, err := c.next.Do(r)
	if err != nil || res.StatusCode/100 != 2 {
		return res, err
	}
	list := r.Method == http.MethodGet && r.URL.Query().Has("list-type")
	if r.Method != http.MethodPut && !list {
		return res, nil
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxList+1))
	_ = res.Body.Close()
	switch {
	case err != nil:
		return nil, err
	case list && !isList(body), !list && (len(body) > 0 || res.Header.Get("ETag") == ""):
		return nil, refusal{errNotS3.Error(), broker.VendorAnswer{Status: res.StatusCode, RequestID: requestID(res.Header)}}
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	return res, nil
}

// isList tells whether a body is a page of a bucket's list. Each says whether there are more.
func isList(body []byte) bool {
	var page struct {
		XMLName     xml.Name `xml:"ListBucketResult"`
		IsTruncated *bool
	}
	return len(body) <= maxList && xml.Unmarshal(body, &page) == nil && page.IsTruncated != nil
}

func requestID(h http.Header) string {
	if id := h.Get("X-Amz-Request-Id"); broker.ValidID(id) {
		return id
	}
	return ""
}

// refusal is what is logged of a call that failed: an error's own text may bear a secret.
type refusal struct {
	text string
	broker.VendorAnswer
}

func (r refusal) Error() string { return r.text }

// code is S3's own word for what is wrong; "" if it did not answer.
func code(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	return ""
}

// answered makes an error of S3's code alone: its text may bear a secret. A refusal names the permission that it
// takes.
func answered(err error, permission string) error {
	if err == nil {
		return nil
	}
	r := refusal{text: err.Error()}
	if kept, ok := errors.AsType[refusal](err); ok {
		r = kept
	}
	r.Vendor = "S3"
	if op, ok := errors.AsType[*smithy.OperationError](err); ok {
		r.Action = op.Operation()
	}
	if res, ok := errors.AsType[*awshttp.ResponseError](err); ok && res.HTTPStatusCode() != 0 {
		r.Status = res.HTTPStatusCode()
		if res.HTTPResponse() != nil {
			r.RequestID = requestID(res.HTTPResponse().Header)
		}
	}
	switch code := code(err); {
	case code == "":
	case !broker.ValidID(code) || len(code) > 64:
		r.text = "the bucket answered with a code that is none of S3's"
	case code == "AccessDenied" || code == "Forbidden":
		r.Code, r.text = code, "the bucket answered "+code+": "+permission+" is not permitted"
	default:
		r.Code, r.text = code, "the bucket answered "+code
	}
	return r
}

var _ aws.HTTPClient = s3wire{}
