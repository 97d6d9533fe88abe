package aws

import (
	"context"
	"encoding/json"
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
	Known   bool     `json:"known,omitempty"`  // that the role which IAM finds by its name is the profile's
	Others  int      `json:"others,omitempty"` // characters that other inline policies of the role take
	Alarmed bool     `json:"alarmed,omitempty"`
	Shelves []*shelf `json:"shelves"`

	CutOff  time.Time `json:"cut_off,omitzero"`  // sessions that were issued before it are to be refused
	InForce time.Time `json:"in_force,omitzero"` // the same, as it is known to be written: entries for these are not needed

	found []broker.Event // to go on the record with the next save
	shape shape          // of this run
}

// recall reads the notes and puts the shelves in the configured order. What was in a managed policy that is no longer
// configured finds another place; the policy is left as it is.
func (d *denier) recall(ctx context.Context) (notes, error) {
	var n notes
	text, err := d.denials.Notes(ctx, d.arn)
	if err != nil {
		return n, unasked(err)
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

func (n *notes) room(s *shelf) int {
	if s.managed() {
		return managedRoom
	}
	return inlineRoom - n.Others
}

func (d *denier) save(ctx context.Context, n *notes) error {
	events := n.found
	used, room := n.fill()
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
		return unasked(err)
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
	used, room := n.fill()
	return broker.Notes{State: text, Used: used, Room: room, LookBy: by}, err
}

// fill is how many characters the policies have, and how many they could.
func (n notes) fill() (used, room int64) {
	for _, s := range n.Shelves {
		if !s.usable() {
			continue
		}
		room += int64(max(0, n.room(s)))
		if len(s.Members) > 0 {
			used += int64(len(s.document(n.shape)))
		}
	}
	return used, max(room, 1)
}
