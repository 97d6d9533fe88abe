package config

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Warnings are what a file does that its author may not expect: callers that share resources, and variables of this
// process's environment that its profiles obey or do not. They name variables, never values.
func (f *File) Warnings() Faults {
	r := &report{place: f.place}
	for _, name := range sorted(f.Profiles) {
		r.shared("profiles."+name, f.Profiles[name])
	}
	r.environment(f)
	slices.SortFunc(r.faults, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Reason, b.Reason))
	})
	return r.faults
}

// shared warns of a text that gives two callers the same resources when they use the same task or agent id.
func (r *report) shared(at string, p Profile) {
	templates := p.Templates(p.Provider)
	for _, pointer := range sortedKeys(templates) {
		named := map[string]bool{}
		for _, t := range templates[pointer] {
			for _, name := range t.Names() {
				named[name] = true
			}
		}
		if len(named) == 0 || named["Caller"] || apart(p.Allow, named) {
			continue
		}
		r.add(at+"."+p.Provider+"."+pointer, "does not tell callers apart: several may use this profile, "+
			"and one that uses another's task or agent id gets the same resources; add {{.Caller}}, or give each caller tasks of its own in `allow`")
	}
}

// apart tells whether the rules keep any two callers from getting the same values in the named placeholders.
func apart(rules []Rule, named map[string]bool) bool {
	for i, a := range rules {
		if len(a.Callers) > 1 || slices.ContainsFunc(a.Callers, func(p string) bool { return strings.HasSuffix(p, "*") }) {
			return false
		}
		for _, b := range rules[:i] {
			switch {
			case slices.Equal(a.Callers, b.Callers): // one and the same
			case named["TaskID"] && disjoint(a.Tasks, b.Tasks), named["AgentID"] && disjoint(a.Agents, b.Agents):
			default:
				return false
			}
		}
	}
	return true
}

// disjoint tells whether no id matches patterns of both lists; an empty list takes any.
func disjoint(a, b []string) bool {
	if len(a) == 0 || len(b) == 0 {
		return false
	}
	for _, p := range a {
		for _, q := range b {
			if meet(p, q) {
				return false
			}
		}
	}
	return true
}

func meet(p, q string) bool {
	start, anyP := strings.CutSuffix(p, "*")
	other, anyQ := strings.CutSuffix(q, "*")
	return start == other || anyP && strings.HasPrefix(other, start) || anyQ && strings.HasPrefix(start, other)
}

// environment names the variables that change what clients of vendors do, and those of AWS's and Google's that do not.
func (r *report) environment(f *File) {
	where := map[string][]string{} // what is to be said → of which sections
	say := func(at string, obeyed, ignored []string) {
		if len(obeyed) > 0 {
			text := "depends on variables of this process's environment: " + strings.Join(obeyed, ", ")
			where[text] = append(where[text], at)
		}
		if len(ignored) > 0 {
			text := "is not affected by variables of this process's environment, though they are set: " + strings.Join(ignored, ", ")
			where[text] = append(where[text], at)
		}
	}
	for _, name := range sorted(f.Profiles) {
		p := f.Profiles[name]
		obeyed, ignored := p.Environment(p.Provider)
		say("profiles."+name+"."+p.Provider, obeyed, ignored)
	}
	if f.Audit != nil {
		for i, p := range f.Audit.Publish {
			if p.S3 != "" {
				obeyed, ignored := p.AWS().Environment()
				say(fmt.Sprintf("audit.publish[%d]", i), obeyed, ignored)
			}
		}
	}
	for _, text := range sortedKeys(where) {
		at := where[text]
		if more := len(at) - 1; more > 0 {
			r.add(at[0], "%s (%d more have the same)", text, more)
		} else {
			r.add(at[0], "%s", text)
		}
	}
	if set := proxies(); len(set) > 0 {
		r.at(0, "", "vendors are called through the proxy that these variables of the environment name: %s",
			strings.Join(set, ", "))
	}
}

// proxies lists the variables by which Go's HTTP and gRPC clients find a proxy. Loopback is never called through one.
func proxies() []string {
	var set []string
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
		if os.Getenv(name) != "" {
			set = append(set, name)
		}
	}
	return set
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
