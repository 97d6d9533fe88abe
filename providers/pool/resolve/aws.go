package resolve

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"

	"github.com/taskpass/taskpass/broker"
)

// AWS is its Secrets Manager, in the region that a reference names.
type AWS struct {
	Endpoint string `yaml:"endpoint"` // empty: AWS's own, of each region

	// The broker's own credentials. Read anew every few minutes. None: the SDK's default chain.
	AccessKeyID     broker.Ref `yaml:"access_key_id"`
	SecretAccessKey broker.Ref `yaml:"secret_access_key"`
	ConfigProfile   string     `yaml:"config_profile"` // a profile of AWS's own shared configuration files
}

const (
	awsStoreName = "AWS Secrets Manager"
	keyKeptFor   = 5 * time.Minute
	maxRegions   = 64 // clients kept; AWS has fewer regions
)

func (c AWS) check(f *broker.Faults) {
	if c.Endpoint != "" {
		f.Endpoint("aws.endpoint", c.Endpoint)
	}
	if (c.AccessKeyID == "") != (c.SecretAccessKey == "") {
		f.Add("aws.access_key_id", "and aws.secret_access_key stand together")
		return
	}
	for _, r := range []struct {
		pointer string
		ref     broker.Ref
	}{{"aws.access_key_id", c.AccessKeyID}, {"aws.secret_access_key", c.SecretAccessKey}} {
		if r.ref == "" {
			continue
		}
		if err := r.ref.Check(); err != nil {
			f.Add(r.pointer, "%v", err)
		}
	}
	if c.AccessKeyID != "" && c.ConfigProfile != "" {
		f.Add("aws.config_profile", "and aws.access_key_id are two sources of credentials")
	}
}

type awsStore struct {
	wire
	cfg   AWS
	files *broker.SecretFiles

	mu      sync.Mutex
	clients map[string]*secretsmanager.Client // by region
}

func newAWS(cfg AWS, w wire, files *broker.SecretFiles) *awsStore {
	return &awsStore{wire: w, cfg: cfg, files: files, clients: map[string]*secretsmanager.Client{}}
}

// in is the client of a region. It is made at the first use, so that who has no secret there needs no credentials.
func (a *awsStore) in(ctx context.Context, region string) (*secretsmanager.Client, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.clients[region]; c != nil {
		return c, nil
	}
	options := []func(*config.LoadOptions) error{
		config.WithRegion(region), config.WithLogger(logging.Nop{}),
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
	}
	if a.cfg.AccessKeyID != "" {
		options = append(options, config.WithCredentialsProvider(aws.CredentialsProviderFunc(a.key)))
	} else if a.cfg.ConfigProfile != "" {
		options = append(options, config.WithSharedConfigProfile(a.cfg.ConfigProfile))
	}
	loaded, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil { // the SDK's text may quote a file of credentials
		return nil, broker.Errorf(broker.CodeUpstreamRefused, "the AWS configuration of this machine could not be loaded: the operator should check its files and aws.config_profile")
	}
	// The SDK's own client obeys AWS_CA_BUNDLE, and a configuration cannot be loaded with another one where that is set.
	if loaded.HTTPClient = (bounded{loaded.HTTPClient}); a.given {
		loaded.HTTPClient = bounded{a.client}
	}
	c := secretsmanager.NewFromConfig(loaded, func(o *secretsmanager.Options) {
		if a.cfg.Endpoint != "" {
			o.BaseEndpoint = &a.cfg.Endpoint
		}
	})
	if len(a.clients) < maxRegions {
		a.clients[region] = c
	}
	return c, nil
}

func (a *awsStore) key(context.Context) (aws.Credentials, error) {
	id, err := a.files.Own(a.cfg.AccessKeyID)
	if err != nil {
		return aws.Credentials{}, errOwnKey
	}
	key, err := a.files.Own(a.cfg.SecretAccessKey)
	if err != nil {
		return aws.Credentials{}, errOwnKey
	}
	return aws.Credentials{
		AccessKeyID: id.Reveal(), SecretAccessKey: key.Reveal(), Source: "taskpass", CanExpire: true, Expires: time.Now().Add(keyKeptFor),
	}, nil
}

var errOwnKey = errors.New("the broker's own access key cannot be read")

// read answers the current version (AWSCURRENT).
// https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html
func (a *awsStore) read(ctx context.Context, name string) ([]byte, string, error) {
	region, id, _ := strings.Cut(name, "/")
	client, err := a.in(ctx, region)
	if err != nil {
		return nil, "", err
	}
	out, err := client.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &id})
	if err != nil {
		return nil, "", a.failed(ctx, err)
	}
	if out.SecretString != nil {
		return []byte(*out.SecretString), aws.ToString(out.VersionId), nil
	}
	return out.SecretBinary, aws.ToString(out.VersionId), nil
}

// failed keeps none of the SDK's text: it quotes the answer.
func (a *awsStore) failed(ctx context.Context, err error) error {
	if errors.Is(err, errOwnKey) {
		return broker.Errorf(broker.CodeUpstreamRefused, "the broker's own access key for AWS cannot be read: the operator should check aws.access_key_id and aws.secret_access_key")
	}
	response, answered := errors.AsType[*awshttp.ResponseError](err)
	if !answered || response.HTTPStatusCode() < http.StatusMultipleChoices {
		return unread(ctx, awsStoreName)
	}
	code := ""
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		code = api.ErrorCode()
	}
	status, header := response.HTTPStatusCode(), http.Header{}
	if response.Response != nil && response.Response.Response != nil {
		header = response.Response.Header
	}
	switch code { // its errors are 400 for the most part
	case "ResourceNotFoundException":
		status = http.StatusNotFound
	case "ThrottlingException", "TooManyRequestsException", "LimitExceededException":
		status = http.StatusTooManyRequests
	case "AccessDeniedException", "UnrecognizedClientException", "InvalidClientTokenId", "InvalidSignatureException", "ExpiredTokenException", "DecryptionFailure":
		status = http.StatusForbidden
	case "InternalServiceError":
		status = http.StatusInternalServerError
	case "InvalidRequestException":
		return broker.Errorf(broker.CodeUpstreamRefused, "AWS Secrets Manager does not give out this secret: the operator should check that it is not marked for deletion")
	}
	return a.meaning(awsStoreName, "its AWS credentials, secretsmanager:GetSecretValue on the secret, and kms:Decrypt on its key", status, header)
}

// bounded is an HTTP client for the SDK: it reads no more of an answer than there may be, and hands net/http a plain copy
// of the request's body. The SDK's own body is closed when the answer begins, upon which net/http may take the answer of a
// fast server for lost.
type bounded struct{ next aws.HTTPClient }

func (b bounded) Do(r *http.Request) (*http.Response, error) {
	if r.Body != nil && r.Body != http.NoBody {
		text, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r = r.WithContext(r.Context()) // a shallow copy: the SDK's own request stays as it is
		r.Body = io.NopCloser(bytes.NewReader(text))
	}
	got, err := b.next.Do(r)
	if err != nil {
		return nil, err
	}
	got.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(got.Body, maxReply), got.Body}
	return got, nil
}
