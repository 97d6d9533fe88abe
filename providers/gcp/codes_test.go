package gcp_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/iam/admin/apiv1/adminpb"
	"cloud.google.com/go/iam/credentials/apiv1/credentialspb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/gcp"
	"github.com/taskpass/taskpass/providers/providertest"
)

// refusing answers each call with one error.
type refusing struct{ err error }

func (r *refusing) intercept(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
	return nil, r.err
}

// What google.rpc's codes and Google's published reasons mean, to a mint and to a write.
func TestPublishedCodes(t *testing.T) {
	t.Parallel()
	server := &refusing{}
	rpc := grpc.NewServer(grpc.UnaryInterceptor(server.intercept))
	credentialspb.RegisterIAMCredentialsServer(rpc, credentialspb.UnimplementedIAMCredentialsServer{})
	adminpb.RegisterIAMServer(rpc, &adminpb.UnimplementedIAMServer{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = rpc.Serve(listener) }()
	t.Cleanup(rpc.Stop)
	clock := providertest.NewClock()
	p := at(t, "http://"+listener.Addr().String(), clock)

	const throttled, refused, failed = broker.CodeUpstreamThrottled, broker.CodeUpstreamRefused, broker.CodeUpstreamError
	const surelyNot, inDoubt = true, false
	for _, c := range []struct {
		code    codes.Code
		reason  string
		want    broker.Code
		nothing bool
		says    string
	}{
		{codes.ResourceExhausted, "", throttled, surelyNot, "quota"},
		{codes.ResourceExhausted, "RATE_LIMIT_EXCEEDED", throttled, surelyNot, "quota"},
		{codes.ResourceExhausted, "RESOURCE_QUOTA_EXCEEDED", throttled, surelyNot, "quota"},
		{codes.Unavailable, "", failed, inDoubt, "reached"},
		{codes.Internal, "", failed, inDoubt, "failed"},
		{codes.Unknown, "", failed, inDoubt, "failed"},
		{codes.DataLoss, "", failed, inDoubt, "failed"},
		{codes.Aborted, "", failed, inDoubt, "somebody else"},
		{codes.DeadlineExceeded, "", broker.CodeUpstreamTimeout, inDoubt, "in time"},
		{codes.Canceled, "", broker.CodeUpstreamTimeout, inDoubt, "in time"},
		{codes.Unauthenticated, "", refused, surelyNot, "credentials"},
		{codes.Unauthenticated, "ACCESS_TOKEN_EXPIRED", refused, surelyNot, "credentials"},
		{codes.Unauthenticated, "ACCESS_TOKEN_TYPE_UNSUPPORTED", refused, surelyNot, "credentials"},
		{codes.Unauthenticated, "CREDENTIALS_MISSING", refused, surelyNot, "credentials"},
		{codes.Unauthenticated, "JWT_TOKEN_INVALID", refused, surelyNot, "credentials"},
		{codes.PermissionDenied, "ACCESS_TOKEN_SCOPE_INSUFFICIENT", refused, surelyNot, "credentials"},
		{codes.PermissionDenied, "", refused, surelyNot, "roles"},
		{codes.PermissionDenied, "IAM_PERMISSION_DENIED", refused, surelyNot, "roles"},
		{codes.PermissionDenied, "SERVICE_DISABLED", refused, surelyNot, "enable"},
		{codes.PermissionDenied, "BILLING_DISABLED", refused, surelyNot, "billing"},
		{codes.PermissionDenied, "CONSUMER_SUSPENDED", refused, surelyNot, "billing"},
		{codes.PermissionDenied, "CONSUMER_INVALID", refused, surelyNot, "billing"},
		{codes.PermissionDenied, "USER_PROJECT_DENIED", refused, surelyNot, "billing"},
		{codes.PermissionDenied, "SECURITY_POLICY_VIOLATED", refused, surelyNot, "VPC Service Controls"},
		{codes.PermissionDenied, "ORG_RESTRICTION_VIOLATION", refused, surelyNot, "VPC Service Controls"},
		{codes.PermissionDenied, "LOCATION_POLICY_VIOLATED", refused, surelyNot, "VPC Service Controls"},
		{codes.PermissionDenied, "ACCOUNT_STATE_INVALID", refused, surelyNot, "disabled"},
		{codes.NotFound, "", refused, surelyNot, "does not exist"},
		{codes.InvalidArgument, "", refused, surelyNot, "form"},
		{codes.OutOfRange, "", refused, inDoubt, "form"},
		{codes.FailedPrecondition, "", refused, surelyNot, "state"},
		{codes.AlreadyExists, "", refused, surelyNot, "already"},
		{codes.Unimplemented, "", refused, surelyNot, "endpoints"},
		{codes.Code(99), "", failed, inDoubt, "failed"},
	} {
		st, err := status.New(c.code, providertest.Canary).WithDetails(&errdetails.RequestInfo{RequestId: "req-42"})
		if c.reason != "" {
			st, err = st.WithDetails(&errdetails.ErrorInfo{Reason: c.reason, Domain: "googleapis.com"})
		}
		if err != nil {
			t.Fatal(err)
		}
		server.err = st.Err()
		_, err = p.Mint(t.Context(), credentialOf(clock))
		if e := broker.AsError(err); e.Code != c.want || errors.Is(err, broker.ErrNotMinted) != c.nothing || !strings.Contains(e.Message, c.says) {
			t.Errorf("%s %s: %v, surely nothing: %t; want %s, to be told of %q", c.code, c.reason, err, errors.Is(err, broker.ErrNotMinted), c.want, c.says)
		}
		want := broker.VendorAnswer{Vendor: "Google", Action: "GenerateAccessToken", Code: c.code.String(), RequestID: "req-42"}
		if c.reason != "" {
			want.Code += "/" + c.reason
		}
		if got := broker.VendorAnswers(err); len(got) == 0 || got[0] != want {
			t.Errorf("%s %s: the log would have %v; want %v", c.code, c.reason, got, want)
		}
	}
}

func at(t *testing.T, address string, clock *providertest.Clock) *gcp.Provider {
	t.Helper()
	return open(t, gcp.Config{
		Mode: "impersonate", ServiceAccount: "agents@taskpass-sandbox.iam.gserviceaccount.com", TokenFile: providertest.SecretFile(t, "token"),
		Grace: new(time.Duration(0)), Endpoints: gcp.Endpoints{Credentials: address, Admin: address, STS: address, Token: address},
		Scopes: map[string]gcp.Scope{"read": {}},
	}, nil, clock.Now)
}

func credentialOf(clock *providertest.Clock) broker.Credential {
	now := clock.Now()
	return broker.Credential{TaskID: "t", AgentID: "a", Scopes: []string{"read"}, Version: broker.Version{
		ID: broker.NewVersionID(), Number: 1, IssuedAt: now, ExpiresAt: now.Add(10 * time.Minute),
	}}
}

// A page of a proxy's or a login's is not Google's word, whatever its status: gRPC would take the status for a code.
func TestPages(t *testing.T) {
	t.Parallel()
	for _, code := range []int{200, 302, 400, 401, 403, 404, 407, 408, 500} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		web := &http.Server{ReadHeaderTimeout: time.Minute, Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(code)
			_, _ = w.Write([]byte("<html>" + providertest.Canary + "</html>"))
		})}
		web.Protocols.SetUnencryptedHTTP2(true)
		go func() { _ = web.Serve(listener) }()
		clock := providertest.NewClock()
		_, err = at(t, "http://"+listener.Addr().String(), clock).Mint(t.Context(), credentialOf(clock))
		_ = web.Close()
		if e := broker.AsError(err); err == nil || e.Code != broker.CodeUpstreamError || errors.Is(err, broker.ErrNotMinted) {
			t.Errorf("a page with status %d: %v; want %s, and doubt", code, err, broker.CodeUpstreamError)
		}
		if got := broker.VendorAnswers(err); len(got) == 0 || got[0].Action != "GenerateAccessToken" {
			t.Errorf("a page with status %d: the log would have %v", code, got)
		}
	}
}
