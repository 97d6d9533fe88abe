package openapi

import (
	"context"
	"net/http"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// searchLimit is the longest that a list, a search or a proof may take, its waiting for a connection included.
const searchLimit = 20 * time.Second

// limiters tells which bound each operation counts against, by its operationId. One that is not listed is a request. An
// export is a search by its operation and counts as an export: see limiter.
var limiters = map[string]func(*broker.Concurrency) *broker.Limiter{
	"watchCredential": func(c *broker.Concurrency) *broker.Limiter { return c.Watches },

	"listCredentials":       searches,
	"listAuditEvents":       searches,
	"traceAudit":            searches,
	"getAuditCheckpoint":    searches,
	"proveAuditInclusion":   searches,
	"proveAuditConsistency": searches,
	"getAuditTile":          searches,
}

func searches(c *broker.Concurrency) *broker.Limiter { return c.Searches }

func (s *server) limiter(ctx context.Context, operationID string) *broker.Limiter {
	of, ok := limiters[operationID]
	switch {
	case !ok:
		return s.Limits.Requests
	case operationID == "listAuditEvents" && formatOf(ctx) != formatJSON:
		return s.Limits.Exports
	}
	return of(s.Limits)
}

// admit counts the request against its caller's bounds until it is answered, its body and its answer included, or refuses
// it before anything is read.
func (s *server) admit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _, operation := s.operation(r)
		limiter := s.limiter(r.Context(), operation.OperationID)
		release, err := limiter.Acquire(*callerOf(r.Context()))
		if err != nil {
			s.problem(w, r, err)
			return
		}
		defer release()
		if limiter == s.Limits.Searches {
			ctx, cancel := context.WithTimeout(r.Context(), searchLimit)
			defer cancel()
			r = r.WithContext(ctx)
		}
		next.ServeHTTP(w, r)
	})
}

// statusHungUp is what the log and the metrics show for a request whose client went away before it was answered; nobody
// receives it. nginx made it usual.
const statusHungUp = 499

// hungUp tells whether the client went away. A time limit of ours is something else.
func hungUp(r *http.Request) bool {
	return context.Cause(r.Context()) == context.Canceled //nolint:errorlint // a deadline that wraps it is not meant
}
