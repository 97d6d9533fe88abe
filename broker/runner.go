package broker

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

// Pauses before a loop that panicked starts again; each panic in a row doubles the pause.
const (
	restartPause    = time.Second
	restartPauseMax = time.Minute
	restartHealthy  = 5 * time.Minute // a loop that ran this long starts again after the first pause
)

// Runner runs background work so that a panic in it ends neither the process nor other work (P11). Every goroutine of the
// process runs under Do, Loop or a Group, or below an HTTP handler. It is safe for concurrent use; nil is a Runner without
// a log.
type Runner struct {
	logger *slog.Logger

	mu     sync.Mutex
	panics map[string]int64 // by the name of the work
}

// NewRunner makes a Runner; a nil logger discards.
func NewRunner(logger *slog.Logger) *Runner {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Runner{logger: logger, panics: map[string]int64{}}
}

// Do calls fn once. A panic is logged and counted under the name, and returned as a *PanicError.
func (r *Runner) Do(ctx context.Context, name string, fn func() error) error {
	err := Recovered(fn)
	if p, ok := err.(*PanicError); ok { //nolint:errorlint // a wrapped one was counted where it was recovered
		r.record(ctx, name, p)
	}
	return err
}

// Loop calls fn until it returns without a panic or ctx ends. After a panic it starts fn again, after a pause.
func (r *Runner) Loop(ctx context.Context, name string, fn func(context.Context)) {
	pause := restartPause
	for {
		started := time.Now()
		err := r.Do(ctx, name, func() error { fn(ctx); return nil })
		if err == nil || ctx.Err() != nil {
			return
		}
		if time.Since(started) >= restartHealthy {
			pause = restartPause
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		pause = min(2*pause, restartPauseMax)
	}
}

// Panics is how often each piece of work has panicked since the process started.
func (r *Runner) Panics() map[string]int64 {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.panics)
}

func (r *Runner) record(ctx context.Context, name string, p *PanicError) {
	if r == nil {
		return
	}
	r.mu.Lock()
	r.panics[name]++
	r.mu.Unlock()
	r.logger.ErrorContext(ctx, "panic", "in", name, "type", p.Type, "stack", p.Stack)
}

// PanicError is a recovered panic. The panic's value is not kept, because it may hold a secret (P7).
type PanicError struct {
	Type  string   // of the panic's value
	Stack []string // file:line of each frame
}

// Error implements error.
func (e *PanicError) Error() string { return "panic of type " + e.Type }

// Recovered calls fn and returns its error, or its panic as a *PanicError.
func Recovered(fn func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = NewPanicError(v)
		}
	}()
	return fn()
}

// NewPanicError describes a recovered value. Call it in the deferred function that recovered.
func NewPanicError(v any) *PanicError {
	if p, ok := v.(*PanicError); ok { // passed on by Group.Wait
		return p
	}
	e := &PanicError{Type: fmt.Sprintf("%T", v)}
	// Only the lines with places are kept: the others show arguments, and the first one quotes the panic's value.
	for line := range strings.Lines(string(debug.Stack())) {
		if place, ok := strings.CutPrefix(line, "\t"); ok {
			e.Stack = append(e.Stack, strings.TrimSpace(place))
		}
	}
	return e
}

// Group waits for goroutines and passes their first panic on to whoever waits, so that the recovery of that goroutine
// covers them as well. The zero value is ready to use.
type Group struct {
	// Panicked is called once, on the first panic. It ends members that would otherwise run on. Nil: nothing is called.
	Panicked func()

	wg    sync.WaitGroup
	mu    sync.Mutex
	panic *PanicError
}

// Go runs fn in a goroutine.
func (g *Group) Go(fn func()) {
	g.wg.Go(func() {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			p := NewPanicError(v)
			g.mu.Lock()
			first := g.panic == nil
			if first {
				g.panic = p
			}
			g.mu.Unlock()
			if first && g.Panicked != nil {
				g.Panicked()
			}
		}()
		fn()
	})
}

// Wait returns when every goroutine has ended. It panics with a *PanicError if one of them panicked.
func (g *Group) Wait() {
	g.wg.Wait()
	g.mu.Lock()
	p := g.panic
	g.mu.Unlock()
	if p != nil {
		panic(p)
	}
}
