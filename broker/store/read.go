package store

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store/db"
)

// Credential implements broker.Versions.
func (s *Store) Credential(ctx context.Context, id broker.CredentialID) (broker.Credential, error) {
	row, err := s.q.FindCredential(ctx, string(id))
	if err != nil {
		return broker.Credential{}, orNoSuch(err)
	}
	return toCredential(row.Credential, row.Version)
}

// Latest implements broker.Versions.
func (s *Store) Latest(ctx context.Context, id broker.CredentialID) (broker.Credential, error) {
	row, err := s.q.LatestVersion(ctx, string(id))
	if err != nil {
		return broker.Credential{}, orNoSuch(err)
	}
	return toCredential(row.Credential, row.Version)
}

// Version implements broker.Versions.
func (s *Store) Version(ctx context.Context, id broker.VersionID) (broker.Credential, error) {
	row, err := s.q.FindVersion(ctx, string(id))
	if err != nil {
		return broker.Credential{}, orNoSuch(err)
	}
	return toCredential(row.Credential, row.Version)
}

// Delivered implements broker.Versions.
func (s *Store) Delivered(ctx context.Context, id broker.CredentialID) (bool, error) {
	return s.q.Delivered(ctx, string(id))
}

// Alive implements broker.Versions.
func (s *Store) Alive(ctx context.Context, id broker.CredentialID) ([]broker.Credential, error) {
	rows, err := s.q.AliveVersions(ctx, string(id))
	list := make([]broker.Credential, len(rows))
	for i, row := range rows {
		c, rowErr := toCredential(row.Credential, row.Version)
		list[i], err = c, errors.Join(err, rowErr)
	}
	return list, err
}

// Sealed implements broker.Versions.
func (s *Store) Sealed(ctx context.Context, id broker.VersionID) ([]byte, error) {
	sealed, err := s.q.SealedVersion(ctx, string(id))
	return sealed, orNoSuch(err)
}

// Repeated implements broker.Versions.
func (s *Store) Repeated(ctx context.Context, caller string, keySHA256 []byte) (broker.RequestKey, error) {
	row, err := s.q.FindIdempotency(ctx, db.FindIdempotencyParams{Caller: caller, KeySha256: keySHA256})
	k := broker.RequestKey{
		Caller: row.Caller, SHA256: row.KeySha256, RequestSHA256: row.RequestSha256, Seen: int(row.Seen), ExpiresAt: row.ExpiresAt,
	}
	for _, id := range row.Credentials {
		k.Credentials = append(k.Credentials, broker.CredentialID(id))
	}
	return k, orNoSuch(err)
}

// toCredential makes the domain's nouns of two rows.
func toCredential(c db.Credential, v db.Version) (broker.Credential, error) {
	var metadata, trace map[string]string
	if err := errors.Join(json.Unmarshal(c.Metadata, &metadata), json.Unmarshal(v.Trace, &trace)); err != nil {
		return broker.Credential{}, err
	}
	return broker.Credential{
		ID: broker.CredentialID(c.ID), TaskID: c.TaskID, Parent: c.ParentTaskID, AgentID: c.AgentID, Profile: c.Profile, Provider: c.Provider,
		Caller: c.Caller, Requested: c.Requested, Scopes: c.Scopes, Metadata: metadata,
		TTL: time.Duration(c.TtlMs) * time.Millisecond, CreatedAt: c.CreatedAt.UTC(), HardEnd: orZero(c.HardEndAt), Strikes: int(c.Strikes),
		Version: broker.Version{
			ID: broker.VersionID(v.ID), Number: int(v.Number), State: broker.State(v.State),
			IssuedAt: v.IssuedAt.UTC(), ExpiresAt: v.ExpiresAt.UTC(), UpstreamExpiresAt: orZero(v.UpstreamExpiresAt),
			Unclaimed: v.Unclaimed, Succeed: v.Succeed, Ungiven: v.Ungiven, SelfExpires: v.SelfExpires, Upstream: v.Upstream, UpstreamIDs: v.UpstreamIds, Trace: trace,
			Fingerprint: v.Fingerprint, Cause: broker.Cause(v.Cause), Reason: v.Reason,
			Revocation: broker.Revocation{
				Result: broker.Result(v.Result), EffectiveAt: orZero(v.EffectiveAt), Basis: v.Basis,
			},
			LastError: broker.Code(v.LastError), Attempts: int(v.Attempts),
			DueAt: orZero(v.DueAt), EndedAt: orZero(v.EndedAt),
		},
	}, nil
}
