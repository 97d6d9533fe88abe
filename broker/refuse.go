package broker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// refusal is why one request of several is refused.
type refusal struct {
	request int
	err     *Error
}

// refuse audits a refusal and returns it; a refusal that cannot be audited is answered as unavailable.
func (b *Broker) refuse(ctx context.Context, caller Caller, r Request, e *Error) error {
	return b.refuseSome(ctx, caller, []Request{r}, []refusal{{0, e}})
}

// refuseAll refuses every request of a batch for the same reason.
func (b *Broker) refuseAll(ctx context.Context, caller Caller, rs []Request, e *Error) error {
	refused := make([]refusal, len(rs))
	for i := range rs {
		refused[i] = refusal{i, e}
	}
	return b.refuseSome(ctx, caller, rs, refused)
}

// refuseSome audits each refused request of a batch with an event of its own, and returns one error that names them
// all, with the code of the first.
func (b *Broker) refuseSome(ctx context.Context, caller Caller, rs []Request, refused []refusal) error {
	events := make([]Event, len(refused))
	whole := *refused[0].err
	whole.Faults = nil
	var messages []string
	for i, r := range refused {
		events[i] = b.refusalEvent(caller, rs[r.request], r.err)
		if !slices.Contains(messages, r.err.Message) {
			messages = append(messages, r.err.Message)
			whole.Faults = append(whole.Faults, r.err.Faults...)
		}
	}
	whole.Message = strings.Join(messages, "; ")
	if err := b.Ledger.Record(ctx, events...); err != nil {
		return err
	}
	return &whole
}

// overQuota tells for each of n requests of a batch which limits it would exceed. Where that cannot be told any more,
// all are refused without saying which.
func overQuota(over *LimitError, n int) []refusal {
	var refused []refusal
	for i := range n {
		e := Errorf(CodeQuotaExceeded, "too many credentials are alive")
		e.RetryAfter = 30 * time.Second
		var limits []string
		for _, x := range over.Exceeded {
			if !slices.Contains(x.Credentials, i) {
				continue
			}
			pointer := ""
			if x.Of == "profile" {
				pointer = "/profile"
			}
			limits = append(limits, x.String())
			e.Faults = append(e.Faults, Fault{pointer, fmt.Sprintf("exceeds the limit: %s are alive", x)})
		}
		if len(limits) == 0 && len(over.Exceeded) > 0 {
			continue // refused only with the others
		}
		if len(limits) > 0 {
			e.Message += ": " + strings.Join(limits, ", ")
		}
		refused = append(refused, refusal{i, pointInto(e, i, n)})
	}
	return refused
}

func (b *Broker) refusalEvent(caller Caller, r Request, e *Error) Event {
	p, _ := b.profile(r.Profile)
	event := Event{
		ID: NewEventID(), At: b.now(), Type: EventRefused, Caller: caller,
		Provider: p.Provider, TTL: r.TTL, Code: e.Code, Faults: e.Faults,
	}
	// Only what has an id's form is recorded: a refused request may hold anything.
	event.TaskID, event.AgentID, event.Profile = idOrEmpty(r.TaskID), idOrEmpty(r.AgentID), idOrEmpty(r.Profile)
	event.ParentTask = idOrEmpty(r.ParentTaskID)
	for _, s := range r.Scopes {
		event.Requested = append(event.Requested, idOrEmpty(s))
	}
	return event
}
