package broker_test

import (
	"os"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
)

// docs/states.md lists each step of the diagram in a table. It must be the code's table, no more and no less; the
// database's own is held to the code's by the store's tests.
func TestStatesAreAsDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/states.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z]+)` \\| `([a-z]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		documented[row[1]+" → "+row[2]] = true
	}
	real := map[string]bool{}
	for _, from := range broker.States() {
		for _, to := range from.Next() {
			real[string(from)+" → "+string(to)] = true
		}
	}
	if diff := cmp.Diff(real, documented); diff != "" {
		t.Errorf("docs/states.md differs from the code's transitions: %s", diff)
	}
}
