package upstreamlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

var (
	errNotJSON = errors.New("it is not the JSON that was expected")
	errEnds    = fmt.Errorf("%w: the file ends in the middle of it", errNotJSON)
	errTooLong = fmt.Errorf("it has more than %d bytes", MaxRecord)
)

// splitter finds the records of JSON documents, and keeps at most one of them in memory. It goes by brackets and strings
// only, so what is wrong inside a value (a number like NaN, a control character, 20,000 nested lists, more than MaxRecord
// bytes) spoils that value and nothing after it.
type splitter struct {
	io.ByteScanner
	lists []string // folded names of the fields that hold a document's records
	own   []string // folded names of the fields by which an object with such a list is a record nonetheless
	// record gets each record. why: it is no object, or is too long. An error ends the reading.
	record func(f fields, why error) error
}

// fields are an object's, by their folded names. Of two with the same name the last counts.
type fields map[string]json.RawMessage

// fold makes one name of the ways to write it: accessKeyId, AccessKeyId, accesskeyid (Athena), access_key_id (protobuf).
func fold(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "")) }

// documents reads to the end of the input, or to the first fault of the documents' own structure.
func (s *splitter) documents() error {
	for {
		c, err := s.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case c == '[':
			err = s.list()
		case c == '{':
			err = s.document()
		default:
			return errNotJSON
		}
		if err != nil {
			return err
		}
	}
}

// list reads the records of a list, and its end: a file that was cut off has none.
func (s *splitter) list() error {
	return s.items('[', ']', func() error {
		raw, err := s.value()
		if err != nil && !errors.Is(err, errTooLong) {
			return err
		}
		var f fields
		if err == nil {
			f, err = fieldsOf(raw)
		}
		return s.record(f, err)
	})
}

// document reads an object. Whether it is a record itself shows only at its end, so its fields are kept until then.
func (s *splitter) document() error {
	f, why, listed, size := fields{}, error(nil), false, 0
	err := s.items('{', '}', func() error {
		name, c, err := s.name()
		if err != nil {
			return err
		}
		if c == '[' && slices.Contains(s.lists, name) {
			listed = true
			return s.list()
		}
		raw, err := s.value()
		if size += len(raw) + len(name); errors.Is(err, errTooLong) || size > MaxRecord {
			f, why, err = fields{}, errTooLong, nil
		}
		if why == nil {
			f[name] = raw
		}
		return err
	})
	if err != nil || listed && !(object{fields: f}).has(s.own...) {
		return err
	}
	return s.record(f, why)
}

// fieldsOf splits an object.
func fieldsOf(raw []byte) (fields, error) {
	s := splitter{ByteScanner: bytes.NewReader(raw)}
	if c, err := s.next(); err != nil || c != '{' {
		return nil, errNotJSON
	}
	f := fields{}
	err := s.items('{', '}', func() error {
		name, _, err := s.name()
		if err != nil {
			return err
		}
		f[name], err = s.value()
		return err
	})
	if err != nil {
		return nil, errNotJSON
	}
	return f, nil
}

// items calls item at each of the items that commas separate between two brackets.
func (s *splitter) items(opens, closes byte, item func() error) error {
	if _, err := s.expect(opens); err != nil {
		return err
	}
	for {
		c, err := s.next()
		if err == nil && c != closes {
			if err = item(); err == nil {
				c, err = s.expect(closes, ',')
			}
		} else if err == nil {
			_, err = s.ReadByte()
		}
		if err != nil || c == closes {
			return ends(err)
		}
	}
}

// name reads the name of a field, folded, and the colon behind it, and looks at the first byte of its value.
func (s *splitter) name() (folded string, c byte, err error) {
	raw, err := s.value()
	if err != nil && !errors.Is(err, errTooLong) {
		return "", 0, err
	}
	var name string
	if err == nil && raw[0] != '"' {
		return "", 0, errNotJSON
	}
	_ = json.Unmarshal(raw, &name) // one that is no proper text, or too long, is not a name we look for
	if _, err = s.expect(':'); err == nil {
		c, err = s.next()
	}
	return fold(name), c, ends(err)
}

// value reads one value to its end. Of one that is too long nothing is returned; it has been passed over.
func (s *splitter) value() (raw json.RawMessage, err error) {
	depth, quoted, escaped := 0, false, false
	for n := 0; ; n++ {
		c, err := s.ReadByte()
		if err != nil {
			return nil, ends(err)
		}
		if !quoted && depth == 0 && (space(c) || strings.IndexByte(",:]}", c) >= 0) {
			if n == 0 {
				return nil, errNotJSON
			}
			return kept(raw, n), errors.Join(s.UnreadByte(), tooLong(n))
		}
		if n < MaxRecord {
			raw = append(raw, c)
		}
		switch {
		case escaped:
			escaped = false
		case quoted:
			escaped, quoted = c == '\\', c != '"'
		case c == '"':
			quoted = true
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			depth--
		}
		if depth == 0 && !quoted && strings.IndexByte(`"}]`, c) >= 0 {
			return kept(raw, n+1), tooLong(n + 1)
		}
	}
}

func kept(raw []byte, n int) []byte {
	if n > MaxRecord {
		return nil
	}
	return raw
}

func tooLong(n int) error {
	if n > MaxRecord {
		return errTooLong
	}
	return nil
}

// next looks at the next byte that means something. NUL bytes that pad a file, the byte order mark of a file that was put
// behind another one, and RFC 7464's record separator mean as little as a space.
func (s *splitter) next() (byte, error) {
	for {
		c, err := s.ReadByte()
		if err != nil {
			return 0, err
		}
		if !space(c) && strings.IndexByte("\x00\x1e\xef\xbb\xbf", c) < 0 {
			return c, s.UnreadByte()
		}
	}
}

// expect reads the next byte that means something: one of these.
func (s *splitter) expect(any ...byte) (byte, error) {
	c, err := s.next()
	if err != nil {
		return 0, ends(err)
	}
	if !slices.Contains(any, c) {
		return 0, errNotJSON
	}
	_, err = s.ReadByte()
	return c, err
}

func space(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// ends is for an end where none may be.
func ends(err error) error {
	if errors.Is(err, io.EOF) {
		return errEnds
	}
	return err
}
