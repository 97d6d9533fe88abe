package tree

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"

	"golang.org/x/mod/sumdb/tlog"
)

// An export is NDJSON: a Header, Lines in the order of the tree, and an end that says how many there were.

// Height is that of the stored tiles: 2^Height hashes each.
const Height = 8

// Width is how many leaves a tile of the lowest level has.
const Width = 1 << Height

// MaxLine bounds a line of an export, in bytes: far above what an event can be.
const MaxLine = 4 << 20

// Header says which leaves an export has, [From, To), of the tree of Size leaves, and brings the hashes of Nodes(0, From)
// and Nodes(To, Size), so that the tree's root can be come to from the events.
type Header struct {
	Origin     string
	From, To   int64
	Size       int64
	Left       []tlog.Hash
	Right      []tlog.Hash
	Checkpoint string // the note of the newest checkpoint, of that Size
}

// Line is a leaf with its event, or one of the two alone, or the stored hash of a tile.
type Line struct {
	Index   int64  // of the leaf; -1: there is an event here that is in no leaf
	ID      string // of the event that the leaf was made of, as the tree remembers it
	Leaf    *tlog.Hash
	Body    []byte            // the event's canonical JSON; nil: it is not there
	Columns map[string]string // what the database's columns beside the body say, where they contradict it
	Away    string            // the month of the archive that the event was moved to, "2006-01"; the body is not expected
	Tile    *Tile             // set on a line of its own, with nothing else
}

// LeafTime stands among a Line's columns where the leaf has another time than its event, and is else the event's.
const LeafTime = "leaf.at"

// Tile is the stored hash of the N-th Width leaves.
type Tile struct {
	N    int64
	Hash tlog.Hash
}

// form is each kind of line, as it is written. The order of the fields is the order on the line.
type form struct {
	Export     int               `json:"taskpass_export,omitempty"` // 1: the version of the form
	Origin     string            `json:"origin,omitempty"`
	From       *int64            `json:"from,omitempty"`
	To         *int64            `json:"to,omitempty"`
	Size       int64             `json:"size,omitempty"`
	Left       []tlog.Hash       `json:"left,omitempty"`
	Right      []tlog.Hash       `json:"right,omitempty"`
	Checkpoint string            `json:"checkpoint,omitempty"`
	Index      *int64            `json:"index,omitempty"`
	ID         string            `json:"id,omitempty"`
	Leaf       *tlog.Hash        `json:"leaf,omitempty"`
	Event      json.RawMessage   `json:"event,omitempty"`
	Body       *string           `json:"body,omitempty"` // in place of event, if it is not compact JSON
	Columns    map[string]string `json:"columns,omitempty"`
	Away       string            `json:"archived,omitempty"`
	Tile       *int64            `json:"tile,omitempty"`
	Hash       *tlog.Hash        `json:"hash,omitempty"`
	Lines      *int64            `json:"lines,omitempty"`
}

func (f form) encode() ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	err := enc.Encode(f)
	return buf.Bytes(), err
}

func (h Header) form() form {
	return form{Export: 1, Origin: h.Origin, From: &h.From, To: &h.To, Size: h.Size, Left: h.Left, Right: h.Right, Checkpoint: h.Checkpoint}
}

func (l Line) form() form {
	if l.Tile != nil {
		return form{Tile: &l.Tile.N, Hash: &l.Tile.Hash}
	}
	f := form{ID: l.ID, Leaf: l.Leaf, Columns: l.Columns, Away: l.Away}
	if l.Index >= 0 {
		f.Index = &l.Index
	}
	var compact bytes.Buffer
	switch {
	case l.Body == nil:
	case json.Compact(&compact, l.Body) == nil && bytes.Equal(compact.Bytes(), l.Body) && l.Body[0] == '{':
		f.Event = l.Body
	default:
		body := string(l.Body)
		f.Body = &body
	}
	return f
}

// Write writes an export and returns how many lines of leaves and events it has.
func Write(w io.Writer, h Header, lines iter.Seq2[Line, error]) (n int64, err error) {
	put := func(f form) error {
		text, err := f.encode()
		if err == nil {
			_, err = w.Write(text)
		}
		return err
	}
	if err := put(h.form()); err != nil {
		return 0, err
	}
	for line, err := range lines {
		if err != nil {
			return n, err
		}
		if err := put(line.form()); err != nil {
			return n, err
		}
		n++
	}
	return n, put(form{Lines: &n})
}

// ErrForm says that a text is not an export as Write writes it: it was cut short, or changed.
var ErrForm = errors.New("not an export as it was written")

// Read reads an export. Only the one form that Write gives is taken, byte for byte, so that two readers cannot see two
// things in it. Lines can be walked through once; an error ends the walk.
func Read(r io.Reader) (Header, iter.Seq2[Line, error], error) {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), MaxLine)
	first, err := next(s, 1)
	if err != nil {
		return Header{}, nil, err
	}
	h := Header{Origin: first.Origin, Size: first.Size, Left: first.Left, Right: first.Right, Checkpoint: first.Checkpoint}
	if first.From != nil && first.To != nil {
		h.From, h.To = *first.From, *first.To
	}
	if err := h.check(first); err != nil {
		return Header{}, nil, err
	}
	return h, func(yield func(Line, error) bool) {
		for n := int64(0); ; n++ {
			f, err := next(s, n+2)
			if err == nil && f.Lines != nil {
				if *f.Lines != n || s.Scan() {
					yield(Line{}, fmt.Errorf("%w: it ends after %d lines, and says %d, or goes on after its end", ErrForm, n, *f.Lines))
				}
				return
			}
			var line Line
			if err == nil {
				line, err = f.line(n + 2)
			}
			if !yield(line, err) || err != nil {
				return
			}
		}
	}, nil
}

// check holds the header together: it has one form, and exactly the hashes that its numbers ask for.
func (h Header) check(f form) error {
	switch {
	case f.Export != 1 || f.Origin == "" || f.From == nil || f.To == nil || f.Lines != nil || f.Index != nil || f.Tile != nil ||
		f.Event != nil || f.Body != nil || f.Leaf != nil || f.ID != "":
		return fmt.Errorf("%w: line 1 is no header of this version", ErrForm)
	case h.From < 0 || h.To <= h.From || h.Size < h.To:
		return fmt.Errorf("%w: a range of leaves that cannot be", ErrForm)
	case len(h.Left) != len(Nodes(0, h.From)) || len(h.Right) != len(Nodes(h.To, h.Size)):
		return fmt.Errorf("%w: another number of hashes than the range asks for", ErrForm)
	}
	return nil
}

func next(s *bufio.Scanner, n int64) (f form, err error) {
	if !s.Scan() {
		if err := s.Err(); err != nil {
			return f, fmt.Errorf("line %d: %w", n, err)
		}
		return f, fmt.Errorf("%w: it ends at line %d, before its end", ErrForm, n)
	}
	if err := json.Unmarshal(s.Bytes(), &f); err != nil {
		return f, fmt.Errorf("%w: line %d is not JSON of this form", ErrForm, n) // err may quote the event
	}
	again, err := f.encode()
	if err != nil || !bytes.Equal(bytes.TrimSuffix(again, []byte("\n")), s.Bytes()) {
		return f, fmt.Errorf("%w: line %d has another spelling than Write gives", ErrForm, n)
	}
	return f, nil
}

func (f form) line(n int64) (Line, error) {
	l := Line{Index: -1, ID: f.ID, Leaf: f.Leaf, Columns: f.Columns, Away: f.Away}
	if f.Index != nil {
		l.Index = *f.Index
	}
	switch {
	case f.Body != nil:
		l.Body = []byte(*f.Body)
	case f.Event != nil:
		l.Body = append([]byte(nil), f.Event...)
	}
	if f.Tile != nil && f.Hash != nil {
		l.Tile = &Tile{*f.Tile, *f.Hash}
	}
	again, err := l.form().encode()
	mine, err2 := f.encode()
	if err != nil || err2 != nil || !bytes.Equal(again, mine) || (f.Index == nil && f.Tile == nil && l.Body == nil) || f.Index != nil && *f.Index < 0 {
		return Line{}, fmt.Errorf("%w: line %d is no leaf, event or tile", ErrForm, n)
	}
	return l, nil
}
