//go:build peers

// The stand-in is used by OpenAI's own client. Compiling that takes a minute and a half, so it is one of the peers.
package openai_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	sdk "github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"go.uber.org/goleak"

	"github.com/taskpass/taskpass/providers/sandbox/fault"
	"github.com/taskpass/taskpass/providers/sandbox/openai"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	admin   = "sk-admin-sandbox"
	project = "proj_one"
)

type bench struct {
	*openai.Server
	url  string
	http *http.Client
}

func start(t *testing.T, now func() time.Time) bench {
	t.Helper()
	s, err := openai.New(openai.Config{AdminKey: admin, Projects: []string{project, "proj_two"}, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	t.Cleanup(s.Close)
	return bench{s, server.URL, server.Client()}
}

// accounts is OpenAI's own client.
func (b bench) accounts(key string) sdk.AdminOrganizationProjectServiceAccountService {
	return sdk.NewAdminOrganizationProjectServiceAccountService(b.options(option.WithAdminAPIKey(key))...)
}

func (b bench) options(key option.RequestOption) []option.RequestOption {
	return []option.RequestOption{option.WithBaseURL(b.url + "/v1/"), option.WithHTTPClient(b.http), option.WithMaxRetries(0), key}
}

func (b bench) chat(t *testing.T, secret string) error {
	t.Helper()
	service := sdk.NewChatService(b.options(option.WithAPIKey(secret))...)
	_, err := service.Completions.New(t.Context(), sdk.ChatCompletionNewParams{
		Model: "sandbox", Messages: []sdk.ChatCompletionMessageParamUnion{sdk.UserMessage("hello")},
	})
	return err
}

func wantStatus(t *testing.T, err error, status int) {
	t.Helper()
	var e *sdk.Error
	if !errors.As(err, &e) || e.StatusCode != status {
		t.Fatalf("%v, want status %d", err, status)
	}
}

func TestPeersAKeyDiesWithItsAccount(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	accounts := b.accounts(admin)
	made, err := accounts.New(t.Context(), project, sdk.AdminOrganizationProjectServiceAccountNewParams{Name: "one"})
	if err != nil || made.Name != "one" || made.APIKey.Value == "" || made.APIKey.ID == "" {
		t.Fatal(err)
	}
	other, err := accounts.New(t.Context(), project, sdk.AdminOrganizationProjectServiceAccountNewParams{Name: "one"})
	if err != nil || other.ID == made.ID || other.APIKey.Value == made.APIKey.Value {
		t.Fatal("names need not be unique, ids are:", err)
	}
	if err := b.chat(t, made.APIKey.Value); err != nil {
		t.Fatal(err)
	}
	gone, err := accounts.Delete(t.Context(), project, made.ID)
	if err != nil || !gone.Deleted || gone.ID != made.ID {
		t.Fatalf("%+v, %v", gone, err)
	}
	wantStatus(t, b.chat(t, made.APIKey.Value), http.StatusUnauthorized)
	if err := b.chat(t, other.APIKey.Value); err != nil {
		t.Error("the other's key:", err)
	}
	_, err = accounts.Delete(t.Context(), project, made.ID)
	wantStatus(t, err, http.StatusNotFound)
	_, err = accounts.Get(t.Context(), project, made.ID)
	wantStatus(t, err, http.StatusNotFound)
	_, err = accounts.Delete(t.Context(), "proj_two", other.ID)
	wantStatus(t, err, http.StatusNotFound)
	if b.Calls(other.ID) != 1 || len(b.Accounts()) != 1 {
		t.Errorf("%d calls, %d accounts", b.Calls(other.ID), len(b.Accounts()))
	}
}

func TestPeersAKeyExpires(t *testing.T) {
	t.Parallel()
	now, passed := time.Now(), atomic.Int64{}
	b := start(t, func() time.Time { return now.Add(time.Duration(passed.Load())) })
	accounts := b.accounts(admin)
	made, err := accounts.New(t.Context(), project, sdk.AdminOrganizationProjectServiceAccountNewParams{Name: "one", ExpiresInSeconds: sdk.Int(60)})
	if err != nil || made.APIKey.ExpiresAt != now.Unix()+60 {
		t.Fatal(made.APIKey.ExpiresAt, err)
	}
	if err := b.chat(t, made.APIKey.Value); err != nil {
		t.Fatal(err)
	}
	passed.Store(int64(time.Minute))
	wantStatus(t, b.chat(t, made.APIKey.Value), http.StatusUnauthorized)
}

func TestPeersOnlyTheAdminKeyIsHeard(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	good := b.accounts(admin)
	made, err := good.New(t.Context(), project, sdk.AdminOrganizationProjectServiceAccountNewParams{Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{made.APIKey.Value, "wrong"} {
		accounts := b.accounts(key)
		_, err := accounts.New(t.Context(), project, sdk.AdminOrganizationProjectServiceAccountNewParams{Name: "two"})
		wantStatus(t, err, http.StatusUnauthorized)
		_, err = accounts.Delete(t.Context(), project, made.ID)
		wantStatus(t, err, http.StatusUnauthorized)
	}
	_, err = good.New(t.Context(), "proj_none", sdk.AdminOrganizationProjectServiceAccountNewParams{Name: "two"})
	wantStatus(t, err, http.StatusNotFound)
	wantStatus(t, b.chat(t, admin), http.StatusUnauthorized)
	if len(b.Accounts()) != 1 {
		t.Error("a refused call changed something")
	}
}

func TestPeersPages(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	accounts := b.accounts(admin)
	var want, got []string
	for i := range 7 {
		name := fmt.Sprintf("n%d", i)
		if _, err := accounts.New(t.Context(), project, sdk.AdminOrganizationProjectServiceAccountNewParams{Name: name}); err != nil {
			t.Fatal(err)
		}
		want = append(want, name)
	}
	pages := accounts.ListAutoPaging(t.Context(), project, sdk.AdminOrganizationProjectServiceAccountListParams{Limit: sdk.Int(3)})
	for pages.Next() {
		got = append(got, pages.Current().Name)
	}
	if pages.Err() != nil || !slices.Equal(got, want) || b.Queue.Calls(openai.List) != 3 {
		t.Errorf("%v in %d pages, %v", got, b.Queue.Calls(openai.List), pages.Err())
	}
	if page, err := accounts.List(t.Context(), "proj_two", sdk.AdminOrganizationProjectServiceAccountListParams{}); err != nil || len(page.Data) != 0 {
		t.Errorf("the other project: %+v, %v", page, err)
	}
	_, err := accounts.List(t.Context(), project, sdk.AdminOrganizationProjectServiceAccountListParams{After: sdk.String("svc_acct_none")})
	wantStatus(t, err, http.StatusBadRequest)
}

func TestPeersFaults(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	accounts := b.accounts(admin)
	try := func() error {
		_, err := accounts.New(t.Context(), project, sdk.AdminOrganizationProjectServiceAccountNewParams{Name: "one"})
		return err
	}
	b.Inject(fault.Fault{Action: openai.Create, Kind: fault.Throttle, Times: 2})
	wantStatus(t, try(), http.StatusTooManyRequests)
	wantStatus(t, try(), http.StatusTooManyRequests)
	if len(b.Accounts()) != 0 {
		t.Error("a throttled call made an account")
	}
	b.Inject(fault.Fault{Action: openai.Create, Kind: fault.DropReply})
	if err := try(); err == nil || len(b.Accounts()) != 1 {
		t.Errorf("a lost reply: %v, %d accounts", err, len(b.Accounts()))
	}
	b.Inject(fault.Fault{Kind: fault.Hang})
	done := make(chan error)
	go func() { done <- try() }()
	b.Await(openai.Create, 4)
	b.Close()
	if err := <-done; err == nil || len(b.Accounts()) != 1 {
		t.Errorf("a hanging call: %v, %d accounts", err, len(b.Accounts()))
	}
}

func TestPeersNewRefuses(t *testing.T) {
	t.Parallel()
	for _, cfg := range []openai.Config{{}, {AdminKey: "a"}, {Projects: []string{"p"}}} {
		if _, err := openai.New(cfg); err == nil {
			t.Errorf("accepted %+v", cfg)
		}
	}
}
