package broker_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// lookout looks at one file, by a clock of its own.
type lookout struct {
	*broker.SecretFiles
	t    *testing.T
	path string
	at   time.Time
}

func newLookout(t *testing.T) *lookout {
	l := &lookout{t: t, path: filepath.Join(t.TempDir(), "key"), at: time.Now()}
	l.SecretFiles = &broker.SecretFiles{Clock: func() time.Time { return l.at }}
	return l
}

// write replaces the file's content where it is. What is written now has this machine's time.
func (l *lookout) write(text string) {
	l.t.Helper()
	if err := os.WriteFile(l.path, []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lookout) age(path string, d time.Duration) {
	l.t.Helper()
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(-d)); err != nil {
		l.t.Fatal(err)
	}
}

// rename puts a finished file in place of the one before.
func (l *lookout) rename(text string) {
	l.t.Helper()
	if err := os.WriteFile(l.path+".new", []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
	l.age(l.path+".new", time.Second) // written a second before it is renamed
	if err := os.Rename(l.path+".new", l.path); err != nil {
		l.t.Fatal(err)
	}
}

// want looks once; an empty value is ErrUnsettled.
func (l *lookout) want(why, value string, settled bool) {
	l.t.Helper()
	got, again, err := l.Resolve(broker.Ref("file:" + l.path))
	switch {
	case value == "" && !errors.Is(err, broker.ErrUnsettled):
		l.t.Fatalf("%s: want ErrUnsettled, got %v", why, err)
	case value != "" && (err != nil || got.Reveal() != value):
		l.t.Fatalf("%s: want %q, got %q, %v", why, value, got.Reveal(), err)
	case settled != (again == 0) || again > broker.FileSettles:
		l.t.Fatalf("%s: look again in %s", why, again)
	}
}

// A file that is written in two halves is never read as its first half, at the first look neither.
func TestSecretFileWrittenInHalves(t *testing.T) {
	t.Parallel()
	l := newLookout(t)
	l.write("key-four-")
	l.want("the first look of all", "", false)
	l.at = l.at.Add(2500 * time.Millisecond)
	l.want("half", "", false)
	l.write("key-four-second-half\n")
	l.want("whole, and just written", "", false)
	l.at = l.at.Add(broker.FileSettles - time.Millisecond)
	l.want("not yet", "", false)
	l.at = l.at.Add(time.Millisecond)
	l.want("two equal looks apart", "key-four-second-half", true)

	l.write("") // truncated, as every shell redirection begins
	l.want("truncated", "key-four-second-half", false)
	l.write("key-five-")
	for range 4 { // a writer that pauses again and again
		l.at = l.at.Add(broker.FileSettles / 2)
		l.want("a half", "key-four-second-half", false)
		f, err := os.OpenFile(l.path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = f.WriteString("x"); err != nil || f.Close() != nil {
			t.Fatal(err)
		}
		l.want("a longer half", "key-four-second-half", false)
	}
	l.at = l.at.Add(broker.FileSettles)
	l.want("left alone", "key-five-xxxx", true)
}

// chmod in the middle of writing changes the inode, as a rename does: a file that was seen half does not count by that.
func TestSecretFileChangedInPlace(t *testing.T) {
	t.Parallel()
	l := newLookout(t)
	l.rename("one\n")
	l.want("renamed into place", "one", true)
	l.write("two-")
	l.age(l.path, time.Second)
	l.want("written in place, then its inode changed", "one", false)
	if err := os.Chmod(l.path, 0o400); err != nil {
		t.Fatal(err)
	}
	l.want("chmod", "one", false)
	l.at = l.at.Add(broker.FileSettles)
	l.want("left alone", "two-", true)
	if err := os.Remove(l.path); err != nil {
		t.Fatal(err)
	}
	l.write("thr") // removed and made anew, often with the same inode
	l.want("made anew", "two-", false)
	if err := os.Remove(l.path); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Resolve(broker.Ref("file:" + l.path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	l.write("thr")
	l.want("made anew after it was gone", "", false)
}

// At the first look, chmod after the first half is no rename either: it leaves the directory as it is.
func TestSecretFileChangedBeforeTheFirstLook(t *testing.T) {
	t.Parallel()
	l := newLookout(t)
	l.write("two-")
	info, err := os.Stat(l.path)
	if err != nil {
		t.Fatal(err)
	}
	clock := filepath.Join(t.TempDir(), "clock") // of the file system: what is changed from here on is later
	for later := info.ModTime(); !later.After(info.ModTime()); {
		if err := os.WriteFile(clock, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		now, err := os.Stat(clock)
		if err != nil {
			t.Fatal(err)
		}
		later = now.ModTime()
	}
	if err := os.Chmod(l.path, 0o400); err != nil {
		t.Fatal(err)
	}
	l.want("half, with chmod after it", "", false)
	l.at = l.at.Add(broker.FileSettles)
	l.want("left alone", "two-", true)
}

// A file that was finished before it got its name counts at once.
func TestSecretFilePutInPlace(t *testing.T) {
	t.Parallel()
	l := newLookout(t)
	l.rename("one\n")
	l.want("at the first look", "one", true)
	l.rename("two\r\n")
	l.want("over another", "two", true)

	old := newLookout(t)
	old.write("old")
	old.age(old.path, broker.FileSettles)
	old.want("not written for a while, at the first look", "old", true)

	volume := newLookout(t)
	target := filepath.Join(t.TempDir(), "v1")
	publish := func(name, text string) {
		t.Helper()
		dir := filepath.Join(target, "..", name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "key"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		volume.age(filepath.Join(dir, "key"), time.Second)
		data := filepath.Join(filepath.Dir(volume.path), "..data")
		if err := os.Symlink(dir, data+"_tmp"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(data+"_tmp", data); err != nil {
			t.Fatal(err)
		}
	}
	publish("v1", "one")
	if err := os.Symlink(filepath.Join("..data", "key"), volume.path); err != nil {
		t.Fatal(err)
	}
	volume.want("a Kubernetes volume at start", "one", true)
	publish("v2", "two")
	volume.want("the volume is swapped", "two", true)
}

// What is no file, or a fresh one in the future of this machine's clock.
func TestSecretFileOdds(t *testing.T) {
	t.Parallel()
	l := newLookout(t)
	l.write("one")
	l.age(l.path, -time.Hour)
	l.at = l.at.Add(-time.Hour)
	for i := range 2 {
		name := filepath.Join(t.TempDir(), fmt.Sprint(i))
		if err := os.Mkdir(name, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, _, err := l.Resolve(broker.Ref("file:" + name)); err == nil {
			t.Error("a directory has a value")
		}
	}
	l.path = os.DevNull
	if _, _, err := l.Resolve(broker.Ref("file:" + l.path)); err == nil || errors.Is(err, broker.ErrUnsettled) {
		t.Errorf("a device: %v", err)
	}
	if _, _, err := l.Resolve("env:TASKPASS_TEST_NO_SUCH"); err == nil {
		t.Error("an absent variable has a value")
	}
}
