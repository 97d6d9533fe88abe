// Package metrics counts what the broker does, for Prometheus. It implements broker.Observer and refuses to know more: no
// label holds a task, an agent or a caller, so the number of series is bounded by the configuration.
package metrics

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/taskpass/taskpass/broker"
)

// Metrics implements broker.Observer. It is safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	phase    *prometheus.HistogramVec
	done     *prometheus.CounterVec
	lag      *prometheus.HistogramVec
	requests *prometheus.HistogramVec
	levels   *prometheus.GaugeVec
	runner   *broker.Runner // nil until WatchRunner
}

// Ledger tells what only the database knows: how many versions are in trouble, how many keys are in which state.
type Ledger interface {
	Troubled(ctx context.Context) ([]broker.Count, error)
	Slots(ctx context.Context) ([]broker.Count, error)
	// Fill is how full each upstream is of what the broker keeps there: 0 to 1.
	Fill(ctx context.Context) (map[string]float64, error)
	// Runway is how long each pool's free keys last at the present pace; a pool that does not empty is left out.
	Runway(ctx context.Context) (map[string]time.Duration, error)
}

// New makes the metrics in a registry of their own.
func New(ledger Ledger) *Metrics {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	f := promauto.With(r)
	buckets := []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
	m := &Metrics{
		registry: r,
		phase: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "taskpass_issue_phase_seconds", Buckets: buckets,
			Help: "Time an issuance spent in one phase: policy, intent, upstream, outcome.",
		}, []string{"profile", "phase"}),
		done: f.NewCounterVec(prometheus.CounterOpts{
			Name: "taskpass_operations_total",
			Help: "Use cases at their end. op is issue, refresh, redeem or revoke; outcome is ok, an error's code, or the state reached.",
		}, []string{"op", "profile", "provider", "outcome"}),
		lag: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "taskpass_sweeper_lag_seconds", Buckets: []float64{.1, .5, 1, 2, 5, 10, 30, 60, 300, 1800},
			Help: "How late due work was begun.",
		}, []string{"provider"}),
		levels: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "taskpass_upstream_level",
			Help: "What the upstream said of one of its limits at the latest mint, such as packed_policy_percent.",
		}, []string{"profile", "level"}),
		requests: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "taskpass_http_request_seconds", Buckets: buckets, Help: "HTTP requests by route and status.",
		}, []string{"route", "method", "status"}),
	}
	r.MustRegister(guarded{fromLedger{ledger}, m})
	return m
}

// Phase implements broker.Observer.
func (m *Metrics) Phase(profile, phase string, took time.Duration) {
	m.phase.WithLabelValues(profile, phase).Observe(took.Seconds())
}

// Done implements broker.Observer.
func (m *Metrics) Done(op, profile, provider, outcome string) {
	m.done.WithLabelValues(op, profile, provider, outcome).Inc()
}

// Lag implements broker.Observer.
func (m *Metrics) Lag(provider string, late time.Duration) {
	m.lag.WithLabelValues(provider).Observe(late.Seconds())
}

// Level implements broker.Observer.
func (m *Metrics) Level(profile, name string, value float64) {
	m.levels.WithLabelValues(profile, name).Set(value)
}

// Request counts one HTTP request. A route outside the contract is counted under an empty name.
func (m *Metrics) Request(route, method string, status int, took time.Duration) {
	switch method {
	case http.MethodGet, http.MethodPost:
	default:
		method = "other" // the client's own words make no series
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(status)).Observe(took.Seconds())
}

// maxScrapes is how many scrapes run at once: each asks the database, and needs no token. The next one is answered 503.
const maxScrapes = 4

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes,
	})
}

var (
	troubled = prometheus.NewDesc("taskpass_versions_in_trouble",
		"Versions that are revoking, lost or stuck now. Any stuck one needs an operator.", []string{"provider", "state"}, nil)
	poolKeys  = prometheus.NewDesc("taskpass_pool_keys", "Seats at the keys of a pool by state: one a key, where it has one holder.", []string{"pool", "state"}, nil)
	fillRatio = prometheus.NewDesc("taskpass_upkeep_fill_ratio",
		"How full an upstream is of what the broker keeps there, such as a role's deny policies. Above 0.7 an operator is needed.",
		[]string{"upstream"}, nil)
	unusable = prometheus.NewDesc("taskpass_pool_keys_unusable",
		"Keys of a pool whose value this replica passed over when it last read it: unreadable, or nothing that a header can carry. "+
			"GET /v1/pools/{pool}/keys says why.", []string{"pool"}, nil)
	runway = prometheus.NewDesc("taskpass_pool_empties_in_seconds",
		"At the pace of the last ten minutes: when a pool has no free key any more. A pool that does not empty has no such series.",
		[]string{"pool"}, nil)
	ledgerUp = prometheus.NewDesc("taskpass_ledger_up", "1 if the ledger answered this scrape.", nil, nil)
)

// WatchPools has the keys that a replica cannot hand out counted at each scrape, by pool.
func (m *Metrics) WatchPools(count func() map[string]int) { m.registry.MustRegister(fromPools(count)) }

type fromPools func() map[string]int

func (fromPools) Describe(ch chan<- *prometheus.Desc) { ch <- unusable }

func (count fromPools) Collect(ch chan<- prometheus.Metric) {
	for pool, n := range count() {
		ch <- prometheus.MustNewConstMetric(unusable, prometheus.GaugeValue, float64(n), pool)
	}
}

// fromLedger reads gauges when they are scraped: a process's own count would miss what other replicas do.
type fromLedger struct{ ledger Ledger }

func (fromLedger) Describe(ch chan<- *prometheus.Desc) {
	ch <- troubled
	ch <- poolKeys
	ch <- fillRatio
	ch <- runway
	ch <- ledgerUp
}

func (c fromLedger) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	up := 1.0
	for desc, read := range map[*prometheus.Desc]func(context.Context) ([]broker.Count, error){
		troubled: c.ledger.Troubled, poolKeys: c.ledger.Slots,
	} {
		counts, err := read(ctx)
		if err != nil {
			up = 0
			continue
		}
		for _, n := range counts {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n.N), n.Of, n.State)
		}
	}
	fill, err := c.ledger.Fill(ctx)
	if err != nil {
		up = 0
	}
	for upstream, ratio := range fill {
		ch <- prometheus.MustNewConstMetric(fillRatio, prometheus.GaugeValue, ratio, upstream)
	}
	left, err := c.ledger.Runway(ctx)
	if err != nil {
		up = 0
	}
	for pool, d := range left {
		ch <- prometheus.MustNewConstMetric(runway, prometheus.GaugeValue, d.Seconds(), pool)
	}
	ch <- prometheus.MustNewConstMetric(ledgerUp, prometheus.GaugeValue, up)
}

var _ broker.Observer = (*Metrics)(nil)
