package gcp

import (
	"context"
	"slices"
	"time"

	"cloud.google.com/go/iam/credentials/apiv1/credentialspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Longest lives of an access token (REST reference, generateAccessToken, "lifetime").
const (
	maxLifetime  = time.Hour
	longLifetime = 12 * time.Hour
)

// idTokenLife is fixed by Google.
const idTokenLife = time.Hour

type credentialsService struct {
	credentialspb.UnimplementedIAMCredentialsServer
	s *Server
}

// GenerateAccessToken implements credentialspb.IAMCredentialsServer.
func (c credentialsService) GenerateAccessToken(ctx context.Context, in *credentialspb.GenerateAccessTokenRequest) (*credentialspb.GenerateAccessTokenResponse, error) {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := s.impersonated(callerOf(ctx), in.GetName(), in.GetDelegates(), "iam.serviceAccounts.getAccessToken")
	if err != nil {
		return nil, err
	}
	if len(in.GetScope()) == 0 {
		return nil, invalidArgument("scope", "At least one value required.")
	}
	lifetime := maxLifetime
	if in.GetLifetime() != nil {
		lifetime = in.GetLifetime().AsDuration()
	}
	limit := maxLifetime
	if slices.Contains(s.cfg.LongLifetime, a.email) {
		limit = longLifetime
	}
	if lifetime <= 0 || lifetime > limit || in.GetLifetime().GetNanos() != 0 {
		return nil, invalidArgument("lifetime", "The lifetime exceeds what is allowed for the service account.")
	}
	value, t := s.issue(token{
		account: a, caller: callerOf(ctx), delegates: in.GetDelegates(), scopes: slices.Clone(in.GetScope()), reason: reasonOf(ctx),
	}, lifetime)
	return &credentialspb.GenerateAccessTokenResponse{AccessToken: value, ExpireTime: timestamppb.New(t.expires)}, nil
}

// GenerateIdToken implements credentialspb.IAMCredentialsServer.
func (c credentialsService) GenerateIdToken(ctx context.Context, in *credentialspb.GenerateIdTokenRequest) (*credentialspb.GenerateIdTokenResponse, error) {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := s.impersonated(callerOf(ctx), in.GetName(), in.GetDelegates(), "iam.serviceAccounts.getOpenIdToken")
	if err != nil {
		return nil, err
	}
	if in.GetAudience() == "" {
		return nil, invalidArgument("audience", "Required.")
	}
	signed, err := s.signIDToken(a, in.GetAudience(), in.GetIncludeEmail())
	if err != nil {
		return nil, refuse(codes.Internal, "signing failed")
	}
	return &credentialspb.GenerateIdTokenResponse{Token: signed}, nil
}

// impersonated walks the chain from the caller over the delegates to the account: each
// must hold roles/iam.serviceAccountTokenCreator on the next. With s.mu held.
func (s *Server) impersonated(caller, name string, delegates []string, permission string) (*account, error) {
	for i, link := range append(slices.Clone(delegates), name) {
		project, id, ok := accountOf(link)
		if !ok || project != "-" {
			return nil, invalidArgument("name", "Must be projects/-/serviceAccounts/{ACCOUNT_EMAIL_OR_UNIQUEID}.")
		}
		a := s.find(id)
		switch {
		case a == nil && s.accounts[id] != nil: // there, and not visible yet
			return nil, refuse(codes.NotFound, "Not found; Gaia id not found for email "+id)
		case a == nil:
			return nil, permissionDenied(permission, link)
		case !a.creators[caller] && i < len(delegates):
			return nil, permissionDenied("iam.serviceAccounts.implicitDelegation", link)
		case !a.creators[caller]:
			return nil, permissionDenied(permission, link)
		case a.disabled:
			return nil, accountDisabled()
		case i == len(delegates):
			return a, nil
		}
		caller = a.email
	}
	return nil, refuse(codes.Internal, "unreachable")
}
