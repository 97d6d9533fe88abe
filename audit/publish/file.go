package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/taskpass/taskpass/audit/tree"
)

// File appends notes to a file, empty lines between them, and has the disk confirm them. The file may be append-only
// (chattr +a) and may be on a volume that several replicas share: a note is one write.
type File struct{ Path string }

// Put implements Destination.
func (f File) Put(_ context.Context, c tree.Checkpoint) error {
	file, err := os.OpenFile(f.Path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644) //nolint:gosec // checkpoints are for everybody
	if err != nil {
		return err
	}
	// The empty lines end what a crash may have left of another.
	_, err = file.Write(append([]byte("\n\n"), c.Note...))
	return errors.Join(err, file.Sync(), file.Close())
}

// maxTail is how much of a file's end is read to find its newest checkpoints.
const maxTail = 1 << 20

// Newest implements sequence.Reader: it reads the checkpoints at the file's end, the newest last. A file that is not there
// yet has none; one in which nothing opens is an error, for it is somebody else's or was overwritten.
func (f File) Newest(_ context.Context, keys *tree.Keys) ([]tree.Checkpoint, error) {
	file, err := os.Open(f.Path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if _, err := file.Seek(max(info.Size()-maxTail, 0), io.SeekStart); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(file, maxTail))
	if err != nil {
		return nil, err
	}
	list, _ := keys.OpenAll(text) // the first may be cut in half
	if len(list) == 0 && len(bytes.TrimSpace(text)) > 0 {
		return nil, fmt.Errorf("%s: no checkpoint in it is signed by a key of this log", f.Path)
	}
	return list, nil
}
