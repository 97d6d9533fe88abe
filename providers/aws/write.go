package aws

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// outcome is what a run came to.
type outcome struct {
	listed   map[broker.VersionID]bool  // what the ledger says is to be refused
	unfit    map[broker.VersionID]bool  // what no policy has room for
	revived  bool                       // some of that was said to be denied before
	cutOff   map[broker.VersionID]bool  // what is refused by the cut-off
	uncut    []broker.Denial            // what no cut-off is to refuse
	failed   map[broker.VersionID]error // whose policy could not be written
	err      error                      // of the policies that could not be written
	firstEnd time.Time                  // when the first entry has expired; zero: there is none
}

// write makes the policies say what the ledger says. The caller holds the role's lock.
func (d *denier) write(ctx context.Context, n notes) (outcome, error) {
	if err := d.knowRole(ctx, &n); err != nil {
		return outcome{}, err
	}
	for cut := false; ; {
		was, err := d.plan(ctx, &n)
		if err != nil {
			return was, err
		}
		if len(was.unfit) > 0 && d.cfg.CutOff == "accept" && !cut {
			cut = true
			if did, err := d.cut(ctx, &n, was.uncut); err != nil {
				return was, err
			} else if did {
				continue
			}
		}
		err = d.putAll(ctx, &n, &was)
		switch {
		case errors.Is(err, errRoom): // other inline policies take more than was known: now it is known
			continue
		case err == nil && was.failed[inlinePolicy] == nil && !n.CutOff.Equal(n.InForce):
			n.InForce = n.CutOff // written: what it refuses gives up its places
			continue
		}
		return was, err
	}
}

// inlinePolicy stands among the failed for the inline policy as a whole: no version's id.
const inlinePolicy = broker.VersionID("")

// plan reads what is to be refused and gives it places.
func (d *denier) plan(ctx context.Context, n *notes) (outcome, error) {
	was := outcome{
		listed: map[broker.VersionID]bool{}, unfit: map[broker.VersionID]bool{}, cutOff: map[broker.VersionID]bool{},
		failed: map[broker.VersionID]error{},
	}
	n.shape = shape{
		bySource: map[broker.VersionID]bool{}, sources: d.cfg.By == "source_identity",
		cuts: d.cfg.CutOff == "accept" || !n.CutOff.IsZero(),
	}
	list, err := d.denials.Denied(ctx, d.arn, d.clock().Add(-skew))
	if err != nil {
		return was, unasked(err)
	}
	needed := false
	for _, entry := range list {
		was.listed[entry.ID] = true
		n.shape.bySource[entry.ID] = d.cfg.By == "source_identity" && entry.SourceIdentity
		if was.firstEnd.IsZero() || entry.ExpiresAt.Before(was.firstEnd) {
			was.firstEnd = entry.ExpiresAt
		}
		if covers(n.CutOff, entry) {
			needed = true
		} else {
			was.uncut = append(was.uncut, entry)
		}
		if covers(n.InForce, entry) {
			was.cutOff[entry.ID] = true
		}
	}
	if !needed {
		n.CutOff, n.InForce = time.Time{}, time.Time{} // all that it was for has expired
	}
	n.shape.cutOff = n.CutOff
	wanted := slices.DeleteFunc(list, func(entry broker.Denial) bool { return was.cutOff[entry.ID] })
	unfit, unsure := d.place(ctx, n, wanted)
	if unsure != nil {
		was.err = unsure
		for _, s := range n.Shelves[1:] {
			for _, id := range s.Members {
				was.failed[id] = unsure
			}
		}
		for _, id := range unfit { // there may be room
			was.failed[id] = unsure
		}
		return was, nil
	}
	for _, id := range unfit {
		was.unfit[id] = true
	}
	was.revived = slices.ContainsFunc(list, func(entry broker.Denial) bool { return entry.Done && was.unfit[entry.ID] })
	return was, nil
}

// place gives the wanted entries places, and answers those for which there is none; unsure is why it is not known whether a
// managed policy is still the role's. IAM is asked where that matters: where entries are in one, or would have to be.
func (d *denier) place(ctx context.Context, n *notes, wanted []broker.Denial) (unfit []broker.VersionID, unsure error) {
	spilled := slices.ContainsFunc(n.Shelves[1:], func(s *shelf) bool { return len(s.Members) > 0 })
	if spilled {
		unsure = d.attached(ctx, n)
	}
	unfit = arrange(n.Shelves, wanted, n.shape, n.room)
	if len(unfit) > 0 && len(n.Shelves) > 1 && !spilled { // is there really no room?
		unsure = d.attached(ctx, n)
		unfit = arrange(n.Shelves, wanted, n.shape, n.room)
	}
	return unfit, unsure
}

// covers tells whether a cut-off surely refuses a session: one that was issued just before it may bear a later time, by AWS's
// clock.
func covers(cutOff time.Time, entry broker.Denial) bool {
	return !cutOff.IsZero() && entry.IssuedAt.Before(cutOff.Add(-skew))
}

// cut decides to refuse all sessions of the role that are older than a moment, and has the versions that this may kill ended,
// so that their tasks are told to refresh. Those that were issued within the last minute live by either clock. It does
// nothing where that would spare no entry of those that the plan read: what was asked to end since has a run of its own.
func (d *denier) cut(ctx context.Context, n *notes, uncut []broker.Denial) (bool, error) {
	now := d.clock()
	after := *n
	after.CutOff = now.Add(-2 * skew).UTC().Truncate(time.Second)
	if !slices.ContainsFunc(uncut, func(entry broker.Denial) bool { return covers(after.CutOff, entry) }) {
		return false, nil
	}
	d.logger.WarnContext(ctx, "deny policies are full: every older session of the role is cut off", "role", d.arn, "before", after.CutOff)
	save, err := d.note(after, now)
	if err != nil {
		return false, err
	}
	*n = after
	found := d.finding(broker.EventUpstreamCutOff, map[string]string{"issued_before": n.CutOff.Format(time.RFC3339)})
	if err := d.denials.CutOff(ctx, d.arn, save, n.CutOff.Add(skew), now, found); err != nil {
		return true, unasked(err)
	}
	return true, nil
}

// putAll writes the policies that are not known to be as they should. What is about to be written is noted first: after a
// crash nobody takes it for somebody else's.
func (d *denier) putAll(ctx context.Context, n *notes, was *outcome) error {
	f := n.shape
	var todo []*shelf
	for _, s := range n.Shelves {
		if document := s.document(f); !s.settled(document) && !s.untouched() {
			s.Intended = append(s.Intended, fingerprint(document))
			todo = append(todo, s)
		}
	}
	if len(todo) == 0 {
		return d.save(ctx, n)
	}
	if err := d.save(ctx, n); err != nil {
		return err
	}
	for _, s := range todo {
		document := s.document(f)
		err := d.put(ctx, n, s, document)
		if errors.Is(err, errRoom) {
			return err
		}
		if err == nil {
			s.wrote(fingerprint(document), d.clock().UTC())
			continue
		}
		was.err = errors.Join(was.err, err)
		for _, id := range s.Members { // those of the other policies are denied all the same
			was.failed[id] = err
		}
		if !s.managed() {
			was.failed[inlinePolicy] = err
			for id := range was.cutOff {
				was.failed[id] = err
			}
		}
	}
	return d.save(context.WithoutCancel(ctx), n)
}

// wrote notes what is upstream now by our own hand.
func (s *shelf) wrote(mark string, at time.Time) {
	s.remember(s.Written)
	for _, intended := range s.Intended {
		s.remember(intended)
	}
	s.Written, s.Intended, s.WrittenAt = mark, nil, at
}

func (s *shelf) remember(mark string) {
	if mark != "" && !slices.Contains(s.Past, mark) {
		s.Past = append(s.Past, mark)
		s.Past = slices.Delete(s.Past, 0, max(0, len(s.Past)-maxIntended))
	}
}

// maxIntended bounds what is remembered of our own documents of before, and of requests that nobody saw answered.
const maxIntended = 16

func (d *denier) finding(t broker.EventType, trace map[string]string) broker.Event {
	return broker.NewFinding(t, d.clock(), "aws", d.arn, trace)
}
