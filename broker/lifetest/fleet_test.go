package lifetest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
	"github.com/taskpass/taskpass/providers/pool"
)

var (
	fleetRounds = flag.Int("fleet.rounds", 3, "rounds of TestFleet")
	fleetSeed   = flag.Uint64("fleet.seed", 1, "its seed")
)

const (
	fleetAgents = 200
	fleetKeys   = 40
	fleetAtOnce = 24
)

// fleet is what the agents and the operators know.
type fleet struct {
	*pools
	mu     sync.Mutex
	rand   *rand.Rand
	armed  bool
	died   int
	banned map[string]int    // by value: the round in which it was revoked, or its key was quarantined or retired
	values map[string]string // by key, the present one
	before map[string]string // by key, the one before, where its rotation can be aborted
	gone   map[string]bool   // retired keys
	given  int
}

// member is one agent.
type member struct {
	n, tasks int
	task     string
	held     client.IssuedCredential // none: it has none
	version  int
	value    string
}

func (f *fleet) draw(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rand.IntN(n)
}

// reached has the process of a request die, now and then.
func (f *fleet) reached(string) {
	f.mu.Lock()
	die := f.armed && f.rand.IntN(40) == 0
	if die {
		f.died++
	}
	f.mu.Unlock()
	if die {
		runtime.Goexit()
	}
}

func (f *fleet) ban(value string, round int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.banned[value]; !known {
		f.banned[value] = round
	}
}

// 200 agents on 40 keys, with random ends, revocations, reports, rotations and crashes, on two replicas. A key has never two
// holders, nobody new gets what was revoked, quarantined or retired, and at the end every key is accounted for.
func TestFleet(t *testing.T) {
	t.Parallel()
	f := &fleet{
		rand: rand.New(rand.NewPCG(*fleetSeed, 0)), banned: map[string]int{}, before: map[string]string{}, gone: map[string]bool{},
	}
	f.pools = newPools(t, map[string]pool.Config{"p": {}}, func(c *broker.Config) { c.Reached = f.reached })
	f.values = f.hand(fleetKeys)
	members := make([]*member, fleetAgents)
	for i := range members {
		members[i] = &member{n: i}
	}
	for round := range *fleetRounds {
		f.round(round, members)
	}
	if f.given < fleetKeys || *fleetRounds >= 3 && f.died == 0 {
		t.Errorf("%d keys were given out, %d requests died: this proves nothing", f.given, f.died)
	}
	f.wind(members)
}

// round lets everybody act once, many at a time and some dying; then what is due is done, and nothing may be wrong.
func (f *fleet) round(round int, members []*member) {
	f.mu.Lock()
	f.armed = true
	turns := f.rand.Perm(len(members))
	f.mu.Unlock()
	work := make(chan *member)
	var wg sync.WaitGroup
	for range fleetAtOnce {
		wg.Go(func() {
			for m := range work {
				f.act(round, m)
			}
		})
	}
	for i, n := range turns {
		if i%20 == 0 {
			f.operate(round)
		}
		work <- members[n]
	}
	close(work)
	wg.Wait()
	f.mu.Lock()
	f.armed = false
	f.mu.Unlock()
	f.clock.advance(time.Minute)
	f.settled()
	f.oneHolderEach()
}

// act is one thing that an agent, or its orchestrator, does.
func (f *fleet) act(round int, m *member) {
	orch := f.as("orch")
	if m.held.ID == "" {
		m.tasks++
		m.task = fmt.Sprintf("t-%d-%d", m.n, m.tasks)
		got := orch.issue(ask("p", m.task, agent(fmt.Sprint("a", m.n))))
		if got.status == http.StatusCreated {
			f.took(round, m, got.issued)
		}
		return
	}
	switch n := f.draw(100); {
	case n < 40:
		orch.endTask(m.task)
		m.held.ID = ""
	case n < 55:
		f.now(m, orch.refresh(m.held.ID, m.version).issued)
	case n < 75:
		if got := orch.resolve(m.held.ID); got.status == http.StatusOK {
			m.version, m.value = got.resolved.Version, valueOf(got.resolved.Secret)
		}
	case n < 83:
		if got := orch.report(m.held.ID, m.version, 401); got.status == http.StatusOK && got.advice.Action == client.Refresh && got.advice.Version == m.version {
			f.t.Errorf("after a 401 with version %d the same one is advised", m.version)
		}
	case n < 93:
		orch.report(m.held.ID, m.version, 200)
	default:
		if got := orch.revoke(m.held.ID); got.status == http.StatusOK || got.status == http.StatusAccepted {
			f.ban(m.value, round)
		}
		m.held.ID = ""
	}
}

func (f *fleet) now(m *member, c client.IssuedCredential) {
	if c.ID != "" {
		m.version, m.value = c.Version, valueOf(c.Secret)
	}
}

// took holds what a new holder was given against what nobody may get any more.
func (f *fleet) took(round int, m *member, c client.IssuedCredential) {
	m.held = c
	f.now(m, c)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.given++
	if since, banned := f.banned[m.value]; banned && since < round {
		f.t.Errorf("round %d: %s was handed out, which is nobody's since round %d", round, keyOf(c), since)
	}
}

// operate is one thing that an operator does to some key.
func (f *fleet) operate(round int) {
	ops, name := f.as("ops"), fmt.Sprintf("k%02d", f.draw(fleetKeys))
	if f.gone[name] {
		return
	}
	switch n := f.draw(10); {
	case n < 6:
		value := f.value()
		if ops.rotateKey(name, value, time.Hour).status == http.StatusAccepted {
			f.before[name], f.values[name] = f.values[name], value
		}
	case n < 8:
		if ops.changeKey(name, client.Abort, "").status == http.StatusOK {
			f.values[name] = f.before[name]
		}
	case n < 9:
		if ops.changeKey(name, client.Quarantine, "suspected").status == http.StatusOK {
			f.ban(f.values[name], round)
		}
	case len(f.gone) < 4:
		if ops.changeKey(name, client.Retire, "old").status == http.StatusOK {
			f.gone[name] = true
			f.ban(f.values[name], round)
		}
	}
}

// oneHolderEach looks at every credential that is alive.
func (f *fleet) oneHolderEach() {
	f.t.Helper()
	if n := one[int](f.rig, `SELECT count(*)::int FROM (SELECT v.fingerprint FROM versions v JOIN credentials c ON c.id = v.credential_id AND c.current = v.number
		JOIN slots s ON s.credential_id = c.id WHERE v.state = 'active' AND s.state = 'held' AND c.profile = 'p' GROUP BY 1 HAVING count(*) > 1) x`); n != 0 {
		f.t.Errorf("%d keys have two holders", n)
	}
	if n := one[int](f.rig, "SELECT count(*)::int FROM slots WHERE pool = 'keys'"); n > fleetKeys {
		f.t.Errorf("%d seats at %d keys", n, fleetKeys)
	}
	for _, w := range f.unsound() {
		f.t.Error(w)
	}
}

// wind ends everything, rotates every key that waits for it, and counts.
func (f *fleet) wind(members []*member) {
	f.t.Helper()
	for _, m := range members {
		if m.held.ID == "" {
			continue
		}
		// Of a request that died, or of a key that was refused, something may be left that ends later.
		if r := f.as("orch").endTask(m.task); r.status != http.StatusAccepted {
			r.want(f.t, http.StatusOK)
		}
	}
	f.clock.advance(maxTTL) // of what died nobody knows the name: it runs out
	f.looked()
	f.looked()
	var waiting []string
	for _, k := range f.as("ops").poolKeys("keys").want(f.t, http.StatusOK).keys {
		switch k.State {
		case client.Quarantined:
			waiting = append(waiting, k.Name)
		case client.Available, client.Resting:
		case client.Retired:
			if !f.gone[k.Name] {
				f.t.Errorf("%s is retired, and nobody did it", k.Name)
			}
		case client.Held, client.Draining:
			f.t.Errorf("%s is %s, and nobody is there: %v", k.Name, k.State, k.Seats)
		}
	}
	for _, name := range waiting {
		f.as("ops").rotateKey(name, f.value(), time.Hour).want(f.t, http.StatusAccepted)
	}
	for range 3 {
		f.looked()
	}
	for _, m := range members {
		if m.held.ID != "" {
			f.as("orch").endTask(m.task).want(f.t, http.StatusOK)
		}
	}
	free := 0
	for _, k := range f.as("ops").poolKeys("keys").want(f.t, http.StatusOK).keys {
		if k.State == client.Available || k.State == client.Resting {
			free++
		} else if !f.gone[k.Name] {
			f.t.Errorf("at the end %s is %s (%s, %v)", k.Name, k.State, k.Reason, k.Seats)
		}
	}
	got := map[string]bool{}
	for i := range free {
		got[keyOf(f.mustIssue(ask("p", fmt.Sprint("last-", i), agent(fmt.Sprint("last-", i)))))] = true
	}
	if len(got) != free || free != fleetKeys-len(f.gone) {
		f.t.Errorf("of %d keys %d are retired and %d can be had", fleetKeys, len(f.gone), len(got))
	}
	alive := one[[]string](f.rig, "SELECT COALESCE(array_agg(DISTINCT trace ->> 'key'), '{}') FROM versions WHERE state NOT IN ('revoked', 'expired', 'failed', 'active')")
	if i := slices.IndexFunc(alive, func(k string) bool { return !f.gone[k] }); i >= 0 {
		f.t.Errorf("versions of %v have not ended", alive)
	}
	f.sound()
}
