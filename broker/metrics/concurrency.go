package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/taskpass/taskpass/broker"
)

var (
	open = prometheus.NewDesc("taskpass_concurrency_open",
		"What clients keep open at this replica now, by the kinds of the configuration's section concurrency.", []string{"kind"}, nil)
	openMost = prometheus.NewDesc("taskpass_concurrency_limit",
		"How many of a kind may be open at this replica at the same time, by all callers.", []string{"kind"}, nil)
	refused = prometheus.NewDesc("taskpass_concurrency_refused_total",
		"Requests refused with rate_limited, by the bound that was reached: token, caller or total. The log has their callers.",
		[]string{"kind", "bound"}, nil)
)

// WatchConcurrency shows what clients keep open, and what was refused. Call it once.
func (m *Metrics) WatchConcurrency(c *broker.Concurrency) {
	m.registry.MustRegister(fromConcurrency{c})
}

type fromConcurrency struct{ concurrency *broker.Concurrency }

func (fromConcurrency) Describe(ch chan<- *prometheus.Desc) {
	ch <- open
	ch <- openMost
	ch <- refused
}

func (c fromConcurrency) Collect(ch chan<- prometheus.Metric) {
	for kind, limiter := range c.concurrency.Limiters() {
		u := limiter.Use()
		ch <- prometheus.MustNewConstMetric(open, prometheus.GaugeValue, float64(u.Open), kind)
		ch <- prometheus.MustNewConstMetric(openMost, prometheus.GaugeValue, float64(u.Total), kind)
		for bound, n := range u.Refused {
			ch <- prometheus.MustNewConstMetric(refused, prometheus.CounterValue, float64(n), kind, string(bound))
		}
	}
}
