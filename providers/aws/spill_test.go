package aws_test

import (
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/providertest"
)

// entries are the ids that a document's deny statements name, in whichever form.
func entries(t *testing.T, document string) []string {
	t.Helper()
	if document == "" {
		return nil
	}
	var ids []string
	for _, s := range statements(t, document) {
		condition := s["Condition"].(map[string]any)
		equals, ok := condition["StringEquals"].(map[string]any)
		if !ok {
			equals, _ = condition["StringLike"].(map[string]any)
		}
		for _, users := range equals {
			if one, ok := users.(string); ok {
				users = []any{one}
			}
			for _, u := range users.([]any) {
				if u == "nobody" {
					continue
				}
				_, id, found := strings.Cut(u.(string), ":")
				if !found {
					id = u.(string)
				}
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// places are the entries of each policy that counts for the role: the inline one, and the managed ones that are attached.
func (r *rig) places(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{aws.PolicyName: entries(t, r.denied())}
	for _, arn := range r.AttachedPolicies(r.role) {
		all[arn] = entries(t, r.current(arn))
	}
	return all
}

func characters(text string) int {
	n := 0
	for _, c := range text {
		if !unicode.IsSpace(c) {
			n++
		}
	}
	return n
}

// placedOnce checks that exactly these are denied, each in one place, and that no policy is larger than IAM allows.
func (r *rig) placedOnce(t *testing.T, want []broker.VersionID) {
	t.Helper()
	count := map[broker.VersionID]int{}
	total := 0
	for _, ids := range r.places(t) {
		for _, id := range ids {
			count[broker.VersionID(id)]++
			total++
		}
	}
	for _, id := range want {
		if count[id] != 1 {
			t.Errorf("%s stands in %d policies", id, count[id])
		}
	}
	if total != len(want) {
		t.Errorf("%d entries for %d sessions", total, len(want))
	}
	inline := 0
	for _, text := range r.RolePolicies(r.role) {
		inline += characters(text)
	}
	if inline > 10_240 {
		t.Errorf("the inline policies have %d characters", inline)
	}
	for _, arn := range r.AttachedPolicies(r.role) {
		if n := characters(r.current(arn)); n > 6_144 {
			t.Errorf("%s has %d characters", arn, n)
		}
	}
}

func idsOf[T any](list []T, id func(T) broker.VersionID) []broker.VersionID {
	ids := make([]broker.VersionID, len(list))
	for i, item := range list {
		ids[i] = id(item)
	}
	return ids
}

func idOf(c broker.Credential) broker.VersionID { return c.Version.ID }

// 240 of 241 are ended, and the last goes on; after their end nothing is left.
func TestAllButOne(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	list := r.asked(t, p, ledger, 237, 30*time.Minute)
	real := r.sessions(t, p, ledger, 4, 30*time.Minute)
	for _, h := range real[:3] {
		list = append(list, providertest.Ask(t, ledger, h.Credential, broker.CauseRevoked))
	}
	r.revokeAll(t, list, func(int) *aws.Provider { return p })
	r.placedOnce(t, idsOf(list, idOf))
	r.dead(t, "of the 240", real[:3]...)
	r.live(t, "the 241st", real[3])
	used, room, _ := r.upkeep(t, ledger)
	if is := int64(characters(r.denied())); room != 10_240 || used < is || used > is+64 {
		t.Errorf("%d of %d characters on record; there are %d", used, room, characters(r.denied()))
	}
	if n := r.events(t, ledger, broker.EventUpstreamFilling); (n == 1) != (10*used >= 7*room) {
		t.Errorf("%d alarms", n)
	}
	r.clock.To(list[0].Version.ExpiresAt.Add(time.Minute + time.Second))
	keep(t, p)
	if r.denied() != "" {
		t.Errorf("left: %s", r.denied())
	}
	if used, _, _ := r.upkeep(t, ledger); used != 0 {
		t.Errorf("used: %d", used)
	}
}

// What the inline policy cannot hold goes to those managed policies that are attached, whose number of versions is bounded.
// Only what fits nowhere is said to be full, and nobody else is harmed.
func TestSpill(t *testing.T) {
	t.Parallel()
	edit, prepare := spill(t, true, false)
	r := newRig(t, edit)
	prepare(r)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	attached, loose := r.config.Revocation.SpillPolicies[0], r.config.Revocation.SpillPolicies[1]
	r.crowd(t, 3)
	real := r.sessions(t, p, ledger, 10, time.Hour)
	for i, h := range real[:9] { // six versions of the managed policy: IAM keeps five
		r.end(t, p, ledger, h)
		r.placedOnce(t, idsOf(real[:i+1], func(h held) broker.VersionID { return h.Version.ID }))
	}
	if places := r.places(t); len(places[aws.PolicyName]) != 3 || len(places[attached]) != 6 {
		t.Errorf("%v", places)
	}
	if n := len(r.PolicyVersions(attached)); n > 5 {
		t.Errorf("%d versions", n)
	}
	if n := r.calls("CreatePolicyVersion"); n != 6 {
		t.Errorf("the managed policy was written %d times", n)
	}
	if n := r.calls("PutRolePolicy"); n > 5 { // 3 for its entries, 1 refused for lack of room
		t.Errorf("the inline policy was written %d times, though it was full after 3", n)
	}

	room := (6_144 - frameSize + 1) / entrySize
	tooMany := r.asked(t, p, ledger, room-6+5, 30*time.Minute)
	full := 0
	for _, c := range tooMany {
		done, err := p.Revoke(t.Context(), c)
		if err == nil {
			continue
		}
		full++
		silent(t, err)
		if e := broker.AsError(err); e.Code != broker.CodeUpstreamRefused || !strings.Contains(e.Message, "full") || done.Result != broker.ResultNone {
			t.Errorf("%+v, %v", done, err)
		}
	}
	if full != 5 {
		t.Errorf("%d of 5 are said not to fit", full)
	}
	if len(r.places(t)[attached]) != room {
		t.Errorf("%d of %d entries in the managed policy", len(r.places(t)[attached]), room)
	}
	if ids := entries(t, r.current(loose)); len(ids) > 0 || len(r.PolicyVersions(loose)) != 1 {
		t.Errorf("a policy that is not attached was used: %v", ids)
	}
	r.dead(t, "when all is full", real[:9]...)
	r.live(t, "when all is full", real[9])

	r.clock.To(tooMany[0].Version.ExpiresAt.Add(time.Minute + time.Second))
	keep(t, p)
	r.placedOnce(t, idsOf(real[:9], func(h held) broker.VersionID { return h.Version.ID }))
	r.dead(t, "when some have expired", real[:9]...)
	r.clock.To(real[0].Version.ExpiresAt.Add(time.Minute + time.Second))
	keep(t, p)
	if r.denied() != "" || len(entries(t, r.current(attached))) != 0 {
		t.Errorf("left: %s %s", r.denied(), r.current(attached))
	}
	writes := r.calls("CreatePolicyVersion")
	keep(t, p)
	if r.calls("CreatePolicyVersion") != writes {
		t.Error("an empty managed policy is written again and again")
	}
}

// The managed policies that IAM attaches late are used from then on.
func TestSpillOnceAttached(t *testing.T) {
	t.Parallel()
	edit, prepare := spill(t, false)
	r := newRig(t, edit)
	prepare(r)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	r.crowd(t, 1)
	list := r.sessions(t, p, ledger, 2, time.Hour)
	r.end(t, p, ledger, list[0])
	c := providertest.Ask(t, ledger, list[1].Credential, broker.CauseRevoked)
	if _, err := p.Revoke(t.Context(), c); err == nil {
		t.Fatal("denied where nothing has room")
	}
	must(t, r.AttachRolePolicy(r.role, r.config.Revocation.SpillPolicies[0]))
	if _, err := p.Revoke(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	r.dead(t, "once there was room", list...)
}

// By source identity: entries are the versions' ids, and more of them fit.
func TestDenyBySourceIdentity(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *aws.Config) { c.SourceIdentity, c.Revocation.By = true, "source_identity" })
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	list := r.sessions(t, p, ledger, 2, time.Hour)
	r.end(t, p, ledger, list[0])
	if ids := entries(t, r.denied()); len(ids) != 1 || ids[0] != string(list[0].Version.ID) || !strings.Contains(r.denied(), `"aws:SourceIdentity":"`+ids[0]+`"`) {
		t.Errorf("%s", r.denied())
	}
	r.dead(t, "revoked", list[0])
	r.live(t, "its sibling", list[1])
}

// One alarm while it stays full; it rings again only after there was room in between.
func TestAlarmRingsOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	r.crowd(t, 20)
	keep(t, p)
	rings := func(want int, why string) {
		t.Helper()
		if n := r.events(t, ledger, broker.EventUpstreamFilling); n != want {
			used, room, _ := r.upkeep(t, ledger)
			t.Errorf("%s: %d alarms, want %d; %d of %d", why, n, want, used, room)
		}
	}
	revoke := func(n int, ttl time.Duration) []broker.Credential {
		t.Helper()
		list := r.asked(t, p, ledger, n, ttl)
		r.revokeAll(t, list, func(int) *aws.Provider { return p })
		return list
	}
	revoke(12, 3*time.Hour)
	rings(0, "not yet")
	first := revoke(4, 10*time.Minute)
	rings(1, "over 70 %")
	r.clock.To(first[0].Version.ExpiresAt.Add(time.Minute + time.Second))
	keep(t, p)
	again := revoke(4, 20*time.Minute)
	rings(1, "over it again, and never far below")
	r.clock.To(again[0].Version.ExpiresAt.Add(time.Minute + time.Second))
	r.clock.Advance(3 * time.Hour)
	keep(t, p)
	revoke(16, time.Hour)
	rings(2, "after it was empty")
}
