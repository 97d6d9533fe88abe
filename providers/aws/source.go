package aws

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsarn "github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/awsclient"
)

// chainedMax is what STS gives to who is on a role already:
// https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles.html#iam-term-role-chaining
const chainedMax = time.Hour

// source is the broker's own identity at AWS.
type source struct {
	sts  *sts.Client
	keys aws.CredentialsProvider
	file string                 // of its web identity's token
	web  string                 // the role that it is by web identity; empty: it is not
	who  atomic.Pointer[string] // its ARN; nil: not asked yet
	name string                 // tells sources apart that may have quotas of their own
}

// client says how AWS is reached, apart from the values of the broker's own keys.
func (c Config) client() awsclient.Config {
	reach := awsclient.Config{
		Region: c.region(), Endpoint: c.Endpoint, FIPS: c.FIPS, ConfigProfile: c.ConfigProfile, Conns: idleConns,
	}
	if c.AccessKeyID != "" || c.WebIdentity != nil {
		reach.Credentials = awsclient.Anonymous // the SDK is not to look for any
	}
	return reach
}

// Environment lists the variables of the environment that such a profile obeys, and those that have no effect on it.
func (c Config) Environment() (obeyed, ignored []string) { return c.client().Environment() }

// idleConns are kept to each host: the SDK's 10 make a busy broker dial anew.
const idleConns = 64

// load makes the SDK's configuration of the broker's own credentials. A retried AssumeRole is a second session under the
// same name: retries are the broker's, under a new version.
func load(ctx context.Context, cfg Config) (awsclient.Client, error) {
	reach := cfg.client()
	if cfg.AccessKeyID != "" {
		id, err := cfg.AccessKeyID.ResolveValue()
		if err != nil {
			return awsclient.Client{}, fmt.Errorf("access_key_id: %w", err)
		}
		key, err := cfg.SecretAccessKey.ResolveValue()
		if err != nil {
			return awsclient.Client{}, fmt.Errorf("secret_access_key: %w", err)
		}
		reach.Credentials = credentials.NewStaticCredentialsProvider(id.Reveal(), key.Reveal(), "")
	}
	loaded, err := awsclient.Load(ctx, reach)
	if err != nil {
		return awsclient.Client{}, err
	}
	loaded.HTTPClient = wire{loaded.HTTPClient}
	if w := cfg.WebIdentity; w != nil {
		loaded.Credentials = aws.NewCredentialsCache(stscreds.NewWebIdentityRoleProvider(
			sts.NewFromConfig(loaded.Config), w.RoleARN, stscreds.IdentityTokenFile(w.TokenFile),
			func(o *stscreds.WebIdentityRoleOptions) { o.RoleSessionName = "taskpass" }))
	}
	return loaded, nil
}

// asIAMRole is a configuration that acts as the role by which policies are written.
func asIAMRole(loaded aws.Config, client *sts.Client, cfg Config) aws.Config {
	loaded.Credentials = aws.NewCredentialsCache(stscreds.NewAssumeRoleProvider(client, cfg.Revocation.IAMRoleARN,
		func(o *stscreds.AssumeRoleOptions) {
			o.RoleSessionName = "taskpass"
			if cfg.ExternalID != "" {
				o.ExternalID = &cfg.ExternalID
			}
		}))
	return loaded
}

func newSource(cfg Config, client *sts.Client, keys aws.CredentialsProvider) *source {
	s := &source{sts: client, keys: keys, name: "default"}
	switch {
	case cfg.AccessKeyID != "":
		s.name = string(cfg.AccessKeyID)
	case cfg.ConfigProfile != "":
		s.name = "profile:" + cfg.ConfigProfile
	case cfg.WebIdentity != nil:
		s.name, s.web, s.file = cfg.WebIdentity.RoleARN, cfg.WebIdentity.RoleARN, cfg.WebIdentity.TokenFile
	}
	return s
}

// ready gets the broker's own credentials, which are kept until they run out. That these cannot be had says nothing about
// the profile's role, and nothing was minted.
func (s *source) ready(ctx context.Context) error {
	_, err := s.keys.Retrieve(ctx)
	if err == nil {
		return nil
	}
	r, answered := readReplyOf(err)
	switch {
	case ctx.Err() != nil || answered && !r.asksWho():
		return vendorMeaning(err, s.web)
	case answered && s.web != "":
		return refused(r, "the role %s does not take the broker's web identity: the operator should check its trust policy, and the token's issuer, audience and subject", s.web)
	case s.web != "" && !readable(s.file): // the SDK's error does not tell
		return broker.Errorf(broker.CodeUpstreamRefused, "the broker's token file cannot be read: the operator should check web_identity.token_file, and its rights")
	}
	return broker.Errorf(broker.CodeUpstreamRefused, "the broker has no AWS credentials: the operator should check where they come from").Because(r.VendorAnswer)
}

func readable(name string) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

// identity is the broker's own ARN, or empty when AWS cannot be asked. It needs no permission, and is asked until it is
// known once: https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html
func (s *source) identity(ctx context.Context) string {
	if who := s.who.Load(); who != nil {
		return *who
	}
	out, err := s.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return ""
	}
	if _, err := awsarn.Parse(aws.ToString(out.Arn)); err != nil {
		return ""
	}
	s.who.Store(out.Arn)
	return *out.Arn
}

// chained tells whether the broker is known to be on a role itself.
func (s *source) chained() bool {
	who := s.who.Load()
	return who != nil && strings.Contains(*who, ":assumed-role/")
}

// checkChain refuses a life that STS does not give to who is on a role already. Where AWS cannot be asked who the broker
// is, STS decides.
func (s *source) checkChain(ctx context.Context, life time.Duration) error {
	if life <= chainedMax {
		return nil
	}
	s.identity(ctx)
	if !s.chained() {
		return nil
	}
	return tooLongForChain()
}

func tooLongForChain() *broker.Error {
	return tooLong("the broker itself is on a role, so AWS gives its sessions 1 h at most (role chaining): " +
		"ask for 3600 s or less; the operator should set ttl.max to 1h, or give the broker credentials that are no role's")
}

func tooLong(text string) *broker.Error {
	e := broker.Errorf(broker.CodeTTLOutOfRange, "%s", text)
	e.Faults = []broker.Fault{{Pointer: "/ttl_seconds", Reason: "is longer than AWS gives here"}}
	return e
}
