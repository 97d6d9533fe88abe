package resolve

import (
	"context"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/smithy-go"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/awsclient"
)

// AWS is its Secrets Manager, in the region that a reference names.
type AWS struct {
	Endpoint string `yaml:"endpoint"` // empty: AWS's own, of each region
	FIPS     bool   `yaml:"fips"`     // AWS's own endpoints with FIPS 140 cryptography

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
	if c.FIPS && c.Endpoint != "" {
		f.Add("aws.fips", "is for AWS's own endpoints, and aws.endpoint names another")
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
	loaded  []awsclient.Client
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
	reach := a.cfg.reach(region)
	if a.cfg.AccessKeyID != "" {
		reach.Credentials = aws.NewCredentialsCache(aws.CredentialsProviderFunc(a.key))
	}
	if a.given {
		reach.Client = a.client
	}
	loaded, err := awsclient.Load(ctx, reach)
	if err != nil {
		return nil, broker.Errorf(broker.CodeUpstreamRefused, "%s", err)
	}
	loaded.HTTPClient = bounded{loaded.HTTPClient}
	c := secretsmanager.NewFromConfig(loaded.Config)
	a.loaded = append(a.loaded, loaded)
	if len(a.clients) < maxRegions {
		a.clients[region] = c
	}
	return c, nil
}

// close closes idle connections.
func (a *awsStore) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.loaded {
		c.Close()
	}
}

// reach says how a region is reached, apart from the values of the broker's own keys.
func (c AWS) reach(region string) awsclient.Config {
	reach := awsclient.Config{Region: region, Endpoint: c.Endpoint, FIPS: c.FIPS, ConfigProfile: c.ConfigProfile}
	if c.AccessKeyID != "" {
		reach.Credentials = awsclient.Anonymous
	}
	return reach
}

// Environment lists the variables of the environment that reading a secret obeys, and those that have no effect on it.
func (c AWS) Environment() (obeyed, ignored []string) { return c.reach("a-region").Environment() }

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
	if !isAsked(id, out) {
		call := broker.VendorAnswer{Vendor: awsStoreName, Action: awsAction, Status: http.StatusOK}
		return nil, "", broker.Errorf(broker.CodeUpstreamError, "the answer of %s is none, or about another secret", awsStoreName).Because(call)
	}
	if out.SecretString != nil {
		return []byte(*out.SecretString), aws.ToString(out.VersionId), nil
	}
	return out.SecretBinary, aws.ToString(out.VersionId), nil
}

// isAsked tells whether an answer is about the secret that was asked for, by its name or by its ARN, whose random end may be
// left out.
func isAsked(id string, out *secretsmanager.GetSecretValueOutput) bool {
	if strings.HasPrefix(id, "arn:") {
		return strings.HasPrefix(aws.ToString(out.ARN), id)
	}
	return aws.ToString(out.Name) == id
}

// failed keeps none of the SDK's text: it quotes the answer.
func (a *awsStore) failed(ctx context.Context, err error) error {
	if errors.Is(err, errOwnKey) {
		return broker.Errorf(broker.CodeUpstreamRefused, "the broker's own access key for AWS cannot be read: the operator should check aws.access_key_id and aws.secret_access_key")
	}
	call := broker.VendorAnswer{Vendor: awsStoreName, Action: awsAction}
	response, answered := errors.AsType[*awshttp.ResponseError](err)
	if !answered || response.HTTPStatusCode() < http.StatusMultipleChoices {
		if answered {
			call.Status = response.HTTPStatusCode()
		}
		return unread(ctx, call)
	}
	call.Status = response.HTTPStatusCode()
	if id := response.ServiceRequestID(); broker.ValidID(id) {
		call.RequestID = id
	}
	r := reply{VendorAnswer: call, header: http.Header{}}
	if response.Response != nil && response.Response.Response != nil {
		r.header = response.Response.Header
	}
	if api, ok := errors.AsType[smithy.APIError](err); ok && awsCode.MatchString(api.ErrorCode()) && api.ErrorCode() != "UnknownError" {
		r.Code, r.genuine = api.ErrorCode(), true // the SDK's word where the answer has no code is UnknownError
	}
	if r.Code == "InvalidRequestException" {
		return broker.Errorf(broker.CodeUpstreamRefused, "AWS Secrets Manager does not give out this secret: the operator should check that it is not marked for deletion").
			Because(r.VendorAnswer)
	}
	status := r.Status
	if means := awsCodes[strings.TrimSuffix(strings.TrimSuffix(r.Code, "Exception"), "Fault")]; means != 0 {
		status = means
	}
	return a.means(awsStoreName, "its AWS credentials, this machine's clock, secretsmanager:GetSecretValue on the secret, and kms:Decrypt on its key",
		status, r.genuine, r.header).Because(r.VendorAnswer)
}

const awsAction = "GetSecretValue"

var awsCode = regexp.MustCompile(`^[A-Za-z0-9.]{1,64}$`)

// awsCodes is the one table of what its codes mean, as the HTTP status that says the same: its own is 400 for the most part.
// Codes are without "Exception" and "Fault" at their end.
// https://docs.aws.amazon.com/secretsmanager/latest/apireference/CommonErrors.html and API_GetSecretValue.html there
var awsCodes = map[string]int{
	"ResourceNotFound": http.StatusNotFound,

	"Throttling": http.StatusTooManyRequests, "Throttled": http.StatusTooManyRequests, "TooManyRequests": http.StatusTooManyRequests,
	"LimitExceeded": http.StatusTooManyRequests, "RequestLimitExceeded": http.StatusTooManyRequests,
	"RequestThrottled": http.StatusTooManyRequests, "SlowDown": http.StatusTooManyRequests,

	"AccessDenied": http.StatusForbidden, "NotAuthorized": http.StatusForbidden, "UnrecognizedClient": http.StatusForbidden,
	"InvalidClientTokenId": http.StatusForbidden, "InvalidSignature": http.StatusForbidden, "SignatureDoesNotMatch": http.StatusForbidden,
	"IncompleteSignature": http.StatusForbidden, "MissingAuthenticationToken": http.StatusForbidden, "ExpiredToken": http.StatusForbidden,
	"RequestExpired": http.StatusForbidden, "RequestTimeTooSkewed": http.StatusForbidden, "OptInRequired": http.StatusForbidden,
	"DecryptionFailure": http.StatusForbidden,

	"RequestTimeout": http.StatusRequestTimeout, "RequestAborted": http.StatusRequestTimeout,
	"InternalServiceError": http.StatusInternalServerError, "InternalFailure": http.StatusInternalServerError,
	"ServiceUnavailable": http.StatusServiceUnavailable,
}

// bounded reads no more of an answer than there may be.
type bounded struct{ next aws.HTTPClient }

func (b bounded) Do(r *http.Request) (*http.Response, error) {
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
