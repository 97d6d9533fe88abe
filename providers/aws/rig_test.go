package aws_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/aws"
)

const (
	keyID  = "AKIAIOSFODNN7EXAMPLE"
	key    = "wJalrXUtnFEMI/C4n4ryC4n4ryC4n4ry/EXAMPLE" // a canary: no error may show the broker's own key
	bucket = "data"

	rolePolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`
)

// rig is one role of a running AWS stand-in, behind a front that counts, holds up and loses calls.
type rig struct {
	*sandbox.Server
	*front
	clock  *providertest.Clock
	client *http.Client
	role   string // its name
	config aws.Config
}

func newRig(t testing.TB, edit ...func(*aws.Config)) *rig {
	t.Helper()
	clock := providertest.NewClock()
	role := "agents-" + string(broker.NewVersionID())
	server, err := sandbox.New(sandbox.Config{
		AccessKeyID: keyID, SecretAccessKey: key, Now: clock.Now, MaxSkew: -1,
		Roles: []sandbox.Role{{Name: role, MaxSessionDuration: 12 * time.Hour, Policy: rolePolicy}},
	})
	if err != nil {
		t.Fatal(err)
	}
	server.CreateBucket(bucket)
	f := newFront(server)
	web := httptest.NewServer(f)
	transport := &http.Transport{}
	t.Cleanup(func() {
		f.open()
		server.Close()
		transport.CloseIdleConnections()
		web.Close()
	})
	r := &rig{Server: server, front: f, clock: clock, client: &http.Client{Transport: transport}, role: role}
	r.config = config(t, web.URL)
	r.config.RoleARN = server.RoleARN(role)
	for _, e := range edit {
		e(&r.config)
	}
	return r
}

// config is a profile's section with two scopes: what most tests use.
func config(t testing.TB, endpoint string) aws.Config {
	t.Helper()
	return aws.Config{
		RoleARN: "arn:aws:iam::123456789012:role/agents", Region: "eu-west-1", Endpoint: endpoint,
		AccessKeyID: providertest.SecretFile(t, keyID), SecretAccessKey: providertest.SecretFile(t, key),
		Scopes: map[string]aws.Scope{
			"read": {Statements: []aws.Statement{
				{Actions: []string{"s3:GetObject"}, Resources: []string{"arn:aws:s3:::data/tasks/{{.TaskID}}/*"}},
				{Actions: []string{"s3:ListBucket"}, Resources: []string{"arn:aws:s3:::data"},
					Conditions: map[string]map[string][]string{"StringLike": {"s3:prefix": {"tasks/{{.TaskID}}/*"}}}},
			}},
			"write": {Statements: []aws.Statement{
				{Actions: []string{"s3:PutObject"}, Resources: []string{"arn:aws:s3:::data/tasks/{{.TaskID}}/*"}},
			}},
		},
	}
}

// open makes the provider of a configuration that Check accepts.
func open(t testing.TB, c aws.Config, denials broker.Denials, clock func() time.Time) *aws.Provider {
	t.Helper()
	if faults := c.Check(); len(faults) > 0 {
		t.Fatalf("configuration: %v", faults)
	}
	p, err := aws.New(t.Context(), c, aws.Deps{Denials: denials, Clock: clock, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// replica is a provider of the rig's role.
func (r *rig) replica(t testing.TB, ledger *store.Store) *aws.Provider {
	t.Helper()
	return open(t, r.config, ledger, r.clock.Now)
}

func (r *rig) credential(scopes ...string) broker.Credential {
	id := string(broker.NewVersionID())
	r.PutObject(bucket, "tasks/task-"+id+"/brief.txt", []byte("do it"))
	return broker.Credential{
		TaskID: "task-" + id, AgentID: "agent-" + id, Profile: "s3", Provider: "aws", Scopes: scopes,
		Metadata: map[string]string{"team": "blue"},
	}
}

// issue mints a credential by p and records it in ledger.
func (r *rig) issue(t testing.TB, p *aws.Provider, ledger *store.Store, ttl time.Duration) (broker.Credential, broker.Minted) {
	t.Helper()
	c := providertest.Intend(t, ledger, p, r.credential("read"), r.clock.Now(), ttl)
	m, err := p.Mint(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return providertest.Activate(t, ledger, c, m), m
}

// sdkConfig is what an agent's tools make of the secret.
func (r *rig) sdkConfig(secret broker.Bundle) sdk.Config {
	f := secret.Fields
	return sdk.Config{
		Region: "eu-west-1", BaseEndpoint: &r.config.Endpoint, HTTPClient: r.client,
		Retryer: func() sdk.Retryer { return sdk.NopRetryer{} },
		Credentials: credentials.NewStaticCredentialsProvider(
			f["access_key_id"].Reveal(), f["secret_access_key"].Reveal(), f["session_token"].Reveal()),
	}
}

func (r *rig) s3(secret broker.Bundle) *s3.Client {
	return s3.NewFromConfig(r.sdkConfig(secret), func(o *s3.Options) { o.UsePathStyle = true })
}

// reads tells whether the secret can read the object: yes, or refused for what it is.
func (r *rig) reads(t testing.TB, secret broker.Bundle, name string) bool {
	t.Helper()
	out, err := r.s3(secret).GetObject(t.Context(), &s3.GetObjectInput{Bucket: sdk.String(bucket), Key: &name})
	if err == nil {
		_ = out.Body.Close()
		return true
	}
	if !isRefusal(err) {
		t.Fatalf("reading %s: %v", name, err)
	}
	return false
}

func isRefusal(err error) bool {
	re, ok := errors.AsType[*smithyhttp.ResponseError](err)
	return ok && (re.HTTPStatusCode() == http.StatusForbidden || strings.Contains(err.Error(), "ExpiredToken"))
}

func (r *rig) alive(t testing.TB, c broker.Credential, secret broker.Bundle) bool {
	t.Helper()
	return r.reads(t, secret, "tasks/"+c.TaskID+"/brief.txt")
}

// denied is the broker's policy on the role as it is now; empty: there is none.
func (r *rig) denied() string { return r.RolePolicies(r.role)[aws.PolicyName] }

// subject is the rig as the contract's suite wants it.
func (r *rig) subject(t testing.TB, ledger *store.Store) providertest.Subject {
	t.Helper()
	unreachable := r.config
	unreachable.Endpoint = "http://" + providertest.Refusing(t)
	return providertest.Subject{
		Provider: r.replica(t, ledger), Unreachable: open(t, unreachable, ledger, r.clock.Now),
		Ledger: ledger, Clock: r.clock,
		Credential: func() broker.Credential { return r.credential("read") },
		Public:     []string{"access_key_id"},
		Alive:      r.alive,
		Known: func(testing.TB) []broker.VersionID {
			var ids []broker.VersionID
			for _, s := range r.Sessions() {
				ids = append(ids, broker.VersionID(s.Name))
			}
			return ids
		},
		Calls: func() int { return r.calls("AssumeRole") },
		Fault: r.fault, Lie: r.lie,
		Lost: r.lastLost,
	}
}

func (r *rig) fault(_ testing.TB, at providertest.Operation, f providertest.Fault) (met <-chan struct{}, ok bool) {
	action := "AssumeRole"
	if at == providertest.Revoke {
		if action = "PutRolePolicy"; r.config.Revocation.Mode == "none" {
			return nil, false
		}
	}
	kinds := map[providertest.Fault]sandbox.FaultKind{
		providertest.Refuse: sandbox.AccessDenied, providertest.Throttle: sandbox.Throttle,
		providertest.ServerError: sandbox.ServerError, providertest.Hang: sandbox.Hang,
	}
	if f == providertest.LoseReply {
		r.lose(action)
	} else {
		r.Inject(sandbox.Fault{Action: action, Kind: kinds[f], Message: providertest.Canary})
	}
	return r.next(action), true
}

// lie alters the next answer of STS or IAM.
func (r *rig) lie(_ testing.TB, at providertest.Operation, l providertest.Lie) bool {
	action := "AssumeRole"
	if at == providertest.Revoke {
		if action = "PutRolePolicy"; r.config.Revocation.Mode == "none" {
			return false
		}
	}
	part := func(name, text string) func(string) string {
		field := regexp.MustCompile("<" + name + ">[^<]*</" + name + ">")
		return func(body string) string { return field.ReplaceAllString(body, "<"+name+">"+text+"</"+name+">") }
	}
	ends := func(d time.Duration) func(string) string {
		return part("Expiration", r.clock.Now().Add(d).UTC().Format(time.RFC3339))
	}
	r.Inject(sandbox.Fault{Action: action, Kind: sandbox.Lie, Edit: map[providertest.Lie]func(string) string{
		providertest.LoginPage:     func(string) string { return "<html><body>" + providertest.Canary + "</body></html>" },
		providertest.EmptyAnswer:   func(string) string { return "<" + action + "Response/>" + providertest.Canary },
		providertest.NoEnd:         func(body string) string { return part("Expiration", "")(body) },
		providertest.EndedBefore:   ends(-time.Hour),
		providertest.EndsAtOnce:    ends(5 * time.Second),
		providertest.EndsIn9999:    part("Expiration", "9999-12-31T23:59:59Z"),
		providertest.NoSecret:      part("SecretAccessKey", ""),
		providertest.SpaceInSecret: part("AccessKeyId", "\n  ASIAEXAMPLE\r\n"),
		providertest.HugeSecret:    part("SessionToken", strings.Repeat("a", 5<<20)),
	}[l]})
	return true
}

// front stands before the stand-in.
type front struct {
	server http.Handler

	mu      sync.Mutex
	count   map[string]int
	toLose  map[string]bool
	lost    []byte // the last answer that was kept back
	gates   map[string]chan struct{}
	arrived map[string]chan struct{}
}

func newFront(server http.Handler) *front {
	return &front{
		server: server, count: map[string]int{}, toLose: map[string]bool{},
		gates: map[string]chan struct{}{}, arrived: map[string]chan struct{}{},
	}
}

// calls counts the calls of an action so far.
func (f *front) calls(action string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[action]
}

// lose has the next call of an action done, and its answer kept back.
func (f *front) lose(action string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.toLose[action] = true
}

// next is closed when the next call of an action arrives.
func (f *front) next(action string) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.arrived[action] = make(chan struct{})
	return f.arrived[action]
}

// hold keeps calls of an action waiting until open; arrived is closed when the first one waits.
func (f *front) hold(action string) (arrived <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gates[action], f.arrived[action] = make(chan struct{}), make(chan struct{})
	return f.arrived[action]
}

// open lets all go on that hold keeps.
func (f *front) open() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for action, gate := range f.gates {
		close(gate)
		delete(f.gates, action)
	}
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(raw))
	action := ""
	if form, err := url.ParseQuery(string(raw)); err == nil && r.URL.Path == "/" {
		action = form.Get("Action")
	}
	f.mu.Lock()
	f.count[action]++
	loses := f.toLose[action]
	delete(f.toLose, action)
	gate := f.gates[action]
	if arrived := f.arrived[action]; arrived != nil {
		close(arrived)
		delete(f.arrived, action)
	}
	f.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
	if !loses {
		f.server.ServeHTTP(w, r)
		return
	}
	kept := httptest.NewRecorder()
	f.server.ServeHTTP(kept, r)
	f.mu.Lock()
	f.lost = kept.Body.Bytes()
	f.mu.Unlock()
	panic(http.ErrAbortHandler)
}

// lastLost reads the secret of the last answer that was kept back.
func (f *front) lastLost(t testing.TB) broker.Bundle {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	var reply struct {
		Credentials struct {
			AccessKeyID     string `xml:"AccessKeyId"`
			SecretAccessKey string
			SessionToken    string
		} `xml:"AssumeRoleResult>Credentials"`
	}
	if err := xml.Unmarshal(f.lost, &reply); err != nil || reply.Credentials.SessionToken == "" {
		t.Fatalf("no lost session in %q: %v", f.lost, err)
	}
	c := reply.Credentials
	return broker.Bundle{Type: "aws_session", Primary: "session_token", Fields: map[string]broker.Secret{
		"access_key_id": broker.NewSecret(c.AccessKeyID), "secret_access_key": broker.NewSecret(c.SecretAccessKey),
		"session_token": broker.NewSecret(c.SessionToken),
	}}
}
