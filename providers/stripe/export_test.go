package stripe

import (
	"maps"
	"slices"
)

// Probed lists the permissions that a call tells of.
func Probed() []string { return slices.Sorted(maps.Keys(probes)) }
