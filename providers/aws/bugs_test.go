package aws_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/aws"
)

// Each test here failed on the code as it was tested.

func acceptCutOff(c *aws.Config) { c.Revocation.CutOff = "accept" }

// P3: what the cut-off is to refuse is not refused before the policy that has it was written.
func TestCutOffIsNotClaimedUnwritten(t *testing.T) {
	t.Parallel()
	r := newRig(t, acceptCutOff)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	r.crowd(t, 6)
	keep(t, p) // measures
	list := r.sessions(t, p, ledger, 8, time.Hour)
	r.clock.Advance(5 * time.Minute)
	for _, h := range list[1:] {
		providertest.Ask(t, ledger, h.Credential, broker.CauseRevoked)
	}
	c := providertest.Ask(t, ledger, list[0].Credential, broker.CauseRevoked)
	r.Inject(sandbox.Fault{Action: "PutRolePolicy", Kind: sandbox.AccessDenied, Times: -1})
	done, err := p.Revoke(t.Context(), c)
	if err == nil && r.alive(t, c, list[0].secret) {
		t.Errorf("%+v, and it is alive", done)
	}
}

// What the cut-off is to refuse stays where it is until the cut-off was written.
func TestCutOffRevivesNobodyWhileItIsWritten(t *testing.T) {
	t.Parallel()
	edit, prepare := spill(t, true)
	r := newRig(t, acceptCutOff, edit)
	prepare(r)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	r.crowd(t, 6)
	list := r.sessions(t, p, ledger, 9, time.Hour)
	for _, h := range list {
		r.end(t, p, ledger, h)
	}
	r.dead(t, "some in the inline policy, some in the managed one", list...)
	more := r.asked(t, p, ledger, 160, time.Hour)
	r.clock.Advance(5 * time.Minute)
	r.Inject(sandbox.Fault{Action: "PutRolePolicy", Kind: sandbox.AccessDenied, Times: -1})
	_, _ = p.Revoke(t.Context(), more[0])
	r.dead(t, "while the cut-off cannot be written", list...)
}

// The statement of the cut-off takes room. Nobody who was denied may lose the place for it.
func TestCutOffStatementPushesNobodyOut(t *testing.T) {
	t.Parallel()
	r := newRig(t, acceptCutOff)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	r.crowd(t, 14)
	keep(t, p)
	old := r.sessions(t, p, ledger, 1, time.Hour)[0]
	r.clock.Advance(5 * time.Minute)
	young := r.sessions(t, p, ledger, 8, time.Hour)
	var denied []held
	for _, h := range young {
		c := providertest.Ask(t, ledger, h.Credential, broker.CauseRevoked)
		if _, err := p.Revoke(t.Context(), c); err == nil {
			denied = append(denied, h)
		}
	}
	if len(denied) < 4 {
		t.Fatalf("only %d were denied", len(denied))
	}
	r.dead(t, "before the cut-off", denied...)
	_, _ = p.Revoke(t.Context(), providertest.Ask(t, ledger, old.Credential, broker.CauseRevoked))
	r.dead(t, "after the cut-off", denied...)
}

// A version that was issued after the cut-off's moment goes on: else each cut-off ends what refreshed after the last one,
// needs an entry for it, fills the policies with these, and makes the next cut-off necessary.
func TestCutOffSparesWhatIsYounger(t *testing.T) {
	t.Parallel()
	r := newRig(t, acceptCutOff)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	r.crowd(t, 4)
	keep(t, p)
	old := r.asked(t, p, ledger, 8, time.Hour)
	r.clock.Advance(5 * time.Minute)
	young := r.sessions(t, p, ledger, 1, time.Hour)[0]
	r.clock.Advance(10 * time.Second)
	if _, err := p.Revoke(t.Context(), old[0]); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.denied(), "aws:TokenIssueTime") {
		t.Fatal("nothing was cut off")
	}
	r.live(t, "issued after the moment", young)
	c, err := ledger.Credential(t.Context(), young.ID)
	if err != nil || c.Version.Cause != "" {
		t.Errorf("AWS serves the session, and the ledger ends it: %s (%s), %v", c.Version.State, c.Version.Cause, err)
	}
}

// The random life of a role whose operator accepts the cut-off.
func TestDenialsHoldWhateverIsCutOff(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			newStory(t, seed, true).run(t, 40)
		})
	}
}

// A spill policy that is not attached holds nothing, so it is no room: with it the alarm would never ring.
func TestFillCountsOnlyWhatIsAttached(t *testing.T) {
	t.Parallel()
	edit, prepare := spill(t, false)
	r := newRig(t, edit)
	prepare(r)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	r.crowd(t, 10)
	keep(t, p)
	list := r.asked(t, p, ledger, 11, time.Hour)
	full := 0
	for _, c := range list {
		if _, err := p.Revoke(t.Context(), c); err != nil {
			full++
		}
	}
	if full != 1 {
		t.Fatalf("%d of 11 did not fit", full)
	}
	used, room, _ := r.upkeep(t, ledger)
	if n := r.events(t, ledger, broker.EventUpstreamFilling); n != 1 || float64(used) < 0.9*float64(room) {
		t.Errorf("one does not fit, and the record says %d of %d characters; %d alarms", used, room, n)
	}
}

// To detach a policy that denies sessions revives them: whoever does that edits what the broker keeps.
func TestDetachingIsAnEdit(t *testing.T) {
	t.Parallel()
	edit, prepare := spill(t, true, true)
	r := newRig(t, edit)
	prepare(r)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	r.crowd(t, 1)
	list := r.sessions(t, p, ledger, 3, time.Hour)
	for _, h := range list {
		r.end(t, p, ledger, h)
	}
	r.clock.Advance(6 * time.Minute)
	keep(t, p)
	must(t, r.DetachRolePolicy(r.role, r.config.Revocation.SpillPolicies[0]))
	for range 2 {
		keep(t, p)
		r.dead(t, "after the detachment", list...)
		if n := r.events(t, ledger, broker.EventUpstreamEdited); n != 1 {
			t.Errorf("%d edits on record", n)
		}
		r.clock.Advance(6 * time.Minute)
	}
}

// A session that was denied, and has no place any more, is alive: that is no success of a look.
func TestKeepSaysWhatItCannotHold(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	list := r.sessions(t, p, ledger, 5, time.Hour)
	for _, h := range list {
		r.end(t, p, ledger, h)
	}
	r.clock.Advance(6 * time.Minute)
	must(t, r.SetRolePolicy(r.role, aws.PolicyName, "")) // somebody makes room for something of theirs
	r.crowd(t, 2)
	_, err := p.Keep(t.Context())
	alive := 0
	for _, h := range list {
		if r.alive(t, h.Credential, h.secret) {
			alive++
		}
	}
	if alive != 3 {
		t.Fatalf("%d of 5 are alive, with room for 2", alive)
	}
	if err == nil {
		t.Error("3 sessions that are recorded as denied live, and Keep finds all well")
	}
	silent(t, err)
}

// One policy that cannot be read keeps no other from being looked after.
func TestOneBadPolicyStopsNoOther(t *testing.T) {
	t.Parallel()
	edit, prepare := spill(t, true)
	r := newRig(t, edit)
	prepare(r)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	r.crowd(t, 2)
	list := r.sessions(t, p, ledger, 3, time.Hour)
	for _, h := range list {
		r.end(t, p, ledger, h)
	}
	r.clock.Advance(6 * time.Minute)
	keep(t, p)
	must(t, r.SetRolePolicy(r.role, aws.PolicyName, ""))
	r.Inject(sandbox.Fault{Action: "ListPolicyVersions", Kind: sandbox.AccessDenied, Times: -1})
	if _, err := p.Keep(t.Context()); err == nil {
		t.Error("it could not look at the managed policy, and finds all well")
	}
	r.dead(t, "the inline policy, which can be read and written", list[:2]...)
}

// Our own write that comes after the look for it is still ours.
func TestVeryLateWriteIsNobodysEdit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	list := r.sessions(t, p, ledger, 2, time.Hour)
	late := r.Hold("PutRolePolicy")
	first := providertest.Ask(t, ledger, list[0].Credential, broker.CauseRevoked)
	if _, err := p.Revoke(providertest.ExpireAfter(t.Context(), late.Arrived()), first); err == nil {
		t.Fatal("it claims to know")
	}
	r.end(t, p, ledger, list[1])
	r.clock.Advance(15 * time.Second)
	next := keep(t, p)
	late.Release()
	r.clock.To(next.Add(time.Second))
	keep(t, p)
	r.dead(t, "after the look", list...)
	if n := r.events(t, ledger, broker.EventUpstreamEdited); n != 0 {
		t.Errorf("%d edits by others are on record: it was ours", n)
	}
}

// A profile that begins to tell sessions by their source identity still has sessions without one.
func TestChangingByRevivesNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	list := r.sessions(t, p, ledger, 2, time.Hour)
	r.end(t, p, ledger, list[0])
	r.config.SourceIdentity, r.config.Revocation.By = true, "source_identity"
	after := r.replica(t, ledger)
	keep(t, after)
	r.dead(t, "revoked before the change", list[0])
	r.end(t, after, ledger, list[1])
	r.dead(t, "issued before the change", list[1])
}

// Who refuses the broker's web identity is the role that it is for, not the role of the profile.
func TestWebIdentityErrorsNameTheirRole(t *testing.T) {
	t.Parallel()
	token := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(token, []byte("some-token"), 0o600))
	for name, c := range map[string]struct {
		file   string
		answer http.HandlerFunc
		code   broker.Code
		says   []string
	}{
		"not trusted":   {token, refusal(403, "AccessDenied"), broker.CodeUpstreamRefused, []string{"role/broker"}},
		"no token file": {token + "-not-there", granted, broker.CodeUpstreamRefused, []string{"token file"}},
		"failed":        {token, refusal(500, "InternalFailure"), broker.CodeUpstreamError, nil},
	} {
		w := newWire(t)
		w.answers(c.answer)
		p := w.provider(t, func(cfg *aws.Config) {
			cfg.AccessKeyID, cfg.SecretAccessKey = "", ""
			cfg.WebIdentity = &aws.WebIdentity{RoleARN: "arn:aws:iam::123456789012:role/broker", TokenFile: c.file}
		})
		_, err := p.Mint(t.Context(), w.request("read"))
		silent(t, err)
		e := broker.AsError(err)
		if err == nil || e.Code != c.code || slices.ContainsFunc(c.says, func(s string) bool { return !strings.Contains(e.Message, s) }) {
			t.Errorf("%s: %v; want %s, and to be told of %q", name, err, c.code, c.says)
		}
		for _, call := range w.calls() {
			if call.Get("Action") == "AssumeRole" {
				t.Fatalf("%s: AssumeRole was asked", name)
			}
		}
		if err != nil && !isNotMinted(err) {
			t.Errorf("%s: AssumeRole was never sent, and the version counts as lost: %v", name, err)
		}
	}
}

func isNotMinted(err error) bool { return errors.Is(err, broker.ErrNotMinted) }
