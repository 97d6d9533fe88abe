package metrics

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/taskpass/taskpass/broker"
)

var panics = prometheus.NewDesc("taskpass_panics_total",
	"Panics in background work since the process started. The log has the place of each.", []string{"in"}, nil)

// WatchRunner counts the panics of background work. Call it before the metrics are served.
func (m *Metrics) WatchRunner(r *broker.Runner) {
	m.runner = r
	m.registry.MustRegister(fromRunner{r})
}

type fromRunner struct{ runner *broker.Runner }

func (fromRunner) Describe(ch chan<- *prometheus.Desc) { ch <- panics }

func (c fromRunner) Collect(ch chan<- prometheus.Metric) {
	for name, n := range c.runner.Panics() {
		ch <- prometheus.MustNewConstMetric(panics, prometheus.CounterValue, float64(n), name)
	}
}

// guarded is a collector whose panic costs its own series of one scrape: the registry runs it in a goroutine of its own,
// where a panic would end the process.
type guarded struct {
	prometheus.Collector
	metrics *Metrics
}

func (g guarded) Collect(ch chan<- prometheus.Metric) {
	_ = g.metrics.runner.Do(context.Background(), "metrics", func() error { // logged and counted
		g.Collector.Collect(ch)
		return nil
	})
}
