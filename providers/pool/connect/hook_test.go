package connect_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/pool/connect"
	"github.com/taskpass/taskpass/providers/providertest"
)

// nowhere is a network on which nobody can be reached.
type nowhere struct{}

func (nowhere) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("no route: " + planted)
}

type call struct {
	method, uri, body string
	header            http.Header
}

// hooked answers each call with the status that is asked for next.
func hooked(t *testing.T, edit func(*connect.HTTP), statuses ...int) (connect.Ender, <-chan call) {
	t.Helper()
	calls := make(chan call, 16)
	url, wire := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		calls <- call{r.Method, r.RequestURI, string(body), r.Header}
		status := 200
		if len(statuses) > 0 {
			status, statuses = statuses[0], statuses[1:]
		}
		if status >= 300 && status < 400 {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, planted)
	}))
	cfg := connect.HTTP{URL: url + "/hook", Secret: providertest.SecretFile(t, hookSecret)}
	if edit != nil {
		edit(&cfg)
	}
	if faults := (connect.Config{HTTP: &cfg}).Check(); len(faults) > 0 {
		t.Fatal(faults)
	}
	ender, err := connect.OpenEnder(connect.Config{HTTP: &cfg}, wire)
	if err != nil {
		t.Fatal(err)
	}
	return ender, calls
}

func key() connect.Key {
	sum := sha256.Sum256([]byte("the key"))
	return connect.Key{Name: "k1", VendorID: "id-1", Fingerprint: sum[:]}
}

// The signature was computed by another program: HMAC-SHA256 over "1700000000." and the body.
func TestHookIsSigned(t *testing.T) {
	t.Parallel()
	ender, calls := hooked(t, nil)
	got, err := ender.End(t.Context(), key())
	if err != nil || got != (broker.Revocation{Result: broker.ResultDenied, EffectiveAt: now.UTC().Add(time.Minute), Basis: "hook_confirmed"}) {
		t.Fatalf("%+v, %v", got, err)
	}
	c := <-calls
	const body = `{"event":"key.end","name":"k1","vendor_id":"id-1","fingerprint":"sha256:3a0aac44832e55528a834fec737786c999e7b8dea8bd601bb59f195237d58b2e"}`
	const signature = "t=1700000000,v1=13bfdad3e13c5f4eee4b8aa6477e19664ad3011ad90f3e28488cde000b829417"
	if c.method != http.MethodPost || c.uri != "/hook" || c.body != body || c.header.Get(connect.SignatureHeader) != signature {
		t.Errorf("%+v", c)
	}
	if c.header.Get("Content-Type") != "application/json" || c.header.Get("Authorization") != "" {
		t.Errorf("%v", c.header)
	}
}

func TestHookFillsIn(t *testing.T) {
	t.Parallel()
	lag := 5 * time.Second
	ender, calls := hooked(t, func(c *connect.HTTP) {
		c.URL = strings.TrimSuffix(c.URL, "/hook") + "/keys/{{.VendorID}}?n={{.Name}}"
		c.Method, c.Mode, c.Lag, c.Token, c.Secret = http.MethodDelete, "destroy", &lag, c.Secret, ""
		c.Body = `{"who":["{{.Name}}","{{.VendorID}}"]}`
	})
	k := connect.Key{Name: `a"&b=c#\`, VendorID: `x/../y?"},"z`}
	got, err := ender.End(t.Context(), k)
	if err != nil || got.Result != broker.ResultDestroyed || !got.EffectiveAt.Equal(now.Add(lag)) {
		t.Fatalf("%+v, %v", got, err)
	}
	c := <-calls
	if c.method != http.MethodDelete || c.uri != "/keys/x%2F..%2Fy%3F%22%7D%2C%22z?n=a%22%26b=c%23%5C" {
		t.Errorf("%s %s", c.method, c.uri)
	}
	var body struct{ Who []string }
	if err := json.Unmarshal([]byte(c.body), &body); err != nil || !cmp.Equal(body.Who, []string{k.Name, k.VendorID}) {
		t.Errorf("%s, %v", c.body, err)
	}
	if c.header.Get("Authorization") != "Bearer "+hookSecret || c.header.Get(connect.SignatureHeader) != "" {
		t.Errorf("%v", c.header)
	}
	if mode, of := ender.Revoke(); mode != broker.RevokeDestroy || of != lag {
		t.Error(mode, of)
	}
	for _, id := range []string{"", ".", ".."} { // would name another thing
		_, err := ender.End(t.Context(), connect.Key{Name: "k1", VendorID: id})
		wantCode(t, err, broker.CodeUpstreamRefused)
	}
	if len(calls) != 0 {
		t.Error("an incomplete call was made")
	}
}

func TestHookAnswers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status int
		absent string
		code   broker.Code // "" is done
	}{
		{200, "", ""}, {204, "", ""}, {202, "", broker.CodeUpstreamError}, {301, "", broker.CodeUpstreamRefused}, {307, "", broker.CodeUpstreamRefused},
		{400, "", broker.CodeUpstreamRefused}, {401, "ended", broker.CodeUpstreamRefused}, {403, "ended", broker.CodeUpstreamRefused},
		{404, "", broker.CodeUpstreamRefused}, {404, "ended", ""}, {410, "", broker.CodeUpstreamRefused}, {410, "ended", ""},
		{429, "", broker.CodeUpstreamThrottled}, {500, "", broker.CodeUpstreamError}, {503, "ended", broker.CodeUpstreamError},
	} {
		ender, calls := hooked(t, func(h *connect.HTTP) { h.Absent = c.absent }, c.status)
		got, err := ender.End(t.Context(), key())
		if c.code == "" {
			if err != nil || got.Result != broker.ResultDenied {
				t.Errorf("%d: %+v, %v", c.status, got, err)
			}
		} else if wantCode(t, err, c.code); got.Result != broker.ResultNone {
			t.Errorf("%d: %+v", c.status, got)
		}
		if len(calls) != 1 {
			t.Errorf("%d: %d calls; a redirect is not followed, and nothing is sent again", c.status, len(calls))
		}
	}
}

func TestHookNobodyThere(t *testing.T) {
	t.Parallel()
	url, wire := serve(t, nil)
	wire.Client.Transport = nowhere{}
	ender, err := connect.OpenEnder(connect.Config{HTTP: &connect.HTTP{URL: url, Secret: providertest.SecretFile(t, hookSecret)}}, wire)
	if err != nil {
		t.Fatal(err)
	}
	_, err = ender.End(t.Context(), key())
	wantCode(t, err, broker.CodeUpstreamError)
}

func TestCheck(t *testing.T) {
	t.Parallel()
	second, day := -time.Second, 24*time.Hour
	hook := func(edit func(*connect.HTTP)) connect.Config {
		h := &connect.HTTP{URL: "https://hooks.example.com/end", Secret: "env:HOOK"}
		edit(h)
		return connect.Config{HTTP: h}
	}
	for name, c := range map[string]struct {
		cfg  connect.Config
		want []string // pointers
	}{
		"none":                {connect.Config{}, []string{""}},
		"two":                 {connect.Config{Anthropic: &connect.Anthropic{AdminKey: "env:A"}, OpenAI: &connect.OpenAI{AdminKey: "env:A", Project: "p"}}, []string{""}},
		"anthropic":           {connect.Config{Anthropic: &connect.Anthropic{AdminKey: "env:A"}}, nil},
		"anthropic, all":      {connect.Config{Anthropic: &connect.Anthropic{AdminKey: "sk-canary", Endpoint: "http://api.example.com", Lag: &day}}, []string{"anthropic.admin_key", "anthropic.endpoint", "anthropic.lag"}},
		"openai":              {connect.Config{OpenAI: &connect.OpenAI{AdminKey: "env:A", Project: "proj_1", KeyLifetime: time.Hour}}, nil},
		"openai, all":         {connect.Config{OpenAI: &connect.OpenAI{Project: "a/b", Endpoint: "https://u:canary@x", Lag: &second, KeyLifetime: 1}}, []string{"openai.admin_key", "openai.project", "openai.endpoint", "openai.lag", "openai.key_lifetime"}},
		"hook":                {hook(func(*connect.HTTP) {}), nil},
		"hook on loopback":    {hook(func(h *connect.HTTP) { h.URL = "http://127.0.0.1:9/{{.Name}}" }), nil},
		"hook in the clear":   {hook(func(h *connect.HTTP) { h.URL = "http://hooks.example.com" }), []string{"http.url"}},
		"hook like loopback":  {hook(func(h *connect.HTTP) { h.URL = "http://127.0.0.1.example.com" }), []string{"http.url"}},
		"hook without a host": {hook(func(h *connect.HTTP) { h.URL = "https:///x" }), []string{"http.url"}},
		"hook of any host":    {hook(func(h *connect.HTTP) { h.URL = "https://{{.Name}}.example.com/" }), []string{"http.url", "http.url"}},
		"another placeholder": {hook(func(h *connect.HTTP) { h.Body = `{"k":"{{.Value}} {{.Name}}"}` }), []string{"http"}},
		"an action":           {hook(func(h *connect.HTTP) { h.Body = `{"k":"{{printf .Name}}{{.Name}}"}` }), []string{"http"}},
		"an object in one":    {hook(func(h *connect.HTTP) { h.Body = `{"k":{"n":"{{.Name}}"}}` }), nil}, // its }} was once taken for a placeholder's
		"outside a string":    {hook(func(h *connect.HTTP) { h.Body = `{"k":{{.Name}}}` }), []string{"http.body"}},
		"names no key":        {hook(func(h *connect.HTTP) { h.Body = `{}` }), []string{"http.body"}},
		"unsigned":            {hook(func(h *connect.HTTP) { h.Secret = "" }), []string{"http.secret"}},
		"words":               {hook(func(h *connect.HTTP) { h.Method, h.Mode, h.Absent = "GET", "none", "yes" }), []string{"http.method", "http.mode", "http.absent"}},
	} {
		var got []string
		for _, f := range c.cfg.Check() {
			got = append(got, f.Pointer)
			clean(t, f.Reason)
		}
		if !cmp.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if len(c.want) > 0 {
			if _, err := connect.OpenEnder(c.cfg, connect.Wire{}); err == nil {
				t.Errorf("%s: opened", name)
			}
			if _, err := connect.OpenMaker(c.cfg, connect.Wire{}); err == nil {
				t.Errorf("%s: opened", name)
			}
		}
	}
	good := connect.Config{Anthropic: &connect.Anthropic{AdminKey: "env:TASKPASS_TEST_NOT_SET"}}
	if _, err := connect.OpenEnder(good, connect.Wire{}); err == nil {
		t.Error("opened without an admin key")
	}
	if _, err := connect.OpenMaker(good, connect.Wire{}); err == nil {
		t.Error("Anthropic makes keys")
	}
}
