package pool

import (
	"cmp"
	"slices"
	"strings"
)

// Environment lists the variables of AWS's and Google's in the environment that reading the keys obeys, and those that have
// no effect. Vault and the vendors' own APIs are reached without any.
func (c Config) Environment() (obeyed, ignored []string) {
	for kind, of := range map[string]func() ([]string, []string){
		"aws-sm:": c.Stores.AWS.Environment, "gcp-sm:": c.Stores.GCP.Environment,
	} {
		for _, k := range c.Keys {
			if strings.HasPrefix(string(k.Value), kind) {
				more, not := of()
				obeyed, ignored = append(obeyed, more...), append(ignored, not...)
				break
			}
		}
	}
	slices.Sort(obeyed)
	slices.Sort(ignored)
	return obeyed, ignored
}

// Sets lists the environment variables that agents get of this configuration.
func (c Config) Sets() []string { return []string{cmp.Or(c.Env, "API_KEY")} }
