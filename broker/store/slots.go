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
func (s *Store) Take(ctx context.Context, pool string, c broker.Credential, keys []broker.KeyChoice, now time.Time) (string, bool, time.Time, error) {
	keep := db.KeepSlotParams{Pool: pool, CredentialID: new(string(c.ID)), Now: &now, DueBackAt: &c.Version.ExpiresAt}
	for _, k := range keys {
		keep.Names, keep.Fingerprints = append(keep.Names, k.Name), append(keep.Fingerprints, k.Fingerprint)
	}
	if c.Version.Number > 1 {
		if name, err := s.q.KeepSlot(ctx, keep); err == nil || !errors.Is(err, pgx.ErrNoRows) {
			return name, err == nil, time.Time{}, err
		}
	}
	take := db.TakeSlotParams{
		Pool: pool, CredentialID: keep.CredentialID, AgentID: c.AgentID, Now: &now, DueBackAt: keep.DueBackAt,
		Names: keep.Names, Fingerprints: keep.Fingerprints,
	}
	for try := range 4 {
		name, err := s.q.TakeSlot(ctx, take)
		switch {
		case err == nil:
			return name, true, time.Time{}, nil
		case breaks(err, uniqueViolation, constraintOneHold):
			continue // the same key under another name was taken at this moment: look again
		case !errors.Is(err, pgx.ErrNoRows):
			return "", false, time.Time{}, err
		}
		added, err := s.q.AddSlots(ctx, db.AddSlotsParams{Pool: pool, Names: take.Names})
		if err != nil {
			return "", false, time.Time{}, err
		}
		if added == 0 && try > 0 { // at first, none added may mean that another added them at this moment
			break
		}
	}
	back, err := s.q.NextSlotBack(ctx, pool)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return "", false, back, err
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
func (s *Store) Release(ctx context.Context, c broker.Credential, present []byte, now time.Time) error {
	return s.q.ReleaseSlot(ctx, db.ReleaseSlotParams{
		CredentialID: new(string(c.ID)), VersionID: string(c.Version.ID), Present: present, Now: &now,
	})
}

// Quarantine implements broker.Slots.
func (s *Store) Quarantine(ctx context.Context, id broker.CredentialID) error {
	return s.q.QuarantineSlot(ctx, new(string(id)))
}

// Slots counts the keys of each pool, and the service accounts, by state.
func (s *Store) Slots(ctx context.Context) ([]broker.Count, error) {
	rows, err := s.q.SlotStates(ctx)
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

// Troubled counts the versions of each provider that are revoking, lost or stuck.
func (s *Store) Troubled(ctx context.Context) ([]broker.Count, error) {
	rows, err := s.q.CountTroubled(ctx)
	list := make([]broker.Count, 0, len(rows))
	for _, r := range rows {
		list = append(list, broker.Count{Of: r.Provider, State: r.State, N: r.Versions})
	}
	return list, err
}
