package store

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store/db"
)

// Occupy implements broker.Accounts. Accounts are known to the database from the first time they are offered.
func (s *Store) Occupy(ctx context.Context, c broker.Credential, emails []string, most int, aliveUntil, now time.Time) (broker.Occupied, bool, time.Time, error) {
	id, version := string(c.ID), string(c.Version.ID)
	if c.Version.Number > 1 { // the first one's credential holds none yet
		kept, err := s.q.KeepAccount(ctx, db.KeepAccountParams{
			CredentialID: &id, VersionID: version, Emails: emails, AliveUntil: aliveUntil, Now: &now,
		})
		if err == nil {
			return broker.Occupied{Email: kept, Awake: true, Kept: true}, true, time.Time{}, nil
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return broker.Occupied{}, false, time.Time{}, err
		}
	}
	take := db.TakeAccountParams{
		CredentialID: &id, VersionID: &version, Emails: emails, AliveUntil: &aliveUntil, Now: &now,
		Caller: c.Caller, Most: int32(most), //nolint:gosec // at most the number of accounts
	}
	for try := range 4 {
		row, err := s.takeAccount(ctx, take)
		if err == nil {
			return broker.Occupied{Email: row.Email, Awake: row.Awake, AwakeAt: orZero(row.AwakeAt)}, true, time.Time{}, nil
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return broker.Occupied{}, false, time.Time{}, err
		}
		added, err := s.q.AddAccounts(ctx, emails)
		if err != nil {
			return broker.Occupied{}, false, time.Time{}, err
		}
		if added == 0 && try > 0 { // at first, none added may mean that another added them at this moment
			break
		}
	}
	if most > 0 {
		used, err := s.q.AccountsUsed(ctx, db.AccountsUsedParams{Emails: emails, Caller: c.Caller, Now: &now})
		if err != nil {
			return broker.Occupied{}, false, time.Time{}, err
		}
		if used.Used >= int64(most) {
			back, _ := used.Back.(time.Time)
			return broker.Occupied{}, false, back, broker.ErrOverShare
		}
	}
	back, err := s.q.NextAccountBack(ctx, db.NextAccountBackParams{Emails: emails, Now: &now})
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return broker.Occupied{}, false, back, err
}

// takeAccount sends the statement, where there is a share behind the lock of its caller.
func (s *Store) takeAccount(ctx context.Context, take db.TakeAccountParams) (row db.TakeAccountRow, err error) {
	if take.Most == 0 {
		return s.q.TakeAccount(ctx, take)
	}
	err = s.oneAtATime(ctx, "accounts/"+take.Caller, func(q *db.Queries) error {
		row, err = q.TakeAccount(ctx, take)
		return err
	})
	return row, err
}

// Vacate implements broker.Accounts.
func (s *Store) Vacate(ctx context.Context, c broker.Credential, until time.Time) error {
	return s.q.VacateAccount(ctx, db.VacateAccountParams{
		CredentialID: new(string(c.ID)), VersionID: new(string(c.Version.ID)), Until: orNil(until),
	})
}

// Prolong implements broker.Accounts.
func (s *Store) Prolong(ctx context.Context, c broker.Credential, aliveUntil time.Time) error {
	n, err := s.q.ProlongAccount(ctx, db.ProlongAccountParams{CredentialID: new(string(c.ID)), AliveUntil: aliveUntil})
	if err == nil && n == 0 {
		err = broker.ErrMoved
	}
	return err
}

// Rest implements broker.Accounts.
func (s *Store) Rest(ctx context.Context, c broker.Credential) ([]broker.Account, error) {
	err := s.q.RestAccount(ctx, db.RestAccountParams{CredentialID: new(string(c.ID)), VersionID: string(c.Version.ID)})
	if err != nil {
		return nil, err
	}
	rows, err := s.q.AccountsOf(ctx, new(string(c.ID)))
	list := make([]broker.Account, 0, len(rows))
	for _, r := range rows {
		list = append(list, account(db.AccountStatesRow{
			Email: r.Email, State: r.State, AliveUntil: r.AliveUntil, StoppedAt: r.StoppedAt, Found: r.Found, CredentialID: r.CredentialID, LastUsedAt: r.LastUsedAt,
		}))
	}
	return list, err
}

// Stopped implements broker.Accounts.
func (s *Store) Stopped(ctx context.Context, email string, now time.Time) error {
	return s.q.StoppedAccount(ctx, db.StoppedAccountParams{Email: email, Now: &now})
}

// Accounts implements broker.AccountRounds.
func (s *Store) Accounts(ctx context.Context, emails []string) ([]broker.Account, error) {
	rows, err := s.q.AccountStates(ctx, emails)
	list := make([]broker.Account, 0, len(rows))
	for _, r := range rows {
		list = append(list, account(r))
	}
	return list, err
}

func account(r db.AccountStatesRow) broker.Account {
	a := broker.Account{Email: r.Email, State: broker.AccountState(r.State), Found: r.Found, Idle: r.Idle}
	a.AliveUntil, a.UsedAt, a.StoppedAt = orZero(r.AliveUntil), orZero(r.LastUsedAt), orZero(r.StoppedAt)
	if r.CredentialID != nil {
		a.Holder = broker.CredentialID(*r.CredentialID)
	}
	return a
}

// RestIdle implements broker.AccountRounds.
func (s *Store) RestIdle(ctx context.Context, a broker.Account) error {
	return s.q.RestIdleAccount(ctx, db.RestIdleAccountParams{Email: a.Email, CredentialID: new(string(a.Holder))})
}

// Wake implements broker.AccountRounds.
func (s *Store) Wake(ctx context.Context, email string, now, until time.Time) (bool, error) {
	n, err := s.q.WakeAccount(ctx, db.WakeAccountParams{Email: email, Now: &now, Until: &until})
	return n == 1, err
}

// Awake implements broker.AccountRounds.
func (s *Store) Awake(ctx context.Context, email string, now, until time.Time) error {
	return s.q.AccountAwake(ctx, db.AccountAwakeParams{Email: email, Now: &now, Until: &until})
}

// Report implements broker.AccountRounds.
func (s *Store) Report(ctx context.Context, email, found string, e broker.Event) error {
	w := &write{events: []broker.Event{e}}
	return s.commit(ctx, w, func(q *db.Queries) error {
		return q.AccountFound(ctx, db.AccountFoundParams{Email: email, Found: found})
	})
}
