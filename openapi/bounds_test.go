package openapi_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/taskpass/taskpass/broker"
)

// call is one operation of the contract, with a request that gets past routing.
type call struct{ id, method, route, path string }

func operations(t testing.TB) (list []call) {
	t.Helper()
	spec, err := openapi3.NewLoader().LoadFromFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for route, item := range spec.Paths.Map() {
		for method, op := range item.Operations() {
			path := strings.NewReplacer("{id}", "crd_00000000000000000000000000", "{task_id}", "t", "{pool}", "models", "{key}", "key-1",
				"{action}", "free", "{level}", "0", "{number}", "0").Replace(route)
			switch op.OperationID {
			case "watchCredential":
				path += "?version=0&wait=0s"
			case "proveAuditConsistency":
				path += "?from=1"
			case "traceAudit":
				path += "?upstream_id=x"
			case "proveAuditInclusion":
				path += "?index=0"
			}
			list = append(list, call{op.OperationID, method, route, path})
		}
	}
	slices.SortFunc(list, func(a, b call) int { return strings.Compare(a.id, b.id) })
	return list
}

// held are the operations that count against another bound than requests.
var held = map[string]string{
	"watchCredential": "watches", "listCredentials": "searches", "listAuditEvents": "searches", "traceAudit": "searches",
	"getAuditCheckpoint": "searches", "proveAuditInclusion": "searches", "proveAuditConsistency": "searches", "getAuditTile": "searches",
}

// P12: every operation counts against exactly one bound. A caller at its bound is refused, and told what to change; another
// caller's first call is served. The documentation has each of them.
func TestEveryOperationIsBounded(t *testing.T) {
	t.Parallel()
	few := broker.Bounds{PerToken: 1, PerCaller: 2, Total: 4}
	a := newAPI(t, func(_ *api, s *setup) {
		s.openapi.Limits = broker.NewConcurrency(broker.ConcurrencyBounds{Requests: few, Watches: few, Searches: few, Exports: few})
	})
	caller, err := a.callers.Authenticate(t.Context(), a.tokens["orch"])
	if err != nil {
		t.Fatal(err)
	}
	docs, err := os.ReadFile("../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, limiter := range map[string]*broker.Limiter{
		"requests": a.limits.Requests, "watches": a.limits.Watches, "searches": a.limits.Searches, "exports": a.limits.Exports,
	} {
		var releases []func()
		for _, by := range []broker.Caller{caller, {Addr: "127.0.0.1"}} {
			release, err := limiter.Acquire(by)
			if err != nil {
				t.Fatal(err)
			}
			releases = append(releases, release)
		}
		for _, op := range operations(t) {
			want, ok := held[op.id]
			if !ok {
				want = "requests"
			}
			as, accept := "orch", ""
			if op.id == "redeemTicket" {
				as = ""
			}
			if name == "exports" && op.id == "listAuditEvents" {
				want, accept = "exports", "text/csv"
			}
			got := a.call(as, op.method, op.path, "", "Accept", accept)
			if (got.status == http.StatusTooManyRequests) != (name == want) {
				t.Errorf("%s with all %s taken: %d", op.id, name, got.status)
			} else if name == want {
				if p := a.want(got, broker.CodeRateLimited); p.RetryAfterSeconds < 1 || !strings.Contains(p.Detail, "share of open") {
					t.Errorf("%s: %+v", op.id, p)
				}
			}
			if as != "" && a.call("other", op.method, op.path, "", "Accept", accept).status == http.StatusTooManyRequests {
				t.Errorf("%s with all %s of orch taken: another caller is refused too", op.id, name)
			}
			if !strings.Contains(string(docs), "`"+op.route+"`") {
				t.Errorf("docs/operating.md does not say what bounds %s", op.route)
			}
		}
		for _, release := range releases {
			release()
		}
	}
	if n := a.limits.Requests.Open() + a.limits.Watches.Open() + a.limits.Searches.Open() + a.limits.Exports.Open() + a.limits.Lookups.Open(); n != 0 {
		t.Errorf("%d are open at the end", n)
	}
}

// watch calls the handler itself, so that thousands need no socket.
func (a *api) watch(ctx context.Context, token, id, wait string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/v1/credentials/"+id+"/watch?version=1&wait="+wait, http.NoBody)
	r.Header.Set("Authorization", "Bearer "+token)
	w := httptest.NewRecorder()
	a.handler.ServeHTTP(w, r)
	return w
}

// P12: a task's agent that opens thousands of watches gets its share of them; others issue and watch as before. When its
// clients hang up, all is free again, and that is no error of the broker's.
func TestOneAgentsWatches(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	c := a.issued(a.call("orch", "POST", "/v1/credentials", strings.Replace(request("aws", "t", `"read"`), "{", `{"task_token":true,`, 1)))
	mine := a.issued(a.call("other", "POST", "/v1/credentials", request("aws", "t", `"read"`)))
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	const many = 3000
	share := broker.DefaultConcurrency.Watches.PerToken
	answers := make(chan *httptest.ResponseRecorder, many)
	var wg sync.WaitGroup
	for range many {
		wg.Go(func() { answers <- a.watch(ctx, c.TaskToken, c.ID, "60s") })
	}
	for range many - share {
		if got := <-answers; got.Code != http.StatusTooManyRequests || !strings.Contains(got.Body.String(), `"rate_limited"`) ||
			got.Header().Get("Retry-After") == "" {
			t.Fatalf("%d %s", got.Code, got.Body)
		}
	}
	eventually(t, "it has its share", func() bool { return a.limits.Watches.Open() == share })
	a.issued(a.call("other", "POST", "/v1/credentials", request("aws", "t2", `"read"`)))
	a.issued(a.call("orch", "POST", "/v1/credentials", request("aws", "t3", `"read"`)))
	if got := a.watch(t.Context(), a.tokens["other"], mine.ID, "0s"); got.Code != http.StatusNotModified {
		t.Errorf("another caller's watch: %d", got.Code)
	}
	if got := a.watch(t.Context(), a.tokens["orch"], c.ID, "0s"); got.Code != http.StatusNotModified {
		t.Errorf("its orchestrator's watch: %d", got.Code)
	}
	hangUp()
	wg.Wait()
	if n := a.limits.Watches.Open(); n != 0 {
		t.Errorf("%d watches are open at the end", n)
	}
	if text := a.log.String(); strings.Contains(text, `"level":"ERROR"`) {
		t.Errorf("the log has an error: %.500s", text[strings.Index(text, `"level":"ERROR"`):])
	}
}

// Thousands of idle watches, of one credential and of many, are all told of a task's end. With TASKPASS_LONG=1 ten
// thousand, and what they take is measured.
func TestIdleWatches(t *testing.T) {
	many, long := 2000, os.Getenv("TASKPASS_LONG") == "1"
	if long {
		many = 10_000
	} else {
		t.Parallel()
	}
	all := broker.Bounds{PerToken: 100_000, PerCaller: 200_000, Total: 400_000}
	a := newAPI(t, func(_ *api, s *setup) {
		s.openapi.Limits = broker.NewConcurrency(broker.ConcurrencyBounds{Watches: all, Requests: all, Lookups: all})
	})
	var ids []string
	for range 20 {
		ids = append(ids, a.issued(a.call("orch", "POST", "/v1/credentials", request("aws", "t", `"read"`))).ID)
	}
	before := memory()
	codes := make(chan int, many)
	for i := range many {
		go func() { codes <- a.watch(t.Context(), a.tokens["orch"], ids[i%len(ids)], "60s").Code }()
	}
	eventually(t, "all watch", func() bool { return a.limits.Watches.Open() == many })
	if each := (memory() - before) / int64(many); long {
		t.Logf("%d bytes for each watch, without its connection", each)
		if each > 64<<10 {
			t.Errorf("a watch takes %d bytes", each)
		}
	}
	if got := a.call("ops", "POST", "/v1/tasks/t/end", `{}`); got.status >= 300 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	count := map[int]int{}
	for range many {
		count[<-codes]++
	}
	if count[http.StatusOK] != many {
		t.Errorf("answered %v", count)
	}
}

// memory is what is in use, of the heap and of stacks.
func memory() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse) // far below
}

// A body that comes slowly is counted against its sender until it is there.
func TestSlowBodiesAreCounted(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	body := &stalled{begun: make(chan struct{}), end: make(chan struct{})}
	done := make(chan int)
	go func() {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/credentials", body)
		r.Header.Set("Authorization", "Bearer "+a.tokens["orch"])
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		a.handler.ServeHTTP(w, r)
		done <- w.Code
	}()
	<-body.begun
	if n := a.limits.Requests.Open(); n != 1 {
		t.Errorf("%d requests are open", n)
	}
	close(body.end)
	if code := <-done; code != http.StatusBadRequest || a.limits.Requests.Open() != 0 {
		t.Errorf("%d; %d are open", code, a.limits.Requests.Open())
	}
}

// stalled is a body whose first byte does not come.
type stalled struct{ begun, end chan struct{} }

func (s *stalled) Read([]byte) (int, error) {
	close(s.begun)
	<-s.end
	return 0, fmt.Errorf("the connection is gone")
}

// A client that hangs up is no error of the broker's, in whatever operation, and shows as such in the log.
func TestHangingUpIsNoError(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	tx, err := a.admin().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), "LOCK TABLE credentials, versions, tasks, tickets, events, keys, slots, tree_checkpoints IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	bodies := map[string]string{
		"issueCredential": request("aws", "t", `"read"`), "issueTaskCredentials": `{"agent_id":"a","credentials":[{"profile":"aws","scopes":["read"]}]}`,
		"redeemTicket": `{"ticket":"` + broker.NewToken(broker.PrefixTicket).Reveal() + `"}`, "reportCredential": `{"status":401,"version":1}`,
		"addPoolKey": `{"name":"k","value":"v"}`, "rotatePoolKey": `{"value":"v"}`,
	}
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	var wg sync.WaitGroup
	for _, op := range operations(t) {
		for _, as := range []string{"orch", "ops"} {
			wg.Go(func() {
				r := httptest.NewRequestWithContext(ctx, op.method, op.path, strings.NewReader(bodies[op.id]))
				if bodies[op.id] == "" {
					r.Body = http.NoBody
				} else {
					r.Header.Set("Content-Type", "application/json")
				}
				r.Header.Set("Authorization", "Bearer "+a.tokens[as])
				a.handler.ServeHTTP(httptest.NewRecorder(), r)
			})
		}
	}
	eventually(t, "the database holds them up", func() bool {
		var n int
		err := a.admin().QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").Scan(&n)
		return err == nil && n >= 10
	})
	hangUp()
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	text := a.log.String()
	if !strings.Contains(text, `"status":499`) || !strings.Contains(text, "the client hung up") {
		t.Error("the log does not tell that clients hung up")
	}
	for line := range strings.Lines(text) {
		if strings.Contains(line, `"level":"ERROR"`) {
			t.Errorf("an error in the log: %s", line)
		}
	}
	if a.limits.Requests.Open() != 0 {
		t.Errorf("%d requests are open at the end", a.limits.Requests.Open())
	}
	eventually(t, "it issues again", func() bool {
		return a.call("orch", "POST", "/v1/credentials", request("aws", "t2", `"read"`)).status == http.StatusCreated
	})
}

// P12: however many searches an auditor has, and however long they take, they use none of the connections that issuing
// needs. Here the database does not answer them at all.
func TestSearchesTakeNoConnectionOfIssuing(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	tx, err := a.admin().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), "LOCK TABLE event_stretches IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	const many = 100
	share := broker.DefaultConcurrency.Searches.PerToken
	codes := make(chan int, 2*many)
	var wg sync.WaitGroup
	search := func(as string) {
		wg.Go(func() { codes <- a.call(as, "GET", "/v1/audit/events?since=2026-01-01T00:00:00Z&task_id=x", "").status })
	}
	for range many {
		search("aud")
	}
	for range many - share {
		if code := <-codes; code != http.StatusTooManyRequests {
			t.Errorf("one more search: %d", code)
		}
	}
	search("ops")
	eventually(t, "both auditors search", func() bool { return a.limits.Searches.Open() == share+1 })
	for i := range 20 {
		a.issued(a.call("orch", "POST", "/v1/credentials", request("aws", fmt.Sprint("t", i), `"read"`)))
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	for range share + 1 {
		if code := <-codes; code != http.StatusOK {
			t.Errorf("a search: %d", code)
		}
	}
}
