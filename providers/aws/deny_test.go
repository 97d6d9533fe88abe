package aws_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskpass/taskpass/broker"
	"github.com/taskpass/taskpass/broker/store"
	"github.com/taskpass/taskpass/providers/aws"
	"github.com/taskpass/taskpass/providers/providertest"
	sandbox "github.com/taskpass/taskpass/providers/sandbox/aws"
)

// asked issues n credentials and asks for their end, on the ledger only.
func (r *rig) asked(t *testing.T, p *aws.Provider, ledger *store.Store, n int, ttl time.Duration) []broker.Credential {
	t.Helper()
	list := make([]broker.Credential, n)
	var wg sync.WaitGroup
	for i := range list {
		wg.Go(func() {
			c := providertest.Intend(t, ledger, p, r.credential("read"), r.clock.Now(), ttl)
			list[i] = providertest.Crash(t, ledger, c) // never minted: for the list that is all one
		})
	}
	wg.Wait()
	return list
}

// revokeAll revokes all at once, and holds each answer to what the role's policy says at that moment.
func (r *rig) revokeAll(t *testing.T, list []broker.Credential, by func(i int) *aws.Provider) {
	t.Helper()
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() {
			done, err := by(i).Revoke(t.Context(), c)
			if err != nil || done.Result != broker.ResultDenied {
				t.Errorf("%+v, %v", done, err)
			}
			if !strings.Contains(r.denied(), ":"+string(c.Version.ID)+`"`) {
				t.Errorf("version %s is said to be denied, and the role knows nothing of it", c.Version.ID)
			}
		})
	}
	wg.Wait()
}

func TestDenialsShareWrites(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	const many = 50
	list := r.asked(t, p, ledger, many, time.Hour)
	arrived := r.hold("PutRolePolicy")
	go func() { <-arrived; r.open() }() // the first write takes a while: the others gather meanwhile
	r.revokeAll(t, list, func(int) *aws.Provider { return p })
	if n := r.calls("PutRolePolicy"); n > many/5 {
		t.Errorf("%d revocations took %d writes of the role's policy", many, n)
	}
	if n := r.calls("GetRole"); n != 1 {
		t.Errorf("the role's id was read %d times", n)
	}
	r.holdsAll(t, list)
}

// holdsAll checks that the role's policy denies these, and nobody else.
func (r *rig) holdsAll(t *testing.T, list []broker.Credential) {
	t.Helper()
	var want []string
	for _, c := range list {
		want = append(want, string(c.Version.ID))
	}
	got := entries(t, r.denied())
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("denied at the role (-want +got): %s", diff)
	}
}

// Replicas write the same policy, which IAM overwrites without asking: each must write what all have revoked.
func TestReplicasLoseNoDenial(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledgers := replicas(t, 2)
	ps := []*aws.Provider{r.replica(t, ledgers[0]), r.replica(t, ledgers[1]), r.replica(t, ledgers[1])} // two profiles of one role
	list := r.asked(t, ps[0], ledgers[0], 45, time.Hour)
	r.revokeAll(t, list, func(i int) *aws.Provider { return ps[i%len(ps)] })
	r.holdsAll(t, list)
}

func TestDenyPolicy(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	if err := r.SetRolePolicy(r.role, "operators-own", rolePolicy); err != nil {
		t.Fatal(err)
	}
	first, m := r.issue(t, p, ledger, time.Hour)
	first = providertest.Ask(t, ledger, first, broker.CauseRevoked)
	if _, err := p.Revoke(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*",`+
		`"Condition":{"StringLike":{"aws:userid":"*:%s"}}}]}`, first.Version.ID)
	if diff := cmp.Diff(want, r.denied()); diff != "" {
		t.Error(diff)
	}
	// Somebody takes the policy away by hand: the next write brings all of it back.
	if err := r.SetRolePolicy(r.role, aws.PolicyName, ""); err != nil {
		t.Fatal(err)
	}
	second := r.asked(t, p, ledger, 1, time.Hour)[0]
	if _, err := p.Revoke(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	r.holdsAll(t, []broker.Credential{first, second})
	if r.alive(t, first, m.Secret) {
		t.Error("a revoked session lives again")
	}
	if r.RolePolicies(r.role)["operators-own"] != rolePolicy {
		t.Error("another policy of the role was touched")
	}
}

// What has expired needs no denial; a list without entries needs no policy. Clocks may differ by a minute.
func TestDenyPolicyShrinks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	short := r.asked(t, p, ledger, 3, 10*time.Minute)
	long := r.asked(t, p, ledger, 2, time.Hour)
	all := slices.Concat(short, long)
	revoke := func(c broker.Credential) {
		t.Helper()
		if _, err := p.Revoke(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	revoke(all[0])
	r.holdsAll(t, all) // those on the ledger are in, though nobody has called for them yet
	r.clock.To(short[0].Version.ExpiresAt.Add(50 * time.Second))
	revoke(long[0])
	r.holdsAll(t, all)
	r.clock.To(short[0].Version.ExpiresAt.Add(time.Minute))
	revoke(long[0])
	r.holdsAll(t, long)
	r.clock.To(long[0].Version.ExpiresAt.Add(time.Minute))
	for range 2 { // the second finds no policy
		revoke(short[0])
		if policy, ok := r.RolePolicies(r.role)[aws.PolicyName]; ok {
			t.Errorf("a policy that denies nothing is left: %s", policy)
		}
	}
	if n := r.calls("DeleteRolePolicy"); n != 1 {
		t.Errorf("taken away %d times", n)
	}
}

// signalled tells when somebody begins to wait for the context's end.
type signalled struct {
	context.Context
	once  sync.Once
	waits chan struct{}
}

func (s *signalled) Done() <-chan struct{} {
	s.once.Do(func() { close(s.waits) })
	return s.Context.Done()
}

// Those who share a write share its success. That one of them goes away must not fail the others.
func TestOneWhoLeavesHarmsNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	list := r.asked(t, p, ledger, 3, time.Hour)
	arrived := r.hold("PutRolePolicy")
	results := make([]chan error, len(list))
	start := func(i int, ctx context.Context) {
		results[i] = make(chan error, 1)
		go func() {
			_, err := p.Revoke(ctx, list[i])
			results[i] <- err
		}()
	}
	start(0, t.Context())
	<-arrived // the first one's write is under way
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	impatient := &signalled{Context: ctx, waits: make(chan struct{})}
	start(1, impatient)
	<-impatient.waits
	patient := &signalled{Context: t.Context(), waits: make(chan struct{})}
	start(2, patient)
	<-patient.waits
	leave()
	if err := <-results[1]; err == nil {
		t.Error("the one who left was told of success")
	}
	r.open()
	for _, i := range []int{0, 2} {
		if err := <-results[i]; err != nil {
			t.Errorf("revocation %d, which nobody cancelled: %v", i, err)
		}
	}
	r.holdsAll(t, list)
}

// A role whose policy cannot be written holds up no other role.
func TestRolesAreApart(t *testing.T) {
	t.Parallel()
	ledger := replicas(t, 1)[0]
	stuck, fine := newRig(t), newRig(t)
	p, q := stuck.replica(t, ledger), fine.replica(t, ledger)
	one, other := stuck.asked(t, p, ledger, 1, time.Hour), fine.asked(t, q, ledger, 1, time.Hour)
	arrived := stuck.hold("PutRolePolicy")
	done := make(chan error, 1)
	go func() {
		_, err := p.Revoke(t.Context(), one[0])
		done <- err
	}()
	<-arrived
	fine.revokeAll(t, other, func(int) *aws.Provider { return q })
	stuck.open()
	if err := <-done; err != nil {
		t.Error(err)
	}
	stuck.holdsAll(t, one)
	fine.holdsAll(t, other)
}

// The role's id is asked for until it is known.
func TestRoleIDIsReadAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	list := r.asked(t, p, ledger, 1, time.Hour)
	r.Inject(sandbox.Fault{Action: "GetRole", Kind: sandbox.Throttle, Message: providertest.Canary})
	_, err := p.Revoke(t.Context(), list[0])
	silent(t, err)
	if e := broker.AsError(err); err == nil || e.Code != broker.CodeUpstreamThrottled {
		t.Errorf("%v", err)
	}
	r.revokeAll(t, list, func(int) *aws.Provider { return p })
}

// Whoever waits for another's write obeys its own context.
func TestWaitingObeysTheContext(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	list := r.asked(t, p, ledger, 3, time.Hour)
	arrived := r.hold("PutRolePolicy")
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := p.Revoke(t.Context(), list[0]); err != nil {
			t.Error(err)
		}
	})
	<-arrived
	var given sync.WaitGroup
	for i := range 2 { // one waits for its turn, the other for that one
		given.Go(func() {
			const soon = 50 * time.Millisecond // the call that is held outlasts any time
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			defer cancel()
			_, err := p.Revoke(ctx, list[1+i])
			if e := broker.AsError(err); err == nil || e.Code != broker.CodeUpstreamTimeout {
				t.Errorf("%v", err)
			}
			if errors.Is(err, broker.ErrNotMinted) {
				t.Error("a revocation says that nothing was minted")
			}
		})
	}
	given.Wait()
	r.open()
	wg.Wait()
}

func TestNoRevocation(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *aws.Config) { c.Revocation.Mode = "none" })
	ledger := replicas(t, 1)[0]
	p := r.replica(t, ledger)
	c, m := r.issue(t, p, ledger, 10*time.Minute)
	done, err := p.Revoke(t.Context(), providertest.Ask(t, ledger, c, broker.CauseRevoked))
	want := broker.Revocation{Result: broker.ResultExpires, EffectiveAt: c.Version.ExpiresAt, Basis: "self_expires"}
	if diff := cmp.Diff(want, done); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if !r.alive(t, c, m.Secret) {
		t.Error("dead: then it could say so")
	}
	for _, action := range []string{"GetRole", "PutRolePolicy", "DeleteRolePolicy"} {
		if n := r.calls(action); n != 0 {
			t.Errorf("%s was called %d times", action, n)
		}
	}
}

func TestLag(t *testing.T) {
	t.Parallel()
	for want, lag := range map[time.Duration]*time.Duration{
		5 * time.Minute: nil, 0: new(time.Duration(0)), time.Minute: new(time.Minute),
	} {
		r := newRig(t, func(c *aws.Config) { c.Revocation.Lag = lag })
		ledger := replicas(t, 1)[0]
		p := r.replica(t, ledger)
		c := r.asked(t, p, ledger, 1, time.Hour)[0]
		done, err := p.Revoke(t.Context(), c)
		if err != nil || p.Capabilities().RevokeLag != want || !done.EffectiveAt.Equal(r.clock.Now().Add(want)) {
			t.Errorf("promises %s; %+v, %v", p.Capabilities().RevokeLag, done, err)
		}
	}
}

// unanswered is a ledger: its database does not answer in time.
type unanswered struct{ broker.Denials }

func (unanswered) Locked(context.Context, string, func(context.Context) error) error {
	return fmt.Errorf("asking PostgreSQL: %w", context.DeadlineExceeded)
}

// That the ledger's database does not answer is not put down to AWS.
func TestSilentLedgerIsNotAWS(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ledger := replicas(t, 1)[0]
	c := r.asked(t, r.replica(t, ledger), ledger, 1, time.Hour)[0]
	_, err := open(t, r.config, unanswered{ledger}, r.clock.Now).Revoke(t.Context(), c)
	if e := broker.AsError(err); err == nil || e.Code != broker.CodeUnavailable || !strings.Contains(e.Message, "ledger") {
		t.Errorf("%v; want unavailable", err)
	}
	if n := r.calls("PutRolePolicy"); n > 0 {
		t.Errorf("AWS was asked %d times", n)
	}
}
