package crashtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskpass/taskpass/broker"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/aws"
)

// row is a version with its credential, as the ledger has it.
type row struct {
	ID          string     `db:"id"`
	Credential  string     `db:"credential_id"`
	Number      int        `db:"number"`
	State       string     `db:"state"`
	Unclaimed   bool       `db:"unclaimed"`
	Fingerprint []byte     `db:"fingerprint"`
	UpstreamIDs []string   `db:"upstream_ids"`
	ExpiresAt   time.Time  `db:"expires_at"`
	EndedAt     *time.Time `db:"ended_at"`
	Task        string     `db:"task_id"`
	Provider    string     `db:"provider"`
	Key         string     `db:"key"`
	TaskEnded   bool       `db:"task_ended"`
}

// happening is what the checker reads of an audit event.
type happening struct {
	At           time.Time
	Type         string
	State        string
	CredentialID string `json:"credential_id"`
	VersionID    string `json:"version_id"`
	Fingerprint  string
}

// checker compares three accounts of what happened: the ledger's, the upstream's, and the clients'.
type checker struct {
	*rig
	ctx      context.Context
	versions []row
	byID     map[string]row
	byName   map[string]row // credential/number
	events   map[string][]happening
	sessions map[string][]sandbox.SessionInfo // by version
	denied   map[string]bool                  // by session name
	found    []string
}

// mustHold fails the test with everything that the checker finds wrong. Nothing may be under way.
func (r *rig) mustHold() {
	r.t.Helper()
	found, err := r.check(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range found {
		r.t.Error(f)
	}
}

// check is what is wrong with an installation whose sweeper has nothing more to do; nil for nothing.
func (r *rig) check(ctx context.Context) ([]string, error) {
	c := &checker{rig: r, ctx: ctx}
	if err := c.read(); err != nil {
		return nil, err
	}
	c.checkGrants()
	c.checkUpstream()
	c.checkEnds()
	c.checkEvents()
	c.checkPool()
	c.checkCounts()
	c.checkKeys()
	c.found = append(c.found, r.book.wrong...)
	return c.found, nil
}

func (c *checker) wrong(format string, args ...any) {
	c.found = append(c.found, fmt.Sprintf(format, args...))
}

func (c *checker) read() error {
	rows, err := c.admin.Query(c.ctx, `SELECT v.id, v.credential_id, v.number, v.state, v.unclaimed, v.fingerprint, v.upstream_ids,
			v.expires_at, v.ended_at, c.task_id, c.provider, COALESCE(c.metadata->>'key', '') AS key,
			task_has_ended(c.caller, c.task_id) AS task_ended
		FROM versions v JOIN credentials c ON c.id = v.credential_id ORDER BY c.id, v.number`)
	if err != nil {
		return err
	}
	if c.versions, err = pgx.CollectRows(rows, pgx.RowToStructByName[row]); err != nil {
		return err
	}
	c.byID, c.byName = map[string]row{}, map[string]row{}
	for _, v := range c.versions {
		c.byID[v.ID], c.byName[fmt.Sprintf("%s/%d", v.Credential, v.Number)] = v, v
	}
	if rows, err = c.admin.Query(c.ctx, "SELECT body FROM events ORDER BY xid, seq"); err != nil {
		return err
	}
	bodies, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	c.events = map[string][]happening{}
	for _, body := range bodies {
		var e happening
		if err := json.Unmarshal([]byte(body), &e); err != nil {
			return err
		}
		if e.VersionID != "" {
			c.events[e.VersionID] = append(c.events[e.VersionID], e)
		}
	}
	c.sessions, c.denied = map[string][]sandbox.SessionInfo{}, map[string]bool{}
	for _, s := range c.aws.Sessions() {
		c.sessions[s.Name] = append(c.sessions[s.Name], s)
	}
	return c.readDenials()
}

func (c *checker) readDenials() error {
	for name, text := range c.aws.RolePolicies(roleName) {
		var policy struct {
			Statement []struct {
				Effect    string
				Action    any
				Resource  any
				Condition map[string]map[string]any
			}
		}
		if err := json.Unmarshal([]byte(text), &policy); err != nil {
			return fmt.Errorf("the role's policy %s: %w", name, err)
		}
		for _, s := range policy.Statement {
			if s.Effect != "Deny" || s.Action != "*" || s.Resource != "*" {
				continue
			}
			switch users := s.Condition["StringLike"]["aws:userid"].(type) {
			case string:
				c.denied[session(users)] = true
			case []any:
				for _, u := range users {
					c.denied[session(fmt.Sprint(u))] = true
				}
			}
		}
	}
	return nil
}

// session is the part of a user id, or of a pattern for one, that names the session.
func session(userID string) string {
	_, name, _ := strings.Cut(userID, ":")
	return name
}

// over tells whether nothing of a version may work upstream any more.
func over(state string) bool { return broker.State(state).Ended() }

// checkGrants: every secret that reached a client is on the ledger, and was active when it did (P1); what is active works
// for its holder, and what is reported ended does not.
func (c *checker) checkGrants() {
	for _, g := range c.book.grants {
		name := fmt.Sprintf("%s/%d", g.Credential, g.Version)
		v, ok := c.byName[name]
		if !ok {
			c.wrong("P1: a client has a secret of %s (%s), which is not on the ledger", name, g.How)
			continue
		}
		primary := map[string]string{"aws_session": "session_token", "api_key": "api_key"}[g.Type]
		sum := sha256.Sum256([]byte(g.Fields[primary]))
		if primary == "" || !bytes.Equal(v.Fingerprint, sum[:]) {
			c.wrong("P1: the secret that a client got of %s (%s) is not the one on the ledger", name, g.How)
		}
		c.checkWasActive(g, v, hex.EncodeToString(sum[:]))
		if v.Provider != "aws" {
			continue
		}
		if !slices.Contains(v.UpstreamIDs, g.Fields["access_key_id"]) {
			c.wrong("P1: the access key of %s (%s) is not on the ledger", name, g.How)
		}
		works, err := c.works(c.ctx, g)
		switch {
		case err != nil:
			c.wrong("trying the secret of %s: %v", name, err)
		case works && over(v.State):
			c.wrong("P3: %s is reported %s and still works upstream", name, v.State)
		case works && v.TaskEnded:
			c.wrong("%s still works though its task has ended; the ledger says %s", name, v.State)
		case !works && v.State == "active":
			c.wrong("%s is reported active and does not work", name)
		}
	}
}

func (c *checker) checkWasActive(g grant, v row, fingerprint string) {
	issued := slices.IndexFunc(c.events[v.ID], func(e happening) bool {
		return e.State == "active" && e.Fingerprint == "sha256:"+fingerprint && !e.At.After(g.Got)
	})
	if issued < 0 {
		c.wrong("P1: no event says that %s/%d was active before its secret was given (%s)", g.Credential, g.Version, g.How)
	}
	if v.EndedAt != nil && v.EndedAt.Before(g.Asked) {
		c.wrong("P1: the secret of %s/%d was given (%s) %s after its end", g.Credential, g.Version, g.How, g.Asked.Sub(*v.EndedAt))
	}
}

// checkUpstream: everything alive upstream is known, and alive on the ledger; the rest is denied (P2, P3).
func (c *checker) checkUpstream() {
	for id, list := range c.sessions {
		v, ok := c.byID[id]
		if !ok {
			c.wrong("P2: the upstream has a session %s of which the ledger knows nothing", id)
			continue
		}
		if len(list) > 1 {
			c.wrong("P2: the upstream was asked %d times for %s", len(list), id)
		}
		for _, s := range list {
			name := fmt.Sprintf("%s/%d (%s)", v.Credential, v.Number, id)
			alive := time.Now().Before(s.Expires) && time.Now().Before(v.ExpiresAt)
			switch {
			case v.State == "failed":
				c.wrong("P2: %s is reported failed, and the upstream made it", name)
			case v.State == "active" && c.denied[session(s.UserID)]:
				c.wrong("%s is reported active and is denied", name)
			case v.State != "active" && alive && !c.denied[session(s.UserID)]:
				c.wrong("P3: %s is reported %s and is not denied upstream", name, v.State)
			}
		}
	}
	for _, v := range c.versions {
		if v.Provider == "aws" && v.State == "active" && len(c.sessions[v.ID]) == 0 {
			c.wrong("%s/%d is reported active, and the upstream never made it", v.Credential, v.Number)
		}
	}
}

// checkEnds: what was acknowledged as ended has no version alive, and neither has a task that ended (P3).
func (c *checker) checkEnds() {
	for _, v := range c.versions {
		name := fmt.Sprintf("%s/%d", v.Credential, v.Number)
		waits := v.State == "issuing" && v.Unclaimed
		disclosed := v.State == "stuck" && v.Provider == "pool" // until an operator replaces the key
		ended := over(v.State) || disclosed
		switch {
		case !ended && v.TaskEnded:
			c.wrong("P3: %s is %s though its task has ended", name, v.State)
		case !ended && c.book.revoked[v.Credential]:
			c.wrong("P3: %s is %s though its credential's revocation was acknowledged", name, v.State)
		case !ended && v.State != "active" && !waits:
			c.wrong("%s is left %s", name, v.State)
		}
	}
	for task := range c.book.ended {
		if c.count("SELECT count(*) FROM tasks WHERE caller = 'orch' AND id = $1 AND ended_at IS NOT NULL", task) != 1 {
			c.wrong("P3: the end of task %s was acknowledged and is not on the ledger", task)
		}
	}
}

// checkEvents: the events of each version, in the record's own order, are a path of the state diagram that begins with
// its intent and ends where the ledger says it is (P4).
func (c *checker) checkEvents() {
	for _, v := range c.versions {
		name := fmt.Sprintf("%s/%d (%s)", v.Credential, v.Number, v.ID)
		list := slices.DeleteFunc(slices.Clone(c.events[v.ID]), func(e happening) bool { return e.State == "" }) // says nothing of the state
		var said []string
		for _, e := range list {
			said = append(said, e.Type+"→"+e.State)
		}
		path := strings.Join(said, ", ")
		if len(list) == 0 {
			c.wrong("P4: %s has no event", name)
			continue
		}
		if first := list[0]; first.State != "issuing" || first.Type != "credential.intended" && first.Type != "ticket.created" {
			c.wrong("P4: %s begins with %s: %s", name, first.Type, path)
		}
		for i := 1; i < len(list); i++ {
			from, to := broker.State(list[i-1].State), broker.State(list[i].State)
			if from != to && !slices.Contains(from.Next(), to) || from == to && !remark(list[i].Type) &&
				(to != broker.StateIssuing || list[i].Type != "credential.revoke_requested") { // asked while it was being minted
				c.wrong("P4: %s goes from %s to %s: %s", name, from, to, path)
			}
		}
		if last := list[len(list)-1].State; last != v.State {
			c.wrong("P4: %s is %s, and its events end with %s: %s", name, v.State, last, path)
		}
	}
	for id := range c.events {
		if _, ok := c.byID[id]; !ok {
			c.wrong("P4: there are events of %s, which is not on the ledger", id)
		}
	}
}

// remark tells whether an event changes no state.
func remark(event string) bool {
	return slices.Contains([]string{
		"ticket.redeemed", "ticket.reused", "credential.resolved", "credential.revoke_deferred",
	}, event)
}

// checkPool: a key has one holder, who is alive, or it is quarantined or free (P8).
func (c *checker) checkPool() {
	type slot struct {
		Name        string
		State       string
		Credential  *string `db:"credential_id"`
		Fingerprint []byte
	}
	rows, err := c.admin.Query(c.ctx, "SELECT name, state, credential_id, fingerprint FROM slots")
	if err != nil {
		c.wrong("%v", err)
		return
	}
	slots, err := pgx.CollectRows(rows, pgx.RowToStructByName[slot])
	if err != nil {
		c.wrong("%v", err)
	}
	holder := map[string]string{} // fingerprint → credential
	held := map[string][]byte{}
	for _, s := range slots {
		if s.State == "available" {
			continue
		}
		if other := holder[string(s.Fingerprint)]; other != "" {
			c.wrong("P8: the key %s is held by %s and by %s", s.Name, other, *s.Credential)
		}
		holder[string(s.Fingerprint)], held[*s.Credential] = *s.Credential, s.Fingerprint
		alive := slices.ContainsFunc(c.versions, func(v row) bool { return v.Credential == *s.Credential && !over(v.State) })
		if s.State == "held" && !alive {
			c.wrong("P8: the key %s is held for %s, of which nothing is alive", s.Name, *s.Credential)
		}
	}
	for _, v := range c.versions {
		if v.Provider == "pool" && v.State == "active" && !bytes.Equal(held[v.Credential], v.Fingerprint) {
			c.wrong("P8: %s/%d is active and does not hold its key", v.Credential, v.Number)
		}
	}
}

// checkCounts: the counts that limits are held by are the numbers of versions that have not ended.
func (c *checker) checkCounts() {
	rows, err := c.admin.Query(c.ctx, `WITH recount AS (
			SELECT kind, key, count(*) AS live FROM versions v JOIN credentials c ON c.id = v.credential_id,
				LATERAL (VALUES ('task', c.caller || '/' || c.task_id), ('agent', c.caller || '/' || c.agent_id),
					('profile', c.profile), ('caller', c.caller)) AS of (kind, key)
			WHERE v.due_at IS NOT NULL GROUP BY kind, key)
		SELECT kind || ' ' || key || ' is counted ' || COALESCE(l.live, 0) || ' and has ' || COALESCE(r.live, 0)
		FROM live_counts l FULL JOIN recount r USING (kind, key) WHERE COALESCE(l.live, 0) <> COALESCE(r.live, 0)`)
	if err != nil {
		c.wrong("%v", err)
		return
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		c.wrong("%v", err)
	}
	for _, line := range lines {
		c.wrong("live_counts: %s", line)
	}
}

// checkKeys: one Idempotency-Key, one credential, and it is the one that was answered (P5).
func (c *checker) checkKeys() {
	made := map[string][]string{}
	for _, v := range c.versions {
		if v.Key != "" && !slices.Contains(made[v.Key], v.Credential) {
			made[v.Key] = append(made[v.Key], v.Credential)
		}
	}
	for _, k := range c.book.keys {
		list := made[k.Key]
		if len(list) > 1 {
			c.wrong("P5: the key %s made %v", k.Key, list)
		}
		if k.Credential != "" && !slices.Equal(list, []string{k.Credential}) {
			c.wrong("P5: the key %s answered %s, and made %v", k.Key, k.Credential, list)
		}
	}
}

// The checker is worth what it finds: each kind of damage is done to an installation where all is well.
func TestCheckerSeesDamage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.start("")
	for i := range 2 {
		task := fmt.Sprint("task-", i)
		for _, a := range []answer{p.issue(awsRequest(task), fmt.Sprint("key-", i)), p.issue(poolRequest(task), "")} {
			if !a.ok() {
				t.Fatal(a)
			}
		}
	}
	first, pooled, other := r.book.alive[0], r.book.alive[1], r.book.alive[2]
	if a := p.revoke(other); !a.ok() {
		t.Fatal(a)
	}
	p.stop()
	r.mustHold()
	superuser := r.exec
	for _, damage := range []struct {
		name, want string
		do         func()
	}{
		{"a live session is marked revoked", "still works upstream", func() {
			superuser(`UPDATE versions SET state = 'revoking', cause = 'revoked' WHERE credential_id = $1`, first)
			superuser(`UPDATE versions SET state = 'revoked', sealed = NULL, due_at = NULL, ended_at = now(), result = 'denied',
				effective_at = now() WHERE credential_id = $1`, first)
		}},
		{"the same, by the policy", "is not denied upstream", func() {}},
		{"the same, by the events", "its events end with active", func() {}},
		{"the same, by the counts", "live_counts: profile aws-crash is counted", func() {}},
		{"the policy is taken away", "is reported revoked and still works", func() {
			if err := r.aws.SetRolePolicy(roleName, "taskpass-revoked", ""); err != nil {
				t.Error(err)
			}
		}},
		{"an event is gone", "has no event", func() { superuser(`DELETE FROM events WHERE credential_id = $1`, pooled) }},
		{"another secret was recorded", "is not the one on the ledger", func() {
			superuser(`UPDATE versions SET fingerprint = '\x00' WHERE credential_id = $1`, pooled)
		}},
		{"a key is given away", "does not hold its key", func() {
			superuser(`UPDATE slots SET state = 'available', credential_id = NULL WHERE credential_id = $1`, pooled)
		}},
		{"a revoked credential is active", "revocation was acknowledged", func() { r.book.revoked[pooled] = true }},
		{"a key made two credentials", "P5: the key key-0 made", func() {
			superuser(`UPDATE credentials SET metadata = '{"key": "key-0"}' WHERE id = $1`, pooled)
		}},
		{"a task has ended", "though its task has ended", func() {
			superuser(`INSERT INTO tasks (caller, id, created_at, ended_at) VALUES ('orch', 'task-0', now(), now())`)
		}},
		{"a version is unknown", "of which the ledger knows nothing", func() {
			superuser(`UPDATE versions SET id = 'aaaaaaaaaaaaaaaa' WHERE credential_id = $1`, other)
		}},
	} {
		damage.do()
		found, err := r.check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(strings.Join(found, "\n"), damage.want) {
			t.Errorf("%s: want %q among\n%s", damage.name, damage.want, strings.Join(found, "\n"))
		}
	}
}
