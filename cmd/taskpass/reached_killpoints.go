//go:build killpoints

package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
)

// passed counts how often the process has come to the point that it is to die at.
var passed atomic.Int64

// reached kills the process, as nothing can be caught of, at the point that TASKPASS_KILL_AT names: POINT, or POINT:N for
// the N-th time. Only crash tests build with the tag killpoints.
func reached(point string) {
	name, nth, _ := strings.Cut(os.Getenv("TASKPASS_KILL_AT"), ":")
	if point == name && fmt.Sprint(passed.Add(1)) == cmp.Or(nth, "1") {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

func reachedInTree(_ context.Context, point string) { reached(point) }
