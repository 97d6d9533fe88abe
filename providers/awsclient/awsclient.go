// Package awsclient makes the SDK's configuration for every AWS client of the process. It decides what the process's
// environment and AWS's shared configuration files may influence: the search for credentials, where Config names none,
// and nothing else. A region, an endpoint, retries and all other settings come from the caller alone.
package awsclient

import (
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go/logging"
)

// Config says how one client reaches AWS.
type Config struct {
	Region   string // empty: where Credentials is nil the SDK looks for one, else there is none
	Endpoint string // empty: AWS's own, by the SDK's resolver
	FIPS     bool   // AWS's own endpoints with FIPS 140 cryptography; not with Endpoint

	// Credentials are the caller's own, and ConfigProfile is a profile of AWS's shared files. Without either the SDK's
	// default chain looks for credentials.
	Credentials   aws.CredentialsProvider
	ConfigProfile string

	Client  *http.Client // makes the calls; nil: one of its own, that AWS_CA_BUNDLE applies to if the SDK looks for credentials
	Conns   int          // idle connections kept for each host; zero: the SDK's number
	Retries bool         // the SDK's own retries; without them each call is made once
}

// Client is a configuration with the connections that it keeps.
type Client struct {
	aws.Config
	idle func()
}

// Close closes idle connections. Nothing fails that is under way.
func (c Client) Close() { c.idle() }

// Load makes a configuration. With Credentials it reads neither the environment nor any file.
func Load(ctx context.Context, cfg Config) (Client, error) {
	out := aws.Config{
		Region: cfg.Region, Credentials: cfg.Credentials,
		Logger: logging.Nop{}, // the SDK's own would bypass our log, and may quote an answer
		// As the SDK's loader sets them: without a checksum S3 refuses objects that a lock is to protect.
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenSupported,
	}
	if !cfg.Retries {
		out.Retryer = func() aws.Retryer { return aws.NopRetryer{} }
	}
	if cfg.Endpoint != "" {
		out.BaseEndpoint = &cfg.Endpoint
	}
	if cfg.FIPS {
		out.ConfigSources = []any{fips{}}
	}
	client, idle := cfg.client(nil)
	if cfg.Credentials == nil {
		loaded, err := cfg.search(ctx)
		if err != nil {
			return Client{}, err
		}
		out.Credentials = loaded.Credentials
		if out.Region == "" {
			out.Region = loaded.Region
		}
		client, idle = cfg.client(loaded.HTTPClient)
	}
	out.HTTPClient = client
	return Client{Config: out, idle: idle}, nil
}

// fips is a source of the SDK's configuration that asks for such endpoints.
type fips struct{}

// GetUseFIPSEndpoint is what the SDK's services look for.
func (fips) GetUseFIPSEndpoint(context.Context) (aws.FIPSEndpointState, bool, error) {
	return aws.FIPSEndpointStateEnabled, true, nil
}

// client is what makes the calls; found is the one that the SDK has put AWS_CA_BUNDLE into.
func (cfg Config) client(found aws.HTTPClient) (aws.HTTPClient, func()) {
	if cfg.Client != nil {
		return wholeBody{cfg.Client}, cfg.Client.CloseIdleConnections
	}
	buildable, ok := found.(*awshttp.BuildableClient)
	if !ok {
		buildable = awshttp.NewBuildableClient()
	}
	transport := buildable.GetTransport()
	if cfg.Conns > 0 {
		transport.MaxIdleConnsPerHost, transport.MaxIdleConns = cfg.Conns, 4*cfg.Conns
	}
	own := &http.Client{
		Transport: transport,
		// As the SDK's own client: a redirect is an answer, and nothing that was signed is sent elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return wholeBody{own}, transport.CloseIdleConnections
}

// search has the SDK look for credentials.
func (cfg Config) search(ctx context.Context) (aws.Config, error) {
	options := []func(*config.LoadOptions) error{
		config.WithLogger(logging.Nop{}), config.WithHTTPClient(awshttp.NewBuildableClient()),
	}
	if cfg.Region != "" {
		options = append(options, config.WithRegion(cfg.Region))
	}
	if cfg.ConfigProfile != "" {
		options = append(options, config.WithSharedConfigProfile(cfg.ConfigProfile))
	}
	loaded, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return aws.Config{}, notLoaded(err)
	}
	return loaded, nil
}

// notLoaded names the variables that the SDK's error is about. Its own text is not shown: it quotes their values, and
// may quote a file of credentials.
func notLoaded(err error) error {
	var about []string
	set := setVariables()
	for _, name := range set {
		if strings.Contains(err.Error(), name) {
			about = append(about, name)
		}
	}
	if len(about) == 0 {
		about = set
	}
	text := "the AWS configuration of this machine could not be loaded: check its files and config_profile"
	if len(about) > 0 {
		text += ", and these variables of the environment: " + strings.Join(about, ", ")
	}
	return errors.New(text)
}

// setVariables lists the variables of the environment that are AWS's, sorted. It reads no value.
func setVariables() []string {
	var names []string
	for _, entry := range os.Environ() {
		if name, value, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "AWS_") && value != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// chain begins the names of the variables by which the SDK finds credentials, and whom it trusts meanwhile:
// https://docs.aws.amazon.com/sdkref/latest/guide/settings-reference.html#EVarSettings
var chain = []string{
	"AWS_ACCESS_KEY", "AWS_SECRET_", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SHARED_CREDENTIALS_FILE",
	"AWS_CONFIG_FILE", "AWS_ROLE_", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_", "AWS_EC2_METADATA_", "AWS_CA_BUNDLE",
}

// Environment lists the variables that are set in the environment and that Load obeys for such a configuration, and those
// that it ignores.
func (cfg Config) Environment() (obeyed, ignored []string) {
	for _, name := range setVariables() {
		switch {
		case cfg.Credentials == nil && slices.ContainsFunc(chain, func(prefix string) bool { return strings.HasPrefix(name, prefix) }):
			if cfg.ConfigProfile != "" && !profileUses(name) {
				ignored = append(ignored, name)
			} else {
				obeyed = append(obeyed, name)
			}
		case cfg.Credentials == nil && cfg.Region == "" && (name == "AWS_REGION" || name == "AWS_DEFAULT_REGION"):
			obeyed = append(obeyed, name)
		default:
			ignored = append(ignored, name)
		}
	}
	return obeyed, ignored
}

// profileUses tells whether a variable matters where a profile of the shared files is named: the files' places do, other
// sources of credentials only if the profile names them itself.
func profileUses(name string) bool {
	return !strings.HasPrefix(name, "AWS_ACCESS_KEY") && !strings.HasPrefix(name, "AWS_SECRET_") && name != "AWS_SESSION_TOKEN" &&
		name != "AWS_PROFILE" && name != "AWS_DEFAULT_PROFILE"
}

// Anonymous are no credentials, where some must not be looked for.
var Anonymous aws.CredentialsProvider = aws.AnonymousCredentials{}
