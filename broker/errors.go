package broker

import (
	"errors"
	"fmt"
	"net/http"
	"sort"
	"time"
)

// Code is the machine-readable reason of an Error. Callers branch on it; it never changes its meaning.
type Code string

// The codes of the HTTP contract. Each stands once in the table below.
const (
	CodeInvalidRequest       Code = "invalid_request"
	CodeUnauthenticated      Code = "unauthenticated"
	CodeTokenExpired         Code = "token_expired"
	CodeTokenRevoked         Code = "token_revoked"
	CodeForbidden            Code = "forbidden"
	CodeScopeNotAllowed      Code = "scope_not_allowed"
	CodeTaskNotAllowed       Code = "task_not_allowed"
	CodeNotFound             Code = "not_found"
	CodeMethodNotAllowed     Code = "method_not_allowed"
	CodeConflict             Code = "conflict"
	CodeTaskEnded            Code = "task_ended"
	CodeCredentialEnded      Code = "credential_ended"
	CodeTicketRedeemed       Code = "ticket_redeemed"
	CodeTicketExpired        Code = "ticket_expired"
	CodePayloadTooLarge      Code = "payload_too_large"
	CodeUnsupportedMediaType Code = "unsupported_media_type"
	CodeUnknownProfile       Code = "unknown_profile"
	CodeUnknownScope         Code = "unknown_scope"
	CodeTTLOutOfRange        Code = "ttl_out_of_range"
	CodeIdempotencyMismatch  Code = "idempotency_mismatch"
	CodeRateLimited          Code = "rate_limited"
	CodeQuotaExceeded        Code = "quota_exceeded"
	CodePoolExhausted        Code = "pool_exhausted"
	CodeUpstreamThrottled    Code = "upstream_throttled"
	CodeUpstreamRefused      Code = "upstream_refused"
	CodeUpstreamError        Code = "upstream_error"
	CodeRecordTampered       Code = "record_tampered"
	CodeUnavailable          Code = "unavailable"
	CodeCircuitOpen          Code = "circuit_open"
	CodeUpstreamTimeout      Code = "upstream_timeout"
)

// codes is the one table: each code, its HTTP status, and whether the same request may succeed later.
var codes = map[Code]struct {
	status    int
	retryable bool
}{
	CodeInvalidRequest:       {http.StatusBadRequest, false},
	CodeUnauthenticated:      {http.StatusUnauthorized, false},
	CodeTokenExpired:         {http.StatusUnauthorized, false},
	CodeTokenRevoked:         {http.StatusUnauthorized, false},
	CodeForbidden:            {http.StatusForbidden, false},
	CodeScopeNotAllowed:      {http.StatusForbidden, false},
	CodeTaskNotAllowed:       {http.StatusForbidden, false},
	CodeNotFound:             {http.StatusNotFound, false},
	CodeMethodNotAllowed:     {http.StatusMethodNotAllowed, false},
	CodeConflict:             {http.StatusConflict, false},
	CodeTaskEnded:            {http.StatusConflict, false},
	CodeCredentialEnded:      {http.StatusConflict, false},
	CodeTicketRedeemed:       {http.StatusGone, false},
	CodeTicketExpired:        {http.StatusGone, false},
	CodePayloadTooLarge:      {http.StatusRequestEntityTooLarge, false},
	CodeUnsupportedMediaType: {http.StatusUnsupportedMediaType, false},
	CodeUnknownProfile:       {http.StatusUnprocessableEntity, false},
	CodeUnknownScope:         {http.StatusUnprocessableEntity, false},
	CodeTTLOutOfRange:        {http.StatusUnprocessableEntity, false},
	CodeIdempotencyMismatch:  {http.StatusUnprocessableEntity, false},
	CodeRateLimited:          {http.StatusTooManyRequests, true},
	CodeQuotaExceeded:        {http.StatusTooManyRequests, true},
	CodePoolExhausted:        {http.StatusTooManyRequests, true},
	CodeUpstreamThrottled:    {http.StatusTooManyRequests, true},
	CodeRecordTampered:       {http.StatusInternalServerError, false},
	CodeUpstreamRefused:      {http.StatusBadGateway, false},
	CodeUpstreamError:        {http.StatusBadGateway, true},
	CodeUnavailable:          {http.StatusServiceUnavailable, true},
	CodeCircuitOpen:          {http.StatusServiceUnavailable, false},
	CodeUpstreamTimeout:      {http.StatusGatewayTimeout, true},
}

// Codes lists every code, sorted.
func Codes() []Code {
	list := make([]Code, 0, len(codes))
	for c := range codes {
		list = append(list, c)
	}
	sort.Slice(list, func(i, j int) bool { return list[i] < list[j] })
	return list
}

// Status is the HTTP status of a code; 503 for one that is not in the table.
func (c Code) Status() int {
	if row, ok := codes[c]; ok {
		return row.status
	}
	return http.StatusServiceUnavailable
}

// Retryable tells whether the same request may succeed later without a change by the caller.
func (c Code) Retryable() bool { return codes[c].retryable }

// Fault is one thing wrong with an input: where (a JSON pointer, or a path in a configuration file) and why.
// The reason never repeats the submitted value: it might be a secret put in the wrong field.
type Fault struct {
	Pointer string `json:"pointer"`
	Reason  string `json:"reason"`
}

// Error is the one error that leaves the broker. Message and Faults are safe to show to the caller and to log;
// Err is the cause, for errors.Is and for the operator's log, and is not part of the text.
type Error struct {
	Code       Code
	Message    string
	RetryAfter time.Duration // when to ask again; zero when unknown
	Faults     []Fault
	Err        error
}

// Errorf makes an Error with a formatted message. Never pass it a secret or an upstream's own text.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Because returns e with its cause set.
func (e *Error) Because(err error) *Error { e.Err = err; return e }

// AsError finds the Error in err. Anything else is an unexpected failure of our own: it becomes `unavailable`
// with the cause kept inside, so that no driver's text reaches a caller.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return Errorf(CodeUnavailable, "the broker could not complete the request; nothing was handed out").Because(err)
}
