package pool

import (
	"fmt"
	"slices"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/pool/connect"
	"github.com/taskpass/taskpass/providers/pool/resolve"
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

	// Vendor, where given, has the vendor refuse a revoked key, or makes a key for each task. Then no key is configured.
	Vendor *connect.Config `yaml:"vendor"`

	Stores resolve.Config `yaml:"stores"` // how secret stores are reached, for references other than env: and file:

	// Reuse says what becomes of a key after a normal end, when an agent has seen it: "trusted" (the default): it goes back;
	// "after_rotation": it rests until its value has changed. After a revocation it always does.
	Reuse string        `yaml:"reuse"`
	Rest  time.Duration `yaml:"rest"` // how long a key is left alone between holders, so that late calls are told apart; absent: not at all

	MaxHolders int               `yaml:"max_holders"` // how many credentials may hold one key at once; absent: 1
	Select     map[string]string `yaml:"select"`      // labels that a key must have for this profile; absent: any key will do

	// SharePercent is how much of the pool's keys one caller may have held, resting or quarantined at once, where rules
	// let several callers use the pool: 1-100 percent, rounded down, and at least one key; absent: 25.
	SharePercent int            `yaml:"share_percent"`
	Probe        *connect.Probe `yaml:"probe"` // confirms what a caller reports beyond its share; absent: only another caller does

	MaxRefusals int           `yaml:"max_refusals"` // 401s in a row that put a key into quarantine; absent: 3
	Deadline    time.Duration `yaml:"deadline"`     // how long holders have to move when a value changes at its source; absent: 1h
	CheckEvery  time.Duration `yaml:"check_every"`  // how often references are read; absent: 15s
}

// Key is one key, by reference.
type Key struct {
	Name   string            `yaml:"name"`
	Value  broker.Ref        `yaml:"value"`  // env:, file:, or a secret store's: see package resolve
	Scopes []string          `yaml:"scopes"` // what it can do, of the pool's scopes; absent: all of them
	Labels map[string]string `yaml:"labels"`

	VendorID string `yaml:"vendor_id"` // by what the vendor knows the value; absent: it cannot be told to refuse it
}

const (
	defaultRefusals = 3
	defaultCheck    = 15 * time.Second
	maxHolders      = 1000
)

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
	caps := broker.Capabilities{
		MinTTL: time.Second, MaxTTL: maxTTL, Revoke: broker.RevokeNone, Disclosed: c.Disclosed == "accept",
	}
	if c.Vendor == nil || len(c.Vendor.Check()) > 0 {
		return caps
	}
	if c.Vendor.Makes() {
		if maker, err := connect.OpenMaker(*c.Vendor, connect.Wire{}); err == nil {
			caps.Revoke, caps.RevokeLag = maker.Revoke()
		}
		return caps
	}
	if ender, err := connect.OpenEnder(*c.Vendor, connect.Wire{}); err == nil {
		caps.Revoke, caps.RevokeLag = ender.Revoke()
	}
	return caps
}

// Check returns all that is wrong; pointers are paths within the section, as in "keys[0].value".
func (c Config) Check() []broker.Fault {
	var f broker.Faults
	if !broker.ValidID(c.Name) {
		f.Add("name", "is not 1-128 of A-Z a-z 0-9 . _ : @ -, and not only dots")
	}
	names, values := map[string]bool{}, map[broker.Ref]bool{}
	for i, k := range c.Keys {
		at := fmt.Sprintf("keys[%d]", i)
		f = append(f, k.check(at, c.Scopes)...)
		if !broker.ValidID(k.Name) {
			f.Add(at+".name", "is not 1-128 of A-Z a-z 0-9 . _ : @ -, and not only dots")
		}
		if names[k.Name] {
			f.Add(at+".name", "stands twice")
		}
		if err := c.Stores.CheckRef(string(k.Value)); err != nil {
			f.Add(at+".value", "%v", err)
		} else if values[k.Value] {
			f.Add(at+".value", "is another key's too: one key has one holder")
		}
		names[k.Name], values[k.Value] = true, true
	}
	if len(c.Scopes) == 0 {
		f.Add("scopes", "names no scope")
	}
	seen := map[string]bool{}
	for i, s := range c.Scopes {
		if seen[s] {
			f.Add(fmt.Sprintf("scopes[%d]", i), "stands twice")
		}
		seen[s] = true
	}
	if c.Disclosed != "" && c.Disclosed != "accept" {
		f.Add("disclosed", "can only say accept")
	}
	f = append(f, c.checkVendor()...)
	return append(f, c.checkUse()...)
}

// checkVendor checks where values are kept and who is told of them.
func (c Config) checkVendor() []broker.Fault {
	var f broker.Faults
	f.Below("stores", c.Stores.Check())
	if c.Vendor != nil {
		f.Below("vendor", c.Vendor.Check())
		switch {
		case c.Vendor.Makes() && len(c.Keys) > 0:
			f.Add("keys", "do not belong here: the vendor makes a key for each task")
		case !c.Vendor.Makes() && c.Disclosed == "":
			f.Add("disclosed", "must say accept: after a normal end a key that its agent has seen goes back, and still works")
		}
	}
	return f
}

// checkUse checks how keys are handed on.
func (c Config) checkUse() []broker.Fault {
	var f broker.Faults
	if c.Reuse != "" && c.Reuse != "trusted" && c.Reuse != "after_rotation" {
		f.Add("reuse", "is neither trusted nor after_rotation")
	}
	if c.MaxHolders < 0 || c.MaxHolders > maxHolders {
		f.Add("max_holders", "is not between 1 and %d", maxHolders)
	}
	if c.SharePercent < 0 || c.SharePercent > 100 {
		f.Add("share_percent", "is not between 1 and 100")
	}
	if c.Probe != nil {
		f.Below("probe", c.Probe.Check())
	}
	if c.MaxRefusals < 0 || c.MaxRefusals > 100 {
		f.Add("max_refusals", "is not between 1 and 100")
	}
	for pointer, d := range map[string]struct{ is, low, high time.Duration }{
		"rest": {c.Rest, time.Second, 24 * time.Hour}, "deadline": {c.Deadline, time.Minute, 7 * 24 * time.Hour},
		"check_every": {c.CheckEvery, time.Second, time.Hour},
	} {
		if d.is != 0 && (d.is < d.low || d.is > d.high) {
			f.Add(pointer, "is not between %s and %s", d.low, d.high)
		}
	}
	return append(f, labelFaults("select", c.Select)...)
}

func labelFaults(at string, labels map[string]string) (f broker.Faults) {
	for name, value := range labels {
		if !broker.ValidID(name) || !broker.ValidID(value) {
			f.Add(at, "has a name or a value that is not 1-128 of A-Z a-z 0-9 . _ : @ -, and not only dots")
		}
	}
	return f
}

func (k Key) check(at string, scopes []string) []broker.Fault {
	var f broker.Faults
	for i, s := range k.Scopes {
		if !slices.Contains(scopes, s) {
			f.Add(fmt.Sprintf("%s.scopes[%d]", at, i), "is not a scope of the pool")
		}
	}
	if k.VendorID != "" && !broker.ValidID(k.VendorID) {
		f.Add(at+".vendor_id", "is not 1-128 of A-Z a-z 0-9 . _ : @ -, and not only dots")
	}
	return append(f, labelFaults(at+".labels", k.Labels)...)
}
