package console_test

import (
	"math"
	"regexp"
	"strconv"
	"testing"
	"time"
)

var unsureBar = regexp.MustCompile(`<rect class="life unsure" x="([\d.]+)" y="\d+" width="([\d.]+)"`)

// What may still work, nobody knows until when, is drawn to the edge: a bar that ended at the planned time would say that
// it is over.
func TestNoEndIsDrawnThatNobodyKnows(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	key := r.issue("pool", "t", "call")
	r.api("orch", "POST", "/v1/credentials/"+key.ID+"/revoke", `{}`)
	r.clock.Advance(50 * time.Minute)
	r.issue("aws", "t", "read") // which outlives the key's time
	v := r.enter("aud")
	for _, path := range []string{"/console/task?id=t", "/console/trace?q=models/key-1"} {
		found := unsureBar.FindStringSubmatch(v.see(path))
		if found == nil {
			t.Fatalf("%s draws nothing of it", path)
		}
		x, _ := strconv.ParseFloat(found[1], 64)
		width, _ := strconv.ParseFloat(found[2], 64)
		if math.Abs(x+width-960) > 0.01 {
			t.Errorf("%s: it is drawn to %v, and time to 960", path, x+width)
		}
	}
}
