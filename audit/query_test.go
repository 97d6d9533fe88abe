package audit_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
)

func record(t testing.TB, s *store.Store, events ...broker.Event) {
	t.Helper()
	if err := s.Record(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
}

func ids(t testing.TB, p audit.Page) []string {
	t.Helper()
	var list []string
	for _, body := range p.Events {
		var e struct{ ID string }
		if err := json.Unmarshal(body, &e); err != nil {
			t.Fatal(err)
		}
		list = append(list, e.ID)
	}
	return list
}

func find(t testing.TB, l *audit.Log, q audit.Query) audit.Page {
	t.Helper()
	p, err := l.Find(t.Context(), q)
	if err != nil {
		t.Fatalf("%+v: %v", q, err)
	}
	return p
}

// settle waits until the oldest-first reading shows n events. PostgreSQL's horizon is the whole server's: what another
// test's transaction holds back comes when that one ends.
func settle(t testing.TB, l *audit.Log, n int) {
	t.Helper()
	limit := time.After(2 * time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for len(find(t, l, audit.Query{OldestFirst: true, Limit: n}).Events) < n {
		select {
		case <-limit:
			t.Fatalf("%d events never show", n)
		case <-tick.C:
		}
	}
}

// follow reads all pages.
func follow(t testing.TB, l *audit.Log, q audit.Query) []string {
	t.Helper()
	var all []string
	for range 1000 {
		p := find(t, l, q)
		if q.Limit > 0 && len(p.Events) > q.Limit {
			t.Fatalf("a page of %d, asked for %d", len(p.Events), q.Limit)
		}
		all = append(all, ids(t, p)...)
		if p.Next == "" {
			return all
		}
		q.Cursor = p.Next
	}
	t.Fatal("the pages have no end")
	return nil
}

func TestFilters(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	l := audit.NewLog(s.Pool())
	base := time.Now().UTC().Truncate(time.Second)
	for i, e := range []broker.Event{
		{TaskID: "t1", AgentID: "a1", Profile: "p1", Provider: "aws", Type: broker.EventIssued, Credential: "crd_1", VersionID: "vvvvvvvvvvvvvvvv",
			UpstreamIDs: []string{"ASIA1", "ASIA2"}, Caller: broker.Caller{Name: "c1"}},
		{TaskID: "t1", AgentID: "a2", Profile: "p1", Provider: "aws", Type: broker.EventRevoked, Credential: "crd_1", VersionID: "vvvvvvvvvvvvvvvv",
			UpstreamIDs: []string{"ASIA1"}, Caller: broker.Caller{Name: "c2"}},
		{TaskID: "t2", AgentID: "a1", Profile: "p2", Provider: "pool", Type: broker.EventIssued, Credential: "crd_2", VersionID: "wwwwwwwwwwwwwwww",
			UpstreamIDs: []string{"search/key-1"}, Caller: broker.Caller{Name: "c1"}},
		{Type: broker.EventConfigLoaded, Caller: broker.Caller{Name: "taskpass"}},
	} {
		e.ID, e.At = fmt.Sprint("e", i), base.Add(time.Duration(i)*time.Second)
		record(t, s, e)
	}
	settle(t, l, 4)
	for what, c := range map[string]struct {
		q    audit.Query
		want string
	}{
		"all, newest first":  {audit.Query{}, "e3 e2 e1 e0"},
		"oldest first":       {audit.Query{OldestFirst: true}, "e0 e1 e2 e3"},
		"task":               {audit.Query{TaskID: "t1"}, "e1 e0"},
		"agent":              {audit.Query{AgentID: "a1"}, "e2 e0"},
		"caller":             {audit.Query{Caller: "c1"}, "e2 e0"},
		"profile":            {audit.Query{Profile: "p2"}, "e2"},
		"provider":           {audit.Query{Provider: "aws"}, "e1 e0"},
		"type":               {audit.Query{Type: "credential.issued"}, "e2 e0"},
		"credential":         {audit.Query{CredentialID: "crd_1"}, "e1 e0"},
		"upstream id":        {audit.Query{UpstreamID: "ASIA1"}, "e1 e0"},
		"second upstream id": {audit.Query{UpstreamID: "ASIA2"}, "e0"},
		"version id":         {audit.Query{UpstreamID: "wwwwwwwwwwwwwwww"}, "e2"},
		"with a slash":       {audit.Query{UpstreamID: "search/key-1"}, "e2"},
		"since, inclusive":   {audit.Query{Since: base.Add(2 * time.Second)}, "e3 e2"},
		"until, exclusive":   {audit.Query{Until: base.Add(2 * time.Second)}, "e1 e0"},
		"between":            {audit.Query{Since: base.Add(time.Second), Until: base.Add(2 * time.Second)}, "e1"},
		"all together": {audit.Query{TaskID: "t1", AgentID: "a1", Caller: "c1", Profile: "p1", Provider: "aws", Type: "credential.issued",
			CredentialID: "crd_1", UpstreamID: "ASIA2", Since: base, Until: base.Add(time.Second)}, "e0"},
		"nothing in common": {audit.Query{TaskID: "t1", AgentID: "a1", Type: "credential.revoked"}, ""},
		"a part of an id":   {audit.Query{UpstreamID: "ASIA"}, ""},
		"a pattern":         {audit.Query{TaskID: "t%"}, ""},
		"a quote":           {audit.Query{TaskID: "' OR true --"}, ""},
	} {
		if got := strings.Join(ids(t, find(t, l, c.q)), " "); got != c.want {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
		c.q.Limit = 1
		if got := strings.Join(follow(t, l, c.q), " "); got != c.want {
			t.Errorf("%s, page by page: %q, want %q", what, got, c.want)
		}
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	l := audit.NewLog(s.Pool())
	var want []string
	for i := range 250 {
		e := broker.Event{ID: fmt.Sprintf("e%03d", i), At: time.Now(), Type: "x", TaskID: "t"}
		want = append(want, e.ID)
		record(t, s, e)
	}
	settle(t, l, 250)
	for _, limit := range []int{1, 7, 125, 249, 250, 251, 1000} {
		if got := follow(t, l, audit.Query{OldestFirst: true, Limit: limit}); !slices.Equal(got, want) {
			t.Errorf("by %d, from the oldest: %d events, %s", limit, len(got), cmp.Diff(want, got))
		}
		got := follow(t, l, audit.Query{TaskID: "t", Limit: limit})
		slices.Reverse(got)
		if !slices.Equal(got, want) {
			t.Errorf("by %d, from the newest: %d events", limit, len(got))
		}
	}
	for limit, want := range map[int]int{0: 100, -5: 1, 5000: 250} {
		if n := len(find(t, l, audit.Query{Limit: limit}).Events); n != want {
			t.Errorf("a limit of %d gives %d", limit, n)
		}
	}
	// What is new does not disturb who reads from the newest on.
	first := find(t, l, audit.Query{Limit: 10})
	record(t, s, broker.Event{ID: "new", At: time.Now(), Type: "x"})
	if second := ids(t, find(t, l, audit.Query{Limit: 10, Cursor: first.Next})); second[0] != "e239" {
		t.Errorf("the second page begins with %s", second[0])
	}
}

// The bytes that are read are the bytes that were written.
func TestEventsAreKeptAsTheyWere(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	l := audit.NewLog(s.Pool())
	for name, e := range shapes {
		if e.ID == "" {
			continue
		}
		e.ID = "evt_" + name
		want, err := audit.Canonical(e)
		if err != nil {
			t.Fatal(err)
		}
		record(t, s, e)
		if got := find(t, l, audit.Query{Limit: 1}).Events[0]; !bytes.Equal(got, want) {
			t.Errorf("%s: %s", name, cmp.Diff(string(want), string(got)))
		}
	}
}

// A transaction that began first and commits last: who follows the record from the oldest on waits for it.
func TestFollowerMissesNothing(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	l := audit.NewLog(s.Pool())
	event := func(id string) broker.Event { return broker.Event{ID: id, At: time.Now(), Type: "x"} }
	record(t, s, event("first"))
	settle(t, l, 1)

	tx, err := s.Pool().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	var batch pgx.Batch
	if err := audit.Append(&batch, []broker.Event{event("slow")}); err != nil {
		t.Fatal(err)
	}
	if err := tx.SendBatch(t.Context(), &batch).Close(); err != nil {
		t.Fatal(err)
	}
	record(t, s, event("quick"))

	p := find(t, l, audit.Query{OldestFirst: true, Limit: 1})
	if got := ids(t, p); !slices.Equal(got, []string{"first"}) {
		t.Fatalf("before the slow one commits: %v", got)
	}
	if got := ids(t, find(t, l, audit.Query{})); !slices.Equal(got, []string{"quick", "first"}) {
		t.Errorf("newest first shows %v", got)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	settle(t, l, 3)
	if got := follow(t, l, audit.Query{OldestFirst: true, Limit: 1}); !slices.Equal(got, []string{"first", "slow", "quick"}) {
		t.Errorf("afterwards: %v", got)
	}
}

// Many write while one follows, with cursors only, and resumes from its last one whenever it is at the end.
func TestFollowingWhileWriting(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	l := audit.NewLog(s.Pool())
	const writers, each = 8, 60
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				record(t, s, broker.Event{ID: fmt.Sprintf("w%d-%d", w, i), At: time.Now(), Type: "x"})
			}
		})
	}
	seen := map[string]int{}
	limit := time.Now().Add(2 * time.Minute)
	for q := (audit.Query{OldestFirst: true, Limit: 16}); len(seen) < writers*each && time.Now().Before(limit); {
		p := find(t, l, q)
		if p.Next == "" && len(seen)+len(p.Events) < writers*each {
			continue // at the end there is no cursor: the last page is read again
		}
		for _, id := range ids(t, p) {
			seen[id]++
		}
		q.Cursor = p.Next
	}
	wg.Wait()
	if len(seen) != writers*each {
		t.Errorf("saw %d of %d", len(seen), writers*each)
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s was seen %d times", id, n)
		}
	}
}

func TestBadCursors(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	l := audit.NewLog(s.Pool())
	encode := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	for _, cursor := range []string{
		"!", "=", " ", "abc", encode("."), encode("1"), encode("1."), encode(".1"), encode("1.2.3"), encode("-1.2"), encode("x.y"),
		encode("99999999999999999999.1"), encode("1.99999999999999999999"), encode("1.1'; DROP TABLE events; --"), encode("1.1\x00"),
	} {
		_, err := l.Find(t.Context(), audit.Query{Cursor: cursor})
		if e := broker.AsError(err); err == nil || e.Code != broker.CodeInvalidRequest || len(e.Faults) != 1 ||
			len(cursor) > 3 && strings.Contains(e.Error()+e.Faults[0].Reason, cursor) {
			t.Errorf("%q: %v", cursor, err)
		}
	}
}

func FuzzCursor(f *testing.F) {
	s := newStore(f)
	l := audit.NewLog(s.Pool())
	for i := range 3 {
		record(f, s, broker.Event{ID: fmt.Sprint("e", i), At: time.Now(), Type: "x"})
	}
	f.Add(find(f, l, audit.Query{Limit: 1}).Next, true)
	for _, text := range []string{"", "0.0", "1.1", "18446744073709551615.9223372036854775807", "18446744073709551616.1", "1.-9223372036854775808", "1e3.1"} {
		f.Add(base64.RawURLEncoding.EncodeToString([]byte(text)), false)
		f.Add(text, true)
	}
	f.Fuzz(func(t *testing.T, cursor string, oldest bool) {
		p, err := l.Find(t.Context(), audit.Query{Cursor: cursor, OldestFirst: oldest})
		if err != nil && broker.AsError(err).Code != broker.CodeInvalidRequest {
			t.Errorf("%q: %v", cursor, err)
		}
		if len(p.Events) > 3 {
			t.Errorf("%q gives %d events", cursor, len(p.Events))
		}
	})
}
