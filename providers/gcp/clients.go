package gcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"
	admin "cloud.google.com/go/iam/admin/apiv1"
	iamcredentials "cloud.google.com/go/iam/credentials/apiv1"
	"github.com/googleapis/gax-go/v2/callctx"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/taskpass/taskpass/broker"
)

// clients are Google's own, with their retries off: a mint that is asked twice is two tokens.
type clients struct {
	tokens *iamcredentials.IamCredentialsClient
	admin  *admin.IamClient
	http   *http.Client // for the token exchange, and for the broker's own tokens
}

func newClients(ctx context.Context, cfg Config) (*clients, error) {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: true,
	}
	web := &http.Client{Transport: transport}
	identity, err := cfg.identity(web)
	if err != nil {
		return nil, err
	}
	// A client is not bound to the context it is made with, which may end with start-up.
	ctx = context.WithoutCancel(ctx)
	tokens, err := iamcredentials.NewIamCredentialsClient(ctx, cfg.options(cfg.Endpoints.Credentials, identity)...)
	if err != nil {
		return nil, unopened(err)
	}
	tokens.CallOptions = &iamcredentials.IamCredentialsCallOptions{}
	accounts, err := admin.NewIamClient(ctx, cfg.options(cfg.Endpoints.Admin, identity)...)
	if err != nil {
		return nil, errors.Join(unopened(err), tokens.Close())
	}
	accounts.CallOptions = &admin.IamCallOptions{}
	return &clients{tokens, accounts, web}, nil
}

// close ends the connections.
func (c *clients) close() error {
	c.http.CloseIdleConnections()
	return errors.Join(c.tokens.Close(), c.admin.Close())
}

// unopened hides the library's text, which may quote a credentials file.
func unopened(error) error {
	return errors.New("the broker's own Google credentials cannot be used: check credentials_file, or this machine's Application Default Credentials")
}

// identity is the broker's own; nil: the default of this machine.
func (c Config) identity(web *http.Client) (*auth.Credentials, error) {
	switch {
	case c.TokenFile != "":
		if _, err := c.TokenFile.ResolveValue(); err != nil {
			return nil, fmt.Errorf("token_file: %w", err)
		}
		return auth.NewCredentials(&auth.CredentialsOptions{TokenProvider: tokenFile(c.TokenFile)}), nil
	case c.CredentialsFile != "":
		text, err := c.CredentialsFile.Resolve()
		if err != nil {
			return nil, fmt.Errorf("credentials_file: %w", err)
		}
		var kind struct {
			Type credentials.CredType `json:"type"`
		}
		if json.Unmarshal([]byte(text.Reveal()), &kind) != nil {
			return nil, errors.New("credentials_file: is not JSON")
		}
		switch kind.Type {
		case credentials.ServiceAccount, credentials.ExternalAccount, credentials.ImpersonatedServiceAccount:
		default:
			return nil, errors.New("credentials_file: is of a type that no service should use")
		}
		own, err := credentials.NewCredentialsFromJSON(kind.Type, []byte(text.Reveal()), &credentials.DetectOptions{
			Scopes: []string{cloudPlatform}, Client: web, Logger: slog.New(slog.DiscardHandler),
			DisableAsyncRefresh: true, // no goroutine outlives its call
		})
		if err != nil {
			return nil, unopened(err)
		}
		return own, nil
	}
	return nil, nil //nolint:nilnil // nil is the machine's own
}

func (c Config) options(endpoint string, identity *auth.Credentials) []option.ClientOption {
	options := []option.ClientOption{
		option.WithTelemetryDisabled(), option.WithGRPCDialOption(grpc.WithStatsHandler(wireWatch{})),
		option.WithLogger(slog.New(slog.DiscardHandler)), // its own may write tokens, if the environment says so
		option.WithGRPCDialOption(grpc.WithChainUnaryInterceptor(intercept)),
		option.WithGRPCDialOption(grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply))),
	}
	host, plain := strings.CutPrefix(endpoint, "http://")
	if plain { // loopback, as Check holds; Google's library sends no credentials there
		return append(options, option.WithEndpoint(host), option.WithoutAuthentication(),
			option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
			option.WithGRPCDialOption(grpc.WithPerRPCCredentials(tokenFile(c.TokenFile))))
	}
	if endpoint != "" {
		options = append(options, option.WithEndpoint(strings.TrimPrefix(endpoint, "https://")))
	}
	if identity != nil {
		options = append(options, option.WithAuthCredentials(identity))
	}
	return options
}

// tokenFile is a token that somebody else keeps fresh.
type tokenFile broker.Ref

// Token implements auth.TokenProvider.
func (t tokenFile) Token(context.Context) (*auth.Token, error) {
	token, err := broker.Ref(t).ResolveValue()
	if err != nil {
		return nil, err
	}
	return &auth.Token{Value: token.Reveal(), Type: "Bearer"}, nil
}

// GetRequestMetadata implements credentials.PerRPCCredentials of gRPC.
func (t tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := broker.Ref(t).ResolveValue()
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + token.Reveal()}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials: it is used on loopback only.
func (tokenFile) RequireTransportSecurity() bool { return false }

// maxReply bounds an answer, in bytes: a key is some kilobytes.
const maxReply = 1 << 20

// call is what was seen of one call on the wire, whatever the library makes of it.
type call struct {
	sent    atomic.Bool // some of it left this process: what was never sent was never done
	headers atomic.Bool // an answer of gRPC's began
	ended   atomic.Bool // it ended in gRPC's own form, with a status
}

type callKey struct{}

// wireWatch keeps book of calls.
type wireWatch struct{}

func (wireWatch) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (wireWatch) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (wireWatch) HandleConn(context.Context, stats.ConnStats)                       {}
func (wireWatch) HandleRPC(ctx context.Context, s stats.RPCStats) {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return
	}
	switch s.(type) {
	case *stats.OutHeader:
		c.sent.Store(true)
	case *stats.InHeader:
		c.headers.Store(true)
	case *stats.InTrailer:
		c.ended.Store(true)
	}
}

// rpcError is a failed call with its name and what was seen of it.
type rpcError struct {
	method  string
	foreign bool // what answered does not speak gRPC: a proxy's page
	cut     bool // the answer began, and was not read to its end: it may have been too long
	err     error
}

func (e *rpcError) Error() string              { return e.method + " failed" } // gRPC's text may quote the answer
func (e *rpcError) Unwrap() error              { return e.err }
func (e *rpcError) GRPCStatus() *status.Status { return status.Convert(e.err) }

// intercept names a failed call, and notes whether it was Google that refused. gRPC itself takes the HTTP status of a
// proxy's page for a code, and an answer that is too long for a quota that is spent.
func intercept(ctx context.Context, method string, in, out any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		c = &call{}
		ctx = context.WithValue(ctx, callKey{}, c)
	}
	err := invoke(ctx, method, in, out, cc, options...)
	if err == nil {
		return nil
	}
	st := status.Convert(err)
	return &rpcError{
		method:  method[strings.LastIndex(method, "/")+1:],
		foreign: c.sent.Load() && !c.headers.Load() && !c.ended.Load() && st.Code() != codes.Unavailable && ctx.Err() == nil,
		cut:     c.headers.Load() && st.Code() == codes.ResourceExhausted && len(st.Details()) == 0,
		err:     err,
	}
}

// watch gives a call's context the version's id, which Google writes into its audit log as the request's reason, and
// tells afterwards whether the call was sent.
func watch(ctx context.Context, id broker.VersionID) (context.Context, func() bool) {
	c := &call{}
	ctx = context.WithValue(ctx, callKey{}, c)
	return callctx.SetHeaders(ctx, "x-goog-request-reason", string(id)), c.sent.Load
}

// resource is an account's name at both APIs.
func resource(email string) string { return "projects/-/serviceAccounts/" + email }

// exchangeTransport sends the library's token exchange to the configured endpoint, and remembers the answer's status:
// the library's error holds the answer's text, and nothing else that could be told apart.
type exchangeTransport struct {
	endpoint string // empty: Google's
	next     http.RoundTripper
	status   int
	after    string
	json     bool // the answer says that it is JSON, as all of Google's are
}

// RoundTrip implements http.RoundTripper, for one call.
func (t *exchangeTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.endpoint != "" {
		at, err := url.Parse(t.endpoint)
		if err != nil {
			return nil, err
		}
		r = r.Clone(r.Context())
		r.URL.Scheme, r.URL.Host, r.Host = at.Scheme, at.Host, ""
	}
	reply, err := t.next.RoundTrip(r)
	if err == nil {
		t.status, t.after = reply.StatusCode, reply.Header.Get("Retry-After")
		t.json = strings.HasPrefix(reply.Header.Get("Content-Type"), "application/json")
	}
	return reply, err
}
