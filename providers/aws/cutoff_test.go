package aws_test

import (
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/providertest"
)

// Without the operator's word nothing is cut off, however full it is.
func TestNoCutOffUnlessAccepted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	r.crowd(t, 2)
	bystander := r.sessions(t, p, ledger, 1, time.Hour)[0]
	list := r.asked(t, p, ledger, 4, time.Hour)
	r.clock.Advance(10 * time.Minute)
	full := 0
	for _, c := range list {
		if _, err := p.Revoke(t.Context(), c); err != nil {
			full++
		}
	}
	_, _ = p.Keep(t.Context()) // whatever it says: each Revoke has said it
	if full != 2 || strings.Contains(r.denied(), "TokenIssueTime") || r.events(t, ledger, broker.EventUpstreamCutOff) != 0 {
		t.Errorf("%d did not fit; %s", full, r.denied())
	}
	r.live(t, "nobody ended it", bystander)
}

// The last resort: everything that is older than a moment is dead, and the ledger says so; what comes later lives; and the
// statement goes when all that it is for has expired.
func TestCutOff(t *testing.T) {
	t.Parallel()
	r := newRig(t, acceptCutOff)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	r.crowd(t, 14)
	keep(t, p)
	bystander := r.sessions(t, p, ledger, 1, time.Hour)[0]
	doomed := r.sessions(t, p, ledger, 13, 20*time.Minute)
	r.clock.Advance(5 * time.Minute)
	for _, h := range doomed[:5] {
		r.end(t, p, ledger, h)
	}
	if r.events(t, ledger, broker.EventUpstreamCutOff) != 0 {
		t.Fatal("cut off while all fits")
	}
	r.live(t, "while all fits", bystander)
	for _, h := range doomed[6:12] {
		providertest.Ask(t, ledger, h.Credential, broker.CauseRevoked)
	}
	c := providertest.Ask(t, ledger, doomed[5].Credential, broker.CauseRevoked)
	done, err := p.Revoke(t.Context(), c)
	if err != nil || done.Result != broker.ResultDenied || done.Basis != "role_cut_off" {
		t.Fatalf("%+v, %v", done, err)
	}
	providertest.Settle(t, ledger, c, done)
	r.dead(t, "older than the moment", append(doomed, bystander)...)
	if n := len(entries(t, r.denied())); n != 0 {
		t.Errorf("%d entries for what the cut-off refuses anyway", n)
	}
	for _, h := range []held{bystander, doomed[12]} {
		c, err := ledger.Credential(t.Context(), h.ID)
		if err != nil || c.Version.State != broker.StateActive || c.Version.Cause != broker.CauseCutOff || c.Version.DueAt.After(r.clock.Now()) {
			t.Errorf("what was active is %s (%s), due at %s, %v", c.Version.State, c.Version.Cause, c.Version.DueAt, err)
		}
	}
	if n := r.events(t, ledger, broker.EventUpstreamCutOff); n != 1 {
		t.Errorf("%d upstream.cut_off", n)
	}
	r.clock.Advance(time.Second)
	fresh := r.sessions(t, p, ledger, 2, time.Hour)
	r.end(t, p, ledger, fresh[0])
	r.dead(t, "an entry beside the cut-off", fresh[0])
	r.live(t, "issued after it", fresh[1])
	if n := r.events(t, ledger, broker.EventUpstreamCutOff); n != 1 {
		t.Errorf("cut off again: %d", n)
	}

	// The bystander is ended as the sweeper does it; then all that the cut-off was for expires.
	for _, h := range []held{bystander, doomed[12]} {
		r.end(t, p, ledger, h)
	}
	r.clock.To(doomed[0].Version.ExpiresAt.Add(time.Minute + time.Second))
	keep(t, p)
	if !strings.Contains(r.denied(), "TokenIssueTime") {
		t.Error("the cut-off is gone, and one that it was for has not expired")
	}
	r.dead(t, "the last that it is for", bystander)
	r.clock.To(bystander.Version.ExpiresAt.Add(time.Minute))
	keep(t, p)
	if strings.Contains(r.denied(), "TokenIssueTime") {
		t.Errorf("the cut-off stays: %s", r.denied())
	}
	r.clock.Advance(10 * time.Minute)
	keep(t, p)
	if r.denied() != "" {
		t.Errorf("left: %s", r.denied())
	}
	if n := r.events(t, ledger, broker.EventUpstreamEdited); n != 0 {
		t.Errorf("%d edits on record", n)
	}
}

// A cut-off that would make no room is not made.
func TestCutOffThatWouldNotHelp(t *testing.T) {
	t.Parallel()
	r := newRig(t, acceptCutOff)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	r.crowd(t, 6)
	keep(t, p)
	bystander := r.sessions(t, p, ledger, 1, time.Hour)[0]
	young := r.asked(t, p, ledger, 8, time.Hour)
	full := 0
	for _, c := range young {
		if _, err := p.Revoke(t.Context(), c); err != nil {
			full++
		}
	}
	if full < 2 || r.events(t, ledger, broker.EventUpstreamCutOff) != 0 {
		t.Errorf("%d did not fit, %d cut-offs", full, r.events(t, ledger, broker.EventUpstreamCutOff))
	}
	r.live(t, "younger than any cut-off could be", bystander)
	r.clock.Advance(5 * time.Minute) // now it would
	for _, c := range young {
		if _, err := p.Revoke(t.Context(), c); err != nil {
			t.Error(err)
		}
	}
}

// By source identity the cut-off is by time all the same.
func TestCutOffBySourceIdentity(t *testing.T) {
	t.Parallel()
	r := newRig(t, acceptCutOff, func(c *aws.Config) { c.SourceIdentity, c.Revocation.By = true, "source_identity" })
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	r.crowd(t, 6)
	keep(t, p)
	list := r.sessions(t, p, ledger, 24, time.Hour)
	r.clock.Advance(5 * time.Minute)
	for _, h := range list {
		r.end(t, p, ledger, h)
	}
	r.dead(t, "cut off", list...)
	r.live(t, "issued later", r.sessions(t, p, ledger, 1, time.Hour)...)
}
