package audit_test

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"

	"github.com/taskpass/taskpass/audit"
)

func TestVisible(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "", "plain text, 日本語, ðé, 👍 – “so”": "plain text, 日本語, ðé, 👍 – “so”",
		"soft\u00adhyphen":          `soft\u00adhyphen`,
		"filler\u3164\uffa0\u115f":  `filler\u3164\uffa0\u115f`,
		"selector\ufe0f\U000e0101":  `selector\ufe0f\udb40\udd01`,
		"tag\U000e0041":             `tag\udb40\udc41`,
		"turned\u202e\u2066":        `turned\u202e\u2066`,
		"width\u200b\u2060\ufeff":   `width\u200b\u2060\ufeff`,
		"joiner\u034f":              `joiner\u034f`,
		"private\ue000\U000f0000":   `private\ue000\udb80\udc00`,
		"unassigned\u0378":          `unassigned\u0378`,
		"no character\ufdd0\uffff":  `no character\ufdd0\uffff`,
		"lines\u2028\u2029":         `lines\u2028\u2029`,
		"spaces\u00a0\u2003\u3000":  `spaces\u00a0\u2003\u3000`,
		"blank\u2800":               `blank\u2800`,
		"null\U0001d159\U00016fe4":  `null\ud834\udd59\ud81b\udfe4`,
		"control\x1b[31m\x7f\u009b": `control\u001b[31m\u007f\u009b`,
		"broken\tlines\r\n":         "broken\tlines\r\n",
	} {
		if got := audit.Visible(text); got != want {
			t.Errorf("%+q: %s", text, got)
		}
		if got := audit.VisibleLine(text); strings.ContainsFunc(got, unicode.IsControl) {
			t.Errorf("%+q on one line: %q", text, got)
		}
	}
}

// Whatever the character, JSON that is written out has the same value, and nothing in it is unseen.
func TestVisibleIsTheSameJSON(t *testing.T) {
	t.Parallel()
	for r := rune(0); r <= unicode.MaxRune; r++ {
		// Beyond these are ideographs, private use and nothing, of which every 97th is tried.
		dense := r < 0x3400 || r >= 0xf900 && r < 0x20000 || r>>12 == 0xe0
		if !dense && r%97 != 0 || r >= 0xd800 && r < 0xe000 {
			continue
		}
		text, err := json.Marshal(string(r))
		if err != nil {
			t.Fatal(err)
		}
		line := audit.VisibleLine(string(text))
		var back string
		if err := json.Unmarshal([]byte(line), &back); err != nil || back != string(r) {
			t.Fatalf("%U: %s: %+q, %v", r, line, back, err)
		}
		for _, shown := range line {
			if !unicode.IsGraphic(shown) || unicode.In(shown, unicode.Cf, unicode.Zl, unicode.Zp) || unicode.IsSpace(shown) && shown != ' ' {
				t.Fatalf("%U stays as it is", r)
			}
		}
	}
}

func TestCSVShowsWhatNobodySees(t *testing.T) {
	t.Parallel()
	if got := audit.CSVText("=1+\u202e1"); got != `'=1+\u202e1` {
		t.Error(got)
	}
	if got := audit.CSVText("\u200b=1"); got != `\u200b=1` {
		t.Error(got)
	}
}
