package gcp

import (
	"context"
	"slices"
	"strings"

	"cloud.google.com/go/iam/admin/apiv1/adminpb"
	"cloud.google.com/go/iam/apiv1/iampb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"
)

type adminService struct {
	adminpb.UnimplementedIAMServer
	s *Server
}

// named finds the account that a request names, for a caller that may do so. Under a
// wildcard project what does not exist is "permission denied". With s.mu held.
func (s *Server) named(ctx context.Context, name, permission string) (*account, error) {
	project, id, ok := accountOf(name)
	if !ok {
		return nil, invalidArgument("name", "Invalid form.")
	}
	if callerOf(ctx) != s.cfg.BrokerEmail || project != "-" && project != s.cfg.Project || slices.Contains(s.cfg.BrokerLacks, permission) {
		return nil, permissionDenied(permission, name)
	}
	a := s.find(id)
	if a == nil && project == "-" {
		return nil, permissionDenied(permission, name)
	}
	if a == nil {
		return nil, refuse(codes.NotFound, "Unknown service account")
	}
	return a, nil
}

func (s *Server) describe(a *account) *adminpb.ServiceAccount {
	return &adminpb.ServiceAccount{
		Name: "projects/" + s.cfg.Project + "/serviceAccounts/" + a.email, ProjectId: s.cfg.Project,
		UniqueId: a.uniqueID, Email: a.email, DisplayName: a.displayName, Oauth2ClientId: a.uniqueID, Disabled: a.disabled,
	}
}

// GetServiceAccount implements adminpb.IAMServer.
func (i adminService) GetServiceAccount(ctx context.Context, in *adminpb.GetServiceAccountRequest) (*adminpb.ServiceAccount, error) {
	i.s.mu.Lock()
	defer i.s.mu.Unlock()
	a, err := i.s.named(ctx, in.GetName(), "iam.serviceAccounts.get")
	if err != nil {
		return nil, err
	}
	return i.s.describe(a), nil
}

// ListServiceAccounts implements adminpb.IAMServer. Pages hold 20 by default, 100 at
// most; a page's token is the last email before it.
func (i adminService) ListServiceAccounts(ctx context.Context, in *adminpb.ListServiceAccountsRequest) (*adminpb.ListServiceAccountsResponse, error) {
	s := i.s
	if err := s.mayInProject(ctx, in.GetName(), "iam.serviceAccounts.list"); err != nil {
		return nil, err
	}
	size := int(in.GetPageSize())
	if size < 0 {
		return nil, invalidArgument("page_size", "Must not be negative.")
	}
	if size == 0 {
		size = 20
	}
	size = min(size, 100)
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &adminpb.ListServiceAccountsResponse{}
	for _, a := range s.sorted() {
		if a.email <= in.GetPageToken() || !a.hidden.seen(s.cfg.Now()) {
			continue
		}
		if len(out.Accounts) == size {
			out.NextPageToken = out.Accounts[size-1].GetEmail()
			break
		}
		out.Accounts = append(out.Accounts, s.describe(a))
	}
	return out, nil
}

func (s *Server) mayInProject(ctx context.Context, name, permission string) error {
	if name != "projects/"+s.cfg.Project || callerOf(ctx) != s.cfg.BrokerEmail {
		return permissionDenied(permission, name)
	}
	return nil
}

// CreateServiceAccount implements adminpb.IAMServer.
func (i adminService) CreateServiceAccount(ctx context.Context, in *adminpb.CreateServiceAccountRequest) (*adminpb.ServiceAccount, error) {
	s := i.s
	if err := s.mayInProject(ctx, in.GetName(), "iam.serviceAccounts.create"); err != nil {
		return nil, err
	}
	if !accountIDPattern.MatchString(in.GetAccountId()) {
		return nil, invalidArgument("account_id", "Must be 6-30 characters, and match [a-z]([-a-z0-9]*[a-z0-9]).")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.accounts[s.Email(in.GetAccountId())] != nil {
		return nil, refuse(codes.AlreadyExists, "Service account "+in.GetAccountId()+" already exists within project.")
	}
	if len(s.accounts) >= s.cfg.MaxAccounts {
		return nil, refuse(codes.ResourceExhausted, "Maximum number of service accounts on project reached.",
			&errdetails.QuotaFailure{Violations: []*errdetails.QuotaFailure_Violation{{Subject: "project:" + s.cfg.Project, Description: "service accounts"}}})
	}
	a := s.newAccount(in.GetAccountId())
	a.displayName = in.GetServiceAccount().GetDisplayName()
	s.accounts[a.email] = a
	return s.describe(a), nil
}

// EnableServiceAccount implements adminpb.IAMServer.
func (i adminService) EnableServiceAccount(ctx context.Context, in *adminpb.EnableServiceAccountRequest) (*emptypb.Empty, error) {
	return i.s.setDisabled(ctx, in.GetName(), "iam.serviceAccounts.enable", false)
}

// DisableServiceAccount implements adminpb.IAMServer.
func (i adminService) DisableServiceAccount(ctx context.Context, in *adminpb.DisableServiceAccountRequest) (*emptypb.Empty, error) {
	return i.s.setDisabled(ctx, in.GetName(), "iam.serviceAccounts.disable", true)
}

func (s *Server) setDisabled(ctx context.Context, name, permission string, disabled bool) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := s.named(ctx, name, permission)
	if err != nil {
		return nil, err
	}
	a.disabled = disabled
	return &emptypb.Empty{}, nil
}

// keyOf finds projects/…/serviceAccounts/…/keys/ID. With s.mu held.
func (s *Server) keyOf(ctx context.Context, name, permission string) (*key, error) {
	of, id, ok := strings.Cut(name, "/keys/")
	if !ok || id == "" || strings.Contains(id, "/") {
		return nil, invalidArgument("name", "Invalid form.")
	}
	a, err := s.named(ctx, of, permission)
	if err != nil {
		return nil, err
	}
	k := a.keys[id]
	if k == nil || !k.hidden.seen(s.cfg.Now()) {
		return nil, refuse(codes.NotFound, "Service account key "+id+" does not exist.")
	}
	return k, nil
}

// TestIamPermissions implements adminpb.IAMServer by the same rules that the calls are held to: the broker looks after
// accounts, and token creators make tokens. It needs no permission.
func (i adminService) TestIamPermissions(ctx context.Context, in *iampb.TestIamPermissionsRequest) (*iampb.TestIamPermissionsResponse, error) {
	s := i.s
	_, id, ok := accountOf(in.GetResource())
	if !ok {
		return nil, invalidArgument("resource", "Invalid form.")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out, caller, a := &iampb.TestIamPermissionsResponse{}, callerOf(ctx), s.find(id)
	for _, permission := range in.GetPermissions() {
		has := caller == s.cfg.BrokerEmail && !slices.Contains(s.cfg.BrokerLacks, permission)
		if permission == "iam.serviceAccounts.getAccessToken" || permission == "iam.serviceAccounts.getOpenIdToken" {
			has = a != nil && a.creators[caller]
		}
		if has && a != nil {
			out.Permissions = append(out.Permissions, permission)
		}
	}
	return out, nil
}

// ListServiceAccountKeys implements adminpb.IAMServer. Expired keys stay on the list.
func (i adminService) ListServiceAccountKeys(ctx context.Context, in *adminpb.ListServiceAccountKeysRequest) (*adminpb.ListServiceAccountKeysResponse, error) {
	i.s.mu.Lock()
	defer i.s.mu.Unlock()
	a, err := i.s.named(ctx, in.GetName(), "iam.serviceAccountKeys.list")
	if err != nil {
		return nil, err
	}
	out := &adminpb.ListServiceAccountKeysResponse{}
	types := in.GetKeyTypes()
	for _, k := range sortedKeys(a) {
		if k.hidden.seen(i.s.cfg.Now()) && (len(types) == 0 || slices.Contains(types, adminpb.ListServiceAccountKeysRequest_USER_MANAGED)) {
			out.Keys = append(out.Keys, i.s.describeKey(k))
		}
	}
	return out, nil
}

// GetServiceAccountKey implements adminpb.IAMServer: public key data only on request.
func (i adminService) GetServiceAccountKey(ctx context.Context, in *adminpb.GetServiceAccountKeyRequest) (*adminpb.ServiceAccountKey, error) {
	i.s.mu.Lock()
	defer i.s.mu.Unlock()
	k, err := i.s.keyOf(ctx, in.GetName(), "iam.serviceAccountKeys.get")
	if err != nil {
		return nil, err
	}
	out := i.s.describeKey(k)
	switch in.GetPublicKeyType() {
	case adminpb.ServiceAccountPublicKeyType_TYPE_X509_PEM_FILE:
		out.PublicKeyData = k.pem
	case adminpb.ServiceAccountPublicKeyType_TYPE_RAW_PUBLIC_KEY:
		out.PublicKeyData = k.rawPublic()
	}
	return out, nil
}

// UploadServiceAccountKey implements adminpb.IAMServer.
func (i adminService) UploadServiceAccountKey(ctx context.Context, in *adminpb.UploadServiceAccountKeyRequest) (*adminpb.ServiceAccountKey, error) {
	i.s.mu.Lock()
	defer i.s.mu.Unlock()
	a, err := i.s.named(ctx, in.GetName(), "iam.serviceAccountKeys.create")
	if err != nil {
		return nil, err
	}
	k, err := i.s.addKey(a, in.GetPublicKeyData())
	if err != nil {
		return nil, err
	}
	return i.s.describeKey(k), nil
}

// DeleteServiceAccountKey implements adminpb.IAMServer. It "does not revoke short-lived
// credentials that have been issued based on the service account key".
func (i adminService) DeleteServiceAccountKey(ctx context.Context, in *adminpb.DeleteServiceAccountKeyRequest) (*emptypb.Empty, error) {
	i.s.mu.Lock()
	defer i.s.mu.Unlock()
	k, err := i.s.keyOf(ctx, in.GetName(), "iam.serviceAccountKeys.delete")
	if err != nil {
		return nil, err
	}
	delete(k.account.keys, k.id)
	return &emptypb.Empty{}, nil
}
