package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers"
)

// check looks at what the values mean, together. What a section means is its provider's business.
func (r *report) check(f *File) {
	r.server(f)
	if len(f.Profiles) == 0 {
		r.add("profiles", "offers nothing: name at least one profile")
	}
	for _, name := range sorted(f.Profiles) {
		r.profile("profiles."+name, name, f.Profiles[name])
	}
	r.pools(f.Profiles)
	r.stripePools(f.Profiles)
	r.roles(f.Profiles)
	r.audit(f.Audit)
}

func sorted(ps map[string]Profile) []string { return slices.Sorted(maps.Keys(ps)) }

func (r *report) server(f *File) {
	if !addressPort(f.Listen) {
		r.add("listen", "is not an IP address and a port, such as 127.0.0.1:8080")
	}
	if f.TLS != nil {
		r.filePath("tls.cert_file", f.TLS.CertFile)
		r.filePath("tls.key_file", f.TLS.KeyFile)
		if r.has("tls.client_ca_file") {
			r.filePath("tls.client_ca_file", f.TLS.ClientCAFile)
		}
	}
	r.reference("database.url", f.Database.URL)
	if n := f.Database.MaxConnections; r.has("database.max_connections") && (n < 1 || n > 1000) {
		r.add("database.max_connections", "is not between 1 and 1000")
	}
	if n := f.Database.ReadConnections; r.has("database.read_connections") && (n < 1 || n > 1000) {
		r.add("database.read_connections", "is not between 1 and 1000")
	}
	r.reference("seal.keyset", f.Seal.Keyset)
	r.upTo("upstream_timeout", f.UpstreamTimeout, 60*time.Second)
	r.upTo("shutdown_timeout", f.ShutdownTimeout, 10*time.Minute)
	for field, n := range map[string]int{
		"per_task": f.Limits.PerTask, "per_agent": f.Limits.PerAgent, "per_profile": f.Limits.PerProfile, "per_caller": f.Limits.PerCaller,
	} {
		if path := child("limits", field); r.has(path) && n < 1 {
			r.add(path, "is not 1 or more")
		}
	}
	r.concurrency(f.Concurrency)
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, f.Log.Level) {
		r.add("log.level", "is not debug, info, warn or error")
	}
}

func (r *report) concurrency(c Concurrency) {
	for field, b := range map[string]Bounds{
		"requests": c.Requests, "watches": c.Watches, "searches": c.Searches, "exports": c.Exports, "live_pages": c.LivePages,
		"authentications": c.Authentications,
	} {
		at := child("concurrency", field)
		for name, n := range map[string]int{"per_token": b.PerToken, "per_caller": b.PerCaller, "total": b.Total} {
			if path := child(at, name); r.has(path) && n < 1 {
				r.add(path, "is not 1 or more")
			}
		}
		if r.has(at) && (b.PerToken > b.PerCaller || b.PerCaller > b.Total) {
			r.add(at, "does not have per_token ≤ per_caller ≤ total; what is left out has its default")
		}
	}
}

// addressPort takes no host names: which addresses one stands for can change under a service that listens.
func addressPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return false
	}
	_, err = netip.ParseAddr(host)
	return err == nil || host == "" || host == "localhost"
}

// filePath takes absolute paths only. What is opened later appears in errors, so a pasted key must not get that far.
func (r *report) filePath(path, name string) {
	switch {
	case !r.has(path):
		r.add(path, "is required")
	case !filepath.IsAbs(name) || strings.ContainsAny(name, "\r\n"):
		r.add(path, "is not an absolute path of a file")
	}
}

func (r *report) reference(path string, ref broker.Ref) {
	if !r.has(path) {
		r.add(path, "is required: a reference, env:NAME or file:/path")
	} else if err := ref.Check(); err != nil {
		r.add(path, "%v", err)
	}
}

func (r *report) upTo(path string, d, high time.Duration) {
	if d < time.Second || d > high {
		r.add(path, "is not between 1s and %s", short(high))
	}
}

func (r *report) profile(at, name string, p Profile) {
	if !broker.ValidID(name) {
		r.add(at, "has a name that is not 1-128 of A-Z a-z 0-9 . _ : @ -, and not only dots")
	}
	r.ttl(at+".ttl", p.TTL)
	r.life(at, p)
	for _, fault := range broker.CheckEnv(p.Env, only(p.Config, p.Provider).Sets(p.Provider)) {
		path := at + ".env"
		if fault.Pointer != "" {
			path = child(path, fault.Pointer)
		}
		r.add(path, "%s", fault.Reason)
	}
	scopes := r.section(at, p)
	if len(p.Allow) == 0 {
		r.add(at+".allow", "has no rule: nobody may ask")
	}
	for i, rule := range p.Allow {
		r.rule(fmt.Sprintf("%s.allow[%d]", at, i), rule, p.TTL, scopes)
	}
}

func (r *report) ttl(at string, t TTL) {
	positive := func(field string, d time.Duration, required bool) bool {
		switch path := child(at, field); {
		case !r.has(path):
			if required {
				r.add(path, "is required")
			}
			return false
		case d <= 0:
			r.add(path, "is not longer than 0s")
			return false
		}
		return true
	}
	least, usual, most := positive("min", t.Min, false), positive("default", t.Default, true), positive("max", t.Max, true)
	switch {
	case usual && most && t.Max < t.Default:
		r.add(at+".max", "is shorter than the default")
	case least && !usual && most && t.Max < t.Min:
		r.add(at+".max", "is shorter than the min")
	}
	if least && usual && t.Default < t.Min {
		r.add(at+".min", "is longer than the default")
	}
}

// life checks what stands about versions that follow each other, and tickets.
func (r *report) life(at string, p Profile) {
	if path := at + ".max_lifetime"; r.has(path) && p.MaxLifetime < p.TTL.Max {
		r.add(path, "is shorter than ttl.max")
	}
	if path := at + ".overlap"; r.has(path) {
		r.upTo(path, p.Overlap, time.Hour)
	}
	if path := at + ".ticket.ttl"; r.has(path) {
		r.upTo(path, p.Ticket.TTL, 24*time.Hour)
	}
	if path := at + ".ticket.on_reuse"; r.has(path) && p.Ticket.OnReuse != "keep" && p.Ticket.OnReuse != "revoke" {
		r.add(path, "is neither keep nor revoke")
	}
}

// section checks the provider and its section, and returns the scopes that the section defines.
func (r *report) section(at string, p Profile) []string {
	names := providers.Names()
	switch {
	case !r.has(at + ".provider"):
		r.add(at+".provider", "is required; the providers are %s", strings.Join(names, ", "))
		return nil
	case !slices.Contains(names, p.Provider):
		r.add(at+".provider", "is unknown; the providers are %s", strings.Join(names, ", "))
		return nil
	case !r.has(child(at, p.Provider)):
		r.add(child(at, p.Provider), "is required: it is the section of this profile's provider")
	}
	for _, other := range names {
		if other != p.Provider && r.has(child(at, other)) {
			r.add(child(at, other), "does not belong here: this profile's provider is %s", p.Provider)
		}
	}
	own := only(p.Config, p.Provider)
	for _, fault := range own.Check(p.Provider) {
		if fault.Pointer != "" { // that the section is missing has been said
			r.add(child(at, fault.Pointer), "%s", fault.Reason)
		}
	}
	scopes := own.ScopeNames(p.Provider)
	if path := child(at, p.Provider) + ".scopes"; slices.ContainsFunc(scopes, badScope) && !r.breaksBelow(path) {
		r.add(path, "has a name that is not 1-128 printable characters without a space")
	}
	return scopes
}

// badScope is wide: vendors' own names of scopes may be used, and some are URLs.
func badScope(s string) bool {
	return s == "" || len(s) > 128 || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' })
}

// only drops the sections of other providers, which would keep the right one from being checked.
func only(c providers.Config, provider string) providers.Config {
	v := reflect.ValueOf(&c).Elem()
	for name, index := range fields(v.Type()) {
		if name != provider {
			v.FieldByIndex(index).SetZero()
		}
	}
	return c
}

func (r *report) rule(at string, rule Rule, ttl TTL, scopes []string) {
	if len(rule.Callers) == 0 {
		r.add(at+".callers", "names nobody: say who may ask")
	}
	r.list(at+".callers", rule.Callers, isPattern, notPattern)
	// Without scopes the section is at fault, which has been said.
	known := func(s string) bool { return len(scopes) == 0 || slices.Contains(scopes, s) }
	r.narrowing(at+".tasks", rule.Tasks, isPattern, notPattern)
	r.narrowing(at+".agents", rule.Agents, isPattern, notPattern)
	r.narrowing(at+".scopes", rule.Scopes, known, "is not a scope of this profile")

	switch path := at + ".max_ttl"; {
	case !r.has(path):
	case rule.MaxTTL <= 0:
		r.add(path, "is not longer than 0s")
	case ttl.Max > 0 && rule.MaxTTL > ttl.Max:
		r.add(path, "is longer than the profile's max")
	case rule.MaxTTL < ttl.Min:
		r.add(path, "is shorter than the profile's min: nothing could be asked for")
	}
}

// narrowing checks a list that means any when it is left out. Written but empty, it could be taken for none.
func (r *report) narrowing(at string, items []string, ok func(string) bool, reason string) {
	if len(items) == 0 && r.has(at) {
		r.add(at, "is empty: leave it out if any will do")
	}
	r.list(at, items, ok, reason)
}

func (r *report) list(at string, items []string, ok func(string) bool, reason string) {
	seen := map[string]bool{}
	for i, item := range items {
		switch path := fmt.Sprintf("%s[%d]", at, i); {
		case !ok(item):
			r.add(path, "%s", reason)
		case seen[item]:
			r.add(path, "stands twice")
		}
		seen[item] = true
	}
}

const notPattern = "is not 1-128 of A-Z a-z 0-9 . _ : @ - with or without a * at the end, and not only dots"

// isPattern tells whether s is an id, an id's beginning and "*", or "*" alone. A "*" elsewhere would stand for itself,
// which no id contains.
func isPattern(s string) bool {
	if beginning, ok := strings.CutSuffix(s, "*"); ok && len(s) <= broker.MaxIDLength {
		return beginning == "" || broker.ValidID(beginning+"x") // dots alone may begin an id
	}
	return broker.ValidID(strings.TrimSuffix(s, "*"))
}
