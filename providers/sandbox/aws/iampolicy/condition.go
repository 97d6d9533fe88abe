package iampolicy

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// A condition is one key under one operator: its values are ORed, and a negated
// operator asks that none fits. A statement ANDs its conditions.
//
// Understood: StringEquals, StringLike, their Not… and StringEqualsIgnoreCase, the
// Date… family, Bool, Null, each also with IfExists (save Null). Anything else,
// ForAnyValue and ForAllValues with it, is unsure.
//
// Source: IAM User Guide, "IAM JSON policy elements: Condition operators" and
// "Creating a condition with multiple keys or values".
type condition struct {
	operator string
	ifExists bool
	key      string
	values   []string
	patterns []pattern // the values, compiled, for a string operator
}

type operatorKind int

const (
	unknownOperator operatorKind = iota
	stringOperator
	dateOperator
	boolOperator
	nullOperator
)

type operator struct {
	kind    operatorKind
	negated bool
	mode    patternMode                // string
	date    func(now, then int64) bool // date, in seconds or finer; both Unix nanoseconds
}

// operators are named in lower case: AWS ignores the case of an operator's name.
var operators = map[string]operator{
	"stringequals":              {kind: stringOperator, mode: patternMode{exact: true}},
	"stringnotequals":           {kind: stringOperator, mode: patternMode{exact: true}, negated: true},
	"stringequalsignorecase":    {kind: stringOperator, mode: patternMode{exact: true, fold: true}},
	"stringnotequalsignorecase": {kind: stringOperator, mode: patternMode{exact: true, fold: true}, negated: true},
	"stringlike":                {kind: stringOperator},
	"stringnotlike":             {kind: stringOperator, negated: true},
	"dateequals":                {kind: dateOperator, date: func(a, b int64) bool { return a == b }},
	"datenotequals":             {kind: dateOperator, date: func(a, b int64) bool { return a == b }, negated: true},
	"datelessthan":              {kind: dateOperator, date: func(a, b int64) bool { return a < b }},
	"datelessthanequals":        {kind: dateOperator, date: func(a, b int64) bool { return a <= b }},
	"dategreaterthan":           {kind: dateOperator, date: func(a, b int64) bool { return a > b }},
	"dategreaterthanequals":     {kind: dateOperator, date: func(a, b int64) bool { return a >= b }},
	"bool":                      {kind: boolOperator},
	"null":                      {kind: nullOperator},
}

func parseConditions(raw json.RawMessage, variables bool) ([]condition, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	byOperator, err := object(raw)
	if err != nil {
		return nil, err
	}
	var out []condition
	for name, raw := range byOperator {
		keys, err := object(raw)
		if err != nil {
			return nil, err
		}
		for key, raw := range keys {
			values, err := scalars(raw)
			if err != nil {
				return nil, err
			}
			out = append(out, newCondition(name, key, values, variables))
		}
	}
	return out, nil
}

func newCondition(name, key string, values []string, variables bool) condition {
	c := condition{operator: strings.ToLower(name), key: strings.ToLower(key), values: values}
	if base, ok := strings.CutSuffix(c.operator, "ifexists"); ok && base != "null" {
		c.operator, c.ifExists = base, true
	}
	if op := operators[c.operator]; op.kind == stringOperator {
		mode := op.mode
		mode.variables = variables
		for _, v := range values {
			c.patterns = append(c.patterns, compile(v, mode))
		}
	}
	return c
}

func (c *condition) match(req Request) truth {
	op := operators[c.operator]
	if op.kind == unknownOperator {
		return unsure
	}
	value, state := req.lookup(c.key)
	switch {
	case state == keyUnknown:
		return unsure
	case op.kind == nullOperator:
		return c.matchNull(state == keyAbsent)
	case state == keyAbsent && c.ifExists:
		return yes
	case state == keyAbsent:
		// "If the key is not present … the values do not match"; a negated operator is
		// then true.
		return truthOf(op.negated)
	}
	switch op.kind {
	case stringOperator:
		return patterns{negated: op.negated, any: c.patterns}.match(value, req)
	case dateOperator:
		return c.matchDate(op, value, req)
	default:
		return c.matchBool(value)
	}
}

func (c *condition) matchNull(absent bool) truth {
	result := no
	for _, v := range c.values {
		want, err := strconv.ParseBool(strings.ToLower(v))
		if err != nil {
			return unsure
		}
		result = max(result, truthOf(want == absent))
	}
	return result
}

func (c *condition) matchBool(value string) truth {
	result := no
	for _, v := range c.values {
		if !strings.EqualFold(v, "true") && !strings.EqualFold(v, "false") {
			return unsure
		}
		result = max(result, truthOf(strings.EqualFold(v, value)))
	}
	return result
}

// matchDate compares at full precision for aws:CurrentTime, so that a session ends
// at the instant its policy names.
func (c *condition) matchDate(op operator, value string, req Request) truth {
	have, ok := parseDate(value)
	if c.key == "aws:currenttime" {
		have, ok = req.Now, true
	}
	if !ok {
		return unsure
	}
	result := no
	for _, v := range c.values {
		then, ok := parseDate(v)
		if !ok {
			return unsure
		}
		result = max(result, truthOf(op.date(have.UnixNano(), then.UnixNano())))
	}
	if op.negated {
		return yes - result
	}
	return result
}

// parseDate reads the W3C profile of ISO 8601, or seconds since 1970: the two forms
// that IAM takes. Years outside 1678-2261 do not fit in nanoseconds: not a date here.
func parseDate(s string) (time.Time, bool) {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04Z07:00", "2006-01-02"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, t.Year() > 1678 && t.Year() < 2262
		}
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && n >= 0 && n < 1<<33 {
		return time.Unix(n, 0), true
	}
	return time.Time{}, false
}

// scalars reads a condition's values; JSON true and 5 stand for "true" and "5".
func scalars(raw json.RawMessage) ([]string, error) {
	raws, err := list(raw)
	if err != nil {
		return nil, err
	}
	out := make([]string, len(raws))
	for i, r := range raws {
		switch r[0] {
		case '"':
			if json.Unmarshal(r, &out[i]) != nil {
				return nil, malformed("Syntax errors in policy.")
			}
		case '{', '[', 'n':
			return nil, malformed("Syntax errors in policy.")
		default:
			out[i] = string(r)
		}
	}
	return out, nil
}

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}
