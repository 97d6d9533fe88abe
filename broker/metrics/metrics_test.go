package metrics_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/metrics"
)

type ledger struct {
	troubled, slots []broker.Count
	fill            map[string]float64
	runway          map[string]time.Duration
	err             error
}

func (l ledger) Troubled(context.Context) ([]broker.Count, error) { return l.troubled, l.err }
func (l ledger) Slots(context.Context) ([]broker.Count, error)    { return l.slots, nil }

func (l ledger) Fill(context.Context) (map[string]float64, error) { return l.fill, nil }

func (l ledger) Runway(context.Context) (map[string]time.Duration, error) { return l.runway, nil }

func scrape(t *testing.T, m *metrics.Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("answered %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func want(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no line %q in:\n%s", line, ours(text))
		}
	}
}

// ours is the text without the runtime's own metrics.
func ours(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "taskpass_") {
			out.WriteString(line)
		}
	}
	return out.String()
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	m := metrics.New(ledger{
		troubled: []broker.Count{{Of: "aws", State: "stuck", N: 2}, {Of: "aws", State: "lost", N: 1}},
		slots:    []broker.Count{{Of: "search", State: "held", N: 3}},
		fill:     map[string]float64{"arn:aws:iam::1:role/r": 0.75},
		runway:   map[string]time.Duration{"search": 90 * time.Second},
	})
	m.Level("p", "packed_policy_percent", 41)
	m.Phase("p", "upstream", 20*time.Millisecond)
	m.Phase("p", "upstream", 3*time.Second)
	m.Done("issue", "p", "aws", "ok")
	m.Done("issue", "p", "aws", "ok")
	m.Done("revoke", "p", "aws", "stuck")
	m.Lag("aws", 7*time.Second)
	m.Request("/v1/credentials", http.MethodPost, 201, 4*time.Millisecond)
	want(t, scrape(t, m),
		`taskpass_issue_phase_seconds_count{phase="upstream",profile="p"} 2`,
		`taskpass_issue_phase_seconds_bucket{phase="upstream",profile="p",le="0.025"} 1`,
		`taskpass_operations_total{op="issue",outcome="ok",profile="p",provider="aws"} 2`,
		`taskpass_operations_total{op="revoke",outcome="stuck",profile="p",provider="aws"} 1`,
		`taskpass_sweeper_lag_seconds_count{provider="aws"} 1`,
		`taskpass_sweeper_lag_seconds_bucket{provider="aws",le="10"} 1`,
		`taskpass_http_request_seconds_count{method="POST",route="/v1/credentials",status="201"} 1`,
		`taskpass_versions_in_trouble{provider="aws",state="stuck"} 2`,
		`taskpass_versions_in_trouble{provider="aws",state="lost"} 1`,
		`taskpass_pool_keys{pool="search",state="held"} 3`,
		`taskpass_pool_empties_in_seconds{pool="search"} 90`,
		`taskpass_upkeep_fill_ratio{upstream="arn:aws:iam::1:role/r"} 0.75`,
		`taskpass_upstream_level{level="packed_policy_percent",profile="p"} 41`,
		`taskpass_ledger_up 1`)
}

// A database that is away costs its own gauges and nothing else.
func TestLedgerIsAway(t *testing.T) {
	t.Parallel()
	m := metrics.New(ledger{slots: []broker.Count{{Of: "search", State: "held", N: 3}}, err: errors.New("password=s3cr3t-CANARY")})
	m.Done("issue", "p", "aws", "ok")
	text := scrape(t, m)
	want(t, text, `taskpass_ledger_up 0`, `taskpass_operations_total{op="issue",outcome="ok",profile="p",provider="aws"} 1`,
		`taskpass_pool_keys{pool="search",state="held"} 3`)
	if strings.Contains(text, "CANARY") || strings.Contains(text, "taskpass_versions_in_trouble{") {
		t.Error(ours(text))
	}
}

// What clients send makes no series.
func TestClock(t *testing.T) {
	t.Parallel()
	m := metrics.New(ledger{})
	m.WatchClock(func() time.Duration { return -7500 * time.Millisecond })
	want(t, scrape(t, m), "taskpass_clock_difference_seconds -7.5")
}

func TestClientsMakeNoSeries(t *testing.T) {
	t.Parallel()
	m := metrics.New(ledger{})
	for _, method := range []string{"GET", "POST", "DELETE", "S3CR3T", "get", "BREW", ""} {
		m.Request("", method, 404, time.Millisecond)
	}
	text := scrape(t, m)
	want(t, text, `taskpass_http_request_seconds_count{method="other",route="",status="404"} 5`)
	if n := strings.Count(text, "taskpass_http_request_seconds_count{"); n != 3 {
		t.Errorf("%d series", n)
	}
}

// Two of them in one process do not get in each other's way, and many may report at once.
func TestApartAndAtOnce(t *testing.T) {
	t.Parallel()
	a, b := metrics.New(ledger{}), metrics.New(ledger{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				a.Done("issue", "p", "aws", "ok")
				a.Phase("p", "intent", time.Millisecond)
				a.Lag("aws", time.Second)
				a.Request("/livez", http.MethodGet, 200, time.Millisecond)
			}
			scrape(t, a)
		})
	}
	wg.Wait()
	want(t, scrape(t, a), `taskpass_operations_total{op="issue",outcome="ok",profile="p",provider="aws"} 800`)
	if strings.Contains(scrape(t, b), "taskpass_operations_total{") {
		t.Error("one counts for the other")
	}
}

// The state of the audit tree is read when it is asked for; where it cannot be read, only that is said, and what this
// process knows itself.
func TestTree(t *testing.T) {
	t.Parallel()
	state, failure := metrics.TreeState{LagEvents: 3, Lag: 1500 * time.Millisecond, Size: 70, Unsettled: 8192, CheckpointAge: 2 * time.Second,
		Published: map[string]int64{"0:file": 69}}, error(nil)
	m := metrics.New(ledger{})
	m.WatchTree(func(context.Context) (metrics.TreeState, error) { return state, failure })
	want(t, scrape(t, m), `taskpass_audit_tree_up 1`, `taskpass_audit_tree_refused 0`, `taskpass_audit_tree_lag_events 3`,
		`taskpass_audit_tree_lag_seconds 1.5`, `taskpass_audit_tree_size 70`, `taskpass_audit_checkpoint_age_seconds 2`,
		`taskpass_audit_published_size{to="0:file"} 69`, `taskpass_audit_unsettled_bytes 8192`)
	state.Refused, failure = true, errors.New("password=s3cr3t-CANARY")
	text := scrape(t, m)
	want(t, text, `taskpass_audit_tree_up 0`, `taskpass_audit_tree_refused 1`, `taskpass_audit_published_size{to="0:file"} 69`)
	if strings.Contains(text, "CANARY") || strings.Contains(text, "taskpass_audit_tree_lag") {
		t.Error(ours(text))
	}
}

// panickyLedger panics at its first scrape.
type panickyLedger struct {
	ledger
	once *sync.Once
}

func (l panickyLedger) Fill(ctx context.Context) (map[string]float64, error) {
	l.once.Do(func() { panic("C4n4ry") })
	return l.ledger.Fill(ctx)
}

// The registry collects in goroutines of its own: a panic there costs one scrape its series, is counted, and ends nothing.
func TestACollectorThatPanics(t *testing.T) {
	t.Parallel()
	m, r := metrics.New(panickyLedger{once: &sync.Once{}}), broker.NewRunner(nil)
	m.WatchRunner(r)
	_ = r.Do(t.Context(), "sweep", func() error { panic(1) })
	if text := scrape(t, m); strings.Contains(text, "C4n4ry") || strings.Contains(text, "taskpass_ledger_up") || !strings.Contains(text, `taskpass_panics_total{in="sweep"} 1`) {
		t.Errorf("the first scrape: %s", ours(text))
	}
	want(t, scrape(t, m), "taskpass_ledger_up 1", `taskpass_panics_total{in="metrics"} 1`)
}

// What clients keep open, and what each bound refused, is counted by the kinds that the configuration names.
func TestConcurrency(t *testing.T) {
	t.Parallel()
	limits := broker.NewConcurrency(broker.ConcurrencyBounds{Exports: broker.Bounds{PerToken: 1, PerCaller: 2, Total: 3}})
	m := metrics.New(ledger{})
	m.WatchConcurrency(limits)
	want(t, scrape(t, m), `taskpass_concurrency_open{kind="exports"} 0`, `taskpass_concurrency_refused_total{bound="total",kind="exports"} 0`)
	var release func()
	for _, c := range []struct{ caller, token string }{
		{"a", "1"}, {"a", "1"}, // its token's bound
		{"a", "2"}, {"a", "3"}, // its own: 2 of 3 are taken
		{"b", "1"}, {"c", "1"}, // that of all
	} {
		if r, err := limits.Exports.Acquire(broker.Caller{Name: c.caller, Auth: c.token}); err == nil {
			release = r
		}
	}
	release()
	want(t, scrape(t, m), `taskpass_concurrency_open{kind="exports"} 2`, `taskpass_concurrency_limit{kind="exports"} 3`,
		`taskpass_concurrency_refused_total{bound="token",kind="exports"} 1`, `taskpass_concurrency_refused_total{bound="caller",kind="exports"} 1`,
		`taskpass_concurrency_refused_total{bound="total",kind="exports"} 1`,
		`taskpass_concurrency_limit{kind="requests"} 4096`, `taskpass_concurrency_limit{kind="watches"} 8192`,
		`taskpass_concurrency_limit{kind="searches"} 32`, `taskpass_concurrency_limit{kind="live_pages"} 64`,
		`taskpass_concurrency_limit{kind="authentications"} 16384`)
}
