package store_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
)

// Looking for an upstream id among the events stays cheap with statistics and plans of a time when there were none.
func TestKnownIDWithStaleStatistics(t *testing.T) {
	t.Parallel()
	db := own(t)
	super := admin(t, db)
	if read[int](t, super, "SELECT current_setting('server_version_num')::int") < 150_000 {
		t.Skip("this PostgreSQL cannot be told to publish its statistics")
	}
	s := open(t, db, func(c *store.Config) { c.MaxConns = 1 })
	n := 0
	activations := func() time.Duration {
		var took time.Duration
		for range 8 { // more than PostgreSQL takes to consider the plan that it keeps
			n++
			c := begin(t, s, credential())
			c.Version.State, c.Version.OwnID, c.Version.UpstreamIDs = broker.StateActive, true, []string{fmt.Sprintf("AKIANEW%d", n)}
			c.Version.Fingerprint, c.Version.DueAt = []byte{byte(n)}, c.Version.ExpiresAt
			e := event(broker.EventIssued, c)
			start := time.Now()
			if err := s.Activate(t.Context(), c, []byte("sealed"), c.Version.ExpiresAt, e); err != nil {
				t.Fatal(err)
			}
			took += time.Since(start)
		}
		return took / 8
	}
	activations()
	_, err := super.Exec(t.Context(), `INSERT INTO events (id, at, type, caller, task_id, agent_id, profile, provider, credential_id, upstream_ids, body)
		SELECT 'evt_' || i, now(), 'credential.issued', 'c', 't', 'a', 'p', 'aws', 'crd_' || lpad(i::text, 26, '0'), ARRAY['v' || i, 'AKIA' || i], '{}'
		FROM generate_series(1, 40000) i`)
	if err != nil {
		t.Fatal(err)
	}
	before := readsOf(t, s, super)
	took := activations()
	after := readsOf(t, s, super)
	sequential, byIndex := (after.sequential-before.sequential)/8, (after.byIndex-before.byIndex)/8
	t.Logf("%s each, %d rows read in whole tables, %d by index", took, sequential, byIndex)
	if sequential > 200 || byIndex > 200 {
		t.Errorf("reads %d rows of whole tables and %d by index for each of them", sequential, byIndex)
	}
}

// Two replicas that learn the same upstream ids at once, in opposite orders, both get answers: each id is given once.
func TestKnownIDsOfTwoReplicas(t *testing.T) {
	t.Parallel()
	const ids = 32
	db := own(t)
	var won [ids]atomic.Int32
	var wg sync.WaitGroup
	for replica := range 2 {
		s := open(t, db)
		for i := range ids {
			c := credential()
			c.TaskID = fmt.Sprintf("task-%d-%d", replica, i)
			c = begin(t, s, c)
			at := i
			if replica == 1 {
				at = ids - 1 - i
			}
			c.Version.State, c.Version.OwnID, c.Version.UpstreamIDs = broker.StateActive, true, []string{fmt.Sprintf("AKIATWICE%d", at)}
			c.Version.Fingerprint, c.Version.DueAt = []byte("x"), c.Version.ExpiresAt
			wg.Go(func() {
				err := s.Activate(t.Context(), c, []byte("sealed"), c.Version.ExpiresAt, event(broker.EventIssued, c))
				if err == nil {
					won[at].Add(1)
				} else if !errors.Is(err, broker.ErrIDKnown) {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	for i := range won {
		if n := won[i].Load(); n != 1 {
			t.Errorf("id %d was given %d times", i, n)
		}
	}
}
