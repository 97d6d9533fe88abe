package config

import (
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// maxValues bounds what a file's aliases may come to: a few lines of them can stand for billions of values.
const maxValues = 100_000

// decoder puts a tree into Go values by the library's own tags (`yaml:"name"`, `yaml:",inline"`), with a fault wherever
// the two differ. What cannot be read is left zero but keeps its place, so that indices stay true.
type decoder struct {
	*report
	values int
	spent  bool // there were too many: the rest was not read
}

// spend counts one value, and tells whether there were too many.
func (d *decoder) spend(line int) bool {
	if d.values++; d.values > maxValues && !d.spent {
		d.spent = true
		d.at(line, "", "comes to more than %d values with its aliases", maxValues)
	}
	return d.spent
}

var durationType = reflect.TypeFor[time.Duration]()

// value reads n into v, and tells whether n is of v's type.
func (d *decoder) value(n *yaml.Node, path string, v reflect.Value) bool {
	n = target(n)
	want := ""
	switch kind, tag := v.Kind(), n.ShortTag(); {
	case tag == "!!null":
		want = "has no value: give it one, or leave the whole field out"
	case kind == reflect.Pointer:
		elem := reflect.New(v.Type().Elem())
		if !d.value(n, path, elem.Elem()) {
			return false
		}
		v.Set(elem)
	case v.Type() == durationType:
		length, err := time.ParseDuration(n.Value)
		if err != nil || tag != "!!str" {
			want = "is not a duration such as 30s, 15m or 12h"
		}
		v.SetInt(int64(length))
	case kind == reflect.Struct && tag == "!!map":
		d.section(n, path, v)
	case kind == reflect.Map && tag == "!!map":
		d.names(n, path, v)
	case kind == reflect.Slice && tag == "!!seq":
		d.list(n, path, v)
	case kind == reflect.String && tag == "!!str":
		v.SetString(n.Value)
	default:
		want = d.scalar(n, tag, v)
	}
	if want != "" {
		d.breaks(path, want)
	}
	return want == ""
}

// scalar reads what is left, numbers and truths, and returns what is wrong if it cannot.
func (d *decoder) scalar(n *yaml.Node, tag string, v reflect.Value) string {
	switch v.Kind() {
	case reflect.Struct, reflect.Map:
		return "is not a section of fields"
	case reflect.Slice:
		return "is not a list"
	case reflect.String:
		if n.Kind == yaml.ScalarNode {
			return "is not text: put it in quotes"
		}
		return "is not text"
	case reflect.Bool:
		if tag != "!!bool" || n.Load(v.Addr().Interface()) != nil {
			return "is neither true nor false"
		}
		return ""
	}
	if tag != "!!int" || n.Load(v.Addr().Interface()) != nil {
		return "is not a whole number that fits"
	}
	return ""
}

// section reads a mapping whose keys are fields.
func (d *decoder) section(n *yaml.Node, path string, v reflect.Value) {
	known := fields(v.Type())
	for _, p := range d.pairs(n, path, fieldLike) {
		index, ok := known[p.key.Value]
		if !ok {
			d.at(p.key.Line, child(path, fieldLike(p.key.Value)), "is not a field here; the fields are %s",
				strings.Join(slices.Sorted(maps.Keys(known)), ", "))
			continue
		}
		at := child(path, p.key.Value)
		d.lines[at] = p.key.Line
		d.value(p.value, at, v.FieldByIndex(index))
	}
}

// names reads a mapping whose keys are the operator's names.
func (d *decoder) names(n *yaml.Node, path string, v reflect.Value) {
	v.Set(reflect.MakeMap(v.Type()))
	for _, p := range d.pairs(n, path, func(name string) string { return name }) {
		at := child(path, p.key.Value)
		d.lines[at] = p.key.Line
		elem := reflect.New(v.Type().Elem()).Elem()
		d.value(p.value, at, elem)
		v.SetMapIndex(reflect.ValueOf(p.key.Value).Convert(v.Type().Key()), elem)
	}
}

func (d *decoder) list(n *yaml.Node, path string, v reflect.Value) {
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		if d.spend(item.Line) {
			return
		}
		at := fmt.Sprintf("%s[%d]", path, i)
		d.lines[at] = item.Line
		d.value(item, at, v.Index(i))
	}
}

// fields finds the fields of a struct by their names in YAML; those of an embedded struct are its own.
func fields(t reflect.Type) map[string][]int {
	known := map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		if !f.IsExported() || f.Anonymous {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == "" {
			name = strings.ToLower(f.Name)
		}
		known[name] = f.Index
	}
	return known
}

var fieldForm = regexp.MustCompile(`^[A-Za-z_-]{1,32}$`)

// fieldLike makes the key of an unknown field fit for a path. In a place where it does not belong it may be a pasted
// secret, so it is shown only if a field could bear that name.
func fieldLike(key string) string {
	if fieldForm.MatchString(key) {
		return key
	}
	return "?"
}
