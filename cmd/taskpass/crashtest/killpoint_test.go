package crashtest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/taskpass/taskpass/openapi/client"
)

// killPoints are the names that the broker gives to Reached.
var killPoints = []string{
	"after_intent", "after_outcome", "after_redeem", "after_redeem_outcome", "after_refresh", "after_refresh_intent",
	"after_reply", "after_revoke_asked", "after_revoke_reply", "after_task_ended",
}

// sequencerPoints are those that the audit tree's sequencer gives.
var sequencerPoints = []string{"after_commit", "before_commit", "in_round"}

// No kill point is forgotten, and none is tested that is not there.
func TestKillPointsAreAll(t *testing.T) {
	t.Parallel()
	for room, points := range map[string][]string{"broker": killPoints, "audit/sequence": sequencerPoints} {
		if found := pointsIn(t, room); !slices.Equal(found, points) {
			t.Errorf("the source of %s has the kill points\n%q, the tests\n%q", room, found, points)
		}
	}
}

func pointsIn(t *testing.T, room string) (found []string) {
	t.Helper()
	files, err := filepath.Glob("../../../" + room + "/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\.Reached\((?:\w+(?:\.\w+)?, )?("[^"]*"|[^"])`).FindAllStringSubmatch(string(source), -1) {
			found = append(found, strings.Trim(m[1], `"`))
		}
	}
	slices.Sort(found)
	return found
}

// A replica is killed at each point under load and started anew.
func TestKilledAndRestarted(t *testing.T) {
	t.Parallel()
	eachPoint(t, 0, func(t *testing.T, point string) {
		r := newRig(t)
		victim := r.start(point + ":6") // by then there is something to lose
		r.load(6, 200, victim)
		victim.awaitKilled()
		r.aftermath(r.start(""))
	})
}

// A replica is killed at each point under load while another one goes on serving.
func TestKilledBesideAnother(t *testing.T) {
	t.Parallel()
	eachPoint(t, 1, func(t *testing.T, point string) {
		r := newRig(t)
		r.settings.UpstreamTime = "10s"
		survivor := r.start("")
		victim := r.start(point + ":6")
		r.load(6, 200, victim, survivor)
		victim.awaitKilled()
		r.aftermath(survivor)
	})
}

// eachPoint runs test for each kill point; unless the tests are to be long, for every other one, beginning with the first or
// the second; for "after_reply" alone when they are to be short.
func eachPoint(t *testing.T, first int, test func(*testing.T, string)) {
	for i, point := range killPoints {
		if !long && i%2 != first || testing.Short() && point != "after_reply" {
			continue
		}
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			test(t, point)
		})
	}
}

// load lets some clients work until each has made that many calls or the first replica is dead.
func (r *rig) load(clients, calls int, replicas ...*replica) {
	r.t.Helper()
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range calls {
				if replicas[0].dead() {
					return
				}
				n := int(r.turn.Add(1))
				r.step(replicas[n%len(replicas)], n)
			}
		})
	}
	wg.Wait()
}

// step is one call of some kind.
func (r *rig) step(p *replica, n int) {
	task := fmt.Sprintf("task-%d", n/20*4+rand.N(4))                                           // several clients', and ended by one of them
	private := fmt.Sprintf("task-of-%s-%d", strings.TrimPrefix(p.url, "http://127.0.0.1:"), n) // nobody else ends it
	key := ""
	if rand.N(2) == 0 {
		key = fmt.Sprintf("key-%s-%d", p.url, n)
	}
	switch rand.N(12) {
	case 0, 1, 2:
		p.issue(awsRequest(private), key)
	case 3:
		p.issue(awsRequest(task), key)
	case 4:
		p.issue(poolRequest(task), key)
	case 5:
		p.issueSeveral(task)
	case 6, 7:
		body := awsRequest(private)
		body.Delivery = client.IssueRequestDeliveryTicket
		p.issue(body, key)
		if ticket := r.book.takeTicket(); ticket != "" {
			p.redeem(ticket)
		}
	case 8, 9:
		if id := r.book.take(n, "refresh", false); id != "" {
			p.refresh(id, key)
		}
	case 10:
		if id := r.book.take(n, "revoke", true); id != "" {
			p.revoke(id)
		}
	default:
		r.book.note(func() {
			for id, of := range r.book.tasks {
				if of == task {
					r.book.touched[id] = "end task"
				}
			}
		})
		p.endTask(task)
	}
}

// aftermath is what follows a crash: what had a key is asked for again, the sweeper works, everything that is alive is
// looked at by its holder, and the checker reads it all.
func (r *rig) aftermath(p *replica) {
	r.t.Helper()
	r.hurry()
	r.retry(p)
	r.settle()
	for _, c := range r.active() {
		if a := p.resolve(c.id, c.task); !a.ok() {
			r.t.Errorf("%s is active and cannot be resolved: %s", c.id, a)
		}
	}
	r.mustHold()
}

type alive struct{ id, task string }

func (r *rig) active() (list []alive) {
	r.t.Helper()
	rows, err := r.admin.Query(r.t.Context(), `SELECT c.id, c.task_id FROM credentials c
		JOIN versions v ON v.credential_id = c.id AND v.number = c.current WHERE v.state = 'active'`)
	if err != nil {
		r.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var a alive
		if err := rows.Scan(&a.id, &a.task); err != nil {
			r.t.Fatal(err)
		}
		list = append(list, a)
	}
	return list
}

// retry sends again what had an Idempotency-Key: the same credential must be answered, and the same secret, unless
// somebody asked for its end or its next version meanwhile.
func (r *rig) retry(p *replica) {
	r.t.Helper()
	for _, k := range slices.Clone(r.book.keys) {
		had, version, refused := k.Credential, k.Version, k.Refused
		a, got := p.issueAs(k.Body, k)
		touched := r.book.touched[had] != "" || r.book.revoked[had] || r.endedFor(k.Body.TaskID)
		switch {
		case a.err != nil:
			r.t.Errorf("%s: %v", k.Key, a.err)
		case got != nil && had != "" && got.ID != had:
			r.t.Errorf("P5: %s answered %s, and then %s", k.Key, had, got.ID)
		case got != nil && had != "" && got.Version != version && !touched && k.Body.Delivery == "":
			r.t.Errorf("P5: %s answered version %d of %s, and then %d", k.Key, version, had, got.Version)
		case got == nil && had != "" && !touched && k.Body.Delivery == "":
			r.t.Errorf("P5: %s answered %s, and then %s", k.Key, had, a)
		case got == nil && had == "" && refused == "" && !slices.Contains([]string{
			"task_ended", "credential_ended", "pool_exhausted", "conflict",
		}, a.code):
			r.t.Errorf("%s, to which the answer was lost, is answered %s", k.Key, a)
		}
	}
	r.sameSecrets()
}

// sameSecrets: a version has one secret, however often it is given.
func (r *rig) sameSecrets() {
	r.t.Helper()
	seen := map[string]string{}
	for _, g := range r.book.grants {
		name := fmt.Sprintf("%s/%d", g.Credential, g.Version)
		secret := g.Fields["session_token"] + g.Fields["api_key"]
		if was, ok := seen[name]; ok && was != secret {
			r.t.Errorf("P5: %s was given with two secrets", name)
		}
		seen[name] = secret
	}
}

func (r *rig) endedFor(task string) bool {
	return r.count("SELECT count(*) FROM tasks WHERE id = $1 AND ended_at IS NOT NULL", task) > 0
}
