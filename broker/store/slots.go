package store

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store/db"
)

// Take implements broker.Slots. A pool's keys are known to the database from the first time they are offered.
func (s *Store) Take(ctx context.Context, pool string, c broker.Credential, keys []broker.KeyChoice, share broker.Share, rest broker.Rest, now time.Time) (string, bool, time.Time, error) {
	take := db.TakeSlotParams{
		Pool: pool, CredentialID: new(string(c.ID)), Caller: c.Caller, AgentID: c.AgentID, Now: &now, DueBackAt: &c.Version.ExpiresAt,
		Most: int32(share.Most), MostOffered: int32(share.MostOffered), //nolint:gosec // at most the number of keys
	}
	take.AllNames, take.AllFingerprints = columns(share.Keys)
	for _, k := range keys {
		take.Names, take.Fingerprints = append(take.Names, k.Name), append(take.Fingerprints, k.Fingerprint)
		take.Seats, take.Ranks = append(take.Seats, int32(max(k.Seats, 1))), append(take.Ranks, int32(k.Rank)) //nolint:gosec // small
	}
	if c.Version.Number > 1 {
		name, err := s.q.KeepSlot(ctx, db.KeepSlotParams{
			Pool: pool, CredentialID: take.CredentialID, DueBackAt: take.DueBackAt, Names: take.Names, Fingerprints: take.Fingerprints,
		})
		// Its key may have been given the value of one that somebody else holds: that is one key.
		if err == nil || !errors.Is(err, pgx.ErrNoRows) && !breaks(err, uniqueViolation, constraintOneHold) {
			return name, err == nil, time.Time{}, err
		}
		if _, err := s.Leave(ctx, c.ID, broker.KeyChoice{}, rest); err != nil {
			return "", false, time.Time{}, err
		}
	}
	// All of them are known first: the best one may be new.
	if _, err := s.q.AddSlots(ctx, db.AddSlotsParams{Pool: pool, Names: take.Names, Seats: take.Seats}); err != nil {
		return "", false, time.Time{}, err
	}
	for range 4 {
		name, err := s.takeSlot(ctx, take)
		switch {
		case err == nil:
			return name, true, time.Time{}, nil
		case breaks(err, uniqueViolation, constraintOneHold):
			continue // the same key under another name was taken at this moment: look again
		case !errors.Is(err, pgx.ErrNoRows):
			return "", false, time.Time{}, err
		}
		break
	}
	if share.Most > 0 {
		used, err := s.q.ShareUsed(ctx, db.ShareUsedParams{
			Pool: pool, Caller: c.Caller, Names: take.Names, AllNames: take.AllNames, AllFingerprints: take.AllFingerprints, Now: now,
		})
		if err != nil {
			return "", false, time.Time{}, err
		}
		if used.Used >= int64(share.Most) || share.MostOffered > 0 && used.Offered >= int64(share.MostOffered) {
			back, _ := used.Back.(time.Time)
			return "", false, back, broker.ErrOverShare
		}
	}
	back, err := s.q.NextSlotBack(ctx, db.NextSlotBackParams{Pool: pool, Names: take.Names})
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return "", false, back, err
}

// takeSlot sends the statement, where there is a share behind the lock of its pool and caller.
func (s *Store) takeSlot(ctx context.Context, take db.TakeSlotParams) (name string, err error) {
	if take.Most == 0 {
		return s.q.TakeSlot(ctx, take)
	}
	err = s.oneAtATime(ctx, take.Pool+"/"+take.Caller, func(q *db.Queries) error {
		name, err = q.TakeSlot(ctx, take)
		return err
	})
	return name, err
}

func columns(keys []broker.KeyChoice) (names []string, fingerprints [][]byte) {
	for _, k := range keys {
		names, fingerprints = append(names, k.Name), append(fingerprints, k.Fingerprint)
	}
	return names, fingerprints
}

// OverShare implements broker.Slots.
func (s *Store) OverShare(ctx context.Context, pool, caller string, share broker.Share, now time.Time) (bool, error) {
	names, fingerprints := columns(share.Keys)
	used, err := s.q.ShareUsed(ctx, db.ShareUsedParams{
		Pool: pool, Caller: caller, Names: []string{}, AllNames: names, AllFingerprints: fingerprints, Now: now,
	})
	return used.Used > int64(share.Most), err
}

// Held implements broker.Slots.
func (s *Store) Held(ctx context.Context, id broker.CredentialID) (broker.KeyChoice, bool, error) {
	row, err := s.q.HeldSlot(ctx, new(string(id)))
	if errors.Is(err, pgx.ErrNoRows) {
		return broker.KeyChoice{}, false, nil
	}
	return broker.KeyChoice{Name: row.Name, Fingerprint: row.Fingerprint}, err == nil, err
}

// Release implements broker.Slots.
func (s *Store) Release(ctx context.Context, c broker.Credential, present []byte, rest broker.Rest, now time.Time) error {
	return s.q.ReleaseSlot(ctx, db.ReleaseSlotParams{
		CredentialID: new(string(c.ID)), VersionID: string(c.Version.ID), Present: present, Now: &now,
		RestUntil: rest.Until, UntilRotated: rest.UntilRotated,
	})
}

// Leave implements broker.Slots.
func (s *Store) Leave(ctx context.Context, id broker.CredentialID, key broker.KeyChoice, rest broker.Rest) (bool, error) {
	n, err := s.q.LeaveSlot(ctx, db.LeaveSlotParams{
		CredentialID: new(string(id)), Name: key.Name, Fingerprint: key.Fingerprint, UntilRotated: rest.UntilRotated, RestUntil: orNil(rest.Until),
		Confirmed: rest.Confirmed,
	})
	return n > 0, err
}

// Quarantine implements broker.Slots.
func (s *Store) Quarantine(ctx context.Context, id broker.CredentialID) error {
	return s.q.QuarantineSlot(ctx, new(string(id)))
}

// Slots counts the keys of each pool, and the service accounts, by state.
func (s *Store) Slots(ctx context.Context) ([]broker.Count, error) {
	rows, err := s.q.SlotStates(ctx, new(s.Now()))
	list := make([]broker.Count, 0, len(rows))
	for _, r := range rows {
		list = append(list, broker.Count{Of: r.Pool, State: r.State, N: r.Keys})
	}
	if err != nil {
		return nil, err
	}
	accounts, err := s.q.CountAccounts(ctx)
	for _, a := range accounts {
		list = append(list, broker.Count{Of: "service-accounts", State: a.State, N: a.Accounts})
	}
	return list, err
}

// Runway tells for each pool how long its free keys last, at the pace of the last ten minutes: a pool that does not empty is
// left out.
func (s *Store) Runway(ctx context.Context) (map[string]time.Duration, error) {
	const span = 10 * time.Minute
	now := s.Now()
	rows, err := s.q.PoolPace(ctx, db.PoolPaceParams{Now: now, Since: now.Add(-span), Until: now.Add(span)})
	left := map[string]time.Duration{}
	for _, r := range rows {
		if net := r.Taken - r.Back; net > 0 {
			left[r.Pool] = span * time.Duration(r.Free) / time.Duration(net)
		}
	}
	return left, err
}

// Troubled counts the versions of each provider that are revoking, lost or stuck.
func (s *Store) Troubled(ctx context.Context) ([]broker.Count, error) {
	rows, err := s.q.CountTroubled(ctx)
	list := make([]broker.Count, 0, len(rows))
	for _, r := range rows {
		list = append(list, broker.Count{Of: r.Provider, State: r.State, N: r.Versions})
	}
	return list, err
}
