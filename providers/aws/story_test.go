package aws_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/aws"
)

// Whatever happens to a role: each session that was said to be denied is denied in effect, in one place, and its siblings
// live. What is not said to be denied was refused for lack of room.
func TestDenialsHoldWhateverHappens(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			newStory(t, seed, false).run(t, 40)
		})
	}
}

// story is a random life of a role.
type story struct {
	*rig
	random  *rand.Rand
	ledger  []*store.Store
	replica []*aws.Provider
	alive   []held // active
	denied  []held // said to be denied, not expired
	waiting []held // asked for, and refused or unanswered so far
	cuts    bool   // the cut-off is accepted, and there is nowhere to spill
}

func newStory(t *testing.T, seed uint64, cuts bool) *story {
	edit, prepare := spill(t, true, true)
	if cuts {
		edit, prepare = acceptCutOff, func(r *rig) { r.crowd(t, 9) }
	}
	s := &story{cuts: cuts, rig: newRig(t, edit), random: rand.New(rand.NewPCG(seed, 7)), ledger: replicas(t, 2)}
	prepare(s.rig)
	s.replica = []*aws.Provider{s.rig.replica(t, s.ledger[0]), s.rig.replica(t, s.ledger[1])}
	return s
}

func (s *story) run(t *testing.T, steps int) {
	t.Helper()
	for step := range steps {
		which := s.random.IntN(100)
		p := s.replica[s.random.IntN(2)]
		switch {
		case which < 30:
			ttl := []time.Duration{10 * time.Minute, 30 * time.Minute, 2 * time.Hour}[s.random.IntN(3)]
			s.alive = append(s.alive, s.sessions(t, p, s.ledger[0], 1+s.random.IntN(3), ttl)...)
		case which < 60:
			s.revokeSome(t, p)
		case which < 70:
			s.clock.Advance(time.Duration(1+s.random.IntN(8)) * time.Minute)
		case which < 78: // an operator's policy comes, changes or goes, as far as IAM lets it
			text := ""
			if n := []int{0, 300, 5_000, 9_600, 9_700}[s.random.IntN(5)]; n > 0 {
				text = other(n)
			}
			_ = s.SetRolePolicy(s.role, "operators-own", text)
		case which < 84 && !s.cuts: // the policies are looked at right after, as Keep's own test says
			s.attach(t)
			s.look(t, p)
		case which < 88 && !s.cuts:
			_ = s.SetRolePolicy(s.role, aws.PolicyName, "")
			_ = s.SetRolePolicy(s.role, "operators-own", "")
			s.look(t, p)
		case which < 94:
			action := []string{"PutRolePolicy", "CreatePolicyVersion", "ListAttachedRolePolicies", "ListPolicyVersions"}[s.random.IntN(4)]
			kind := []sandbox.FaultKind{sandbox.Throttle, sandbox.ServerError, sandbox.AccessDenied, sandbox.DropReply}[s.random.IntN(4)]
			s.Inject(sandbox.Fault{Action: action, Kind: kind})
			s.revokeSome(t, p)
			s.ClearFaults()
		default:
			s.look(t, p)
		}
		s.sweep(t, p)
		s.check(t, step, which)
		if t.Failed() {
			return
		}
	}
	s.retry(t)
	s.check(t, steps, -1)
}

// attach has a spill policy come or go; the last one stays.
func (s *story) attach(t *testing.T) {
	t.Helper()
	arn := s.config.Revocation.SpillPolicies[s.random.IntN(2)]
	if have := s.AttachedPolicies(s.role); !slices.Contains(have, arn) {
		must(t, s.AttachRolePolicy(s.role, arn))
	} else if len(have) > 1 {
		must(t, s.DetachRolePolicy(s.role, arn))
	}
}

func (s *story) look(t *testing.T, p *aws.Provider) {
	t.Helper()
	s.ClearFaults()
	if _, err := p.Keep(t.Context()); err != nil {
		t.Errorf("Keep: %v", err)
	}
}

func (s *story) revokeSome(t *testing.T, p *aws.Provider) {
	t.Helper()
	for range min(len(s.alive), 1+s.random.IntN(4)) {
		i := s.random.IntN(len(s.alive))
		h := s.alive[i]
		s.alive = slices.Delete(s.alive, i, i+1)
		h.Credential = providertest.Ask(t, s.ledger[0], h.Credential, broker.CauseRevoked)
		s.attempt(t, p, h)
	}
}

func (s *story) attempt(t *testing.T, p *aws.Provider, h held) {
	t.Helper()
	done, err := p.Revoke(t.Context(), h.Credential)
	if err != nil {
		s.waiting = append(s.waiting, h)
		return
	}
	providertest.Settle(t, s.ledger[0], h.Credential, done)
	s.denied = append(s.denied, h)
}

// sweep ends what a cut-off has made due, as the sweeper does.
func (s *story) sweep(t *testing.T, p *aws.Provider) {
	t.Helper()
	if !s.cuts {
		return
	}
	var spared, due []held
	for _, h := range s.alive {
		c, err := s.ledger[0].Latest(t.Context(), h.ID)
		must(t, err)
		if c.Version.Cause == broker.CauseCutOff {
			due = append(due, h)
		} else {
			spared = append(spared, h)
		}
	}
	s.alive = spared
	for _, h := range due {
		h.Credential = providertest.Ask(t, s.ledger[0], h.Credential, broker.CauseCutOff)
		s.attempt(t, p, h)
	}
}

// retry is what the sweeper does, when all is well again.
func (s *story) retry(t *testing.T) {
	t.Helper()
	s.ClearFaults()
	waiting := s.waiting
	s.waiting = nil
	for _, h := range waiting {
		s.attempt(t, s.replica[0], h)
	}
	if len(s.waiting) > 0 && !s.cuts {
		t.Errorf("%d of %d do not fit, with at least %d characters of room", len(s.waiting), len(waiting), 6_144)
	}
}

func (s *story) check(t *testing.T, step, which int) {
	t.Helper()
	now := s.clock.Now()
	gone := func(h held) bool { return !now.Before(h.Version.ExpiresAt.Truncate(time.Second)) }
	s.alive, s.denied, s.waiting = slices.DeleteFunc(s.alive, gone), slices.DeleteFunc(s.denied, gone), slices.DeleteFunc(s.waiting, gone)
	at := fmt.Sprintf("step %d (%d)", step, which)
	s.dead(t, at, s.denied...)
	s.live(t, at, s.alive...)
	seen := map[string]int{}
	for place, ids := range s.places(t) {
		for _, id := range ids {
			if seen[id]++; seen[id] > 1 && len(s.waiting) == 0 {
				t.Errorf("%s: %s stands twice, also in %s", at, id, place)
			}
		}
	}
}
