package tree

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Checkpoint is what a log committed itself to: at that time it had that many events, with that root.
type Checkpoint struct {
	Origin string
	Size   int64 // events; at least 1
	Root   tlog.Hash
	At     time.Time // by the signer's clock, in microseconds
	Note   string    // the signed note, byte for byte
}

// MaxNote bounds a signed note, in bytes.
const MaxNote = 16 << 10

const (
	timeLine   = "time " // our extension line: without it an old checkpoint could pass for a fresh one
	timeFormat = "2006-01-02T15:04:05.000000Z"
)

// Sign makes the checkpoint's note.
func (s *Signer) Sign(size int64, root tlog.Hash, at time.Time) (Checkpoint, error) {
	if size < 1 {
		return Checkpoint{}, errors.New("there is nothing to sign: the tree is empty")
	}
	c := Checkpoint{Origin: s.origin, Size: size, Root: root, At: at.UTC().Truncate(time.Microsecond)}
	text := fmt.Sprintf("%s\n%d\n%s\n%s%s\n", c.Origin, size, root, timeLine, c.At.Format(timeFormat))
	signed, err := note.Sign(&note.Note{Text: text}, s.keys...)
	c.Note = string(signed)
	return c, err
}

// Open reads a signed note. Unless a known key has signed it, and no known key's signature is wrong, it is an error.
func (k *Keys) Open(signed []byte) (Checkpoint, error) {
	if len(signed) > MaxNote {
		return Checkpoint{}, errors.New("a checkpoint is longer than any can be")
	}
	n, err := note.Open(signed, k.list)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("a checkpoint that no known key has signed: %w", err)
	}
	c, err := parse(n.Text)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Origin != k.origin {
		return Checkpoint{}, errors.New("a checkpoint of another log")
	}
	c.Note = string(signed)
	return c, nil
}

var errCheckpoint = errors.New("a signed text that is no checkpoint of ours")

// parse reads a checkpoint's text strictly: it has one form.
func parse(text string) (c Checkpoint, err error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 5 || lines[4] != "" || !strings.HasPrefix(lines[3], timeLine) {
		return c, errCheckpoint
	}
	c.Origin = lines[0]
	var err1, err2, err3 error
	c.Size, err1 = strconv.ParseInt(lines[1], 10, 64)
	c.Root, err2 = tlog.ParseHash(lines[2])
	c.At, err3 = time.Parse(timeFormat, lines[3][len(timeLine):])
	if errors.Join(err1, err2, err3) != nil || c.Size < 1 || strconv.FormatInt(c.Size, 10) != lines[1] ||
		c.Root.String() != lines[2] || timeLine+c.At.Format(timeFormat) != lines[3] {
		return c, errCheckpoint
	}
	return c, nil
}

// OpenAll reads the notes of a text that has many, empty lines between them, as the publisher to a file writes them.
// broken counts what is there that does not open: half a note that a crash left, or one that nobody known has signed.
func (k *Keys) OpenAll(text []byte) (found []Checkpoint, broken int) {
	for piece, failed := range pieces(bytes.NewReader(text)) {
		if c, err := k.Open(piece); failed == nil && err == nil {
			found = append(found, c)
		} else {
			broken++
		}
	}
	return found, broken
}
