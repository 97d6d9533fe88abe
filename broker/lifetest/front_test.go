package lifetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/providertest"
)

// front stands before the vendor: it counts calls, and does to those that a rule is for what the rule says.
type front struct {
	next http.Handler

	mu    sync.Mutex
	count map[string]int // by action and, for AssumeRole, also by "AssumeRole role"
	rules []*rule
}

// rule is what happens to the next calls of an action; role, if set, narrows it to one role's.
type rule struct {
	action, role string
	times        int // zero: once; negative: always
	kind         string
	arrived      chan struct{} // closed when the first call is there
	gate         chan struct{} // hold: the call goes on when it is closed
}

// What a rule does to a call.
const (
	refuse   = "refuse"   // 403: surely nothing was done
	throttle = "throttle" // 429: the same
	lose     = "lose"     // done, and the answer lost
	hang     = "hang"     // no answer, ever; nothing was done
	fail     = "fail"     // nothing was done; the connection breaks when let go
	hold     = "hold"     // nothing happens until let go
	late     = "late"     // done at once; the answer comes when let go
)

func newFront(next http.Handler) *front { return &front{next: next, count: map[string]int{}} }

// on adds a rule. Rules are tried in their order.
func (f *front) on(action, role, kind string, times int) *rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	if times == 0 {
		times = 1
	}
	r := &rule{action: action, role: role, kind: kind, times: times, arrived: make(chan struct{}), gate: make(chan struct{})}
	f.rules = append(f.rules, r)
	return r
}

// letGo lets the calls that the rule holds go on.
func (r *rule) letGo() { close(r.gate) }

// hurried ends a mint's time limit when its call hangs at the vendor, so that a test of the limit waits for no clock.
type hurried struct {
	broker.Provider
	front *front
}

func (h hurried) Mint(ctx context.Context, c broker.Credential) (broker.Minted, error) {
	return h.Provider.Mint(providertest.ExpireAfter(ctx, h.front.hanging()), c)
}

// hurry has both replicas give up a mint on the profile as soon as it hangs.
func (r *rig) hurry(profile string) {
	r.t.Helper()
	for _, replica := range r.replicas {
		all := maps.Clone(replica.broker.Profiles)
		p := all[profile]
		p.Upstream = hurried{p.Upstream, r.front}
		all[profile] = p
		if err := replica.broker.SetProfiles(all); err != nil {
			r.t.Fatal(err)
		}
	}
}

// hanging is closed when the next call that is to hang has arrived; nil if none is.
func (f *front) hanging() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.rules {
		if r.kind == hang && r.times != 0 {
			return r.arrived
		}
	}
	return nil
}

// heal takes all rules away.
func (f *front) heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = nil
}

// calls counts the calls of an action so far; "AssumeRole deny" is the one role's.
func (f *front) calls(action string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[action]
}

func (f *front) take(action, role string) *rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count[action]++
	f.count[action+" "+role]++
	for _, r := range f.rules {
		if r.times == 0 || r.action != action || r.role != "" && r.role != role {
			continue
		}
		r.times--
		select {
		case <-r.arrived:
		default:
			close(r.arrived)
		}
		return r
	}
	return nil
}

func (f *front) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	raw, err := io.ReadAll(q.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	q.Body = io.NopCloser(bytes.NewReader(raw))
	action, role := "", ""
	if form, err := url.ParseQuery(string(raw)); err == nil && q.URL.Path == "/" {
		action, role = form.Get("Action"), form.Get("RoleName")
		if arn := form.Get("RoleArn"); arn != "" {
			role = arn[strings.LastIndex(arn, "/")+1:]
		}
	}
	r := f.take(action, role)
	if r == nil {
		f.next.ServeHTTP(w, q)
		return
	}
	switch r.kind {
	case refuse:
		fault(w, http.StatusForbidden, "AccessDenied")
	case throttle:
		fault(w, http.StatusTooManyRequests, "Throttling")
	case hold:
		select {
		case <-r.gate:
		case <-q.Context().Done():
			panic(http.ErrAbortHandler)
		}
		f.next.ServeHTTP(w, q)
	case late:
		kept := httptest.NewRecorder()
		f.next.ServeHTTP(kept, q)
		select {
		case <-r.gate:
		case <-q.Context().Done():
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(kept.Code)
		_, _ = w.Write(kept.Body.Bytes())
	case fail:
		select {
		case <-r.gate:
		case <-q.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case lose:
		f.next.ServeHTTP(httptest.NewRecorder(), q)
		panic(http.ErrAbortHandler)
	default:
		<-q.Context().Done()
		panic(http.ErrAbortHandler)
	}
}

func fault(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<ErrorResponse><Error><Type>Sender</Type><Code>%s</Code><Message>no</Message></Error><RequestId>r</RequestId></ErrorResponse>`, code)
}
