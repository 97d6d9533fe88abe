package gcp_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/iam/admin/apiv1/adminpb"
	"cloud.google.com/go/iam/credentials/apiv1/credentialspb"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/api/iterator"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/taskpass/taskpass/providers/sandbox/gcp"
)

func TestTokensOfADisabledAccountAreRefusedAndRevive(t *testing.T) {
	t.Parallel()
	r := start(t)
	token := r.mustMint(t, "worker-a", time.Hour)
	if got := r.get(t, token, "tasks/a/brief.txt"); got != http.StatusOK {
		t.Fatalf("fresh: %d", got)
	}
	account := &adminpb.DisableServiceAccountRequest{Name: name(r.Email("worker-a"))}
	if err := r.admin.DisableServiceAccount(t.Context(), account); err != nil {
		t.Fatal(err)
	}
	if got, body := r.do(t, token, http.MethodGet, "/storage/v1/b/data/o/tasks%2Fa%2Fbrief.txt?alt=media", ""); got != http.StatusUnauthorized || !strings.Contains(string(body), "ACCOUNT_STATE_INVALID") {
		t.Errorf("disabled: %d %s", got, body)
	}
	if r.Usable(token) {
		t.Error("usable while disabled")
	}
	if _, err := r.mint(t, "worker-a", time.Hour); status.Code(err) != codes.PermissionDenied || reason(t, err) != "ACCOUNT_STATE_INVALID" {
		t.Errorf("minting for a disabled account: %v", err)
	}
	if err := r.admin.EnableServiceAccount(t.Context(), &adminpb.EnableServiceAccountRequest{Name: account.GetName()}); err != nil {
		t.Fatal(err)
	}
	if got := r.get(t, token, "tasks/a/brief.txt"); got != http.StatusOK {
		t.Errorf("enabled again: %d", got)
	}
	r.clock.Advance(time.Hour)
	if got := r.get(t, token, "tasks/a/brief.txt"); got != http.StatusUnauthorized || r.Usable(token) {
		t.Errorf("expired: %d", got)
	}
}

func TestLifetimes(t *testing.T) {
	t.Parallel()
	r := start(t, func(c *gcp.Config) {
		c.LongLifetime = []string{"worker-b@taskpass-sandbox.iam.gserviceaccount.com"}
	})
	for _, c := range []struct {
		account string
		life    time.Duration
		want    codes.Code
	}{
		{"worker-a", time.Second, codes.OK},
		{"worker-a", time.Hour, codes.OK},
		{"worker-a", time.Hour + time.Second, codes.InvalidArgument},
		{"worker-b", 12 * time.Hour, codes.OK},
		{"worker-b", 12*time.Hour + time.Second, codes.InvalidArgument},
		{"worker-a", -time.Second, codes.InvalidArgument},
	} {
		if _, err := r.mint(t, c.account, c.life); status.Code(err) != c.want {
			t.Errorf("%s for %s: %v", c.account, c.life, err)
		}
	}
	out, err := r.tokens.GenerateAccessToken(t.Context(), &credentialspb.GenerateAccessTokenRequest{Name: name(r.Email("worker-a"))})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("without a scope: %v %v", out, err)
	}
}

func TestDelegatesLinkByLink(t *testing.T) {
	t.Parallel()
	broker, first := "taskpass-broker@taskpass-sandbox.iam.gserviceaccount.com", "first-link@taskpass-sandbox.iam.gserviceaccount.com"
	r := start(t, func(c *gcp.Config) {
		c.Accounts = []gcp.Account{
			{Name: "first-link", TokenCreators: []string{broker}},
			{Name: "second-link", TokenCreators: []string{first}},
			{Name: "worker-a", TokenCreators: []string{"second-link@taskpass-sandbox.iam.gserviceaccount.com"}},
		}
	})
	if _, err := r.mint(t, "worker-a", time.Hour, "first-link", "second-link"); err != nil {
		t.Errorf("the whole chain: %v", err)
	}
	for _, chain := range [][]string{{}, {"first-link"}, {"second-link"}, {"second-link", "first-link"}} {
		if _, err := r.mint(t, "worker-a", time.Hour, chain...); status.Code(err) != codes.PermissionDenied || reason(t, err) != "IAM_PERMISSION_DENIED" {
			t.Errorf("over %v: %v", chain, err)
		}
	}
	r.SetDisabled(r.Email("second-link"), true)
	if _, err := r.mint(t, "worker-a", time.Hour, "first-link", "second-link"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("over a disabled link: %v", err)
	}
}

func TestIDToken(t *testing.T) {
	t.Parallel()
	r := start(t)
	out, err := r.tokens.GenerateIdToken(t.Context(), &credentialspb.GenerateIdTokenRequest{
		Name: name(r.Email("worker-a")), Audience: "https://service.example", IncludeEmail: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	_, body := r.do(t, "", http.MethodGet, "/oauth2/v3/certs", "")
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(body, &set); err != nil {
		t.Fatal(err)
	}
	parsed, err := jwt.ParseSigned(out.GetToken(), []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		jwt.Claims
		Email string `json:"email"`
	}
	if err := parsed.Claims(set.Keys[0], &claims); err != nil {
		t.Fatal(err)
	}
	expected := jwt.Expected{Issuer: "https://accounts.google.com", AnyAudience: jwt.Audience{"https://service.example"}, Time: r.clock.Now()}
	if err := claims.ValidateWithLeeway(expected, 0); err != nil || claims.Email != r.Email("worker-a") {
		t.Errorf("%v, %s", err, claims.Email)
	}
	if life := claims.Expiry.Time().Sub(claims.IssuedAt.Time()); life != time.Hour {
		t.Errorf("lives %s", life)
	}
}

func TestOnlyTheBrokerIsLetIn(t *testing.T) {
	t.Parallel()
	r := start(t)
	for _, token := range []string{"", "nonsense", r.mustMint(t, "worker-b", time.Hour)} {
		tokens, admin := r.clients(t, token)
		_, err := tokens.GenerateAccessToken(t.Context(), &credentialspb.GenerateAccessTokenRequest{
			Name: name(r.Email("worker-a")), Scope: []string{gcp.CloudPlatform},
		})
		if code := status.Code(err); code != codes.Unauthenticated && code != codes.PermissionDenied {
			t.Errorf("minting: %v", err)
		}
		err = admin.DisableServiceAccount(t.Context(), &adminpb.DisableServiceAccountRequest{Name: name(r.Email("worker-a"))})
		if code := status.Code(err); code != codes.Unauthenticated && code != codes.PermissionDenied {
			t.Errorf("disabling: %v", err)
		}
	}
	if info, _ := r.Account(r.Email("worker-a")); info.Disabled {
		t.Error("a stranger disabled it")
	}
}

func TestAccounts(t *testing.T) {
	t.Parallel()
	r := start(t, func(c *gcp.Config) { c.MaxAccounts = 4 })
	project := "projects/taskpass-sandbox"
	create := func(id string) error {
		_, err := r.admin.CreateServiceAccount(t.Context(), &adminpb.CreateServiceAccountRequest{
			Name: project, AccountId: id, ServiceAccount: &adminpb.ServiceAccount{DisplayName: "a worker"},
		})
		return err
	}
	r.Hide(gcp.Visibility{Calls: 1})
	for id, want := range map[string]codes.Code{"worker-a": codes.AlreadyExists, "Bad_ID": codes.InvalidArgument, "worker-c": codes.OK} {
		if err := create(id); status.Code(err) != want {
			t.Errorf("creating %s: %v", id, err)
		}
	}
	get := &adminpb.GetServiceAccountRequest{Name: project + "/serviceAccounts/" + r.Email("worker-c")}
	if _, err := r.admin.GetServiceAccount(t.Context(), get); status.Code(err) != codes.NotFound {
		t.Errorf("the first look at a fresh account: %v", err)
	}
	if a, err := r.admin.GetServiceAccount(t.Context(), get); err != nil || a.GetDisplayName() != "a worker" || a.GetUniqueId() == "" {
		t.Errorf("the second: %v %v", a, err)
	}
	if err := create("worker-d"); err != nil {
		t.Error(err)
	}
	if err := create("worker-e"); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("past the limit: %v", err)
	}
	r.Hide(gcp.Visibility{})
	_, _ = r.admin.GetServiceAccount(t.Context(), &adminpb.GetServiceAccountRequest{Name: project + "/serviceAccounts/" + r.Email("worker-d")})
	var emails []string
	it := r.admin.ListServiceAccounts(t.Context(), &adminpb.ListServiceAccountsRequest{Name: project, PageSize: 2})
	for {
		a, err := it.Next()
		if err == iterator.Done { //nolint:errorlint // as the library documents it
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		emails = append(emails, strings.Split(a.GetEmail(), "@")[0])
	}
	if got := strings.Join(emails, " "); got != "worker-a worker-b worker-c worker-d" {
		t.Errorf("listed %s", got)
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	r := start(t)
	for _, c := range []struct {
		kind    gcp.FaultKind
		want    codes.Code
		applied bool
	}{
		{gcp.Unavailable, codes.Unavailable, false},
		{gcp.Internal, codes.Internal, false},
		{gcp.Denied, codes.PermissionDenied, false},
		{gcp.Exhausted, codes.ResourceExhausted, false},
		{gcp.DropReply, codes.Unavailable, true},
		{gcp.SlowReply, codes.OK, true},
	} {
		before, calls := len(r.Tokens()), r.Calls("GenerateAccessToken")
		r.Inject(gcp.Fault{Method: "GenerateAccessToken", Kind: c.kind})
		_, err := r.mint(t, "worker-a", time.Hour)
		if status.Code(err) != c.want {
			t.Errorf("%s: %v", c.kind, err)
		}
		if made := len(r.Tokens()) > before; made != c.applied || r.Calls("GenerateAccessToken") != calls+1 {
			t.Errorf("%s: applied %v, %d calls", c.kind, made, r.Calls("GenerateAccessToken")-calls)
		}
		if c.kind == gcp.Exhausted {
			found := false
			for _, d := range status.Convert(err).Details() {
				if info, ok := d.(*errdetails.RetryInfo); ok {
					found = info.GetRetryDelay().AsDuration() == gcp.RetryDelay
				}
			}
			if !found || reason(t, err) != "RATE_LIMIT_EXCEEDED" {
				t.Errorf("details: %v", status.Convert(err).Details())
			}
		}
		if _, err := r.mint(t, "worker-a", time.Hour); err != nil {
			t.Errorf("after %s: %v", c.kind, err)
		}
	}
}

func TestHang(t *testing.T) {
	t.Parallel()
	r := start(t)
	met := make(chan struct{})
	r.Inject(gcp.Fault{Method: "GenerateAccessToken", Kind: gcp.Hang, Met: met})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-met
		cancel()
	}()
	_, err := r.tokens.GenerateAccessToken(ctx, &credentialspb.GenerateAccessTokenRequest{Name: name(r.Email("worker-a")), Scope: []string{gcp.CloudPlatform}})
	if status.Code(err) != codes.Canceled || len(r.Tokens()) != 0 {
		t.Errorf("%v, %d tokens", err, len(r.Tokens()))
	}
}

// Google's client asks again by itself. What the broker turns off is shown by what it does otherwise.
func TestTheClientsOwnRetries(t *testing.T) {
	t.Parallel()
	r := start(t)
	defaults, err := defaultCallOptions(t, r)
	if err != nil {
		t.Fatal(err)
	}
	r.tokens.CallOptions.GenerateAccessToken = defaults
	r.Inject(gcp.Fault{Method: "GenerateAccessToken", Kind: gcp.DropReply})
	if _, err := r.mint(t, "worker-a", time.Hour); err != nil {
		t.Fatal(err)
	}
	if n := r.Calls("GenerateAccessToken"); n != 2 || len(r.Tokens()) != 2 {
		t.Errorf("%d calls, %d tokens: the retry is no longer the client's default", n, len(r.Tokens()))
	}
}
