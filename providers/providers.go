// Package providers opens a profile's provider by its name. It is the only place that names concrete providers.
package providers

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/gcp"
	"github.com/taskpass/taskpass/providers/pool"
	"github.com/taskpass/taskpass/providers/stripe"
)

// Config holds the sections of a profile that belong to providers; just the one of the profile's provider is set.
type Config struct {
	AWS    *aws.Config    `yaml:"aws"`
	GCP    *gcp.Config    `yaml:"gcp"`
	Pool   *pool.Config   `yaml:"pool"`
	Stripe *stripe.Config `yaml:"stripe"`
}

// Names lists the providers, sorted. The section of a profile bears the same name.
func Names() []string { return []string{"aws", "gcp", "pool", "stripe"} }

// section is what every provider's configuration can tell without I/O.
type section interface {
	Check() []broker.Fault
	ScopeNames() []string
	Sets() []string
}

// Templates lists, by their pointers, the texts in which the named provider puts what a request says, so that its resources
// are told apart. Of those under one pointer it is enough that one tells them apart.
func (c Config) Templates(name string) map[string][]broker.Template {
	s, _ := c.section(name)
	if t, ok := s.(interface {
		Templates() map[string][]broker.Template
	}); ok {
		return t.Templates()
	}
	return nil
}

// Environment lists the variables of the process's environment that the named provider's clients obey, and those of its
// vendor's that have no effect on them. It reads no value.
func (c Config) Environment(name string) (obeyed, ignored []string) {
	s, _ := c.section(name)
	if e, ok := s.(interface {
		Environment() (obeyed, ignored []string)
	}); ok {
		return e.Environment()
	}
	return nil, nil
}

// Sets lists the environment variables that the named provider sets for agents, which nothing else may set.
func (c Config) Sets(name string) []string {
	s, err := c.section(name)
	if err != nil {
		return nil
	}
	return s.Sets()
}

func (c Config) section(name string) (section, error) {
	sections := map[string]section{}
	if c.AWS != nil {
		sections["aws"] = c.AWS
	}
	if c.GCP != nil {
		sections["gcp"] = c.GCP
	}
	if c.Pool != nil {
		sections["pool"] = c.Pool
	}
	if c.Stripe != nil {
		sections["stripe"] = c.Stripe
	}
	s, ok := sections[name]
	if !ok {
		return nil, fmt.Errorf("the section %s is missing", name)
	}
	if len(sections) > 1 {
		return nil, fmt.Errorf("only the section %s belongs here", name)
	}
	return s, nil
}

// Check returns all that is wrong with the section of the named provider. Pointers begin with the section's name.
func (c Config) Check(name string) []broker.Fault {
	s, err := c.section(name)
	if err != nil {
		return []broker.Fault{{Pointer: "", Reason: err.Error()}}
	}
	faults := s.Check()
	for i := range faults {
		faults[i].Pointer = name + "." + faults[i].Pointer
	}
	return faults
}

// ScopeNames lists the scopes that the named provider's section defines.
func (c Config) ScopeNames(name string) []string {
	s, err := c.section(name)
	if err != nil {
		return nil
	}
	return s.ScopeNames()
}

// Promise is what a provider promises in one of the ways it can be configured.
type Promise struct {
	Provider, How string
	broker.Capabilities
}

// Promises lists all providers' promises. The README's table is made of it.
func Promises() []Promise {
	return []Promise{
		{"aws", "`revocation.mode: deny`", aws.Config{}.Capabilities()},
		{"aws", "`revocation.mode: none`", aws.Config{Revocation: aws.Revocation{Mode: "none"}}.Capabilities()},
		{"gcp", "`mode: impersonate`", gcp.Config{Mode: "impersonate"}.Capabilities()},
		{"gcp", "`mode: slot`", gcp.Config{Mode: "slot"}.Capabilities()},
		{"gcp", "`mode: key`", gcp.Config{Mode: "key"}.Capabilities()},
		{"pool", "`disclosed: accept`", pool.Config{Disclosed: "accept"}.Capabilities()},
		{"stripe", "`mode: managed`", stripe.Config{Mode: "managed"}.Capabilities()},
		{"stripe", "`mode: ephemeral`", stripe.Config{Mode: "ephemeral"}.Capabilities()},
		{"stripe", "`mode: pool`, `disclosed: accept`", stripe.Config{Mode: "pool", Pool: &stripe.Pool{Disclosed: "accept"}}.Capabilities()},
	}
}

// Deps is what providers need of the broker. All but Shared are required.
type Deps struct {
	Shared   bool // the rules of profiles let several callers use this profile's pool of keys or accounts
	Slots    broker.Slots
	Sealer   broker.Sealer
	Denials  broker.Denials
	Accounts broker.Accounts
	Handed   broker.Handed
	Clock    func() time.Time
	Logger   *slog.Logger
}

// Open makes the named provider for one profile. The configuration must have passed Check.
func Open(ctx context.Context, name string, c Config, deps Deps) (broker.Provider, error) {
	if faults := c.Check(name); len(faults) > 0 {
		return nil, fmt.Errorf("%s %s", faults[0].Pointer, faults[0].Reason)
	}
	switch name {
	case "aws":
		return aws.New(ctx, *c.AWS, aws.Deps{Denials: deps.Denials, Clock: deps.Clock, Logger: deps.Logger})
	case "gcp":
		return gcp.New(ctx, *c.GCP, gcp.Deps{Accounts: deps.Accounts, Shared: deps.Shared, Clock: deps.Clock, Logger: deps.Logger})
	case "stripe":
		return stripe.New(*c.Stripe, stripe.Deps{Slots: deps.Slots, Handed: deps.Handed, Shared: deps.Shared, Clock: deps.Clock, Logger: deps.Logger})
	default:
		if c.Pool.Vendor != nil && c.Pool.Vendor.Makes() {
			return pool.NewMaker(*c.Pool, pool.Deps{Slots: deps.Slots, Sealer: deps.Sealer, Clock: deps.Clock})
		}
		return pool.New(*c.Pool, pool.Deps{
			Slots: deps.Slots, Sealer: deps.Sealer, Clock: deps.Clock, Shared: deps.Shared, Logger: deps.Logger,
		})
	}
}
