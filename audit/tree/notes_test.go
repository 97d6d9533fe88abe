package tree_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/tree"
)

// A file with a checkpoint for each of 9000 events is read beside them: few signatures are verified, and yet no note in it
// that contradicts the others passes, wherever it stands and whatever stands around it.
func TestNotes(t *testing.T) {
	t.Parallel()
	const n = 9000
	l := newLog(t, n)
	s, public := newKey(t)
	stranger, _ := newKey(t)
	keys, err := tree.ParseKeys(public)
	if err != nil {
		t.Fatal(err)
	}
	notes := make([]string, n+1)
	for i := int64(1); i <= n; i++ {
		notes[i] = sign(t, s, i, l.root(t, i)).Note
	}
	other := tlog.RecordHash([]byte("another log"))
	fork := func(size int64) string { return sign(t, s, size, other).Note }
	whole := strings.Join(notes, "\n")
	for what, c := range map[string]struct {
		text   string
		want   string // the beginning of the first fault; "" for none
		broken int
	}{
		"as it is":                       {whole, "", 0},
		"a fork in the place of one":     {strings.Replace(whole, notes[3000], fork(3000), 1), "forked: event 2999", 0},
		"a fork behind one":              {strings.Replace(whole, notes[3000], notes[3000]+"\n"+fork(3000), 1), "forked: event 2999", 0},
		"a fork behind them all":         {whole + "\n" + fork(2000), "forked: event 1999", 0},
		"a fork of the last":             {whole + "\n" + fork(n), "forked: event 8999", 0},
		"a fork in the place of the end": {strings.Replace(whole, notes[n], fork(n), 1), "rewritten: events 8999 to 8999", 0},
		"one that is larger":             {whole + "\n" + fork(n+5), "truncated: events 9000 to 9004", 0},
		"a larger one, and a torn one":   {whole + "\n" + fork(n+5) + "\n" + notes[n][:len(notes[n])-20] + "\n\n", "truncated: events 9000 to 9004", 1},
		"a larger one, and a stranger's": {whole + "\n" + fork(n+5) + "\n" + sign(t, stranger, n+9, other).Note, "truncated: events 9000 to 9004", 1},
		"a fork behind a stranger's":     {sign(t, stranger, 1<<40, other).Note + strings.Replace(whole, notes[3000], fork(3000), 1), "forked: event 2999", 1},
		"a fork behind one nearby":       {strings.Replace(whole, notes[3000], sign(t, stranger, 3500, other).Note+fork(3000), 1), "forked: event 2999", 0},
		"a stranger's among them":        {strings.Replace(whole, notes[3000], sign(t, stranger, 3000, other).Note, 1), "", 0},
		"more than a note can have":      {strings.Replace(whole, notes[3000], strings.Repeat("x", 1<<20)+"\n\n"+fork(3000), 1), "forked: event 2999", 1},
	} {
		file, err := keys.ReadNotes(func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(c.text)), nil })
		if err != nil {
			t.Fatal(err)
		}
		h, lines := l.export(0, n)
		own := []tree.Checkpoint{sign(t, s, n, l.root(t, n))}
		if strings.HasPrefix(c.want, "rewritten") {
			own = nil
		}
		report, err := tree.Verify(h, all(lines), own, file)
		first, _ := report.First()
		if err != nil || report.OK() != (c.want == "") || c.want != "" && !strings.HasPrefix(first.String(), c.want) {
			t.Errorf("%s: %v, %v", what, report.Faults, err)
		}
		if file.Broken < c.broken {
			t.Errorf("%s: %d pieces are broken", what, file.Broken)
		}
		if what == "as it is" && len(file.Kept) > 5 {
			t.Errorf("%d signatures are verified", len(file.Kept))
		}
	}
}

// A rewritten record is named as narrowly as the file allows, and not as the few that were verified at once do; a file that
// cannot be read to its end is an error.
func TestNotesNarrowDown(t *testing.T) {
	t.Parallel()
	const n = 3000
	l, rewritten := newLog(t, n), newLog(t, n)
	s, public := newKey(t)
	keys, err := tree.ParseKeys(public)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for i := int64(10); i <= n; i += 10 {
		text.WriteString(sign(t, s, i, l.root(t, i)).Note + "\n")
	}
	file, err := keys.ReadNotes(func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text.String())), nil })
	if err != nil {
		t.Fatal(err)
	}
	h, lines := rewritten.export(0, n)
	leaf := tlog.RecordHash([]byte("{}"))
	lines[1511].Body, lines[1511].Leaf = []byte("{}"), &leaf
	report, err := tree.Verify(h, all(lines), nil, file)
	narrow := false
	for _, f := range report.Faults {
		narrow = narrow || f.What == tree.Rewritten && f.To-f.Index == 10
	}
	if err != nil || report.OK() || !narrow {
		t.Errorf("%v, %v", report.Faults, err)
	}
	broken := errors.New("the disk is broken")
	if _, err := keys.ReadNotes(func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader(text.String()), failing{broken})), nil
	}); !errors.Is(err, broken) {
		t.Errorf("a broken disk: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
