package upstreamlog

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
)

// object reads the fields of a record leniently: one of another type than the vendor documents is as good as absent, and is
// noted, because it may have named the caller.
type object struct {
	fields fields
	path   string    // "userIdentity.": what notes begin with
	odd    *[]string // "userIdentity is a text": made of our own words only, never of the record's
}

// aside is the same object, of which nothing is noted: for what names nobody.
func (o object) aside() object {
	o.odd = new([]string)
	return o
}

// raw is the first of the fields that is there and not null; nil: none is.
func (o object) raw(names ...string) json.RawMessage {
	for _, name := range names {
		if raw := o.fields[fold(name)]; raw != nil && string(raw) != "null" {
			return raw
		}
	}
	return nil
}

// text reads a text, or a number as it is written.
func (o object) text(name string) (text string) {
	raw := o.raw(name)
	if raw == nil || json.Unmarshal(raw, &text) == nil {
		return text
	}
	var number json.Number
	if json.Unmarshal(raw, &number) == nil {
		return number.String()
	}
	o.note(name, raw)
	return ""
}

// child reads an object, or a text that is one: CloudTrail Lake and BigQuery keep some as text.
func (o object) child(name string) object {
	c := object{path: o.path + name + ".", odd: o.odd}
	raw := o.raw(name)
	if raw == nil {
		return c
	}
	inner := []byte(raw)
	var text string
	if json.Unmarshal(raw, &text) == nil {
		inner = []byte(text)
	}
	var err error
	if c.fields, err = fieldsOf(inner); err != nil {
		o.note(name, raw)
	}
	return c
}

func (o object) note(name string, raw json.RawMessage) {
	if o.odd != nil {
		*o.odd = append(*o.odd, o.path+name+" is "+kind(raw))
	}
}

// has tells whether one of the fields is there, with whatever value.
func (o object) has(names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return o.fields[fold(name)] != nil })
}

// kind names the type of a value.
func kind(raw json.RawMessage) string {
	raw = bytes.TrimSpace(raw)
	switch {
	case len(raw) == 0 || string(raw) == "null":
		return "missing"
	case raw[0] == '"':
		return "a text"
	case raw[0] == '{':
		return "an object"
	case raw[0] == '[':
		return "a list"
	case raw[0] == 't' || raw[0] == 'f':
		return "true or false"
	}
	return "a number"
}

// maxWhat is the most of the name of a call that is shown, in bytes.
const maxWhat = 300

// what joins the parts of a call's name.
func what(parts ...string) string {
	text := strings.TrimSpace(strings.Join(parts, " "))
	if len(text) > maxWhat {
		text = strings.ToValidUTF8(text[:maxWhat], "") + "…"
	}
	return text
}
