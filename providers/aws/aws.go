package aws

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsarn "github.com/aws/aws-sdk-go-v2/aws/arn"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"
	"github.com/aws/smithy-go/logging"

	"github.com/taskpass/taskpass/broker"
)

// Deps is what the provider needs of the broker's house. All are required.
type Deps struct {
	Denials broker.Denials
	Clock   func() time.Time
	Logger  *slog.Logger
}

// Provider implements broker.Provider for one role.
type Provider struct {
	cfg    Config
	sts    *sts.Client
	denier *denier
	clock  func() time.Time
}

// New makes the provider of one profile. It reads the broker's own credentials but asks AWS nothing.
func New(ctx context.Context, cfg Config, deps Deps) (*Provider, error) {
	options := []func(*config.LoadOptions) error{
		config.WithRegion(cfg.Region),
		config.WithLogger(logging.Nop{}), // the SDK's own would write past our log, and may quote an answer
		// A retried AssumeRole is a second session under the same name. Retries are the broker's, under a new version.
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
			t.MaxIdleConnsPerHost, t.MaxIdleConns = 64, 256 // the SDK's 10 make a busy broker dial anew
		})),
	}
	if cfg.AccessKeyID != "" {
		id, err := cfg.AccessKeyID.Resolve()
		if err != nil {
			return nil, fmt.Errorf("access_key_id: %w", err)
		}
		key, err := cfg.SecretAccessKey.Resolve()
		if err != nil {
			return nil, fmt.Errorf("secret_access_key: %w", err)
		}
		options = append(options, config.WithCredentialsProvider(
			credentials.NewStaticCredentialsProvider(id.Reveal(), key.Reveal(), "")))
	}
	loaded, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("loading the AWS configuration of this machine: %w", err)
	}
	loaded.HTTPClient = wholeBody{loaded.HTTPClient}
	if cfg.Endpoint != "" {
		loaded.BaseEndpoint = &cfg.Endpoint
	}
	role, err := awsarn.Parse(cfg.RoleARN)
	if err != nil {
		return nil, fmt.Errorf("role_arn: %w", err)
	}
	return &Provider{
		cfg: cfg, sts: sts.NewFromConfig(loaded), clock: deps.Clock,
		denier: newDenier(iam.NewFromConfig(loaded), role, cfg.RoleARN, deps),
	}, nil
}

// Capabilities implements broker.Provider.
func (p *Provider) Capabilities() broker.Capabilities { return p.cfg.Capabilities() }

// Upstream implements broker.Provider: sessions live under their role.
func (p *Provider) Upstream(broker.Credential) string { return p.cfg.RoleARN }

// Mint implements broker.Provider.
func (p *Provider) Mint(ctx context.Context, c broker.Credential) (broker.Minted, error) {
	in, err := p.request(c)
	if err != nil {
		return broker.Minted{}, fmt.Errorf("%w%w", notMinted{}, err)
	}
	ctx, sent := watchSending(ctx)
	out, err := p.sts.AssumeRole(ctx, in)
	if err != nil {
		return broker.Minted{}, mintError(err, sent(), p.cfg.RoleARN)
	}
	cred := out.Credentials
	if cred == nil || cred.AccessKeyId == nil || cred.SecretAccessKey == nil || cred.SessionToken == nil {
		return broker.Minted{}, broker.Errorf(broker.CodeUpstreamError, "STS answered without credentials")
	}
	trace := map[string]string{
		"access_key_id": *cred.AccessKeyId, "role_session_name": *in.RoleSessionName, "role_arn": p.cfg.RoleARN,
	}
	if u := out.AssumedRoleUser; u != nil {
		put(trace, "assumed_role_arn", u.Arn)
		put(trace, "assumed_role_id", u.AssumedRoleId)
	}
	put(trace, "source_identity", out.SourceIdentity) // as STS confirms it, not as it was asked for
	if id, ok := awsmiddleware.GetRequestIDMetadata(out.ResultMetadata); ok {
		trace["request_id"] = id
	}
	if packed := out.PackedPolicySize; packed != nil { //nolint:staticcheck // its replacement is not in STS's answers everywhere yet
		trace["packed_policy_percent"] = strconv.Itoa(int(*packed))
	}
	return broker.Minted{
		Secret: bundle(cred, p.cfg.Region), UpstreamExpiresAt: aws.ToTime(cred.Expiration).UTC(),
		UpstreamIDs: []string{*cred.AccessKeyId}, Trace: trace,
	}, nil
}

func (p *Provider) request(c broker.Credential) (*sts.AssumeRoleInput, error) {
	document, arns, err := sessionPolicy(p.cfg, c)
	if err != nil {
		return nil, err
	}
	// STS's own end comes at or after ours, which the session policy enforces.
	left := time.Duration(math.Ceil(c.Version.ExpiresAt.Sub(p.clock()).Seconds())) * time.Second
	in := &sts.AssumeRoleInput{
		RoleArn:         &p.cfg.RoleARN,
		RoleSessionName: aws.String(string(c.Version.ID)),
		DurationSeconds: aws.Int32(int32(max(left, minDuration).Seconds())),
		Policy:          &document,
	}
	if p.cfg.ExternalID != "" {
		in.ExternalId = &p.cfg.ExternalID
	}
	if p.cfg.SourceIdentity {
		in.SourceIdentity = in.RoleSessionName
	}
	for _, a := range arns {
		in.PolicyArns = append(in.PolicyArns, types.PolicyDescriptorType{Arn: aws.String(a)})
	}
	keys := make([]string, 0, len(p.cfg.Tags))
	for key := range p.cfg.Tags {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		value, err := fill(p.cfg.Tags[key], c)
		if err != nil {
			return nil, err
		}
		in.Tags = append(in.Tags, types.Tag{Key: aws.String(key), Value: &value})
	}
	return in, nil
}

func bundle(c *types.Credentials, region string) broker.Bundle {
	id, key, token := broker.NewSecret(*c.AccessKeyId), broker.NewSecret(*c.SecretAccessKey), broker.NewSecret(*c.SessionToken)
	return broker.Bundle{
		Type: "aws_session", Primary: "session_token",
		Fields: map[string]broker.Secret{"access_key_id": id, "secret_access_key": key, "session_token": token},
		Env: map[string]broker.Secret{
			"AWS_ACCESS_KEY_ID": id, "AWS_SECRET_ACCESS_KEY": key, "AWS_SESSION_TOKEN": token,
			"AWS_REGION": broker.NewSecret(region),
		},
	}
}

// Revoke implements broker.Provider.
func (p *Provider) Revoke(ctx context.Context, c broker.Credential) (broker.Revocation, error) {
	if p.cfg.Revocation.Mode == "none" {
		return broker.Revocation{Result: broker.ResultExpires, EffectiveAt: c.Version.ExpiresAt, Basis: "self_expires"}, nil
	}
	if err := p.denier.reconcile(ctx); err != nil {
		return broker.Revocation{}, err
	}
	return broker.Revocation{
		Result: broker.ResultDenied, EffectiveAt: p.clock().UTC().Add(p.Capabilities().RevokeLag), Basis: "role_policy_written",
	}, nil
}

func put(m map[string]string, key string, value *string) {
	if value != nil && *value != "" {
		m[key] = *value
	}
}
