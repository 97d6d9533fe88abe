package audit

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
)

// Visible writes out each character that nobody sees, or that changes how the text beside it is shown, as JSON would escape
// it (\u00ad): soft hyphens, fillers, variation selectors, tags, marks of direction, spaces other than the plain one, control
// characters, and what Unicode has not assigned or left to private use. Text that somebody else wrote can then not look
// like other text. Line breaks and tabs stay: see VisibleLine. JSON stays JSON of the same value.
func Visible(text string) string {
	return shown(text, func(r rune) bool { return r == '\n' || r == '\r' || r == '\t' })
}

// VisibleLine is Visible for what must stay on one line.
func VisibleLine(text string) string { return shown(text, func(rune) bool { return false }) }

func shown(text string, keep func(rune) bool) string {
	if strings.IndexFunc(text, unseen) < 0 {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		switch high, low := utf16.EncodeRune(r); {
		case !unseen(r) || keep(r):
			b.WriteRune(r)
		case high != unicode.ReplacementChar:
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// unseen goes by Unicode's properties: not a graphic character and the plain space, or to be ignored by default
// (Default_Ignorable_Code_Point is made of the two properties here and of format characters, which are not graphic).
// Three characters look like nothing and have no property that says so: a Braille pattern without dots, the Khitan filler,
// and music's null notehead.
func unseen(r rune) bool {
	return r != ' ' && (!unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S) ||
		unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) ||
		r == '\u2800' || r == '\U00016fe4' || r == '\U0001d159')
}
