package openapi

import (
	"context"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
)

// ReportCredential implements StrictServerInterface.
func (s *server) ReportCredential(ctx context.Context, r ReportCredentialRequestObject) (ReportCredentialResponseObject, error) {
	advice, err := s.Broker.Report(ctx, *callerOf(ctx), broker.CredentialID(r.ID), broker.Report{
		Version: r.Body.Version, Status: r.Body.Status, RetryAfter: time.Duration(r.Body.RetryAfterSeconds) * time.Second,
	})
	if err != nil {
		return nil, err
	}
	return ReportCredential200JSONResponse{
		Action: AdviceAction(advice.Action), Cause: advice.Cause, Version: advice.Version,
		RetryAfterSeconds: float32(advice.RetryAfter.Seconds()),
	}, nil
}

// ListPoolKeys implements StrictServerInterface.
func (s *server) ListPoolKeys(ctx context.Context, r ListPoolKeysRequestObject) (ListPoolKeysResponseObject, error) {
	keys, err := s.Broker.PoolKeys(ctx, *callerOf(ctx), r.Pool)
	if err != nil {
		return nil, err
	}
	out := ListPoolKeys200JSONResponse{Keys: make([]PoolKey, len(keys))}
	for i, k := range keys {
		out.Keys[i] = poolKey(k)
	}
	return out, nil
}

// AddPoolKey implements StrictServerInterface.
func (s *server) AddPoolKey(ctx context.Context, r AddPoolKeyRequestObject) (AddPoolKeyResponseObject, error) {
	k, err := s.Broker.AddKey(ctx, *callerOf(ctx), broker.NewKey{
		Pool: r.Pool, Name: r.Body.Name, Value: broker.NewSecret(r.Body.Value), VendorID: r.Body.VendorID,
		Scopes: r.Body.Scopes, Labels: r.Body.Labels,
	})
	if err != nil {
		return nil, err
	}
	return AddPoolKey201JSONResponse(poolKey(k)), nil
}

// RotatePoolKey implements StrictServerInterface.
func (s *server) RotatePoolKey(ctx context.Context, r RotatePoolKeyRequestObject) (RotatePoolKeyResponseObject, error) {
	k, err := s.Broker.RotateKey(ctx, *callerOf(ctx), broker.NewKey{
		Pool: r.Pool, Name: r.Key, Value: broker.NewSecret(r.Body.Value), VendorID: r.Body.VendorID,
		Deadline: time.Duration(r.Body.DeadlineSeconds) * time.Second,
	})
	if err != nil {
		return nil, err
	}
	return RotatePoolKey202JSONResponse(poolKey(k)), nil
}

// ChangePoolKey implements StrictServerInterface.
func (s *server) ChangePoolKey(ctx context.Context, r ChangePoolKeyRequestObject) (ChangePoolKeyResponseObject, error) {
	caller, reason := *callerOf(ctx), ""
	if r.Body != nil {
		reason = r.Body.Reason
	}
	var k broker.PoolKey
	var err error
	switch r.Action {
	case Abort:
		k, err = s.Broker.AbortRotation(ctx, caller, r.Pool, r.Key)
	case Free:
		k, err = s.Broker.SetKey(ctx, caller, r.Pool, r.Key, broker.KeyAvailable, reason)
	case Quarantine:
		k, err = s.Broker.SetKey(ctx, caller, r.Pool, r.Key, broker.KeyQuarantined, reason)
	case Retire:
		k, err = s.Broker.SetKey(ctx, caller, r.Pool, r.Key, broker.KeyRetired, reason)
	}
	if err != nil {
		return nil, err
	}
	return ChangePoolKey200JSONResponse(poolKey(k)), nil
}

func poolKey(k broker.PoolKey) PoolKey {
	out := PoolKey{
		Name: k.Name, State: PoolKeyState(k.State), Reason: k.Why, Source: Reference, Scopes: k.Scopes, Labels: k.Labels,
		VendorID: k.VendorID, Fingerprint: audit.Fingerprint(k.Fingerprint), ChangedAt: k.ChangedAt, Refusals: k.Strikes,
		Seats: k.Seats, BackAt: k.BackAt, UnconfirmedReports: k.Unconfirmed, Problem: k.Problem,
	}
	if k.Sealed {
		out.Source = Sealed
	}
	if r := k.Rotation; r != nil {
		out.Rotation = Rotation{
			ID: r.ID, OldFingerprint: audit.Fingerprint(r.OldFingerprint), NewFingerprint: audit.Fingerprint(r.NewFingerprint),
			StartedAt: r.StartedAt, Deadline: r.Deadline, Holders: r.Holders, Moved: r.Moved,
		}
	}
	return out
}
