package gcp_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/gcp"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/gcp"
)

func TestAMintIsAskedOnce(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	for _, mode := range []string{"impersonate", "slot", "key"} {
		for _, kind := range []sandbox.FaultKind{sandbox.Unavailable, sandbox.Internal, sandbox.Exhausted, sandbox.Denied, sandbox.DropReply} {
			grace := 5 * time.Second
			r := newRig(t, mode, 1, func(_ *sandbox.Config, c *gcp.Config) { c.Grace = &grace })
			p := r.provider(t, ledger)
			method := map[string]string{"impersonate": "GenerateAccessToken", "slot": "GenerateAccessToken", "key": "UploadServiceAccountKey"}[mode]
			r.Inject(sandbox.Fault{Method: method, Kind: kind, Times: -1, Message: providertest.Canary})
			c := providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 10*time.Minute)
			_, err := p.Mint(t.Context(), c)
			if err == nil || r.Calls(method) != 1 {
				t.Errorf("%s, %s: %d calls, %v", mode, kind, r.Calls(method), err)
			}
			made := kind != sandbox.Exhausted && kind != sandbox.Denied
			if errors.Is(err, broker.ErrNotMinted) == made || strings.Contains(fmt.Sprintf("%+v", err), "C4n4ry") {
				t.Errorf("%s, %s: %v", mode, kind, err)
			}
		}
	}
}

func TestTrace(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "impersonate", 2, bounded, func(s *sandbox.Config, c *gcp.Config) {
		link := "worker-1@" + s.Project + ".iam.gserviceaccount.com"
		c.Delegates = []string{link}
		s.Accounts[0].TokenCreators = []string{link}
	})
	p := r.provider(t, ledger)
	c, m := r.issue(t, p, ledger, 10*time.Minute)
	info, _ := r.Account(r.emails[0])
	token := r.Tokens()[0]
	for key, want := range map[string]string{
		"service_account": r.emails[0], "unique_id": info.UniqueID, "delegates": r.emails[1],
		"scopes": sandbox.CloudPlatform, "request_reason": string(c.Version.ID), "expire_time": token.Expires.Format(time.RFC3339),
	} {
		if m.Trace[key] != want {
			t.Errorf("%s: %q, want %q", key, m.Trace[key], want)
		}
	}
	if len(m.Trace["boundary_sha256"]) != 64 || token.Reason != string(c.Version.ID) || token.Expires.After(c.Version.ExpiresAt) {
		t.Errorf("%v; %+v", m.Trace, token)
	}
	secret := m.Secret.Fields["access_token"].Reveal()
	for _, name := range []string{"CLOUDSDK_AUTH_ACCESS_TOKEN", "GOOGLE_OAUTH_ACCESS_TOKEN"} {
		if m.Secret.Env[name].Reveal() != secret {
			t.Errorf("%s is not the token", name)
		}
	}
	done, err := p.Revoke(t.Context(), providertest.Ask(t, ledger, c, broker.CauseRevoked))
	if err != nil || done.Result != broker.ResultExpires || !done.EffectiveAt.Equal(c.Version.ExpiresAt) || !r.alive(t, c, m.Secret) {
		t.Errorf("a token that nobody can take back: %+v, %v", done, err)
	}
}

func TestBoundary(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "impersonate", 1, bounded, func(_ *sandbox.Config, c *gcp.Config) {
		c.Scopes["team"] = gcp.Scope{Boundary: []gcp.Rule{{Bucket: bucket, Roles: []string{"roles/storage.objectViewer"}, Prefix: `it's "a" \ {{.Metadata.team}}/`}}}
		c.Scopes["wide"] = gcp.Scope{}
	})
	p := r.provider(t, ledger)
	mint := func(scopes ...string) (broker.Credential, broker.Minted, error) {
		c := providertest.Intend(t, ledger, p, r.credential(scopes...), r.clock.Now(), 10*time.Minute)
		m, err := p.Mint(t.Context(), c)
		return c, m, err
	}
	c, m, err := mint("read", "team")
	if err != nil {
		t.Fatal(err)
	}
	token, _ := r.token(t, m.Secret)
	quoted := `it's "a" \ blue/x`
	for _, object := range []string{"tasks/" + c.TaskID + "x/brief.txt", "other", quoted} {
		r.PutObject(bucket, object, []byte("x"))
	}
	for object, want := range map[string]bool{
		"tasks/" + c.TaskID + "/brief.txt": true, "tasks/" + c.TaskID + "x/brief.txt": false, "other": false, quoted: true,
	} {
		if r.reads(t, token, object) != want {
			t.Errorf("reads %s: %v", object, !want)
		}
	}
	if names, ok := r.listed(t, token, "tasks/"+c.TaskID+"/"); !ok || len(names) != 1 {
		t.Errorf("lists %v, %v", names, ok)
	}
	if names, ok := r.listed(t, token, "tasks/"+c.TaskID); ok {
		t.Errorf("lists what a longer id has: %v", names)
	}
	if _, _, err := mint("read", "wide"); !errors.Is(err, broker.ErrNotMinted) || broker.AsError(err).Code != broker.CodeInvalidRequest {
		t.Errorf("a scope that a boundary would take everything from: %v", err)
	}
	other := r.credential("team")
	other.Metadata = map[string]string{"team": "a/b"}
	bad := providertest.Intend(t, ledger, p, other, r.clock.Now(), 10*time.Minute)
	if _, err := p.Mint(t.Context(), bad); broker.AsError(err).Code != broker.CodeInvalidRequest || strings.Contains(fmt.Sprint(err), "a/b") {
		t.Errorf("metadata with a slash: %v", err)
	}
}

// A token that was made and not narrowed is known to nobody, and it is not said that nothing was made.
func TestExchangeFails(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	for kind, want := range map[sandbox.FaultKind]broker.Code{
		sandbox.Unavailable: broker.CodeUpstreamError, sandbox.Exhausted: broker.CodeUpstreamThrottled,
		sandbox.Denied: broker.CodeUpstreamRefused, sandbox.DropReply: broker.CodeUpstreamError,
	} {
		r := newRig(t, "impersonate", 1, bounded)
		p := r.provider(t, ledger)
		r.Inject(sandbox.Fault{Method: "ExchangeToken", Kind: kind, Message: providertest.Canary})
		c := providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 10*time.Minute)
		_, err := p.Mint(t.Context(), c)
		if e := broker.AsError(err); e.Code != want || errors.Is(err, broker.ErrNotMinted) || strings.Contains(fmt.Sprintf("%+v %+v", err, e.Err), "C4n4ry") {
			t.Errorf("%s: %v", kind, err)
		} else if want == broker.CodeUpstreamThrottled && e.RetryAfter != sandbox.RetryDelay {
			t.Errorf("ask again after %s", e.RetryAfter)
		}
	}
}

func TestIDToken(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "impersonate", 1, func(_ *sandbox.Config, c *gcp.Config) { c.Audience = "https://service.example" })
	p := r.provider(t, ledger)
	c, m := r.issue(t, p, ledger, p.Capabilities().MaxTTL)
	_, body := r.get(t, "", "/oauth2/v3/certs")
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(body, &keys); err != nil {
		t.Fatal(err)
	}
	parsed, err := jwt.ParseSigned(m.Secret.Fields["id_token"].Reveal(), []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	var claims jwt.Claims
	if err := parsed.Claims(keys.Keys[0], &claims); err != nil {
		t.Fatal(err)
	}
	if !claims.Audience.Contains("https://service.example") || claims.Expiry.Time().After(c.Version.ExpiresAt) || !m.UpstreamExpiresAt.Equal(claims.Expiry.Time()) {
		t.Errorf("%+v, ends %s", claims, m.UpstreamExpiresAt)
	}
}

func TestLongLifetime(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	long := func(_ *sandbox.Config, c *gcp.Config) { c.LongLifetime = true }
	r := newRig(t, "impersonate", 1, long, func(s *sandbox.Config, _ *gcp.Config) {
		s.LongLifetime = []string{"worker-0@" + s.Project + ".iam.gserviceaccount.com"}
	})
	p := r.provider(t, ledger)
	c, m := r.issue(t, p, ledger, 12*time.Hour)
	r.clock.To(c.Version.ExpiresAt.Add(-2 * time.Second))
	if !r.alive(t, c, m.Secret) {
		t.Error("dead before its time")
	}
	// The organization does not list the account.
	r = newRig(t, "impersonate", 1, long)
	p = r.provider(t, ledger)
	c = providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 2*time.Hour)
	if _, err := p.Mint(t.Context(), c); !errors.Is(err, broker.ErrNotMinted) || !strings.Contains(err.Error(), "iam.allowServiceAccountCredentialLifetimeExtension") {
		t.Errorf("%v", err)
	}
}

func TestRefusalsSayWhatToChange(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	for what, c := range map[string]struct {
		edit edit
		do   func(*rig)
		want string
	}{
		"no role":           {func(s *sandbox.Config, _ *gcp.Config) { s.Accounts[0].TokenCreators = []string{} }, nil, "lacks iam.serviceAccounts.getAccessToken on worker-0@"},
		"a disabled one":    {nil, func(r *rig) { r.SetDisabled(r.emails[0], true) }, "is disabled: the operator should enable it"},
		"wrong credentials": {func(s *sandbox.Config, _ *gcp.Config) { s.BrokerToken = "another" }, nil, "does not accept the broker's own credentials"},
		"a broken chain": {func(s *sandbox.Config, c *gcp.Config) {
			c.Delegates = []string{"worker-1@" + s.Project + ".iam.gserviceaccount.com"}
		}, nil, "lacks iam.serviceAccounts.getAccessToken"},
	} {
		edits := []edit{}
		if c.edit != nil {
			edits = append(edits, c.edit)
		}
		r := newRig(t, "impersonate", 2, edits...)
		if c.do != nil {
			c.do(r)
		}
		p := r.provider(t, ledger)
		cred := providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 10*time.Minute)
		_, err := p.Mint(t.Context(), cred)
		if e := broker.AsError(err); e.Code != broker.CodeUpstreamRefused || !errors.Is(err, broker.ErrNotMinted) || !strings.Contains(e.Message, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A fresh account that cannot be seen yet is asked for again, within the grace.
func TestFreshAccountInTheGrace(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	grace := 10 * time.Second
	r := newRig(t, "impersonate", 1, func(_ *sandbox.Config, c *gcp.Config) { c.Grace = &grace })
	r.HideAccount(r.emails[0], sandbox.Visibility{Calls: 2})
	p := r.provider(t, ledger)
	c, m := r.issue(t, p, ledger, 10*time.Minute)
	if !r.alive(t, c, m.Secret) || r.Calls("GenerateAccessToken") != 3 {
		t.Errorf("%d calls", r.Calls("GenerateAccessToken"))
	}
}

// What a key made outlives it: the provider says so, and a dedicated account's tokens are dead at once.
func TestWhatAKeyMade(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	for _, own := range []bool{false, true} {
		var edits []edit
		if own {
			edits = append(edits, dedicated)
		}
		r := newRig(t, "key", 1, edits...)
		p := r.provider(t, ledger)
		c, m := r.issue(t, p, ledger, 30*time.Minute)
		if m.Trace["usable_after"] != r.clock.Now().UTC().Add(time.Minute).Format(time.RFC3339) {
			t.Errorf("usable after %s", m.Trace["usable_after"])
		}
		made, ok := r.token(t, m.Secret)
		if !ok {
			t.Fatal("the key makes no token")
		}
		done := r.end(t, p, ledger, c, broker.CauseRevoked)
		if _, ok := r.token(t, m.Secret); ok {
			t.Error("the key makes tokens after its end")
		}
		if works := r.Usable(made); done.Result != broker.ResultDenied || works == own || done.EffectiveAt.After(r.clock.Now()) == own {
			t.Errorf("dedicated %v: works %v, %+v", own, works, done)
		}
		if info, _ := r.Account(r.emails[0]); len(info.Keys) != 0 || info.Disabled != own {
			t.Errorf("dedicated %v: %+v", own, info)
		}
		r.clock.To(done.EffectiveAt)
		if r.Usable(made) {
			t.Errorf("dedicated %v: works at %s", own, done.EffectiveAt)
		}
		if !own {
			continue
		}
		// It does not come back before all that the key may have made is dead.
		if a := r.state(t, ledger, r.emails[0]); !a.AliveUntil.Equal(c.Version.ExpiresAt.Add(time.Hour + skew)) {
			t.Errorf("%+v", a)
		}
	}
}

// A key that is not on the list right after its upload is no proof that there is none.
func TestALostKeyThatCannotBeSeenYet(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	r := newRig(t, "key", 1)
	p := r.provider(t, ledger)
	r.Hide(sandbox.Visibility{For: time.Minute})
	r.Inject(sandbox.Fault{Method: "UploadServiceAccountKey", Kind: sandbox.DropReply})
	c := providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 30*time.Minute)
	if _, err := p.Mint(t.Context(), c); err == nil || errors.Is(err, broker.ErrNotMinted) {
		t.Fatalf("%v", err)
	}
	c = providertest.Crash(t, ledger, c)
	_, err := p.Revoke(t.Context(), c)
	if e, ok := errors.AsType[*broker.Error](err); !ok || !e.Code.Retryable() || e.RetryAfter != skew {
		t.Fatalf("takes absence for proof: %v", err)
	}
	r.clock.Advance(skew)
	if done, err := p.Revoke(t.Context(), c); err != nil || done.Basis != "key_deleted" || done.EffectiveAt.After(r.clock.Now()) {
		t.Errorf("%+v, %v", done, err)
	}
	if info, _ := r.Account(r.emails[0]); len(info.Keys) != 0 {
		t.Errorf("%+v", info.Keys)
	}
}

func TestTenKeys(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	for _, exhausted := range []bool{false, true} {
		r := newRig(t, "key", 1, func(s *sandbox.Config, _ *gcp.Config) { s.KeysExhausted = exhausted })
		p := r.provider(t, ledger)
		for range 10 {
			r.issue(t, p, ledger, 30*time.Minute)
		}
		c := providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), 30*time.Minute)
		_, err := p.Mint(t.Context(), c)
		if e := broker.AsError(err); e.Code != broker.CodeQuotaExceeded || !errors.Is(err, broker.ErrNotMinted) || e.RetryAfter <= 0 {
			t.Errorf("%v", err)
		}
	}
}

func TestCredentialsFile(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"C4n4ry no JSON":                      "is not JSON",
		`{"type":"authorized_user"}`:          "no service should use",
		`{"type":"service_account","C4n4ry"`:  "is not JSON",
		`{"type":"service_account","x":"C4"}`: "cannot be used",
	} {
		cfg := gcp.Config{
			Mode: "impersonate", ServiceAccount: "a@p.iam.gserviceaccount.com", CredentialsFile: providertest.SecretFile(t, text), Scopes: map[string]gcp.Scope{"s": {}},
		}
		_, err := gcp.New(t.Context(), cfg, gcp.Deps{Clock: time.Now})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "C4") {
			t.Errorf("%s: %v", want, err)
		}
	}
}
