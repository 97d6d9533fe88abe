package store

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store/db"
)

// Notes implements broker.Upkeep.
func (s *Store) Notes(ctx context.Context, upstream string) ([]byte, error) {
	notes, err := s.q.UpkeepNotes(ctx, upstream)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return notes, err
}

// Save implements broker.Upkeep.
func (s *Store) Save(ctx context.Context, upstream string, n broker.Notes, events ...broker.Event) error {
	w := &write{events: events}
	return s.commit(ctx, w, func(q *db.Queries) error { return q.SaveUpkeep(ctx, saveUpkeep(upstream, n)) })
}

func saveUpkeep(upstream string, n broker.Notes) db.SaveUpkeepParams {
	return db.SaveUpkeepParams{Upstream: upstream, State: n.State, Used: n.Used, Room: n.Room, LookBy: orNil(n.LookBy)}
}

// Soon implements broker.Slots.
func (s *Store) Soon(ctx context.Context, upstream string, at time.Time) error {
	return s.q.SoonUpkeep(ctx, db.SoonUpkeepParams{Upstream: upstream, At: at})
}

// ClaimUpkeep implements broker.Upkeeps. Looking costs a write only when something is due.
func (s *Store) ClaimUpkeep(ctx context.Context, upstreams []string, now time.Time, lease time.Duration) ([]string, error) {
	later, err := s.q.UpkeepNotDue(ctx, db.UpkeepNotDueParams{Upstreams: upstreams, Now: now})
	if err != nil {
		return nil, err
	}
	due := slices.DeleteFunc(slices.Clone(upstreams), func(u string) bool { return slices.Contains(later, u) })
	if len(due) == 0 {
		return nil, nil
	}
	return s.q.ClaimUpkeep(ctx, db.ClaimUpkeepParams{Upstreams: due, Now: now, Until: now.Add(lease)})
}

// Kept implements broker.Upkeeps.
func (s *Store) Kept(ctx context.Context, upstream string, leased, next time.Time) error {
	return s.q.KeptUpkeep(ctx, db.KeptUpkeepParams{Upstream: upstream, Leased: leased, Next: next})
}

// Fill tells how full each upstream is of what the broker keeps there, as a share of its room.
func (s *Store) Fill(ctx context.Context) (map[string]float64, error) {
	rows, err := s.q.UpkeepFill(ctx)
	fill := make(map[string]float64, len(rows))
	for _, r := range rows {
		fill[r.Upstream] = float64(r.Used) / float64(r.Room)
	}
	return fill, err
}
