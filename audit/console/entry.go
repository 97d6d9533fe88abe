package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/taskpass/taskpass/audit"
	"github.com/taskpass/taskpass/broker"
)

// entry is an event as the pages show it: parts of its canonical form, and that form itself.
type entry struct {
	ID     string    `json:"id"`
	At     time.Time `json:"at"`
	Type   string    `json:"type"`
	Caller struct {
		Name string `json:"name"`
		Role string `json:"role"`
		Auth string `json:"auth"`
		Addr string `json:"addr"`
	} `json:"caller"`
	RequestID    string            `json:"request_id"`
	TaskID       string            `json:"task_id"`
	ParentTaskID string            `json:"parent_task_id"`
	AgentID      string            `json:"agent_id"`
	Profile      string            `json:"profile"`
	Provider     string            `json:"provider"`
	Requested    []string          `json:"requested_scopes"`
	Scopes       []string          `json:"scopes"`
	CredentialID string            `json:"credential_id"`
	Version      int               `json:"version"`
	VersionID    string            `json:"version_id"`
	State        string            `json:"state"`
	ExpiresAt    time.Time         `json:"expires_at"`
	UpstreamIDs  []string          `json:"upstream_ids"`
	Trace        map[string]string `json:"trace"`
	Fingerprint  string            `json:"fingerprint"`
	Cause        string            `json:"cause"`
	Reason       string            `json:"reason"`
	Code         string            `json:"code"`
	Reasons      []broker.Fault    `json:"reasons"`
	Revocation   struct {
		Result      string    `json:"result"`
		EffectiveAt time.Time `json:"effective_at"`
		Basis       string    `json:"basis"`
	} `json:"revocation"`

	Body []byte `json:"-"` // the canonical bytes, which are what the tree holds
	Mark mark   `json:"-"`
}

func readEntries(bodies []json.RawMessage) ([]entry, error) {
	list := make([]entry, len(bodies))
	for i, body := range bodies {
		if err := json.Unmarshal(body, &list[i]); err != nil {
			return nil, audit.Undecodable()
		}
		list[i].Body = body
	}
	return list, nil
}

// Noun is the part of the type before the dot.
func (e entry) Noun() string { noun, _, _ := strings.Cut(e.Type, "."); return noun }

// Grave tells whether somebody should look at the event whatever else is there.
func (e entry) Grave() bool {
	switch broker.EventType(e.Type) {
	case broker.EventStuck, broker.EventTicketReused, broker.EventAuditTampered, broker.EventUpstreamEdited,
		broker.EventUpstreamFilling, broker.EventUpstreamCutOff, broker.EventLost:
		return true
	}
	return false
}

// What says in one line what is particular to the event.
func (e entry) What() string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if e.Code != "" {
		add("%s", e.Code)
	}
	if len(e.Reasons) > 0 {
		add("%s", e.faults())
	}
	if e.Revocation.Result != "" {
		add("%s by %s", e.Revocation.Result, e.Revocation.Basis)
	}
	if e.Cause != "" {
		add("cause: %s", e.Cause)
	}
	if e.Reason != "" {
		add("“%s”", e.Reason)
	}
	switch broker.EventType(e.Type) {
	case broker.EventIssued, broker.EventRefreshed:
		add("%s", strings.Join(e.UpstreamIDs, ", "))
	case broker.EventIntended, broker.EventTicketCreated:
		add("%s, until %s", strings.Join(e.Scopes, ", "), stamp(e.ExpiresAt))
	case broker.EventAuditRead, broker.EventTokenCreated, broker.EventTokenRevoked, broker.EventUpstreamFilling, broker.EventUpstreamEdited,
		broker.EventUpstreamCutOff:
		if len(e.Trace) > 0 {
			add("%s", e.trace())
		}
	}
	return strings.Join(parts, " · ")
}

func (e entry) faults() string {
	var list []string
	for _, f := range e.Reasons {
		list = append(list, strings.TrimSpace(f.Pointer+" "+f.Reason))
	}
	return strings.Join(list, "; ")
}

func (e entry) trace() string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(e.Trace)) {
		list = append(list, k+": "+e.Trace[k])
	}
	return strings.Join(list, ", ")
}

// JSON is the canonical form with line breaks, to be read.
func (e entry) JSON() string {
	var buf bytes.Buffer
	if json.Indent(&buf, e.Body, "", "  ") != nil {
		return string(e.Body)
	}
	return buf.String()
}
