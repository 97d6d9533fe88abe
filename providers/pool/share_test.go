package pool_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/providers/pool"
	"github.com/taskpass/taskpass/providers/pool/connect"
	"github.com/taskpass/taskpass/providers/providertest"
)

// sharedBy opens the rig's pool with a share for each caller.
func (r *rig) sharedBy(t *testing.T, ledger broker.Slots, percent int, edit ...func(*pool.Config)) *pool.Provider {
	t.Helper()
	c := r.config()
	c.SharePercent = percent
	for _, e := range edit {
		e(&c)
	}
	p, err := pool.New(c, pool.Deps{Slots: ledger, Sealer: sealer, Clock: r.clock.Now, Shared: true})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (r *rig) takeFor(t *testing.T, p *pool.Provider, ledger *store.Store, caller string) broker.Credential {
	t.Helper()
	c := r.credential("")
	c.Caller = caller
	c = providertest.Intend(t, ledger, p, c, r.clock.Now(), time.Hour)
	m, err := p.Mint(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return providertest.Activate(t, ledger, c, m)
}

func keyRow(t *testing.T, ledger *store.Store, pool, name string) broker.PoolKey {
	t.Helper()
	keys, err := ledger.PoolKeys(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if k.Name == name {
			return k
		}
	}
	t.Fatalf("no key %s", name)
	return broker.PoolKey{}
}

// A report beyond its caller's share changes the key for nobody, until another caller confirms it: then both count.
func TestReportBeyondShare(t *testing.T) {
	t.Parallel()
	r := newRig(t, 4)
	ledgers := replicas(t, 2)
	two := func(c *pool.Config) { c.MaxHolders = 2 }
	wide, narrow := r.sharedBy(t, ledgers[0], 100, two), r.sharedBy(t, ledgers[1], 25, two)
	first, other := r.takeFor(t, wide, ledgers[0], "a"), r.takeFor(t, wide, ledgers[0], "b")
	r.takeFor(t, wide, ledgers[0], "a") // two of four keys; then the share was made one key
	if key(first) != key(other) {
		t.Fatalf("a holds %s, b %s", key(first), key(other))
	}
	for range 3 {
		_, err := narrow.Refused(t.Context(), first)
		if e := broker.AsError(err); err == nil || e.Code != broker.CodeQuotaExceeded || e.RetryAfter <= 0 {
			t.Fatalf("beyond the share: %v", err)
		}
	}
	k := keyRow(t, ledgers[0], r.name, key(first))
	if k.Strikes != 0 || k.Seats["resting"] != 0 || k.State == broker.KeyQuarantined {
		t.Errorf("the key has changed for others: %+v", k)
	}
	_, err := wide.Refused(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	if k := keyRow(t, ledgers[0], r.name, key(first)); k.Strikes != 2 || k.Seats["resting"] != 1 || k.Unconfirmed != 0 {
		t.Errorf("confirmed by another caller: %+v", k)
	}
	if _, err := narrow.Refused(t.Context(), first); err != nil { // b has reported it: it counts now
		t.Errorf("what another caller reported before: %v", err)
	}
}

// The pool's probe confirms a report beyond the share, or not; it is asked once, however many reports there are.
func TestProbeConfirms(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		status  int
		page    string
		refuses bool
	}{
		{"refused", 401, "", true}, {"accepted", 200, "", false}, {"no answer", 500, "", false}, {"another matter", 403, "", false},
		{"a proxy's login page", 401, "<html>log in", false},
	} {
		r := newRig(t, 4)
		ledger := replicas(t, 1)[0]
		var calls atomic.Int32
		var first broker.Credential
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			calls.Add(1)
			if q.Method != http.MethodGet || q.Header.Get("X-Api-Key") != r.values[key(first)] {
				t.Errorf("probed by %s, without the key", q.Method)
			}
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, c.page)
		}))
		t.Cleanup(web.Close)
		wide := r.sharedBy(t, ledger, 100)
		narrow := r.sharedBy(t, ledger, 25, func(p *pool.Config) { p.Probe = &connect.Probe{URL: web.URL, Header: "X-Api-Key"} })
		first = r.takeFor(t, wide, ledger, "a")
		r.takeFor(t, wide, ledger, "a")
		for range 3 {
			_, err := narrow.Refused(t.Context(), first)
			if c.refuses != (err == nil) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if n := calls.Load(); n != 1 {
			t.Errorf("%s: probed %d times", c.name, n)
		}
		if k := keyRow(t, ledger, r.name, key(first)); c.refuses != (k.Strikes == 1) || c.refuses != (k.Seats["resting"] == 1) {
			t.Errorf("%s: %+v", c.name, k)
		}
	}
}

// A file that is written in two halves is never lent as its first half, by a pool that knew the key before or not.
func TestHalfAFileIsNotLent(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	ledger := replicas(t, 1)[0]
	p := r.provider(t, ledger)
	before := r.values["k0"]
	lends := func(p *pool.Provider, want string) {
		t.Helper()
		c := providertest.Intend(t, ledger, p, r.credential(""), r.clock.Now(), time.Hour)
		m, err := p.Mint(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		c = providertest.Activate(t, ledger, c, m)
		if got := m.Secret.Fields["api_key"].Reveal(); got != want {
			t.Errorf("lent %q of %s, want %q", got, key(c), want)
		}
		r.end(t, p, ledger, c, broker.CauseTaskEnded)
	}
	lends(p, before)
	if err := os.WriteFile(r.path("k0"), []byte("key-four-"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The pool never starts a rotation to a half, and lends the value before.
	if _, err := p.Keep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.path("k1")); err != nil {
		t.Fatal(err)
	}
	lends(p, before)
	// A process that starts now knows no value before: it waits for the file to be left alone.
	if err := os.WriteFile(r.path("k0"), []byte("key-four-s"), 0o600); err != nil {
		t.Fatal(err)
	}
	started := r.provider(t, ledger)
	c := providertest.Intend(t, ledger, started, r.credential(""), r.clock.Now(), time.Hour)
	done := make(chan broker.Minted, 1)
	go func() {
		m, err := started.Mint(t.Context(), c)
		if err != nil {
			t.Errorf("%v", err)
		}
		done <- m
	}()
	providertest.WriteSecret(t, r.path("k0"), "key-four-second-half")
	if got := (<-done).Secret.Fields["api_key"].Reveal(); got != "key-four-second-half" {
		t.Errorf("lent %q", got)
	}
}

// A key whose value no header can carry is passed over, named once in the log and among the pool's keys, never shown.
func TestUnusableKeysAreNamed(t *testing.T) {
	t.Parallel()
	r := newRig(t, 3)
	ledger := replicas(t, 1)[0]
	var log bytes.Buffer
	c := r.config()
	p, err := pool.New(c, pool.Deps{Slots: ledger, Sealer: sealer, Clock: r.clock.Now, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	providertest.WriteSecret(t, r.path("k0"), "\ufeffC4n4ry-bom\n")
	providertest.WriteSecret(t, r.path("k1"), "C4n4ry\nC4n4ry\n")
	id := broker.NewVersionID()
	sealed, err := sealer.Seal([]byte("C4n4ry \n"), id) // handed in to an older version of the service
	if err != nil {
		t.Fatal(err)
	}
	err = ledger.AddKey(t.Context(), broker.SealedKey{Pool: r.name, Name: "k9", ValueID: id, Sealed: sealed, Fingerprint: []byte("x")}, r.clock.Now(),
		broker.NewKeyEvent(broker.EventKeyAdded, broker.Sweeper(), r.clock.Now(), r.name, "k9", nil))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		got := r.take(t, p, ledger, "a", time.Hour)
		if key(got) != "k2" {
			t.Errorf("got %s", key(got))
		}
		r.end(t, p, ledger, got, broker.CauseTaskEnded)
	}
	for name, want := range map[string]string{"k0": "byte order mark", "k1": "more than one line", "k9": "white space"} {
		if got := p.Problems()[name]; !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
		if n := strings.Count(log.String(), "key="+name); n != 1 {
			t.Errorf("%s is in the log %d times:\n%s", name, n, &log)
		}
	}
	r.write(t, "k0", r.fresh())
	if _, err := p.Keep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if problems := p.Problems(); len(problems) != 2 || strings.Count(log.String(), "key=k0") != 2 {
		t.Errorf("k0 is well again: %v\n%s", problems, &log)
	}
	if strings.Contains(log.String(), "C4n4ry") || strings.Contains(p.Problems()["k1"], "C4n4ry") {
		t.Errorf("a value is shown:\n%s", &log)
	}
}

// A share of the whole pool is none: what its caller meets is the end of the pool, which no share_percent can help.
func TestShareOfAllIsNone(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	ledger := replicas(t, 1)[0]
	p := r.sharedBy(t, ledger, 100)
	for range 2 {
		r.takeFor(t, p, ledger, "a")
	}
	c := r.credential("")
	c.Caller = "a"
	c = providertest.Intend(t, ledger, p, c, r.clock.Now(), time.Hour)
	_, err := p.Mint(t.Context(), c)
	if e, ok := errors.AsType[*broker.Error](err); !ok || e.Code != broker.CodePoolExhausted {
		t.Errorf("a caller that holds every key is answered %v, want %s", err, broker.CodePoolExhausted)
	}
}
