package audit_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
)

// fleet writes a record as replicas do whose clocks are wrong, and whose transactions overlap and last.
type fleet struct {
	t      *testing.T
	s      *store.Store
	random *rand.Rand
	now    time.Time
	open   [4]pgx.Tx
	wrote  map[string]broker.Event
}

// clocks are how far a replica's may be off: mostly hardly at all.
var clocks = []time.Duration{0, 0, 0, 0, 0, 0, time.Second, -time.Second, time.Minute, -time.Minute, -time.Hour, 26 * time.Hour, -40 * 24 * time.Hour, 400 * 24 * time.Hour}

func (f *fleet) step() {
	f.t.Helper()
	f.now = f.now.Add(time.Duration(f.random.IntN(3000)) * time.Millisecond)
	ctx, i := f.t.Context(), f.random.IntN(len(f.open))
	var err error
	switch n := f.random.IntN(12); {
	case f.open[i] == nil:
		f.open[i], err = f.s.Pool().Begin(ctx)
	case n < 7:
		var batch pgx.Batch
		var events []broker.Event
		for range 1 + f.random.IntN(3) {
			events = append(events, f.event())
		}
		if err = audit.Append(&batch, events); err == nil {
			err = f.open[i].SendBatch(ctx, &batch).Close()
		}
	case n < 11:
		err = f.open[i].Commit(ctx)
		f.open[i] = nil
	default:
		// Short stretches, so that many begin and end within what is asked for.
		_, err = f.s.Pool().Exec(ctx, "SELECT note_event_stretches($1, $2)", 1+f.random.IntN(3), 1+f.random.IntN(9))
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) event() broker.Event {
	e := broker.Event{
		ID: fmt.Sprintf("e%03d", len(f.wrote)), At: f.now.Add(clocks[f.random.IntN(len(clocks))]), Type: broker.EventIssued,
		TaskID: fmt.Sprint("t", f.random.IntN(3)), Caller: broker.Caller{Name: "x"}, Provider: []string{"aws", "pool"}[f.random.IntN(2)],
		UpstreamIDs: []string{fmt.Sprint("pool/key-", f.random.IntN(2))},
	}
	f.wrote[e.ID] = e
	return e
}

// end commits what is open.
func (f *fleet) end() {
	for i, tx := range f.open {
		if f.open[i] = nil; tx != nil {
			if err := tx.Commit(context.Background()); err != nil {
				f.t.Error(err)
			}
		}
	}
}

// when is a time that matters: an event's, next to one, or none.
func (f *fleet) when() time.Time {
	if f.random.IntN(3) == 0 {
		return time.Time{}
	}
	e := f.wrote[fmt.Sprintf("e%03d", f.random.IntN(len(f.wrote)))]
	return e.At.Add(time.Duration(f.random.IntN(3)-1) * time.Microsecond)
}

func (f *fleet) query() audit.Query {
	q := audit.Query{Since: f.when(), Until: f.when(), OldestFirst: f.random.IntN(2) == 0, Limit: []int{2, 9, 100}[f.random.IntN(3)]}
	switch f.random.IntN(5) {
	case 0:
		q.TaskID = "t1"
	case 1:
		q.TaskID, q.Provider = "t1", "aws"
	case 2:
		q.UpstreamID = "pool/key-1"
	}
	return q
}

// expect is the answer that looking at every event gives.
func (f *fleet) expect(order []string, q audit.Query) (list []string) {
	for _, id := range order {
		e := f.wrote[id]
		if (q.Since.IsZero() || !e.At.Before(q.Since)) && (q.Until.IsZero() || e.At.Before(q.Until)) && (q.TaskID == "" || q.TaskID == e.TaskID) &&
			(q.Provider == "" || q.Provider == e.Provider) && (q.UpstreamID == "" || q.UpstreamID == e.UpstreamIDs[0]) {
			list = append(list, id)
		}
	}
	if !q.OldestFirst {
		slices.Reverse(list)
	}
	return list
}

// A search by time finds what looking at every event finds, in the same order, whatever the clocks showed, however
// transactions overlapped, and however much of the record was summed up at which moment.
func TestSearchesByTimeMissNothing(t *testing.T) {
	t.Parallel()
	seeds := uint64(1)
	if os.Getenv("TASKPASS_LONG") != "" {
		seeds = 6
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			l := audit.NewLog(s.Pool())
			f := &fleet{t: t, s: s, random: rand.New(rand.NewPCG(seed, 8)), now: time.Now().Truncate(time.Second), wrote: map[string]broker.Event{}}
			defer f.end()
			for range 400 {
				f.step()
			}
			f.end()
			order := inOrder(t, s)
			settle(t, l, len(order))
			ask := func(times int) {
				for range times {
					q := f.query()
					if diff := cmp.Diff(f.expect(order, q), follow(t, l, q)); diff != "" {
						t.Fatalf("%+v: (-want +got)\n%s", q, diff)
					}
				}
			}
			ask(60)
			noteAll(t, s, 7)
			ask(60)
			var upper int
			if err := s.Pool().QueryRow(t.Context(), "SELECT count(*) FROM event_stretches WHERE level = 1").Scan(&upper); err != nil || upper < 3 || stretches(t, s) < 30 {
				t.Errorf("%d stretches, %d of the upper level, %v: this proves nothing", stretches(t, s), upper, err)
			}
		})
	}
}

func inOrder(t *testing.T, s *store.Store) []string {
	t.Helper()
	rows, err := s.Pool().Query(t.Context(), "SELECT id FROM events ORDER BY xid, seq")
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// noteAll notes whatever makes a whole stretch of that length.
func noteAll(t testing.TB, s *store.Store, length int) {
	t.Helper()
	for noted := 1; noted > 0; {
		if err := s.Pool().QueryRow(t.Context(), "SELECT note_event_stretches(100, $1)", length).Scan(&noted); err != nil {
			t.Fatal(err)
		}
	}
}

func stretches(t testing.TB, s *store.Store) (n int) {
	t.Helper()
	if err := s.Pool().QueryRow(t.Context(), "SELECT count(*) FROM event_stretches WHERE level = 0").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// An event of a transaction that began before a stretch was noted, and committed after it, would stand inside that stretch
// and be found by no time that the stretch does not have. So a stretch ends before whatever is open.
func TestNoStretchOvertakesATransaction(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	l := audit.NewLog(s.Pool())
	now := time.Now().Truncate(time.Second)
	event := func(id string, at time.Time) broker.Event {
		return broker.Event{ID: id, At: at, Type: "x", Caller: broker.Caller{Name: "x"}}
	}
	tx, err := s.Pool().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	var batch pgx.Batch
	if err := audit.Append(&batch, []broker.Event{event("slow", now.Add(-time.Hour))}); err != nil {
		t.Fatal(err)
	}
	if err := tx.SendBatch(t.Context(), &batch).Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		record(t, s, event(fmt.Sprint("quick", i), now))
	}
	noteAll(t, s, 1)
	if n := stretches(t, s); n != 1 {
		t.Errorf("%d stretches beside an open transaction, want the first one", n)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	settle(t, l, 6)
	noteAll(t, s, 1)
	if n := stretches(t, s); n != 7 {
		t.Errorf("%d stretches of one event each, want 7 with the first", n)
	}
	for _, oldest := range []bool{true, false} {
		if got := follow(t, l, audit.Query{Until: now, OldestFirst: oldest}); !slices.Equal(got, []string{"slow"}) {
			t.Errorf("oldest first %v: %v", oldest, got)
		}
	}
}

// Replicas note at the same moment; each place of the order is in one stretch.
func TestManyNote(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	l := audit.NewLog(s.Pool())
	var events []broker.Event
	for i := range 300 {
		events = append(events, broker.Event{ID: fmt.Sprint("e", i), At: time.Now(), Type: "x"})
	}
	record(t, s, events...)
	settle(t, l, 300)
	errs := make(chan error)
	for range 4 {
		go func() {
			var err error
			for noted := 1; noted > 0 && err == nil; {
				err = s.Pool().QueryRow(t.Context(), "SELECT note_event_stretches(2, 7)").Scan(&noted)
			}
			errs <- err
		}()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	noteAll(t, s, 7)
	var gaps int
	err := s.Pool().QueryRow(t.Context(), `SELECT count(*) FROM (SELECT (after_xid, after_seq) IS DISTINCT FROM lag((xid, seq)) OVER (ORDER BY xid, seq) AS gap
		FROM event_stretches WHERE level = 0) s WHERE gap`).Scan(&gaps)
	if err != nil {
		t.Fatal(err)
	}
	if n := stretches(t, s); n != 1+300/7 || gaps != 1 { // before the first there is none
		t.Errorf("%d stretches, %d gaps", n, gaps)
	}
	if more, err := l.Note(t.Context()); more || err != nil {
		t.Errorf("more %v, %v", more, err)
	}
}

// Clocks that jump to and fro make every second stretch one that may matter. What lies between is read too, once.
func TestVeryWrongClocks(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	l := audit.NewLog(s.Pool())
	now := time.Now().Truncate(time.Second)
	var events []broker.Event
	var early []string
	for i := range 120 {
		e := broker.Event{ID: fmt.Sprint("e", i), At: now, Type: "x"}
		if i%2 == 0 {
			e.At = now.Add(-time.Hour)
			early = append(early, e.ID)
		}
		events = append(events, e)
	}
	record(t, s, events...)
	settle(t, l, 120)
	noteAll(t, s, 1)
	if n := len(find(t, l, audit.Query{Until: now, OldestFirst: true, Limit: 60}).Events); n != 60 {
		t.Errorf("a page of 60 has %d", n) // a short one is the last one, for who exports
	}
	for _, limit := range []int{1, 10, 59, 60, 61} {
		if got := follow(t, l, audit.Query{Until: now, OldestFirst: true, Limit: limit}); !slices.Equal(got, early) {
			t.Errorf("by %d: %v", limit, got)
		}
		got := follow(t, l, audit.Query{Until: now, Limit: limit})
		slices.Reverse(got)
		if !slices.Equal(got, early) {
			t.Errorf("by %d, newest first: %v", limit, got)
		}
	}
}
