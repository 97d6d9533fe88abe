package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Fault is one thing wrong with a file.
type Fault struct {
	File   string
	Line   int    // from 1; 0 if it is the whole file
	Path   string // "profiles.research.ttl.max", "profiles.research.allow[0].callers"; empty if it is the whole file
	Reason string // continues the path as a sentence; never repeats the value
}

func (f Fault) String() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d", f.Line)
	}
	b.WriteString(": ")
	if f.Path != "" {
		b.WriteString(f.Path + ": ")
	}
	return b.String() + f.Reason
}

// Faults is all that is wrong with a file, by line. As an error it has one line a fault.
type Faults []Fault

func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

// place knows where in which file each path stands.
type place struct {
	file  string
	lines map[string]int
}

// has tells whether the path stands in the file.
func (p place) has(path string) bool { return p.lines[path] > 0 }

// line is where the path stands; of one that is missing, where its nearest ancestor does.
func (p place) line(path string) int {
	for ; path != "" && !p.has(path); path = parent(path) {
	}
	return p.lines[path]
}

// child is the path of a field or a name below another; parent undoes it and an index. A name that holds a dot has
// parents that stand nowhere, which does no harm: they are passed over.
func child(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func parent(path string) string { return path[:max(0, strings.LastIndexAny(path, ".["))] }

// report collects faults.
type report struct {
	place
	broken map[string]bool // where the value could not be read: nothing more is said of what is below
	faults Faults
}

// at notes a fault of a line.
func (r *report) at(line int, path, format string, args ...any) {
	reason := strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
	r.faults = append(r.faults, Fault{File: r.file, Line: line, Path: shown(path), Reason: reason})
}

// breaks notes a value that cannot be read.
func (r *report) breaks(path, reason string) {
	r.broken[path] = true
	r.at(r.line(path), path, "%s", reason)
}

// breaksBelow tells whether something at or below the path could not be read.
func (r *report) breaksBelow(path string) bool {
	for p := range r.broken {
		if strings.HasPrefix(p, path) {
			return true
		}
	}
	return false
}

// add notes what is wrong with a value that could be read, or that is missing.
func (r *report) add(path, format string, args ...any) {
	for p := path; ; p = parent(p) {
		if r.broken[p] {
			return
		}
		if p == "" {
			break
		}
	}
	r.at(r.line(path), path, format, args...)
}

// err returns the faults in order and each once, or nil.
func (r *report) err() error {
	if len(r.faults) == 0 {
		return nil
	}
	slices.SortFunc(r.faults, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Reason, b.Reason))
	})
	return slices.Compact(r.faults)
}

const maxShown = 200

// shown makes a path fit for a line of a log: names in it are the file's own text.
func shown(path string) string {
	path = strings.Map(func(c rune) rune {
		if c <= ' ' || c > '~' {
			return '?'
		}
		return c
	}, path)
	if len(path) > maxShown {
		path = path[:maxShown] + "…"
	}
	return path
}

// short writes 12h for 12h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
