package iampolicy

import (
	"strings"
)

// truth is what one part of a statement says of one request. Unsure is for what
// this package does not understand; see statement.applies for where it goes.
type truth int

const (
	no truth = iota
	unsure
	yes
)

// A pattern is literal text, the wildcards * (any run, also none) and ? (one
// character), and policy variables that a request fills in. What a variable brings
// is literal: a star in a tag's value is a star.
//
// Source: IAM User Guide, "IAM policy elements: Variables and tags".
type pattern struct {
	tokens []token
	fold   bool
}

type tokenKind int

const (
	literal tokenKind = iota
	anyRun
	anyOne
	variable
)

type token struct {
	kind     tokenKind
	text     string // literal: the text; variable: its condition key
	fallback *string
}

// patternMode says what is special in a pattern's text.
type patternMode struct {
	exact     bool // * and ? are plain text (StringEquals)
	variables bool // ${key} and ${key, 'default'} are filled in; ${*} ${?} ${$} are those characters
	fold      bool // letters match in either case
}

func compile(text string, mode patternMode) pattern {
	p := pattern{fold: mode.fold}
	var run strings.Builder
	flush := func() {
		if run.Len() > 0 {
			p.tokens = append(p.tokens, token{kind: literal, text: run.String()})
			run.Reset()
		}
	}
	for i := 0; i < len(text); i++ {
		c := text[i]
		end := -1
		if mode.variables && strings.HasPrefix(text[i:], "${") {
			end = strings.IndexByte(text[i:], '}')
		}
		switch {
		case end > 0:
			name := text[i+2 : i+end]
			i += end
			if name == "*" || name == "?" || name == "$" {
				run.WriteString(name)
				continue
			}
			flush()
			p.tokens = append(p.tokens, variableToken(name))
		case !mode.exact && c == '*':
			flush()
			p.tokens = append(p.tokens, token{kind: anyRun})
		case !mode.exact && c == '?':
			flush()
			p.tokens = append(p.tokens, token{kind: anyOne})
		default:
			run.WriteByte(c)
		}
	}
	flush()
	return p
}

// variableToken reads the inside of ${…}: a key, and perhaps a quoted default.
func variableToken(inside string) token {
	key, rest, _ := strings.Cut(inside, ",")
	t := token{kind: variable, text: strings.ToLower(strings.TrimSpace(key))}
	rest = strings.TrimSpace(rest)
	if len(rest) >= 2 && rest[0] == '\'' && rest[len(rest)-1] == '\'' {
		value := rest[1 : len(rest)-1]
		t.fallback = &value
	}
	return t
}

// match says whether s fits. A variable that the request has no value for fits
// nothing, which is AWS's rule; under a Not… element that would widen what the
// statement covers, so the caller learns of it (absent) and treats it as unsure.
func (p pattern) match(s string, req Request) (result truth, absent bool) {
	tokens := make([]token, 0, len(p.tokens))
	for _, t := range p.tokens {
		if t.kind == variable {
			value, state := req.lookup(t.text)
			switch {
			case state == keyPresent:
			case state == keyUnknown:
				return unsure, false
			case t.fallback != nil:
				value = *t.fallback
			default:
				return no, true
			}
			t = token{kind: literal, text: value}
		}
		tokens = append(tokens, t)
	}
	if p.fold {
		s = strings.ToLower(s)
	}
	if glob(tokens, s, p.fold) {
		return yes, false
	}
	return no, false
}

// glob is the usual greedy matcher with one point to fall back to, so that its
// time is at worst len(tokens)·len(s) and a hostile pattern cannot blow it up.
func glob(tokens []token, s string, fold bool) bool {
	units := make([]unit, 0, len(tokens)*8)
	for _, t := range tokens {
		if t.kind != literal {
			units = append(units, unit{kind: t.kind})
			continue
		}
		text := t.text
		if fold {
			text = strings.ToLower(text)
		}
		for _, r := range text {
			units = append(units, unit{kind: literal, r: r})
		}
	}
	runes := []rune(s)
	u, i, star, mark := 0, 0, -1, 0
	for i < len(runes) {
		switch {
		case u < len(units) && units[u].kind == anyRun:
			star, mark = u, i
			u++
		case u < len(units) && (units[u].kind == anyOne || units[u].r == runes[i]):
			u++
			i++
		case star >= 0:
			mark++
			u, i = star+1, mark
		default:
			return false
		}
	}
	for u < len(units) && units[u].kind == anyRun {
		u++
	}
	return u == len(units)
}

type unit struct {
	kind tokenKind
	r    rune
}

// match is the OR of the patterns, or its opposite for a Not… element.
func (ps patterns) match(s string, req Request) truth {
	result, anyAbsent := no, false
	for _, p := range ps.any {
		r, absent := p.match(s, req)
		result = max(result, r)
		anyAbsent = anyAbsent || absent
	}
	if !ps.negated {
		return result
	}
	if result == no && anyAbsent {
		return unsure
	}
	return yes - result
}
