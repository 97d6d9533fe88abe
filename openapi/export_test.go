package openapi_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
)

// crowd records n events of a task.
func (a *api) crowd(n int) {
	a.t.Helper()
	for i := 0; i < n; i += 500 {
		var list []broker.Event
		for j := i; j < min(i+500, n); j++ {
			list = append(list, broker.Event{
				ID: fmt.Sprintf("evt_%05d", j), At: a.clock.Now(), Type: "x", TaskID: "t", Reason: strings.Repeat("long ", 100), Caller: broker.Caller{Name: "c"},
			})
		}
		if err := a.store.Record(a.t.Context(), list...); err != nil {
			a.t.Fatal(err)
		}
	}
}

// open begins an export and hands on the answer unread.
func (a *api) open(ctx context.Context, accept, query string) *http.Response {
	a.t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url+"/v1/audit/events?"+query, http.NoBody)
	if err != nil {
		a.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+a.tokens["aud"])
	r.Header.Set("Accept", accept)
	response, err := a.http.Do(r)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = response.Body.Close() })
	return response
}

// An export has every event that matches, in its canonical bytes, in the order that was asked for, and says that it is whole.
func TestExportNDJSON(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	const n = 2345 // three pages
	a.crowd(n)
	eventually(t, "all are settled", func() bool { return len(a.audit("task_id=t&order=oldest&limit=1000").Events) == 1000 })
	for _, order := range []string{"newest", "oldest"} {
		var response *http.Response
		var lines []string
		// What another test's transaction holds back comes when that one ends.
		eventually(t, "the export is long enough", func() bool {
			response = a.open(t.Context(), "application/x-ndjson", "task_id=t&limit=3&order="+order)
			lines = nil
			for s := bufio.NewScanner(response.Body); s.Scan(); {
				lines = append(lines, s.Text())
			}
			return order == "newest" || len(lines) == n+1
		})
		if len(lines) != n+1 || lines[n] != fmt.Sprintf(`{"end":true,"events":%d}`, n) {
			t.Fatalf("%s: %d lines, the last is %s", order, len(lines), lines[len(lines)-1])
		}
		if got := response.Trailer.Get("Taskpass-Events"); got != strconv.Itoa(n) {
			t.Errorf("the trailer says %q", got)
		}
		if got := response.Header.Get("Content-Type"); got != "application/x-ndjson; charset=utf-8" || response.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%v", response.Header)
		}
		if order == "newest" {
			slices.Reverse(lines[:n])
		}
		for i, line := range lines[:n] {
			if id := fmt.Sprintf("evt_%05d", i); !strings.HasPrefix(line, `{"id":"`+id+`"`) {
				t.Fatalf("%s: line %d is %.60s", order, i, line)
			}
		}
		var body string
		if err := a.admin().QueryRow(t.Context(), "SELECT body FROM events WHERE id = 'evt_01234'").Scan(&body); err != nil || lines[1234] != body {
			t.Errorf("not the stored bytes: %s, %v", lines[1234], err)
		}
	}
	reads := a.audit("type=audit.read")
	if got := reads.Events[0].Trace; got["export"] != "application/x-ndjson" || got["task_id"] != "t" {
		t.Errorf("on the record is %v", got)
	}
}

// No spreadsheet runs what somebody put into a reason, and a reader of RFC 4180 gets back what was there.
func TestExportCSV(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	reasons := []string{"=1+1", "+1", "-1", "@x", "\t=1", "a,\"b\"", "two\nlines", " =1", "plain"}
	for i, reason := range reasons {
		e := broker.Event{ID: fmt.Sprint("evt_", i), At: a.clock.Now(), Type: "x", TaskID: "t", Reason: reason, Scopes: []string{"=a", "b"}, Caller: broker.Caller{Name: "@c"}}
		if err := a.store.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	got := a.call("aud", "GET", "/v1/audit/events?task_id=t", "", "Accept", "text/csv")
	if got.status != http.StatusOK || !strings.HasSuffix(got.body, "\r\n") {
		t.Fatalf("%d %q", got.status, got.body)
	}
	rows, err := csv.NewReader(strings.NewReader(got.body)).ReadAll()
	if err != nil || len(rows) != len(reasons)+1 || !slices.Equal(rows[0], audit.CSVColumns()) {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	column := func(name string) int { return slices.Index(rows[0], name) }
	for i, reason := range reasons {
		row := rows[len(reasons)-i]
		if strings.ContainsRune("=+-@\t", rune(reason[0])) {
			reason = "'" + reason
		}
		if row[column("reason")] != reason || row[column("scopes")] != `["=a","b"]` || row[column("caller")] != "'@c" || row[column("task_id")] != "t" {
			t.Errorf("%q", row)
		}
		for _, cell := range row {
			if cell != "" && strings.ContainsRune("=+-@\t\r\n", rune(cell[0])) {
				t.Errorf("a spreadsheet would run %q", cell)
			}
		}
	}
}

// A part is never taken for the whole: what breaks off is cut at the connection, without trailer or last line.
func TestExportThatBreaks(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.crowd(2500)
	if _, err := a.admin().Exec(t.Context(), "UPDATE events SET body = 'C4n4ry' WHERE id = 'evt_00003'"); err != nil {
		t.Fatal(err)
	}
	response := a.open(t.Context(), "text/csv", "task_id=t")
	text, err := io.ReadAll(response.Body)
	if !errors.Is(err, io.ErrUnexpectedEOF) || response.Trailer.Get("Taskpass-Events") != "" {
		t.Errorf("%v, trailer %v", err, response.Trailer)
	}
	if n := bytes.Count(text, []byte("\r\n")); n < 1000 || n > 2500 || bytes.Contains(text, []byte("C4n4ry")) {
		t.Errorf("%d lines came before", n)
	}
	eventually(t, "the log says so", func() bool { return strings.Contains(a.log.String(), "export broken off") })
	if strings.Contains(a.log.String(), "C4n4ry") || strings.Contains(a.log.String(), `"msg":"panic"`) {
		t.Error("the log says too much")
	}
}

// A client that goes away ends its export; its place is free again.
func TestExportsEndWithTheirClients(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.crowd(20_000) // 12 MB: more than the connection holds while nobody reads
	var stop []context.CancelFunc
	for range 2 { // all that one token may have
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stop = append(stop, cancel)
		if got := a.open(ctx, "application/x-ndjson", "task_id=t").StatusCode; got != http.StatusOK {
			t.Fatalf("answered %d", got)
		}
	}
	p := a.want(a.call("aud", "GET", "/v1/audit/events?task_id=t", "", "Accept", "application/x-ndjson"), broker.CodeRateLimited)
	if p.RetryAfterSeconds == 0 || !strings.Contains(p.Detail, "exports (2)") {
		t.Errorf("it does not say when to come again, or why not now: %+v", p)
	}
	// P12: another auditor's first export, and this one's searches, are served meanwhile.
	if got := a.call("ops", "GET", "/v1/audit/events?task_id=nobody", "", "Accept", "text/csv"); got.status != http.StatusOK {
		t.Errorf("another's export: %d", got.status)
	}
	if got := a.call("aud", "GET", "/v1/audit/events?task_id=t", ""); got.status != http.StatusOK {
		t.Errorf("a search: %d", got.status)
	}
	// No transaction is open while they wait for their readers: one would hold back the tree.
	var open int
	if err := a.admin().QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'").Scan(&open); err != nil || open != 0 {
		t.Errorf("%d transactions are open, %v", open, err)
	}
	for _, cancel := range stop {
		cancel()
	}
	eventually(t, "a place is free", func() bool {
		return a.open(t.Context(), "text/csv", "task_id=nobody").StatusCode == http.StatusOK
	})
}

func TestExportStopsWithTheService(t *testing.T) {
	t.Parallel()
	stopping, stop := context.WithCancel(context.Background())
	a := newAPI(t, func(_ *api, s *setup) { s.openapi.Stopping = stopping })
	a.crowd(20_000)
	response := a.open(t.Context(), "application/x-ndjson", "task_id=t")
	stop()
	if _, err := io.Copy(io.Discard, response.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
}

func TestFormatIsNegotiated(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for accept, want := range map[string]string{
		"": "application/json", "*/*": "application/json", "text/html": "application/json", "text/csv": "text/csv; charset=utf-8",
		"text/csv;q=0.5, application/x-ndjson": "application/x-ndjson; charset=utf-8", "application/json, text/csv": "application/json",
		"text/csv;q=0": "application/json", "text/csv;q=x, application/x-ndjson;q=0.1": "application/x-ndjson; charset=utf-8", ";;,": "application/json",
	} {
		got := a.call("aud", "GET", "/v1/audit/events?task_id=nobody", "", "Accept", accept)
		if got.status != http.StatusOK || got.header.Get("Content-Type") != want {
			t.Errorf("%q: %d %s", accept, got.status, got.header.Get("Content-Type"))
		}
	}
	a.want(a.call("orch", "GET", "/v1/audit/events", "", "Accept", "text/csv"), broker.CodeForbidden)
	a.want(a.call("aud", "GET", "/v1/audit/events?cursor=x", "", "Accept", "text/csv"), broker.CodeInvalidRequest)
	a.exec("REVOKE INSERT ON events FROM taskpass_service") // what cannot be put on record is not read
	a.want(a.call("aud", "GET", "/v1/audit/events", "", "Accept", "text/csv"), broker.CodeUnavailable)
}

// The caller's trace is on each event of the call, if the header is as W3C has it.
func TestTraceIDIsRecorded(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	for i, c := range []struct{ header, want string }{
		{"00-" + id + "-00f067aa0ba902b7-01", id}, {"cc-" + id + "-00f067aa0ba902b7-01-what-comes", id}, {"cc-" + id + "-00f067aa0ba902b7-01", id},
		{"", ""}, {id, ""}, {"ff-" + id + "-00f067aa0ba902b7-01", ""}, {"00-" + id + "-00f067aa0ba902b7-01-x", ""}, {"00-" + id + "-00f067aa0ba902b7-01x", ""},
		{"00-" + strings.Repeat("0", 32) + "-00f067aa0ba902b7-01", ""}, {"00-" + id + "-" + strings.Repeat("0", 16) + "-01", ""},
		{"00-" + strings.ToUpper(id) + "-00f067aa0ba902b7-01", ""}, {"00-" + id[1:] + "-00f067aa0ba902b7-01", ""},
	} {
		task := fmt.Sprint("t", i)
		a.issued(a.call("orch", "POST", "/v1/credentials", request("aws", task, `"read"`), "Traceparent", c.header))
		for _, e := range a.audit("task_id=" + task).Events {
			if e.TraceID != c.want {
				t.Errorf("%q: %s has %q", c.header, e.Type, e.TraceID)
			}
		}
	}
}

// A task's parent is on every event about what the task holds, also on those that come long after the request.
func TestParentIsOnEveryEvent(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	body := `{"task_id":"child","parent_task_id":"top","agent_id":"a","profile":%q,"scopes":["read"],"ttl_seconds":60}`
	c := a.issued(a.call("orch", "POST", "/v1/credentials", fmt.Sprintf(body, "aws")))
	a.call("orch", "POST", "/v1/credentials/"+c.ID+"/revoke", `{}`)
	a.issued(a.call("orch", "POST", "/v1/credentials", fmt.Sprintf(body, "aws")))
	a.clock.Advance(2 * time.Minute)
	a.sweep()
	a.want(a.call("orch", "POST", "/v1/credentials", fmt.Sprintf(body, "nobodys")), broker.CodeUnknownProfile)
	events := a.audit("task_id=child").Events
	if len(events) < 7 {
		t.Fatalf("%d events", len(events))
	}
	for _, e := range events {
		if e.ParentTaskID != "top" {
			t.Errorf("%s has %q", e.Type, e.ParentTaskID)
		}
	}
}
