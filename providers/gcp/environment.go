package gcp

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/taskpass/taskpass/broker"
)

// Templates lists the texts that tell tasks apart: the prefixes of the boundaries.
func (c Config) Templates() map[string][]broker.Template {
	all := map[string][]broker.Template{}
	for name, scope := range c.Scopes {
		for i, rule := range scope.Boundary {
			all[fmt.Sprintf("scopes.%s.boundary[%d].prefix", name, i)] = []broker.Template{broker.Template(rule.Prefix)}
		}
	}
	return all
}

// ofDefault begins the variables by which Application Default Credentials are found. A profile with credentials of its own
// does not look for those.
var ofDefault = []string{"GOOGLE_APPLICATION_CREDENTIALS", "GCE_METADATA_", "CLOUDSDK_CONFIG"}

// Environment lists the variables of the environment that Google's libraries obey, and those that have no effect on such a
// profile. Endpoints and credentials that the profile names come before them.
func (c Config) Environment() (obeyed, ignored []string) {
	own := c.CredentialsFile != "" || c.TokenFile != ""
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		isDefault := slices.ContainsFunc(ofDefault, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
		switch {
		case value == "" || !isDefault && !strings.HasPrefix(name, "GOOGLE_"):
		case isDefault && own, name == "GOOGLE_SDK_GO_LOGGING_LEVEL":
			ignored = append(ignored, name)
		default:
			obeyed = append(obeyed, name)
		}
	}
	slices.Sort(obeyed)
	slices.Sort(ignored)
	return obeyed, ignored
}

// Sets lists the environment variables that agents get of this configuration, in any of its modes.
func (Config) Sets() []string {
	return []string{
		"GOOGLE_CREDENTIALS", "GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_AUTH_ACCESS_TOKEN", "GOOGLE_OAUTH_ACCESS_TOKEN", "GOOGLE_ID_TOKEN",
	}
}
