package lifetest

import (
	"net/http"
	"testing"
)

// A key whose file changes is looked at because the file says so, not because it is due: the clock stands still here.
func TestWatchedFileRotatesAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.mustIssue(ask("pool", "t1"))
	key := int(c.Trace["key"][len("key-")] - '1')
	stop := r.run()
	defer stop()
	r.settled() // both replicas have seen the first value
	r.writeKey(key, "another")
	told := r.as("orch").watch(c.ID, 1, longest).want(t, http.StatusOK).state
	if told.Version != 2 {
		t.Fatalf("its holder is told of version %d", told.Version)
	}
	got := r.as("orch").resolve(c.ID).want(t, http.StatusOK).resolved
	if got.Version != 2 || secretOf(got.Secret) == secretOf(c.Secret) {
		t.Errorf("resolve gives version %d, with the old value: %v", got.Version, secretOf(got.Secret) == secretOf(c.Secret))
	}
}
