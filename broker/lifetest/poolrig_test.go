package lifetest

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
	"github.com/taskpass/taskpass/providers/pool"
	plain "github.com/taskpass/taskpass/providers/sandbox/model"
)

// pools is a rig with profiles over pools of keys, and a vendor that knows plain keys.
type pools struct {
	*rig
	model  *plain.Server
	api    string
	values []string
	used   atomic.Int64
}

const spareValues = 600

// newPools makes the profiles, by name. Each accepts disclosure; a pool without a name is "keys"; one that says what a
// share is has shares.
func newPools(t testing.TB, profiles map[string]pool.Config, options ...func(*broker.Config)) *pools {
	t.Helper()
	p := &pools{}
	var keys []plain.Key
	for i := range spareValues {
		secret := fmt.Sprintf("sk-pool-%s-%d", broker.NewVersionID(), i)
		keys, p.values = append(keys, plain.Key{ID: fmt.Sprint(i), Secret: secret}), append(p.values, secret)
	}
	var err error
	if p.model, err = plain.New(plain.Config{Keys: keys}); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(p.model)
	t.Cleanup(web.Close)
	p.api = web.URL
	p.rig = newRig(t, append([]func(*broker.Config){func(b *broker.Config) {
		for name, c := range profiles {
			b.Profiles[name] = poolProfile(t, name, c, b)
		}
	}}, options...)...)
	return p
}

func poolProfile(t testing.TB, name string, c pool.Config, b *broker.Config) broker.Profile {
	t.Helper()
	c.Disclosed = "accept"
	if c.Name == "" {
		c.Name = "keys"
	}
	if c.Scopes == nil {
		c.Scopes = []string{"read"}
	}
	if faults := c.Check(); len(faults) > 0 {
		t.Fatalf("%v", faults)
	}
	upstream, err := pool.New(c, pool.Deps{Slots: b.Ledger.(*ledger), Sealer: b.Sealer, Clock: b.Clock, Shared: c.SharePercent > 0})
	if err != nil {
		t.Fatal(err)
	}
	return broker.Profile{
		Name: name, Provider: "pool", Scopes: c.ScopeNames(), Upstream: upstream,
		MinTTL: time.Minute, DefaultTTL: ttl, MaxTTL: maxTTL, MaxLifetime: maxLifetime, Overlap: overlap, TicketTTL: ticketTTL,
		Allow: []broker.Rule{{Callers: []string{"orch", "other"}}},
	}
}

// value is one that the vendor accepts and no key has.
func (p *pools) value() string { return p.values[p.used.Add(1)-1] }

// hand gives the pool "keys" n keys, k00, k01, …, and answers their values.
func (p *pools) hand(n int) map[string]string {
	p.t.Helper()
	values := map[string]string{}
	for i := range n {
		name, value := fmt.Sprintf("k%02d", i), p.value()
		p.as("ops").addKey(client.NewPoolKey{Name: name, Value: value}).want(p.t, http.StatusCreated)
		values[name] = value
	}
	return values
}

// works asks the vendor.
func (p *pools) works(value string) bool {
	p.t.Helper()
	in, err := http.NewRequestWithContext(context.Background(), http.MethodPost, p.api+"/v1/messages",
		strings.NewReader(`{"messages":[{"role":"user","content":"hello"}]}`))
	if err != nil {
		p.t.Fatal(err)
	}
	in.Header.Set("X-Api-Key", value)
	out, err := p.http.Do(in)
	if err != nil {
		p.t.Fatal(err)
	}
	_ = out.Body.Close()
	return out.StatusCode == http.StatusOK
}

// kill has the vendor refuse a value.
func (p *pools) kill(value string) {
	p.t.Helper()
	if err := p.model.SetActive(value, false); err != nil {
		p.t.Fatal(err)
	}
}

// looked lets the pools' upkeep have its turn, and what it made due.
func (p *pools) looked() {
	p.t.Helper()
	p.clock.advance(30 * time.Second)
	p.settled()
	p.clock.advance(30 * time.Second)
	p.settled()
}

// stateOf is one key of the pool "keys" as an auditor sees it.
func (p *pools) stateOf(name string) client.PoolKey {
	p.t.Helper()
	for _, k := range p.as("aud").poolKeys("keys").want(p.t, http.StatusOK).keys {
		if k.Name == name {
			return k
		}
	}
	p.t.Fatalf("no key %s", name)
	return client.PoolKey{}
}

func (p *pools) wantState(name string, want client.PoolKeyState) {
	p.t.Helper()
	if k := p.stateOf(name); k.State != want {
		p.t.Errorf("%s is %s (%s, %v), want %s", name, k.State, k.Reason, k.Seats, want)
	}
}

// keyOf is the name of the key that a version was given.
func keyOf(c client.IssuedCredential) string { return c.Trace["key"] }

func valueOf(s client.Secret) string { return s.Fields["api_key"] }

// scoped are the scopes of a request.
func scoped(scopes ...string) func(*client.IssueRequest) {
	return func(q *client.IssueRequest) { q.Scopes = scopes }
}

func (c caller) addKey(k client.NewPoolKey) reply {
	c.t.Helper()
	api, ctx, cancel := c.api()
	defer cancel()
	a, err := api.AddPoolKeyWithResponse(ctx, "keys", k)
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	set(&r.key, a.JSON201)
	return r
}

func (c caller) rotateKey(name, value string, deadline time.Duration) reply {
	c.t.Helper()
	api, ctx, cancel := c.api()
	defer cancel()
	a, err := api.RotatePoolKeyWithResponse(ctx, "keys", name, client.RotatePoolKey{Value: value, DeadlineSeconds: int(deadline.Seconds())})
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	set(&r.key, a.JSON202)
	return r
}

func (c caller) changeKey(name string, action client.ChangePoolKeyParamsAction, reason string) reply {
	c.t.Helper()
	api, ctx, cancel := c.api()
	defer cancel()
	a, err := api.ChangePoolKeyWithResponse(ctx, "keys", name, action, client.ChangePoolKey{Reason: reason})
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	set(&r.key, a.JSON200)
	return r
}

func (c caller) poolKeys(name string) reply {
	c.t.Helper()
	api, ctx, cancel := c.api()
	defer cancel()
	a, err := api.ListPoolKeysWithResponse(ctx, name)
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	if a.JSON200 != nil {
		r.keys = a.JSON200.Keys
	}
	return r
}

func (c caller) report(id string, version, status int, after ...int) reply {
	c.t.Helper()
	api, ctx, cancel := c.api()
	defer cancel()
	q := client.Report{Version: version, Status: status}
	for _, s := range after {
		q.RetryAfterSeconds = s
	}
	a, err := api.ReportCredentialWithResponse(ctx, id, q)
	if err != nil {
		return c.base(err, nil, nil)
	}
	r := c.base(err, a.HTTPResponse, a.ApplicationProblemJSONDefault)
	set(&r.advice, a.JSON200)
	return r
}

// wantAdvice expects what a report is answered.
func (r reply) wantAdvice(t tb, action client.AdviceAction, cause string) client.Advice {
	t.Helper()
	r.want(t, http.StatusOK)
	if r.advice.Action != action || r.advice.Cause != cause {
		t.Errorf("advised %+v, want %s (%s)", r.advice, action, cause)
	}
	return r.advice
}

// labelled are two profiles over one pool that differ in the labels they want.
func labelled(base pool.Config, selects map[string]map[string]string) map[string]pool.Config {
	out := map[string]pool.Config{}
	for name, s := range selects {
		c := base
		c.Select = maps.Clone(s)
		out[name] = c
	}
	return out
}
