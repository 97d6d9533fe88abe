// Package fault lets a stand-in go wrong on purpose: refuse, throttle, fail, lose a reply, hang. It decides when and how
// an HTTP exchange goes wrong, and knows no vendor: what an error looks like is the stand-in's.
package fault

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Kind is what goes wrong.
type Kind int

// The kinds. All but DropReply and Lie happen instead of the work.
const (
	// Refuse answers Status.
	Refuse Kind = iota + 1
	// Throttle answers 429 with Retry-After, if RetryAfter is set.
	Throttle
	// DropReply does the work and closes the connection without a byte: a lost reply. Go's client sends a GET again by
	// itself after that.
	DropReply
	// Hang answers nothing until the client goes away or the server closes.
	Hang
	// Verbatim answers Status with Body as it is.
	Verbatim
	// Lie does the work, and answers with what Edit makes of the true answer's body.
	Lie
)

// Fault is something that goes wrong with requests that were let in.
type Fault struct {
	Action     string                   // which requests: the name that the stand-in gives them. Empty: any.
	Kind       Kind                     // required
	Status     int                      // of Refuse and Verbatim
	Body       string                   // of Verbatim
	Edit       func(body []byte) []byte // of Lie
	Header     http.Header
	RetryAfter time.Duration // of Throttle and Refuse, in whole seconds
	Times      int           // how many requests it befalls. Zero: one. Negative: all, until Clear.
}

// Queue holds what is to go wrong: a request takes the oldest fault that is for it. The zero value is not ready: use New.
type Queue struct {
	closed  chan struct{}
	closing sync.Once

	faults Line[Fault]

	mu    sync.Mutex
	calls map[string]int
	seen  *sync.Cond
}

// New makes an empty queue.
func New() *Queue {
	q := &Queue{closed: make(chan struct{}), calls: map[string]int{}}
	q.seen = sync.NewCond(&q.mu)
	return q
}

// Inject queues a fault. It panics on one that cannot be: only tests call it.
func (q *Queue) Inject(f Fault) {
	if f.Kind < Refuse || f.Kind > Lie || f.Kind == Lie && f.Edit == nil || (f.Kind == Refuse || f.Kind == Verbatim) && (f.Status < 200 || f.Status > 599) {
		panic(fmt.Sprintf("sandbox fault: kind %d with status %d", f.Kind, f.Status))
	}
	q.faults.Add(f, f.Times)
}

// Clear drops what is queued. A request that already hangs goes on hanging.
func (q *Queue) Clear() { q.faults.Clear() }

// Close ends what hangs.
func (q *Queue) Close() { q.closing.Do(func() { close(q.closed) }) }

// Calls is how many requests of an action came so far, well or ill served.
func (q *Queue) Calls(action string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.calls[action]
}

// Await returns when n requests of an action have come.
func (q *Queue) Await(action string, n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.calls[action] < n {
		q.seen.Wait()
	}
}

// take finds what befalls a request, and then lets those know who await it.
func (q *Queue) take(action string) (Fault, bool) {
	f, _, ok := q.faults.Take(func(f Fault) bool { return f.Action == "" || strings.EqualFold(f.Action, action) })
	q.mu.Lock()
	defer q.mu.Unlock()
	q.calls[action]++
	q.seen.Broadcast()
	return f, ok
}

// Serve serves one request of an action by do, or does what a fault says instead. refuse writes the vendor's form of an
// error with a status.
func (q *Queue) Serve(w http.ResponseWriter, r *http.Request, action string, do http.HandlerFunc, refuse func(w http.ResponseWriter, status int)) {
	f, ok := q.take(action)
	if !ok {
		do(w, r)
		return
	}
	for name, values := range f.Header {
		w.Header()[name] = values
	}
	if f.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(f.RetryAfter/time.Second)))
	}
	switch f.Kind {
	case DropReply:
		do(nowhere{http.Header{}}, r)
		// The way a handler tells net/http to close the connection without an answer.
		panic(http.ErrAbortHandler)
	case Hang:
		select {
		case <-r.Context().Done():
		case <-q.closed:
		}
		panic(http.ErrAbortHandler)
	case Throttle:
		refuse(w, http.StatusTooManyRequests)
	case Lie:
		kept := &keeper{nowhere: nowhere{w.Header()}}
		do(kept, r)
		w.Header().Del("Content-Length")
		w.WriteHeader(max(kept.status, http.StatusOK))
		_, _ = w.Write(f.Edit(kept.body))
	case Verbatim:
		w.WriteHeader(f.Status)
		_, _ = w.Write([]byte(f.Body))
	default:
		refuse(w, f.Status)
	}
}

// nowhere takes an answer that nobody gets.
type nowhere struct{ header http.Header }

func (n nowhere) Header() http.Header          { return n.header }
func (nowhere) WriteHeader(int)                {}
func (nowhere) Write(body []byte) (int, error) { return len(body), nil }

// keeper keeps an answer back.
type keeper struct {
	nowhere
	status int
	body   []byte
}

func (k *keeper) WriteHeader(status int) { k.status = status }

func (k *keeper) Write(body []byte) (int, error) {
	k.body = append(k.body, body...)
	return len(body), nil
}
