package lifetest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
	"github.com/taskpass/taskpass/providers/pool"
)

// metric reads one series of a replica's metrics; found is false when it is not there.
func (r *rig) metric(series string) (value float64, found bool) {
	r.t.Helper()
	in, err := http.NewRequestWithContext(context.Background(), http.MethodGet, r.replicas[0].url+"/metrics", http.NoBody)
	if err != nil {
		r.t.Fatal(err)
	}
	out, err := r.http.Do(in)
	if err != nil {
		r.t.Fatal(err)
	}
	text, err := io.ReadAll(out.Body)
	_ = out.Body.Close()
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			value, err = strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				r.t.Fatal(err)
			}
			return value, true
		}
	}
	return 0, false
}

// Operators see in which state the keys are, and when there will be none.
func TestPoolMetrics(t *testing.T) {
	t.Parallel()
	p := newPools(t, map[string]pool.Config{"p": {Rest: time.Hour}})
	p.hand(10)
	for i := range 6 {
		p.mustIssue(ask("p", fmt.Sprint("t", i), agent(fmt.Sprint("a", i)), lasting(maxTTL)))
	}
	// Six of ten were taken within ten minutes, none comes back: four are left, for 6 min 40 s.
	if left, ok := p.metric(`taskpass_pool_empties_in_seconds{pool="keys"}`); !ok || left != 400 {
		t.Errorf("empty in %v s, want 400", left)
	}
	p.as("orch").endTask("t0")
	p.as("orch").revoke(one[string](p.rig, "SELECT id FROM credentials WHERE task_id = 't1'"))
	p.as("ops").changeKey("k08", client.Quarantine, "").want(t, http.StatusOK)
	p.as("ops").changeKey("k09", client.Retire, "").want(t, http.StatusOK)
	p.settled()
	for state, want := range map[string]float64{"available": 2, "held": 4, "resting": 1, "quarantined": 2, "retired": 1} {
		if n, _ := p.metric(fmt.Sprintf(`taskpass_pool_keys{pool="keys",state=%q}`, state)); n != want {
			t.Errorf("%v keys are %s, want %v", n, state, want)
		}
	}
	for i := range 6 {
		p.as("orch").endTask(fmt.Sprint("t", i))
	}
	if left, ok := p.metric(`taskpass_pool_empties_in_seconds{pool="keys"}`); ok {
		t.Errorf("nobody takes any, and it is empty in %v s", left)
	}
	p.as("orch").report(string(broker.NewCredentialID()), 1, 401).want(t, broker.CodeNotFound)
}
