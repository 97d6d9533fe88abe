//go:build peers

// The stand-in is used by Anthropic's own client. Compiling that takes nearly a minute, so it is one of the peers.
package anthropic_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	sdk "github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
	"go.uber.org/goleak"

	"github.com/taskpass/taskpass/providers/sandbox/anthropic"
	"github.com/taskpass/taskpass/providers/sandbox/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const admin = "sk-ant-admin-sandbox"

type bench struct {
	*anthropic.Server
	url  string
	http *http.Client
}

func start(t *testing.T, now func() time.Time, keys ...anthropic.Key) bench {
	t.Helper()
	s, err := anthropic.New(anthropic.Config{AdminKey: admin, Keys: keys, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	t.Cleanup(s.Close)
	return bench{s, server.URL, server.Client()}
}

// client is Anthropic's own.
func (b bench) client(key string) sdk.Client {
	return sdk.NewClient(option.WithoutEnvironmentDefaults(), option.WithBaseURL(b.url), option.WithAPIKey(key),
		option.WithHTTPClient(b.http), option.WithMaxRetries(0))
}

func (b bench) say(t *testing.T, secret string) error {
	t.Helper()
	client := b.client(secret)
	_, err := client.Messages.New(t.Context(), sdk.MessageNewParams{
		Model: "sandbox", MaxTokens: 8, Messages: []sdk.MessageParam{sdk.NewUserMessage(sdk.NewTextBlock("hello"))},
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

func set(t *testing.T, c sdk.Client, id string, status sdk.OrganizationAPIKeyUpdateParamsStatus) (*sdk.APIKey, error) {
	t.Helper()
	return c.Organization.APIKeys.Update(t.Context(), id, sdk.OrganizationAPIKeyUpdateParams{Status: status})
}

func TestPeersAKeyThatIsInactiveIsRefused(t *testing.T) {
	t.Parallel()
	b := start(t, nil, anthropic.Key{ID: "apikey_1", Secret: "sk-ant-api03-one", Name: "first", WorkspaceID: "wrkspc_1"},
		anthropic.Key{ID: "apikey_2", Secret: "sk-ant-api03-two"})
	c := b.client(admin)
	if err := b.say(t, "sk-ant-api03-one"); err != nil {
		t.Fatal(err)
	}
	k, err := set(t, c, "apikey_1", "inactive")
	if err != nil || k.Status != "inactive" || k.ID != "apikey_1" || k.Name != "first" || k.Scope.WorkspaceID != "wrkspc_1" {
		t.Fatalf("%+v, %v", k, err)
	}
	wantStatus(t, b.say(t, "sk-ant-api03-one"), http.StatusUnauthorized)
	if err := b.say(t, "sk-ant-api03-two"); err != nil {
		t.Error("the other key:", err)
	}
	if got, err := c.Organization.APIKeys.Get(t.Context(), "apikey_1"); err != nil || got.Status != "inactive" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := set(t, c, "apikey_1", "active"); err != nil || b.say(t, "sk-ant-api03-one") != nil {
		t.Error("a key that was made active again does not work:", err)
	}
	if _, err := set(t, c, "apikey_1", "archived"); err != nil {
		t.Error(err)
	}
	_, err = set(t, c, "apikey_1", "active")
	wantStatus(t, err, http.StatusBadRequest)
	wantStatus(t, b.say(t, "sk-ant-api03-one"), http.StatusUnauthorized)
	if b.Calls("apikey_1") != 2 || b.Calls("apikey_2") != 1 {
		t.Error(b.Calls("apikey_1"), b.Calls("apikey_2"))
	}
}

func TestPeersAKeyExpires(t *testing.T) {
	t.Parallel()
	now, passed := time.Now(), atomic.Int64{}
	at := now.Add(time.Hour)
	b := start(t, func() time.Time { return now.Add(time.Duration(passed.Load())) }, anthropic.Key{ID: "apikey_1", Secret: "sk-1", ExpiresAt: at})
	if err := b.say(t, "sk-1"); err != nil {
		t.Fatal(err)
	}
	passed.Store(int64(time.Hour))
	wantStatus(t, b.say(t, "sk-1"), http.StatusUnauthorized)
	if b.Status("apikey_1") != anthropic.Expired {
		t.Error(b.Status("apikey_1"))
	}
}

func TestPeersOnlyTheAdminKeyIsHeard(t *testing.T) {
	t.Parallel()
	b := start(t, nil, anthropic.Key{ID: "apikey_1", Secret: "sk-1"})
	for _, key := range []string{"sk-1", "wrong"} {
		_, err := set(t, b.client(key), "apikey_1", "inactive")
		wantStatus(t, err, http.StatusUnauthorized)
	}
	c := b.client(admin)
	_, err := set(t, c, "apikey_9", "inactive")
	wantStatus(t, err, http.StatusNotFound)
	_, err = set(t, c, "apikey_1", "off")
	wantStatus(t, err, http.StatusBadRequest)
	wantStatus(t, b.say(t, admin), http.StatusUnauthorized)
	if b.Status("apikey_1") != anthropic.Active {
		t.Error("a refused call changed something")
	}
	// Keys cannot be made, nor anything be done without a version of the API.
	for _, c := range []struct {
		method, path, version string
		want                  int
	}{
		{http.MethodPost, "/v1/organizations/api_keys", "2023-06-01", http.StatusMethodNotAllowed},
		{http.MethodGet, "/v1/organizations/api_keys", "", http.StatusBadRequest},
	} {
		r, _ := http.NewRequestWithContext(t.Context(), c.method, b.url+c.path, strings.NewReader("{}"))
		r.Header.Set("X-Api-Key", admin)
		if c.version != "" {
			r.Header.Set("Anthropic-Version", c.version)
		}
		reply, err := b.http.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		reply.Body.Close()
		if reply.StatusCode != c.want {
			t.Errorf("%s %s: %d", c.method, c.path, reply.StatusCode)
		}
	}
}

func TestPeersPages(t *testing.T) {
	t.Parallel()
	var keys []anthropic.Key
	var want []string
	for i := range 7 {
		keys = append(keys, anthropic.Key{ID: fmt.Sprintf("apikey_%d", i), Secret: fmt.Sprintf("sk-%d", i)})
		want = append(want, keys[i].ID)
	}
	b := start(t, nil, keys...)
	c := b.client(admin)
	var got []string
	pages := c.Organization.APIKeys.ListAutoPaging(t.Context(), sdk.OrganizationAPIKeyListParams{Limit: sdk.Int(3)})
	for pages.Next() {
		got = append(got, pages.Current().ID)
	}
	if pages.Err() != nil || !slices.Equal(got, want) || b.Queue.Calls(anthropic.ListKeys) != 3 {
		t.Errorf("%v in %d pages, %v", got, b.Queue.Calls(anthropic.ListKeys), pages.Err())
	}
	_ = b.SetStatus("apikey_3", anthropic.Inactive)
	one, err := c.Organization.APIKeys.List(t.Context(), sdk.OrganizationAPIKeyListParams{Status: "inactive"})
	if err != nil || len(one.Data) != 1 || one.Data[0].ID != "apikey_3" {
		t.Errorf("%+v, %v", one, err)
	}
}

func TestPeersFaults(t *testing.T) {
	t.Parallel()
	b := start(t, nil, anthropic.Key{ID: "apikey_1", Secret: "sk-1"})
	c := b.client(admin)
	b.Inject(fault.Fault{Action: anthropic.UpdateKey, Kind: fault.Throttle, RetryAfter: 7 * time.Second})
	_, err := set(t, c, "apikey_1", "inactive")
	wantStatus(t, err, http.StatusTooManyRequests)
	b.Inject(fault.Fault{Kind: fault.Refuse, Status: 529})
	_, err = set(t, c, "apikey_1", "inactive")
	wantStatus(t, err, 529)
	b.Inject(fault.Fault{Action: anthropic.GetKey, Kind: fault.Refuse, Status: 500}) // for another call
	ctx, cancel := context.WithCancel(t.Context())
	b.Inject(fault.Fault{Action: anthropic.UpdateKey, Kind: fault.Hang})
	go func() { b.Await(anthropic.UpdateKey, 3); cancel() }()
	if _, err := c.Organization.APIKeys.Update(ctx, "apikey_1", sdk.OrganizationAPIKeyUpdateParams{Status: "inactive"}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if b.Status("apikey_1") != anthropic.Active {
		t.Error("the key was changed by a call that failed")
	}
	b.Inject(fault.Fault{Action: anthropic.UpdateKey, Kind: fault.DropReply})
	if _, err := set(t, c, "apikey_1", "inactive"); err == nil {
		t.Error("a lost reply came")
	}
	if b.Status("apikey_1") != anthropic.Inactive {
		t.Error("a reply was lost, and the work was not done")
	}
}

func TestPeersNewRefuses(t *testing.T) {
	t.Parallel()
	for _, cfg := range []anthropic.Config{
		{}, {AdminKey: "a", Keys: []anthropic.Key{{ID: "x"}}}, {AdminKey: "a", Keys: []anthropic.Key{{ID: "x", Secret: "1"}, {ID: "x", Secret: "2"}}},
	} {
		if _, err := anthropic.New(cfg); err == nil {
			t.Errorf("accepted %+v", cfg)
		}
	}
}
