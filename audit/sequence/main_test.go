package sequence_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskpass/taskpass/audit/sequence"
	"github.com/taskpass/taskpass/audit/tree"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/migrations"
)

const (
	login  = "taskpass_test" // the service's account in the tests' databases
	origin = "taskpass.example/log"
)

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m, func(ctx context.Context, db pgtest.DB) error {
		return migrations.Up(ctx, db.AdminURL, migrations.Login{Name: login, Password: broker.NewSecret(db.Password)})
	}))
}

// record is a database with a record, its tree, and the superuser beside it.
type record struct {
	t       testing.TB
	db      pgtest.DB
	store   *store.Store
	admin   *pgxpool.Pool
	signer  *tree.Signer
	clock   *clock
	seq     *sequence.Sequencer
	log     *sequence.Log
	n       int // events recorded
	base    time.Time
	alarms  chan string
	reached func(context.Context, string)
}

// clock is moved by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newSigner(t testing.TB) *tree.Signer {
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

func newRecord(t testing.TB) *record {
	t.Helper()
	r := &record{t: t, db: pgtest.New(t), signer: newSigner(t), alarms: make(chan string, 100),
		base: time.Now().UTC().Truncate(time.Second), clock: &clock{now: time.Now()}}
	var err error
	if r.store, err = store.Open(t.Context(), store.Config{URL: broker.NewSecret(r.db.URL(login))}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.store.Close)
	if r.admin, err = pgxpool.New(t.Context(), r.db.AdminURL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.admin.Close)
	r.log = sequence.NewLog(r.store.Pool(), r.signer.Keys())
	r.seq = r.sequencer()
	return r
}

// published is a place that holds these, or cannot be read as long as it is shut.
type published struct {
	list []tree.Checkpoint
	shut atomic.Bool
}

var errShut = errors.New("the place is shut")

func (p *published) Newest(context.Context, *tree.Keys) ([]tree.Checkpoint, error) {
	if p.shut.Load() {
		return nil, errShut
	}
	return p.list, nil
}

func (r *record) alarm(_ context.Context, reason string) error {
	r.alarms <- reason
	return nil
}

func (r *record) sequencer(known ...tree.Checkpoint) *sequence.Sequencer {
	r.t.Helper()
	return r.sequencerOf(&published{list: known})
}

func (r *record) sequencerOf(places ...sequence.Reader) *sequence.Sequencer {
	r.t.Helper()
	return r.sequencerOn(r.store.Pool(), places...)
}

func (r *record) sequencerOn(pool *pgxpool.Pool, places ...sequence.Reader) *sequence.Sequencer {
	r.t.Helper()
	s, err := sequence.New(sequence.Config{
		Pool: pool, Signer: r.signer, Logger: slog.New(slog.DiscardHandler), Clock: r.clock.Now, ReadBack: places,
		Alarm: r.alarm,
		Reached: func(ctx context.Context, point string) {
			if r.reached != nil {
				r.reached(ctx, point)
			}
		},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// event is the i-th of a test: of its own second, task and version.
func (r *record) event(i int) broker.Event {
	return broker.Event{
		ID: fmt.Sprintf("evt_%05d", i), At: r.base.Add(time.Duration(i) * time.Microsecond), Type: broker.EventIssued,
		Caller: broker.Caller{Name: "orch", Role: broker.RoleOrchestrator}, TaskID: fmt.Sprintf("task-%d", i), AgentID: "agent-17",
		Profile: "p", Provider: "aws", Credential: "crd_1", VersionID: broker.VersionID(fmt.Sprintf("v%d", i)),
		UpstreamIDs: []string{fmt.Sprintf("ASIA%d", i)}, Fingerprint: []byte{1, 2, byte(i)},
	}
}

// write records n events, in transactions of a few.
func (r *record) write(n int) {
	r.t.Helper()
	for n > 0 {
		some := min(n, 1+r.n%7*40)
		events := make([]broker.Event, some)
		for i := range events {
			events[i] = r.event(r.n)
			r.n++
		}
		if err := r.store.Record(r.t.Context(), events...); err != nil {
			r.t.Fatal(err)
		}
		n -= some
	}
}

// settle has rounds until all that was written is in the tree and signed. PostgreSQL's horizon is the whole server's:
// what another test's transaction holds back comes when that one ends.
func (r *record) settle() tree.Checkpoint {
	r.t.Helper()
	limit := time.After(2 * time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		r.clock.Advance(2 * time.Second)
		if _, err := r.seq.Round(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
		if c, err := r.log.Checkpoint(r.t.Context()); err == nil && c.Size == int64(r.n) {
			return c
		}
		select {
		case <-limit:
			r.t.Fatalf("the tree never has %d events", r.n)
		case <-tick.C:
		}
	}
}

// tamper is what the owner of the database does.
func (r *record) tamper(statements ...string) {
	r.t.Helper()
	for _, sql := range statements {
		tag, err := r.admin.Exec(r.t.Context(), sql)
		if err != nil {
			r.t.Fatalf("%s: %v", sql, err)
		}
		if tag.RowsAffected() == 0 && (tag.Update() || tag.Delete() || tag.Insert()) {
			r.t.Fatalf("%s: changed nothing", sql)
		}
	}
}

func (r *record) read(sql string, args ...any) (n int64) {
	r.t.Helper()
	if err := r.admin.QueryRow(r.t.Context(), sql, args...).Scan(&n); err != nil {
		r.t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func (r *record) verify(brought ...tree.Checkpoint) tree.Report {
	r.t.Helper()
	report, err := r.log.Verify(r.t.Context(), brought)
	if err != nil {
		r.t.Fatal(err)
	}
	return report
}

// order is the ids of the events in the order of the record.
func (r *record) order() []string {
	r.t.Helper()
	return r.list("SELECT id FROM events ORDER BY xid, seq")
}

func (r *record) list(sql string) []string {
	r.t.Helper()
	rows, err := r.admin.Query(r.t.Context(), sql)
	if err != nil {
		r.t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}
