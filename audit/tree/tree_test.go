package tree_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
)

const origin = "taskpass.example/log"

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newKey(t testing.TB) (*tree.Signer, string) {
	t.Helper()
	private, public, err := tree.NewKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := tree.NewSigner(origin, private)
	if err != nil {
		t.Fatal(err)
	}
	return s, public
}

func sign(t testing.TB, s *tree.Signer, size int64, root tlog.Hash) tree.Checkpoint {
	t.Helper()
	c, err := s.Sign(size, root, noon.Add(time.Duration(size)*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCheckpoint(t *testing.T) {
	t.Parallel()
	s, public := newKey(t)
	keys, err := tree.ParseKeys("# the auditors' copy\n\n" + public + "\n" + public + "\n")
	if err != nil {
		t.Fatal(err)
	}
	c := sign(t, s, 3, tlog.RecordHash([]byte("x")))
	want := "taskpass.example/log\n3\n" + c.Root.String() + "\ntime 2026-03-01T12:00:03.000000Z\n\n— taskpass.example/log "
	if !strings.HasPrefix(c.Note, want) {
		t.Errorf("the note is\n%s", c.Note)
	}
	for _, k := range []*tree.Keys{keys, s.Keys()} {
		if got, err := k.Open([]byte(c.Note)); err != nil || got != c {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if _, err := note.Open([]byte(c.Note), note.VerifierList()); err == nil {
		t.Error("it opens without a key")
	}
	if _, err := s.Sign(0, tlog.Hash{}, noon); err == nil {
		t.Error("an empty tree is signed")
	}
}

// A note that was changed in any byte does not open, and neither does one of another log or key, or of another form.
func TestCheckpointsThatDoNotOpen(t *testing.T) {
	t.Parallel()
	s, public := newKey(t)
	keys, err := tree.ParseKeys(public)
	if err != nil {
		t.Fatal(err)
	}
	c := sign(t, s, 3, tlog.RecordHash([]byte("x")))
	for i := range len(c.Note) {
		changed := []byte(c.Note)
		changed[i] ^= 1
		if got, err := keys.Open(changed); err == nil && (got.Size != c.Size || got.Root != c.Root || got.At != c.At) {
			t.Errorf("byte %d may be anything: %q", i, changed)
		}
	}
	private, _, _ := tree.NewKey(origin)
	other, _ := tree.NewSigner(origin, private)
	if _, err := keys.Open([]byte(sign(t, other, 3, c.Root).Note)); err == nil {
		t.Error("another's signature opens")
	}
	// What the right key signed, but is no checkpoint.
	skey, vkey, err := note.GenerateKey(nil2{}, origin)
	if err != nil {
		t.Fatal(err)
	}
	signer, _ := note.NewSigner(skey)
	keys, err = tree.ParseKeys(vkey)
	if err != nil {
		t.Fatal(err)
	}
	root := c.Root.String()
	for _, text := range []string{
		"hello\n", origin + "\n3\n" + root + "\n", origin + "\n0\n" + root + "\ntime 2026-03-01T12:00:03.000000Z\n",
		origin + "\n03\n" + root + "\ntime 2026-03-01T12:00:03.000000Z\n", origin + "\n-3\n" + root + "\ntime 2026-03-01T12:00:03.000000Z\n",
		origin + "\n3\n" + root + "\ntime 2026-03-01T12:00:03Z\n", origin + "\n3\n" + root + "\nmore\n",
		origin + "\n3\n" + root + "\ntime 2026-03-01T12:00:03.000000Z\nmore\n", origin + "\n3\nxx\ntime 2026-03-01T12:00:03.000000Z\n",
		"other.example/log\n3\n" + root + "\ntime 2026-03-01T12:00:03.000000Z\n", origin + "\n99999999999999999999\n" + root + "\ntime 2026-03-01T12:00:03.000000Z\n",
	} {
		signed, err := note.Sign(&note.Note{Text: text}, signer)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := keys.Open(signed); err == nil {
			t.Errorf("%q opens as %+v", text, got)
		}
	}
	if _, err := keys.Open([]byte(strings.Repeat("x", tree.MaxNote+1))); err == nil {
		t.Error("a long one opens")
	}
}

// nil2 is a source of keys that need not be good.
type nil2 struct{}

func (nil2) Read(p []byte) (int, error) { return len(p), nil }

func TestKeys(t *testing.T) {
	t.Parallel()
	private, public, err := tree.NewKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	_, another, _ := tree.NewKey("other.example/log")
	for what, text := range map[string]string{
		"nothing": "# only words\n", "a private key": private.Reveal(), "words": "hello", "two logs": public + "\n" + another,
		"half a key": public[:len(public)-4],
	} {
		if _, err := tree.ParseKeys(text); err == nil {
			t.Errorf("%s is taken for keys", what)
		} else if strings.Contains(err.Error(), private.Reveal()) || strings.Contains(err.Error(), "AAAA") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, keys := range map[string][]broker.Secret{
		"none": nil, "a public one": {broker.NewSecret(public)}, "words": {broker.NewSecret("C4n4ry")}, "half": {broker.NewSecret(private.Reveal()[:40])},
	} {
		if _, err := tree.NewSigner(origin, keys...); err == nil || strings.Contains(err.Error(), "C4n4ry") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := tree.NewSigner("other.example/log", private); err == nil {
		t.Error("a key signs for another log than its own")
	}
	for _, name := range []string{"", "a b", "a+b", "a\n", strings.Repeat("a", 129), "é"} {
		if _, _, err := tree.NewKey(name); err == nil {
			t.Errorf("a log called %q", name)
		}
	}
}

// A file of many notes opens whatever a crash left in between.
func TestOpenAll(t *testing.T) {
	t.Parallel()
	s, public := newKey(t)
	keys, err := tree.ParseKeys(public)
	if err != nil {
		t.Fatal(err)
	}
	var notes []string
	for i := range int64(4) {
		notes = append(notes, sign(t, s, i+1, tlog.RecordHash(fmt.Append(nil, i))).Note)
	}
	sizes := func(list []tree.Checkpoint) (out string) {
		for _, c := range list {
			out += fmt.Sprint(c.Size)
		}
		return out
	}
	for what, c := range map[string]struct {
		text, want string
		broken     int
	}{
		"nothing":            {"", "", 0},
		"only empty lines":   {"\n\n\n", "", 0},
		"one":                {notes[0], "1", 0},
		"as they are":        {"\n" + strings.Join(notes, "\n"), "1234", 0},
		"without a line":     {strings.Join(notes, ""), "1234", 0},
		"with many":          {strings.Join(notes, "\n\n\n"), "1234", 0},
		"torn at the end":    {notes[0] + "\n" + notes[1][:40], "1", 1},
		"torn in the text":   {notes[0] + "\n\n" + notes[1][:30] + "\n\n" + notes[2], "13", 1},
		"torn after a line":  {notes[0] + "\n\n" + notes[1][:23] + "\n\n" + notes[2], "13", 1},
		"torn signature":     {notes[0] + "\n\n" + notes[1][:len(notes[1])-20] + "\n\n" + notes[2], "13", 1},
		"torn at its line":   {notes[0] + "\n\n" + notes[1][:strings.Index(notes[1], "—")] + "\n\n" + notes[2], "13", 1},
		"cut at the front":   {notes[0][30:] + "\n" + notes[1], "2", 1},
		"garbage in between": {notes[0] + "\nhello\n\nthere\n\n" + notes[1], "12", 2},
	} {
		found, broken := keys.OpenAll([]byte(c.text))
		if sizes(found) != c.want || broken != c.broken {
			t.Errorf("%s: %s, %d broken; want %s, %d", what, sizes(found), broken, c.want, c.broken)
		}
	}
}

func FuzzOpenAll(f *testing.F) {
	s, public := newKey(f)
	keys, err := tree.ParseKeys(public)
	if err != nil {
		f.Fatal(err)
	}
	one := sign(f, s, 7, tlog.RecordHash([]byte("x")))
	f.Add([]byte(one.Note))
	f.Add([]byte("\n" + one.Note + "\nhalf of one\n\n" + one.Note))
	f.Add([]byte("a\n\n— a b\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		found, _ := keys.OpenAll(text)
		for _, c := range found {
			if c.Size != one.Size || c.Root != one.Root || c.At != one.At || !strings.Contains(string(text), c.Note) {
				t.Errorf("opens %+v, which was never signed", c)
			}
		}
		// Whatever stands before it, a whole note is found behind it.
		if again, _ := keys.OpenAll(append(append(text[:len(text):len(text)], "\n\n"...), one.Note...)); len(again) == 0 {
			t.Errorf("a note behind %q is not found", text)
		}
	})
}
