package stripe

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Config is the `stripe` section of a profile.
type Config struct {
	Mode     string `yaml:"mode"`     // "managed", "ephemeral" or "pool"
	Livemode bool   `yaml:"livemode"` // live keys, or test keys: a key of the other kind is refused
	Endpoint string `yaml:"endpoint"` // empty: https://api.stripe.com
	Env      string `yaml:"env"`      // the environment variable in which the agent's tools look; empty: STRIPE_API_KEY

	// SecretKey is the broker's own key: the app's in mode managed; in mode ephemeral one that may make ephemeral keys.
	SecretKey broker.Ref `yaml:"secret_key"`
	// Account is the account that keys are made in, acct_…; required in mode managed.
	Account string `yaml:"account"`

	Ephemeral  *Ephemeral       `yaml:"ephemeral"` // mode ephemeral
	Pool       *Pool            `yaml:"pool"`      // mode pool
	Revocation Revocation       `yaml:"revocation"`
	Scopes     map[string]Scope `yaml:"scopes"`

	// ExtraPermissions are names that Stripe has added since this program was made.
	ExtraPermissions []string `yaml:"extra_permissions"`
}

// Scope is what one scope means: permissions such as customer_read. In mode ephemeral it has none: what the key may do is
// Stripe's to say.
type Scope struct {
	Permissions []string `yaml:"permissions"`
	Description string   `yaml:"description"`
}

// Ephemeral says what an ephemeral key is for.
type Ephemeral struct {
	For     string `yaml:"for"`     // "customer", "issuing_card" or "verification_session"
	Object  string `yaml:"object"`  // its id, from the request: "{{.Metadata.customer}}"
	Version string `yaml:"version"` // the API version that the agent's tools speak, such as 2024-04-10
}

// Pool is a pool of keys that operators made.
type Pool struct {
	Name string `yaml:"name"` // profiles that name the same pool share its keys
	Keys []Key  `yaml:"keys"`

	// Disclosed must say "accept": an agent that has seen a key can use it after its credential's end, and this broker
	// cannot stop it.
	Disclosed string `yaml:"disclosed"`
	// Undeclared is what becomes of a key that can do more than is declared: "refuse" (the default) or "accept".
	Undeclared string `yaml:"undeclared"`
	// ProbeWrites must say "accept" for keys to be tried by creations with a parameter that does not exist.
	ProbeWrites string        `yaml:"probe_writes"`
	CheckEvery  time.Duration `yaml:"check_every"` // how often a key is tried; absent: 1 h
	// SharePercent is how much of the pool's keys one caller may have held or quarantined at once, where rules let
	// several callers use the pool: 1-100 percent, rounded down, and at least one key; absent: 25.
	SharePercent int `yaml:"share_percent"`
}

// Key is one key of a pool, by reference, with what it was given in the dashboard.
type Key struct {
	Name        string     `yaml:"name"`
	Value       broker.Ref `yaml:"value"`
	Permissions []string   `yaml:"permissions"`
}

// Revocation bounds what is not known of Stripe's expiry, in mode managed.
type Revocation struct {
	Lag    *time.Duration `yaml:"lag"`    // how long an expired key may still work where it could not be seen to be refused; absent: 1 min
	Settle *time.Duration `yaml:"settle"` // how long after an unanswered creation its key may still appear; absent: 1 min
}

// The modes.
const (
	modeManaged   = "managed"
	modeEphemeral = "ephemeral"
	modePool      = "pool"
)

const (
	defaultLag    = time.Minute
	defaultSettle = time.Minute
	defaultCheck  = time.Hour

	// minManaged leaves a key some life after Stripe's whole seconds and the way there.
	minManaged = 10 * time.Second
	maxManaged = 7 * 24 * time.Hour
	// maxEphemeral is less than the hour that Stripe gives, so that a credential is not dead before its end.
	maxEphemeral = 55 * time.Minute
	maxPool      = 30 * 24 * time.Hour
)

// ScopeNames lists the scopes, sorted.
func (c Config) ScopeNames() []string {
	names := make([]string, 0, len(c.Scopes))
	for name := range c.Scopes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Capabilities are the promises of this configuration.
func (c Config) Capabilities() broker.Capabilities {
	switch c.Mode {
	case modeManaged:
		return broker.Capabilities{
			MinTTL: minManaged, MaxTTL: maxManaged, SelfExpires: true, Revoke: broker.RevokeDestroy, RevokeLag: or(c.Revocation.Lag, defaultLag),
		}
	case modeEphemeral: // it dies by itself, but at Stripe's time and not at ours
		return broker.Capabilities{MinTTL: time.Second, MaxTTL: maxEphemeral, Revoke: broker.RevokeDestroy}
	}
	return broker.Capabilities{
		MinTTL: time.Second, MaxTTL: maxPool, Revoke: broker.RevokeNone, Disclosed: c.Pool != nil && c.Pool.Disclosed == "accept",
	}
}

func or(d *time.Duration, otherwise time.Duration) time.Duration {
	if d == nil {
		return otherwise
	}
	return *d
}

var (
	accountForm = regexp.MustCompile(`^acct_[A-Za-z0-9]{1,64}$`)
	versionForm = regexp.MustCompile(`^\d{4}-\d\d-\d\d(\.[a-z]+)?$`)
	envForm     = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`)
	objectForm  = regexp.MustCompile(`^\{\{\.Metadata\.([A-Za-z0-9._:@-]+)\}\}$`)
)

// objects are what an ephemeral key can be for, and how their ids look.
var objects = map[string]*regexp.Regexp{
	"customer":             regexp.MustCompile(`^cus_[A-Za-z0-9]{1,64}$`),
	"issuing_card":         regexp.MustCompile(`^ic_[A-Za-z0-9]{1,64}$`),
	"verification_session": regexp.MustCompile(`^vs_[A-Za-z0-9]{1,64}$`),
}

// Check returns all that is wrong; pointers are paths within the section, as in "pool.keys[0].value".
func (c Config) Check() []broker.Fault {
	var f broker.Faults
	if c.Mode != modeManaged && c.Mode != modeEphemeral && c.Mode != modePool {
		f.Add("mode", "is none of managed, ephemeral and pool")
	}
	c.checkUpstream(&f)
	if c.Mode == modeManaged && c.Account == "" {
		f.Add("account", "is required in mode managed")
	}
	switch {
	case c.Mode == modeEphemeral && c.Ephemeral == nil:
		f.Add("ephemeral", "is required in mode ephemeral")
	case c.Mode != modeEphemeral && c.Ephemeral != nil:
		f.Add("ephemeral", "belongs to mode ephemeral only")
	case c.Ephemeral != nil:
		c.Ephemeral.check(&f)
	}
	switch {
	case c.Mode == modePool && c.Pool == nil:
		f.Add("pool", "is required in mode pool")
	case c.Mode != modePool && c.Pool != nil:
		f.Add("pool", "belongs to mode pool only")
	case c.Pool != nil:
		c.checkPool(&f)
	}
	for pointer, d := range map[string]*time.Duration{"revocation.lag": c.Revocation.Lag, "revocation.settle": c.Revocation.Settle} {
		if d == nil {
			continue
		}
		if c.Mode != modeManaged {
			f.Add(pointer, "belongs to mode managed only")
		} else if *d < 0 || *d > time.Hour {
			f.Add(pointer, "is not between 0s and 1h")
		}
	}
	c.checkScopes(&f)
	return f
}

// checkUpstream checks where Stripe is, and what the broker enters with.
func (c Config) checkUpstream(f *broker.Faults) {
	if c.Endpoint != "" {
		if u := f.Endpoint("endpoint", c.Endpoint); u != nil && u.Path != "" && u.Path != "/" {
			f.Add("endpoint", "has a path")
		}
	}
	if c.Env != "" && !envForm.MatchString(c.Env) {
		f.Add("env", "is not the name of an environment variable, of A-Z 0-9 _")
	}
	if c.Account != "" && !accountForm.MatchString(c.Account) {
		f.Add("account", "is not an account's id, acct_…")
	}
	switch {
	case c.Mode == modePool && c.SecretKey != "":
		f.Add("secret_key", "is of no use in mode pool: leave it out")
	case c.Mode != modePool && c.SecretKey.Check() != nil:
		f.Add("secret_key", "%v", c.SecretKey.Check())
	}
}

func (e Ephemeral) check(f *broker.Faults) {
	if objects[e.For] == nil {
		f.Add("ephemeral.for", "is none of customer, issuing_card and verification_session")
	}
	if !objectForm.MatchString(e.Object) {
		f.Add("ephemeral.object", "is not a placeholder of the form {{.Metadata.key}}")
	}
	if !versionForm.MatchString(e.Version) {
		f.Add("ephemeral.version", "is not an API version such as 2024-04-10")
	}
}

func (c Config) checkPool(f *broker.Faults) {
	p := c.Pool
	if !broker.ValidID(p.Name) {
		f.Add("pool.name", "is not 1-128 of A-Z a-z 0-9 . _ : @ -, and not only dots")
	}
	if len(p.Keys) == 0 {
		f.Add("pool.keys", "names no key")
	}
	names, values := map[string]bool{}, map[broker.Ref]bool{}
	for i, k := range p.Keys {
		at := fmt.Sprintf("pool.keys[%d].", i)
		if !broker.ValidID(k.Name) {
			f.Add(at+"name", "is not 1-128 of A-Z a-z 0-9 . _ : @ -, and not only dots")
		}
		if names[k.Name] {
			f.Add(at+"name", "stands twice")
		}
		if err := k.Value.Check(); err != nil {
			f.Add(at+"value", "%v", err)
		} else if values[k.Value] {
			f.Add(at+"value", "is another key's too: one key has one holder")
		}
		names[k.Name], values[k.Value] = true, true
		c.checkPermissions(f, at+"permissions", k.Permissions)
	}
	for pointer, word := range map[string]string{"pool.disclosed": p.Disclosed, "pool.probe_writes": p.ProbeWrites} {
		if word != "" && word != "accept" {
			f.Add(pointer, "can only say accept")
		}
	}
	if p.Undeclared != "" && p.Undeclared != "refuse" && p.Undeclared != "accept" {
		f.Add("pool.undeclared", "is neither refuse nor accept")
	}
	if p.SharePercent < 0 || p.SharePercent > 100 {
		f.Add("pool.share_percent", "is not between 1 and 100")
	}
	if p.CheckEvery != 0 && (p.CheckEvery < time.Second || p.CheckEvery > 24*time.Hour) {
		f.Add("pool.check_every", "is not between 1s and 24h")
	}
}

func (c Config) checkScopes(f *broker.Faults) {
	for i, name := range c.ExtraPermissions {
		if !permissionForm.MatchString(name) {
			f.Add(fmt.Sprintf("extra_permissions[%d]", i), "is not of the form resource_read or resource_write")
		}
	}
	if len(c.Scopes) == 0 {
		f.Add("scopes", "names no scope")
	}
	for name, s := range c.Scopes {
		at := "scopes." + name + ".permissions"
		if c.Mode == modeEphemeral {
			if len(s.Permissions) > 0 {
				f.Add(at, "does not belong here: what an ephemeral key may do is Stripe's to say")
			}
			continue
		}
		c.checkPermissions(f, at, s.Permissions)
	}
}

func (c Config) checkPermissions(f *broker.Faults, at string, names []string) {
	if len(names) == 0 {
		f.Add(at, "is empty")
	}
	for i, name := range names {
		here := fmt.Sprintf("%s[%d]", at, i)
		switch {
		case name == makesKeys:
			f.Add(here, "would let a task make itself other keys")
		case slices.Index(names, name) < i:
			f.Add(here, "stands twice")
		case !slices.Contains(knownPermissions, name) && !slices.Contains(c.ExtraPermissions, name):
			f.Add(here, "is not a permission that is known here, such as customer_read; name a new one in extra_permissions")
		}
	}
}

// Sets lists the environment variables that agents get of this configuration.
func (c Config) Sets() []string { return []string{cmp.Or(c.Env, "STRIPE_API_KEY")} }
