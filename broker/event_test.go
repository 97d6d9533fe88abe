package broker_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"

	"github.com/taskpass/taskpass/broker"
)

// EventTypes has every type that the package declares, so that whoever offers them leaves none out.
func TestEventTypesAreAll(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "event.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var declared []broker.EventType
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok {
			for _, v := range spec.Values {
				if lit, ok := v.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					text, _ := strconv.Unquote(lit.Value)
					declared = append(declared, broker.EventType(text))
				}
			}
		}
		return true
	})
	if len(declared) < 20 || !slices.Equal(declared, broker.EventTypes()) {
		t.Errorf("declared %v, listed %v", declared, broker.EventTypes())
	}
}
