package upstreamlog

import (
	"encoding/json"
	"errors"
	"io"
	"slices"
)

// lists are the fields that hold a document's records: what CloudTrail delivers, what Google's entries.list answers, and
// what `aws cloudtrail lookup-events` prints.
var lists = []string{"Records", "entries", "Events"}

// reading goes through a file's documents, and holds one record at a time.
type reading struct {
	*json.Decoder
	bound  *bounded
	record func(json.RawMessage) error
}

// documents gives each record of all documents to record, up to its first error.
func documents(file io.Reader, record func(json.RawMessage) error) error {
	plain, err := unzipped(file)
	if err != nil {
		return err
	}
	r := reading{bound: &bounded{r: plain}, record: record}
	r.Decoder = json.NewDecoder(r.bound)
	for {
		r.bound.n = 0
		start, err := r.Token()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return known(err)
		case start == json.Delim('['):
			err = r.list()
		case start == json.Delim('{'):
			err = r.object()
		default:
			err = errNotJSON
		}
		if err != nil {
			return err
		}
	}
}

// list reads the records of a list that is open, and its end: a file that was cut off has none.
func (r *reading) list() error {
	for r.More() {
		raw, err := r.value()
		if err != nil {
			return err
		}
		if err := r.record(raw); err != nil {
			return err
		}
		r.bound.n = 0
	}
	return r.end()
}

// object reads an object that is open, and its end. Whether it is a record shows only when no field of it was a list of
// them: so it is kept until then, which the bound on a record limits.
func (r *reading) object() error {
	fields, listed := map[string]json.RawMessage{}, false
	for r.More() {
		key, err := r.Token()
		if err != nil {
			return known(err)
		}
		name, _ := key.(string)
		if slices.Contains(lists, name) {
			listed = true
			if start, err := r.Token(); err != nil || start != json.Delim('[') {
				return known(err)
			}
			if err := r.list(); err != nil {
				return err
			}
			continue
		}
		raw, err := r.value()
		if err != nil {
			return err
		}
		if !listed {
			fields[name] = raw
		}
	}
	if err := r.end(); err != nil || listed {
		return err
	}
	raw, err := json.Marshal(fields)
	if err != nil {
		return errNotJSON
	}
	return r.record(raw)
}

func (r *reading) value() (raw json.RawMessage, err error) {
	if err := r.Decode(&raw); err != nil {
		return nil, known(err)
	}
	return raw, nil
}

func (r *reading) end() error {
	if _, err := r.Token(); err != nil {
		return known(err)
	}
	return nil
}

// known keeps an error from quoting the record.
func known(err error) error {
	if errors.Is(err, errTooLong) {
		return errTooLong
	}
	return errNotJSON
}
