package broker

import (
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
)

// VendorAnswer is what is kept and logged of one call to an upstream: never a message, a body or a header's text, any of
// which may quote a secret or whatever a proxy put there (P7). Providers put one below every *Error they return for a
// call, by Because; VendorAttr finds it.
type VendorAnswer struct {
	Vendor    string // as errors call it: "AWS"
	Action    string // the vendor's name of the call: "PutRolePolicy"
	Status    int    // of HTTP; zero: there was no answer, or it has another kind of status
	Code      string // the vendor's machine-readable code; empty: none that may be logged
	RequestID string // by which the vendor's support and log know the call; empty: it gave none
}

func (a VendorAnswer) Error() string {
	if a.Status == 0 && a.Code == "" {
		return fmt.Sprintf("no readable answer of %s to %s", a.Vendor, a.Action)
	}
	code, id := a.Code, a.RequestID
	if code == "" {
		code = "without a code"
	}
	if id == "" {
		id = "without an id"
	}
	return fmt.Sprintf("%s answered %s with %d %s (request %s)", a.Vendor, a.Action, a.Status, code, id)
}

// LogValue implements slog.LogValuer: the same five fields for every provider.
func (a VendorAnswer) LogValue() slog.Value {
	return slog.GroupValue(slog.String("name", a.Vendor), slog.String("action", a.Action), slog.Int("status", a.Status),
		slog.String("code", a.Code), slog.String("request_id", a.RequestID))
}

// Answer implements the interface by which VendorAnswers finds answers. An error with more fields implements it too.
func (a VendorAnswer) Answer() VendorAnswer { return a }

// maxAnswers bounds what VendorAnswers collects of one error.
const maxAnswers = 8

// VendorAnswers lists the distinct answers below an error, which may be joined of several: the first 8 of them.
func VendorAnswers(err error) []VendorAnswer { return collectAnswers(nil, err) }

func collectAnswers(list []VendorAnswer, err error) []VendorAnswer {
	if err == nil || len(list) >= maxAnswers {
		return list
	}
	if a, ok := err.(interface{ Answer() VendorAnswer }); ok { // the tree is walked by hand
		if answer := a.Answer(); !slices.Contains(list, answer) {
			list = append(list, answer)
		}
	}
	switch e := err.(type) { //nolint:errorlint // walks the tree by hand
	case interface{ Unwrap() error }:
		list = collectAnswers(list, e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, cause := range e.Unwrap() {
			list = collectAnswers(list, cause)
		}
	}
	return list
}

// VendorAttr is the log attribute `vendor` of the first answer below an error; empty, and so left out by slog, where the
// error comes from no vendor's answer.
func VendorAttr(err error) slog.Attr {
	if list := VendorAnswers(err); len(list) > 0 {
		return slog.Any("vendor", list[0])
	}
	return slog.Attr{}
}

// IsPage tells whether an answer is an HTML page, by its Content-Type or its body's beginning: it is for a person, and
// something between the broker and an API wrote it, such as a login or a gateway. Whatever its status, it is not the API's word.
func IsPage(contentType string, body []byte) bool {
	kind := strings.ToLower(strings.TrimSpace(contentType))
	return strings.HasPrefix(kind, "text/html") || strings.HasPrefix(kind, "application/xhtml+xml") ||
		strings.HasPrefix(http.DetectContentType(body), "text/html")
}
