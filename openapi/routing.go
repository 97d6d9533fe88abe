package openapi

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/go-chi/chi/v5"

	"github.com/taskpass/taskpass/broker"
)

// decodePath makes everything behind it work with the path decoded once: "a%3Ab" and "a:b" are the same segment. A path
// with an encoded slash stays as it was sent, so that it cannot become two segments; no id matches it.
func decodePath(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawPath != "" && !strings.Contains(strings.ToLower(r.URL.RawPath), "%2f") {
			u := *r.URL
			u.RawPath = ""
			r = r.WithContext(r.Context()) // a copy
			r.URL = &u
		}
		next.ServeHTTP(w, r)
	})
}

// refuseNUL refuses requests outside the contract whose path or query has a NUL character: PostgreSQL stores none. For the
// contract's own calls validate does it, and names the parameter.
func (s *server) refuseNUL(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query, _ := url.QueryUnescape(r.URL.RawQuery)
		for pointer, text := range map[string]string{"/path": r.URL.Path, "/query": query} {
			if strings.Contains(text, "\x00") {
				s.problem(w, r, invalid(broker.Fault{Pointer: pointer, Reason: hasNUL}))
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

func (s *server) notFound(w http.ResponseWriter, r *http.Request) {
	s.problem(w, r, broker.Errorf(broker.CodeNotFound, "there is no such call"))
}

// methods are those that a route can have, in the order of the header Allow.
var methods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}

// methodNotAllowed answers a path that exists with a method that it does not have. The router also calls it for methods
// that it does not know, whatever the path.
func (s *server) methodNotAllowed(routes chi.Routes) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		if r.URL.RawPath != "" {
			path = r.URL.RawPath
		}
		var allowed []string
		for _, method := range methods {
			if routes.Match(chi.NewRouteContext(), method, path) ||
				method == http.MethodHead && slices.Contains(allowed, http.MethodGet) {
				allowed = append(allowed, method)
			}
		}
		if len(allowed) == 0 {
			s.notFound(w, r)
			return
		}
		list := strings.Join(allowed, ", ")
		w.Header().Set("Allow", list)
		s.problem(w, r, broker.Errorf(broker.CodeMethodNotAllowed, "this path does not have the request's method; it has %s", list))
	}
}
