package console_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// stream is an open live page. Its events come one after the other; the channel is closed at the stream's end.
type stream struct {
	events <-chan sent
	close  context.CancelFunc
}

type sent struct{ name, id, data string }

func (v *visitor) follow(path string, headers ...string) stream {
	v.r.t.Helper()
	ctx, cancel := context.WithCancel(v.r.t.Context())
	v.r.t.Cleanup(cancel)
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, v.r.urls[0]+path, nil)
	must(v.r.t, err)
	for i := 0; i+1 < len(headers); i += 2 {
		q.Header.Set(headers[i], headers[i+1])
	}
	answer, err := v.http.Do(q)
	must(v.r.t, err)
	if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != "text/event-stream" {
		v.r.t.Fatalf("%s answered %d", path, answer.StatusCode)
	}
	events := make(chan sent)
	go func() {
		defer close(events)
		defer answer.Body.Close()
		lines := bufio.NewReader(answer.Body)
		var e sent
		for {
			line, err := lines.ReadString('\n')
			if errors.Is(err, io.EOF) || err != nil {
				return
			}
			switch line = strings.TrimSuffix(line, "\n"); {
			case strings.HasPrefix(line, "event: "):
				e.name = line[7:]
			case strings.HasPrefix(line, "id: "):
				e.id = line[4:]
			case strings.HasPrefix(line, "data: "):
				e.data += line[6:] + "\n"
			case line == "" && e.name != "":
				select {
				case events <- e:
				case <-ctx.Done():
					return
				}
				e = sent{}
			}
		}
	}()
	return stream{events, cancel}
}

// next waits for an event; false at the end.
func (s stream) next(t *testing.T) (sent, bool) {
	t.Helper()
	select {
	case e, ok := <-s.events:
		return e, ok
	case <-time.After(2 * time.Minute):
		t.Fatal("nothing comes")
		return sent{}, false
	}
}

// until reads on to an event of which that is true.
func (s stream) until(t *testing.T, what string, is func(sent) bool) sent {
	t.Helper()
	for {
		e, ok := s.next(t)
		if !ok {
			t.Fatalf("the stream ended before %s", what)
		}
		if is(e) {
			return e
		}
	}
}

func TestLive(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.issue("aws", "t", "read")
	v := r.enter("aud")
	for _, path := range []string{"/console/events?task_id=t&live=1", "/console/task?id=t&live=1", "/console/credentials?task_id=t&live=1"} {
		s := v.follow(path)
		first, _ := s.next(t)
		c := r.issue("aws", "t", "read")
		if first.name != "page" || strings.Contains(first.data, "<html") || strings.Contains(first.data, c.ID) {
			t.Errorf("%s begins with %s", path, first.data)
		}
		s.until(t, "the new credential was in "+path, func(e sent) bool { return strings.Contains(e.data, c.ID) })
		s.close()
	}
	// A stream is one read on the record, however often it looks.
	_, body := r.api("aud", "GET", "/v1/audit/events?type=audit.read&caller=aud", "")
	if n := strings.Count(body, `"console":`); n != 4 { // and the sign-in
		t.Errorf("%d reads on the record, want 4", n)
	}
	for _, path := range []string{"/console/event?id=x&live=1", "/console/events?order=oldest&live=1", "/console/trace?q=x&live=1", "/console/task?id=t&verify=1&live=1"} {
		if p := v.get(path); p.status != http.StatusNotFound {
			t.Errorf("%s: %d", path, p.status)
		}
	}
}

func TestLiveEnds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end  func(*rig)
		gone bool
	}{
		"with the token":   {func(r *rig) { must(r.t, r.callers.Revoke(r.t.Context(), broker.Caller{Name: "t"}, r.ids["aud"])) }, true},
		"after 12 hours":   {func(r *rig) { r.clock.Advance(13 * time.Hour) }, true},
		"with the service": {func(r *rig) { r.stop() }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			s := r.enter("aud").follow("/console/events?task_id=t&live=1")
			s.next(t)
			c.end(r)
			gone := false
			for e, ok := s.next(t); ok; e, ok = s.next(t) {
				gone = e.name == "gone"
			}
			if gone != c.gone {
				t.Errorf("told that it is over: %v", gone)
			}
		})
	}
}

// P12: one auditor follows as many pages as its share has; it still reads pages, and another auditor follows.
func TestLivePagesAreBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(s *setup) { s.console.Every = time.Hour })
	v := r.enter("aud")
	var open []stream
	for range broker.DefaultConcurrency.LivePages.PerToken {
		s := v.follow("/console/events?task_id=t&live=1")
		s.next(t)
		open = append(open, s)
	}
	if p := v.get("/console/events?task_id=t&live=1"); p.status != http.StatusTooManyRequests || p.header.Get("Retry-After") == "" {
		t.Errorf("one more: %d", p.status)
	}
	v.see("/console/events") // pages are still served
	other := r.enter("ops").follow("/console/events?task_id=t&live=1")
	other.next(t)
	open[0].close()
	eventually(t, "there is room again", func() bool {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, r.urls[0]+"/console/events?task_id=t&live=1", nil)
		must(t, err)
		answer, err := v.http.Do(q)
		must(t, err)
		defer answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
}

// Every page counts as a search while it is read, and nobody's are refused because another has its share.
func TestPagesAreBounded(t *testing.T) {
	t.Parallel()
	limits := broker.NewConcurrency(broker.ConcurrencyBounds{Searches: broker.Bounds{PerToken: 1, PerCaller: 2, Total: 4}})
	r := newRig(t, func(s *setup) { s.console.Limits = limits })
	v, other := r.enter("aud"), r.enter("ops")
	caller, err := r.callers.Authenticate(t.Context(), r.tokens["aud"])
	must(t, err)
	release, err := limits.Searches.Acquire(caller)
	must(t, err)
	for _, path := range pages {
		if p := v.get(path); p.status != http.StatusTooManyRequests || p.header.Get("Retry-After") == "" || !strings.Contains(p.body, "share of open searches") {
			t.Errorf("%s: %d", path, p.status)
		}
		if p := other.get(path); p.status == http.StatusTooManyRequests {
			t.Errorf("%s for another auditor: %d", path, p.status)
		}
	}
	release()
	v.see("/console/events")
	if n := limits.Searches.Open() + limits.LivePages.Open(); n != 0 {
		t.Errorf("%d are open at the end", n)
	}
}

// P7: no page, however it is asked for, holds a secret in any form.
func TestNoSecretInAnyPage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.issue("aws", "t", "read")
	r.refresh(c)
	key := r.issue("pool", "t", "call")
	status, ticket := r.api("orch", "POST", "/v1/credentials", `{"task_id":"t","agent_id":"agent-17","profile":"aws","scopes":["read"],"ttl_seconds":900,"delivery":"ticket","task_token":true}`)
	if status != http.StatusCreated {
		t.Fatal(status, ticket)
	}
	for name, prefix := range map[string]string{"a ticket": "tpx_", "a task's token": "tpt_"} {
		if i := strings.Index(ticket, prefix); i >= 0 {
			r.secrets[name] = ticket[i : i+40]
		} else {
			t.Errorf("the answer has no %s: %s", name, ticket)
		}
	}
	r.api("orch", "POST", "/v1/credentials/"+key.ID+"/revoke", `{}`)
	r.api("orch", "POST", "/v1/credentials", `{"task_id":"t","agent_id":"agent-17","profile":"aws","scopes":["`+r.tokens["orch"]+`"]}`)
	r.sign()
	if len(r.secrets) < 10 {
		t.Fatalf("only %d secrets are looked for", len(r.secrets))
	}
	v := r.enter("ops")
	said := map[string]string{}
	first := v.follow("/console/task?id=t&live=1")
	e, _ := first.next(t)
	said["a live page"] = e.data
	first.close()
	for _, token := range []string{r.tokens["orch"], r.secrets["a ticket"], r.secrets["a task's token"]} {
		for _, path := range []string{"/console/events?task_id=", "/console/events?csv=events&caller=", "/console/task?id=", "/console/credential?id=", "/console/trace?q=",
			"/console/event?id=", "/?window=", "/console/credentials?agent_id=", "/console/signin?next=", "/console/trace?at=", "/console/events?fingerprint=", "/console/tree?unheard_of=", "/console/tree?",
			"/console/events?csv="} {
			said[path+token] = v.get(path + token).body
			stranger := r.visitor().get(path + token)
			said["for a stranger: "+path+token] = stranger.body + stranger.header.Get("Location")
		}
	}
	for _, path := range append(pages, "/console/task?id=t", "/console/task?id=t&verify=1", "/console/credential?id="+c.ID, "/console/credential?id="+key.ID, "/console/signin",
		"/console/trace?q=models/key-1", "/console/events?limit=1000", "/console/events?limit=1000&csv=events", "/console/task?id=t&csv=versions", "/console/trace?csv=trace&q=models/key-1", "/console/credentials?csv=credentials", "/console/credentials?state=stuck") {
		p := v.get(path)
		said[path] = p.body + p.header.Get("Location")
	}
	said["the log"] = r.log.String()
	for where, text := range said {
		for what, secret := range r.secrets {
			for _, form := range []string{secret, hex.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte(secret)),
				base64.RawURLEncoding.EncodeToString([]byte(secret))} {
				if secret != "" && strings.Contains(text, form) {
					t.Errorf("%s is in %.60s", what, where)
				}
			}
		}
	}
}
