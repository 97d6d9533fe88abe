package lifetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/taskpass/taskpass/broker"
)

// row is a version as the ledger has it.
type row struct {
	credential, caller, task, profile, id, state string
	number                                       int
	expires                                      time.Time
}

func (m *model) rows() []row {
	found, err := m.admin.Query(context.Background(), `SELECT c.id, c.caller, c.task_id, c.profile, v.id, v.state, v.number, v.expires_at
		FROM versions v JOIN credentials c ON c.id = v.credential_id ORDER BY c.id, v.number`)
	if err != nil {
		m.t.Fatal(err)
	}
	defer found.Close()
	var list []row
	for found.Next() {
		var w row
		if err := found.Scan(&w.credential, &w.caller, &w.task, &w.profile, &w.id, &w.state, &w.number, &w.expires); err != nil {
			m.t.Fatal(err)
		}
		list = append(list, w)
	}
	return list
}

// Check compares the house with the model after each step, and asks the vendor which secrets work.
func (m *model) Check(t *rapid.T) {
	rows := m.rows()
	m.name(rows)
	seen := 0
	for _, w := range rows {
		c := m.find(w.credential)
		if c == nil {
			t.Fatalf("the ledger has a credential that nobody asked for: %s of %s for %s/%s", w.credential, w.profile, w.caller, w.task)
		}
		if w.number > len(c.versions) {
			t.Fatalf("%s has a version %d (%s) that nobody asked for", m.label(c), w.number, w.state)
		}
		v := c.versions[w.number-1]
		may := v.may
		if len(may) == 0 {
			may = []broker.State{v.state}
		}
		if !slices.Contains(may, broker.State(w.state)) {
			t.Fatalf("%s: version %d is %s; it was %s and may be %v", m.label(c), w.number, w.state, v.state, may)
		}
		if !w.expires.Equal(v.expires) || w.expires.After(c.hardEnd) {
			t.Errorf("%s: version %d ends %s, want %s; the hard end is %s", m.label(c), w.number, w.expires, v.expires, c.hardEnd)
		}
		v.state, v.may = broker.State(w.state), nil
		seen++
	}
	for _, c := range m.creds {
		seen -= len(c.versions)
	}
	if seen != 0 {
		t.Fatalf("the ledger and the model differ by %d versions", seen)
	}
	m.checkUpstream(t, rows)
	m.checkPool(t)
	for _, w := range m.unsound() {
		t.Error(w)
	}
}

func (m *model) label(c *cred) string {
	return fmt.Sprintf("credential %d (%s for %s/%s)", slices.Index(m.creds, c)+1, c.profile, c.caller, c.task)
}

func (m *model) find(id string) *cred {
	for _, c := range m.creds {
		if c.id == id {
			return c
		}
	}
	return nil
}

// name finds the ids of credentials whose request was answered with an error: they are the only new ones of their kind.
func (m *model) name(rows []row) {
	for _, w := range rows {
		if w.number != 1 || m.find(w.credential) != nil {
			continue
		}
		for _, c := range m.creds {
			if c.id == "" && c.caller == w.caller && c.task == w.task && c.profile == w.profile &&
				slices.Contains(c.versions[0].may, broker.State(w.state)) {
				c.id = w.credential
				break
			}
		}
	}
}

// checkUpstream asks the vendor: what lives works, what is said to be dead does not, and nothing lives unknown.
func (m *model) checkUpstream(t *rapid.T, rows []row) {
	now := m.clock.Now()
	for _, c := range m.creds {
		if !c.aws() {
			continue
		}
		for i, v := range c.versions {
			if len(v.secret.Fields) == 0 {
				continue
			}
			over := now.After(v.expires)
			if over && now.Sub(v.expires) > 4*time.Hour {
				continue // it was seen dead
			}
			dead := over || c.denies() && v.state == broker.StateRevoked
			lives := !over && now.Before(v.expires) && (v.state == broker.StateActive || !c.denies())
			if !dead && !lives {
				continue // being ended: it may still work
			}
			if works := m.alive(v.secret, c.task); works != lives {
				t.Errorf("%s: version %d is %s, and works upstream: %v", m.label(c), i+1, v.state, works)
			}
		}
	}
	policy := m.vendor.RolePolicies("deny")["taskpass-revoked"]
	known := map[string]row{}
	for _, w := range rows {
		known[w.id] = w
	}
	for _, s := range m.vendor.Sessions() {
		w, ok := known[s.Name]
		switch {
		case !ok && m.mine(s.Issued):
			t.Errorf("the vendor has a session that the ledger does not know: %s", s.Name)
		case ok && w.state == string(broker.StateFailed):
			t.Errorf("the vendor has a session of a version that is said to have failed: %s", s.Name)
		case ok && w.state == string(broker.StateRevoked) && s.Role == "deny" && now.Before(w.expires) && !strings.Contains(policy, s.Name):
			t.Errorf("the session %s is said to be revoked, and is not denied", s.Name)
		}
	}
}

// mine tells whether a session is of this run: those of the runs before are older than any of its versions.
func (m *model) mine(issued time.Time) bool {
	return len(m.creds) > 0 && !issued.Before(m.creds[0].versions[0].issued) && issued.After(m.start)
}

// checkPool holds P8: no key is with two credentials at once.
func (m *model) checkPool(t *rapid.T) {
	by := map[string]*cred{}
	for _, c := range m.creds {
		if !m.holds(c) {
			continue
		}
		key := ""
		for _, v := range c.versions {
			if len(v.secret.Fields) > 0 && !v.state.Ended() {
				key = secretOf(v.secret)
			}
		}
		if other := by[key]; key != "" && other != nil {
			t.Errorf("%s and %s have the same key", m.label(c), m.label(other))
		}
		by[key] = c
	}
	if n, want := one[int](m.rig, `SELECT count(*)::int FROM slots WHERE state = 'held' OR state = 'quarantined'`), keysOfPool-m.freeKeys(); n < want {
		t.Errorf("%d keys are out, the model knows of %d", n, want)
	}
}
