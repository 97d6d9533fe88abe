package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TreeState is how the record's tree is doing.
type TreeState struct {
	Refused       bool          // this process found the tree rewritten, and signs nothing more
	LagEvents     int64         // that are not in the tree yet; estimated above 500
	Lag           time.Duration // age of the oldest of them
	Size          int64         // of the newest checkpoint; 0: there is none
	CheckpointAge time.Duration
	Unsettled     int64            // bytes in events_default: a month's partition was not made in time
	Published     map[string]int64 // by destination: the size of the last checkpoint that it took
}

// WatchTree reads the tree's state at each scrape.
func (m *Metrics) WatchTree(read func(context.Context) (TreeState, error)) {
	m.registry.MustRegister(guarded{fromTree(read), m})
}

var (
	treeUp        = prometheus.NewDesc("taskpass_audit_tree_up", "1 if the audit tree's state could be read by this scrape.", nil, nil)
	treeRefused   = prometheus.NewDesc("taskpass_audit_tree_refused", "1 if this process found the audit tree rewritten and signs nothing more.", nil, nil)
	treeLagEvents = prometheus.NewDesc("taskpass_audit_tree_lag_events", "Events that are not in the audit tree yet: counted up to 500, estimated beyond.", nil, nil)
	treeLag       = prometheus.NewDesc("taskpass_audit_tree_lag_seconds", "Age of the oldest event that is not in the audit tree yet.", nil, nil)
	treeSize      = prometheus.NewDesc("taskpass_audit_tree_size", "Events under the newest signed checkpoint.", nil, nil)
	treeAge       = prometheus.NewDesc("taskpass_audit_checkpoint_age_seconds", "Age of the newest signed checkpoint.", nil, nil)
	treeUnsettled = prometheus.NewDesc("taskpass_audit_unsettled_bytes",
		"Size of the events whose month's partition was not made in time; `taskpass audit archive` settles them.", nil, nil)
	treePublished = prometheus.NewDesc("taskpass_audit_published_size",
		"Events under the last checkpoint that a destination took from this process; 0 before the first.", []string{"to"}, nil)
)

type fromTree func(context.Context) (TreeState, error)

func (fromTree) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{treeUp, treeRefused, treeLagEvents, treeLag, treeSize, treeAge, treeUnsettled, treePublished} {
		ch <- d
	}
}

func (read fromTree) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := read(ctx)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	truth := map[bool]float64{true: 1}
	gauge(treeUp, truth[err == nil])
	gauge(treeRefused, truth[s.Refused])
	for to, size := range s.Published {
		gauge(treePublished, float64(size), to)
	}
	if err != nil {
		return
	}
	gauge(treeLagEvents, float64(s.LagEvents))
	gauge(treeLag, s.Lag.Seconds())
	gauge(treeSize, float64(s.Size))
	gauge(treeUnsettled, float64(s.Unsettled))
	if s.Size > 0 {
		gauge(treeAge, s.CheckpointAge.Seconds())
	}
}
