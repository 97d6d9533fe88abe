package aws_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/providers/awsclient"
)

// hostile are variables that break or redirect the SDK's own loading of its configuration.
var hostile = map[string]string{
	"AWS_PROFILE": "nope", "AWS_CONFIG_FILE": "/nope", "AWS_SHARED_CREDENTIALS_FILE": "/nope", "AWS_CA_BUNDLE": "/nope",
	"AWS_MAX_ATTEMPTS": "abc", "AWS_RETRY_MODE": "abc", "AWS_DEFAULTS_MODE": "abc", "AWS_REGION": "xx-wrong-1",
	"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_IAM": "http://127.0.0.1:1",
	"AWS_USE_FIPS_ENDPOINT": "true", "AWS_USE_DUALSTACK_ENDPOINT": "true", "AWS_SDK_UA_APP_ID": "abc",
	"AWS_STS_REGIONAL_ENDPOINTS": "legacy", "AWS_ACCESS_KEY_ID": "AKIAWRONG", "AWS_SECRET_ACCESS_KEY": "wrong", "AWS_SESSION_TOKEN": "wrong",
}

func surround(t *testing.T, with map[string]string) (names []string) {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
		}
	}
	for name, value := range with {
		t.Setenv(name, value)
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// A profile with its own keys is what it is, whatever the environment says, and every variable is named.
func TestTheEnvironmentChangesNoExplicitProfile(t *testing.T) {
	names := surround(t, hostile)
	w := newWire(t)
	c := config(t, w.url)
	p := open(t, c, nil, w.clock.Now)
	if _, err := p.Mint(t.Context(), w.request("read")); err != nil {
		t.Fatal(err)
	}
	w.last(t)
	obeyed, ignored := c.Environment()
	if diff := cmp.Diff(names, ignored); diff != "" || len(obeyed) > 0 {
		t.Errorf("obeyed %v, ignored %s", obeyed, diff)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// A profile without keys takes its credentials from the environment, and nothing else.
func TestTheEnvironmentGivesCredentialsOnly(t *testing.T) {
	shared := filepath.Join(t.TempDir(), "config")
	text := "[profile fleet]\naws_access_key_id = AKIAFLEET\naws_secret_access_key = x\nregion = xx-wrong-1\nendpoint_url = http://127.0.0.1:1\nmax_attempts = 9\n"
	if err := os.WriteFile(shared, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	surround(t, map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIAENV", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:1",
		"AWS_USE_FIPS_ENDPOINT": "true", "AWS_CONFIG_FILE": shared,
	})
	w := newWire(t)
	for profile, want := range map[string][2][]string{
		"":      {{"AWS_ACCESS_KEY_ID", "AWS_CONFIG_FILE", "AWS_SECRET_ACCESS_KEY"}, {"AWS_ENDPOINT_URL_STS", "AWS_USE_FIPS_ENDPOINT"}},
		"fleet": {{"AWS_CONFIG_FILE"}, {"AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL_STS", "AWS_SECRET_ACCESS_KEY", "AWS_USE_FIPS_ENDPOINT"}},
	} {
		c := keyless(config(t, w.url))
		c.ConfigProfile = profile
		p := open(t, c, nil, w.clock.Now)
		if _, err := p.Mint(t.Context(), w.request("read")); err != nil {
			t.Fatalf("%q: %v", profile, err)
		}
		w.last(t)
		obeyed, ignored := c.Environment()
		if diff := cmp.Diff(want, [2][]string{obeyed, ignored}); diff != "" {
			t.Errorf("%q: %s", profile, diff)
		}
	}
}

// What keeps the SDK from loading its configuration is named, and its value is not shown.
func TestABrokenEnvironmentIsNamed(t *testing.T) {
	for name, value := range map[string]string{
		"AWS_MAX_ATTEMPTS": "C4n4ry", "AWS_RETRY_MODE": "C4n4ry", "AWS_CA_BUNDLE": "/C4n4ry", "AWS_PROFILE": "C4n4ry", "AWS_USE_FIPS_ENDPOINT": "C4n4ry",
	} {
		t.Run(name, func(t *testing.T) {
			surround(t, map[string]string{name: value, "AWS_CONFIG_FILE": "/nope"})
			_, err := awsclient.Load(t.Context(), awsclient.Config{Region: "eu-west-1"})
			if err == nil || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "C4n4ry") {
				t.Errorf("%v", err)
			}
		})
	}
}

// What AWS_USE_FIPS_ENDPOINT no longer does, the section says.
func TestFIPSEndpoint(t *testing.T) {
	t.Parallel()
	c, err := awsclient.Load(t.Context(), awsclient.Config{Region: "us-gov-west-1", FIPS: true, Credentials: awsclient.Anonymous})
	if err != nil {
		t.Fatal(err)
	}
	if o := sts.NewFromConfig(c.Config).Options(); o.EndpointOptions.UseFIPSEndpoint != sdk.FIPSEndpointStateEnabled {
		t.Errorf("%+v", o.EndpointOptions)
	}
}

// The endpoint of a region is the SDK's, and only an endpoint of the profile's own replaces it.
func TestEndpointsComeFromTheProfile(t *testing.T) {
	surround(t, hostile)
	for _, endpoint := range []string{"", "https://sts.example.com"} {
		c, err := awsclient.Load(t.Context(), awsclient.Config{Region: "eusc-de-east-1", Endpoint: endpoint, Credentials: awsclient.Anonymous})
		if err != nil {
			t.Fatal(err)
		}
		if c.Region != "eusc-de-east-1" || (c.BaseEndpoint == nil) != (endpoint == "") || len(c.ConfigSources) > 0 || c.AppID != "" {
			t.Errorf("%+v", c.Config)
		}
	}
}
