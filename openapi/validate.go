package openapi

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/go-chi/chi/v5"

	"github.com/taskpass/taskpass/broker"
)

var validation = &openapi3filter.Options{
	MultiError:         true,
	AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, // authenticate did it
}

// operation is what the contract says of a request. chi has found its route already, whose pattern is the contract's path.
func (s *server) operation(r *http.Request) (string, *openapi3.PathItem, *openapi3.Operation) {
	pattern := chi.RouteContext(r.Context()).RoutePattern()
	item := s.spec.Paths.Value(pattern)
	method := r.Method
	if method == http.MethodHead { // of a path that has GET
		method = http.MethodGet
	}
	return pattern, item, item.GetOperation(method)
}

// validate holds each request against the contract: parameters, media type, body.
func (s *server) validate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		found := chi.RouteContext(r.Context()).URLParams
		params := make(map[string]string, len(found.Keys))
		for i, key := range found.Keys {
			params[key] = found.Values[i]
		}
		path, item, operation := s.operation(r)
		err := onlyKnown(r, item, operation)
		if err == nil {
			err = readBody(r, operation)
		}
		if err != nil {
			s.problem(w, r, err)
			return
		}
		joinTags(r.Header)
		err = openapi3filter.ValidateRequest(r.Context(), &openapi3filter.RequestValidationInput{
			Request: r, PathParams: params, Options: validation,
			Route: &routers.Route{Spec: s.spec, Path: path, PathItem: item, Method: r.Method, Operation: operation},
		})
		if err != nil {
			s.problem(w, r, invalidBy(err))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func invalidBy(err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge()
	}
	var faults []broker.Fault
	collect(err, "", &faults)
	return invalid(faults...)
}

// collect walks the validator's tree of errors. Pointers begin with the part of the request: none for the body, "query"
// or "path" for parameters.
func collect(err error, at string, faults *[]broker.Fault) {
	switch e := err.(type) { //nolint:errorlint // it walks the tree itself, one kind of node at a time
	case openapi3.MultiError:
		for _, inner := range e {
			collect(inner, at, faults)
		}
	case *openapi3filter.RequestError:
		if e.Parameter != nil {
			at = "/" + e.Parameter.In + "/" + e.Parameter.Name
		}
		if e.Err == nil {
			*faults = append(*faults, broker.Fault{Pointer: at, Reason: "is missing"})
			return
		}
		collect(e.Err, at, faults)
	case *openapi3.SchemaError:
		*faults = append(*faults, broker.Fault{Pointer: at + pointer(e), Reason: reason(e)})
	default:
		*faults = append(*faults, broker.Fault{Pointer: at, Reason: "is missing or cannot be read"})
	}
}

func pointer(e *openapi3.SchemaError) string {
	if e.SchemaField == "properties" || e.SchemaField == "additionalProperties" {
		return "" // the last part is the client's own word
	}
	path := e.JSONPointer()
	if len(path) == 0 {
		return ""
	}
	if i := slices.Index(path, "metadata"); i >= 0 {
		path = path[:i+1] // what follows is the client's own word
	}
	return "/" + strings.Join(path, "/")
}

// reason is our own text for a broken rule of the contract; the validator's may quote the value.
func reason(e *openapi3.SchemaError) string {
	schema := e.Schema
	switch e.SchemaField {
	case "required":
		return "is missing"
	case "properties", "additionalProperties":
		return "has a field that is not in the contract"
	case "type":
		return "is not of the right type"
	case "pattern":
		return "does not match " + schema.Pattern
	case "format":
		return "is not of the format " + schema.Format
	case "enum":
		return fmt.Sprintf("is not one of %v", schema.Enum)
	case "minLength", "maxLength":
		return bounds("its length", schema.MinLength, schema.MaxLength)
	case "minItems", "maxItems":
		return bounds("its number of items", schema.MinItems, schema.MaxItems)
	case "maxProperties", "minProperties":
		return bounds("its number of entries", schema.MinProps, schema.MaxProps)
	case "minimum", "maximum":
		return span(schema.Min, schema.Max)
	}
	return "does not fit the contract"
}

// span says what a number is not; either end may be open.
func span(least, most *float64) string {
	switch {
	case most == nil:
		return fmt.Sprintf("is below %g", value(least))
	case least == nil:
		return fmt.Sprintf("is above %g", *most)
	}
	return fmt.Sprintf("is not between %g and %g", *least, *most)
}

func bounds(what string, least uint64, most *uint64) string {
	if most == nil {
		return fmt.Sprintf("%s is below %d", what, least)
	}
	return fmt.Sprintf("%s is not between %d and %d", what, least, *most)
}

// onlyKnown refuses query parameters that the contract does not have, and what cannot be decoded: a filter that is left out
// by mistake shows too much.
func onlyKnown(r *http.Request, item *openapi3.PathItem, operation *openapi3.Operation) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return invalid(broker.Fault{Pointer: "/query", Reason: "cannot be decoded: percent-encode each value, and separate parameters by &"})
	}
	for name, values := range query {
		if operation.Parameters.GetByInAndName("query", name) == nil && item.Parameters.GetByInAndName("query", name) == nil {
			return invalid(broker.Fault{Pointer: "/query", Reason: "has a parameter that is not in the contract"})
		}
		if strings.Contains(strings.Join(values, ""), "\x00") {
			return invalid(broker.Fault{Pointer: "/query/" + name, Reason: hasNUL})
		}
	}
	return nil
}
