package config

import (
	"context"
	"io"
	"slices"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers"
)

// Open makes the profiles' providers, of a File that Parse or Load made: all of them, or none and an error, Faults, that
// names every profile that failed. Only now is known what lives each provider can give, so the TTLs' bounds are held
// against that here.
func (f *File) Open(ctx context.Context, deps providers.Deps) (broker.Profiles, error) {
	r := &report{place: f.place}
	profiles := make(broker.Profiles, len(f.Profiles))
	shared := sharedPools(f.Profiles)
	for _, name := range sorted(f.Profiles) {
		p := f.Profiles[name]
		at := child("profiles", name)
		deps.Shared = slices.ContainsFunc(poolsOf(p), func(pool string) bool { return shared[pool] })
		var upstream broker.Provider
		err := broker.Recovered(func() (err error) {
			upstream, err = providers.Open(ctx, p.Provider, p.Config, deps)
			return err
		})
		if ctx.Err() != nil {
			if c, ok := upstream.(io.Closer); ok && err == nil {
				_ = c.Close() // as below
			}
			_ = profiles.Close()
			return nil, ctx.Err()
		}
		if err != nil {
			r.add(at, "cannot be opened: %v", err)
			continue
		}
		profile := broker.Profile{
			Name: name, Provider: p.Provider, Scopes: p.ScopeNames(p.Provider),
			DefaultTTL: p.TTL.Default, MinTTL: p.TTL.Min, MaxTTL: p.TTL.Max, Upstream: upstream, Env: p.Env,
			MaxLifetime: p.MaxLifetime, Overlap: p.Overlap, TicketTTL: p.Ticket.TTL, RevokeOnReuse: p.Ticket.OnReuse == "revoke",
		}
		for _, rule := range p.Allow {
			profile.Allow = append(profile.Allow, broker.Rule(rule))
		}
		r.bound(at+".ttl", &profile)
		profiles[name] = profile
	}
	if err := r.err(); err != nil {
		_ = profiles.Close() // none of them is used
		return nil, err
	}
	return profiles, nil
}

// bound holds a profile's TTLs against what its provider can do, and fills in a min that was left out.
func (r *report) bound(at string, p *broker.Profile) {
	caps := p.Upstream.Capabilities()
	least := max(caps.MinTTL, time.Second)
	if p.MinTTL == 0 {
		p.MinTTL = least
		if p.DefaultTTL < least {
			r.add(at+".default", "is shorter than the %s that %s can do", short(least), p.Provider)
		}
	}
	if p.MinTTL < caps.MinTTL {
		r.add(at+".min", "is shorter than the %s that %s can do", short(caps.MinTTL), p.Provider)
	}
	if p.MaxTTL > caps.MaxTTL {
		r.add(at+".max", "is longer than the %s that %s can do", short(caps.MaxTTL), p.Provider)
	}
}
