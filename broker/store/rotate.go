package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store/db"
)

// Converge implements broker.Slots.
func (s *Store) Converge(ctx context.Context, pool string, keys []broker.KeyChoice, deadline time.Duration, now time.Time) ([]broker.Retirement, error) {
	var failed error
	for _, k := range keys {
		failed = errors.Join(failed, s.converge(ctx, pool, k, deadline, now)) // one bad key stops no other (P11)
	}
	failed = errors.Join(failed, s.overdue(ctx, pool, keys, now))
	rows, err := s.q.Unretired(ctx, pool)
	list := make([]broker.Retirement, 0, len(rows))
	for _, r := range rows {
		list = append(list, broker.Retirement{
			Rotation: r.Rotation.ID, Pool: pool, Name: r.Rotation.Name, VendorID: r.Rotation.OldVendorID, Fingerprint: r.Rotation.OldFingerprint,
		})
	}
	return list, errors.Join(failed, err)
}

func (s *Store) converge(ctx context.Context, pool string, k broker.KeyChoice, deadline time.Duration, now time.Time) error {
	return s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
		if err := q.KnowKey(ctx, db.KnowKeyParams{Pool: pool, Name: k.Name}); err != nil {
			return nil, err
		}
		row, err := q.LockKey(ctx, db.LockKeyParams{Pool: pool, Name: k.Name})
		if err != nil {
			return nil, err
		}
		key := row.Key
		switch {
		case key.State == "retired":
			return nil, nil
		case key.ValueID != nil && !bytes.Equal(key.Fingerprint, k.Fingerprint):
			return nil, nil // it was handed another value since it was read, and that began its rotation
		case key.Fingerprint == nil || bytes.Equal(key.Fingerprint, k.Fingerprint):
			// Holders may have another value all the same: they took it before anybody looked.
			if err := seenAgain(ctx, q, pool, k, key, now); err != nil {
				return nil, err
			}
		default:
			return s.changed(ctx, q, pool, k, key, now, deadline)
		}
		return s.progress(ctx, q, pool, k, now)
	})
}

// overdue ends rotations of keys that cannot be read any more, at their deadlines.
func (s *Store) overdue(ctx context.Context, pool string, keys []broker.KeyChoice, now time.Time) error {
	open, err := s.q.OpenRotations(ctx, pool)
	for _, r := range open {
		name := r.Rotation.Name
		if now.Before(r.Rotation.Deadline) || slices.ContainsFunc(keys, func(k broker.KeyChoice) bool { return k.Name == name }) {
			continue
		}
		err = errors.Join(err, s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
			if _, err := q.LockKey(ctx, db.LockKeyParams{Pool: pool, Name: name}); err != nil {
				return nil, err
			}
			return s.progress(ctx, q, pool, broker.KeyChoice{Name: name, Fingerprint: r.Rotation.NewFingerprint}, now)
		}))
	}
	return err
}

func seenAgain(ctx context.Context, q *db.Queries, pool string, k broker.KeyChoice, key db.Key, now time.Time) error {
	if key.Fingerprint == nil {
		return seen(ctx, q, pool, k.Name, k.Fingerprint, now)
	}
	_, err := q.Succeed(ctx, db.SucceedParams{Pool: pool, Name: k.Name, Fingerprint: k.Fingerprint, Now: &now})
	return err
}

// changed begins the rotation of a key whose value was changed at its source. One that was under way is overtaken.
func (s *Store) changed(ctx context.Context, q *db.Queries, pool string, k broker.KeyChoice, key db.Key, now time.Time, deadline time.Duration) ([]broker.Event, error) {
	open, err := q.OpenRotation(ctx, db.OpenRotationParams{Pool: pool, Name: k.Name})
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, err
	}
	if err == nil {
		outcome := "overtaken"
		if bytes.Equal(open.Rotation.OldFingerprint, k.Fingerprint) {
			outcome = "aborted"
		}
		if _, err := q.EndRotation(ctx, db.EndRotationParams{ID: open.Rotation.ID, Outcome: outcome, Now: &now}); err != nil {
			return nil, err
		}
	}
	e := broker.NewKeyEvent(broker.EventKeyRotating, broker.Sweeper(), now, pool, k.Name, k.Fingerprint)
	if err := errors.Join(
		q.BeginRotation(ctx, db.BeginRotationParams{
			ID: broker.NewRotationID(), Pool: pool, Name: k.Name, OldFingerprint: key.Fingerprint, NewFingerprint: k.Fingerprint,
			StartedAt: now, Deadline: now.Add(deadline),
		}),
		seen(ctx, q, pool, k.Name, k.Fingerprint, now)); err != nil {
		return nil, err
	}
	ended, err := s.progress(ctx, q, pool, k, now) // nobody may hold it
	return append([]broker.Event{e}, ended...), err
}

// endOpen ends the rotation that is under way, if any, with what it keeps for the way back.
func endOpen(ctx context.Context, q *db.Queries, pool, name, outcome string, now time.Time) error {
	open, err := q.OpenRotation(ctx, db.OpenRotationParams{Pool: pool, Name: name})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err == nil {
		_, err = q.EndRotation(ctx, db.EndRotationParams{ID: open.Rotation.ID, Outcome: outcome, Now: &now})
	}
	return err
}

// progress ends a rotation whose holders have all moved, or whose deadline has come.
func (s *Store) progress(ctx context.Context, q *db.Queries, pool string, k broker.KeyChoice, now time.Time) ([]broker.Event, error) {
	open, err := q.OpenRotation(ctx, db.OpenRotationParams{Pool: pool, Name: k.Name})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	n, err := q.Holders(ctx, db.HoldersParams{Pool: pool, Name: k.Name, Fingerprint: k.Fingerprint})
	if err != nil {
		return nil, err
	}
	outcome := "moved"
	if n.Moved < n.Holders {
		if outcome = "deadline"; now.Before(open.Rotation.Deadline) {
			return nil, nil
		}
	}
	e := broker.NewKeyEvent(broker.EventKeyRotated, broker.Sweeper(), now, pool, k.Name, open.Rotation.OldFingerprint)
	e.Trace["outcome"], e.Trace["holders"], e.Trace["moved"] = outcome, strconv.FormatInt(n.Holders, 10), strconv.FormatInt(n.Moved, 10)
	_, err = q.EndRotation(ctx, db.EndRotationParams{ID: open.Rotation.ID, Outcome: outcome, Now: &now})
	return []broker.Event{e}, err
}

// Retired implements broker.Slots.
func (s *Store) Retired(ctx context.Context, r broker.Retirement, now time.Time) error {
	e := broker.NewKeyEvent(broker.EventKeyRetired, broker.Sweeper(), now, r.Pool, r.Name, r.Fingerprint)
	e.Reason = "the vendor refuses the value of before"
	return s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
		return []broker.Event{e}, q.RetiredRotation(ctx, db.RetiredRotationParams{ID: r.Rotation, Now: &now})
	})
}

// PoolKeys implements broker.Keys.
func (s *Store) PoolKeys(ctx context.Context, pool string) ([]broker.PoolKey, error) {
	rows, err := s.q.KeysOf(ctx, pool)
	if err != nil {
		return nil, err
	}
	seats, err := s.q.SeatsOf(ctx, pool)
	if err != nil {
		return nil, err
	}
	rotations, err := s.q.OpenRotations(ctx, pool)
	if err != nil {
		return nil, err
	}
	found := map[string]*broker.PoolKey{}
	var list []*broker.PoolKey
	get := func(name string) *broker.PoolKey {
		if found[name] == nil {
			found[name] = &broker.PoolKey{Name: name, Seats: map[string]int{}}
			list = append(list, found[name])
		}
		return found[name]
	}
	state := map[string]string{}
	for _, r := range rows {
		k := get(r.Key.Name)
		if r.Key.State != "active" {
			k.Why = r.Key.Why
		}
		k.Sealed, k.Scopes, k.VendorID = r.Key.ValueID != nil, r.Key.Scopes, r.Key.VendorID
		k.Fingerprint, k.ChangedAt, k.Strikes = r.Key.Fingerprint, orZero(r.Key.ChangedAt), int(r.Key.Strikes)
		if bytes.Equal(r.Key.Doubted, r.Key.Fingerprint) {
			k.Unconfirmed = len(r.Key.DoubtedBy)
		}
		state[k.Name] = r.Key.State
		if err := json.Unmarshal(r.Key.Labels, &k.Labels); err != nil {
			return nil, err
		}
	}
	for _, r := range seats {
		k := get(r.Name)
		k.Seats[r.State] = int(r.Seats)
		if back, ok := r.Back.(time.Time); ok && (k.BackAt.IsZero() || back.Before(k.BackAt)) {
			k.BackAt = back.UTC()
		}
	}
	for _, r := range rotations {
		k := get(r.Rotation.Name)
		n, err := s.q.Holders(ctx, db.HoldersParams{Pool: pool, Name: k.Name, Fingerprint: r.Rotation.NewFingerprint})
		if err != nil {
			return nil, err
		}
		k.Rotation = &broker.Rotation{
			ID: r.Rotation.ID, OldFingerprint: r.Rotation.OldFingerprint, NewFingerprint: r.Rotation.NewFingerprint,
			StartedAt: r.Rotation.StartedAt.UTC(), Deadline: r.Rotation.Deadline.UTC(), Holders: int(n.Holders), Moved: int(n.Moved),
		}
	}
	out := make([]broker.PoolKey, len(list))
	for i, k := range list {
		k.State = keyState(state[k.Name], *k)
		out[i] = *k
	}
	return out, nil
}

// keyState is the state of a key as its seats and its own amount to.
func keyState(own string, k broker.PoolKey) broker.KeyState {
	switch {
	case own == "retired":
		return broker.KeyRetired
	case own == "quarantined" || k.Seats["quarantined"] > 0:
		return broker.KeyQuarantined
	case k.Rotation != nil:
		return broker.KeyDraining
	case k.Seats["available"] > 0 || len(k.Seats) == 0:
		return broker.KeyAvailable
	case k.Seats["held"] > 0:
		return broker.KeyHeld
	}
	return broker.KeyResting
}
