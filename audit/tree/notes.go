package tree

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"iter"
)

// Notes is a file of checkpoints, as the publisher to a file writes them. It may be far longer than the memory, and to
// verify all of its signatures may take hours. So Verify reads it alongside the events and holds every checkpoint in it,
// whoever may have signed it, against the root that the events come to at its size: one that agrees shows nothing that
// they do not, and of one that does not agree the signature is verified. Nothing is left out.
type Notes struct {
	// Kept are those whose signatures were verified at once: one about each 4096 events, the newest, and each that stands
	// behind a larger one, as of replicas that write to one file, or of a log that was forked.
	Kept   []Checkpoint
	Broken int // what is there and is no checkpoint of this log, or, if it was looked at, one that no known key has signed

	keys *Keys
	open func() (io.ReadCloser, error)
}

const (
	sample  = 4096
	maxBack = 100_000
)

var errDisorder = errors.New("more checkpoints than can be kept in the memory stand behind larger ones: give the file in parts")

// ReadNotes reads a file once. It is opened again for each Verify that it is given to.
func (k *Keys) ReadNotes(open func() (io.ReadCloser, error)) (*Notes, error) {
	n := &Notes{keys: k, open: open}
	last, err := n.read(1 << 62)
	if err != nil || last == nil || n.keep(last) {
		return n, err
	}
	// The last was torn, or is nobody's: which is the newest then only the signatures of the stretch before it tell.
	sure := int64(0)
	for _, c := range n.Kept {
		sure = max(sure, c.Size)
	}
	n.Kept, n.Broken = nil, 0
	_, err = n.read(sure)
	return n, err
}

// read fills Kept, with each that is about more than so many events too, and gives the last that it has not opened.
func (n *Notes) read(eager int64) (last []byte, err error) {
	var sure, newest int64
	for c, err := range n.claims(&n.Broken) {
		switch {
		case err != nil:
			return nil, err
		case c.Size < newest || c.Size > eager || c.Size >= sure+sample || sure == 0:
			if n.keep(c.note) {
				sure, newest = max(sure, c.Size), max(newest, c.Size)
				last = last[:0]
			}
			if len(n.Kept) > maxBack+int(newest/sample) {
				return nil, errDisorder
			}
		default:
			newest, last = c.Size, append(last[:0], c.note...)
		}
	}
	if len(last) == 0 {
		return nil, nil
	}
	return last, nil
}

// keep verifies a signature.
func (n *Notes) keep(note []byte) bool {
	c, err := n.keys.Open(note)
	if err != nil {
		n.Broken++
		return false
	}
	n.Kept = append(n.Kept, c)
	return true
}

// claim is what a note says, whoever signed it.
type claim struct {
	Checkpoint
	note []byte // until the next one is read
}

// OriginOf is the log that a note is of by its text, whoever signed it; empty if it is no checkpoint.
func OriginOf(note []byte) string {
	text := note[:max(bytes.LastIndex(note, []byte("\n\n"))+1, 0)]
	c, err := parse(string(text))
	if err != nil {
		return ""
	}
	return c.Origin
}

func (n *Notes) claims(broken *int) iter.Seq2[claim, error] {
	return func(yield func(claim, error) bool) {
		file, err := n.open()
		if err != nil {
			yield(claim{}, err)
			return
		}
		defer file.Close()
		for piece, err := range pieces(file) {
			var c Checkpoint
			if err == nil {
				text := piece[:max(bytes.LastIndex(piece, []byte("\n\n"))+1, 0)]
				if c, err = parse(string(text)); err != nil || c.Origin != n.keys.origin || len(piece) > MaxNote {
					*broken++
					continue
				}
			}
			if !yield(claim{c, piece}, err) || err != nil {
				return
			}
		}
	}
}

// follower reads Notes in the order of the sizes, alongside a verifier.
type follower struct {
	notes *Notes
	next  func() (claim, error, bool)
	stop  func()
	head  claim // Size 0: none is left
	sure  int64
	match []byte // the last note that the events come to, until it was verified
	size  int64  // that it is about
}

func (n *Notes) follow() (*follower, error) {
	f := &follower{notes: n}
	f.next, f.stop = iter.Pull2(n.claims(new(int)))
	return f, f.advance()
}

// advance passes over what read has kept.
func (f *follower) advance() error {
	before := f.head.Size
	for {
		c, err, more := f.next()
		if !more || err != nil {
			f.head = claim{}
			return err
		}
		if c.Size >= f.sure+sample || f.sure == 0 { // far ahead: it is worth a look that it does not stand in the others' way
			if _, err := f.notes.keys.Open(c.note); err != nil {
				continue
			}
			f.sure = c.Size
		}
		if c.Size >= before {
			f.head = c
			return nil
		}
	}
}

// hold holds what the file says of the leaves read so far against the root that they come to.
func (v *verifier) hold(f *follower) error {
	for f.head.Size > 0 && f.head.Size <= v.at() {
		if f.head.Size == v.at() {
			v.compare(f)
		}
		if err := f.advance(); err != nil {
			return err
		}
	}
	return nil
}

// compare opens a note only if it contradicts the events, or the next one does: what comes before that is then proven.
func (v *verifier) compare(f *follower) {
	root := v.events.root()
	if f.head.Root == root {
		f.match, f.size = append(f.match[:0], f.head.note...), f.head.Size
		return
	}
	if len(v.bad) >= maxBad {
		return
	}
	c, err := f.notes.keys.Open(f.head.note)
	if err != nil || len(v.bad) > 0 && v.bad[len(v.bad)-1].checkpoint.Size == c.Size && v.bad[len(v.bad)-1].checkpoint.Root == c.Root {
		return
	}
	v.prove(f)
	if v.good == v.at() {
		v.report.add(contradiction(c, root))
		return
	}
	v.refuse(c, v.leaves.root() == c.Root)
}

// prove verifies the signature of the last note that the events came to.
func (v *verifier) prove(f *follower) {
	if f.size <= v.good {
		return
	}
	if good, err := f.notes.keys.Open(f.match); err == nil {
		v.good = good.Size
	}
}

// maxBad is how many checkpoints that contradict the events are looked at beyond those that were kept: then enough is said.
const maxBad = 1000

// pieces finds the notes. A note is its text, an empty line, and signature lines; a text that no signature follows is
// a piece of its own. Of a piece that is longer than a note can be, the rest is not handed on.
func pieces(r io.Reader) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		lines := bufio.NewReaderSize(r, MaxNote)
		var piece []byte
		ended, signed := false, false // the text has ended; signatures have begun
		cut := func() bool {
			whole := bytes.TrimLeft(piece, "\n")
			piece, ended, signed = piece[:0], false, false
			return len(bytes.TrimSpace(whole)) == 0 || yield(whole, nil)
		}
		for {
			line, err := lines.ReadSlice('\n')
			switch empty, sig := len(line) == 1 && line[0] == '\n', bytes.HasPrefix(line, signature); {
			case len(line) == 0:
			case sig:
				signed = true
			case signed || ended && !empty:
				if !cut() {
					return
				}
			case empty && len(piece) > 0:
				ended = true
			}
			if len(piece) <= MaxNote {
				piece = append(piece, line...)
			}
			switch {
			case errors.Is(err, io.EOF):
				cut()
				return
			case err != nil && !errors.Is(err, bufio.ErrBufferFull):
				yield(nil, err)
				return
			}
		}
	}
}

var signature = []byte("— ")
