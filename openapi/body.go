package openapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"mime"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/taskpass/taskpass/broker"
)

const hasNUL = "has a NUL character: remove it"

// readBody reads a request's body, checks what neither the validator nor the decoder checks, and puts it back with integers
// in their plain form. An operation without a body in the contract ignores what was sent.
func readBody(r *http.Request, operation *openapi3.Operation) error {
	if r.ContentLength > MaxBody {
		return tooLarge()
	}
	if operation.RequestBody == nil {
		return nil
	}
	if r.ContentLength > 0 { // before anything is read, so that a client that waits for "100 Continue" sends nothing
		if err := mediaType(r.Header); err != nil {
			return err
		}
	}
	text, err := io.ReadAll(r.Body)
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge()
	}
	if err != nil {
		return notJSON()
	}
	r.Body, r.ContentLength = http.NoBody, int64(len(text))
	if len(text) == 0 {
		return nil
	}
	if err := mediaType(r.Header); err != nil {
		return err
	}
	if !json.Valid(text) {
		return notJSON()
	}
	var schema *openapi3.Schema
	if media := operation.RequestBody.Value.GetMediaType("application/json"); media != nil {
		schema = media.Schema.Value
	}
	j := &jsonText{text: text, tokens: json.NewDecoder(bytes.NewReader(text))}
	j.tokens.UseNumber()
	if err := j.value(schema, ""); err != nil {
		return notJSON()
	}
	if len(j.faults) > 0 {
		return invalid(j.faults...)
	}
	text = append(j.plain, text[j.copied:]...)
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
	return nil
}

func notJSON() error { return invalid(broker.Fault{Pointer: "", Reason: "is not one JSON value"}) }

// mediaType refuses bodies that are not plain JSON, and settles the header on the contract's own name.
func mediaType(h http.Header) error {
	kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil || kind != "application/json" || len(h.Values("Content-Type")) != 1 {
		return broker.Errorf(broker.CodeUnsupportedMediaType, "the body's Content-Type must be application/json")
	}
	for _, coding := range h.Values("Content-Encoding") {
		if !strings.EqualFold(coding, "identity") {
			return broker.Errorf(broker.CodeUnsupportedMediaType, "the body must have no Content-Encoding")
		}
	}
	h.Set("Content-Type", kind)
	return nil
}

// jsonText walks one valid JSON value along its schema.
type jsonText struct {
	text   []byte
	tokens *json.Decoder
	plain  []byte // the text so far with integers in their plain form
	copied int64  // how much of the text is in plain
	faults []broker.Fault
}

// value reads one value. A pointer names only fields of the contract: whatever else a client wrote may be a secret.
func (j *jsonText) value(schema *openapi3.Schema, at string) error {
	token, err := j.tokens.Token()
	if err != nil {
		return err
	}
	switch token := token.(type) {
	case json.Delim:
		if token == '{' {
			err = j.object(schema, at)
		} else {
			err = j.list(schema, at)
		}
		if err != nil {
			return err
		}
		_, err = j.tokens.Token() // the closing bracket
		return err
	case json.Number:
		if schema != nil && schema.Type.Is("integer") {
			j.integer(token.String(), at)
		}
	case string:
		j.checkNUL(token, at)
	}
	return nil
}

func (j *jsonText) object(schema *openapi3.Schema, at string) error {
	seen := map[string]bool{}
	for j.tokens.More() {
		token, err := j.tokens.Token()
		if err != nil {
			return err
		}
		name, _ := token.(string)
		field, below := memberOf(schema, name), at
		if field != nil && schema.Properties[name] != nil {
			below = at + "/" + name
		}
		if seen[name] {
			j.faults = append(j.faults, broker.Fault{Pointer: below, Reason: "has a name more than once: give each name once"})
		}
		seen[name] = true
		j.checkNUL(name, at)
		if err := j.value(field, below); err != nil {
			return err
		}
	}
	return nil
}

// memberOf is the schema of an object's member; nil for one that the contract does not have.
func memberOf(schema *openapi3.Schema, name string) *openapi3.Schema {
	switch {
	case schema == nil:
	case schema.Properties[name] != nil:
		return schema.Properties[name].Value
	case schema.AdditionalProperties.Schema != nil:
		return schema.AdditionalProperties.Schema.Value
	}
	return nil
}

func (j *jsonText) list(schema *openapi3.Schema, at string) error {
	var item *openapi3.Schema
	if schema != nil && schema.Items != nil {
		item = schema.Items.Value
	}
	for i := 0; j.tokens.More(); i++ {
		below := at
		if item != nil {
			below = at + "/" + strconv.Itoa(i)
		}
		if err := j.value(item, below); err != nil {
			return err
		}
	}
	return nil
}

func (j *jsonText) checkNUL(s, at string) {
	if strings.Contains(s, "\x00") {
		j.faults = append(j.faults, broker.Fault{Pointer: at, Reason: hasNUL})
	}
}

// numberForm bounds what is worked out exactly; a longer number is no integer of the contract.
var numberForm = regexp.MustCompile(`^-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?$`)

// integer writes the number that was just read as JSON libraries of every language read an integer: Python's
// timedelta.total_seconds() gives 900.0. The validator compares floating-point numbers, so what is nearly whole is refused
// here.
func (j *jsonText) integer(literal, at string) {
	if !strings.ContainsAny(literal, ".eE") {
		return
	}
	n, ok := new(big.Rat), false
	if numberForm.MatchString(literal) {
		n, ok = n.SetString(literal)
	}
	if !ok || !n.IsInt() || !n.Num().IsInt64() {
		j.faults = append(j.faults, broker.Fault{Pointer: at, Reason: "is not a whole number in the contract's range"})
		return
	}
	end := j.tokens.InputOffset()
	j.plain = append(j.plain, j.text[j.copied:end-int64(len(literal))]...)
	j.plain = append(j.plain, n.Num().String()...)
	j.copied = end
}
