package aws

import (
	"context"
	"errors"
	"log/slog"
	"path"
	"sync"
	"time"

	awsarn "github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	"github.com/taskpass/taskpass/broker"
)

// PolicyName is the inline policy of a role that the broker owns. Nobody else should edit it.
const PolicyName = "taskpass-revoked"

const (
	// skew keeps a denial in place for a while after its session's end, and a cut-off before the present, for clocks that differ.
	skew = time.Minute
	// verifyAfter is when a write is read back: one that AWS was slow with can come after a newer one, and undo it.
	verifyAfter = 15 * time.Second
)

// denier writes one role's deny policies from the ledger. IAM's writes replace and know no compare-and-swap, so policies
// are always written whole, by one process at a time, from what the database says at that moment: a revocation that is on
// the ledger before a run begins is in what it writes.
type denier struct {
	iam     *iam.Client
	role    string // the name without its path
	arn     string
	own     *source
	cfg     Revocation
	denials broker.Denials
	clock   func() time.Time
	logger  *slog.Logger

	turn chan struct{} // held by the run that is writing

	mu   sync.Mutex
	next *run // the run that has not begun to read yet: later callers join it
}

// run is one pass over the policies, shared by all who waited for it.
type run struct {
	done chan struct{}
	was  outcome
	err  error
	left bool // its leader went away before it was done: somebody else must lead
}

func newDenier(client *iam.Client, role awsarn.ARN, own *source, cfg Config, deps Deps) *denier {
	return &denier{
		iam: client, role: path.Base(role.Resource), arn: cfg.RoleARN, own: own, cfg: cfg.Revocation,
		denials: deps.Denials, clock: deps.Clock, logger: deps.Logger, turn: make(chan struct{}, 1),
	}
}

// deny sees to it that the role refuses a version that the ledger says is to be ended, and says by what.
func (d *denier) deny(ctx context.Context, id broker.VersionID, end time.Time) (basis string, err error) {
	was, err := d.reconcile(ctx)
	switch {
	case err != nil:
		return "", err
	case !was.listed[id] && d.clock().Before(end):
		return "", broker.Errorf(broker.CodeUnavailable, "the ledger does not say that the version is to be ended")
	case was.unfit[id]:
		return "", full()
	case was.failed[id] != nil:
		return "", was.failed[id]
	case was.cutOff[id]:
		return "role_cut_off", nil
	}
	return "role_policy_written", nil
}

func full() error {
	return broker.Errorf(broker.CodeUpstreamRefused,
		"the role's deny policies are full: the operator should add one to revocation.spill_policies, or accept the cut-off")
}

// reconcile brings the role's policies in line with the ledger. Calls that wait at the same moment share one run: the
// first leads, and when its time is up another takes its place.
func (d *denier) reconcile(ctx context.Context) (outcome, error) {
	for {
		d.mu.Lock()
		r, leads := d.next, false
		if r == nil {
			r, leads = &run{done: make(chan struct{})}, true
			d.next = r
		}
		d.mu.Unlock()
		if leads {
			r.was, r.err = d.lead(ctx)
			r.left = ctx.Err() != nil
			close(r.done)
			return r.was, r.err
		}
		select {
		case <-r.done:
			if !r.left {
				return r.was, r.err
			}
		case <-ctx.Done():
			return outcome{}, noTime(ctx)
		}
	}
}

func noTime(ctx context.Context) error {
	return broker.Errorf(broker.CodeUpstreamTimeout, "AWS did not answer in time").Because(ctx.Err())
}

func (d *denier) lead(ctx context.Context) (was outcome, err error) {
	begin := func() { d.mu.Lock(); d.next = nil; d.mu.Unlock() }
	select {
	case d.turn <- struct{}{}:
		begin()
		defer func() { <-d.turn }()
	case <-ctx.Done():
		begin()
		return outcome{}, noTime(ctx)
	}
	var within error
	err = d.denials.Locked(ctx, d.arn, func(ctx context.Context) error {
		var n notes
		if n, within = d.recall(ctx); within == nil {
			was, within = d.write(ctx, n)
		}
		return within
	})
	if within == nil && err != nil {
		err = unasked(err)
	}
	return was, err
}

// unasked is for errors of the ledger: they are not put down to AWS.
func unasked(err error) error {
	return broker.Errorf(broker.CodeUnavailable, "the ledger's list of what is to be refused could not be read or written").Because(err)
}

// keep looks at what is really there before it writes: expired entries go, and what somebody else changed is set right.
func (d *denier) keep(ctx context.Context) (next time.Time, err error) {
	var was outcome
	err = d.denials.Locked(ctx, d.arn, func(ctx context.Context) (err error) {
		notes, err := d.recall(ctx)
		if err != nil {
			return err
		}
		looked := d.look(ctx, &notes) // what could not be read is written as it was known
		if ctx.Err() != nil {
			return looked
		}
		was, err = d.write(ctx, notes)
		if err == nil && was.revived {
			err = full()
		}
		return errors.Join(err, was.err, looked)
	})
	every := d.cfg.CheckEvery
	if every == 0 {
		every = defaultCheck
	}
	next = d.clock().Add(every)
	if end := was.firstEnd.Add(skew); !was.firstEnd.IsZero() && end.Before(next) {
		next = end
	}
	return next, err
}
