package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// alarmAt is the share of the room from which on the record and the log say that the policies are filling.
const alarmAt = 0.7

// notes are what is known of a role's deny policies between runs. They are on the ledger, so that every replica knows.
type notes struct {
	RoleID  string    `json:"role_id,omitempty"`
	Others  int       `json:"others,omitempty"` // characters that other inline policies of the role take
	CutOff  time.Time `json:"cut_off,omitzero"` // sessions that were issued before it are refused
	Alarmed bool      `json:"alarmed,omitempty"`
	Shelves []*shelf  `json:"shelves"`

	found []broker.Event // to go on the record with the next save
}

// outcome is what a run came to.
type outcome struct {
	listed   map[broker.VersionID]bool  // what the ledger says is to be refused
	unfit    map[broker.VersionID]bool  // what no policy has room for
	cutOff   map[broker.VersionID]bool  // what is refused by the cut-off
	failed   map[broker.VersionID]error // whose policy could not be written
	err      error                      // of the policies that could not be written
	firstEnd time.Time                  // when the first entry has expired; zero: there is none
}

// recall reads the notes and puts the shelves in the configured order. What was in a managed policy that is no longer
// configured finds another place; the policy is left as it is.
func (d *denier) recall(ctx context.Context) (notes, error) {
	var n notes
	text, err := d.denials.Notes(ctx, d.arn)
	if err != nil {
		return n, err
	}
	if text != nil {
		if err := json.Unmarshal(text, &n); err != nil {
			return n, fmt.Errorf("the notes on %s do not decode: %w", d.arn, err)
		}
	}
	var ordered []*shelf
	for _, name := range append([]string{PolicyName}, d.cfg.SpillPolicies...) {
		i := slices.IndexFunc(n.Shelves, func(s *shelf) bool { return s.Name == name })
		if i < 0 {
			ordered = append(ordered, &shelf{Name: name})
			continue
		}
		ordered = append(ordered, n.Shelves[i])
	}
	n.Shelves = ordered
	return n, nil
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
			if cut, err = d.cut(ctx, &n); err != nil {
				return was, err
			}
			if cut {
				continue // what it covers needs no entry
			}
		}
		err = d.putAll(ctx, &n, &was)
		if errors.Is(err, errRoom) { // other inline policies take more than was known: now it is known
			continue
		}
		return was, err
	}
}

// plan reads what is to be refused and gives it places.
func (d *denier) plan(ctx context.Context, n *notes) (outcome, error) {
	was := outcome{
		listed: map[broker.VersionID]bool{}, unfit: map[broker.VersionID]bool{}, cutOff: map[broker.VersionID]bool{}, failed: map[broker.VersionID]error{},
	}
	list, err := d.denials.Denied(ctx, d.arn, d.clock().Add(-skew))
	if err != nil {
		return was, err
	}
	for _, entry := range list {
		was.listed[entry.ID] = true
		if was.firstEnd.IsZero() || entry.ExpiresAt.Before(was.firstEnd) {
			was.firstEnd = entry.ExpiresAt
		}
		if d.covered(*n, entry) {
			was.cutOff[entry.ID] = true
		}
	}
	if len(was.cutOff) == 0 {
		n.CutOff = time.Time{} // all that it was for has expired
	}
	wanted := slices.DeleteFunc(list, func(entry broker.Denial) bool { return was.cutOff[entry.ID] })
	spilled := slices.ContainsFunc(n.Shelves[1:], func(s *shelf) bool { return len(s.Members) > 0 })
	for _, s := range n.Shelves[1:] {
		s.away = !spilled
	}
	if spilled {
		if err := d.attached(ctx, n); err != nil {
			return was, err
		}
	}
	unfit := arrange(n.Shelves, wanted, d.shape(*n), n.room)
	if len(unfit) > 0 && !spilled && len(n.Shelves) > 1 {
		if err := d.attached(ctx, n); err != nil {
			return was, err
		}
		unfit = arrange(n.Shelves, wanted, d.shape(*n), n.room)
	}
	for _, id := range unfit {
		was.unfit[id] = true
	}
	return was, nil
}

// covered tells whether the cut-off surely refuses a session: one that was issued just before it may bear a later time, by
// AWS's clock.
func (d *denier) covered(n notes, entry broker.Denial) bool {
	return !n.CutOff.IsZero() && entry.IssuedAt.Before(n.CutOff.Add(-skew))
}

func (d *denier) shape(n notes) shape {
	if d.cfg.By == "source_identity" {
		return shape{key: "aws:SourceIdentity", cutOff: n.CutOff}
	}
	return shape{key: "aws:userid", prefix: n.RoleID + ":", cutOff: n.CutOff}
}

func (n *notes) room(s *shelf) int {
	if s.managed() {
		return managedRoom
	}
	return inlineRoom - n.Others
}

// cut refuses all sessions of the role that are older than a moment, and has the versions that live ended for that, so
// that their tasks are told to refresh. It does nothing where that would spare no entry.
func (d *denier) cut(ctx context.Context, n *notes) (bool, error) {
	now := d.clock()
	after := *n
	after.CutOff = now.Add(-skew).UTC().Truncate(time.Second)
	list, err := d.denials.Denied(ctx, d.arn, now.Add(-skew))
	if err != nil {
		return false, err
	}
	helps := slices.ContainsFunc(list, func(entry broker.Denial) bool { return d.covered(after, entry) && !d.covered(*n, entry) })
	if !helps {
		return false, nil
	}
	d.logger.WarnContext(ctx, "deny policies are full: every older session of the role is cut off", "role", d.arn, "before", after.CutOff)
	save, err := d.note(after, now)
	if err != nil {
		return false, err
	}
	*n = after
	return true, d.denials.CutOff(ctx, d.arn, save, now, d.finding(broker.EventUpstreamCutOff, map[string]string{
		"issued_before": n.CutOff.Format(time.RFC3339),
	}))
}

// putAll writes the policies that are not known to be as they should. What is about to be written is noted first: after a
// crash nobody takes it for somebody else's.
func (d *denier) putAll(ctx context.Context, n *notes, was *outcome) error {
	f := d.shape(*n)
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
			s.Written, s.Intended, s.WrittenAt = fingerprint(document), nil, d.clock().UTC()
			continue
		}
		was.err = errors.Join(was.err, err)
		for _, id := range s.Members { // those of the other policies are denied all the same
			was.failed[id] = err
		}
	}
	return d.save(context.WithoutCancel(ctx), n)
}

// untouched tells whether a managed policy was never written and is not needed: it is left as the operator made it.
func (s *shelf) untouched() bool {
	return s.managed() && len(s.Members) == 0 && s.Written == "" && len(s.Intended) == 0
}

// maxIntended bounds what is remembered of requests that nobody saw answered.
const maxIntended = 16

func (d *denier) save(ctx context.Context, n *notes) error {
	events := n.found
	used, room := n.fill(d.shape(*n))
	switch full := float64(used) >= alarmAt*float64(room); {
	case full && !n.Alarmed:
		n.Alarmed = true
		events = append(events, d.finding(broker.EventUpstreamFilling, map[string]string{
			"used_characters": strconv.FormatInt(used, 10), "room_characters": strconv.FormatInt(room, 10),
		}))
		d.logger.WarnContext(ctx, "the role's deny policies are filling", "role", d.arn, "used", used, "room", room)
	case !full && n.Alarmed && float64(used) < (alarmAt-0.1)*float64(room): // not at every crossing
		n.Alarmed = false
	}
	note, err := d.note(*n, d.clock())
	if err != nil {
		return err
	}
	if err := d.denials.Save(ctx, d.arn, note, events...); err != nil {
		return err
	}
	n.found = nil
	return nil
}

// note is the notes as the ledger keeps them. While a write may be on its way they are looked at again soon.
func (d *denier) note(n notes, now time.Time) (broker.Notes, error) {
	var by time.Time
	for _, s := range n.Shelves {
		if len(s.Intended) > maxIntended {
			s.Intended = slices.Delete(s.Intended, 0, len(s.Intended)-maxIntended)
		}
		if len(s.Intended) > 0 {
			by = now.Add(verifyAfter)
		}
	}
	text, err := json.Marshal(n)
	used, room := n.fill(d.shape(n))
	return broker.Notes{State: text, Used: used, Room: room, LookBy: by}, err
}

func (n notes) fill(f shape) (used, room int64) {
	for _, s := range n.Shelves {
		room += int64(max(0, n.room(s)))
		if len(s.Members) > 0 || !s.managed() {
			used += int64(len(s.document(f)))
		}
	}
	return used, max(room, 1)
}

func (d *denier) finding(t broker.EventType, trace map[string]string) broker.Event {
	return broker.NewFinding(t, d.clock(), "aws", d.arn, trace)
}
