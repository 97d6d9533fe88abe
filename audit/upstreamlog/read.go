// Package upstreamlog reads what upstreams write of the calls that they got: CloudTrail's records, Google's Cloud Audit
// Logs and Stripe's request log. It decides which names in a line may be a credential's, and refuses to know whose they are: package audit does.
//
// A file is one or more JSON documents, one after the other: a list of records, an object that has them in Records, entries
// or Events, or a record. It is read one record at a time, however long it is; a record of more than MaxRecord bytes is an
// error.
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
	Names       []Name
	Fingerprint []byte // SHA-256, where the line bears a whole secret: surer than any name, and the secret goes nowhere
}

// Name is one name in a line. A later one than the first may be the caller's own choice: that it is somebody's shows whose
// it was only together with the ones before.
type Name struct {
	Is   string // what it is: "key", "source identity"
	Text string
}

// decode reads the records of a file, gzipped or not. A record of which nothing is understood is an error that says what
// form is expected: it is in another log's form, and to call it somebody else's would hide whose it is.
func decode[T any](r io.Reader, form string, line func(T) Line) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		n, stopped := 1, false
		err := documents(r, func(raw json.RawMessage) error {
			var v T
			if json.Unmarshal(raw, &v) != nil {
				return errNotJSON // its error may quote the record
			}
			l := line(v)
			if l.At.IsZero() && l.What == "" && len(l.Names) == 0 && l.Fingerprint == nil {
				return fmt.Errorf("nothing of it was understood; expected is %s", form)
			}
			n++
			if stopped = !yield(l, nil); stopped {
				return errStopped
			}
			return nil
		})
		if err != nil && !stopped {
			yield(Line{}, fmt.Errorf("record %d: %w", n, err))
		}
	}
}

var (
	errNotJSON = errors.New("it is not the JSON that was expected")
	errTooLong = fmt.Errorf("it has more than %d bytes", MaxRecord)
	errStopped = errors.New("nobody reads on")
)

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
func present(names ...Name) []Name {
	var list []Name
	seen := map[string]bool{"": true}
	for _, n := range names {
		if !seen[n.Text] {
			list = append(list, n)
		}
		seen[n.Text] = true
	}
	return list
}
