package aws

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsarn "github.com/aws/aws-sdk-go-v2/aws/arn"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

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
	own    *source
	denier *denier
	clock  func() time.Time
	close  func()
}

// Close closes the connections that are kept for the next call.
func (p *Provider) Close() error {
	p.close()
	return nil
}

// New makes the provider of one profile. It reads the broker's own credentials but asks AWS nothing.
func New(ctx context.Context, cfg Config, deps Deps) (*Provider, error) {
	loaded, err := load(ctx, cfg)
	if err != nil {
		return nil, err
	}
	role, err := awsarn.Parse(cfg.RoleARN)
	if err != nil {
		return nil, fmt.Errorf("role_arn: %w", err)
	}
	client := sts.NewFromConfig(loaded.Config)
	own := newSource(cfg, client, loaded.Credentials)
	writes := loaded.Config
	if cfg.Revocation.IAMRoleARN != "" {
		writes = asIAMRole(writes, client, cfg)
	}
	return &Provider{
		cfg: cfg, sts: client, own: own, clock: deps.Clock, close: loaded.Close,
		denier: newDenier(iam.NewFromConfig(writes), role, own, cfg, deps),
	}, nil
}

// Capabilities implements broker.Provider. A broker that turns out to be on a role itself promises less from then on.
func (p *Provider) Capabilities() broker.Capabilities {
	caps := p.cfg.Capabilities()
	if p.own.chained() {
		caps.MaxTTL = chainedMax
	}
	return caps
}

// Quota implements broker.Metered: STS counts by the asking account and the region.
func (p *Provider) Quota() string { return "sts/" + p.own.name + "/" + p.cfg.region() }

// Upstream implements broker.Provider: sessions live under their role.
func (p *Provider) Upstream(broker.Credential) string { return p.cfg.RoleARN }

// Mint implements broker.Provider.
func (p *Provider) Mint(ctx context.Context, c broker.Credential) (broker.Minted, error) {
	in, err := p.request(c)
	if err != nil {
		return broker.Minted{}, fmt.Errorf("%w%w", notMinted{}, err)
	}
	if err := p.own.ready(ctx); err != nil {
		return broker.Minted{}, fmt.Errorf("%w%w", notMinted{}, err)
	}
	if err := p.own.checkChain(ctx, time.Duration(*in.DurationSeconds)*time.Second); err != nil {
		return broker.Minted{}, fmt.Errorf("%w%w", notMinted{}, err)
	}
	watched, sent := watchSending(ctx)
	out, err := p.sts.AssumeRole(watched, in)
	if err != nil {
		return broker.Minted{}, p.mintError(ctx, err, sent())
	}
	if err := p.verify(in, out); err != nil {
		return broker.Minted{}, err
	}
	cred := out.Credentials
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
	for _, tag := range in.Tags {
		trace["tag."+*tag.Key] = *tag.Value
	}
	minted := broker.Minted{
		Secret: p.bundle(cred, c.Version.ExpiresAt), UpstreamExpiresAt: aws.ToTime(cred.Expiration).UTC(),
		UpstreamIDs: []string{*cred.AccessKeyId}, OwnID: true, Trace: trace,
	}
	if packed := out.PackedPolicySize; packed != nil { //nolint:staticcheck // its replacement is not in STS's answers everywhere yet
		trace["packed_policy_percent"] = strconv.Itoa(int(*packed))
		minted.Levels = map[string]float64{"packed_policy_percent": float64(*packed)}
	}
	return minted, nil
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
	in.TransitiveTagKeys = p.cfg.TransitiveTags
	for _, key := range slices.Sorted(maps.Keys(p.cfg.Tags)) {
		value, err := broker.Template(p.cfg.Tags[key]).Fill(c.Placeholder)
		if err != nil {
			return nil, err
		}
		in.Tags = append(in.Tags, types.Tag{Key: aws.String(key), Value: &value})
	}
	return in, nil
}

// bundle is a session in the forms that AWS's own tools take: three fields, the environment, and the answer of a
// credential_process: https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html
//
// Its end is ours, which the session policy enforces, and not the later one of STS.
func (p *Provider) bundle(c *types.Credentials, end time.Time) broker.Bundle {
	id, key, token := broker.NewSecret(*c.AccessKeyId), broker.NewSecret(*c.SecretAccessKey), broker.NewSecret(*c.SessionToken)
	expiration := end.UTC().Truncate(time.Second).Format(time.RFC3339)
	process, _ := json.Marshal(struct { //nolint:gosec // it is the secret: sealed with the others; strings and a number always encode
		Version                                   int
		AccessKeyID                               string `json:"AccessKeyId"`
		SecretAccessKey, SessionToken, Expiration string
	}{1, *c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken, expiration})
	b := broker.Bundle{
		Type: "aws_session", Primary: "session_token",
		Fields: map[string]broker.Secret{
			"access_key_id": id, "secret_access_key": key, "session_token": token,
			"credential_process": broker.NewSecret(string(process)),
		},
		Env: map[string]broker.Secret{
			"AWS_ACCESS_KEY_ID": id, "AWS_SECRET_ACCESS_KEY": key, "AWS_SESSION_TOKEN": token,
			"AWS_CREDENTIAL_EXPIRATION": broker.NewSecret(expiration),
		},
	}
	if p.cfg.Region != "" {
		b.Env["AWS_REGION"] = broker.NewSecret(p.cfg.Region)
		b.Env["AWS_DEFAULT_REGION"] = b.Env["AWS_REGION"] // boto3 and version 1 of the CLI read only this one
	}
	if p.cfg.Endpoint != "" {
		b.Env["AWS_ENDPOINT_URL"] = broker.NewSecret(p.cfg.Endpoint)
	}
	return b
}

// Revoke implements broker.Provider.
func (p *Provider) Revoke(ctx context.Context, c broker.Credential) (broker.Revocation, error) {
	if p.cfg.Revocation.Mode == "none" {
		return broker.Revocation{Result: broker.ResultExpires, EffectiveAt: c.Version.ExpiresAt, Basis: "self_expires"}, nil
	}
	basis, err := p.denier.deny(ctx, c.Version.ID, c.Version.ExpiresAt)
	if err != nil {
		return broker.Revocation{}, err
	}
	return broker.Revocation{
		Result: broker.ResultDenied, EffectiveAt: p.clock().UTC().Add(p.Capabilities().RevokeLag), Basis: basis,
	}, nil
}

// Keeps implements broker.Keeper: the role's deny policies.
func (p *Provider) Keeps() string {
	if p.cfg.Revocation.Mode == "none" {
		return ""
	}
	return p.cfg.RoleARN
}

// Keep implements broker.Keeper.
func (p *Provider) Keep(ctx context.Context) (time.Time, error) {
	p.own.identity(ctx) // so that a broker on a role promises no more than it can do
	return p.denier.keep(ctx)
}

func put(m map[string]string, key string, value *string) {
	if value != nil && *value != "" {
		m[key] = *value
	}
}
