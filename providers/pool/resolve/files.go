package resolve

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long a change is left alone before it is read: a file is seldom written in one step.
const settle = 50 * time.Millisecond

// watchFiles looks at files when the system tells of a change, and every now and then besides: some file systems tell
// nothing, and a queue of events may overflow.
func (s *rounds) watchFiles(ctx context.Context, every time.Duration) {
	var events chan fsnotify.Event // nil, which never fires, if the system has no watches left
	var lost chan error
	watcher, err := fsnotify.NewWatcher()
	if err == nil {
		defer watcher.Close()
		events, lost = watcher.Events, watcher.Errors
	}
	settled := time.NewTimer(0)
	settled.Stop()
	defer settled.Stop()
	for {
		names := s.aim(watcher) // before looking: what changes from here on is told of
		s.pass(ctx)
		next := jittered(every)
		if s.again > 0 {
			next = min(next, s.again)
		}
		poll := time.NewTimer(next)
		waiting, pending := true, false
		for waiting {
			select {
			case <-ctx.Done():
				poll.Stop()
				return
			case <-poll.C:
				waiting = false
			case <-settled.C:
				waiting = false
			case e, open := <-events:
				if !open {
					events = nil
				} else if !pending && concerns(names, e.Name) {
					pending = true
					settled.Reset(settle)
				}
			case _, open := <-lost:
				if !open {
					lost = nil
				} else if !pending {
					pending = true
					settled.Reset(settle)
				}
			}
		}
		poll.Stop()
		settled.Stop()
	}
}

// aim watches the directories in which the files' names are, and those in which what the names link to is: a file is
// mostly replaced, not written, which its directory is told of and not the file. It answers the names that matter. What
// cannot be watched is looked at now and then.
func (s *rounds) aim(watcher *fsnotify.Watcher) map[string]bool {
	names, dirs := map[string]bool{}, map[string]bool{}
	if watcher == nil {
		return names
	}
	for _, ref := range s.refs {
		path, ok := strings.CutPrefix(ref, "file:")
		if !ok {
			continue
		}
		path = filepath.Clean(path)
		names[path], dirs[filepath.Dir(path)] = true, true
		if target, err := filepath.EvalSymlinks(path); err == nil && target != path {
			names[target], dirs[filepath.Dir(target)] = true, true
		}
	}
	for dir := range dirs {
		_ = watcher.Add(dir) // again if it was there before: it may have been made anew
	}
	for _, dir := range watcher.WatchList() {
		if !dirs[dir] {
			_ = watcher.Remove(dir)
		}
	}
	return names
}

// concerns tells whether an event may be about one of the names: Kubernetes replaces a whole volume by the link "..data".
func concerns(names map[string]bool, event string) bool {
	return names[filepath.Clean(event)] || strings.HasPrefix(filepath.Base(event), "..")
}
