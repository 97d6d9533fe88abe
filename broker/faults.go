package broker

import (
	"fmt"
	"net"
	"net/url"
	"strings"
)

// Faults gathers what is wrong with a configuration, all of it at once.
type Faults []Fault

// Add notes a fault. What was given stays out of the reason.
func (f *Faults) Add(pointer, format string, args ...any) {
	*f = append(*f, Fault{Pointer: pointer, Reason: fmt.Sprintf(format, args...)})
}

// Below adds the faults of a section, whose pointers are paths within it.
func (f *Faults) Below(section string, faults []Fault) {
	for _, fault := range faults {
		*f = append(*f, Fault{Pointer: strings.TrimSuffix(section+"."+fault.Pointer, "."), Reason: fault.Reason})
	}
}

// Ref refuses what is no reference. One that may be left out is for the caller to pass over.
func (f *Faults) Ref(pointer string, r Ref) {
	if err := r.Check(); err != nil {
		f.Add(pointer, "%v", err)
	}
}

// URL refuses an address by which a secret would travel in the clear: it takes https, and http on the loopback interface.
// The answer is nil for what is none; else the caller can judge its other parts.
func (f *Faults) URL(pointer, text string) *url.URL {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "":
		f.Add(pointer, "is not a URL with a host")
		return nil
	case u.User != nil:
		f.Add(pointer, "holds a user: a secret has no place in a URL")
	case u.Fragment != "":
		f.Add(pointer, "has a fragment")
	case u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())):
		f.Add(pointer, "is not https; only an address of the loopback interface may do without")
	}
	return u
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Endpoint is URL for where an API begins: a host, and perhaps a path.
func (f *Faults) Endpoint(pointer, text string) *url.URL {
	before := len(*f)
	u := f.URL(pointer, text)
	if len(*f) == before && (u.RawQuery != "" || u.ForceQuery) {
		f.Add(pointer, "holds more than a host and a path")
	}
	return u
}
