package config

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// document reads the one document of a text as a tree; nil if there is none to go on with.
//
// The library's own strict decoding (WithKnownFields) is not used: it quotes values in its errors, and knows lines but
// no paths. It does the syntax, the tags and the anchors; decode.go the rest.
func (r *report) document(text []byte) (root *yaml.Node) {
	if len(text) > maxSize {
		r.at(0, "", "is larger than 1 MiB")
		return nil
	}
	defer func() {
		if recover() != nil { // the value is not shown: the library's panics may quote the text
			r.at(0, "", "cannot be read as YAML")
			root = nil
		}
	}()
	loader, err := yaml.NewLoader(bytes.NewReader(text))
	if err != nil {
		r.at(0, "", "cannot be read as YAML")
		return nil
	}
	var doc, next yaml.Node
	switch err := loader.Load(&doc); {
	case errors.Is(err, io.EOF):
		r.at(1, "", "is empty")
		return nil
	case err != nil:
		r.syntax(text, err)
		return nil
	}
	switch err := loader.Load(&next); {
	case err == nil:
		r.at(next.Line, "", "a second document begins here: a file holds one")
	case !errors.Is(err, io.EOF):
		r.syntax(text, err)
	}
	return doc.Content[0]
}

// quoted is what the library may have copied from the file into a message; its own punctuation, as in ':', is shorter.
var quoted = regexp.MustCompile("'[^'\\s]{2,}'|`[^`]*`|\"[^\"\\s]{2,}\"")

// syntax notes what keeps the text from being YAML. The scanner's and parser's messages are fixed texts; the others'
// hold parts of the file, or no line.
func (r *report) syntax(text []byte, err error) {
	load, ok := errors.AsType[*yaml.LoadError](err)
	if !ok {
		r.at(0, "", "cannot be read as YAML")
		return
	}
	line, message := load.Mark.Line, quoted.ReplaceAllString(load.Message, "…")
	switch load.Stage {
	case yaml.ReaderStage:
		r.at(badLine(text), "", "is not YAML: there are bytes here that are no text in UTF-8")
	case yaml.ComposerStage:
		r.at(line, "", "is not YAML: an alias names no anchor above it")
	case yaml.ScannerStage, yaml.ParserStage:
		if load.ContextMsg == "" {
			r.at(line, "", "is not YAML: %s", message)
			return
		}
		r.at(line, "", "is not YAML: %s that begins in line %d, %s",
			quoted.ReplaceAllString(load.ContextMsg, "…"), load.ContextMark.Line, message)
	default:
		r.at(line, "", "cannot be read as YAML")
	}
}

// badLine finds the line of the first byte that no YAML in UTF-8 holds; 0 if the text is in another encoding.
func badLine(text []byte) int {
	for i := 0; i < len(text); {
		c, size := utf8.DecodeRune(text[i:])
		if c == utf8.RuneError && size == 1 || unicode.IsControl(c) && !unicode.IsSpace(c) {
			return 1 + bytes.Count(text[:i], []byte("\n"))
		}
		i += size
	}
	return 0
}

// target is the node that an alias stands for.
func target(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

type pair struct{ key, value *yaml.Node }

// pairs lists what a mapping says, each key once. Its own keys win over those it merges in with <<, of which the first
// wins: that is how YAML defines it. What a mapping itself says twice is a fault. show makes a key fit for a path.
func (d *decoder) pairs(n *yaml.Node, path string, show func(string) string) []pair {
	var own, merged []pair
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		p := pair{target(n.Content[i]), n.Content[i+1]}
		line := n.Content[i].Line
		switch name := p.key.Value; {
		case d.spend(line):
			return nil
		case p.key.ShortTag() == "!!merge":
			merged = append(merged, d.merged(target(p.value), path, show, line)...)
		case p.key.Kind != yaml.ScalarNode || p.key.ShortTag() != "!!str":
			d.at(line, path, "has a key that is not text: put it in quotes")
		case lines[name] > 0:
			d.at(line, child(path, show(name)), "stands twice, first in line %d", lines[name])
		default:
			lines[name] = line
			own = append(own, p)
		}
	}
	for _, p := range merged {
		if name := p.key.Value; lines[name] == 0 {
			lines[name] = p.key.Line
			own = append(own, p)
		}
	}
	return own
}

// merged lists what << brings in: a mapping, or a list of them.
func (d *decoder) merged(n *yaml.Node, path string, show func(string) string, line int) []pair {
	switch {
	case d.spend(line):
		return nil
	case n.Kind == yaml.MappingNode:
		return d.pairs(n, path, show)
	case n.Kind != yaml.SequenceNode:
		d.at(line, path, "merges with << what is not a section")
		return nil
	}
	var all []pair
	for _, item := range n.Content {
		if item = target(item); item.Kind != yaml.MappingNode {
			d.at(line, path, "merges with << what is not a section")
			continue
		}
		all = append(all, d.merged(item, path, show, line)...)
	}
	return all
}
