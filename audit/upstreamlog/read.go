// Package upstreamlog reads what upstreams write of the calls that they got: CloudTrail's records, Google's Cloud Audit
// Logs and Stripe's request log. It decides which names in a line may be a credential's, and refuses to know whose they are: package audit does.
//
// A file is read one line or record at a time, however long it is; a record of more than MaxRecord bytes is an error.
package upstreamlog

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"regexp"
	"time"
)

// MaxRecord is the largest record, in bytes; CloudTrail's own limit is 256 KB.
const MaxRecord = 4 << 20

// Line is one call as the upstream logged it.
type Line struct {
	At   time.Time // zero: the line does not say
	What string    // which call
	// Names are those by which the caller's credential may be known, the surest first. None: somebody without a
	// credential, or the upstream itself.
	Names       []string
	Fingerprint []byte // SHA-256, where the line bears a whole secret: it is looked for by this, and goes nowhere
}

// decode reads JSON values one after another, or the elements of a list or of {"Records":[…]}, gzipped or not.
func decode[T any](r io.Reader, line func(T) Line) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		fail := func(n int, err error) { yield(Line{}, fmt.Errorf("record %d: %w", n, err)) }
		plain, err := unzipped(r)
		if err != nil {
			fail(1, err)
			return
		}
		bound := &bounded{r: plain}
		source := bufio.NewReaderSize(bound, 64<<10)
		before, err := opened(source)
		if err != nil {
			fail(1, err)
			return
		}
		d := json.NewDecoder(source)
		inside := before > 0
		for range before {
			if _, err := d.Token(); err != nil {
				fail(1, errNotJSON)
				return
			}
		}
		for n := 1; ; n++ {
			if inside && !d.More() {
				if _, err := d.Token(); err != nil { // a file that was cut off has no end
					fail(n, errNotJSON)
				}
				return
			}
			var v T
			switch err := d.Decode(&v); {
			case errors.Is(err, io.EOF) && !inside:
				return
			case errors.Is(err, errTooLong):
				fail(n, errTooLong)
				return
			case err != nil:
				fail(n, errNotJSON) // err may quote the record
				return
			}
			bound.n = 0
			if !yield(line(v), nil) {
				return
			}
		}
	}
}

var (
	errNotJSON = errors.New("it is not the JSON that was expected")
	errTooLong = fmt.Errorf("it has more than %d bytes", MaxRecord)
	records    = regexp.MustCompile(`^\s*\{\s*"Records"\s*:\s*\[`)
)

// opened counts the tokens before the first of several records in one value; 0: each record is a value by itself.
func opened(r *bufio.Reader) (tokens int, err error) {
	head, err := r.Peek(512)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return 0, err
	case records.Match(head):
		return len([]string{"{", "Records", "["}), nil
	case bytes.HasPrefix(bytes.TrimLeft(head, " \t\r\n"), []byte("[")):
		return 1, nil
	}
	return 0, nil
}

func unzipped(r io.Reader) (io.Reader, error) {
	b := bufio.NewReader(r)
	if head, _ := b.Peek(2); bytes.Equal(head, []byte{0x1f, 0x8b}) {
		return gzip.NewReader(b)
	}
	return b, nil
}

// bounded fails when more was read since n was last set to zero than a record may have.
type bounded struct {
	r io.Reader
	n int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.n > MaxRecord {
		return 0, errTooLong
	}
	n, err := b.r.Read(p)
	b.n += n
	return n, err
}

// present drops the empty names, and those that came before.
func present(names ...string) []string {
	var list []string
	seen := map[string]bool{"": true}
	for _, n := range names {
		if !seen[n] {
			list = append(list, n)
		}
		seen[n] = true
	}
	return list
}
