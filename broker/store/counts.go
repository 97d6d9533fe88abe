package store

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store/db"
)

// count is by how much one of the live counts changes.
type count struct {
	kind, key string
	delta     int64
	most      int64 // the limit, where it goes up
}

// countsOf are the four counts that one version is in.
func countsOf(c broker.Credential, delta int64, l broker.Limits) []count {
	if delta < 0 {
		l = unlimited
	}
	return []count{
		{"task", c.Caller + "/" + c.TaskID, delta, l.PerTask},
		{"agent", c.Caller + "/" + c.AgentID, delta, l.PerAgent},
		{"profile", c.Profile, delta, l.PerProfile},
		{"caller", c.Caller, delta, l.PerCaller},
	}
}

// unlimited is for versions that follow one that was counted within the limits.
var unlimited = broker.Limits{PerTask: math.MaxInt64, PerAgent: math.MaxInt64, PerProfile: math.MaxInt64, PerCaller: math.MaxInt64}

// counts collects the changes of a whole group: a hot row (the profile's, the caller's) is written once a commit.
type counts []count

func (t *counts) add(more []count) { *t = append(*t, more...) }

// countLive changes counts, in the order of their keys, so that two transactions never wait for each other in a circle.
// A count that would pass its limit is written as -1, which breaks live_counts_within_limit; one that would fall below
// nothing stays at nothing, whatever an older version of the service left uncounted.
const countLive = `INSERT INTO live_counts AS l (kind, key, live, most, delta)
SELECT kind, key, CASE WHEN delta > most THEN -1 ELSE GREATEST(delta, 0) END, most, delta
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) AS of (kind, key, delta, most)
ORDER BY kind, key
ON CONFLICT (kind, key) DO UPDATE SET delta = EXCLUDED.delta,
	most = CASE WHEN EXCLUDED.delta > 0 THEN EXCLUDED.most ELSE l.most END,
	live = CASE WHEN EXCLUDED.delta > 0 AND l.live + EXCLUDED.delta > EXCLUDED.most THEN -1
		ELSE GREATEST(l.live + EXCLUDED.delta, 0) END`

// queue sums the changes up and queues them as one statement, each row at most once.
func (t counts) queue(batch *pgx.Batch) {
	slices.SortFunc(t, func(a, b count) int { return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.key, b.key)) })
	var sums counts
	for i := 0; i < len(t); {
		sum := t[i]
		for i++; i < len(t) && t[i].kind == sum.kind && t[i].key == sum.key; i++ {
			sum.delta += t[i].delta
			sum.most = min(sum.most, t[i].most) // of a group that breaks the least limit each is tried alone
		}
		if sum.delta != 0 {
			sums = append(sums, sum)
		}
	}
	if len(sums) > 0 {
		kinds, keys, deltas, most := sums.columns()
		batch.Queue(countLive, kinds, keys, deltas, most)
	}
}

func (t counts) columns() (kinds, keys []string, deltas, most []int64) {
	for _, c := range t {
		kinds, keys = append(kinds, c.kind), append(keys, c.key)
		deltas, most = append(deltas, c.delta), append(most, c.most)
	}
	return kinds, keys, deltas, most
}

// overLimit names every limit that the intent as a whole would exceed. The counts may have changed since it was refused:
// then the error names fewer, or none.
func (s *Store) overLimit(ctx context.Context, in broker.Intent) error {
	var wanted counts
	members := map[count][]int{} // by kind and key
	for i, c := range in.Credentials {
		for _, w := range countsOf(c, 1, in.Limits) {
			of := count{kind: w.kind, key: w.key}
			if members[of] == nil {
				wanted = append(wanted, w)
			}
			members[of] = append(members[of], i)
		}
	}
	kinds, keys, _, _ := wanted.columns()
	rows, err := s.q.LiveCounts(ctx, db.LiveCountsParams{Kinds: kinds, Keys: keys})
	if err != nil {
		return &broker.LimitError{}
	}
	live := map[count]int64{}
	for _, r := range rows {
		live[count{kind: r.Kind, key: r.Key}] = r.Live
	}
	var over broker.LimitError
	for _, w := range wanted {
		of := count{kind: w.kind, key: w.key}
		if live[of]+int64(len(members[of])) > w.most {
			over.Exceeded = append(over.Exceeded, broker.Exceeded{
				Of: w.kind, Live: live[of], Limit: w.most, Credentials: members[of],
			})
		}
	}
	return &over
}
