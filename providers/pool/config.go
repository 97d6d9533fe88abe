package pool

import (
	"fmt"
	"slices"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Config is the `pool` section of a profile.
type Config struct {
	Name   string   `yaml:"name"`   // profiles that name the same pool share its keys
	Keys   []Key    `yaml:"keys"`   // what it holds
	Env    string   `yaml:"env"`    // the environment variable in which the agent's tools look; empty: API_KEY
	Scopes []string `yaml:"scopes"` // names only: a plain key carries no scope upstream

	// Disclosed must say "accept": an agent that has seen a plain key can use it after its credential's end, and this
	// broker cannot stop it. By it the operator says that the agents are trusted to that extent.
	Disclosed string `yaml:"disclosed"`
}

// Key is one key, by reference.
type Key struct {
	Name  string     `yaml:"name"`
	Value broker.Ref `yaml:"value"`
}

// ScopeNames lists the scopes, sorted.
func (c Config) ScopeNames() []string {
	names := slices.Clone(c.Scopes)
	slices.Sort(names)
	return names
}

// maxTTL bounds a hold: a key is nobody's for ever.
const maxTTL = 30 * 24 * time.Hour

// Capabilities are the promises of this configuration.
func (c Config) Capabilities() broker.Capabilities {
	return broker.Capabilities{
		MinTTL: time.Second, MaxTTL: maxTTL, Revoke: broker.RevokeNone, Disclosed: c.Disclosed == "accept",
	}
}

// Check returns all that is wrong; pointers are paths within the section, as in "keys[0].value".
func (c Config) Check() []broker.Fault {
	var faults []broker.Fault
	add := func(pointer, format string, args ...any) {
		faults = append(faults, broker.Fault{Pointer: pointer, Reason: fmt.Sprintf(format, args...)})
	}
	if !broker.ValidID(c.Name) {
		add("name", "is not 1-128 of A-Z a-z 0-9 . _ : @ -")
	}
	if len(c.Keys) == 0 {
		add("keys", "names no key")
	}
	names, values := map[string]bool{}, map[broker.Ref]bool{}
	for i, k := range c.Keys {
		at := fmt.Sprintf("keys[%d]", i)
		if !broker.ValidID(k.Name) {
			add(at+".name", "is not 1-128 of A-Z a-z 0-9 . _ : @ -")
		}
		if names[k.Name] {
			add(at+".name", "stands twice")
		}
		if err := k.Value.Check(); err != nil {
			add(at+".value", "%v", err)
		} else if values[k.Value] {
			add(at+".value", "is another key's too: one key has one holder")
		}
		names[k.Name], values[k.Value] = true, true
	}
	if len(c.Scopes) == 0 {
		add("scopes", "names no scope")
	}
	seen := map[string]bool{}
	for i, s := range c.Scopes {
		if seen[s] {
			add(fmt.Sprintf("scopes[%d]", i), "stands twice")
		}
		seen[s] = true
	}
	if c.Disclosed != "" && c.Disclosed != "accept" {
		add("disclosed", "can only say accept")
	}
	return faults
}
