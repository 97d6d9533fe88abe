package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// WatchClock shows how far this process's clock is ahead of the database's. Call it once.
func (m *Metrics) WatchClock(ahead func() time.Duration) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "taskpass_clock_difference_seconds",
		Help: "How far this process's clock is ahead of PostgreSQL's, as last measured; negative: behind.",
	}, func() float64 { return ahead().Seconds() }))
}
