package gcp

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials/downscope"
	"cloud.google.com/go/iam/credentials/apiv1/credentialspb"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/taskpass/taskpass/broker"
)

const (
	codeNotFound         = codes.NotFound
	codePermissionDenied = codes.PermissionDenied
)

func (p *Provider) delegates() []string {
	var list []string
	for _, email := range p.cfg.Delegates {
		list = append(list, resource(email))
	}
	return list
}

// mintAccessToken makes a token by GenerateAccessToken, and narrows it where the scopes have boundaries.
func (p *Provider) mintAccessToken(ctx context.Context, c broker.Credential, h *hold) (broker.Minted, error) {
	rules, hash, err := p.cfg.boundary(c)
	if err != nil {
		return broker.Minted{}, nothing(err)
	}
	scopes := p.cfg.oauthScopes(c.Scopes)
	if len(rules) > 0 {
		scopes = []string{cloudPlatform} // Google exchanges no other; the rules name Cloud Storage only
	}
	var out *credentialspb.GenerateAccessTokenResponse
	err = p.ask(ctx, c, h, func(ctx context.Context) error {
		life, err := p.lifetime(c)
		if err != nil {
			return err
		}
		out, err = p.clients.tokens.GenerateAccessToken(ctx, &credentialspb.GenerateAccessTokenRequest{
			Name: resource(h.email), Delegates: p.delegates(), Scope: scopes, Lifetime: durationpb.New(life),
		})
		return err
	})
	if err != nil {
		return broker.Minted{}, err
	}
	value, end := out.GetAccessToken(), out.GetExpireTime().AsTime()
	if !isToken(value) || !out.GetExpireTime().IsValid() {
		return broker.Minted{}, broker.Errorf(broker.CodeUpstreamError, "what Google answered was not handed out: it has no end, or no token of the form that Google's have").
			Because(broker.VendorAnswer{Vendor: "Google", Action: "GenerateAccessToken", Code: codes.OK.String()})
	}
	trace := map[string]string{"scopes": strings.Join(scopes, " "), "request_reason": string(c.Version.ID)}
	if len(rules) > 0 {
		if err := p.endsInTime(ctx, c, end); err != nil { // the narrow one's end would hide it
			return broker.Minted{}, err
		}
		if value, end, err = p.narrow(ctx, value, end, rules); err != nil {
			return broker.Minted{}, err
		}
		trace["boundary_sha256"] = hash
	}
	token := broker.NewSecret(value)
	return broker.Minted{
		Secret: broker.Bundle{
			Type: "gcp_access_token", Primary: "access_token",
			Fields: map[string]broker.Secret{"access_token": token},
			Env:    map[string]broker.Secret{"CLOUDSDK_AUTH_ACCESS_TOKEN": token, "GOOGLE_OAUTH_ACCESS_TOKEN": token},
		},
		UpstreamExpiresAt: end.UTC(), UpstreamIDs: []string{h.email, string(c.Version.ID)}, Trace: trace,
	}, nil
}

const exchangeSkew = 5 * time.Second

// isToken tells whether a text has the form of a bearer token: RFC 6750, section 2.1.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// narrow exchanges a token for one that can do no more than the rules make available, and says when that ends. The wide one
// was made, so no failure here is proof of anything; nobody but this process ever has it, and it dies with its lifetime.
func (p *Provider) narrow(ctx context.Context, wide string, end time.Time, rules []downscope.AccessBoundaryRule) (string, time.Time, error) {
	transport := &exchangeTransport{endpoint: p.cfg.Endpoints.STS, next: p.clients.http.Transport}
	narrow, err := downscope.NewCredentials(&downscope.Options{
		Credentials: auth.NewCredentials(&auth.CredentialsOptions{TokenProvider: fixed{wide, end}}), Rules: rules,
		Client: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	})
	if err != nil {
		return "", end, broker.Errorf(broker.CodeUpstreamRefused, "the access boundary is not one that Google takes: the operator should check the boundary of these scopes")
	}
	begun := time.Now()
	token, err := narrow.Token(ctx)
	if err == nil && isToken(token.Value) && token.Value != wide {
		// The library counts whole seconds, from the machine's clock: what differs by no more than that is the same end.
		if its := p.clock().Add(token.Expiry.Sub(begun)); !token.Expiry.Equal(end) && its.Before(end.Add(-exchangeSkew)) {
			end = its
		}
		return token.Value, end, nil
	}
	answer := broker.VendorAnswer{Vendor: "Google", Action: "ExchangeToken", Status: transport.status}
	switch {
	case ctx.Err() != nil:
		return "", end, broker.Errorf(broker.CodeUpstreamTimeout, "Google did not narrow the token in time").Because(errors.Join(context.DeadlineExceeded, answer))
	case transport.status == http.StatusTooManyRequests:
		e := broker.Errorf(broker.CodeUpstreamThrottled, "Google's token exchange is asked too often").Because(answer)
		e.RetryAfter = throttlePause
		if s, err := strconv.Atoi(transport.after); err == nil && s > 0 && s <= 3600 {
			e.RetryAfter = time.Duration(s) * time.Second
		}
		return "", end, e
	case transport.status >= 400 && transport.status < 500 && transport.status != http.StatusRequestTimeout && transport.json:
		return "", end, broker.Errorf(broker.CodeUpstreamRefused, "Google refuses the access boundary: the operator should check the buckets, roles and prefixes of these scopes").Because(answer)
	}
	return "", end, broker.Errorf(broker.CodeUpstreamError, "Google could not narrow the token").Because(answer)
}

// fixed gives one token.
type fixed struct {
	value string
	end   time.Time
}

// Token implements auth.TokenProvider.
func (f fixed) Token(context.Context) (*auth.Token, error) {
	return &auth.Token{Value: f.value, Type: "Bearer", Expiry: f.end}, nil
}

// mintIDToken makes an ID token by GenerateIdToken. Google fixes its life.
func (p *Provider) mintIDToken(ctx context.Context, c broker.Credential, h *hold) (broker.Minted, error) {
	var out *credentialspb.GenerateIdTokenResponse
	err := p.ask(ctx, c, h, func(ctx context.Context) (err error) {
		out, err = p.clients.tokens.GenerateIdToken(ctx, &credentialspb.GenerateIdTokenRequest{
			Name: resource(h.email), Delegates: p.delegates(), Audience: p.cfg.Audience, IncludeEmail: true,
		})
		return err
	})
	if err != nil {
		return broker.Minted{}, err
	}
	var claims jwt.Claims
	var more struct {
		Email string `json:"email"`
	}
	// It came from Google over TLS: only its end is wanted, and whether it is for whom it was asked.
	parsed, err := jwt.ParseSigned(out.GetToken(), []jose.SignatureAlgorithm{jose.RS256})
	if err != nil || parsed.UnsafeClaimsWithoutVerification(&claims, &more) != nil || claims.Expiry == nil ||
		!claims.Audience.Contains(p.cfg.Audience) || more.Email != "" && more.Email != h.email || !isToken(out.GetToken()) {
		return broker.Minted{}, broker.Errorf(broker.CodeUpstreamError, "Google answered without an ID token of the account for the audience").
			Because(broker.VendorAnswer{Vendor: "Google", Action: "GenerateIdToken", Code: codes.OK.String()})
	}
	token := broker.NewSecret(out.GetToken())
	return broker.Minted{
		Secret: broker.Bundle{
			Type: "gcp_id_token", Primary: "id_token",
			Fields: map[string]broker.Secret{"id_token": token}, Env: map[string]broker.Secret{"GOOGLE_ID_TOKEN": token},
		},
		UpstreamExpiresAt: claims.Expiry.Time().UTC(), UpstreamIDs: []string{h.email, string(c.Version.ID)},
		Trace: map[string]string{"audience": p.cfg.Audience, "request_reason": string(c.Version.ID)},
	}, nil
}
