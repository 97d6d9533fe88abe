package audit_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/localpg/pgtest"
	"github.com/taskpass/taskpass/broker/store"
)

const (
	// promised is the longest that half of an auditor's questions may take, however they are asked.
	promised = 10 * time.Millisecond
	// promisedPair is the same for a page of two common values, of which at most 10,000 events are examined.
	promisedPair = 100 * time.Millisecond
)

// BenchmarkSearch asks what an auditor asks of a year's record, of TASKPASS_BENCH_EVENTS events (a million by default), and
// fails if the median of any question is over what is promised. Run it by `make bench-audit`.
func BenchmarkSearch(b *testing.B) {
	n, err := strconv.Atoi(os.Getenv("TASKPASS_BENCH_EVENTS"))
	if err != nil {
		n = 1_000_000
	}
	db := pgtest.New(b)
	began := time.Now()
	f := fillRecord(b, db, n)
	b.Logf("%d events in %d months, filled in %s", f.events(), f.months, time.Since(began).Round(time.Second))
	s, err := store.Open(b.Context(), store.Config{URL: broker.NewSecret(db.URL(login)), MaxConns: 2})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	log := audit.NewLog(s.Pool())
	began = time.Now()
	for more := true; more; {
		if more, err = log.Note(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.Logf("their times noted in %s", time.Since(began).Round(100*time.Millisecond))
	for _, c := range questions(f) {
		b.Run(strings.ReplaceAll(c.name, " ", "_"), func(b *testing.B) { measure(b, f, log, c) })
	}
	for name, query := range traces(f) {
		b.Run("trace_of_"+name, func(b *testing.B) { measureTrace(b, f, log, query) })
	}
}

type question struct {
	name  string
	least int // answers; fewer would measure nothing
	ask   func(k int) audit.Query
}

// questions take the number of a credential. Values that all share, and values that few have, are asked for alike.
func questions(f filled) []question {
	list := []question{
		{name: "task", least: 30, ask: func(k int) audit.Query { return audit.Query{TaskID: fmt.Sprint("task-", k/5)} }},
		{name: "agent", least: 6, ask: func(k int) audit.Query { return audit.Query{AgentID: fmt.Sprint("agent-", k%5000)} }},
		{name: "caller", least: 100, ask: func(k int) audit.Query { return audit.Query{Caller: fmt.Sprint("caller-", k%20)} }},
		{name: "profile", least: 100, ask: func(k int) audit.Query { return audit.Query{Profile: fmt.Sprint("profile-", k%12)} }},
		{name: "provider", least: 100, ask: func(int) audit.Query { return audit.Query{Provider: "gcp"} }},
		{name: "common type", least: 100, ask: func(int) audit.Query { return audit.Query{Type: "credential.revoked"} }},
		{name: "rare type", least: 3, ask: func(int) audit.Query { return audit.Query{Type: "ticket.reused"} }},
		{name: "no such type", ask: func(int) audit.Query { return audit.Query{Type: "credential.stuck"} }},
		{name: "credential", least: 6, ask: func(k int) audit.Query { return audit.Query{CredentialID: fmt.Sprintf("crd_%026d", k)} }},
		{name: "access key", least: 5, ask: func(k int) audit.Query { return audit.Query{UpstreamID: fmt.Sprintf("ASIA%016d", k/10*10)} }},
		{name: "session name", least: 6, ask: func(k int) audit.Query { return audit.Query{UpstreamID: versionID(k)} }},
		{name: "pool key", least: 100, ask: func(k int) audit.Query { return audit.Query{UpstreamID: sharedKey(k)} }},
		{name: "account", least: 100, ask: func(k int) audit.Query { return audit.Query{UpstreamID: account(k)} }},
		{name: "nobody's name", ask: func(k int) audit.Query { return audit.Query{UpstreamID: fmt.Sprint("AKIA", k)} }},
		{name: "fingerprint", least: 5, ask: func(k int) audit.Query { return audit.Query{Fingerprint: fingerprint(strconv.Itoa(k / 10 * 10))} }},
		{name: "shared fingerprint", least: 100, ask: func(k int) audit.Query {
			return audit.Query{Fingerprint: fingerprint(strings.TrimPrefix(sharedKey(k), "models/"))}
		}},
		{name: "since", least: 100, ask: func(k int) audit.Query { return audit.Query{Since: f.at(k - k/100)} }},
		{name: "until", least: 100, ask: func(k int) audit.Query { return audit.Query{Until: f.at(k + 100)} }},
		{name: "an hour", least: 1, ask: func(k int) audit.Query { return audit.Query{Since: f.at(k), Until: f.at(k).Add(time.Hour)} }},
		{name: "a day", least: 100, ask: func(k int) audit.Query { return audit.Query{Since: f.at(k), Until: f.at(k).AddDate(0, 0, 1)} }},
		{name: "a pair that meets", least: 100, ask: func(int) audit.Query { return audit.Query{Provider: "gcp", Caller: "caller-9"} }},
		{name: "a pair that never meets", ask: func(int) audit.Query { return audit.Query{Provider: "gcp", Caller: "caller-0"} }},
		{name: "everything", least: 100, ask: func(int) audit.Query { return audit.Query{} }},
	}
	for _, q := range slices.Clone(list) {
		oldest := q
		oldest.name, oldest.ask = q.name+", oldest first", func(k int) audit.Query {
			query := q.ask(k)
			query.OldestFirst = true
			return query
		}
		list = append(list, oldest)
	}
	return list
}

func fingerprint(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// sharedKey and account are the names that the next credential of their provider has.
func sharedKey(k int) string { return fmt.Sprint("models/key-", (k/10*10+7)%40) }

func account(k int) string {
	return fmt.Sprintf("slot-%d@project.iam.gserviceaccount.com", (k/10*10+9)%100)
}

func versionID(k int) string {
	return strings.Map(func(r rune) rune { return 'a' + r - '0' }, fmt.Sprintf("%016d", k))
}

func measure(b *testing.B, f filled, log *audit.Log, q question) {
	random := rand.New(rand.NewPCG(1, 2))
	var took []time.Duration
	for b.Loop() {
		k := 1000 + random.IntN(f.credentials*9/10) // not the last month's end: something comes after it
		began := time.Now()
		p, err := log.Find(context.Background(), q.ask(k))
		took = append(took, time.Since(began))
		if err != nil || len(p.Events) < q.least {
			b.Fatalf("%d answers, want %d: %v", len(p.Events), q.least, err)
		}
	}
	if strings.HasPrefix(q.name, "a pair") {
		report(b, took, promisedPair)
	} else {
		report(b, took, promised)
	}
}

// report says the median and the slowest twentieth, and whether the promise held.
func report(b *testing.B, took []time.Duration, promised time.Duration) {
	slices.Sort(took)
	median := took[len(took)/2]
	b.ReportMetric(float64(median.Microseconds())/1000, "ms/median")
	b.ReportMetric(float64(took[len(took)*19/20].Microseconds())/1000, "ms/p95")
	if len(took) >= 100 && median > promised {
		b.Errorf("half of the answers take longer than %s", median)
	}
}

// traces are by upstream names in the forms that logs have, and by what was found.
func traces(f filled) map[string]func(k int) audit.TraceQuery {
	return map[string]func(k int) audit.TraceQuery{
		"an_access_key": func(k int) audit.TraceQuery { return audit.TraceQuery{Name: fmt.Sprintf("ASIA%016d", k/10*10)} },
		"a_session":     func(k int) audit.TraceQuery { return audit.TraceQuery{Name: "AROAROLE:" + versionID(k)} },
		"a_secret": func(k int) audit.TraceQuery {
			return audit.TraceQuery{Fingerprint: fingerprint(strconv.Itoa(k / 10 * 10))}
		},
		"a_shared_key": func(k int) audit.TraceQuery { return audit.TraceQuery{Name: sharedKey(k)} },
		"a_shared_key_at_a_time": func(k int) audit.TraceQuery {
			return audit.TraceQuery{Name: sharedKey(k), At: f.at(k/10*10 + 7).Add(time.Minute)}
		},
		"an_account": func(k int) audit.TraceQuery { return audit.TraceQuery{Name: account(k)} },
		"an_account_at_a_time": func(k int) audit.TraceQuery {
			return audit.TraceQuery{Name: account(k), At: f.at(k/10*10 + 9).Add(time.Minute)}
		},
		"a_stranger": func(k int) audit.TraceQuery { return audit.TraceQuery{Name: fmt.Sprint("AKIA", k)} },
	}
}

func measureTrace(b *testing.B, f filled, log *audit.Log, query func(k int) audit.TraceQuery) {
	random := rand.New(rand.NewPCG(1, 2))
	var took []time.Duration
	for b.Loop() {
		q := query(1000 + random.IntN(f.credentials*9/10))
		began := time.Now()
		t, err := log.Trace(context.Background(), q, time.Now())
		took = append(took, time.Since(began))
		if err != nil || len(t.Held) == 0 && !strings.HasPrefix(q.Name, "AKIA") {
			b.Fatalf("%+v: %d versions, %v", q, len(t.Held), err)
		}
		for _, h := range t.Held { // what is contradicted is asked twice
			if len(h.Contradictions) > 0 {
				b.Fatalf("%+v", h.Contradictions)
			}
		}
	}
	report(b, took, promised)
}
