package console

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/taskpass/taskpass/broker"
)

// parameters are what each page may be asked for, beside the forms that all have: live, csv and verify.
var parameters = map[string][]string{
	"/":                    {"window"},
	"/console/events":      append([]string{"since", "until", "order", "limit", "cursor"}, filters...),
	"/console/credentials": {"task_id", "agent_id", "profile", "caller", "state", "before"},
	"/console/credential":  {"id"},
	"/console/task":        {"id", "caller"},
	"/console/trace":       {"q", "at"},
	"/console/tree":        {},
	"/console/event":       {"id"},
	signInPath:             {"next", "ended"},
}

const signInPath = "/console/signin"

var forms = []string{"live", "csv", "verify"}

// choices are the values of parameters that have few; absent and empty is the first.
func choices(name string) []string {
	var list []string
	switch name {
	case "live", "verify":
		return []string{"1"}
	case "order":
		return []string{"newest", "oldest"}
	case "window":
		for _, w := range windows {
			list = append(list, w.Name)
		}
	case "state":
		for _, s := range broker.States() {
			list = append(list, string(s))
		}
	}
	return list
}

// parameterName is what may be repeated in an answer: anything else may be a secret that was put in the wrong place.
var parameterName = regexp.MustCompile("^[a-z_]{1,32}$")

// onlyKnown refuses a query that has what the page does not know: a filter with a slip in its name would show too much.
func onlyKnown(r *http.Request) error {
	known := slices.Clone(parameters[r.URL.Path])
	if r.URL.Path != signInPath {
		known = append(known, forms...)
	}
	slices.Sort(known)
	e := &broker.Error{Code: broker.CodeInvalidRequest, Message: "the request is not valid"}
	bad := func(name, reason string, args ...any) {
		e.Faults = append(e.Faults, broker.Fault{Pointer: "/query/" + name, Reason: fmt.Sprintf(reason, args...)})
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil { // what cannot be read would be left out
		e.Faults = append(e.Faults, broker.Fault{Pointer: "/query", Reason: "is not a query as a URL has it"})
	}
	for name, values := range query {
		list := choices(name)
		switch {
		case !slices.Contains(known, name) && parameterName.MatchString(name):
			bad(name, "unknown parameter; this page knows %s", strings.Join(known, ", "))
		case !slices.Contains(known, name):
			e.Faults = append(e.Faults, broker.Fault{Pointer: "/query", Reason: "unknown parameter; this page knows " + strings.Join(known, ", ")})
		case len(values) > 1:
			bad(name, "is given %d times", len(values))
		case list != nil && values[0] != "" && !slices.Contains(list, values[0]):
			bad(name, "must be one of %s", strings.Join(list, ", "))
		}
	}
	if len(e.Faults) == 0 {
		return nil
	}
	slices.SortFunc(e.Faults, func(a, b broker.Fault) int { return strings.Compare(a.Pointer, b.Pointer) })
	return e
}
