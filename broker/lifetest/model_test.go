package lifetest

import (
	"flag"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/openapi/client"
)

// The limits that the model's house has: low enough to be met.
var modelLimits = broker.Limits{PerTask: 6, PerAgent: 9, PerProfile: 9, PerCaller: 14}

// TestModel plays random calls of several callers on two replicas, with a moving clock, sweeps and a failing vendor,
// against a model that is simple enough to be believed. -rapid.checks and -rapid.steps make it longer.
// The sequences are the same each time; `make test-model` plays new ones.
func TestModel(t *testing.T) {
	for name, value := range map[string]string{"rapid.seed": "1", "rapid.checks": "8", "rapid.nofailfile": "true", "rapid.shrinktime": "20s"} {
		set := false
		flag.Visit(func(f *flag.Flag) { set = set || f.Name == name })
		if !set {
			if err := flag.Set(name, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := newRig(t, func(c *broker.Config) {
		c.Limits = modelLimits
		p := c.Profiles["pool"]
		p.Upstream = unkept{p.Upstream}
		c.Profiles["pool"] = p
	})
	rapid.Check(t, func(rt *rapid.T) {
		r.t = rt
		r.reset()
		r.clock.advance(time.Second) // so that this run's sessions are told from those before
		m := &model{rig: r, start: r.clock.Now().Add(-time.Second), parents: map[string]string{}, ended: map[string]bool{}, keys: map[string]*used{}}
		rt.Repeat(rapid.StateMachineActions(m))
	})
	r.t = t
}

// unkept is a pool that nobody looks after: versions that nobody asked for are TestFleet's subject, and the model knows none.
type unkept struct{ broker.Provider }

// reset gives the rig back as new, but for its clock.
func (r *rig) reset() {
	r.exec(`TRUNCATE callers, tokens, credentials, versions, slots, keys, rotations, events, tasks, tickets, task_tokens, idempotency, live_counts CASCADE`)
	r.front.heal()
	if err := r.vendor.SetRolePolicy("deny", "taskpass-revoked", ""); err != nil {
		r.t.Fatal(err)
	}
	for i := range keysOfPool {
		r.writeKey(i, "value")
	}
	r.makeTokens()
}

// model is what the house should hold.
type model struct {
	*rig
	creds   []*cred
	parents map[string]string // by "caller/task"
	ended   map[string]bool   // by "caller/task": it was ended itself
	keys    map[string]*used  // by "caller/key"
	start   time.Time
	gen     int            // how often the pool's keys were replaced
	last    func(m *model) // sends the last request again, to the next replica

	mint, deny *rule // what the vendor does to the next call; nil, or spent: nothing
}

// cred is a credential. Its id is unknown when the answer was an error, until the ledger shows it.
type cred struct {
	id, caller, task, agent, profile string
	ttl                              time.Duration
	hardEnd                          time.Time
	versions                         []*version
	ticket                           string
	ticketEnd                        time.Time
	used                             bool // its ticket was redeemed
	token                            string
	tokenEnd                         time.Time
}

// version is one version. Its state is the ledger's, once that was found to be among those that may be.
type version struct {
	state   broker.State
	secret  client.Secret // none: nobody was given it
	issued  time.Time
	expires time.Time
	nothing bool // nobody was ever answered with it
	waiting bool // its ticket is not redeemed
	gen     int  // of the pool's key that it bears

	replaced time.Time      // it ends then at the latest, for a newer one is there
	may      []broker.State // what it may be after this step; none: what it was
}

// used is a key that came with a request.
type used struct {
	request string
	creds   []*cred
	seen    int
	at      time.Time
}

func (c *cred) current() *version {
	for _, v := range slices.Backward(c.versions) {
		if v.state != broker.StateFailed && v.state != broker.StateLost && !v.nothing {
			return v
		}
	}
	return c.versions[0]
}

func (c *cred) latest() *version { return c.versions[len(c.versions)-1] }

func (c *cred) number(v *version) int { return slices.Index(c.versions, v) + 1 }

func (c *cred) live() int {
	n := 0
	for _, v := range c.versions {
		if !v.state.Ended() {
			n++
		}
	}
	return n
}

func (c *cred) of() string   { return c.caller + "/" + c.task }
func (c *cred) aws() bool    { return c.profile != "pool" }
func (c *cred) denies() bool { return c.profile == "aws" || c.profile == "strict" }

// holds tells whether a pool's key is out of reach for others because of the credential.
func (m *model) holds(c *cred) bool {
	return c.profile == "pool" && slices.ContainsFunc(c.versions, func(v *version) bool {
		return !v.state.Ended() && !v.waiting && (v.state != broker.StateStuck || v.gen == m.gen)
	})
}

func (m *model) freeKeys() int {
	n := keysOfPool
	for _, c := range m.creds {
		if m.holds(c) {
			n--
		}
	}
	return n
}

// taskEnded tells whether the task or one above it has ended.
func (m *model) taskEnded(caller, task string) bool {
	for seen := map[string]bool{}; task != "" && !seen[task]; task = m.parents[caller+"/"+task] {
		if m.ended[caller+"/"+task] {
			return true
		}
		seen[task] = true
	}
	return false
}

func (m *model) mintFault() string {
	if m.mint == nil || m.mint.spent(m.front) {
		return ""
	}
	return m.mint.kind
}

func (m *model) denyFails() bool { return m.deny != nil && !m.deny.spent(m.front) }

func (r *rule) spent(f *front) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return r.times == 0
}

// mayEnd says what a version may be once its end was asked for.
func (m *model) mayEnd(c *cred, v *version, cause broker.Cause) {
	switch {
	case v.state.Ended() || v.state == broker.StateRevoking || v.state == broker.StateStuck:
		return
	case v.waiting:
		v.may = []broker.State{broker.StateFailed}
	case c.denies():
		v.may = []broker.State{broker.StateRevoked}
		if m.denyFails() {
			v.may = append(v.may, broker.StateRevoking)
		}
	case c.aws():
		v.may = []broker.State{broker.StateRevoking}
	case cause == broker.CauseRevoked && v.gen == m.gen:
		v.may = []broker.State{broker.StateStuck}
	default:
		v.may = []broker.State{broker.StateRevoked}
	}
	if cause != broker.CauseAbandoned {
		v.nothing = false
	}
}

// mintOutcome is what the vendor makes of the credential's next version: no code when it mints.
func (m *model) mintOutcome(c *cred) (broker.Code, broker.State) {
	if !c.aws() {
		if !m.holds(c) && m.freeKeys() == 0 {
			return broker.CodePoolExhausted, broker.StateFailed
		}
		return "", broker.StateActive
	}
	switch m.mintFault() {
	case refuse:
		return broker.CodeUpstreamRefused, broker.StateFailed
	case throttle:
		return broker.CodeUpstreamThrottled, broker.StateFailed
	case lose:
		return broker.CodeUpstreamError, broker.StateLost
	}
	return "", broker.StateActive
}

// add gives a credential its next version, as it is to be.
func (m *model) add(c *cred, code broker.Code, state broker.State, got client.IssuedCredential) *version {
	now := m.clock.Now()
	v := &version{state: broker.StateIssuing, may: []broker.State{state}, issued: now, expires: now.Add(c.ttl), nothing: code != ""}
	if v.expires.After(c.hardEnd) {
		v.expires = c.hardEnd
	}
	if code == "" {
		m.supersede(c, now)
		v.secret, v.gen = got.Secret, m.gen
		if got.Version != len(c.versions)+1 || !got.ExpiresAt.Equal(v.expires) || got.Status != client.Active {
			m.t.Errorf("version %d (%s) until %s, want %d until %s", got.Version, got.Status, got.ExpiresAt, len(c.versions)+1, v.expires)
		}
	}
	c.versions = append(c.versions, v)
	return v
}

func (m *model) supersede(c *cred, now time.Time) {
	for _, v := range c.versions {
		if v.state == broker.StateActive && v.replaced.IsZero() && len(v.may) == 0 {
			v.replaced = now.Add(overlap)
		}
	}
}

// over tells whether n more versions would pass a limit.
func (m *model) over(q client.IssueRequest, caller string, profiles []string) bool {
	task, agent, of, all := 0, 0, map[string]int{}, 0
	for _, c := range m.creds {
		n := int64(c.live())
		of[c.profile] += int(n)
		if c.caller != caller {
			continue
		}
		all += int(n)
		if c.task == q.TaskID {
			task += int(n)
		}
		if c.agent == q.AgentID {
			agent += int(n)
		}
	}
	for _, p := range profiles {
		of[p]++
		if int64(of[p]) > modelLimits.PerProfile {
			return true
		}
	}
	n := len(profiles)
	return int64(task+n) > modelLimits.PerTask || int64(agent+n) > modelLimits.PerAgent || int64(all+n) > modelLimits.PerCaller
}

var modelTasks = []string{"t1", "t2", "t3"} // t2 may be put under t1, t3 under t2

func drawTask(t *rapid.T) string { return rapid.SampledFrom(modelTasks).Draw(t, "task") }
func drawReplica(t *rapid.T) int { return rapid.IntRange(0, 1).Draw(t, "replica") }
func drawIssuer(t *rapid.T) string {
	return rapid.SampledFrom([]string{"orch", "other"}).Draw(t, "caller")
}
func drawKey(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", "", "k1", "k2", "k3"}).Draw(t, "key")
}
func (m *model) drawCred(t *rapid.T) *cred {
	var known []*cred
	for _, c := range m.creds {
		if c.id != "" {
			known = append(known, c)
		}
	}
	if len(known) == 0 {
		t.Skip("no credential yet")
	}
	if rapid.IntRange(0, 3).Draw(t, "any") > 0 { // most of the time one that is active
		active := slices.DeleteFunc(slices.Clone(known), func(c *cred) bool { return c.current().state != broker.StateActive })
		if len(active) > 0 {
			known = active
		}
	}
	return known[len(known)-1-rapid.IntRange(0, min(len(known)-1, 7)).Draw(t, "credential, from the newest")]
}

// Issue asks for one credential.
func (m *model) Issue(t *rapid.T) {
	q := ask(rapid.SampledFrom([]string{"aws", "strict", "none", "pool"}).Draw(t, "profile"), drawTask(t))
	q.AgentID = rapid.SampledFrom([]string{"agent-1", "agent-2"}).Draw(t, "agent")
	q.TTLSeconds = rapid.SampledFrom([]int{60, 3600, 7200}).Draw(t, "ttl")
	if rapid.Bool().Draw(t, "under its parent") && q.TaskID != "t1" {
		q.ParentTaskID = map[string]string{"t2": "t1", "t3": "t2"}[q.TaskID]
	}
	if rapid.IntRange(0, 2).Draw(t, "delivery") == 0 {
		ticket(&q)
	}
	q.TaskToken = rapid.Bool().Draw(t, "task token")
	caller, key, replica := drawIssuer(t), drawKey(t), drawReplica(t)
	send := func(m *model) {
		m.expectIssue(caller, key, q, []string{q.Profile}, func() (reply, []client.IssuedCredential) {
			a := m.as(caller).on(replica).issue(q, key)
			return a, []client.IssuedCredential{a.issued}
		})
		replica++
	}
	send(m)
	m.last = send
}

// IssueSeveral asks for some at once.
func (m *model) IssueSeveral(t *rapid.T) {
	profiles := rapid.SliceOfN(rapid.SampledFrom([]string{"aws", "none", "pool"}), 2, 3).Draw(t, "profiles")
	q := ask("", drawTask(t))
	q.TTLSeconds = int(ttl.Seconds())
	caller, key, replica := drawIssuer(t), drawKey(t), drawReplica(t)
	send := func(m *model) {
		m.expectIssue(caller, key, q, profiles, func() (reply, []client.IssuedCredential) {
			a := m.as(caller).on(replica).issueAll(q.TaskID, batch(profiles...), key)
			return a, a.several
		})
		replica++
	}
	send(m)
	m.last = send
}

// Again sends the last request again, byte for byte, to the other replica.
func (m *model) Again(t *rapid.T) {
	if m.last == nil {
		t.Skip("nothing was sent yet")
	}
	m.last(m)
}

func (m *model) expectIssue(caller, key string, q client.IssueRequest, profiles []string, call func() (reply, []client.IssuedCredential)) {
	now := m.clock.Now()
	request := fmt.Sprint(q, profiles)
	id := caller + "/" + key
	if q.ParentTaskID != "" {
		held := slices.ContainsFunc(m.creds, func(c *cred) bool { return c.of() == caller+"/"+q.TaskID })
		if !held || m.parents[caller+"/"+q.TaskID] != "" || !m.taskEnded(caller, q.ParentTaskID) {
			m.parents[caller+"/"+q.TaskID] = q.ParentTaskID
		} else { // it is not put there, and what it holds is left alone
			m.only(call, broker.CodeTaskEnded, broker.CodeCredentialEnded, broker.CodeIdempotencyMismatch)
			return
		}
	}
	if u := m.keys[id]; key != "" && u != nil && now.Before(u.at.Add(24*time.Hour)) {
		if u.request != request {
			m.only(call, broker.CodeIdempotencyMismatch)
			return
		}
		m.expectReplay(u, q, call)
		return
	}
	if m.taskEnded(caller, q.TaskID) {
		m.only(call, broker.CodeTaskEnded)
		return
	}
	if m.over(q, caller, profiles) {
		m.only(call, broker.CodeQuotaExceeded)
		return
	}
	var made []*cred
	for _, p := range profiles {
		d := time.Duration(q.TTLSeconds) * time.Second
		c := &cred{caller: caller, task: q.TaskID, agent: q.AgentID, profile: p, ttl: d, hardEnd: now.Add(maxLifetime)}
		made = append(made, c)
	}
	if q.Delivery == client.IssueRequestDeliveryTicket {
		a, list := call()
		a.want(m.t, http.StatusCreated)
		c := made[0]
		c.ticket, c.ticketEnd, c.hardEnd = list[0].Ticket.Value, now.Add(ticketTTL), c.hardEnd.Add(ticketTTL)
		c.versions = []*version{{state: broker.StateIssuing, waiting: true, issued: now, expires: c.ticketEnd.Add(c.ttl)}}
		m.named(c, list[0], q)
		if !list[0].Ticket.ExpiresAt.Equal(c.ticketEnd) || len(list[0].Secret.Fields) > 0 {
			m.t.Errorf("a ticket until %s, with a secret: %v", list[0].Ticket.ExpiresAt, len(list[0].Secret.Fields) > 0)
		}
	} else {
		m.expectMints(made, q, call)
	}
	m.creds = append(m.creds, made...)
	if key != "" {
		m.keys[id] = &used{request: request, creds: made, at: now}
	}
}

// expectMints lets the vendor be asked for a next version of each: all, or none that stays.
func (m *model) expectMints(made []*cred, q client.IssueRequest, call func() (reply, []client.IssuedCredential)) {
	pool, free := 0, m.freeKeys()
	fault := m.mintFault()
	codes, failing := []broker.Code{}, 0
	outcome := make([]broker.State, len(made))
	for i, c := range made {
		if !c.aws() {
			pool++
			continue
		}
		code, state := m.mintOutcome(c)
		outcome[i] = state
		if code != "" && failing == 0 { // one call takes the fault, whichever
			codes, failing = append(codes, code), 1
		}
	}
	if pool > free {
		codes = append(codes, broker.CodePoolExhausted)
	}
	deny := m.denyFails()
	a, list := call()
	if len(codes) == 0 {
		a.want(m.t, http.StatusCreated)
		for i, c := range made {
			m.add(c, "", broker.StateActive, list[i])
			m.named(c, list[i], q)
		}
		return
	}
	if !slices.Contains(codes, a.code) {
		m.t.Errorf("answered %d %s, want one of %v", a.status, a.code, codes)
	}
	for i, c := range made {
		v := m.add(c, a.code, broker.StateFailed, client.IssuedCredential{})
		switch {
		case len(made) == 1 && c.aws():
			v.may = []broker.State{outcome[i]}
		case len(made) == 1:
		case !c.aws():
			v.may = []broker.State{broker.StateRevoked, broker.StateFailed}
			if pool <= free {
				v.may = v.may[:1]
			}
		default: // it may be the one that failed, or one that was taken back
			v.may = []broker.State{}
			if fault == refuse || fault == throttle {
				v.may = append(v.may, broker.StateFailed)
			}
			if fault == lose {
				v.may = append(v.may, broker.StateLost)
			}
			if c.denies() {
				v.may = append(v.may, broker.StateRevoked)
				if deny {
					v.may = append(v.may, broker.StateRevoking)
				}
			} else {
				v.may = append(v.may, broker.StateRevoking)
			}
		}
	}
}

// named takes the id and the task token from an answer.
func (m *model) named(c *cred, got client.IssuedCredential, q client.IssueRequest) {
	if c.id == "" {
		c.id = got.ID
	}
	if got.ID != c.id || got.Profile != c.profile || got.TaskID != c.task {
		m.t.Errorf("answered %s of %s for %s", got.ID, got.Profile, got.TaskID)
	}
	if (got.TaskToken != "") != q.TaskToken {
		m.t.Errorf("task token: %v, asked for: %v", got.TaskToken != "", q.TaskToken)
	}
	if got.TaskToken != "" {
		c.token, c.tokenEnd = got.TaskToken, c.hardEnd
	}
}

// expectReplay is for a request whose key was used for the same: P5.
func (m *model) expectReplay(u *used, q client.IssueRequest, call func() (reply, []client.IssuedCredential)) {
	now := m.clock.Now()
	gone, failed, ticketed := false, false, q.Delivery == client.IssueRequestDeliveryTicket
	for _, c := range u.creds {
		v := c.answered()
		switch {
		case v.nothing:
			failed = true
		case v.waiting && v.state == broker.StateIssuing:
		case v.state != broker.StateActive || !now.Before(v.expires):
			gone = true
		}
	}
	c := u.creds[0]
	switch {
	case gone:
		m.only(call, broker.CodeCredentialEnded)
	case ticketed && (failed || c.used):
		m.only(call, broker.CodeTicketRedeemed)
	case ticketed:
		a, list := call()
		a.want(m.t, http.StatusCreated)
		if list[0].ID != c.id || list[0].Ticket.Value != c.ticket || len(list[0].Secret.Fields) > 0 {
			m.t.Error("the key answers another ticket, or the secret")
		}
	case !failed:
		a, list := call()
		a.want(m.t, http.StatusCreated)
		for i, c := range u.creds {
			if list[i].ID != c.id || secretOf(list[i].Secret) != secretOf(c.answered().secret) {
				m.t.Errorf("the key answers %s version %d, want %s version %d", list[i].ID, list[i].Version, c.id, c.number(c.answered()))
			}
		}
	case m.taskEnded(c.caller, c.task):
		m.expectTakenBack(u.creds)
		m.only(call, broker.CodeTaskEnded, broker.CodeCredentialEnded)
	case m.hardEndOf(u.creds):
		m.expectTakenBack(u.creds)
		m.only(call, broker.CodeCredentialEnded)
	default:
		m.expectTakenBack(u.creds)
		m.expectMints(u.creds, q, call)
	}
}

// expectTakenBack lets what lives of a request that came to nothing be ended before it is minted anew.
func (m *model) expectTakenBack(list []*cred) {
	for _, c := range list {
		for _, v := range c.versions {
			if v.state == broker.StateActive {
				m.mayEnd(c, v, broker.CauseAbandoned)
				v.may = append(v.may, v.state)
			}
		}
	}
}

// answered is the version that a repeated request is about: the newest, unless that came to nothing while the one before
// lives.
func (c *cred) answered() *version {
	if cur := c.current(); c.latest().nothing && cur.state == broker.StateActive {
		return cur
	}
	return c.latest()
}

func (m *model) hardEndOf(list []*cred) bool {
	return slices.ContainsFunc(list, func(c *cred) bool { return c.hardEnd.Sub(m.clock.Now()) < time.Minute })
}

// only expects one of some refusals.
func (m *model) only(call func() (reply, []client.IssuedCredential), codes ...broker.Code) {
	a, _ := call()
	if !slices.Contains(codes, a.code) || a.status != a.code.Status() {
		m.t.Errorf("answered %d %s (%s), want %v", a.status, a.code, a.problem.Detail, codes)
	}
}

// drawUser picks who uses a credential, and what that is refused with; no code: it may.
func (m *model) drawUser(t *rapid.T, c *cred) (caller, broker.Code) {
	who := rapid.SampledFrom([]string{"owner", "owner", "owner", "its task", "another task", "another", "auditor", "operator"}).Draw(t, "who")
	at := drawReplica(t)
	if who == "another task" {
		for _, o := range m.creds {
			if o.token != "" && o.of() != c.of() && !m.taskEnded(o.caller, o.task) && m.clock.Now().Before(o.tokenEnd) {
				return m.by(o.token).on(at), broker.CodeNotFound
			}
		}
	}
	switch {
	case who == "its task" && c.token != "":
		as := m.by(c.token).on(at)
		switch {
		case m.taskEnded(c.caller, c.task):
			return as, broker.CodeTokenRevoked
		case !m.clock.Now().Before(c.tokenEnd):
			return as, broker.CodeTokenExpired
		}
		return as, ""
	case who == "another":
		return m.as(map[string]string{"orch": "other", "other": "orch"}[c.caller]).on(at), broker.CodeNotFound
	case who == "auditor":
		return m.as("aud").on(at), broker.CodeForbidden
	case who == "operator":
		return m.as("ops").on(at), broker.CodeForbidden
	}
	return m.as(c.caller).on(at), ""
}

// refusedUse is how a credential is refused to its holder; no code: it is not.
func (m *model) refusedUse(c *cred) broker.Code {
	v := c.current()
	switch {
	case v.state == broker.StateIssuing:
		return broker.CodeConflict
	case v.state != broker.StateActive || !m.clock.Now().Before(v.expires):
		return broker.CodeCredentialEnded
	}
	return ""
}

// Resolve asks for the current secret.
func (m *model) Resolve(t *rapid.T) {
	c := m.drawCred(t)
	by, code := m.drawUser(t, c)
	etag := rapid.SampledFrom([]string{"", `"1"`, `"2"`}).Draw(t, "etag")
	if code == "" {
		code = m.refusedUse(c)
	}
	a := by.resolve(c.id, etag)
	v := c.current()
	switch {
	case code != "":
		a.want(t, code)
	case etag == fmt.Sprintf("%q", fmt.Sprint(c.number(v))):
		a.want(t, http.StatusNotModified)
	default:
		a.want(t, http.StatusOK)
		left := v.expires.Sub(m.clock.Now())
		if a.resolved.Version != c.number(v) || secretOf(a.resolved.Secret) != secretOf(v.secret) || a.resolved.CacheForSeconds != min(60, left.Seconds()/10) {
			t.Errorf("resolved version %d (keep %g s), want %d", a.resolved.Version, a.resolved.CacheForSeconds, c.number(v))
		}
	}
}

// Refresh asks for the next version.
func (m *model) Refresh(t *rapid.T) {
	c := m.drawCred(t)
	by, refused := m.drawUser(t, c)
	seen := rapid.SampledFrom([]int{0, 0, 1, c.number(c.current())}).Draw(t, "seen")
	key := drawKey(t)
	if by.token != m.tokens[c.caller] {
		key = "" // a task's keys are its own
	}
	send := func(m *model) { m.expectRefresh(by, c, refused, seen, key); by.at = 1 - by.at }
	send(m)
	if refused == "" && by.token == m.tokens[c.caller] {
		m.last = send
	}
}

func (m *model) expectRefresh(by caller, c *cred, code broker.Code, seen int, key string) {
	now, original := m.clock.Now(), seen
	request, id := fmt.Sprint("refresh ", c.id, " ", seen), c.caller+"/"+key
	u := m.keys[id]
	if key == "" || u != nil && !now.Before(u.at.Add(24*time.Hour)) {
		u = nil
	}
	if code == "" && u != nil {
		if u.request != request {
			code = broker.CodeIdempotencyMismatch
		} else {
			seen = u.seen
		}
	}
	if code == "" {
		code = m.refusedUse(c)
	}
	cur := c.current()
	if seen == 0 {
		seen = c.number(cur)
	}
	if code == "" && seen < c.number(cur) {
		a := by.refresh(c.id, original, key).want(m.t, http.StatusCreated)
		if a.issued.Version != c.number(cur) || secretOf(a.issued.Secret) != secretOf(cur.secret) {
			m.t.Errorf("who has version %d is given %d, want the current one, %d", seen, a.issued.Version, c.number(cur))
		}
		return
	}
	if code == "" {
		switch {
		case c.live() >= 16:
			code = broker.CodeQuotaExceeded
		case c.hardEnd.Sub(now) < time.Minute:
			code = broker.CodeCredentialEnded
		case m.taskEnded(c.caller, c.task):
			code = broker.CodeTaskEnded
		}
	}
	if code != "" {
		by.refresh(c.id, original, key).want(m.t, code)
		return
	}
	if key != "" && u == nil {
		m.keys[id] = &used{request: request, creds: []*cred{c}, seen: seen, at: now}
	}
	failed, state := m.mintOutcome(c)
	a := by.refresh(c.id, original, key)
	if failed == "" {
		a.want(m.t, http.StatusCreated)
	} else {
		a.want(m.t, failed)
	}
	m.add(c, failed, state, a.issued)
}

// Redeem brings a ticket, a first time or again.
func (m *model) Redeem(t *rapid.T) {
	var with []*cred
	for _, c := range m.creds {
		if c.ticket != "" {
			with = append(with, c)
		}
	}
	if len(with) == 0 {
		t.Skip("no ticket yet")
	}
	c := with[len(with)-1-rapid.IntRange(0, min(len(with)-1, 3)).Draw(t, "ticket, from the newest")]
	at := drawReplica(t)
	send := func(m *model) { m.expectRedeem(c, at); at++ }
	send(m)
	m.last = send
}

func (m *model) expectRedeem(c *cred, at int) {
	now := m.clock.Now()
	v := c.versions[0]
	redeem := func() reply { return m.as(c.caller).on(at).redeem(c.ticket) }
	switch {
	case c.used:
		if c.profile == "strict" {
			for _, v := range c.versions {
				m.mayEnd(c, v, broker.CauseRevoked)
			}
		}
		redeem().want(m.t, broker.CodeTicketRedeemed)
	case v.state == broker.StateFailed && !now.Before(c.ticketEnd): // ended or expired: both are past
		if a := redeem(); a.code != broker.CodeTicketExpired && a.code != broker.CodeCredentialEnded {
			m.t.Errorf("answered %d %s", a.status, a.code)
		}
	case v.state == broker.StateFailed:
		redeem().want(m.t, broker.CodeCredentialEnded)
	case !now.Before(c.ticketEnd):
		redeem().want(m.t, broker.CodeTicketExpired)
	default:
		code, state := m.mintOutcome(c)
		c.used, v.waiting = true, false
		v.issued, v.expires = now, now.Add(c.ttl)
		v.may, v.nothing = []broker.State{state}, code != ""
		a := redeem()
		if code != "" {
			a.want(m.t, code)
			return
		}
		a.want(m.t, http.StatusOK)
		v.secret, v.gen = a.issued.Secret, m.gen
		if !a.issued.ExpiresAt.Equal(v.expires) || a.issued.ID != c.id {
			m.t.Errorf("redeemed %s until %s, want %s until %s", a.issued.ID, a.issued.ExpiresAt, c.id, v.expires)
		}
	}
}

// Revoke ends a credential.
func (m *model) Revoke(t *rapid.T) {
	c := m.drawCred(t)
	who := rapid.SampledFrom([]string{"owner", "operator", "another", "auditor", "its task"}).Draw(t, "who")
	by := m.as(c.caller).on(drawReplica(t))
	code := broker.Code("")
	switch who {
	case "operator":
		by.token = m.tokens["ops"]
	case "another":
		by.token, code = m.tokens[map[string]string{"orch": "other", "other": "orch"}[c.caller]], broker.CodeNotFound
	case "auditor":
		by.token, code = m.tokens["aud"], broker.CodeForbidden
	case "its task":
		if c.token != "" && !m.taskEnded(c.caller, c.task) && m.clock.Now().Before(c.tokenEnd) {
			by.token, code = c.token, broker.CodeForbidden
		}
	}
	if code != "" {
		by.revoke(c.id).want(t, code)
		return
	}
	for _, v := range c.versions {
		m.mayEnd(c, v, broker.CauseRevoked)
	}
	m.achieved(by.revoke(c.id), "c.id = $1", c.id)
}

// achieved holds an answer to a wish to end: 200 says that all is over or that nothing more can be done.
func (m *model) achieved(a reply, where string, args ...any) {
	open := one[int](m.rig, `SELECT count(*)::int FROM versions v JOIN credentials c ON c.id = v.credential_id
		WHERE v.due_at IS NOT NULL AND v.result <> 'expires' AND `+where, args...)
	switch {
	case a.status == http.StatusOK && open > 0:
		m.t.Errorf("answered 200 though %d versions may still be ended", open)
	case a.status == http.StatusAccepted && open == 0:
		m.t.Error("answered 202 though there is nothing left to achieve")
	case a.status != http.StatusOK && a.status != http.StatusAccepted:
		m.t.Errorf("answered %d %s", a.status, a.code)
	}
}

// EndTask ends a task and those below it.
func (m *model) EndTask(t *rapid.T) {
	name, task := drawIssuer(t), drawTask(t)
	by := m.as(name).on(drawReplica(t))
	if rapid.IntRange(0, 3).Draw(t, "by its own token") == 0 {
		for _, c := range m.creds {
			if c.caller == name && c.task == task && c.token != "" && m.clock.Now().Before(c.tokenEnd) && !m.taskEnded(name, task) {
				by.token = c.token
			}
		}
	}
	for _, below := range modelTasks {
		for up, n := below, 0; up != "" && n < 4; up, n = m.parents[name+"/"+up], n+1 {
			if up == task && !m.ended[name+"/"+below] {
				m.ended[name+"/"+below] = true
				for _, c := range m.creds {
					if c.of() == name+"/"+below {
						for _, v := range c.versions {
							m.mayEnd(c, v, broker.CauseTaskEnded)
						}
					}
				}
				break
			}
		}
	}
	a := by.endTask(task)
	m.achieved(a, "c.caller = $1 AND c.task_id = $2", name, task)
	if a.task.Status != client.Ended {
		t.Errorf("the ended task is %s", a.task.Status)
	}
}

// Advance moves everybody's clock; most of the time somebody sweeps then.
func (m *model) Advance(t *rapid.T) {
	m.clock.advance(rapid.SampledFrom([]time.Duration{
		5 * time.Minute, time.Second, time.Minute, 5 * time.Minute, 8 * time.Minute, 30 * time.Minute, 50 * time.Minute, 3 * time.Hour, 25 * time.Hour,
	}).Draw(t, "by"))
	if rapid.IntRange(0, 2).Draw(t, "and sweep") > 0 {
		m.Sweep(t)
	}
}

// Sweep does what is due, on one replica.
func (m *model) Sweep(t *rapid.T) {
	at := drawReplica(t)
	now := m.clock.Now()
	for _, c := range m.creds {
		for _, v := range c.versions {
			m.expectSwept(c, v, now)
		}
	}
	if err := m.replicas[at].broker.Sweep(t.Context()); err != nil {
		t.Errorf("sweep: %v", err)
	}
}

func (m *model) expectSwept(c *cred, v *version, now time.Time) {
	over := !now.Before(v.expires)
	switch {
	case v.waiting:
		if !v.state.Ended() && !now.Before(c.ticketEnd) {
			v.may = []broker.State{broker.StateFailed}
		}
	case v.state == broker.StateActive && over:
		v.may = []broker.State{broker.StateExpired}
		if c.profile == "pool" && !v.replaced.IsZero() { // nothing expires by itself there
			v.may = []broker.State{broker.StateRevoked}
		}
	case v.state == broker.StateActive && !v.replaced.IsZero() && !now.Before(v.replaced):
		m.mayEnd(c, v, broker.CauseReplaced)
	case v.state == broker.StateLost && over:
		v.may = []broker.State{broker.StateExpired}
	case v.state == broker.StateLost:
		m.mayEnd(c, v, broker.CauseAbandoned)
	case c.denies() && (v.state == broker.StateRevoking || v.state == broker.StateStuck): // tried again, if it is due
		v.may = []broker.State{v.state, broker.StateRevoked}
		if m.denyFails() {
			v.may = append(v.may, broker.StateStuck)
		}
		if over {
			v.may = append(v.may, broker.StateExpired)
		}
	case v.state == broker.StateRevoking && over:
		v.may = []broker.State{broker.StateExpired}
	case v.state == broker.StateStuck:
		v.may = []broker.State{broker.StateStuck}
		if v.gen != m.gen {
			v.may = append(v.may, broker.StateRevoked)
		}
	}
}

// FailMint lets the vendor fail the next session that it is asked for.
func (m *model) FailMint(t *rapid.T) {
	if m.mintFault() != "" {
		t.Skip("it is about to")
	}
	m.mint = m.front.on("AssumeRole", "", rapid.SampledFrom([]string{refuse, lose}).Draw(t, "how"), 1)
}

// FailDenial lets the vendor fail the next write of its policy.
func (m *model) FailDenial(t *rapid.T) {
	if m.denyFails() {
		t.Skip("it is about to")
	}
	m.deny = m.front.on("PutRolePolicy", "", throttle, 1)
}

// ReplaceKeys gives all keys of the pool new values at their source.
func (m *model) ReplaceKeys(*rapid.T) {
	m.gen++
	for i := range keysOfPool {
		m.writeKey(i, fmt.Sprintf("value-%d", m.gen))
	}
}
