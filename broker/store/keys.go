package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store/db"
)

// SealedKeys implements broker.Slots.
func (s *Store) SealedKeys(ctx context.Context, pool string) ([]broker.SealedKey, error) {
	rows, err := s.q.SealedKeys(ctx, pool)
	list := make([]broker.SealedKey, 0, len(rows))
	for _, r := range rows {
		k := broker.SealedKey{
			Pool: pool, Name: r.Name, Sealed: r.Sealed, VendorID: r.VendorID, Scopes: r.Scopes, ValueID: broker.VersionID(deref(r.ValueID)),
		}
		err = errors.Join(err, json.Unmarshal(r.Labels, &k.Labels))
		list = append(list, k)
	}
	return list, err
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// AddKey implements broker.Keys.
func (s *Store) AddKey(ctx context.Context, k broker.SealedKey, now time.Time, e broker.Event) error {
	labels, err := json.Marshal(k.Labels)
	if err != nil {
		return err
	}
	return s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
		n, err := q.AddKey(ctx, db.AddKeyParams{
			Pool: k.Pool, Name: k.Name, ValueID: new(string(k.ValueID)), Sealed: k.Sealed, VendorID: k.VendorID,
			Scopes: listOrEmpty(k.Scopes), Labels: labels, Fingerprint: k.Fingerprint, Now: &now,
		})
		if err == nil && n == 0 {
			err = broker.ErrKeyExists
		}
		if err != nil {
			return nil, err
		}
		return []broker.Event{e}, seen(ctx, q, k.Pool, k.Name, k.Fingerprint, now)
	})
}

func listOrEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// RotateKey implements broker.Keys. The holders are found by Converge, which the same transaction makes due.
func (s *Store) RotateKey(ctx context.Context, k broker.SealedKey, now, deadline time.Time, e broker.Event) error {
	return s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
		row, err := q.LockKey(ctx, db.LockKeyParams{Pool: k.Pool, Name: k.Name})
		if err != nil {
			return nil, orNoSuch(err)
		}
		old := row.Key
		if old.Sealed == nil {
			return nil, broker.ErrNoSuch
		}
		if bytes.Equal(old.Fingerprint, k.Fingerprint) {
			return nil, nil // the same value: nothing to do
		}
		if _, err := q.OpenRotation(ctx, db.OpenRotationParams{Pool: k.Pool, Name: k.Name}); !errors.Is(err, pgx.ErrNoRows) {
			return nil, errors.Join(broker.ErrRotating, err)
		}
		return []broker.Event{e}, errors.Join(
			q.BeginRotation(ctx, db.BeginRotationParams{
				ID: broker.NewRotationID(), Pool: k.Pool, Name: k.Name, OldFingerprint: old.Fingerprint, NewFingerprint: k.Fingerprint,
				OldValueID: old.ValueID, OldSealed: old.Sealed, OldVendorID: old.VendorID, StartedAt: now, Deadline: deadline,
			}),
			q.SetKeyValue(ctx, db.SetKeyValueParams{
				Pool: k.Pool, Name: k.Name, ValueID: new(string(k.ValueID)), Sealed: k.Sealed, VendorID: k.VendorID,
			}),
			seen(ctx, q, k.Pool, k.Name, k.Fingerprint, now))
	})
}

// seen takes in a key's present value: its holders get a next version each, and the pool is looked after soon.
// A value that a revoked credential has seen comes back into quarantine.
func seen(ctx context.Context, q *db.Queries, pool, name string, fingerprint []byte, now time.Time) error {
	revoked, err := q.WasRevoked(ctx, db.WasRevokedParams{Fingerprint: fingerprint, Upstream: "pool:" + pool})
	if err != nil {
		return err
	}
	if revoked {
		if err := q.SetKeyState(ctx, db.SetKeyStateParams{
			Pool: pool, Name: name, State: "quarantined", Why: "a revoked credential had this value", Refused: fingerprint,
		}); err != nil {
			return err
		}
	}
	_, err = q.Succeed(ctx, db.SucceedParams{Pool: pool, Name: name, Fingerprint: fingerprint, Now: &now})
	return errors.Join(err,
		q.KeyValueSeen(ctx, db.KeyValueSeenParams{Pool: pool, Name: name, Fingerprint: fingerprint, Now: &now}),
		q.SoonUpkeep(ctx, db.SoonUpkeepParams{Upstream: "pool:" + pool, At: now}))
}

// AbortRotation implements broker.Keys.
func (s *Store) AbortRotation(ctx context.Context, pool, name string, now time.Time, e broker.Event) error {
	return s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
		row, err := q.LockKey(ctx, db.LockKeyParams{Pool: pool, Name: name})
		if errors.Is(err, pgx.ErrNoRows) {
			return nil, broker.ErrNoRotation
		}
		if err != nil {
			return nil, err
		}
		open, err := q.OpenRotation(ctx, db.OpenRotationParams{Pool: pool, Name: name})
		if errors.Is(err, pgx.ErrNoRows) || err == nil && (open.Rotation.OldSealed == nil || row.Key.State == string(broker.KeyRetired)) {
			return nil, broker.ErrNoRotation
		}
		if err != nil {
			return nil, err
		}
		old := open.Rotation
		_, err = q.EndRotation(ctx, db.EndRotationParams{ID: old.ID, Outcome: "aborted", Now: &now})
		e.Fingerprint = old.OldFingerprint
		return []broker.Event{e}, errors.Join(err,
			q.SetKeyValue(ctx, db.SetKeyValueParams{
				Pool: pool, Name: name, ValueID: old.OldValueID, Sealed: old.OldSealed, VendorID: old.OldVendorID,
			}),
			seen(ctx, q, pool, name, old.OldFingerprint, now))
	})
}

// SetKey implements broker.Keys.
func (s *Store) SetKey(ctx context.Context, pool, name string, state broker.KeyState, why string, e broker.Event) error {
	to := map[broker.KeyState]string{broker.KeyAvailable: "active", broker.KeyQuarantined: "quarantined", broker.KeyRetired: "retired"}[state]
	return s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
		if err := q.KnowKey(ctx, db.KnowKeyParams{Pool: pool, Name: name}); err != nil {
			return nil, err
		}
		row, err := q.LockKey(ctx, db.LockKeyParams{Pool: pool, Name: name})
		if err != nil {
			return nil, err
		}
		if row.Key.State == "retired" {
			return nil, broker.ErrMoved
		}
		if to == "retired" { // what is kept for the way back is wiped too
			err = endOpen(ctx, q, pool, name, "aborted", e.At)
		}
		return []broker.Event{e}, errors.Join(err, q.SetKeyState(ctx, db.SetKeyStateParams{Pool: pool, Name: name, State: to, Why: why}))
	})
}

// QuarantineKey implements broker.Slots.
func (s *Store) QuarantineKey(ctx context.Context, pool, name string, fingerprint []byte, caller, why string, now time.Time) error {
	return s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
		if err := q.KnowKey(ctx, db.KnowKeyParams{Pool: pool, Name: name}); err != nil {
			return nil, err
		}
		row, err := q.LockKey(ctx, db.LockKeyParams{Pool: pool, Name: name})
		if err != nil || row.Key.State == "retired" || row.Key.State == "quarantined" && bytes.Equal(row.Key.Refused, fingerprint) {
			return nil, err
		}
		e := broker.NewKeyEvent(broker.EventKeyQuarantined, broker.Sweeper(), now, pool, name, fingerprint)
		e.Reason = why
		return []broker.Event{e}, q.SetKeyState(ctx, db.SetKeyStateParams{
			Pool: pool, Name: name, State: "quarantined", Why: why, Refused: fingerprint, Caller: caller,
		})
	})
}

// Draining implements broker.Slots.
func (s *Store) Draining(ctx context.Context, pool, name string, fingerprint []byte) (bool, error) {
	return s.q.Draining(ctx, db.DrainingParams{Pool: pool, Name: name, Fingerprint: fingerprint})
}

// StrikeKey implements broker.Slots.
func (s *Store) StrikeKey(ctx context.Context, pool, name string, fingerprint []byte, caller string, most int, now time.Time) (quarantined bool, err error) {
	err = s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
		if err := q.KnowKey(ctx, db.KnowKeyParams{Pool: pool, Name: name}); err != nil {
			return nil, err
		}
		row, err := q.LockKey(ctx, db.LockKeyParams{Pool: pool, Name: name})
		if err != nil || row.Key.State != "active" {
			quarantined = err == nil && row.Key.State == "quarantined" && bytes.Equal(row.Key.Refused, fingerprint)
			return nil, err
		}
		strikes, err := q.StrikeKey(ctx, db.StrikeKeyParams{Pool: pool, Name: name, Fingerprint: fingerprint, Caller: caller})
		if err != nil || int(strikes) < most {
			return nil, err
		}
		quarantined = true
		why := strconv.Itoa(int(strikes)) + " refusals in a row"
		e := broker.NewKeyEvent(broker.EventKeyQuarantined, broker.Sweeper(), now, pool, name, fingerprint)
		e.Reason = why
		return []broker.Event{e}, q.SetKeyState(ctx, db.SetKeyStateParams{
			Pool: pool, Name: name, State: "quarantined", Why: why, Refused: fingerprint, Caller: caller,
		})
	})
	return quarantined, err
}

// DoubtKey implements broker.Slots.
func (s *Store) DoubtKey(ctx context.Context, pool, name string, fingerprint []byte, caller string) (confirmed bool, err error) {
	err = s.inTx(ctx, func(q *db.Queries) (_ []broker.Event, err error) {
		if err := q.KnowKey(ctx, db.KnowKeyParams{Pool: pool, Name: name}); err != nil {
			return nil, err
		}
		confirmed, err = q.DoubtKey(ctx, db.DoubtKeyParams{Pool: pool, Name: name, Fingerprint: fingerprint, Caller: caller})
		return nil, err
	})
	return confirmed, err
}

// Pardon implements broker.Slots.
func (s *Store) Pardon(ctx context.Context, pool, name string) error {
	return s.q.PardonKey(ctx, db.PardonKeyParams{Pool: pool, Name: name})
}

// Give implements broker.Versions.
func (s *Store) Give(ctx context.Context, id broker.VersionID, e broker.Event) error {
	w := &write{events: []broker.Event{e}}
	return s.commit(ctx, w, func(q *db.Queries) error {
		return errors.Join(q.GiveVersion(ctx, string(id)), q.SoonUpkeepOf(ctx, db.SoonUpkeepOfParams{ID: string(id), At: e.At}))
	})
}

// Strike implements broker.Versions.
func (s *Store) Strike(ctx context.Context, id broker.CredentialID, number int, pardon bool, events ...broker.Event) (n int, err error) {
	err = s.inTx(ctx, func(q *db.Queries) ([]broker.Event, error) {
		strikes, err := q.StrikeCredential(ctx, db.StrikeCredentialParams{ID: string(id), Number: int32(number), Pardon: pardon}) //nolint:gosec // a version's number
		n = int(strikes)
		return events, err
	})
	return n, err
}
