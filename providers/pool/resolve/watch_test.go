package resolve_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/pool/resolve"
	"github.com/taskpass/taskpass/providers/providertest"
	"github.com/taskpass/taskpass/providers/sandbox/fault"
	"github.com/taskpass/taskpass/providers/sandbox/stores"
)

// watched runs a Watch until the test's end. What it tells comes through the channel.
func watched(t *testing.T, r *resolve.Resolver, every time.Duration, refs ...string) <-chan string {
	t.Helper()
	told, done := make(chan string, 64), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(done)
		r.Watch(ctx, refs, every, func(ref string) { told <- ref })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return told
}

const patience = 2 * time.Minute // a file that is written in place counts after broker.FileSettles

func want(t *testing.T, told <-chan string, ref string) {
	t.Helper()
	select {
	case got := <-told:
		if got != ref {
			t.Fatalf("told of %s, want %s", got, ref)
		}
	case <-time.After(patience):
		t.Fatalf("not told of %s", ref)
	}
}

func plain(t *testing.T) *resolve.Resolver {
	t.Helper()
	r, err := resolve.New(resolve.Config{}, resolve.Wire{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A file that is written, replaced, removed and made anew. Nothing polls here: the hour would not pass.
func TestWatchFile(t *testing.T) {
	t.Parallel()
	path := file(t, "key", "one")
	ref := "file:" + path
	told := watched(t, plain(t), time.Hour, ref, "no reference")
	want(t, told, ref) // the first look
	write(t, path, "two")
	want(t, told, ref)
	providertest.WriteSecret(t, path, "three")
	want(t, told, ref)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	providertest.WriteSecret(t, path, "three") // the same again is no change
	write(t, filepath.Join(filepath.Dir(path), "other"), "x")
	providertest.WriteSecret(t, path, "four")
	want(t, told, ref)
	if len(told) != 0 {
		t.Errorf("told of %s too", <-told)
	}
}

// Kubernetes replaces a volume by swapping the link ..data, through which each file is reached.
func TestWatchKubernetesVolume(t *testing.T) {
	t.Parallel()
	volume := t.TempDir()
	publish := func(version int, text string) {
		t.Helper()
		dir := fmt.Sprintf("..2026_%d", version)
		if err := os.Mkdir(filepath.Join(volume, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		providertest.WriteSecret(t, filepath.Join(volume, dir, "key"), text)
		if err := os.Symlink(dir, filepath.Join(volume, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(volume, "..data_tmp"), filepath.Join(volume, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	publish(1, "one")
	if err := os.Symlink(filepath.Join("..data", "key"), filepath.Join(volume, "key")); err != nil {
		t.Fatal(err)
	}
	ref := "file:" + filepath.Join(volume, "key")
	told := watched(t, plain(t), time.Hour, ref)
	want(t, told, ref)
	for version := 2; version < 6; version++ {
		publish(version, fmt.Sprint("value ", version))
		want(t, told, ref) // by the link alone: the old files are still there
		if err := os.RemoveAll(filepath.Join(volume, fmt.Sprintf("..2026_%d", version-1))); err != nil {
			t.Fatal(err)
		}
	}
}

// A link into another directory, whose file is written where it is.
func TestWatchLinkedFile(t *testing.T) {
	t.Parallel()
	target := file(t, "key", "one")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	told := watched(t, plain(t), time.Hour, "file:"+link)
	want(t, told, "file:"+link)
	providertest.WriteSecret(t, target, "two")
	want(t, told, "file:"+link)
}

// A directory that is not there yet cannot be watched: it is looked at now and then.
func TestWatchFileThatComesLater(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "later")
	ref := "file:" + filepath.Join(dir, "key")
	told := watched(t, plain(t), 10*time.Millisecond, ref)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	providertest.WriteSecret(t, filepath.Join(dir, "key"), "one")
	want(t, told, ref)
}

// inProcess hands requests to a handler, so that a bubble's clock can run.
type inProcess struct{ http.Handler }

func (p inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	return w.Result(), nil
}

func vaultIn(t *testing.T, tokenRef broker.Ref) (*resolve.Resolver, *stores.Vault) {
	t.Helper()
	v, err := stores.NewVault(token, "", "kv")
	if err != nil {
		t.Fatal(err)
	}
	r, err := resolve.New(resolve.Config{
		Vault: resolve.Vault{Address: "https://vault.example.com", Token: tokenRef},
	}, resolve.Wire{Client: &http.Client{Transport: inProcess{v}}})
	if err != nil {
		t.Fatal(err)
	}
	return r, v
}

// A store is polled, about as often as was said, and only another value is a change.
func TestWatchPolls(t *testing.T) {
	t.Parallel()
	tokenRef := broker.Ref("file:" + file(t, "token", token))
	synctest.Test(t, func(t *testing.T) {
		r, v := vaultIn(t, tokenRef)
		v.Put("a", map[string]any{"key": "one"})
		v.Put("b", map[string]any{"key": "one"})
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		changes := map[string]int{}
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.Watch(ctx, []string{"vault:kv/a#key", "vault:kv/b#key"}, time.Minute, func(ref string) {
				mu.Lock()
				defer mu.Unlock()
				changes[ref]++
			})
		}()
		expect := func(a, b int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if changes["vault:kv/a#key"] != a || changes["vault:kv/b#key"] != b {
				t.Fatalf("told %v, want %d and %d", changes, a, b)
			}
		}
		expect(1, 1)
		v.Put("a", map[string]any{"key": "two"})
		v.Put("b", map[string]any{"key": "one", "note": "a new version, the same value"})
		time.Sleep(47 * time.Second)
		expect(1, 1) // not looked at yet
		time.Sleep(26 * time.Second)
		expect(2, 1)
		before := v.Calls("read")
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := (v.Calls("read") - before) / 2; n < 50 || n > 75 {
			t.Errorf("looked %d times in an hour", n)
		}
		expect(2, 1)
		cancel()
		<-done
	})
}

// A store that is down is not asked for everything, and what changed meanwhile is told of when it is back.
func TestWatchStoreThatIsDown(t *testing.T) {
	t.Parallel()
	tokenRef := broker.Ref("file:" + file(t, "token", token))
	synctest.Test(t, func(t *testing.T) {
		r, v := vaultIn(t, tokenRef)
		var refs []string
		for i := range 20 {
			v.Put(fmt.Sprint(i), map[string]any{"key": "one"})
			refs = append(refs, fmt.Sprintf("vault:kv/%d#key", i))
		}
		ctx, cancel := context.WithCancel(t.Context())
		var changes atomic.Int32
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.Watch(ctx, refs, time.Minute, func(string) { changes.Add(1) })
		}()
		synctest.Wait()
		if changes.Load() != 20 {
			t.Fatalf("told of %d", changes.Load())
		}
		v.Inject(fault.Fault{Kind: fault.Refuse, Status: 503, Times: -1})
		for i := range 20 {
			v.Put(fmt.Sprint(i), map[string]any{"key": "two"})
		}
		before := v.Calls("read")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := v.Calls("read") - before; n < 3*8 || n > 3*13 {
			t.Errorf("a dead store was asked %d times in ten minutes", n)
		}
		v.Clear()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if changes.Load() != 40 {
			t.Errorf("told of %d, want 40", changes.Load())
		}
		cancel()
		<-done
	})
}

// A store that hangs holds up neither another nor the end.
func TestWatchStoreThatHangs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.vault.Put("a", map[string]any{"key": "x"})
	r.aws.Put(region, "a", "x")
	r.vault.Inject(fault.Fault{Kind: fault.Hang, Times: -1})
	told := watched(t, r.Resolver, 20*time.Millisecond, "vault:kv/a#key", "aws-sm:eu-west-1/a")
	want(t, told, "aws-sm:eu-west-1/a")
	r.aws.Put(region, "a", "y")
	want(t, told, "aws-sm:eu-west-1/a")
	r.vault.Await("read", 1)
}

// A panic of whoever is told is the caller's of Watch, and leaves no goroutine behind: see TestMain.
func TestWatchPassesAPanicOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.vault.Put("a", map[string]any{"key": "x"})
	path := file(t, "key", "x")
	err := broker.Recovered(func() error {
		r.Watch(t.Context(), []string{"vault:kv/a#key", "file:" + path}, time.Hour, func(string) { panic("told") })
		return nil
	})
	if _, ok := errors.AsType[*broker.PanicError](err); !ok {
		t.Errorf("%v", err)
	}
}
