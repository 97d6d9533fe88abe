package publish_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/taskpass/taskpass/audit/publish"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const origin = "taskpass.example/log"

func newSigner(t *testing.T) *tree.Signer {
	t.Helper()
	private, _, err := tree.NewKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := tree.NewSigner(origin, private)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sign(t *testing.T, s *tree.Signer, size int64) tree.Checkpoint {
	t.Helper()
	c, err := s.Sign(size, tlog.RecordHash(fmt.Append(nil, size)), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFile(t *testing.T) {
	t.Parallel()
	s, other := newSigner(t), newSigner(t)
	f := publish.File{Path: filepath.Join(t.TempDir(), "checkpoints")}
	newest := func(s *tree.Signer) (sizes []int64, err error) {
		list, err := f.Newest(context.Background(), s.Keys())
		for _, c := range list {
			sizes = append(sizes, c.Size)
		}
		return sizes, err
	}
	want := func(what, want string) {
		t.Helper()
		if got, err := newest(s); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v, %v; want %s", what, got, err, want)
		}
	}
	put := func(size int64) {
		t.Helper()
		if err := f.Put(t.Context(), sign(t, s, size)); err != nil {
			t.Fatal(err)
		}
	}
	want("before the first", "[]")
	put(1)
	put(5)
	want("two", "[1 5]")
	// A crash in the middle of a write.
	half := sign(t, s, 7).Note
	for _, n := range []int{5, 24, 60, 95, len(half) - 10} {
		text, err := os.ReadFile(f.Path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f.Path, append(text, half[:min(n, len(half))]...), 0o600); err != nil {
			t.Fatal(err)
		}
		put(9)
		if got, err := newest(s); err != nil || got[len(got)-1] != 9 {
			t.Errorf("behind %d bytes of a note: %v, %v", n, got, err)
		}
	}
	if _, err := newest(other); err == nil {
		t.Error("another log's file is taken for ours")
	}
	if err := (publish.File{Path: filepath.Join(t.TempDir(), "no", "where")}).Put(t.Context(), sign(t, s, 1)); err == nil {
		t.Error("written to nowhere")
	}
	// Far more than is read: only the end counts.
	long := strings.Repeat("x", 1<<20) + "\n"
	if err := os.WriteFile(f.Path, []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newest(s); err == nil {
		t.Error("an overwritten file is as good as none")
	}
	put(11)
	want("behind much else", "[11]")
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	type got struct{ body, kind, authorization string }
	var mu sync.Mutex
	var last got
	status, page := http.StatusNoContent, "C4n4ry"
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		last = got{string(text), r.Header.Get("Content-Type"), r.Header.Get("Authorization")}
		if status == http.StatusFound {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, page)
	}))
	defer hook.Close()
	client := publish.NewClient()
	defer client.CloseIdleConnections()
	h := publish.HTTP{URL: hook.URL + "/C4n4ry", Client: client, Authorization: broker.NewSecret("Bearer C4n4ry")}
	c := sign(t, s, 3)
	if err := h.Put(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if last != (got{c.Note, "text/plain; charset=utf-8", "Bearer C4n4ry"}) {
		t.Errorf("%+v", last)
	}
	for _, bad := range []int{http.StatusFound, http.StatusBadRequest, http.StatusInternalServerError} {
		mu.Lock()
		status = bad
		mu.Unlock()
		if err := h.Put(t.Context(), c); err == nil || strings.Contains(err.Error(), "C4n4ry") {
			t.Errorf("%d: %v", bad, err)
		}
	}
	mu.Lock()
	status, page = http.StatusOK, "<html><body>C4n4ry: log in"
	mu.Unlock()
	err := h.Put(t.Context(), c)
	if err == nil || strings.Contains(err.Error(), "C4n4ry") {
		t.Errorf("a login page: %v", err)
	}
	if got := broker.VendorAnswers(err); len(got) != 1 || got[0].Status != http.StatusOK || got[0].Vendor != "the hook" {
		t.Errorf("a login page: %+v", got)
	}
	hook.Close()
	if err := h.Put(t.Context(), c); err == nil || strings.Contains(err.Error(), "C4n4ry") {
		t.Errorf("nobody there: %v", err)
	}
}

// place is a destination that a test opens and closes.
type place struct {
	mu    sync.Mutex
	fails bool
	taken []int64
	came  chan struct{}
	hold  chan struct{} // nil: nothing holds it
}

func (p *place) Put(ctx context.Context, c tree.Checkpoint) error {
	p.came <- struct{}{}
	if p.hold != nil {
		select {
		case <-p.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fails {
		return errors.New("not now")
	}
	p.taken = append(p.taken, c.Size)
	return nil
}

// A destination that hangs holds nobody up; what waits for it is only the newest.
func TestQueue(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	slow := &place{came: make(chan struct{}, 100), hold: make(chan struct{})}
	q, err := publish.New(publish.Config{To: slow, Name: "slow", Logger: slog.New(slog.DiscardHandler), Retry: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { q.Run(ctx) })
	q.Publish(sign(t, s, 1))
	<-slow.came
	for size := range int64(50) {
		q.Publish(sign(t, s, size+2)) // does not wait
	}
	if q.Done().Size != 0 {
		t.Error("it says that one was taken")
	}
	close(slow.hold)
	<-slow.came
	// Failures are tried again, and give way to what is newer.
	slow.mu.Lock()
	slow.fails = true
	slow.mu.Unlock()
	q.Publish(sign(t, s, 60))
	for range 3 {
		<-slow.came
	}
	q.Publish(sign(t, s, 61))
	slow.mu.Lock()
	slow.fails = false
	slow.mu.Unlock()
	limit := time.After(2 * time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for q.Done().Size != 61 {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("never published")
		}
	}
	stop()
	wg.Wait()
	if got := fmt.Sprint(slow.taken); got != "[1 51 61]" && got != "[1 51 60 61]" {
		t.Errorf("taken: %s", got)
	}
	// What waits when it stops is tried once more.
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	q.Publish(sign(t, s, 70))
	q.Run(ended)
	if q.Done().Size != 70 {
		t.Errorf("the last is lost: %d", q.Done().Size)
	}
}

// failing panics at its first try.
type failing struct {
	tries int
	taken chan tree.Checkpoint
}

func (f *failing) Put(_ context.Context, c tree.Checkpoint) error {
	if f.tries++; f.tries == 1 {
		panic("C4n4ry")
	}
	f.taken <- c
	return nil
}

// A destination that panics gets the checkpoint again once the queue runs again, even if no other one follows.
func TestAPanicLosesNoCheckpoint(t *testing.T) {
	t.Parallel()
	to := &failing{taken: make(chan tree.Checkpoint, 1)}
	q, err := publish.New(publish.Config{To: to, Name: "x", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	q.Publish(sign(t, newSigner(t), 3))
	runner := broker.NewRunner(nil)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	run := func() error { q.Run(ctx); return nil }
	if err := runner.Do(ctx, "publish", run); err == nil {
		t.Fatal("no panic")
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = runner.Do(ctx, "publish", run) })
	defer wg.Wait()
	defer stop()
	select {
	case c := <-to.taken:
		if c.Size != 3 {
			t.Errorf("size %d", c.Size)
		}
	case <-time.After(time.Minute):
		t.Error("it is not tried again")
	}
}
