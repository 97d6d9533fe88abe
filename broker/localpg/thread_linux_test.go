package localpg_test

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"testing"

	"github.com/taskpass/taskpass/broker/localpg"
)

// The server must not die with the thread that asked for it. Linux tells a child of its parent's death when the thread that
// forked it dies, and the server takes that before the next connection.
func TestStarterThreadEnds(t *testing.T) {
	t.Parallel()
	cfg := config(tempDir(t))
	var server *localpg.Server
	var err error
	thread := onAThreadThatEnds(func() { server, err = localpg.Start(t.Context(), cfg) })
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	eventually(t, "the thread has ended", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", thread))
		return err != nil
	})
	if got := query(t, server, "SELECT 'alive'"); got != "alive" {
		t.Errorf("got %q", got)
	}
}

// onAThreadThatEnds runs fn, and answers the thread that ends after it.
func onAThreadThatEnds(fn func()) (thread int) {
	done := make(chan struct{})
	locked := func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		defer close(done)
		thread = syscall.Gettid()
		fn()
	}
	go func() {
		runtime.LockOSThread()
		if syscall.Gettid() != os.Getpid() {
			locked()
			return
		}
		// The first thread outlives its goroutines. While this one keeps it, another gets another.
		go locked()
		<-done
		runtime.UnlockOSThread()
	}()
	<-done
	return thread
}
