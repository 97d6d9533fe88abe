package aws_test

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/providertest"
)

// wire is a loopback endpoint that answers what a test says, and remembers what it was asked.
type wire struct {
	url   string
	clock *providertest.Clock

	mu     sync.Mutex
	asked  []url.Values
	answer http.HandlerFunc
}

func newWire(t testing.TB) *wire {
	t.Helper()
	w := &wire{answer: granted, clock: providertest.NewClock()}
	web := httptest.NewServer(w)
	t.Cleanup(web.Close)
	w.url = web.URL
	return w
}

func (w *wire) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	raw, _ := io.ReadAll(r.Body)
	form, err := url.ParseQuery(string(raw))
	if err != nil {
		panic(err)
	}
	if form.Get("Action") == "GetCallerIdentity" { // who the broker is, is nobody's concern here
		bare(http.StatusForbidden)(rw, r)
		return
	}
	w.mu.Lock()
	w.asked = append(w.asked, form)
	answer := w.answer
	w.mu.Unlock()
	answer(rw, r)
}

// answers sets what the next calls get.
func (w *wire) answers(h http.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = h
}

// calls lists the actions asked for since the last time.
func (w *wire) calls() []url.Values {
	w.mu.Lock()
	defer w.mu.Unlock()
	asked := w.asked
	w.asked = nil
	return asked
}

// last is the one call since the last time.
func (w *wire) last(t testing.TB) url.Values {
	t.Helper()
	calls := w.calls()
	if len(calls) != 1 {
		t.Fatalf("%d calls upstream", len(calls))
	}
	return calls[0]
}

// provider mints at the wire. It has no ledger, so it cannot revoke.
func (w *wire) provider(t testing.TB, edit ...func(*aws.Config)) *aws.Provider {
	t.Helper()
	c := config(t, w.url)
	for _, e := range edit {
		e(&c)
	}
	return open(t, c, nil, w.clock.Now)
}

// request is a credential that asks for scopes.
func (w *wire) request(scopes ...string) broker.Credential {
	now := w.clock.Now().Truncate(time.Microsecond)
	slices.Sort(scopes)
	return broker.Credential{
		ID: "crd_1", TaskID: "t-1", AgentID: "a-1", Scopes: scopes, Metadata: map[string]string{"team": "blue"},
		Version: broker.Version{ID: "abcdefghijklmnop", IssuedAt: now, ExpiresAt: now.Add(10 * time.Minute)},
	}
}

// policy mints and returns the session policy that was sent.
func (w *wire) policy(t testing.TB, p *aws.Provider, c broker.Credential) string {
	t.Helper()
	w.calls()
	if _, err := p.Mint(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	return w.last(t).Get("Policy")
}

const grantedBody = `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>` +
	`<AssumedRoleUser><AssumedRoleId>AROAEXAMPLE:abcdefghijklmnop</AssumedRoleId>` +
	`<Arn>arn:aws:sts::123456789012:assumed-role/agents/abcdefghijklmnop</Arn></AssumedRoleUser>` +
	`<Credentials><AccessKeyId>ASIAEXAMPLE</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>` +
	`<SessionToken>token</SessionToken><Expiration>2026-03-03T10:26:12Z</Expiration></Credentials>` +
	`<SourceIdentity>abcdefghijklmnop</SourceIdentity><PackedPolicySize>7</PackedPolicySize>` +
	`</AssumeRoleResult><ResponseMetadata><RequestId>11111111-2222-3333-4444-555555555555</RequestId></ResponseMetadata></AssumeRoleResponse>`

func granted(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, grantedBody) }

func reply(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/xml")
	w.Header().Set("X-Amzn-Requestid", "11111111-2222-3333-4444-555555555555")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// refusal is an error in the form of the query protocol; its message is a canary.
func refusal(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		reply(w, status, fmt.Sprintf(`<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>`+
			`<Code>%s</Code><Message>%s</Message></Error><RequestId>11111111-2222-3333-4444-555555555555</RequestId></ErrorResponse>`,
			code, escaped(providertest.Canary)))
	}
}

// body is an answer word by word.
func body(status int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { reply(w, status, text) }
}

func escaped(text string) string {
	out, err := xml.Marshal(text)
	if err != nil {
		panic(err)
	}
	return string(out[len("<string>") : len(out)-len("</string>")])
}

// list is a ledger on which these versions are to be denied.
type list []broker.VersionID

func (l list) Denied(context.Context, string, time.Time) ([]broker.Denial, error) {
	denials := make([]broker.Denial, len(l))
	for i, id := range l {
		denials[i] = broker.Denial{ID: id}
	}
	return denials, nil
}

func (l list) Locked(ctx context.Context, _ string, fn func(context.Context) error) error {
	return fn(ctx)
}

func (l list) Notes(context.Context, string) ([]byte, error) { return nil, nil }

func (l list) Save(context.Context, string, broker.Notes, ...broker.Event) error { return nil }

func (l list) CutOff(context.Context, string, broker.Notes, time.Time, time.Time, broker.Event) error {
	return nil
}
