package broker

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// FileSettles is how long a file must have been left alone before its content counts as a whole value: twice the pause
// of the slowest writer that was reported from the field.
const FileSettles = 5 * time.Second

// ErrUnsettled says that a file may still be being written, and that no earlier value of it is known.
var ErrUnsettled = errors.New("may still be being written: its value counts once the file has not changed for 5 s")

// SecretFiles resolves references to values that are handed to agents, and never returns half of a file. A file's
// content counts once one of these holds:
//
//   - it was renamed into place: its inode and its directory changed after its last write, and it was not seen here
//     before with other content;
//   - it was linked into place: a symbolic link on its path is newer than its last write (a Kubernetes volume);
//   - two looks at least FileSettles apart found the same file with the same content;
//   - at the first look of all, its last write was at least FileSettles ago by the file system's clock.
//
// Until then the value before counts. Only the present content of each file is remembered. The zero value is ready, and
// safe for concurrent use.
type SecretFiles struct {
	Clock func() time.Time // compared with the file system's times; nil: time.Now

	mu   sync.Mutex
	seen map[string]look // by path
}

// look is what was last seen of a file.
type look struct {
	info  os.FileInfo
	sum   [sha256.Size]byte
	since time.Time // when this content was first seen
	first bool      // nothing was seen before it
	wrote bool      // the file was seen before with other content: it is written in place

	whole    bool
	wholeSum [sha256.Size]byte // of the value that counts, where there is one
	text     func() string     // its text; a closure, so that no dump of this struct shows it
}

// Resolve reads a reference now. again is not zero while a file's new content does not count yet: look again after that
// time. Meanwhile the value is the one before, or the error is ErrUnsettled. What CheckSecretValue refuses is an error.
func (s *SecretFiles) Resolve(r Ref) (value Secret, again time.Duration, err error) {
	if err := r.Check(); err != nil {
		return Secret{}, 0, err
	}
	kind, name, _ := strings.Cut(string(r), ":")
	text := ""
	if kind == "env" {
		if text = os.Getenv(name); text == "" {
			return Secret{}, 0, fmt.Errorf("%s: is empty or not set", r)
		}
	} else if text, again, err = s.read(name); err != nil {
		return Secret{}, again, fmt.Errorf("%s: %w", r, err)
	}
	if value, err = NewSecretValue(text); err != nil {
		return Secret{}, again, fmt.Errorf("%s: %w", r, err)
	}
	return value, again, nil
}

// Own resolves a reference to a secret of the broker's own, which is handed to nobody: while its file is being written
// the value before is used, and without one what is there, as Ref.Resolve reads it. Half a secret costs a refused call.
func (s *SecretFiles) Own(r Ref) (Secret, error) {
	if value, _, err := s.Resolve(r); err == nil {
		return value, nil
	}
	return r.Resolve()
}

// read returns the text of a file that counts now.
func (s *SecretFiles) read(path string) (string, time.Duration, error) {
	info, text, moved, err := readRegular(path)
	if err != nil {
		s.forget(path)
		return "", 0, err
	}
	now := time.Now()
	if s.Clock != nil {
		now = s.Clock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = map[string]look{}
	}
	before, known := s.seen[path]
	next := before.follow(known, info, sha256.Sum256([]byte(text)), now)
	if moved {
		next.since, next.wrote = now, true
	}
	next.whole = next.whole || next.text != nil && next.sum == next.wholeSum || !moved && next.settled(path, now)
	if next.whole {
		next.wholeSum, next.text = next.sum, func() string { return text }
	}
	s.seen[path] = next
	again := time.Duration(0)
	if !next.whole {
		again = FileSettles - now.Sub(next.since)
		if age := now.Sub(info.ModTime()); next.first && age >= 0 {
			again = min(again, FileSettles-age)
		}
		again = max(again, time.Millisecond)
		if next.text == nil {
			return "", again, ErrUnsettled
		}
	}
	return next.text(), again, nil
}

// forget drops what was seen of a file that cannot be read: a later one of the same name is another.
func (s *SecretFiles) forget(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.seen, path)
}

// follow is the look that comes after l.
func (l look) follow(known bool, info os.FileInfo, sum [sha256.Size]byte, now time.Time) look {
	next := l
	if known && os.SameFile(l.info, info) && l.info.Size() == info.Size() && l.info.ModTime().Equal(info.ModTime()) && l.sum == sum {
		next.info = info
		return next
	}
	next.wrote = known && os.SameFile(l.info, info)
	next.info, next.sum, next.since, next.first, next.whole = info, sum, now, !known, false
	return next
}

// settled tells whether nobody is writing the file any more.
func (l look) settled(path string, now time.Time) bool {
	wrote := l.info.ModTime()
	switch {
	case now.Sub(l.since) >= FileSettles, l.first && now.Sub(wrote) >= FileSettles:
		return true
	case l.wrote:
		return false
	}
	return changed(l.info).After(wrote) && placed(path).After(wrote) || linked(path).After(wrote)
}

// placed is when the directory that a file is in changed last; zero if it is unknown. A rename into it changes it; chmod,
// chown and a write do not.
func placed(path string) time.Time {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return time.Time{}
	}
	info, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// readRegular reads a file that no reader can block on. moved says that it changed while it was read.
func readRegular(path string) (info os.FileInfo, text string, moved bool, err error) {
	if info, err = os.Stat(path); err != nil {
		return nil, "", false, err
	}
	if !info.Mode().IsRegular() {
		return nil, "", false, errors.New("is not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, "", false, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, MaxSecretValue+2+1))
	if err != nil {
		return nil, "", false, err
	}
	if len(content) > MaxSecretValue+2 {
		return nil, "", false, fmt.Errorf("larger than %d bytes", MaxSecretValue+2)
	}
	after, err := f.Stat()
	if err != nil {
		return nil, "", false, err
	}
	moved = !os.SameFile(info, after) || !info.ModTime().Equal(after.ModTime()) || after.Size() != int64(len(content))
	return after, string(content), moved, nil
}

// linked is when the newest symbolic link on a path was made; zero if there is none.
func linked(path string) (newest time.Time) {
	for range 16 { // links that lead to links
		at, rest := path, ""
		for ; at != filepath.Dir(at); at, rest = filepath.Dir(at), filepath.Join(filepath.Base(at), rest) {
			info, err := os.Lstat(at)
			if err != nil {
				return time.Time{}
			}
			if info.Mode()&os.ModeSymlink != 0 {
				if info.ModTime().After(newest) {
					newest = info.ModTime()
				}
				break
			}
		}
		if at == filepath.Dir(at) {
			return newest
		}
		target, err := os.Readlink(at)
		if err != nil {
			return time.Time{}
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(at), target)
		}
		path = filepath.Join(target, rest)
	}
	return newest
}
