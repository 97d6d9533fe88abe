// Package upstreamlog reads what upstreams write of the calls that they got: CloudTrail's records, Google's Cloud Audit
// Logs and Stripe's request log. It decides which names in a record may be a credential's; package audit knows who held it.
//
// A file is one or more JSON documents, one after the other: a list of records, an object that has a list of them in a
// field such as Records, an envelope of another service around them, or a record. It is read one record at a time, however
// long it is. What is odd in a record costs no other record.
package upstreamlog

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"
)

const (
	// MaxRecord is the largest record that is kept in memory, in bytes; CloudTrail's own limit is 256 KB. A larger one is
	// passed over and reported as not understood.
	MaxRecord = 4 << 20

	// maxEnvelopes is how many envelopes a record may be in: SQS, SNS, EventBridge, and a list.
	maxEnvelopes = 5

	// maxInside is the most text that envelopes in one record may hold once it is decompressed, in bytes.
	maxInside = 16 * MaxRecord
)

// Line is one call as the upstream logged it.
type Line struct {
	At   time.Time // zero: the record does not say
	What string    // which call
	// Names are those by which the caller's credential may be known, the surest first. None: somebody without a
	// credential, or the upstream itself.
	Names       []Name
	Fingerprint []byte // SHA-256, where the record has a whole secret: surer than any name, and the secret goes nowhere

	// Unread are the fields that may have named the caller too, and what they are instead of a name.
	Unread []string
	// NotUnderstood is why the record is not one call of a caller: its form, or that it is no JSON. Nothing else is set.
	NotUnderstood string
}

// Name is one name in a record. A later one than the first may be the caller's own choice: that it is somebody's shows whose
// call it was only together with the ones before.
type Name struct {
	Is   string // what it is: "key", "source identity"
	Text string
}

// vendor is how one vendor's records are read.
type vendor struct {
	form  string   // what is expected, for whoever gave another file
	lists []string // folded names of the fields that hold a document's records
	own   []string // folded names of the fields that only a record has, never what it is in
	// inner and outer are the paths of the fields that hold a whole record or document: as an object, a list, a text, or
	// base64 of a text or of gzip. The first that does counts; of a record with own fields, only inner ones.
	inner, outer [][]string
	line         func(object) Line
	// other says why a record in a known form is not a call. known without a reason: it is passed over.
	other func(object) (why string, known bool)
}

// lines reads a file. Its errors are the file's own: where one is yielded, nothing after it can be read.
func (v vendor) lines(file io.Reader) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		n := 1
		text, err := plain(file)
		if err == nil {
			err = v.documents(bufio.NewReader(text), 0, func(l Line) error {
				n++
				if !yield(l, nil) {
					return errStopped
				}
				return nil
			})
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(Line{}, fmt.Errorf("record %d: %w", n, err))
		}
	}
}

var errStopped = errors.New("the reading was stopped")

// documents gives the line of each record to emit, whose errors end the reading.
func (v vendor) documents(text io.ByteScanner, depth int, emit func(Line) error) error {
	s := splitter{ByteScanner: text, lists: v.lists, own: v.own}
	s.record = func(f fields, why error) error {
		if why != nil {
			return emit(Line{NotUnderstood: why.Error()})
		}
		return v.record(object{fields: f, odd: new([]string)}, depth, emit)
	}
	return s.documents()
}

// record reads a record, or what is in it if it is an envelope.
func (v vendor) record(o object, depth int, emit func(Line) error) error {
	if why, known := v.other(o.aside()); known && why == "" {
		return nil
	} else if known {
		return emit(Line{NotUnderstood: why})
	}
	if inside, field := v.open(o); inside != nil {
		if depth == maxEnvelopes {
			return emit(Line{NotUnderstood: fmt.Sprintf("it is in more than %d envelopes", maxEnvelopes)})
		}
		read, err := v.inside(inside, depth+1, emit)
		switch {
		case errors.Is(err, errStopped):
			return err
		case read > 0 && err != nil:
			return emit(Line{NotUnderstood: "in " + field + ", after these: " + err.Error()})
		case read > 0 || err == nil && slices.Contains(v.lists, fold(field)): // an empty list has no calls
			return nil
		}
		*o.odd = append(*o.odd, field+" has no record in it")
	}
	l := v.line(o)
	l.Unread = *o.odd
	switch understood := l.What != "" || len(l.Names) > 0 || l.Fingerprint != nil; {
	case !understood && len(l.Unread) > 0:
		l = Line{NotUnderstood: strings.Join(l.Unread, ", ") + "; expected is " + v.form}
	case !understood:
		l = Line{NotUnderstood: "nothing of it was understood; expected is " + v.form}
	}
	return emit(l)
}

// inside reads the document in an envelope, and returns how many records it gave.
func (v vendor) inside(document []byte, depth int, emit func(Line) error) (read int, err error) {
	var text io.ByteScanner = bytes.NewReader(document)
	if isGzip(document) {
		unzipped, err := plain(bytes.NewReader(document))
		if err != nil {
			return 0, err
		}
		text = bufio.NewReader(io.LimitReader(unzipped, maxInside))
	}
	err = v.documents(text, depth, func(l Line) error {
		read++
		return emit(l)
	})
	return read, err
}

// open returns the document in a record that is an envelope, and the name of the field that has it.
func (v vendor) open(o object) (document []byte, field string) {
	paths := v.inner
	if !o.has(v.own...) {
		paths = v.outer
	}
	for _, path := range paths {
		at := o.aside()
		for _, name := range path[:len(path)-1] {
			at = at.child(name)
		}
		field = path[len(path)-1]
		if document = enveloped(at.raw(field)); document != nil {
			return document, field
		}
	}
	return nil, ""
}

// enveloped is the document that the value of a field is, or has as text or as base64; nil: it is none.
func enveloped(raw json.RawMessage) []byte {
	document := func(b []byte) bool {
		b = bytes.TrimSpace(b)
		return isGzip(b) || len(b) > 0 && (b[0] == '{' || b[0] == '[')
	}
	if document(raw) {
		return raw
	}
	var text string
	if raw == nil || json.Unmarshal(raw, &text) != nil {
		return nil
	}
	if document([]byte(text)) {
		return []byte(text)
	}
	if b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text)); err == nil && document(b) {
		return b
	}
	return nil
}

// present drops the empty names, those that came before, and whole secrets, which nobody is named by and which go nowhere.
func present(names ...Name) []Name {
	var list []Name
	seen := map[string]bool{"": true}
	for _, n := range names {
		if !seen[n.Text] && Secret(n.Text) == nil {
			list = append(list, n)
		}
		seen[n.Text] = true
	}
	return list
}
