package aws

import (
	"fmt"

	"github.com/taskpass/taskpass/broker"
)

// Templates lists the texts that tell tasks apart: each resource and each condition by itself, and the session tags, which
// policies may use together.
func (c Config) Templates() map[string][]broker.Template {
	all := map[string][]broker.Template{}
	for _, value := range c.Tags {
		all["tags"] = append(all["tags"], broker.Template(value))
	}
	for name, scope := range c.Scopes {
		for i, s := range scope.Statements {
			at := fmt.Sprintf("scopes.%s.statements[%d]", name, i)
			for j, r := range s.Resources {
				all[fmt.Sprintf("%s.resources[%d]", at, j)] = []broker.Template{broker.Template(r)}
			}
			for op, keys := range s.Conditions {
				for key, values := range keys {
					for j, v := range values {
						all[fmt.Sprintf("%s.conditions.%s.%s[%d]", at, op, key, j)] = []broker.Template{broker.Template(v)}
					}
				}
			}
		}
	}
	return all
}
