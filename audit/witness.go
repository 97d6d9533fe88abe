package audit

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/taskpass/taskpass/broker"
)

// Contradiction is where the ledger says of a version what its events do not. The service's login may write the ledger, and
// nobody may alter an event unnoticed: so the record is believed.
type Contradiction struct {
	Field   string `json:"field"`
	Ledger  string `json:"ledger"`
	Record  string `json:"record"`
	EventID string `json:"event_id"` // which event says so
}

// contradicted is Life.How where the ledger and the record tell of two ends. Nothing is claimed then.
const contradicted = "contradicted"

// witness holds what the ledger says against the version's events. Who had it, and for what, is in each of them; when it
// ends, in one at least; that it ended, in the one of its end.
func (h *Held) witness() {
	events := make([]record, 0, len(h.Events))
	for _, body := range h.Events {
		var r record
		if json.Unmarshal(body, &r) == nil {
			events = append(events, r)
		}
	}
	if len(events) == 0 {
		return // archived: there is nothing to hold it against
	}
	if h.CredentialID == "" {
		h.removed(events)
		return
	}
	h.whose(events)
	h.ends(events)
}

// removed tells by its events alone of a version that is not on the ledger, from which nothing is ever deleted.
func (h *Held) removed(events []record) {
	first, last := events[0], events[len(events)-1]
	*h = Held{
		CredentialID: last.CredentialID, Version: last.Version, VersionID: last.VersionID, TaskID: last.TaskID, ParentTaskID: last.ParentTaskID,
		AgentID: last.AgentID, Caller: first.Caller.Name, Profile: last.Profile, Provider: last.Provider, RequestedScopes: last.Requested,
		Scopes: last.Scopes, TTLSeconds: last.TTLSeconds, State: string(last.State), IssuedAt: instant(first.At), ExpiresAt: instant(last.ExpiresAt),
		Upstream: last.Upstream, UpstreamIDs: last.UpstreamIDs, Trace: last.Trace, Fingerprint: last.Fingerprint, Cause: string(last.Cause),
		Reason: last.Reason, Life: Life{Alive: "maybe", How: contradicted}, Events: h.Events,
	}
	h.contradict("version", "", string(last.State), last.ID)
}

func instant(text string) time.Time {
	t, _ := time.Parse(time.RFC3339Nano, text) // what is no time is none
	return t
}

// whose takes from the record what the ledger has otherwise.
func (h *Held) whose(events []record) {
	last := events[len(events)-1]
	for _, f := range []struct {
		field    string
		ledger   *string
		recorded func(record) string
	}{
		{"credential_id", &h.CredentialID, func(r record) string { return r.CredentialID }},
		{"task_id", &h.TaskID, func(r record) string { return r.TaskID }},
		{"parent_task_id", &h.ParentTaskID, func(r record) string { return r.ParentTaskID }},
		{"agent_id", &h.AgentID, func(r record) string { return r.AgentID }},
		{"profile", &h.Profile, func(r record) string { return r.Profile }},
		{"provider", &h.Provider, func(r record) string { return r.Provider }},
		{"upstream", &h.Upstream, func(r record) string { return r.Upstream }},
	} {
		if got := f.recorded(last); got != *f.ledger {
			h.contradict(f.field, *f.ledger, got, last.ID)
			*f.ledger = got
		}
	}
	for _, f := range []struct {
		field    string
		ledger   *[]string
		recorded []string
	}{{"scopes", &h.Scopes, last.Scopes}, {"requested_scopes", &h.RequestedScopes, last.Requested}} {
		if !slices.Equal(*f.ledger, f.recorded) {
			h.contradict(f.field, strings.Join(*f.ledger, " "), strings.Join(f.recorded, " "), last.ID)
			*f.ledger = append([]string{}, f.recorded...)
		}
	}
	for _, r := range events {
		asked := r.Type == broker.EventIntended || r.Type == broker.EventTicketCreated
		if asked && r.Version == 1 && r.Caller.Name != h.Caller {
			h.contradict("caller", h.Caller, r.Caller.Name, r.ID)
			h.Caller = r.Caller.Name
		}
		if r.Fingerprint != "" && r.Fingerprint != h.Fingerprint {
			h.contradict("fingerprint", h.Fingerprint, r.Fingerprint, r.ID)
			h.Fingerprint = r.Fingerprint
		}
	}
}

// ends looks for the events that say of its end what the ledger says, and for one that says of an end of which the ledger
// does not.
func (h *Held) ends(events []record) {
	last := events[len(events)-1]
	known := len(h.Contradictions)
	expires := Stamp(h.ExpiresAt)
	if !slices.ContainsFunc(events, func(r record) bool { return r.ExpiresAt == expires }) {
		h.contradict("expires_at", expires, last.ExpiresAt, last.ID)
	}
	said := "" // by which event
	for _, r := range events {
		if r.State == broker.State(h.State) && h.Ending.says(r.Revocation) {
			said = r.ID
		}
		if over(r.State) && !over(broker.State(h.State)) {
			h.contradict("state", h.State, string(r.State), r.ID)
		}
	}
	switch claims := over(broker.State(h.State)) || h.Ending.Result != ""; {
	case said != "":
		h.Life.EventID = said
	case claims:
		h.contradict("revocation", h.Ending.String(), recorded(last.Revocation), last.ID)
	}
	if len(h.Contradictions) > known {
		h.Life = Life{Alive: "maybe", How: contradicted}
	}
}

func over(s broker.State) bool {
	return s == broker.StateRevoked || s == broker.StateExpired || s == broker.StateFailed
}

func (h *Held) contradict(field, ledger, record, event string) {
	h.Contradictions = append(h.Contradictions, Contradiction{field, ledger, record, event})
}

// Ending is what the ledger says was achieved of a version's end.
type Ending struct {
	Result, Basis string
	EffectiveAt   time.Time
}

func (e Ending) says(r *recordRevocation) bool {
	if r == nil {
		return e.Result == ""
	}
	return e.String() == recorded(r)
}

func (e Ending) String() string {
	if e.Result == "" {
		return ""
	}
	return strings.TrimSpace(e.Result + " " + Stamp(e.EffectiveAt) + " " + e.Basis)
}

func recorded(r *recordRevocation) string {
	if r == nil {
		return ""
	}
	return strings.TrimSpace(string(r.Result) + " " + r.EffectiveAt + " " + r.Basis)
}
