package tree_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/taskpass/taskpass/audit/tree"
)

// logOf is a log of n made-up events, with all of tlog's hashes.
type logOf struct {
	bodies [][]byte
	stored []tlog.Hash
}

func newLog(t testing.TB, n int) *logOf {
	t.Helper()
	l := &logOf{}
	for i := range n {
		body := fmt.Appendf(nil, `{"id":"evt_%d","at":"2026-03-01T12:00:00.000000Z"}`, i)
		hashes, err := tlog.StoredHashes(int64(i), body, l)
		if err != nil {
			t.Fatal(err)
		}
		l.bodies, l.stored = append(l.bodies, body), append(l.stored, hashes...)
	}
	return l
}

func (l *logOf) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	list := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		list[i] = l.stored[index]
	}
	return list, nil
}

func (l *logOf) root(t testing.TB, n int64) tlog.Hash {
	t.Helper()
	root, err := tlog.TreeHash(n, l)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func (l *logOf) nodes(from, to int64) (list []tlog.Hash) {
	for _, n := range tree.Nodes(from, to) {
		list = append(list, l.stored[n.Index()])
	}
	return list
}

// export is that of [from, to), of a tree of all events.
func (l *logOf) export(from, to int64) (tree.Header, []tree.Line) {
	size := int64(len(l.bodies))
	h := tree.Header{Origin: origin, From: from, To: to, Size: size, Left: l.nodes(0, from), Right: l.nodes(to, size)}
	var lines []tree.Line
	for i := from; i < to; i++ {
		leaf := l.stored[tlog.StoredHashIndex(0, i)]
		lines = append(lines, tree.Line{Index: i, ID: fmt.Sprintf("evt_%d", i), Leaf: &leaf, Body: l.bodies[i]})
		if n := (i+1)/tree.Width - 1; (i+1)%tree.Width == 0 && n*tree.Width >= from {
			lines = append(lines, tree.Line{Index: -1, Tile: &tree.Tile{N: n, Hash: l.stored[tlog.StoredHashIndex(tree.Height, n)]}})
		}
	}
	return h, lines
}

func all(lines []tree.Line) func(func(tree.Line, error) bool) {
	return func(yield func(tree.Line, error) bool) {
		for _, l := range lines {
			if !yield(l, nil) {
				return
			}
		}
	}
}

func verify(t testing.TB, h tree.Header, lines []tree.Line, cs ...tree.Checkpoint) tree.Report {
	t.Helper()
	r, err := tree.Verify(h, all(lines), cs)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The range's nodes are those that transparency-dev's compact ranges have, and any range comes to the root.
func TestAnyRangeVerifies(t *testing.T) {
	t.Parallel()
	l := newLog(t, 1500)
	s, _ := newKey(t)
	rapid.Check(t, func(rt *rapid.T) {
		from := rapid.Int64Range(0, 1499).Draw(rt, "from")
		to := rapid.Int64Range(from+1, 1500).Draw(rt, "to")
		var theirs, ours []compact.NodeID
		for _, n := range tree.Nodes(from, to) {
			ours = append(ours, compact.NewNodeID(uint(n.Level), uint64(n.N)))
		}
		theirs = compact.RangeNodes(uint64(from), uint64(to), nil)
		if !slices.Equal(ours, theirs) {
			rt.Fatalf("nodes of %d to %d: %v, theirs %v", from, to, ours, theirs)
		}
		h, lines := l.export(from, to)
		mid := rapid.Int64Range(from, to).Draw(rt, "mid")
		cs := []tree.Checkpoint{sign(t, s, 1500, l.root(t, 1500))}
		if mid > 0 {
			cs = append(cs, sign(t, s, mid, l.root(t, mid)))
		}
		r := verify(t, h, lines, cs...)
		if !r.OK() || r.Proven != to || r.Events != to-from {
			rt.Fatalf("%+v", r)
		}
		// And with any one thing wrong it does not.
		i := rapid.IntRange(0, len(lines)-1).Draw(rt, "line")
		bad := slices.Clone(lines)
		kind := rapid.IntRange(0, 3).Draw(rt, "kind")
		switch {
		case bad[i].Tile != nil:
			bad[i].Tile = &tree.Tile{N: bad[i].Tile.N, Hash: tlog.RecordHash([]byte("x"))}
		case kind == 0:
			bad[i].Body = append(slices.Clone(bad[i].Body), ' ')
		case kind == 1:
			bad = slices.Delete(bad, i, i+1)
		case kind == 2:
			forged := append(slices.Clone(bad[i].Body), ' ')
			leaf := tlog.RecordHash(forged)
			bad[i].Body, bad[i].Leaf = forged, &leaf
		default:
			bad = slices.Insert(bad, i, tree.Line{Index: -1, Body: []byte(`{"id":"evt_x"}`)})
		}
		r = verify(t, h, bad, cs...)
		f, found := r.First()
		if !found || r.OK() {
			rt.Fatalf("line %d, kind %d: nothing is found", i, kind)
		}
		if at := lines[i].Index; lines[i].Tile == nil && (f.Index > at || f.To == 0 && f.Index != at || f.To > 0 && f.To <= at) {
			rt.Fatalf("line %d, kind %d, event %d: found %s", i, kind, at, f)
		}
	})
}

// The root by our hasher is theirs.
func TestRootByAnotherImplementation(t *testing.T) {
	t.Parallel()
	l := newLog(t, 300)
	s, _ := newKey(t)
	theirs := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	for n := int64(1); n <= 300; n++ {
		if err := theirs.Append(rfc6962.DefaultHasher.HashLeaf(l.bodies[n-1]), nil); err != nil {
			t.Fatal(err)
		}
		root, err := theirs.GetRootHash(nil)
		if err != nil {
			t.Fatal(err)
		}
		small := &logOf{l.bodies[:n], l.stored}
		h, lines := small.export(0, n)
		if r := verify(t, h, lines, sign(t, s, n, tlog.Hash(root))); !r.OK() {
			t.Fatalf("%d events: %+v", n, r)
		}
	}
}

func TestNothingIsProvenWithoutACheckpoint(t *testing.T) {
	t.Parallel()
	l := newLog(t, 20)
	s, _ := newKey(t)
	h, lines := l.export(5, 15)
	for what, c := range map[string]struct {
		cs     []tree.Checkpoint
		ok     bool
		proven int64
		beyond int
	}{
		"none":                 {nil, false, 5, 0},
		"the whole":            {[]tree.Checkpoint{sign(t, s, 20, l.root(t, 20))}, true, 15, 0},
		"its end":              {[]tree.Checkpoint{sign(t, s, 15, l.root(t, 15))}, true, 15, 0},
		"its middle":           {[]tree.Checkpoint{sign(t, s, 10, l.root(t, 10))}, false, 10, 0},
		"its beginning":        {[]tree.Checkpoint{sign(t, s, 5, l.root(t, 5))}, false, 5, 0},
		"what was before":      {[]tree.Checkpoint{sign(t, s, 4, l.root(t, 4))}, false, 5, 1},
		"between end and size": {[]tree.Checkpoint{sign(t, s, 17, l.root(t, 17))}, false, 5, 1},
	} {
		if r := verify(t, h, lines, c.cs...); r.OK() != c.ok || r.Proven != c.proven || r.Beyond != c.beyond || len(r.Faults) != 0 {
			t.Errorf("%s: %+v", what, r)
		}
	}
	private, _, _ := tree.NewKey("other.example/log")
	other, _ := tree.NewSigner("other.example/log", private)
	if _, err := tree.Verify(h, all(lines), []tree.Checkpoint{sign(t, other, 20, l.root(t, 20))}); err == nil {
		t.Error("a checkpoint of another log proves something")
	}
}

// An export reads as it was written; cut short, added to or spelled another way it does not.
func TestExportForm(t *testing.T) {
	t.Parallel()
	l := newLog(t, 300)
	h, lines := l.export(0, 300)
	h.Checkpoint = "a note <&> of\nlines\n"
	lines[3].Body = []byte("{ \"id\": 3 }\n")            // not compact
	lines[4].Body, lines[4].Away = nil, "2026-01"        // archived
	lines[5].Columns = map[string]string{"at": "<then>"} // contradicted
	lines = slices.Insert(lines, 7, tree.Line{Index: -1, Body: []byte("null")})
	var file bytes.Buffer
	n, err := tree.Write(&file, h, all(lines))
	if err != nil || n != int64(len(lines)) {
		t.Fatalf("%d, %v", n, err)
	}
	read := func(text string) (out []tree.Line, err error) {
		got, seq, err := tree.Read(strings.NewReader(text))
		if err != nil {
			return nil, err
		}
		if fmt.Sprint(got) != fmt.Sprint(h) {
			t.Errorf("the header is %+v", got)
		}
		for line, err := range seq {
			if err != nil {
				return out, err
			}
			out = append(out, line)
		}
		return out, nil
	}
	got, err := read(file.String())
	if err != nil || len(got) != len(lines) {
		t.Fatalf("%d lines, %v", len(got), err)
	}
	for i := range got {
		if !bytes.Equal(got[i].Body, lines[i].Body) || got[i].Index != lines[i].Index || got[i].ID != lines[i].ID || got[i].Away != lines[i].Away ||
			fmt.Sprint(got[i].Columns) != fmt.Sprint(lines[i].Columns) || (got[i].Leaf == nil) != (lines[i].Leaf == nil) {
			t.Errorf("line %d: %+v, was %+v", i, got[i], lines[i])
		}
	}
	text := strings.SplitAfter(file.String(), "\n")
	join := func(change func([]string) []string) string { return strings.Join(change(slices.Clone(text)), "") }
	for what, bad := range map[string]string{
		"cut short":          join(func(s []string) []string { return s[:200] }),
		"without its end":    join(func(s []string) []string { return s[:len(s)-2] }),
		"cut within a line":  file.String()[:5000],
		"nothing":            "",
		"a line more":        file.String() + text[5],
		"a line is doubled":  join(func(s []string) []string { return slices.Insert(s, 5, s[5]) }),
		"a field is doubled": join(func(s []string) []string { s[5] = strings.Replace(s[5], `"id":`, `"id":"x","id":`, 1); return s }),
		"another case":       join(func(s []string) []string { s[12] = strings.Replace(s[12], `"event":`, `"EVENT":`, 1); return s }),
		"white space":        join(func(s []string) []string { s[12] = strings.Replace(s[12], `"event":`, `"event": `, 1); return s }),
		"an unknown field":   join(func(s []string) []string { s[12] = strings.Replace(s[12], `"event":`, `"x":1,"event":`, 1); return s }),
		"a negative leaf":    join(func(s []string) []string { s[5] = strings.Replace(s[5], `"index":4`, `"index":-4`, 1); return s }),
		"no header":          join(func(s []string) []string { return s[1:] }),
		"a second header":    join(func(s []string) []string { return slices.Insert(s, 5, s[0]) }),
		"a range too long":   strings.Replace(file.String(), `"to":300`, `"to":301`, 1),
		"a larger size":      strings.Replace(file.String(), `"size":300`, `"size":900`, 1),
		"no JSON":            "hello\n",
		"a huge line":        `{"taskpass_export":1,"origin":"` + strings.Repeat("x", tree.MaxLine) + `"}`,
	} {
		if _, err := read(bad); err == nil {
			t.Errorf("%s: it reads", what)
		} else if !errors.Is(err, tree.ErrForm) && what != "a huge line" {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A forged header cannot make the verifier run for ever or fall over.
func TestAbsurdNumbers(t *testing.T) {
	t.Parallel()
	const huge = 1<<62 + 5
	s, _ := newKey(t)
	h := tree.Header{Origin: origin, From: 0, To: huge, Size: huge}
	leaf := tlog.RecordHash([]byte("x"))
	lines := []tree.Line{{Index: 1 << 61, Leaf: &leaf, Body: []byte("x")}, {Index: -1, Tile: &tree.Tile{N: 1 << 60}}, {Index: -1, Tile: &tree.Tile{N: -1}},
		{Index: 3, Leaf: &leaf, Body: []byte("x")}}
	if r := verify(t, h, lines, sign(t, s, huge, leaf), sign(t, s, 1, leaf)); r.OK() {
		t.Errorf("%+v", r)
	}
}

func FuzzRead(f *testing.F) {
	l := newLog(f, 9) // small: the fuzzer spends its time on making inputs smaller
	h, lines := l.export(0, 9)
	var file bytes.Buffer
	if _, err := tree.Write(&file, h, all(lines)); err != nil {
		f.Fatal(err)
	}
	s, _ := newKey(f)
	c := sign(f, s, 9, l.root(f, 9))
	f.Add(file.Bytes())
	h, lines = l.export(3, 9)
	var short bytes.Buffer
	if _, err := tree.Write(&short, h, all(lines)); err != nil {
		f.Fatal(err)
	}
	f.Add(short.Bytes())
	f.Add([]byte(`{"taskpass_export":1,"origin":"taskpass.example/log","from":0,"to":1,"size":1}` + "\n" + `{"index":0,"body":"x"}` + "\n" + `{"lines":1}` + "\n"))
	f.Add([]byte(`{"taskpass_export":1,"origin":"taskpass.example/log","from":0,"to":300,"size":300}` + "\n" + `{"tile":0,"hash":"` + c.Root.String() + `"}` + "\n" + `{"lines":1}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		h, seq, err := tree.Read(bytes.NewReader(text))
		if err != nil || h.Origin != origin {
			return
		}
		r, err := tree.Verify(h, seq, []tree.Checkpoint{c})
		if err != nil || !r.OK() {
			return
		}
		// What verifies are the events that were signed, each in its place.
		_, seq, _ = tree.Read(bytes.NewReader(text))
		for line := range seq {
			if line.Body != nil && !bytes.Equal(line.Body, l.bodies[line.Index]) {
				t.Errorf("event %d verifies as %q", line.Index, line.Body)
			}
		}
	})
}

// What is said to be archived is missing until a verified report has seen it.
func TestMissing(t *testing.T) {
	t.Parallel()
	l := newLog(t, 30)
	s, _ := newKey(t)
	c := sign(t, s, 30, l.root(t, 30))
	report := func(from, to int64, away ...int64) tree.Report {
		h, lines := l.export(from, to)
		for _, i := range away {
			lines[i-from].Body, lines[i-from].Away = nil, "2026-01"
		}
		return verify(t, h, lines, c)
	}
	altered, lines := l.export(0, 30)
	lines[20].Body = []byte("{}")
	for what, c := range map[string]struct {
		reports []tree.Report
		want    string
	}{
		"nothing away":               {[]tree.Report{report(0, 30)}, "[]"},
		"nobody has them":            {[]tree.Report{report(0, 30, 3, 4, 5, 9)}, "[{3 6} {9 10}]"},
		"one has some":               {[]tree.Report{report(0, 30, 3, 4, 5, 9), report(4, 8)}, "[{3 4} {9 10}]"},
		"two have all":               {[]tree.Report{report(0, 30, 3, 4, 5, 9), report(0, 5), report(5, 30)}, "[]"},
		"it has a hole there too":    {[]tree.Report{report(0, 30, 3, 4, 5, 9), report(2, 10, 4)}, "[{4 5} {4 5}]"},
		"each has the other's":       {[]tree.Report{report(0, 15, 13, 14), report(10, 30, 10, 11, 12)}, "[]"},
		"who does not verify":        {[]tree.Report{report(0, 30, 3), verify(t, altered, lines, c)}, "[{3 4}]"},
		"who is under no checkpoint": {[]tree.Report{report(0, 30, 3), verify(t, altered, lines[:0])}, "[{3 4}]"},
	} {
		if got := fmt.Sprint(tree.Missing(c.reports)); got != c.want {
			t.Errorf("%s: %s, want %s", what, got, c.want)
		}
	}
}
