package gcp_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/iam/admin/apiv1/adminpb"
	"cloud.google.com/go/iam/credentials/apiv1/credentialspb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/providers/gcp"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/gcp"
)

const (
	brokerToken = "ya29.C4n4ryC4n4ry-broker" // a canary: no error may show the broker's own token
	bucket      = "data"
)

// rig is a running Google stand-in with some accounts of a project of its own.
type rig struct {
	*sandbox.Server
	clock  *providertest.Clock
	url    string
	client *http.Client
	config gcp.Config
	emails []string
}

type edit func(*sandbox.Config, *gcp.Config)

func newRig(t testing.TB, mode string, accounts int, edits ...edit) *rig {
	t.Helper()
	r := &rig{clock: providertest.NewClock()}
	project := "p-" + strings.ToLower(string(broker.NewVersionID()))
	server := sandbox.Config{Project: project, BrokerToken: brokerToken, Now: r.clock.Now}
	zero := time.Duration(0)
	r.config = gcp.Config{
		Mode: mode, TokenFile: providertest.SecretFile(t, brokerToken), Grace: &zero,
		Scopes: map[string]gcp.Scope{"read": {}},
	}
	for i := range accounts {
		name := "worker-" + strconv.Itoa(i)
		server.Accounts = append(server.Accounts, sandbox.Account{Name: name})
		r.emails = append(r.emails, name+"@"+project+".iam.gserviceaccount.com")
	}
	if mode == "slot" {
		r.config.Accounts = r.emails
	} else {
		r.config.ServiceAccount = r.emails[0]
	}
	for _, e := range edits {
		e(&server, &r.config)
	}
	r.start(t, server)
	return r
}

func (r *rig) start(t testing.TB, cfg sandbox.Config) {
	t.Helper()
	server, err := sandbox.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.ServeGRPC(l) })
	web := httptest.NewServer(server)
	transport := &http.Transport{}
	t.Cleanup(func() {
		server.Close()
		serving.Wait()
		transport.CloseIdleConnections()
		web.Close()
	})
	r.Server, r.url, r.client = server, web.URL, &http.Client{Transport: transport}
	r.config.Endpoints = gcp.Endpoints{Credentials: "http://" + l.Addr().String(), Admin: "http://" + l.Addr().String(), STS: web.URL, Token: web.URL + "/token"}
	server.CreateBucket(bucket)
	for _, email := range r.emails {
		server.Grant(bucket, email, "roles/storage.objectUser")
	}
}

// open makes the provider of a configuration that Check accepts.
func open(t testing.TB, c gcp.Config, ledger broker.Accounts, clock func() time.Time) *gcp.Provider {
	t.Helper()
	if faults := c.Check(); len(faults) > 0 {
		t.Fatalf("configuration: %v", faults)
	}
	p, err := gcp.New(context.Background(), c, gcp.Deps{Accounts: ledger, Clock: clock, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func (r *rig) provider(t testing.TB, ledger *store.Store) *gcp.Provider {
	t.Helper()
	return open(t, r.config, ledger, r.clock.Now)
}

func (r *rig) credential(scopes ...string) broker.Credential {
	if len(scopes) == 0 {
		scopes = []string{"read"}
	}
	id := string(broker.NewVersionID())
	r.PutObject(bucket, "tasks/task-"+id+"/brief.txt", []byte("do it"))
	return broker.Credential{
		TaskID: "task-" + id, AgentID: "agent-" + id, Profile: "gcs", Provider: "gcp", Scopes: scopes,
		Metadata: map[string]string{"team": "blue"},
	}
}

func (r *rig) issue(t testing.TB, p broker.Provider, ledger *store.Store, ttl time.Duration) (broker.Credential, broker.Minted) {
	t.Helper()
	c := providertest.Intend(t, ledger, p, r.credential(), r.clock.Now(), ttl)
	m, err := p.Mint(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return providertest.Activate(t, ledger, c, m), m
}

// end ends a version for a cause, and records it.
func (r *rig) end(t testing.TB, p broker.Provider, ledger *store.Store, c broker.Credential, cause broker.Cause) broker.Revocation {
	t.Helper()
	c = providertest.Ask(t, ledger, c, cause)
	done, err := p.Revoke(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	providertest.Settle(t, ledger, c, done)
	return done
}

// token is what an agent's tools make of the secret: the token itself, or one that its key signs for.
func (r *rig) token(t testing.TB, secret broker.Bundle) (string, bool) {
	t.Helper()
	if token := secret.Fields["access_token"]; !token.Empty() {
		return token.Reveal(), true
	}
	c, err := credentials.NewCredentialsFromJSON(credentials.ServiceAccount, []byte(secret.Fields["google_application_credentials"].Reveal()),
		&credentials.DetectOptions{Scopes: []string{sandbox.CloudPlatform}, Client: r.client})
	if err != nil {
		t.Fatal(err)
	}
	token, err := c.Token(t.Context())
	if err != nil {
		return "", false
	}
	return token.Value, true
}

// reads tells whether a token can read an object: yes, or refused for what it is.
func (r *rig) reads(t testing.TB, token, object string) bool {
	t.Helper()
	status, _ := r.get(t, token, "/storage/v1/b/"+bucket+"/o/"+url.PathEscape(object)+"?alt=media")
	switch status {
	case http.StatusOK:
		return true
	case http.StatusUnauthorized, http.StatusForbidden:
		return false
	}
	t.Fatalf("Cloud Storage answers %d", status)
	return false
}

func (r *rig) get(t testing.TB, token, path string) (int, []byte) {
	t.Helper()
	in, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	in.Header.Set("Authorization", "Bearer "+token)
	out, err := r.client.Do(in)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	body, err := io.ReadAll(out.Body)
	if err != nil {
		t.Fatal(err)
	}
	return out.StatusCode, body
}

func (r *rig) alive(t testing.TB, c broker.Credential, secret broker.Bundle) bool {
	t.Helper()
	token, ok := r.token(t, secret)
	return ok && r.reads(t, token, "tasks/"+c.TaskID+"/brief.txt")
}

// known lists versions by what Google's side shows of them: the reason that each mint bore, the name in a certificate.
func (r *rig) known(t testing.TB) []broker.VersionID {
	t.Helper()
	var ids []broker.VersionID
	for _, token := range r.Tokens() {
		if token.Reason != "" {
			ids = append(ids, broker.VersionID(token.Reason))
		}
	}
	for _, email := range r.emails {
		info, _ := r.Account(email)
		for _, k := range info.Keys {
			ids = append(ids, broker.VersionID(k.CommonName))
		}
	}
	return ids
}

// subject is the rig as the contract's suite wants it.
func (r *rig) subject(t testing.TB, ledger *store.Store) providertest.Subject {
	t.Helper()
	unreachable := r.config
	nowhere := "http://" + providertest.Refusing(t)
	unreachable.Endpoints = gcp.Endpoints{Credentials: nowhere, Admin: nowhere, STS: nowhere, Token: nowhere}
	mint := "GenerateAccessToken"
	if r.config.Mode == "key" {
		mint = "UploadServiceAccountKey"
	}
	return providertest.Subject{
		Provider: sweeping{r.provider(t, ledger), r.clock}, Unreachable: open(t, unreachable, ledger, r.clock.Now),
		Ledger: ledger, Clock: r.clock,
		Credential: func() broker.Credential { return r.credential() },
		Alive:      r.alive, Known: r.known,
		Calls: func() int { return r.Calls(mint) },
		Fault: func(_ testing.TB, at providertest.Operation, f providertest.Fault) (<-chan struct{}, bool) {
			method := mint
			if at == providertest.Revoke {
				switch {
				case r.config.Mode == "impersonate":
					return nil, false
				case r.config.Mode == "key" && !r.config.Dedicated:
					method = "DeleteServiceAccountKey"
				default:
					method = "DisableServiceAccount"
				}
			}
			kinds := map[providertest.Fault]sandbox.FaultKind{
				providertest.Refuse: sandbox.Denied, providertest.Throttle: sandbox.Exhausted, providertest.LoseReply: sandbox.DropReply,
				providertest.ServerError: sandbox.Internal, providertest.Hang: sandbox.Hang,
			}
			met := make(chan struct{})
			r.Inject(sandbox.Fault{Method: method, Kind: kinds[f], Message: providertest.Canary, Met: met})
			return met, true
		},
		Lie: func(_ testing.TB, at providertest.Operation, l providertest.Lie) bool {
			return at == providertest.Mint && r.lie(mint, l)
		},
		Lost: func(t testing.TB) broker.Bundle {
			if r.config.Mode == "key" {
				return broker.Bundle{} // the private half was only in the provider's memory: that it is off the list is for Known
			}
			return broker.Bundle{Type: "gcp_access_token", Primary: "access_token", Fields: map[string]broker.Secret{"access_token": broker.NewSecret(r.LastToken())}}
		},
	}
}

// sweeping does the sweeper's part: it asks again when it was told to, where absence is no proof yet.
type sweeping struct {
	*gcp.Provider
	clock *providertest.Clock
}

// Revoke implements broker.Provider.
func (s sweeping) Revoke(ctx context.Context, c broker.Credential) (broker.Revocation, error) {
	done, err := s.Provider.Revoke(ctx, c)
	if e, ok := errors.AsType[*broker.Error](err); ok && e.Code == broker.CodeUpstreamError && e.RetryAfter > 0 {
		s.clock.Advance(e.RetryAfter)
		return s.Provider.Revoke(ctx, c)
	}
	return done, err
}

// listed are the names that a token may list under a prefix; false: it may not.
func (r *rig) listed(t testing.TB, token, prefix string) ([]string, bool) {
	t.Helper()
	status, body := r.get(t, token, "/storage/v1/b/"+bucket+"/o?prefix="+url.QueryEscape(prefix))
	if status == http.StatusForbidden {
		return nil, false
	}
	var out struct{ Items []struct{ Name string } }
	if err := json.Unmarshal(body, &out); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range out.Items {
		names = append(names, i.Name)
	}
	return names, true
}

// lie alters the next answer of the call that mints. That gRPC has its own form of an answer is for TestPages.
func (r *rig) lie(method string, l providertest.Lie) bool {
	edit := func(token func(*credentialspb.GenerateAccessTokenResponse), key func(*adminpb.ServiceAccountKey)) bool {
		if method == "GenerateAccessToken" {
			r.Inject(sandbox.Fault{Method: method, Kind: sandbox.Lie, Edit: func(reply any) { token(reply.(*credentialspb.GenerateAccessTokenResponse)) }})
			return true
		}
		if key != nil {
			r.Inject(sandbox.Fault{Method: method, Kind: sandbox.Lie, Edit: func(reply any) { key(reply.(*adminpb.ServiceAccountKey)) }})
		}
		return key != nil
	}
	value := func(text string) bool {
		return edit(func(out *credentialspb.GenerateAccessTokenResponse) { out.AccessToken = text }, nil)
	}
	ends := func(at *timestamppb.Timestamp) bool {
		return edit(func(out *credentialspb.GenerateAccessTokenResponse) { out.ExpireTime = at },
			func(out *adminpb.ServiceAccountKey) { out.ValidBeforeTime = at })
	}
	switch now := r.clock.Now(); l {
	case providertest.EmptyAnswer:
		return edit(func(out *credentialspb.GenerateAccessTokenResponse) { out.Reset() }, func(out *adminpb.ServiceAccountKey) { out.Reset() })
	case providertest.NoEnd:
		return ends(nil)
	case providertest.EndedBefore:
		return ends(timestamppb.New(now.Add(-time.Hour)))
	case providertest.EndsAtOnce:
		return ends(timestamppb.New(now.Add(5 * time.Second)))
	case providertest.EndsIn9999:
		return r.config.Mode != "slot" && ends(timestamppb.New(time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)))
	case providertest.NoSecret:
		return value("")
	case providertest.SpaceInSecret:
		return value("ya29.C4n4ry\r\n")
	case providertest.HugeSecret:
		return value(strings.Repeat("a", 5<<20))
	}
	return false
}
