package connect_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/pool/connect"
	"github.com/taskpass/taskpass/providers/providertest"
	"github.com/taskpass/taskpass/providers/sandbox/anthropic"
	"github.com/taskpass/taskpass/providers/sandbox/fault"
	"github.com/taskpass/taskpass/providers/sandbox/openai"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	anthropicAdmin = "sk-ant-admin-canary"
	openaiAdmin    = "sk-admin-canary"
	hookSecret     = "hook-secret-canary"
	planted        = "planted-canary" // in what vendors answer
	project        = "proj_agents"
)

var now = time.Unix(1_700_000_000, 0)

func clock() time.Time { return now }

func rewrite(t *testing.T, ref broker.Ref, value string) {
	t.Helper()
	providertest.WriteSecret(t, strings.TrimPrefix(string(ref), "file:"), value)
}

func serve(t *testing.T, h http.Handler) (string, connect.Wire) {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL, connect.Wire{Client: server.Client(), Clock: clock}
}

type anthropicRig struct {
	*anthropic.Server
	ender connect.Ender
	admin broker.Ref
	url   string
}

func newAnthropic(t *testing.T) anthropicRig {
	t.Helper()
	s, err := anthropic.New(anthropic.Config{AdminKey: anthropicAdmin, Keys: []anthropic.Key{
		{ID: "apikey_1", Secret: "sk-ant-1"}, {ID: "apikey_2", Secret: "sk-ant-2"}, {ID: "apikey_3", Secret: "sk-ant-3", ExpiresAt: now},
	}, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	url, wire := serve(t, s)
	t.Cleanup(s.Close)
	admin := providertest.SecretFile(t, anthropicAdmin)
	ender, err := connect.OpenEnder(connect.Config{Anthropic: &connect.Anthropic{AdminKey: admin, Endpoint: url}}, wire)
	if err != nil {
		t.Fatal(err)
	}
	return anthropicRig{s, ender, admin, url}
}

// say is what an agent does with the key.
func (r anthropicRig) say(t *testing.T, secret string) int {
	t.Helper()
	body := `{"model":"m","messages":[{"role":"user","content":"hello"}]}`
	return post(t, r.Server, "/v1/messages", "X-Api-Key", secret, body)
}

func post(t *testing.T, h http.Handler, path, header, value, body string) int {
	t.Helper()
	q := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	q.Header.Set(header, value)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, q)
	return w.Code
}

type openaiRig struct {
	*openai.Server
	maker connect.Maker
	admin broker.Ref
}

func newOpenAI(t *testing.T, edit ...func(*connect.OpenAI)) openaiRig {
	t.Helper()
	s, err := openai.New(openai.Config{AdminKey: openaiAdmin, Projects: []string{project}, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	url, wire := serve(t, s)
	t.Cleanup(s.Close)
	cfg := connect.OpenAI{AdminKey: providertest.SecretFile(t, openaiAdmin), Project: project, Endpoint: url}
	for _, e := range edit {
		e(&cfg)
	}
	maker, err := connect.OpenMaker(connect.Config{OpenAI: &cfg}, wire)
	if err != nil {
		t.Fatal(err)
	}
	return openaiRig{s, maker, cfg.AdminKey}
}

func (r openaiRig) chat(t *testing.T, key broker.Secret) int {
	t.Helper()
	return post(t, r.Server, "/v1/chat/completions", "Authorization", "Bearer "+key.Reveal(), `{}`)
}

// wantCode checks an error's code, and that nothing secret or foreign is in it, cause included.
func wantCode(t *testing.T, err error, code broker.Code) *broker.Error {
	t.Helper()
	e, ok := errors.AsType[*broker.Error](err)
	if !ok || e.Code != code {
		t.Fatalf("%v, want %s", err, code)
	}
	for cause := err; cause != nil; cause = errors.Unwrap(cause) {
		clean(t, fmt.Sprintf("%v %+v %#v", cause, cause, cause))
	}
	if e.Err != nil {
		clean(t, fmt.Sprintf("%v %+v", e.Err, e.Err))
	}
	return e
}

func clean(t *testing.T, text string) {
	t.Helper()
	if strings.Contains(text, "canary") || strings.Contains(text, "stand-in's message") {
		t.Errorf("a secret or a vendor's text is in an error: %s", text)
	}
}

// faults are what can go wrong at any vendor, and what it must be called.
var faults = []struct {
	name       string
	fault      fault.Fault
	code       broker.Code
	retryAfter time.Duration
	maybeMade  bool // whether the vendor may have made a key
}{
	{"401", fault.Fault{Kind: fault.Refuse, Status: 401}, broker.CodeUpstreamRefused, 0, false},
	{"403", fault.Fault{Kind: fault.Refuse, Status: 403}, broker.CodeUpstreamRefused, 0, false},
	{"404", fault.Fault{Kind: fault.Refuse, Status: 404}, broker.CodeUpstreamRefused, 0, false},
	{"408", fault.Fault{Kind: fault.Refuse, Status: 408}, broker.CodeUpstreamError, 0, true},
	{"429", fault.Fault{Kind: fault.Throttle}, broker.CodeUpstreamThrottled, 2 * time.Second, false},
	{"429 with a time", fault.Fault{Kind: fault.Throttle, RetryAfter: 17 * time.Second}, broker.CodeUpstreamThrottled, 17 * time.Second, false},
	{"429 for a day", fault.Fault{Kind: fault.Throttle, RetryAfter: 24 * time.Hour}, broker.CodeUpstreamThrottled, time.Hour, false},
	{"429 with a date", fault.Fault{Kind: fault.Refuse, Status: 429, Header: http.Header{"Retry-After": {now.Add(time.Minute).UTC().Format(http.TimeFormat)}}},
		broker.CodeUpstreamThrottled, time.Minute, false},
	{"500", fault.Fault{Kind: fault.Refuse, Status: 500}, broker.CodeUpstreamError, 0, true},
	{"529", fault.Fault{Kind: fault.Refuse, Status: 529, RetryAfter: 5 * time.Second}, broker.CodeUpstreamError, 5 * time.Second, true},
	{"a redirect", fault.Fault{Kind: fault.Verbatim, Status: 307, Header: http.Header{"Location": {"/elsewhere"}}}, broker.CodeUpstreamRefused, 0, true},
	{"not JSON", fault.Fault{Kind: fault.Verbatim, Status: 200, Body: "<html>" + planted}, broker.CodeUpstreamError, 0, true},
	{"other JSON", fault.Fault{Kind: fault.Verbatim, Status: 200, Body: `{"id":"` + planted + `"}`}, broker.CodeUpstreamError, 0, true},
	{"without an end", fault.Fault{Kind: fault.Verbatim, Status: 200, Body: `{"x":"` + strings.Repeat(planted, 1<<17) + `"}`}, broker.CodeUpstreamError, 0, true},
	{"a lost reply", fault.Fault{Kind: fault.DropReply}, broker.CodeUpstreamError, 0, true},
}

// cancelled is a context that ends when an action was asked for the nth time.
func cancelled(t *testing.T, q *fault.Queue, action string, n int) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { q.Await(action, n); cancel() }()
	return ctx
}
